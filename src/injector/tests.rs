//! A pod in, an answer out: what is expected of the whole.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fuzz;
use super::review::{Answer, BadReview, Outcome, answer};
use crate::config::{SidecarConfig, SidecarSetting};

mod application;

mod docs;
mod files;
mod golden;
mod properties;
mod reviews;
mod sidecar;

/// What the usual pod's containers get.
const URL: &str = "postgresql://app@localhost:5432/app?sslmode=disable";

/// What an operator would set.
fn defaults() -> SidecarConfig {
    SidecarConfig {
        image: "registry.example.com/pglease:1.2.3".to_owned(),
        settings: vec![setting("PGLEASE_VAULT_ADDRESS", "https://vault.vault.svc:8200")],
        ..fuzz::sidecar()
    }
}

fn setting(variable: &str, value: &str) -> SidecarSetting {
    SidecarSetting { variable: variable.to_owned(), value: value.to_owned() }
}

/// A labelled pod with all that is required, and one container `web`.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-0",
            "labels": { "app": "web", "pglease.dev/inject": "true" },
            "annotations": {
                "pglease.dev/vault-path": "database/creds/db-app",
                "pglease.dev/vault-login-role": "web",
                "pglease.dev/upstream": "postgresql://db.example.com:5432/app",
            },
        },
        "spec": { "containers": [{ "name": "web", "image": "registry.example.com/web:1" }] },
    })
}

/// The same, with this put where `pointer` leads; all that leads there is made.
fn pod_with(changes: &[(&str, Value)]) -> Value {
    let mut pod = pod();
    for (pointer, value) in changes {
        put(&mut pod, pointer, value.clone());
    }
    pod
}

fn put(root: &mut Value, pointer: &str, value: Value) {
    let mut place = root;
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        place = match place {
            Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
            map @ (Value::Null | Value::Object(_)) => {
                if map.is_null() {
                    *map = json!({});
                }
                map.as_object_mut().unwrap().entry(step).or_insert(Value::Null)
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) => panic!("{pointer}"),
        };
    }
    *place = value;
}

/// The pointer of one of our annotations.
fn annotation(name: &str) -> String {
    format!("/metadata/annotations/pglease.dev~1{name}")
}

/// A review of the pod's creation, as an API server posts it.
fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

/// What came of a pod.
#[derive(Debug)]
struct Reviewed {
    answer: Answer,
    response: Value,
    /// The pod with the patch applied, by somebody else's hand.
    patched: Value,
}

impl Reviewed {
    fn of(pod: &Value, sidecar: &SidecarConfig) -> Self {
        let answer = answer(review(pod).to_string().as_bytes(), sidecar).unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let response = body["response"].clone();
        assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        let mut patched = pod.clone();
        let patch: json_patch::Patch = serde_json::from_value(operations(&response)).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
        let mut authors = pod.clone();
        // Ours alone.
        let annotations = authors.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        annotations.and_then(|annotations| annotations.remove("pglease.dev/status"));
        assert!(holds(&patched, &authors), "the author's is changed: {patched:#}");
        Self { answer, response, patched }
    }

    fn of_default(pod: &Value) -> Self {
        Self::of(pod, &defaults())
    }

    #[track_caller]
    fn injected(self) -> Self {
        assert_eq!(self.answer.outcome, Outcome::Injected, "{:#}", self.response);
        let again = Self::of_default(&self.patched);
        assert_eq!(again.answer.outcome, Outcome::Unchanged, "{:#}", again.response);
        self
    }

    #[track_caller]
    fn refused(&self) -> &str {
        assert_eq!(self.answer.outcome, Outcome::Refused, "{:#}", self.response);
        assert_eq!(self.response["allowed"], false);
        let message = self.response["status"]["message"].as_str().unwrap();
        assert_eq!(self.answer.reason.as_deref(), Some(message));
        message
    }

    fn warnings(&self) -> Vec<&str> {
        let list = self.response["warnings"].as_array();
        list.into_iter().flatten().map(|warning| warning.as_str().unwrap()).collect()
    }

    /// The sidecar.
    fn sidecar(&self) -> &Value {
        let mut all = super::pod::all_containers(&self.patched);
        all.find(|container| container["name"] == "pglease").unwrap()
    }

    /// The value of a variable of a container of the patched pod.
    fn env(&self, container: &str, name: &str) -> Option<&str> {
        let mut all = super::pod::all_containers(&self.patched);
        let container = all.find(|known| known["name"] == container).unwrap();
        let mut same =
            super::pod::items(container, "/env").iter().filter(|variable| variable["name"] == name);
        let value = same.next()?["value"].as_str();
        assert!(same.next().is_none(), "{name} twice");
        value
    }

    /// The tables of its credential files, as the sidecar reads them.
    fn files(&self) -> Vec<BTreeMap<String, String>> {
        // What Kubernetes makes of the value.
        let text = self.env("pglease", "PGLEASE_FILES").unwrap_or_default().replace("$$", "$");
        let document = DeTable::parse(&text).unwrap();
        let Some(DeValue::Array(files)) = document.get_ref().get("file").map(Spanned::get_ref) else {
            return Vec::new();
        };
        files.iter().map(|file| texts("", file.get_ref().as_table().unwrap())).collect()
    }

    fn names(&self, list: &str) -> Vec<&str> {
        super::pod::items(&self.patched, list).iter().map(super::pod::name).collect()
    }
}

fn texts(prefix: &str, table: &DeTable<'_>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in table {
        let key = format!("{prefix}{}", key.get_ref());
        if let Some(inner) = value.get_ref().as_table() {
            all.extend(texts(&format!("{key}."), inner));
        } else {
            all.insert(key, value.get_ref().as_str().unwrap().to_owned());
        }
    }
    all
}

/// Of a JSON Patch; none where there is no patch.
fn operations(response: &Value) -> Value {
    use base64::Engine as _;
    let Some(patch) = response["patch"].as_str() else { return json!([]) };
    assert_eq!((&response["patchType"], &response["allowed"]), (&json!("JSONPatch"), &json!(true)));
    serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(patch).unwrap()).unwrap()
}

/// Whether all of `part` is in `whole` unchanged: lists in their order, maybe with more between.
fn holds(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().all(|(key, value)| {
            whole.get(key).is_some_and(|own| holds(own, value))
                || (value.is_null() && whole.contains_key(key))
        }),
        (Value::Array(whole), Value::Array(part)) => {
            let mut rest = whole.iter();
            part.iter().all(|item| rest.any(|own| holds(own, item)))
        }
        (whole, part) => whole == part,
    }
}
