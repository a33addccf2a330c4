//! The files that the Vault Agent would have written: `agent-inject-secret-<name>`, `agent-inject-template-<name>` and what
//! belongs to them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{AGENTS, DEFAULT_TEMPLATE, SECRET, TEMPLATE, TEMPLATE_FILE, take_one};
use crate::injector::annotations::{Annotations, Notes, PREFIX};
use crate::injector::files::VAULT_PATH;
use crate::injector::pod;
use crate::render::Template;

/// What the Agent would have written a file of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Secret<'a> {
    /// As it stands in the annotations.
    raw: &'a str,
    /// In Vault, without slashes at its ends; `None` where only a file of the Agent's container knows.
    path: Option<String>,
    /// The annotation that says so.
    pub(super) by: &'a str,
}

impl Secret<'_> {
    /// Its path, where it is a credential of a database: `<mount>/creds/<role>` or `<mount>/static-creds/<role>`.
    pub(super) fn of_database(&self) -> Option<&str> {
        self.path.as_deref().filter(|path| is_of_database(path))
    }
}

/// All of the pod, in the order of their names. Where there is a template, the Agent reads what that does, and takes
/// `agent-inject-secret-…` for no more than the file's name.
pub(super) fn secrets(pod: &Value) -> Vec<Secret<'_>> {
    let mut secrets = BTreeMap::new();
    let mut of_kind = |kind: &str| {
        for (by, value) in pod::annotations(pod) {
            let raw = by.strip_prefix(AGENTS).and_then(|name| name.strip_prefix(kind)).unwrap_or_default();
            // `agent-inject-template-file-x` is no template of `file-x`.
            let is_of_kind = kind != TEMPLATE || !by.starts_with(&format!("{AGENTS}{TEMPLATE_FILE}"));
            if raw.is_empty() || value.trim().is_empty() || !is_of_kind {
                continue;
            }
            let path = match kind {
                SECRET => Some(value.trim().trim_matches('/').to_owned()),
                TEMPLATE => {
                    let paths = Template::paths(value);
                    let of_database = paths.iter().find(|path| is_of_database(path));
                    let Some(path) = of_database.or(paths.first()) else { continue };
                    Some(path.clone())
                }
                _ => None,
            };
            secrets.insert(raw, Secret { raw, path, by });
        }
    };
    for kind in [TEMPLATE_FILE, SECRET, TEMPLATE] {
        of_kind(kind);
    }
    secrets.into_values().collect()
}

fn is_of_database(path: &str) -> bool {
    matches!(path.rsplit('/').nth(1), Some("creds" | "static-creds"))
}

/// Takes the credentials of databases that the pod has files of. Those of the author's own annotations stay.
pub(super) fn take(pod: &Value, annotations: &mut Annotations, notes: &mut Notes) {
    let secrets = secrets(pod);
    let mut is_taken = false;
    for secret in &secrets {
        match (secret.of_database(), &secret.path) {
            (Some(path), _) => {
                take_file(pod, annotations, secret, path, notes);
                is_taken = true;
            }
            (None, Some(_)) => {
                notes.warn(format!("{} is none of a database's; it needs the Vault Agent", secret.by));
            }
            (None, None) => refuse_template_file(secret.by, &name(pod, secret.raw), notes),
        }
    }
    warn_of_nothing(pod, &secrets, notes);
    if !is_taken {
        return;
    }
    take_one(pod, annotations, "secret-volume-path", "secrets-path", |path| Some(path.to_owned()));
    take_one(pod, annotations, "agent-inject-containers", "containers", |names| Some(names.to_owned()));
    if pod::annotation(pod, &format!("{AGENTS}agent-inject-token")) == Some("true") {
        notes.warn(format!("{AGENTS}agent-inject-token: pglease gives no token away; there is none"));
    }
}

