//! Credential files that a pod asks for: annotations in, the tables of `[[file]]` out, and the volumes that they are
//! written to. What a table says is judged with all other settings.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::annotations::{Annotations, FileAnnotations, Notes, PREFIX, Written};
use super::pod;
use crate::config::{self, Given};
use crate::render::Template;

/// What becomes of the annotations.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// One for each file: its settings, as the table of keys spells them.
    pub(super) tables: Vec<Vec<Given>>,
    /// Where they are written: of the sidecar and the application alike. Sorted, none within another.
    pub(super) directories: Vec<String>,
}

impl Files {
    /// What is wrong is then among the faults. `ca` is where the sidecar and the application find the CAs of
    /// `pglease.dev/upstream-ca`.
    pub(super) fn read(pod: &Value, annotations: &Annotations, ca: Option<&str>, notes: &mut Notes) -> Self {
        let root = annotations.parse("secrets-path", notes, directory);
        let root = root.unwrap_or_else(|| DIRECTORY.to_owned());
        let mut files = Self::default();
        for (name, written) in annotations.files() {
            let Some(vault_path) = written.get(VAULT_PATH) else {
                orphan(name, written, notes);
                continue;
            };
            let own = place(written, &root, notes);
            // What else is wrong with it shall be told of as well.
            let (path, directory) = own.unwrap_or_else(|| (format!("{root}/{name}"), root.clone()));
            files.tables.push(table(pod, &path, vault_path, written, ca, notes));
            files.directories.push(directory);
        }
        files.directories.sort();
        files.directories.dedup();
        check_nesting(&files.directories, notes);
        if toml(&files.tables).len() > MAX_VARIABLE_LEN {
            notes.fault(format!(
                "{PREFIX}file-…: all files together are too long for a variable; shorten a template"
            ));
        }
        files
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Names of the volumes, each with the directory that it is mounted at.
    pub(super) fn volumes(&self) -> impl Iterator<Item = (String, &str)> {
        self.directories.iter().enumerate().map(|(number, directory)| {
            let name = if number == 0 { VOLUME.to_owned() } else { format!("{VOLUME}-{}", number + 1) };
            (name, directory.as_str())
        })
    }

    /// The variable with the tables, where there are some.
    pub(super) fn variable(&self) -> Option<(String, String)> {
        (!self.is_empty()).then(|| (config::FILES_VARIABLE.to_owned(), toml(&self.tables)))
    }
}

/// The settings of one file.
fn table(
    pod: &Value,
    path: &str,
    vault_path: &Written,
    written: &FileAnnotations,
    ca: Option<&str>,
    notes: &mut Notes,
) -> Vec<Given> {
    let mut table =
        vec![given("file.path", path, vault_path), given("file.vault_path", &vault_path.value, vault_path)];
    if let Some(template) = written.get("template") {
        if let Err(error) = Template::parse(&template.value, &vault_path.value) {
            notes.fault(format!("{}: {error}", template.by));
        }
        if !written.contains_key("format") {
            table.push(given("file.format", "template", template));
        }
        table.push(given("file.template", &template.value, template));
    }
    if let Some(format) = written.get("format") {
        table.push(given("file.format", &format.value, format));
    }
    table.push(match written.get("mode") {
        Some(mode) => given("file.mode", &mode.value, mode),
        // Whoever runs in the pod is in its group, and else nobody knows who the application runs as.
        None if has_group(pod) => given("file.mode", "0640", vault_path),
        None => given("file.mode", "0644", vault_path),
    });
    if let Some(upstream) = written.get("upstream") {
        let with_ca = ca.and_then(|ca| config::with_root_cert(&upstream.value, ca));
        table.push(given("file.upstream", with_ca.as_deref().unwrap_or(&upstream.value), upstream));
    }
    if let Some(on_change) = written.get("on-change") {
        table.extend(told(pod, on_change, notes));
    }
    table
}

fn given(key: &'static str, value: &str, written: &Written) -> Given {
    Given { key, value: value.to_owned(), by: written.by.clone() }
}

/// Files on the pod's volumes belong to its group.
fn has_group(pod: &Value) -> bool {
    pod.pointer("/spec/securityContext/fsGroup").is_some_and(Value::is_number)
}

/// A URL of loopback, or a signal and the name of a process.
fn told(pod: &Value, written: &Written, notes: &mut Notes) -> Vec<Given> {
    match written.value.split_once(char::is_whitespace) {
        Some((signal, process)) => {
            if !pod::is_true(pod, "/spec/shareProcessNamespace") {
                notes.fault(written.fault(
                    "processes of other containers are not to be seen; write shareProcessNamespace: true into the \
                     pod's spec, or a URL of localhost",
                ));
            }
            let signal = given("file.on_change.signal", signal, written);
            vec![signal, given("file.on_change.process", process.trim(), written)]
        }
        None => vec![given("file.on_change.url", &written.value, written)],
    }
}

/// The file's path and its directory, where the author chose them.
fn place(written: &FileAnnotations, root: &str, notes: &mut Notes) -> Option<(String, String)> {
    let own = written.get("path")?;
    let whole = if own.value.starts_with('/') { own.value.clone() } else { format!("{root}/{}", own.value) };
    let is_odd = |part: &str| part.is_empty() || part == "." || part == "..";
    let parts: Vec<&str> = whole.split('/').skip(1).collect();
    if parts.iter().any(|part| is_odd(part)) {
        notes.fault(own.fault("no path of a file; write a name, or an absolute path without . and .."));
        return None;
    }
    let directory = whole.rsplit_once('/').map(|(directory, _)| directory.to_owned()).unwrap_or_default();
    match self::directory(&directory) {
        Ok(directory) => Some((whole, directory)),
        Err(problem) => {
            notes.fault(own.fault(&problem));
            None
        }
    }
}

/// Where a volume may be mounted.
fn directory(text: &str) -> Result<String, String> {
    let directory = text.trim_end_matches('/');
    let is_absolute = directory.starts_with('/');
    // Kubernetes takes no `:` in the path of a mount.
    if !is_absolute
        || directory.contains(':')
        || directory.split('/').skip(1).any(|name| matches!(name, "" | "." | ".."))
    {
        return Err(
            "its directory is not an absolute path without \":\" and \"..\"; write one like /vault/secrets"
                .to_owned(),
        );
    }
    if super::proxy::is_own_directory(directory) {
        return Err("a directory of the sidecar's other files; name another".to_owned());
    }
    Ok(directory.to_owned())
}

/// A mount point within a read-only volume cannot be made. Where several contain one, the widest is named.
fn check_nesting(directories: &[String], notes: &mut Notes) {
    for inner in directories {
        let contains =
            |outer: &&String| inner.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with('/'));
        if let Some(outer) = directories.iter().find(contains) {
            notes.fault(format!(
                "{PREFIX}file-…: {inner} lies within {outer}; put the files into one directory, or two apart"
            ));
        }
    }
}

