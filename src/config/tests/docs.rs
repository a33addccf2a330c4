//! `docs/settings.md` holds what the code holds.

use std::fmt::Write as _;

use super::*;
use crate::config::keys::Key;
use crate::config::keywords::{KEYWORDS, Use};

const SETTINGS: &str = include_str!("../../../docs/settings.md");
const INJECTOR: &str = include_str!("../../../docs/injector.md");
const README: &str = include_str!("../../../README.md");

/// What stands between the two comments of that name.
fn section(docs: &'static str, name: &str) -> &'static str {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (_, rest) = docs.split_once(&begin).expect("the docs have the section");
    rest.split_once(&end).expect("the section ends").0.trim()
}

#[track_caller]
fn assert_section(docs: &'static str, name: &str, expected: &str) {
    assert!(section(docs, name) == expected, "docs, {name}, should read:\n\n{expected}\n");
}

fn default(key: &Key) -> String {
    match key.default {
        Preset::Required => "(required)".to_owned(),
        Preset::Absent(words) => words.to_owned(),
        Preset::Value(text) => format!("`{text}`"),
    }
}

fn value(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Url => "URL".to_owned(),
        Kind::Address => "address:port".to_owned(),
        Kind::Upstream => "URI or conninfo".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Integer { min, max } => format!("{min} to {max}"),
        Kind::IntegerOr { min, max, word } => format!("{min} to {max}, or `{word}`"),
        Kind::Boolean => "`true`, `false`".to_owned(),
        Kind::Word(known) => known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::List => "list".to_owned(),
    }
}

#[test]
fn table_of_settings_is_the_table_of_keys() {
    assert_section(SETTINGS, "settings", &table_of(|key| key.is_read_by(Reads::Proxy) && !key.is_of_file()));
    assert_section(SETTINGS, "settings of files", &table_of(Key::is_of_file));
    assert_section(INJECTOR, "settings", &table_of(|key| key.name.starts_with("injector.")));
}

/// Those that a reload brings into effect are marked.
fn table_of(is_of_table: impl Fn(&Key) -> bool) -> String {
    let mut table =
        "| key | variable | value | default | what it sets |\n| --- | --- | --- | --- | --- |".to_owned();
    let mut has_variables = true;
    for key in KEYS.iter().filter(|key| is_of_table(key)) {
        let (variable, value, default) = (key.variable(), value(&key.kind), default(key));
        let mark = if key.may_change() { " ⟳" } else { "" };
        has_variables &= !key.is_of_file();
        let _ =
            write!(table, "\n| `{}`{mark} | `{variable}` | {value} | {default} | {} |", key.name, key.about);
    }
    if !has_variables {
        let lines = table.lines().map(|line| {
            let cells: Vec<_> = line.split(" | ").enumerate().filter(|(at, _)| *at != 1).collect();
            cells.into_iter().map(|(_, cell)| cell).collect::<Vec<_>>().join(" | ")
        });
        table = lines.collect::<Vec<_>>().join("\n");
    }
    table.replace("<mount>", "`<mount>").replace("<role>", "<role>`")
}

#[test]
fn table_of_keywords_is_libpqs() {
    let names = |meaning| {
        let of_meaning = KEYWORDS.iter().filter(|keyword| keyword.meaning == meaning);
        of_meaning.map(|keyword| format!("`{}`", keyword.name)).collect::<Vec<_>>().join(", ")
    };
    let table = format!(
        "| keywords | in `upstream` |\n| --- | --- |\n| {} | as libpq has them, see below |\n\
         | {} | the client's own go on unchanged |\n| {} | no use here |\n\
         | {} | an error: pglease logs in with what it leases |",
        names(Use::Built),
        names(Use::Client),
        names(Use::None),
        names(Use::Secret),
    );
    assert_section(SETTINGS, "keywords", &table);
}

