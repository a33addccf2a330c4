//! What must hold for any body that is meant as an `AdmissionReview`; see `crate::fuzz`.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a broken invariant is a panic"
)]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::review::{self, Outcome};
use crate::config::{Conflict, ProjectedToken, Resources, SidecarConfig, SidecarSetting};

/// Answered in the request's words or not at all; a patch goes with an injected pod only, and makes one that is not
/// patched again.
pub(crate) fn fuzz_review(body: &[u8]) {
    let Some((response, outcome)) = respond(body) else { return };
    assert_eq!(response["allowed"] == json!(true), outcome != Outcome::Refused);
    assert_eq!(response.get("patch").is_some(), outcome == Outcome::Injected);
    let Some(patch) = response["patch"].as_str() else { return };
    let operations: Vec<Value> =
        serde_json::from_slice(&STANDARD.decode(patch).expect("base64")).expect("a list");
    let mut review: Value = serde_json::from_slice(body).expect("it was read before");
    let pod = &mut review["request"]["object"];
    for operation in &operations {
        add(pod, operation);
    }
    let (again, _) = respond(review.to_string().as_bytes()).expect("it was answered before");
    assert!(again.get("patch").is_none(), "patched twice: {again}");
}

fn respond(body: &[u8]) -> Option<(Value, Outcome)> {
    let answer = review::answer(body, &sidecar()).ok()?;
    let mut review: Value = serde_json::from_slice(&answer.body).expect("an answer is JSON");
    Some((review["response"].take(), answer.outcome))
}

/// RFC 6902 §4.1.
fn add(pod: &mut Value, operation: &Value) {
    assert_eq!(operation["op"], "add");
    let path = operation["path"].as_str().expect("a path");
    let (parent, key) = path.rsplit_once('/').expect("a member of something");
    let value = operation["value"].clone();
    match pod.pointer_mut(parent).expect("its parent is there") {
        Value::Object(map) => {
            map.insert(key.replace("~1", "/").replace("~0", "~"), value);
        }
        Value::Array(items) => items.insert(key.parse().expect("an index"), value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            panic!("{parent} has no members")
        }
    }
}

pub(super) fn sidecar() -> SidecarConfig {
    SidecarConfig {
        image: "pglease".to_owned(),
        image_pull_policy: None,
        settings: vec![SidecarSetting {
            variable: "PGLEASE_VAULT_ADDRESS".to_owned(),
            value: "https://vault:8200".to_owned(),
        }],
        vault_ca: None,
        token: ProjectedToken { audience: "vault".to_owned(), expiration: Duration::from_hours(24) },
        native: true,
        resources: Resources {
            cpu_request: "10m".to_owned(),
            memory_request: "16Mi".to_owned(),
            cpu_limit: None,
            memory_limit: None,
        },
        conflict: Conflict::Keep,
    }
}
