{{/* Without the release's name where that says it already. */}}
{{- define "pglease.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pglease.injector" -}}
{{ include "pglease.fullname" . }}-injector
{{- end -}}

{{- define "pglease.certificate" -}}
{{ include "pglease.fullname" . }}-injector-certificate
{{- end -}}

{{/* The Secret with tls.crt and tls.key. */}}
{{- define "pglease.secret" -}}
{{- if eq .Values.certificate.source "existing" -}}
{{- required "certificate.existing.secretName: name the Secret with the certificate, or let certificate.source be job" .Values.certificate.existing.secretName -}}
{{- else -}}
{{ include "pglease.injector" . }}-tls
{{- end -}}
{{- end -}}

{{- define "pglease.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pglease.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "pglease.selector" . }}
{{- end -}}

{{- define "pglease.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* A scalar or list of the values as the settings spell it. */}}
{{- define "pglease.setting" -}}
{{- if kindIs "string" . -}}{{ . }}
{{- else if kindIs "slice" . -}}{{ join "," . }}
{{- else -}}{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* What every sidecar is told, as a list of "key=value". */}}
{{- define "pglease.settings" -}}
{{- $settings := list -}}
{{- with .Values.vault.address }}{{ $settings = append $settings (printf "vault.address=%s" .) }}{{ end -}}
{{- with .Values.vault.namespace }}{{ $settings = append $settings (printf "vault.namespace=%s" .) }}{{ end -}}
{{- if ne .Values.vault.loginMount "kubernetes" }}{{ $settings = append $settings (printf "vault.login.mount=%s" .Values.vault.loginMount) }}{{ end -}}
{{- range $key, $value := .Values.sidecar.settings -}}
{{- $settings = append $settings (printf "%s=%s" $key (include "pglease.setting" $value)) -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* JSON's strings are TOML's. */}}
{{- define "pglease.config" -}}
[injector]
tls_cert_file = "/etc/pglease/tls/tls.crt"
tls_key_file = "/etc/pglease/tls/tls.key"
settings = {{ include "pglease.settings" . }}
{{- with .Values.vault.ca }}
vault_ca = {{ toJson . }}
{{- end }}
{{- with .Values.sidecar }}
{{- with .imagePullPolicy }}
image_pull_policy = {{ toJson . }}
{{- end }}
token_audience = {{ toJson .tokenAudience }}
token_expiration = {{ toJson .tokenExpiration }}
native_sidecar = {{ .native }}
conflict = {{ toJson .conflict }}
cpu_request = {{ toJson .resources.cpuRequest }}
memory_request = {{ toJson .resources.memoryRequest }}
{{- with .resources.cpuLimit }}
cpu_limit = {{ toJson . }}
{{- end }}
{{- with .resources.memoryLimit }}
memory_limit = {{ toJson . }}
{{- end }}
{{- end }}
[log]
level = {{ toJson .Values.log.level }}
format = {{ toJson .Values.log.format }}
{{ end -}}

{{/* Pod Security "restricted". Which user it is, is the image's to say, or the namespace's. */}}
{{- define "pglease.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pglease.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "pglease.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The pod of the Job and of the CronJob. */}}
{{- define "pglease.certificatePod" -}}
metadata:
  labels:
    {{- include "pglease.selector" . | nindent 4 }}
    app.kubernetes.io/component: certificate
spec:
  serviceAccountName: {{ include "pglease.certificate" . }}
  automountServiceAccountToken: true
  enableServiceLinks: false
  restartPolicy: OnFailure
  {{- with include "pglease.pullSecrets" . }}
  {{- . | nindent 2 }}
  {{- end }}
  securityContext:
    {{- include "pglease.podSecurity" . | nindent 4 }}
  containers:
    - name: certificate
      image: {{ include "pglease.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - injector
        - certificate
        - --namespace={{ .Release.Namespace }}
        - --service={{ include "pglease.injector" . }}
        - --secret={{ include "pglease.secret" . }}
        - --webhook={{ include "pglease.injector" . }}
      securityContext:
        {{- include "pglease.containerSecurity" . | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 64Mi}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "pglease.check" -}}
{{- if and .Values.sidecar.native (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "sidecar.native: Kubernetes %s has no native sidecars, which need 1.29; set sidecar.native=false (docs/kubernetes.md says what is lost)" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq .Values.certificate.source "existing") (not .Values.certificate.existing.ca) -}}
{{- fail "certificate.existing.ca: the API server has to know the CA of the certificate; give it as PEM" -}}
{{- end -}}
{{- end -}}
