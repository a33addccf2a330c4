// Writes rendered.json: what Go's own text/template makes of each case, with Consul-template's functions.
//
// The functions are those of hashicorp/consul-template's template/funcs.go, with the types that its secret has, so
// that what is recorded is what the Vault Agent writes. By hand, after a change of the cases, with any Go from 1.22:
//
//	go run tests/recorded/templates/record.go >tests/recorded/templates/rendered.json
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type secret struct {
	RequestID     string
	LeaseID       string
	LeaseDuration int
	Renewable     bool
	Data          map[string]interface{}
}

type rendered struct {
	Template  string `json:"template"`
	Username  string `json:"username"`
	Password  string `json:"password"`
	LeaseID   string `json:"lease_id"`
	Duration  int    `json:"lease_duration"`
	Renewable bool   `json:"renewable"`
	Output    string `json:"output"`
}

func marshal(value interface{}, escape bool, indent string) (string, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(escape)
	encoder.SetIndent("", indent)
	err := encoder.Encode(value)
	return strings.TrimRight(buffer.String(), "\r\n"), err
}

func functions(of *secret) template.FuncMap {
	return template.FuncMap{
		"secret": func(path ...string) (interface{}, error) {
			if len(path) != 1 {
				return nil, fmt.Errorf("a write")
			}
			return of, nil
		},
		"toJSON": func(value interface{}) (string, error) {
			result, err := json.Marshal(value)
			return string(bytes.TrimSpace(result)), err
		},
		"toJSONPretty": func(value interface{}) (string, error) {
			result, err := json.MarshalIndent(value, "", "  ")
			return string(bytes.TrimSpace(result)), err
		},
		"toUnescapedJSON": func(value interface{}) (string, error) { return marshal(value, false, "") },
		"base64Encode": func(value string) (string, error) {
			return base64.StdEncoding.EncodeToString([]byte(value)), nil
		},
		"toUpper":   func(value string) (string, error) { return strings.ToUpper(value), nil },
		"toLower":   func(value string) (string, error) { return strings.ToLower(value), nil },
		"trimSpace": func(value string) (string, error) { return strings.TrimSpace(value), nil },
	}
}

const path = `"database/creds/db-app"`

// What stands between the secret's with and end.
var inner = []string{
	`{{ .Data.username }}:{{ .Data.password }}`,
	`{{.Data.username}} {{- .Data.password -}} {{.LeaseID}}`,
	`{{ .LeaseID }} {{ .LeaseDuration }} {{ .Renewable }}`,
	`{{ .Data.password | urlquery }}`,
	`{{ urlquery .Data.password }}`,
	`{{ .LeaseDuration | urlquery }}`,
	`{{ .Data.password | toJSON }}`,
	`{{ .Data | toJSON }}`,
	`{{ .Data | toJSONPretty }}`,
	`{{ .Data | toUnescapedJSON }}`,
	`{{ .Data.password | toUnescapedJSON }} {{ .LeaseDuration | toJSON }} {{ .Renewable | toJSON }}`,
	`{{ .Data.password | base64Encode }}`,
	`{{ printf "%s:%s" .Data.username .Data.password | base64Encode }}`,
	`{{ printf "%q" .Data.password }}`,
	`{{ printf "%v %v %v %d %%" .Data.username .LeaseDuration .Renewable .LeaseDuration }}`,
	`{{ .Data.password | printf "%s/%s" .Data.username }}`,
	`{{ printf "postgresql://%s:%s@h:%d/d" (.Data.username | urlquery) (urlquery .Data.password) 5432 }}`,
	`{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}` + "\n" + `{{ end }}`,
	`{{ range $k, $v := .Data }}export {{ $k | toUpper }}={{ printf "%q" $v }}` + "\n" + `{{ end }}`,
	`{{ range .Data }}<{{ . }}>{{ else }}none{{ end }}`,
	`{{ range $v := .Data }}<{{ $v | toLower }}>{{ end }}`,
	`{{ if .Renewable }}yes{{ else }}no{{ end }}`,
	`{{ if .LeaseID }}lease{{ else if .Renewable }}renewable{{ else }}static{{ end }}`,
	`{{ with .Data }}{{ .username }}={{ .password }}{{ end }}`,
	`{{ with .LeaseID }}{{ . }}{{ else }}{{ .Data.username }}{{ end }}`,
	`{{ with .LeaseID }}{{ . }}{{ else with .Data.username }}{{ . }}{{ end }}`,
	`{{ $u := .Data.username }}{{ $p := .Data.password }}{{ $u }}|{{ $p }}`,
	`{{ $x := "a" }}{{ if .Renewable }}{{ $x = "b" }}{{ $y := $x }}{{ $y }}{{ end }}{{ $x }}`,
	`{{ $x := "a" }}{{ if true }}{{ $x := "b" }}{{ $x }}{{ end }}{{ $x }}`,
	`{{ if $x := .Data.username }}{{ $x }}{{ end }}`,
	`a  {{- /* a comment */ -}}  b {{/* and one {{ more */}} c`,
	"a \t\r\n{{- \"b\" -}}\n\n c {{- `d\\n` }} e",
	"{\n  \"db_connection\": \"host=h user={{ .Data.username }} password={{ .Data.password }}\"\n}\n",
	"{{ \"\\\"q\\\" \\u00e9 \\x41 \\101 \\n\" }}{{ `raw \"q\" \\` }}{{ \"{{\" }}",
	`{{ .Data.password | trimSpace | toUpper }}`,
	`{{ (printf "%s" .Data.password) | toJSON }}{{ ("x") }}`,
	`{{with .}}{{.Data.username}}{{end}}`,
	`{{ -5 }} {{ +7 }} {{ 0 }} {{ true }}`,
	"{{ .Data.username\n   | printf\n \"%s\" }}",
}

