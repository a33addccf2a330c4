//! `AdmissionReview` in, `AdmissionReview` out (admission.k8s.io).
//!
//! Kubernetes, "Dynamic Admission Control": a request with a `uid`, an operation and an object; a response with that
//! `uid`, in the version of the request. Called by the server for each body; pure, and panics on none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::patch::{self, Decision};
use super::pod;
use crate::config::SidecarConfig;

/// What the API server is answered, and what of it goes to the log and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// An `AdmissionReview` with a response, as JSON.
    pub(super) body: Vec<u8>,
    pub(super) outcome: Outcome,
    /// Why, where there is something to say.
    pub(super) reason: Option<String>,
    pub(super) namespace: String,
    /// The pod's name, or its `generateName`.
    pub(super) pod: String,
}

/// What became of a pod.
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
    #[error("no AdmissionReview of admission.k8s.io/v1 or v1beta1 with a request that has a uid")]
    NotAReview,
    #[error("the request creates a pod, and has no object")]
    NoObject,
}

/// Answers the review in `body`.
pub(super) fn answer(body: &[u8], sidecar: &SidecarConfig) -> Result<Answer, BadReview> {
    let review: Value = serde_json::from_slice(body).map_err(BadReview::Json)?;
    let request = Request::read(&review).ok_or(BadReview::NotAReview)?;
    if !request.creates_pod() {
        let reason = Some("not the creation of a pod".to_owned());
        return Ok(request.answer(json!({}), Outcome::Unchanged, reason));
    }
    let object = request.body.get("object").filter(|object| object.is_object());
    let decision = patch::decide(object.ok_or(BadReview::NoObject)?, sidecar);
    Ok(request.decided(decision))
}

/// The request of a review.
struct Request<'a> {
    /// Group and version of the review.
    version: &'a str,
    uid: &'a str,
    body: &'a Value,
}

impl<'a> Request<'a> {
    fn read(review: &'a Value) -> Option<Self> {
        let version = pod::text(review, "/apiVersion").filter(|version| VERSIONS.contains(version))?;
        if pod::text(review, "/kind") != Some("AdmissionReview") {
            return None;
        }
        Some(Self { version, uid: pod::text(review, "/request/uid")?, body: review.get("request")? })
    }

    /// Nothing may be added to a pod that is there: its update would be refused, or never end.
    fn creates_pod(&self) -> bool {
        let text = |path| pod::text(self.body, path).unwrap_or_default();
        let resource = (text("/resource/group"), text("/resource/version"), text("/resource/resource"));
        text("/operation") == "CREATE" && resource == ("", "v1", "pods") && text("/subResource").is_empty()
    }

    fn decided(&self, decision: Decision) -> Answer {
        match decision {
            Decision::Patched { operations, warnings } => {
                let patch = STANDARD.encode(Value::Array(operations).to_string());
                let response =
                    json!({ "patchType": "JSONPatch", "patch": patch, "warnings": shortened(&warnings) });
                self.answer(response, Outcome::Injected, None)
            }
            Decision::Unchanged { warnings } => {
                self.answer(json!({ "warnings": shortened(&warnings) }), Outcome::Unchanged, None)
            }
            Decision::Skipped { reason } => {
                let warnings = shortened(&[format!("pglease: not injected: {reason}")]);
                self.answer(json!({ "warnings": warnings }), Outcome::Skipped, Some(reason))
            }
            Decision::Refused { reason, warnings } => {
                let reason = shorten(&reason, MAX_MESSAGE);
                let status = json!({ "code": 403, "reason": "Forbidden", "message": reason });
                let response =
                    json!({ "allowed": false, "status": status, "warnings": shortened(&warnings) });
                self.answer(response, Outcome::Refused, Some(reason))
            }
        }
    }

    /// `response` says what is not the same in all.
    fn answer(&self, response: Value, outcome: Outcome, reason: Option<String>) -> Answer {
        let mut whole = json!({ "uid": self.uid, "allowed": true });
        if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), response) {
            let is_there =
                |(_, value): &(String, Value)| value.as_array().is_none_or(|list| !list.is_empty());
            whole.extend(more.into_iter().filter(is_there));
        }
        let review = json!({ "apiVersion": self.version, "kind": "AdmissionReview", "response": whole });
        let text = |path| pod::text(self.body, path);
        let name = text("/name").or(text("/object/metadata/name")).or(text("/object/metadata/generateName"));
        Answer {
            body: review.to_string().into_bytes(),
            outcome,
            reason,
            namespace: text("/namespace").unwrap_or_default().to_owned(),
            pod: name.unwrap_or_default().to_owned(),
        }
    }
}

/// The API server cuts longer ones, and drops what is more than 4096 bytes in all.
fn shortened(warnings: &[String]) -> Vec<String> {
    warnings.iter().take(MAX_WARNINGS).map(|warning| shorten(warning, MAX_WARNING)).collect()
}

fn shorten(text: &str, max_chars: usize) -> String {
    let mut short: String = text.chars().take(max_chars).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

const VERSIONS: &[&str] = &["admission.k8s.io/v1", "admission.k8s.io/v1beta1"];
/// Characters.
const MAX_WARNING: usize = 240;
const MAX_WARNINGS: usize = 16;
const MAX_MESSAGE: usize = 4096;
