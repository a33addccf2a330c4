//! AdmissionReview in, AdmissionReview out (admission.k8s.io/v1).

use serde_json::{Value, json};

use crate::config::SidecarConfig;

/// What the API server is answered, and what of it goes to the log and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// An AdmissionReview with a response, as JSON.
    pub(super) body: Vec<u8>,
    pub(super) outcome: Outcome,
    /// Why, in one line, where there is something to say.
    pub(super) reason: Option<String>,
    pub(super) namespace: String,
    /// The pod's name, or its `generateName`.
    pub(super) pod: String,
}

/// What became of a pod.
#[expect(dead_code, reason = "no pod is looked at yet")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Injected,
    /// Not asked for, or done already.
    Unchanged,
    /// Asked for, and left alone with a reason.
    Skipped,
    Refused,
}

/// Why there is no answer to a body: HTTP 400.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadReview {
    #[error("not JSON: {0}")]
    Json(serde_json::Error),
    #[error("no AdmissionReview of admission.k8s.io/v1 with a request that has a uid")]
    NotAReview,
}

/// Answers the review in `body`.
pub(super) fn answer(body: &[u8], _sidecar: &SidecarConfig) -> Result<Answer, BadReview> {
    let review: Value = serde_json::from_slice(body).map_err(BadReview::Json)?;
    let is_review = review.get("apiVersion").and_then(Value::as_str) == Some("admission.k8s.io/v1")
        && review.get("kind").and_then(Value::as_str) == Some("AdmissionReview");
    let uid = review.pointer("/request/uid").and_then(Value::as_str).filter(|_| is_review);
    let uid = uid.ok_or(BadReview::NotAReview)?;
    let text = |pointer| review.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": { "uid": uid, "allowed": true },
    });
    Ok(Answer {
        body: body.to_string().into_bytes(),
        outcome: Outcome::Unchanged,
        reason: None,
        namespace: text("/request/namespace"),
        pod: text("/request/object/metadata/name"),
    })
}