/// Of an annotation by which there might be a file, and is none.
fn warn_of_nothing(pod: &Value, secrets: &[Secret<'_>], notes: &mut Notes) {
    for (name, value) in pod::annotations(pod) {
        let own = name.strip_prefix(AGENTS).unwrap_or_default();
        let raw = own.strip_prefix(SECRET).or_else(|| own.strip_prefix(TEMPLATE)).unwrap_or_default();
        if raw.is_empty() || own.starts_with(TEMPLATE_FILE) || secrets.iter().any(|secret| secret.raw == raw)
        {
            continue;
        }
        // The Agent passes the one over in silence, and of the other it writes what is no secret.
        let why = if value.trim().is_empty() { "is empty" } else { "reads no path of Vault's" };
        notes.warn(format!("{name} {why}; there is no file of it"));
    }
}

fn refuse_template_file(by: &str, name: &str, notes: &mut Notes) {
    notes.fault(format!(
        "{by} is a file of the Vault Agent's container; write the template itself as {PREFIX}file-template-{name}"
    ));
}

fn take_file(pod: &Value, annotations: &mut Annotations, secret: &Secret<'_>, path: &str, notes: &mut Notes) {
    let of_file = |kind: &str| {
        let name = format!("{AGENTS}{kind}{}", secret.raw);
        let value = pod::annotation(pod, &name).filter(|value| !value.trim().is_empty())?;
        Some((name, value.to_owned()))
    };
    let name = name(pod, secret.raw);
    annotations.take_file(&name, VAULT_PATH, path, secret.by);
    let own = ["template", "format"].iter().any(|part| annotations.has_of_file(&name, part));
    if own {
        // The author writes another file.
    } else if let Some((by, template)) = of_file(TEMPLATE) {
        annotations.take_file(&name, "template", &template, &by);
    } else if let Some((by, _)) = of_file(TEMPLATE_FILE) {
        refuse_template_file(&by, &name, notes);
    } else if pod::annotation(pod, &format!("{AGENTS}{DEFAULT_TEMPLATE}")) == Some("json") {
        take_json(annotations, &name, path);
        warn_of_static_role(secret.by, path, notes);
    } else {
        warn_of_static_role(secret.by, path, notes);
    }
    for (kind, delimiter) in [("agent-template-left-delim-", "{{"), ("agent-template-right-delim-", "}}")] {
        if let Some((by, _)) = of_file(kind).filter(|(_, value)| value != delimiter) {
            notes.fault(format!(
                "{by}: pglease knows {delimiter} only; write the template with it and remove this"
            ));
        }
    }
    let directory =
        of_file("secret-volume-path-").map(|(_, directory)| directory.trim_end_matches('/').to_owned());
    let in_directory = |file: &str| match &directory {
        Some(directory) => format!("{directory}/{}", file.trim_start_matches('/')),
        // The Agent joins: what looks absolute is within the volume all the same.
        None => file.trim_start_matches('/').to_owned(),
    };
    match (of_file("agent-inject-file-"), of_file("secret-volume-path-")) {
        (Some((by, file)), _) => annotations.take_file(&name, "path", &in_directory(file.trim()), &by),
        (None, Some((by, _))) => annotations.take_file(&name, "path", &in_directory(&name), &by),
        (None, None) => {}
    }
    if let Some((by, mode)) = of_file("agent-inject-perms-") {
        annotations.take_file(&name, "mode", &mode, &by);
    }
    if let Some((by, _)) = of_file("agent-inject-command-") {
        notes.warn(format!("{by} is not run; see {PREFIX}file-on-change-{name}"));
    }
}

/// Of which the Agent writes all that Vault says, where no template chooses.
fn warn_of_static_role(by: &str, path: &str, notes: &mut Notes) {
    if path.contains("/static-creds/") {
        notes.warn(format!("{by}: of a static role the Agent writes more than username and password"));
    }
}

/// The Agent's own template of that name. Of a static role it writes more than pglease knows of.
fn take_json(annotations: &mut Annotations, name: &str, path: &str) {
    let by = format!("{AGENTS}{DEFAULT_TEMPLATE}");
    if path.contains("/static-creds/") {
        annotations.take_file(name, "format", "json", &by);
    } else {
        let template = format!("{{{{ with secret {path:?} }}}}{{{{ .Data | toJSON }}}}\n{{{{ end }}}}");
        annotations.take_file(name, "template", &template, &by);
    }
}

fn name(pod: &Value, raw: &str) -> String {
    if keeps_case(pod, raw) { raw.to_owned() } else { raw.to_lowercase() }
}

/// The Agent writes its names in small letters, unless it is told not to.
fn keeps_case(pod: &Value, raw: &str) -> bool {
    let kind = format!("{AGENTS}preserve-secret-case");
    let own = pod::annotation(pod, &format!("{kind}-{raw}"));
    own.or_else(|| pod::annotation(pod, &kind)) == Some("true")
}
