//! Every fault that `pglease check` can name is made by a test, or stands below with why none can.
//!
//! Made is what a test finds: the name is the last argument of one of [`FINDS`], as it is or from a row of the table that
//! the loop around the call goes through. That the name stands somewhere in a test is not enough.

#![expect(
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "what fails here fails the test, and other tokens are passed over"
)]

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

/// Functions of the tests that fail where the fault is not found.
const FINDS: [&str; 5] = ["finds", "finds_beside_others", "trouble", "only_trouble", "has"];

/// Where the tests are that make them.
const TESTS: [&str; 2] = ["tests/e2e/check", "tests/e2e/operators/check"];

#[test]
fn every_fault_is_found_by_a_test_or_said_to_be_unmade() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/check.md")).unwrap();
    let (_, list) = page.split_once("## What it can find").unwrap();
    let named: BTreeSet<_> =
        list.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut found = BTreeSet::new();
    for folder in TESTS {
        read(&root.join(folder), &mut found);
    }
    let unmade: BTreeSet<_> = UNMADE.iter().map(|(name, _)| *name).collect();
    let missing: BTreeSet<_> = named.iter().copied().filter(|name| !found.contains(*name)).collect();
    assert_eq!(missing, unmade);
}

fn read(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, into);
        } else {
            into.extend(found_in(&fs::read_to_string(path).unwrap()));
        }
    }
}

/// A piece of Rust, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Text(String),
    Word(String),
    Sign(char),
}

fn tokens(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            let mut is_escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                ends
            });
            let end = end.unwrap_or_else(|| panic!("a text without an end: {rest}"));
            tokens.push(Token::Text(rest[1..=end].to_owned()));
            end + 2
        } else if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..len].to_owned()));
            len
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[len..];
    }
    tokens
}

/// What is between the bracket that these begin with and its other half.
fn inside(tokens: &[Token]) -> &[Token] {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &tokens[1..index];
        }
    }
    panic!("no end of {:?}", &tokens[..tokens.len().min(8)]);
}

/// The parts between the commas.
fn parts(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0;
    let parts = tokens.split(|token| {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        depth == 0 && *token == Token::Sign(',')
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// The faults that the tests of this file find.
fn found_in(code: &str) -> BTreeSet<String> {
    let tokens = tokens(code);
    let mut found = BTreeSet::new();
    for index in 0..tokens.len() {
        let (Token::Word(word), Some(Token::Sign('('))) = (&tokens[index], tokens.get(index + 1)) else {
            continue;
        };
        if !FINDS.contains(&&**word) {
            continue;
        }
        match parts(inside(&tokens[index + 1..])).last() {
            Some([Token::Text(fault)]) => {
                found.insert(fault.clone());
            }
            Some([Token::Word(name)]) => found.extend(of_table(&tokens[..index], name)),
            _ => {}
        }
    }
    found
}

/// What `name` goes through in the loop that these tokens end in, where that is over a table: `for (…, name, …) in […]`.
fn of_table(before: &[Token], name: &str) -> Vec<String> {
    let is = |token: &Token, word: &str| matches!(token, Token::Word(of) if of == word);
    let Some(begin) = before.iter().rposition(|token| is(token, "for")) else { return Vec::new() };
    let Some([Token::Sign('('), ..]) = before.get(begin + 1..) else { return Vec::new() };
    let pattern = inside(&before[begin + 1..]);
    let behind = &before[begin + pattern.len() + 3..];
    let Some([of, Token::Sign('['), ..]) = behind.get(..2) else { return Vec::new() };
    let place = parts(pattern).iter().position(|part| matches!(part, [of] if is(of, name)));
    let (true, Some(place)) = (is(of, "in"), place) else { return Vec::new() };
    let rows = parts(inside(&behind[1..]));
    let cells = rows.iter().filter_map(|row| parts(inside(row)).get(place).map(|cell| cell.to_vec()));
    cells
        .filter_map(|cell| if let [Token::Text(fault)] = &cell[..] { Some(fault.clone()) } else { None })
        .collect()
}

#[test]
fn name_that_nothing_looks_for_is_not_found() {
    let code = r#"
        // finds("in-a-comment")
        let unused = "alone"; other(x, "of-another"); step["fault"] == "compared";
        let cure = patient.finds("vault.policy", "direct").await;
        checked.trouble(
            "vault.token",
            "of-lines",
        );
        for (fields, fault, cure) in [
            (json!({ "a": ["b", "c"] }), "first", "cure"),
            (json!({ "text": "with, \" and (" }), "second", "for"),
        ] {
            patient.finds("vault.login", fault).await;
        }
        for (fault, word) in [("unasked", "x")] {
            patient.finds("vault.login", other).await;
        }
    "#;
    let found = found_in(code);
    assert_eq!(found.iter().collect::<Vec<_>>(), ["direct", "first", "of-lines", "second"]);
}
