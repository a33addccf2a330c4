//! `docs/clients.md` holds what is tested: the versions are the pins, the settings those of the programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::LANGUAGES;

const DOCS: &str = include_str!("../../../docs/clients.md");

/// A row, its cells by column.
struct Row {
    tested: &'static str,
    settings: &'static str,
    language: &'static str,
    client: &'static str,
}

impl Row {
    /// Whether it is one of the programs of `tests/clients`.
    fn is_program(&self) -> bool {
        LANGUAGES.iter().any(|(language, _)| *language == self.language)
    }
}

fn rows() -> Vec<Row> {
    let (_, table) = DOCS.split_once("<!-- clients -->\n").unwrap();
    let (table, _) = table.split_once("<!-- end of clients -->").unwrap();
    let row = |line: &'static str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, tested, _, settings, _, test] = cells[..] else { panic!("{line}") };
        let (language, client) = test.trim_matches('`').split_once("::").unwrap();
        Row { tested, settings, language, client }
    };
    // Below the head.
    table.lines().skip(2).map(row).collect()
}

/// What stands between backticks.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_client_has_a_row_and_every_row_a_test() {
    let (programs, others): (Vec<_>, Vec<_>) = rows().into_iter().partition(Row::is_program);
    let programs: Vec<_> = programs.iter().map(|row| (row.language, row.client)).collect();
    let tests = LANGUAGES.iter().flat_map(|(language, clients)| {
        clients.iter().map(|(client, _)| (*language, *client)).collect::<Vec<_>>()
    });
    assert_eq!(programs.iter().copied().collect::<BTreeSet<_>>(), tests.collect());
    assert_eq!(programs.len(), programs.iter().collect::<BTreeSet<_>>().len(), "a row for each");
    for row in others {
        let sources =
            ["tests/e2e", "tests/e2e/clients"].map(|folder| format!("{folder}/{}.rs", row.language));
        let text: String = sources.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        assert!(text.contains(&format!("async fn {}()", row.client)), "no test {}", row.client);
    }
}

#[test]
fn versions_in_the_docs_are_the_pinned_ones() {
    for row in rows() {
        let folder = folder_of(row.language);
        let manifests: String =
            MANIFESTS.iter().filter_map(|name| fs::read_to_string(folder.join(name)).ok()).collect();
        for tested in code(row.tested) {
            let (package, version) = tested.rsplit_once(' ').unwrap();
            let pin = |line: &str| line.contains(package) && line.contains(version);
            assert!(manifests.lines().any(pin), "{tested} is not pinned in {}", folder.display());
        }
    }
}

#[test]
fn settings_in_the_docs_are_those_of_the_programs() {
    for row in rows().into_iter().filter(Row::is_program) {
        let program = files(&folder_of(row.language)).into_iter().find(|path| is_named(path, row.client));
        let program = program.unwrap_or_else(|| panic!("no program of {}", row.client));
        let text = fs::read_to_string(&program).unwrap();
        for setting in code(row.settings) {
            assert!(text.contains(setting), "{} has no {setting}", program.display());
        }
    }
}

fn folder_of(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(language)
}

/// Whether file or folder has the client's name, however the language spells names.
fn is_named(path: &Path, client: &str) -> bool {
    let plain = |name: &str| name.replace(['_', '-'], "").to_lowercase();
    let names = [path.file_stem(), path.parent().and_then(Path::file_name)];
    names.into_iter().flatten().any(|name| plain(&name.to_string_lossy()) == plain(client))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

const MANIFESTS: &[&str] = &["requirements.txt", "package.json", "go.mod", "pom.xml", "Cargo.toml"];
