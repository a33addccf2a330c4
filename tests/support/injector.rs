//! `pglease injector` under test, and reviews as an API server posts them.

use std::fs;
use std::path::Path;

use reqwest::{Certificate, Client};
use serde_json::{Value, json};

use super::pglease::Pglease;
use super::pki::Authority;
use super::process::Folder;

/// A running `pglease injector`. Killed on drop.
pub(crate) struct Injector {
    pub(crate) pglease: Pglease,
    client: Client,
}

impl Injector {
    /// Starts `binary` with a certificate of its own and `more` lines under `[injector]`.
    pub(crate) async fn start(binary: &Path, more: &str) -> Self {
        let folder = Folder::create(None);
        let authority = Authority::create();
        let issued = authority.issue(&["localhost"]);
        fs::write(folder.path().join("tls.crt"), issued.certificate).unwrap();
        fs::write(folder.path().join("tls.key"), issued.key).unwrap();
        let settings = format!(
            "[http]\naddress = \"127.0.0.1:0\"\n[injector]\naddress = \"127.0.0.1:0\"\ntls_cert_file = \"tls.crt\"\n\
             tls_key_file = \"tls.key\"\nimage = \"pglease:test\"\n{more}"
        );
        let pglease = Pglease::start_injector(binary, folder, &settings).await;
        let client = super::http_client_believing(Certificate::from_pem(authority.pem().as_bytes()).unwrap());
        Self { pglease, client }
    }

    /// Posts this body; status and answer.
    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::Result<(u16, String)> {
        let url = format!("https://localhost:{}/mutate?timeout=5s", self.pglease.port());
        let request = self.client.post(url).header("content-type", "application/json").body(body);
        let response = request.send().await?;
        let status = response.status().as_u16();
        Ok((status, response.text().await?))
    }
}

/// The review of a pod that is about to be created.
pub(crate) fn review(uid: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "requestResource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

/// A pod of a Deployment as the README has it, after the API server's defaults.
pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-5d9f8c7b6d-",
            "labels": { "app": "web", "pod-template-hash": "5d9f8c7b6d", "pglease.dev/inject": "true" },
            "annotations": {
                "pglease.dev/vault-path": "database/creds/db-app",
                "pglease.dev/vault-login-role": "web",
                "pglease.dev/upstream": "postgresql://postgres.db.svc:5432/wizard?sslmode=verify-full",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9f8c7b6d",
                "uid": "3f6c2d2e-0001-4a4f-9a57-3b1f6a1e5c11", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "containers": [{
                "name": "web",
                "image": "web:1",
                "ports": [{ "containerPort": 8080, "protocol": "TCP" }],
                "env": [{ "name": "PORT", "value": "8080" }],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
                "volumeMounts": [{
                    "name": "kube-api-access-x7x2b", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                }],
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }],
            "volumes": [{
                "name": "kube-api-access-x7x2b",
                "projected": {
                    "sources": [
                        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                    ],
                    "defaultMode": 420,
                },
            }],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "web",
            "serviceAccount": "web",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ],
            "priority": 0,
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {},
    })
}
