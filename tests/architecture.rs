//! Imports point down only: the table below against the `use crate::` lines of `src/`; the one place where secrets are
//! exposed; the events of the log against their docs.
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
    ("render", &[]),
    ("net", FOUNDATION),
    ("tls", FOUNDATION),
    ("drain", FOUNDATION),
    ("telemetry", FOUNDATION),
    ("credential", &["config", "backoff", "ids", "wire"]),
    ("roster", &["net", "ids"]),
    ("vault", &["config", "tls", "backoff", "telemetry", "ids"]),
    ("upstream", &["wire", "net", "tls", "credential", "config", "telemetry", "ids"]),
    ("lease", &["vault", "upstream", "credential", "config", "drain", "backoff", "telemetry", "ids"]),
    (
        "session",
        &["wire", "net", "tls", "upstream", "credential", "roster", "config", "drain", "telemetry", "ids"],
    ),
    (
        "listener",
        &["session", "credential", "roster", "drain", "config", "net", "backoff", "telemetry", "ids"],
    ),
    ("http", &["credential", "drain", "config", "net", "backoff", "telemetry", "ids"]),
    ("reload", FOUNDATION),
    ("admin", &["lease", "http", "net", "roster", "drain", "config", "telemetry", "reload", "file"]),
    ("file", &["credential", "config", "render", "backoff", "telemetry", "ids"]),
    ("injector", &["config", "render", "tls", "net", "drain", "telemetry"]),
    (
        "check",
        &[
            "wire",
            "backoff",
            "config",
            "ids",
            "render",
            "net",
            "tls",
            "drain",
            "telemetry",
            "credential",
            "roster",
            "vault",
            "upstream",
            "lease",
            "session",
            "http",
            "admin",
            "file",
        ],
    ),
    ("micro", &["wire"]),
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
    "render",
    "net",
    "tls",
    "drain",
    "telemetry",
    "credential",
    "roster",
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
    "reload",
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
fn what_each_message_passes_through_takes_no_lock_and_writes_nothing_that_threads_share() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in EACH_MESSAGE {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        let code: Vec<_> = code.lines().filter(|line| !line.trim().starts_with("//")).collect();
        let is_in = |word: &&&str| code.iter().any(|line| line.contains(**word));
        let found: Vec<_> = SHARED_STATE.iter().filter(is_in).collect();
        assert!(found.is_empty(), "{file}: {found:?}");
    }
}

/// What a message meets on its way through the relay.
const EACH_MESSAGE: &[&str] = &[
    "session/relay.rs",
    "session/relay/outbox.rs",
    "session/relay/pump.rs",
    "session/bell.rs",
    "wire/frame.rs",
    "wire/status.rs",
    "wire/sqlstate.rs",
    "net.rs",
    "net/batch.rs",
    "net/client.rs",
];

/// Locks, what has some within, and counters of the process.
const SHARED_STATE: &[&str] = &[
    "Mutex",
    "RwLock",
    "DashMap",
    "Semaphore",
    "Notify",
    "mpsc",
    "OnceLock",
    "LazyLock",
    ".lock()",
    ".borrow()",
    "borrow_and_update",
    "fetch_",
    "Family",
    "Metrics",
];

#[test]
fn docs_list_every_event_with_its_levels_and_fields_and_no_other() {
    let mut logged = BTreeMap::<String, Said>::new();
    for call in calls() {
        let said = logged.entry(call.event).or_default();
        said.levels.insert(call.level);
        said.fields.extend(names(&call.fields));
    }
    let documented = documented();
    for (event, said) in &logged {
        assert_eq!(documented.get(event), Some(said), "docs/events.md, `{event}`");
    }
    let gone: Vec<_> = documented.keys().filter(|event| !logged.contains_key(*event)).collect();
    assert!(gone.is_empty(), "docs/events.md has {gone:?}");
}

#[test]
fn events_of_a_lease_say_of_which_credential() {
    let of_leases = |call: &Call| LIVES.contains(&call.module.as_str());
    for Call { path, event, fields, .. } in calls().into_iter().filter(of_leases) {
        let has_lease =
            fields.contains("lease") || path.components().any(|part| part.as_os_str() == "static_role");
        if fields.contains("generation") {
            assert!(fields.contains("db_role") && has_lease, "{event} in {}: {fields}", path.display());
        }
    }
}

/// How an event is told, wherever it is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    levels: BTreeSet<String>,
    fields: BTreeSet<String>,
}

/// The rows of docs/events.md: event, levels, fields, what it says.
fn documented() -> BTreeMap<String, Said> {
    let rows = include_str!("../docs/events.md").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (event, rest) = row.split_once("` | ").unwrap();
        let [levels, fields, _] = rest.splitn(3, " | ").collect::<Vec<_>>().try_into().unwrap();
        let items = |cell: &str| cell.split(", ").map(|item| item.trim_matches('`').to_owned()).collect();
        let fields = if fields == "–" { BTreeSet::new() } else { items(fields) };
        (event.to_owned(), Said { levels: items(levels), fields })
    })
    .collect()
}

/// A call that logs an event.
struct Call {
    module: String,
    path: PathBuf,
    event: String,
    level: String,
    /// What stands behind the event's name.
    fields: String,
}

fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    for (module, path, text) in sources() {
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
            calls.push(Call { module: module.clone(), path: path.clone(), event, level, fields });
        }
    }
    calls
}

/// The names in what stands behind an event's: `, %session, error = %cause, "words, for people"`.
fn names(fields: &str) -> Vec<String> {
    let (mut open, mut is_text) = (0, false);
    let is_between = |letter: char| {
        is_text ^= letter == '"';
        open += i32::from("([{".contains(letter)) - i32::from(")]}".contains(letter));
        letter == ',' && open == 0 && !is_text
    };
    let parts = fields.split(is_between).map(str::trim);
    parts
        .filter(|part| !part.is_empty() && !part.starts_with('"'))
        .map(|part| part.split(" = ").next().unwrap().trim_start_matches(['%', '?']).to_owned())
        .collect()
}

/// Where the life of a lease is logged.
const LIVES: &[&str] = &["lease", "vault", "admin", "app"];

#[test]
fn fields_are_read_as_written() {
    let fields =
        ",\n    %session,\n    error = cause.map(|error| f(error, 1)),\n    ?path, \"words, for (people\"";
    assert_eq!(names(fields), ["session", "error", "path"]);
}

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