// Whole templates.
var whole = []string{
	"{{- with secret " + path + " -}}\n{\n  \"db_connection\": \"postgresql://{{ .Data.username }}:{{ .Data.password }}@postgres:5432/wizard?sslmode=verify-full\"\n}\n{{- end -}}\n",
	"{{ with secret " + path + " }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}\n{{ end }}{{ end }}",
	"{{ with secret " + path + " }}{{ .Data | toJSON }}\n{{ end }}",
	"{{ with $s := secret " + path + " }}{{ $s.Data.username }}{{ end }}",
	"{{ $s := secret " + path + " }}{{ $s.Data.username }} {{ $s.LeaseDuration }}{{ with $s.Data }}{{ .password }}{{ end }}",
	"{{ (secret " + path + ").Data.username }}",
	"{{ if secret " + path + " }}there{{ end }}",
	"{{ with secret " + path + " }}a{{ else }}b{{ end }} {{ with secret " + path + " }}{{ .Data.password }}{{ end }}",
	"spring.datasource.username={{ with secret " + path + " }}{{ .Data.username }}{{ end }}\nspring.datasource.password={{ with secret " + path + " }}{{ .Data.password }}{{ end }}\n",
	"{{with secret " + path + "}}{{with .Data}}{{with .username}}{{.}}{{end}}{{end}}{{end}}",
}

var passwords = []string{
	"A1a-pnXtcGHy0qw5lZ3k",
	`"'\ %:@/?#[]!$&()*+,;=<>^` + "`{|}~",
	"tab\tline\nreturn\rbell\abs\bff\fvt\v\x00\x01\x1f\x7f",
	" space at both ends ",
	"é ü ß 漢 😀 \u00a0\u00ad\u2028\u2029\u200b\u0301\ue000\ufeff\U000e0001\U0010ffff",
	"",
	"{{ .Data.username }}%s%d%%",
	"İıſKÅ ᾳ ᾈ ŉ ǅ ǆ ΐ σς Ω",
}

func main() {
	templates := whole
	for _, body := range inner {
		templates = append(templates, "{{ with secret "+path+" }}"+body+"{{ end }}")
	}
	var all []rendered
	for number, text := range templates {
		for index, password := range passwords {
			result := rendered{
				Template: text, Username: "v-kubernet-db-app-" + fmt.Sprint(number), Password: password,
				LeaseID: "database/creds/db-app/h2lYq8zC1", Duration: 3600, Renewable: true,
			}
			if index%2 == 1 {
				result.LeaseID, result.Duration, result.Renewable = "", 0, false
			}
			of := &secret{
				LeaseID: result.LeaseID, LeaseDuration: result.Duration, Renewable: result.Renewable,
				Data: map[string]interface{}{"username": result.Username, "password": password},
			}
			var output bytes.Buffer
			parsed, err := template.New("").Option("missingkey=zero").Funcs(functions(of)).Parse(text)
			if err == nil {
				err = parsed.Execute(&output, nil)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, text, err)
				os.Exit(1)
			}
			result.Output = output.String()
			all = append(all, result)
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(all); err != nil {
		panic(err)
	}
}