fn example(docs: &'static str) -> &'static str {
    section(docs, "example").trim_start_matches("```toml\n").trim_end_matches("```")
}

#[track_caller]
fn assert_names(example: &str, is_in_it: impl Fn(&Key) -> bool) {
    for key in KEYS.iter().filter(|key| is_in_it(key)) {
        let (_, leaf) = key.table_and_leaf();
        // Those of other login methods stand in comments.
        let is_of_leaf = |line: &str| {
            line.split_once('=').is_some_and(|(key, _)| key.trim_start_matches("# ").trim() == leaf)
        };
        let is_written = example.lines().any(is_of_leaf);
        assert!(is_written, "the example has no {}", key.name);
    }
}

#[test]
fn example_file_of_the_injector_is_valid_and_names_every_key() {
    let example = example(INJECTOR);
    assert_names(example, |key| key.name.starts_with("injector."));
    let example = example.replace("/etc/pglease/tls/tls.crt", "DIR/ca.pem");
    let given = Given::nothing().file(&example.replace("/etc/pglease/tls/tls.key", "DIR/key.pem"));
    let config = given.load_injector().unwrap();
    assert_eq!(config.sidecar.settings[0].variable, "PGLEASE_VAULT_ADDRESS");
    assert_eq!(config.sidecar.settings[0].value, "https://vault.vault.svc:8200");
}

#[test]
fn example_file_is_valid_and_names_every_key() {
    let example = example(SETTINGS);
    assert_names(example, |key| key.is_read_by(Reads::Proxy));

    let files = [
        ("/etc/vault/ca.pem", "DIR/ca.pem"),
        ("/etc/pg/ca.pem", "DIR/ca.pem"),
        ("/vault/secrets/", "DIR/"),
        ("/var/run/secrets/kubernetes.io/serviceaccount/token", "DIR/token"),
    ];
    let example = files.iter().fold(example.to_owned(), |example, (file, ours)| {
        assert!(example.contains(file), "{file}");
        example.replace(file, ours)
    });
    let given = Given::nothing().file(&example);
    let loaded = given.load().unwrap();
    assert_eq!((loaded.config.routes.len(), loaded.warnings.len()), (2, 0));
    assert_eq!(loaded.config.vault.tls.ca, Ca::File(given.dir.path().join("ca.pem")));
}

/// The first block of code in this language behind `heading`.
fn block(docs: &'static str, heading: &str, language: &str) -> &'static str {
    let (_, rest) = docs.split_once(&format!("\n{heading}\n")).expect("the heading");
    let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").expect("its end").0
}

/// What a shell makes of a command without its first two words, `pglease proxy`. No word has a space in it.
fn arguments(command: &'static str) -> Vec<&'static str> {
    let words = command.split_whitespace().filter(|word| *word != "\\").map(|word| word.trim_matches('\''));
    let mut words = words.collect::<Vec<_>>();
    assert_eq!(words.drain(..2).collect::<Vec<_>>(), ["pglease", "proxy"]);
    words
}

#[test]
fn smallest_sets_of_settings_are_valid_and_the_same_with_and_without_a_file() {
    let token = || Given::nothing().variable("PGLEASE_VAULT_LOGIN_JWT_FILE", "DIR/token");
    let file = block(README, "## Run it", "toml").replace("/etc/pg/ca.pem", "DIR/ca.pem");
    let mut by_file = token().file(&file).config();
    assert!(by_file.routes[0].upstream.ssl_root_cert.take().is_some());

    let (_, by_flags) = README.split_once("The same without a file").unwrap();
    let by_flags = by_flags.split_once("```sh\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let mut by_flags = token().arguments(&arguments(by_flags)).config();
    by_flags.vault.login.clone_from(&by_file.vault.login);
    assert_eq!(by_flags, by_file);

    let smallest = arguments(block(SETTINGS, "## The smallest set", "sh"));
    assert_eq!(token().arguments(&smallest).config().routes.len(), 1);
}

#[test]
fn example_of_errors_is_what_is_said() {
    let errors = Given::minimal_file("\n[log]\n[listen]\nmax_sesions = 3\n")
        .variable("PGLEASE_DRAIN_GRACE", "30s")
        .errors();
    assert_eq!(format!("{errors}\n"), block(SETTINGS, "## When something is wrong", "text"));
}

#[test]
fn help_names_every_flag() {
    let help = Command::new("proxy").args(flags()).render_long_help().to_string();
    let of_injector = Command::new("injector").args(injector_flags()).render_long_help().to_string();
    for key in KEYS {
        let is_in = |help: &str| {
            help.contains(&format!("--{} ", key.flag())) || help.contains(&format!("--{}[", key.flag()))
        };
        let is_flag = key.is_read_by(Reads::Proxy) && !key.is_of_file();
        assert_eq!(is_in(&help), is_flag, "{}", key.name);
        assert_eq!(is_in(&of_injector), key.is_read_by(Reads::Injector), "{}", key.name);
    }
    assert!(help.contains("--at-lease-end <auto|leave|close>"));
    assert!(help.contains("--listen-threads <NUMBER|auto>"));
}
