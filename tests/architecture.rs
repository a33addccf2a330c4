//! Imports point down only: the table below against the `use crate::` lines of `src/`; the one place where secrets are
//! exposed; the events of a lease's life against their docs.
//!
//! A module that is in the table but not in `src/` yet is fine; one in `src/` that the table does not know is not.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may import from the crate, beside itself.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("backoff", &[]),
    ("config", &[]),
    ("ids", &[]),
    ("net", FOUNDATION),
    ("tls", FOUNDATION),
    ("drain", FOUNDATION),
    ("telemetry", FOUNDATION),
    ("credential", FOUNDATION),
    ("vault", &["config", "tls", "backoff", "telemetry", "ids"]),
    ("upstream", &["wire", "net", "tls", "credential", "config", "telemetry", "ids"]),
    ("lease", &["vault", "upstream", "credential", "config", "drain", "backoff", "telemetry", "ids"]),
    ("session", &["wire", "net", "tls", "upstream", "credential", "config", "drain", "telemetry", "ids"]),
    ("listener", &["session", "credential", "drain", "config", "net", "backoff", "telemetry", "ids"]),
    ("http", &["credential", "drain", "config", "net", "backoff", "telemetry", "ids"]),
    ("admin", &["lease", "http", "net", "drain", "config"]),
    ("file", &["credential", "config", "net", "drain", "backoff", "telemetry", "ids"]),
    ("injector", &["config", "tls", "net", "drain", "telemetry"]),
    (
        "check",
        &[
            "wire",
            "backoff",
            "config",
            "ids",
            "net",
            "tls",
            "drain",
            "telemetry",
            "credential",
            "vault",
            "upstream",
            "lease",
            "session",
            "http",
            "admin",
            "file",
        ],
    ),
    ("fuzz", EVERYTHING_BELOW),
    ("app", EVERYTHING_BELOW),
    ("cli", EVERYTHING_BELOW),
];

const FOUNDATION: &[&str] = &["config", "backoff", "ids"];

const EVERYTHING_BELOW: &[&str] = &[
    "wire",
    "backoff",
    "config",
    "ids",
    "net",
    "tls",
    "drain",
    "telemetry",
    "credential",
    "vault",
    "upstream",
    "lease",
    "session",
    "listener",
    "http",
    "admin",
    "file",
    "injector",
    "check",
    "app",
];

/// Where a secret may be exposed: where it goes out.
const MAY_EXPOSE: &[&str] = &["wire", "vault", "file"];

#[test]
fn imports_point_down_only() {
    let table: BTreeMap<_, BTreeSet<_>> =
        MAY_IMPORT.iter().map(|(module, others)| (*module, others.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        let Some(allowed) = table.get(module.as_str()) else {
            wrong.push(format!("{}: module `{module}` is not in the table", path.display()));
            continue;
        };
        for (number, import) in imports(&text) {
            if import != module && !allowed.contains(import.as_str()) {
                wrong.push(format!("{}:{number}: `{module}` imports `{import}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn secrets_are_exposed_only_where_they_go_out() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(module, _, text)| !MAY_EXPOSE.contains(&module.as_str()) && text.contains("expose_secret("))
        .map(|(_, path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "expose_secret() in {wrong:?}");
}

#[test]
fn docs_list_every_event_of_a_lease() {
    let documented: BTreeSet<_> = include_str!("../docs/events.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(event, rest)| (event.to_owned(), rest.split(" | ").next().unwrap().to_owned()))
        .collect();
    let logged: BTreeSet<_> = events_of_leases().into_iter().map(|call| (call.event, call.level)).collect();
    let missing: Vec<_> = logged.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&logged).collect();
    assert!(missing.is_empty() && gone.is_empty(), "docs/events.md lacks {missing:?}, and has {gone:?}");
}

#[test]
fn events_about_a_credential_say_which() {
    for Call { path, event, fields, .. } in events_of_leases() {
        let has_lease =
            fields.contains("lease") || path.components().any(|part| part.as_os_str() == "static_role");
        if fields.contains("generation") {
            assert!(fields.contains("db_role") && has_lease, "{event} in {}: {fields}", path.display());
        }
    }
}

/// A call that logs an event of a lease's life.
struct Call {
    path: PathBuf,
    event: String,
    level: String,
    /// What stands behind the event's name.
    fields: String,
}

fn events_of_leases() -> Vec<Call> {
    let of_leases = sources().into_iter().filter(|(module, ..)| LIVES.contains(&module.as_str()));
    let mut calls = Vec::new();
    for (_, path, text) in of_leases {
        for (at, begin) in text.match_indices("event = \"") {
            let opening = text[..at].rfind("!(").unwrap();
            let level = text[..opening].rsplit(|letter: char| !letter.is_alphabetic()).next().unwrap();
            let (event, rest) = text[at + begin.len()..].split_once('"').unwrap();
            let mut open = 1;
            let is_end = |letter: char| {
                open += i32::from(letter == '(') - i32::from(letter == ')');
                open == 0
            };
            let fields = &rest[..rest.find(is_end).unwrap()];
            let [event, level, fields] = [event, level, fields].map(str::to_owned);
            calls.push(Call { path: path.clone(), event, level, fields });
        }
    }
    calls
}

/// Where they are logged.
const LIVES: &[&str] = &["lease", "vault", "admin", "app", "injector"];

#[test]
fn table_is_read_as_written() {
    let text =
        "use crate::wire::{frame, error};\n    use crate::ids::LeaseId;\nuse crate::{net, tls::TlsError};\n";
    let found: Vec<_> = imports(text).into_iter().map(|(_, module)| module).collect();
    assert_eq!(found, ["wire", "ids", "net", "tls"]);
}

/// Each source file, without its tests, with the module it belongs to; `lib.rs` and `main.rs` belong to none. Tests may
/// look wherever they like.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    assert!(files.len() > 10, "found only {files:?}");
    files
        .into_iter()
        .filter_map(|path| {
            let relative = path.strip_prefix(&root).unwrap();
            let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
            let module = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
            (!matches!(module.as_str(), "lib" | "main")).then_some((module, path, code))
        })
        .collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if matches!(path.file_stem().and_then(|name| name.to_str()), Some("tests" | "fake")) {
            continue;
        }
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The modules of the crate that `text` names behind `crate::`, with their line numbers.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            let path = &code[at + "crate::".len()..];
            match path.strip_prefix('{') {
                Some(list) => found.extend(
                    list.trim_end_matches([';', '}', ' '])
                        .split(',')
                        .map(|item| (number, first_name(item.trim()))),
                ),
                None => found.push((number, first_name(path))),
            }
        }
    }
    found.retain(|(_, module)| !module.is_empty());
    found
}

fn first_name(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}
