//! The pages: README.md, CONTRIBUTING.md, and all of `docs/` and `deploy/`.

use std::fs;
use std::path::{Path, PathBuf};

/// A page of Markdown.
pub(crate) struct Page {
    /// From the root of the repository: `docs/lease.md`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A block between fences.
pub(crate) struct Block<'a> {
    pub(crate) language: &'a str,
    pub(crate) text: &'a str,
}

impl Page {
    pub(crate) fn of(path: &str) -> Self {
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { path: path.to_owned(), text }
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        let blocks = self.text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        blocks.map(|(language, text)| Block { language, text })
    }

    /// What is not between fences.
    pub(crate) fn prose(&self) -> String {
        self.text.split("```").step_by(2).collect()
    }

    pub(crate) fn headings(&self) -> Vec<String> {
        let prose = self.prose();
        let lines = prose.lines().filter(|line| line.starts_with('#'));
        lines.map(|line| line.trim_start_matches('#').trim().to_owned()).collect()
    }

    /// The anchors of its headings, as they are where Markdown is shown.
    pub(crate) fn anchors(&self) -> Vec<String> {
        self.headings().iter().map(|heading| anchor(heading)).collect()
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().replace(' ', "-")
}

pub(crate) fn all() -> Vec<Page> {
    let mut paths = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for folder in ["docs", "deploy"] {
        walk(&root().join(folder), &mut paths);
    }
    paths.iter().map(|path| Page::of(path)).collect()
}

fn walk(folder: &Path, paths: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path.strip_prefix(root()).unwrap().display().to_string());
        }
    }
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn anchors_are_as_they_are_shown() {
    for (heading, is) in [
        ("Which revocation it is", "which-revocation-it-is"),
        ("`vault.state_dir`", "vaultstate_dir"),
        ("Clusters older than 1.29", "clusters-older-than-129"),
        ("`57P03`, and why", "57p03-and-why"),
    ] {
        assert_eq!(anchor(heading), is);
    }
}
