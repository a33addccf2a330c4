//! Every fault that `pglease check` can name is made by a test and cured in it, or stands on the page with why not.
//!
//! Made is what a test finds: the name is the last argument of one of [`FINDS`], as it is or from a row of the table that
//! the loop around the call goes through. Cured is in the same way what one of [`CURES`] is told, each of which fails
//! where the fault has not been found before, or its step is not well by then. That the name stands somewhere in a test
//! is not enough.

#![expect(
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "what fails here fails the test, and other tokens are passed over"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Functions of the tests that fail where the fault is not found.
const FINDS: &[&str] = &["finds", "finds_beside_others", "trouble", "only_trouble", "has"];

/// Those that fail where its step is not well, or was so all the time.
const CURES: &[&str] = &["cured", "is_cured"];

/// Where the tests are that make them.
const TESTS: [&str; 2] = ["tests/e2e/check", "tests/e2e/operators/check"];

#[test]
fn every_fault_is_made_and_cured_by_a_test_or_said_not_to_be() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/check.md")).unwrap();
    let (_, list) = page.split_once("## What it can find").unwrap();
    let (list, exceptions) = list.split_once("## What no test makes").unwrap();
    let (unmade, scripted) = exceptions.split_once("## What no server does at will").unwrap();
    let names = |text, begin| -> BTreeSet<String> {
        let lines = str::lines(text).filter_map(|line| line.strip_prefix(begin));
        lines.filter_map(|line| line.split('`').next()).map(str::to_owned).collect()
    };
    let (named, unmade) = (names(list, "| `"), names(unmade, "- `"));
    assert!(names(scripted, "- `").is_subset(&named));

    let code: Vec<_> = TESTS.iter().flat_map(|folder| read(&root.join(folder))).collect();
    for functions in [FINDS, CURES] {
        let said: BTreeSet<_> = code.iter().flat_map(|code| said_by(functions, code)).collect();
        let missing: BTreeSet<_> = named.difference(&said).cloned().collect();
        assert_eq!(missing, unmade, "by {functions:?}");
    }
}

fn read(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { read(&path) } else { vec![fs::read_to_string(path).unwrap()] })
        .collect()
}

/// A piece of Rust, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// Of any kind of text, as it is written.
    Text(String),
    Word(String),
    Sign(char),
}

fn tokens(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while !rest.is_empty() {
        let (token, len) = first(rest);
        tokens.extend(token);
        rest = &rest[len..];
    }
    tokens
}

/// What the code begins with, and how long that is; nothing where it is a comment, a blank, a character or a lifetime.
fn first(code: &str) -> (Option<Token>, usize) {
    let begin = code.chars().next().unwrap();
    let word = &code[..code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len())];
    let behind = &code[word.len()..];
    if code.starts_with("//") {
        (None, code.find('\n').unwrap_or(code.len()))
    } else if code.starts_with("/*") {
        (None, comment_len(code))
    } else if let (true, Some(hashes)) = (["r", "br", "cr"].contains(&word), hashes_of(behind)) {
        let (from, end) = (hashes + 1, format!("\"{}", "#".repeat(hashes)));
        let len = behind[from..].find(&end).unwrap_or_else(|| panic!("a text without an end: {code}"));
        (Some(Token::Text(behind[from..from + len].to_owned())), word.len() + from + len + end.len())
    } else if ["", "b", "c"].contains(&word) && behind.starts_with('"') {
        let len = text_len(&behind[1..]);
        (Some(Token::Text(behind[1..=len].to_owned())), word.len() + len + 2)
    } else if ["", "b"].contains(&word) && behind.starts_with('\'') {
        (None, word.len() + character_len(behind))
    } else if !word.is_empty() {
        (Some(Token::Word(word.to_owned())), word.len())
    } else {
        (Some(Token::Sign(begin)).filter(|_| !begin.is_whitespace()), begin.len_utf8())
    }
}

/// How many stand in front of a raw text's quote; `None` where there is no such text.
fn hashes_of(code: &str) -> Option<usize> {
    let quote = code.find(|c| c != '#')?;
    code[quote..].starts_with('"').then_some(quote)
}

/// Of a text, up to the quote that ends it.
fn text_len(code: &str) -> usize {
    let mut is_escaped = false;
    let end = code.find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    end.unwrap_or_else(|| panic!("a text without an end: {code}"))
}

/// Of a character with its quotes, or of a lifetime.
fn character_len(code: &str) -> usize {
    let inside: Vec<(usize, char)> = code.char_indices().skip(1).take(2).collect();
    match inside[..] {
        // What is escaped may be the quote.
        [(_, '\\'), (at, _)] => at + 1 + code[at + 1..].find('\'').unwrap() + 1,
        [_, (at, '\'')] => at + 1,
        _ => 1,
    }
}

/// With those that are inside of it.
fn comment_len(code: &str) -> usize {
    let (mut len, mut depth) = (0, 0);
    while let Some(at) = code[len..].find(['/', '*']) {
        len += at;
        if code[len..].starts_with("/*") {
            depth += 1;
            len += 2;
        } else if code[len..].starts_with("*/") {
            depth -= 1;
            len += 2;
            if depth == 0 {
                return len;
            }
        } else {
            len += 1;
        }
    }
    panic!("a comment without an end: {code}");
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

/// What these functions are told in this code.
fn said_by(functions: &[&str], code: &str) -> BTreeSet<String> {
    let tokens = tokens(code);
    let mut found = BTreeSet::new();
    for index in 0..tokens.len() {
        let (Token::Word(word), Some(Token::Sign('('))) = (&tokens[index], tokens.get(index + 1)) else {
            continue;
        };
        if !functions.contains(&&**word) {
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
    let found = said_by(FINDS, code);
    assert_eq!(found.iter().collect::<Vec<_>>(), ["direct", "first", "of-lines", "second"]);
    assert_eq!(said_by(CURES, r#"cured("x"); checked.is_cured(&cure, "vault.tls", "mended")"#).len(), 2);
}

#[test]
fn code_is_cut_where_rust_cuts_it() {
    let text = |text: &str| Token::Text(text.to_owned());
    let word = |word: &str| Token::Word(word.to_owned());
    let sign = Token::Sign;
    for (code, expected) in [
        ("", vec![]),
        ("a_1 + \u{f6}", vec![word("a_1"), sign('+'), word("\u{f6}")]),
        (r#""of \" one" b"two" c"3""#, vec![text(r#"of \" one"#), text("two"), text("3")]),
        (r#""\\" x"#, vec![text(r"\\"), word("x")]),
        (r###"r"a\" r#"b"c"# br##"d"#e"##"###, vec![text(r"a\"), text("b\"c"), text("d\"#e")]),
        ("r#type", vec![word("r"), sign('#'), word("type")]),
        (r#"'"' "a" '\'' b'"' '\\' '\u{22}' "b""#, vec![text("a"), text("b")]),
        ("&'a str, 'x'", vec![sign('&'), word("a"), word("str"), sign(',')]),
        ("<'a, 'b>", vec![sign('<'), word("a"), sign(','), word("b"), sign('>')]),
        ("a // \"b\" 'c\nd", vec![word("a"), word("d")]),
        ("a /* \" /* ' */ \" */ d / 2", vec![word("a"), word("d"), sign('/'), word("2")]),
    ] {
        assert_eq!(tokens(code), expected, "{code}");
    }
}
