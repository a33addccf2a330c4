//! What may be written on a pod, and what was.

use std::collections::BTreeMap;

use serde_json::Value;

pub(super) use table::ANNOTATIONS;
#[cfg(test)]
pub(super) use table::FILE_ANNOTATIONS;

use super::files::VAULT_PATH;
use super::{agent, pod};
use crate::config;

mod table;

/// One annotation.
#[derive(Debug)]
pub(super) struct Annotation {
    /// Without [`PREFIX`].
    pub(super) name: &'static str,
    /// What may be written, in words.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the docs, which a test holds against it"))]
    pub(super) value: &'static str,
    /// What holds where nobody wrote it, in words.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the docs, which a test holds against it"))]
    pub(super) default: &'static str,
    pub(super) example: &'static str,
    /// One clause for the docs.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the docs, which a test holds against it"))]
    pub(super) about: &'static str,
    /// The proxy's setting that the value is, as it stands.
    pub(super) key: Option<&'static str>,
}

/// What stands on a pod, by name without [`PREFIX`]. An empty value is none.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    written: BTreeMap<&'static str, Written>,
    files: BTreeMap<String, FileAnnotations>,
}

/// What stands of one credential file, by what of it that is ([`FILE_PARTS`]).
pub(super) type FileAnnotations = BTreeMap<&'static str, Written>;

/// A value and the whole name of what it was written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) value: String,
    pub(super) by: String,
}

/// What is wrong, for which the pod is refused, and what its author should know.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) faults: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Notes {
    pub(super) fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    pub(super) fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }
}

impl Annotations {
    /// Those of the pod, those of the Vault Agent Injector in their place where the author wants that, and a warning
    /// for each that nobody knows.
    pub(super) fn read(pod: &Value, notes: &mut Notes) -> Self {
        let mut annotations = Self::default();
        for (whole, value) in pod::annotations(pod) {
            let Some(name) = whole.strip_prefix(PREFIX) else { continue };
            if let Some((file, part)) = file_part(name) {
                annotations.take_file(file, part, value, whole);
                continue;
            }
            match find(name) {
                Some(_) if value.trim().is_empty() => {}
                Some(known) => annotations.take(known.name, value, whole),
                None if WRITTEN.contains(&name) => {}
                None => notes.warn(unknown(name)),
            }
        }
        if annotations.is_true("from-vault-agent", notes) {
            agent::take(pod, &mut annotations, notes);
        }
        annotations
    }

    /// Takes a value for one of [`ANNOTATIONS`].
    pub(super) fn take(&mut self, name: &'static str, value: &str, by: &str) {
        self.written.insert(name, Written { value: value.trim().to_owned(), by: by.to_owned() });
    }

    /// Takes what is said of a file, unless something was before. A template stands as it is.
    pub(super) fn take_file(&mut self, name: &str, part: &'static str, value: &str, by: &str) {
        if value.trim().is_empty() {
            return;
        }
        let value = if part == "template" { value } else { value.trim() };
        let written = Written { value: value.to_owned(), by: by.to_owned() };
        self.files.entry(name.to_owned()).or_default().entry(part).or_insert(written);
    }

    /// Whether something is said of that part of the file.
    pub(super) fn has_of_file(&self, name: &str, part: &str) -> bool {
        self.files.get(name).is_some_and(|file| file.contains_key(part))
    }

    /// Credential files by their names.
    pub(super) fn files(&self) -> &BTreeMap<String, FileAnnotations> {
        &self.files
    }

    pub(super) fn get(&self, name: &str) -> Option<&Written> {
        self.written.get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).map(|written| written.value.as_str())
    }

    /// What `parse` makes of it; what it says instead is a fault.
    pub(super) fn parse<T>(
        &self,
        name: &str,
        notes: &mut Notes,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let written = self.get(name)?;
        parse(&written.value).map_err(|problem| notes.fault(written.fault(&problem))).ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], notes: &mut Notes) -> Option<T> {
        self.parse(name, notes, |text| {
            let known = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
            known.ok_or_else(|| {
                let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                format!("no such choice; use {}", words.join(" or "))
            })
        })
    }

    pub(super) fn is_true(&self, name: &str, notes: &mut Notes) -> bool {
        self.word(name, &[("true", true), ("false", false)], notes).unwrap_or_default()
    }
}

impl Written {
    /// What is wrong with it, in one line.
    pub(super) fn fault(&self, problem: &str) -> String {
        // A template of a connection string may have a password in it.
        if self.by.ends_with("/database-url") {
            return format!("{}: {problem}", self.by);
        }
        let mut value: String = self.value.chars().take(MAX_SHOWN).collect();
        if value.len() < self.value.len() {
            value.push('…');
        }
        format!("{} = {value:?}: {problem}", self.by)
    }
}

/// The annotation of that name, without [`PREFIX`].
pub(super) fn find(name: &str) -> Option<&'static Annotation> {
    ANNOTATIONS.iter().find(|known| known.name == name)
}

/// The file that an annotation is about, and what of it: `file-template-db` is the template of `db`.
fn file_part(name: &str) -> Option<(&str, &'static str)> {
    let rest = name.strip_prefix("file-").filter(|rest| !rest.is_empty())?;
    let of_part = |part: &&'static str| Some((rest.strip_prefix(*part)?.strip_prefix('-')?, *part));
    let found = FILE_PARTS.iter().find_map(of_part).filter(|(file, _)| !file.is_empty());
    Some(found.unwrap_or((rest, VAULT_PATH)))
}

/// That it must be written, and how.
pub(super) fn missing(key: &str) -> String {
    let brings = |known: &&Annotation| known.key == Some(key) || BRINGS.contains(&(known.name, key));
    match ANNOTATIONS.iter().find(brings) {
        Some(Annotation { name, example, .. }) => {
            format!("annotation {PREFIX}{name} is missing; write it like {example:?}")
        }
        None => format!("{key} is missing; write it into the injector's injector.settings"),
    }
}

fn unknown(name: &str) -> String {
    // Words of a name are told apart as those of keys are.
    let words = |name: &str| name.replace('-', ".");
    let known: Vec<String> = ANNOTATIONS.iter().map(|known| words(known.name)).collect();
    let nearest = config::nearest(&words(name), known.iter().map(String::as_str));
    match nearest.map(|nearest| nearest.replace('.', "-")) {
        Some(nearest) => format!("{PREFIX}{name}: unknown annotation; did you mean {PREFIX}{nearest}?"),
        None => format!("{PREFIX}{name}: unknown annotation; remove it"),
    }
}

pub(super) const PREFIX: &str = "pglease.dev/";
/// The label that asks for a sidecar, without [`PREFIX`].
pub(super) const LABEL: &str = "inject";
/// The annotation that says that a pod has one, without [`PREFIX`].
pub(super) const STATUS: &str = "status";
pub(super) const INJECTED: &str = "injected";
/// Names of ours that ask for nothing as annotations.
const WRITTEN: &[&str] = &[LABEL, STATUS];
/// Annotations that bring a setting by another value than their own.
const BRINGS: &[(&str, &str)] = &[("auth-file", "listen.auth_file")];
/// What may be said of a credential file, beside where in Vault its credential is.
const FILE_PARTS: &[&str] = &["template", "format", "path", "mode", "upstream", "on-change"];
/// Characters of a value that are shown.
const MAX_SHOWN: usize = 60;
