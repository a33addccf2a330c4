//! The files that the Vault Agent would have written: `agent-inject-secret-<name>` and what belongs to it.

use serde_json::Value;

use super::{AGENTS, SECRET, is_of_database, take_one};
use crate::injector::annotations::{Annotations, Notes, PREFIX};
use crate::injector::files::VAULT_PATH;
use crate::injector::pod;

/// Takes the credentials of databases that the pod has files of. Those of the author's own annotations stay.
pub(super) fn take(pod: &Value, annotations: &mut Annotations, notes: &mut Notes) {
    let secrets = pod::annotations(pod).filter_map(|(name, path)| {
        let raw = name.strip_prefix(AGENTS)?.strip_prefix(SECRET)?;
        (!raw.is_empty() && !path.trim().is_empty()).then_some((name, raw, path))
    });
    let (of_databases, others): (Vec<_>, Vec<_>) = secrets.partition(|(_, _, path)| is_of_database(path));
    for (name, ..) in others {
        notes.warn(format!("{name} is none of a database's; it needs the Vault Agent"));
    }
    for &(by, raw, path) in &of_databases {
        take_file(pod, annotations, by, raw, path, notes);
    }
    if of_databases.is_empty() {
        return;
    }
    take_one(pod, annotations, "secret-volume-path", "secrets-path", |path| Some(path.to_owned()));
    take_one(pod, annotations, "agent-inject-containers", "containers", |names| Some(names.to_owned()));
    if pod::annotation(pod, &format!("{AGENTS}agent-inject-token")) == Some("true") {
        notes.warn(format!("{AGENTS}agent-inject-token: pglease gives no token away; there is none"));
    }
}

fn take_file(pod: &Value, annotations: &mut Annotations, by: &str, raw: &str, path: &str, notes: &mut Notes) {
    let of_file = |kind: &str| {
        let name = format!("{AGENTS}{kind}-{raw}");
        let value = pod::annotation(pod, &name).filter(|value| !value.trim().is_empty())?;
        Some((name, value.to_owned()))
    };
    let name = if keeps_case(pod, raw) { raw.to_owned() } else { raw.to_lowercase() };
    annotations.take_file(&name, VAULT_PATH, path.trim().trim_matches('/'), by);
    if let Some((by, template)) = of_file("agent-inject-template") {
        annotations.take_file(&name, "template", &template, &by);
    } else if let Some((by, _)) = of_file("agent-inject-template-file") {
        notes.fault(format!(
            "{by} is a file of the Vault Agent's container; write the template itself as {PREFIX}file-template-{name}"
        ));
    } else if let Some("json") = pod::annotation(pod, &format!("{AGENTS}agent-inject-default-template")) {
        annotations.take_file(&name, "format", "json", &format!("{AGENTS}agent-inject-default-template"));
    }
    for (kind, delimiter) in [("agent-template-left-delim", "{{"), ("agent-template-right-delim", "}}")] {
        if let Some((by, _)) = of_file(kind).filter(|(_, value)| value != delimiter) {
            notes.fault(format!(
                "{by}: pglease knows {delimiter} only; write the template with it and remove this"
            ));
        }
    }
    let directory =
        of_file("secret-volume-path").map(|(_, directory)| directory.trim_end_matches('/').to_owned());
    let in_directory = |file: &str| match &directory {
        Some(directory) => format!("{directory}/{}", file.trim_start_matches('/')),
        // The Agent joins: what looks absolute is within the volume all the same.
        None => file.trim_start_matches('/').to_owned(),
    };
    match (of_file("agent-inject-file"), of_file("secret-volume-path")) {
        (Some((by, file)), _) => annotations.take_file(&name, "path", &in_directory(file.trim()), &by),
        (None, Some((by, _))) => annotations.take_file(&name, "path", &in_directory(&name), &by),
        (None, None) => {}
    }
    if let Some((by, mode)) = of_file("agent-inject-perms") {
        annotations.take_file(&name, "mode", &mode, &by);
    }
    if let Some((by, _)) = of_file("agent-inject-command") {
        notes.warn(format!("{by} is not run; see {PREFIX}file-on-change-{name}"));
    }
}

/// The Agent writes its names in small letters, unless it is told not to.
fn keeps_case(pod: &Value, raw: &str) -> bool {
    let kind = format!("{AGENTS}preserve-secret-case");
    let own = pod::annotation(pod, &format!("{kind}-{raw}"));
    own.or_else(|| pod::annotation(pod, &kind)) == Some("true")
}
