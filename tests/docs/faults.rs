//! Every fault that `pglease check` can name is made by a test, or stands below with why none can.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Faults and warnings that no test makes.
const UNMADE: &[(&str, &str)] = &[
    ("auth-in-clear", "settings with which it could come are refused"),
    ("lease-not-renewable", "OpenBao's database engine makes none; other engines may"),
    ("no-host", "of several hosts the one that tells most is named instead"),
    ("no-tls-to-bind-to", "settings with which it could come are refused"),
    ("postgres-resolver-silent", "the resolver is the machine's"),
    ("secret-id-spent", "the check opens no wrapped SecretID"),
    ("token-not-renewable", "OpenBao's logins give none; other auth methods may"),
    ("vault-refused", "a health request that is refused is told as another fault; nothing else comes to it"),
    ("vault-resolver-silent", "the resolver is the machine's"),
    ("zero-byte", "Vault makes no such name, and PostgreSQL takes no such role"),
];

/// Where the tests are that make them.
const TESTS: [&str; 2] = ["tests/e2e/check", "tests/e2e/operators/check"];

#[test]
fn every_fault_is_made_by_a_test_or_said_to_be_unmade() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/check.md")).unwrap();
    let (_, list) = page.split_once("## What it can find").unwrap();
    let named: BTreeSet<_> =
        list.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut tests = String::new();
    for folder in TESTS {
        read(&root.join(folder), &mut tests);
    }
    let made: BTreeSet<_> =
        named.iter().copied().filter(|name| tests.contains(&format!("{name:?}"))).collect();
    let unmade: BTreeSet<_> = UNMADE.iter().map(|(name, _)| *name).collect();
    assert_eq!(named.difference(&made).copied().collect::<BTreeSet<_>>(), unmade);
}

fn read(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, into);
        } else {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
