//! Every link within the repository leads somewhere.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::pages::{self, Page};

/// The targets of a page's links: `lease.md#checking`.
fn links(page: &Page) -> Vec<String> {
    let prose = page.prose();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
}

/// The path that a link on the page means, from the root.
fn resolved(page: &str, target: &str) -> String {
    let mut path = PathBuf::from(page);
    path.pop();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{page}: {target} leads out of the repository"),
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path.display().to_string()
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages::all();
    let mut broken = Vec::new();
    for page in &pages {
        for link in links(page) {
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = if target.is_empty() { page.path.clone() } else { resolved(&page.path, target) };
            if !pages::root().join(&path).exists() {
                broken.push(format!("{}: {link}", page.path));
            } else if !anchor.is_empty() && !Page::of(&path).anchors().iter().any(|of| of == anchor) {
                broken.push(format!("{}: {link}: no such heading", page.path));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn index_leads_to_every_page_of_the_docs() {
    let index = Page::of("docs/README.md");
    let linked: BTreeSet<_> =
        links(&index).iter().map(|link| resolved(&index.path, link.split('#').next().unwrap())).collect();
    for page in pages::all() {
        let is_its_own = page.path.starts_with("docs/") && page.path != index.path;
        assert!(!is_its_own || linked.contains(&page.path), "docs/README.md does not lead to {}", page.path);
    }
}
