//! Annotations of the Vault Agent Injector, in the place of ours that are absent.
//!
//! Vault, "Agent Sidecar Injector", annotations: `vault.hashicorp.com/…`.

mod files;

use serde_json::Value;

use super::annotations::{Annotations, Notes, PREFIX};
use super::pod;

/// Whether the auth role is the one that the Vault Agent logged in as.
pub(super) fn is_role_taken(annotations: &Annotations) -> bool {
    annotations.get("vault-login-role").is_some_and(|written| written.by.starts_with(AGENTS))
}

/// Takes from the pod what `annotations` does not have.
pub(super) fn take(pod: &Value, annotations: &mut Annotations, notes: &mut Notes) {
    for (agents, ours) in NAMES {
        take_one(pod, annotations, agents, ours, |value| Some(value.to_owned()));
    }
    take_one(pod, annotations, "auth-path", "vault-login-mount", |path| {
        let mount = path.trim_matches('/');
        Some(mount.strip_prefix("auth/").unwrap_or(mount).to_owned())
    });
    take_ca(pod, annotations, notes);
    if pod::annotation(pod, &format!("{AGENTS}agent-inject")) == Some("true") {
        // Which writes its files itself.
        notes.warn(format!(
            "{AGENTS}agent-inject still adds a Vault Agent; remove it if nothing else needs one"
        ));
        take_path(pod, annotations, notes);
    } else {
        files::take(pod, annotations, notes);
        // Files need no route.
        if annotations.files().is_empty() || annotations.get("upstream").is_some() {
            take_path(pod, annotations, notes);
        }
    }
}

fn take_one(
    pod: &Value,
    annotations: &mut Annotations,
    agents: &str,
    ours: &'static str,
    translate: impl FnOnce(&str) -> Option<String>,
) {
    let by = format!("{AGENTS}{agents}");
    let value = pod::annotation(pod, &by).filter(|value| !value.trim().is_empty());
    if annotations.get(ours).is_none()
        && let Some(value) = value.and_then(translate)
    {
        annotations.take(ours, &value, &by);
    }
}

/// The one among the secrets that the Agent would read that is a database credential.
fn take_path(pod: &Value, annotations: &mut Annotations, notes: &mut Notes) {
    if annotations.get("vault-path").is_some() {
        return;
    }
    let secrets = files::secrets(pod);
    let mut of_databases: Vec<(&str, &str)> =
        secrets.iter().filter_map(|secret| Some((secret.by, secret.of_database()?))).collect();
    of_databases.sort_by_key(|(_, path)| *path);
    of_databases.dedup_by_key(|(_, path)| *path);
    match of_databases.as_slice() {
        [] => {}
        [(by, path)] => annotations.take("vault-path", path, by),
        several => {
            let several: Vec<&str> = several.iter().map(|(_, path)| *path).collect();
            notes.fault(format!(
                "{AGENTS}{SECRET}… name several credentials of databases ({}); choose one with {PREFIX}vault-path, \
                 or write a file for {PREFIX}config",
                several.join(", ")
            ));
        }
    }
}

/// `ca-cert` is a path in the Agent's container, where `tls-secret` is mounted at [`TLS_SECRET`].
fn take_ca(pod: &Value, annotations: &mut Annotations, notes: &mut Notes) {
    let by = format!("{AGENTS}ca-cert");
    let Some(path) = pod::annotation(pod, &by).filter(|path| !path.trim().is_empty()) else { return };
    if annotations.get("vault-ca").is_some() {
        return;
    }
    let secret = pod::annotation(pod, &format!("{AGENTS}tls-secret"));
    match (path.trim().strip_prefix(TLS_SECRET), secret) {
        (Some(key), Some(secret)) => {
            annotations.take("vault-ca", &format!("secret/{}/{key}", secret.trim()), &by);
        }
        _ => notes.warn(format!(
            "{by} is a file of the Vault Agent's container; name the CA with {PREFIX}vault-ca"
        )),
    }
}

const AGENTS: &str = "vault.hashicorp.com/";
const SECRET: &str = "agent-inject-secret-";
const TEMPLATE: &str = "agent-inject-template-";
const TEMPLATE_FILE: &str = "agent-inject-template-file-";
const DEFAULT_TEMPLATE: &str = "agent-inject-default-template";
const TLS_SECRET: &str = "/vault/tls/";
/// Those that mean the same.
const NAMES: &[(&str, &str)] =
    &[("role", "vault-login-role"), ("namespace", "vault-namespace"), ("service", "vault-address")];