fn orphan(name: &str, written: &FileAnnotations, notes: &mut Notes) {
    if let Some(Written { by, .. }) = written.values().next() {
        notes.fault(format!(
            "{by}: there is no file {name}; write {PREFIX}file-{name} with a path in Vault as well"
        ));
    }
}

/// `tables` as the text of `[[file]]`s.
fn toml(tables: &[Vec<Given>]) -> String {
    let mut text = String::new();
    for table in tables {
        text.push_str("[[file]]\n");
        for given in table {
            text.push_str(given.key.strip_prefix("file.").unwrap_or(given.key));
            text.push_str(" = ");
            quote(&given.value, &mut text);
            text.push('\n');
        }
    }
    text
}

/// A basic string of TOML.
fn quote(value: &str, text: &mut String) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            control if control.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

/// The volume that `name` is: in memory, as what is written is a secret.
pub(super) fn volume(name: &str) -> Value {
    json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": "4Mi" } })
}

/// The application reads.
pub(super) fn mount(name: &str, directory: &str, is_read_only: bool) -> Value {
    if is_read_only {
        json!({ "name": name, "mountPath": directory, "readOnly": true })
    } else {
        json!({ "name": name, "mountPath": directory })
    }
}

/// The part of a file's annotations that names its credential.
pub(super) const VAULT_PATH: &str = "";
pub(super) const DIRECTORY: &str = "/vault/secrets";
const VOLUME: &str = "pglease-files";
/// Linux takes no argument or variable of 128 KiB.
const MAX_VARIABLE_LEN: usize = 100 * 1024;
