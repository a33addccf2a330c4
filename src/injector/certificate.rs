//! `pglease injector certificate`: a certificate for the webhook in a Secret, and its CA in the webhook's configuration.
//! May run any number of times, and at the same time as another of its kind.

mod api;
mod issue;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::time;

use crate::config::CertificateConfig;

use api::{ApiServer, Write, Written};
use issue::Verdict;

pub(super) use issue::{Issued, issue, parse};

pub(crate) use api::ApiError;

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) secret: Secret,
    /// Webhooks whose `caBundle` was changed.
    pub(crate) bundles: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Secret {
    /// It is good for long enough.
    Kept,
    Created,
    /// For this reason.
    Renewed(&'static str),
}

/// Why there may be no certificate that the API server believes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("making a certificate")]
    Issue(#[from] rcgen::Error),
    #[error("there is no MutatingWebhookConfiguration {name:?}; create it first, or name another")]
    NoWebhook { name: String },
    #[error(
        "somebody else wrote the Secret or the webhook's configuration {MAX_TRIES} times in a row; run it again"
    )]
    Conflicts,
}

/// Makes the certificate where there is none that is good, and has the API server believe it.
pub(crate) async fn ensure(config: &CertificateConfig) -> Result<Done, CertificateError> {
    let api = ApiServer::load(config)?;
    for _ in 0..MAX_TRIES {
        if let Some(done) = attempt(&api, config, SystemTime::now()).await? {
            return Ok(done);
        }
        time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
    }
    Err(CertificateError::Conflicts)
}

/// `None`: somebody else wrote meanwhile, and all is to be looked at again.
async fn attempt(
    api: &ApiServer,
    config: &CertificateConfig,
    now: SystemTime,
) -> Result<Option<Done>, CertificateError> {
    let path = format!("/api/v1/namespaces/{}/secrets", config.namespace);
    let path_of_one = format!("{path}/{}", config.secret);
    let name = format!("{}.{}.svc", config.service, config.namespace);
    let secret = api.read(&path_of_one).await?;
    let reason = match secret.as_ref().map(|secret| judge(secret, &name, now)) {
        Some((Verdict::Good { is_settled }, ca)) => {
            let bundles = set_bundles(api, config, &ca, !is_settled, now).await?;
            return Ok(bundles.map(|bundles| Done { secret: Secret::Kept, bundles }));
        }
        Some((Verdict::Bad(reason), _)) => Some(reason),
        None => None,
    };

    let issued = issue(&name, now)?;
    // First: whoever is shown the new certificate believes it from the start.
    let Some(bundles) = set_bundles(api, config, issued.ca.as_bytes(), true, now).await? else {
        return Ok(None);
    };
    let body = secret_with(secret, config, &issued);
    let written = match reason {
        Some(_) => api.write(&path_of_one, Write::Replace(&body)).await?,
        None => api.write(&path, Write::Create(&body)).await?,
    };
    let secret = reason.map_or(Secret::Created, Secret::Renewed);
    Ok((written == Written::Yes).then_some(Done { secret, bundles }))
}

/// The verdict, and the CA.
fn judge(secret: &Value, name: &str, now: SystemTime) -> (Verdict, Vec<u8>) {
    let file = |key: &str| {
        let text = secret.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
        text.and_then(|text| BASE64.decode(text).ok()).unwrap_or_default()
    };
    let (certificate, key, ca) = (file(CERTIFICATE), file(KEY), file(CA));
    (issue::judge(&certificate, &key, &ca, name, now), ca)
}

/// A Secret with what was issued. What is there already keeps its metadata, and with it the version that it must still
/// have.
fn secret_with(before: Option<Value>, config: &CertificateConfig, issued: &Issued) -> Value {
    let mut secret = before.unwrap_or_else(|| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": { "name": config.secret, "namespace": config.namespace },
        })
    });
    let data = json!({
        CERTIFICATE: BASE64.encode(&issued.certificate),
        KEY: BASE64.encode(issued.key.as_bytes()),
        CA: BASE64.encode(&issued.ca),
    });
    if let Some(secret) = secret.as_object_mut() {
        secret.insert("data".to_owned(), data);
    }
    secret
}

/// Has each webhook believe `ca`, and with `keeps_others` whom it has believed before. How many were changed; `None`
/// where somebody else changed them meanwhile.
async fn set_bundles(
    api: &ApiServer,
    config: &CertificateConfig,
    ca: &[u8],
    keeps_others: bool,
    now: SystemTime,
) -> Result<Option<usize>, CertificateError> {
    let path = format!("{WEBHOOKS}/{}", config.webhook);
    let no_webhook = || CertificateError::NoWebhook { name: config.webhook.clone() };
    let webhook = api.read(&path).await?.ok_or_else(no_webhook)?;
    let changes = changes(&webhook, ca, keeps_others, now);
    if changes.is_empty() {
        return Ok(Some(0));
    }
    let count = changes.len();
    // What is patched must still be what was read.
    let version = webhook.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    let version = json!({ "op": "replace", "path": "/metadata/resourceVersion", "value": version });
    let patch = [vec![version], changes].concat().into();
    let written = api.write(&path, Write::Patch(&patch)).await?;
    Ok((written == Written::Yes).then_some(count))
}

/// Operations of a JSON Patch, one for each webhook that believes somebody else.
fn changes(webhook: &Value, ca: &[u8], keeps_others: bool, now: SystemTime) -> Vec<Value> {
    let webhooks = webhook.get("webhooks").and_then(Value::as_array).into_iter().flatten();
    let change = |(index, webhook): (usize, &Value)| {
        let before = webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str).unwrap_or_default();
        let before = BASE64.decode(before).unwrap_or_default();
        let wanted = issue::bundle(&before, ca, keeps_others, now);
        let has = parse(&before);
        let is_same = has.len() == wanted.len() && wanted.iter().all(|ca| has.contains(ca));
        let path = format!("/webhooks/{index}/clientConfig/caBundle");
        (!is_same).then(|| json!({ "op": "add", "path": path, "value": BASE64.encode(pem(&wanted)) }))
    };
    webhooks.enumerate().filter_map(change).collect()
}

/// RFC 7468 §5.1.
fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64.encode(certificate);
        for (index, letter) in encoded.chars().enumerate() {
            if index > 0 && index % PEM_LINE_LEN == 0 {
                text.push('\n');
            }
            text.push(letter);
        }
        text.push_str("\n-----END CERTIFICATE-----\n");
    }
    text
}

const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
/// Keys of a Secret of type kubernetes.io/tls, and where cert-manager keeps the CA.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
const PEM_LINE_LEN: usize = 64;
const MAX_TRIES: usize = 5;
/// Between tries, give or take a half.
const PAUSE: Duration = Duration::from_millis(200);
