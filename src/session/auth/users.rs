//! The text of `listen.auth_file`: lines of `"user" "verifier"`, as PgBouncer's `userlist.txt` has them. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use zeroize::Zeroizing;

use crate::wire::verifier::{Shape, Verifier, VerifierError};

/// The users that there are, by name, and what is known of their passwords.
pub(super) struct Users {
    by_name: BTreeMap<Vec<u8>, User>,
    /// What most verifiers look like.
    usual: Shape,
}

struct User {
    verifier: Verifier,
    line: usize,
}

/// Why a text names no users. Holds nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsersError {
    #[error("line {line}: not of the form \"user\" \"verifier\", with \"\" for a \" in either")]
    Form { line: usize },
    #[error("line {line}: the user's name is empty")]
    NoName { line: usize },
    #[error("line {line}")]
    Verifier { line: usize, source: VerifierError },
    #[error("lines {first} and {second} name the same user; remove one")]
    Twice { first: usize, second: usize },
    #[error("it names no user")]
    Empty,
}

impl Users {
    /// Reads the text. Empty lines, and those that begin with `#` or `;`, say nothing; what stands behind the verifier
    /// does neither.
    pub(super) fn parse(text: &[u8]) -> Result<Self, UsersError> {
        let mut by_name = BTreeMap::new();
        for (line, written) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let written = written.trim_ascii();
            if written.is_empty() || written.starts_with(b"#") || written.starts_with(b";") {
                continue;
            }
            let (name, verifier) = fields(written).ok_or(UsersError::Form { line })?;
            if name.is_empty() {
                return Err(UsersError::NoName { line });
            }
            let verifier =
                Verifier::parse(&verifier).map_err(|source| UsersError::Verifier { line, source })?;
            match by_name.entry(name) {
                Entry::Vacant(entry) => entry.insert(User { verifier, line }),
                Entry::Occupied(entry) => {
                    return Err(UsersError::Twice { first: entry.get().line, second: line });
                }
            };
        }
        let usual = usual_shape(&by_name).ok_or(UsersError::Empty)?;
        Ok(Self { by_name, usual })
    }

    pub(super) fn verifier(&self, name: &[u8]) -> Option<&Verifier> {
        self.by_name.get(name).map(|user| &user.verifier)
    }

    /// All of them, in an order that does not depend on that of the lines.
    pub(super) fn verifiers(&self) -> impl Iterator<Item = &Verifier> {
        self.by_name.values().map(|user| &user.verifier)
    }

    /// What the verifier of a user that there is not has to look like.
    pub(super) fn usual_shape(&self) -> Shape {
        self.usual
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }
}

fn usual_shape(by_name: &BTreeMap<Vec<u8>, User>) -> Option<Shape> {
    let mut counts = BTreeMap::<Shape, usize>::new();
    for user in by_name.values() {
        *counts.entry(user.verifier.shape()).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(shape, _)| shape)
}

/// The two first fields of a line.
fn fields(line: &[u8]) -> Option<(Vec<u8>, Zeroizing<Vec<u8>>)> {
    let (name, rest) = quoted(line)?;
    let verifier = rest.trim_ascii_start();
    let (verifier, _) = quoted(verifier).filter(|_| verifier.len() < rest.len())?;
    Some((name, verifier.into()))
}

/// What is in the quotes at the beginning, and what is behind them.
fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    // Never more: a copy that is given up as it grows would stay in memory.
    let mut inside = Vec::with_capacity(text.len());
    loop {
        let end = rest.iter().position(|&byte| byte == b'"')?;
        let (part, behind) = rest.split_at(end);
        inside.extend_from_slice(part);
        rest = behind.get(1..)?;
        match rest.strip_prefix(b"\"") {
            Some(more) => {
                inside.push(b'"');
                rest = more;
            }
            None => return Some((inside, rest)),
        }
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::Causes;
    use crate::wire::verifier::tests::verifier_of;

    fn line(name: &str, password: &str) -> String {
        format!("\"{name}\" \"{}\"\n", verifier_of(password, 2, b"salt"))
    }

    #[test]
    fn lines_are_users_and_comments_are_none() {
        let text = [
            "\n# users\n; of the pod\n  \t\r\n",
            &line("app", "one"),
            &line("Ann \"\"A\"\" Ä", "two").replace("\" \"", "\"\t  \""),
            &line("#x", "three").replace('\n', " rest \"of\" the line\r\n"),
            line("no newline", "four").trim_end(),
        ]
        .concat();
        let users = Users::parse(text.as_bytes()).unwrap();
        assert_eq!(users.len(), 4);
        for (name, password) in
            [("app", "one"), ("Ann \"A\" Ä", "two"), ("#x", "three"), ("no newline", "four")]
        {
            let expected = Verifier::parse(verifier_of(password, 2, b"salt").as_bytes()).unwrap();
            assert_eq!(users.verifier(name.as_bytes()), Some(&expected), "{name}");
        }
        assert_eq!(users.verifier(b"App"), None);
        assert_eq!(users.verifier(b""), None);
    }

    #[test]
    fn error_names_the_line_and_nothing_of_what_it_holds() {
        let good = line("app", "secret");
        let said = |more: &str| Users::parse(format!("{good}{more}").as_bytes()).unwrap_err();
        for (more, error) in [
            ("app SCRAM-SHA-256$", UsersError::Form { line: 2 }),
            ("\n\"x\"", UsersError::Form { line: 3 }),
            ("\"x", UsersError::Form { line: 2 }),
            ("\"x\" SCRAM", UsersError::Form { line: 2 }),
            ("\"x\" \"SCRAM", UsersError::Form { line: 2 }),
            ("\"x\"\"SCRAM\"", UsersError::Form { line: 2 }),
            ("\u{feff}\"x\" \"y\"", UsersError::Form { line: 2 }),
            ("\"\" \"x\"", UsersError::NoName { line: 2 }),
            ("\"x\" \"\"", UsersError::Verifier { line: 2, source: VerifierError::Plain }),
            ("\"x\" \"hunter2\"", UsersError::Verifier { line: 2, source: VerifierError::Plain }),
            ("\"x\" \"SCRAM-SHA-256$1:\"", UsersError::Verifier { line: 2, source: VerifierError::Damaged }),
            (
                "\"x\" \"md5d8578edf8458ce06fbc5bb76a58c5ca4\"",
                UsersError::Verifier { line: 2, source: VerifierError::Md5 },
            ),
            (&line("app", "other"), UsersError::Twice { first: 1, second: 2 }),
            (&format!("\n{good}"), UsersError::Twice { first: 1, second: 3 }),
        ] {
            assert_eq!(said(more), error, "{more}");
            for secret in ["hunter2", "d8578edf", "app"] {
                assert!(!error.to_string().contains(secret), "{error}");
            }
        }
        for empty in ["", "\n", "# \"app\" \"SCRAM\"\n"] {
            assert_eq!(Users::parse(empty.as_bytes()).unwrap_err(), UsersError::Empty);
        }
        assert_eq!(
            Causes(&said("\"x\" \"secret\"")).to_string(),
            "line 2: no SCRAM verifier: a password itself is not taken; give a role that password with \\password in \
             psql, and copy its rolpassword, which begins with SCRAM-SHA-256$"
        );
    }

    #[test]
    fn most_verifiers_are_the_model_of_those_that_there_are_not() {
        let verifier = |name: &str, iterations, salt: &[u8]| {
            format!("\"{name}\" \"{}\"\n", verifier_of("secret", iterations, salt))
        };
        let text =
            [verifier("a", 1, b"salt"), verifier("b", 9, b"longer salt"), verifier("c", 9, b"longer SALT")];
        let users = Users::parse(text.concat().as_bytes()).unwrap();
        assert_eq!(users.usual_shape(), Shape { iterations: 9, salt_len: 11 });
        assert_eq!(format!("{users:?}"), "Users { len: 3, .. }");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..80), lines in "(\"a\"{0,3} ?\"{0,2}(SCRAM-SHA-256\\$)?.{0,9}\"?\n?){0,4}") {
            let _ = (Users::parse(&text), Users::parse(lines.as_bytes()));
        }

        #[test]
        fn every_name_is_found_as_it_was_quoted(name in "[^\n\r\t \0](.*[^\n\r\t \0])?") {
            prop_assume!(!name.contains('\n'));
            let text = line(&name.replace('"', "\"\""), "secret");
            prop_assert!(Users::parse(text.as_bytes()).unwrap().verifier(name.as_bytes()).is_some());
        }
    }
}
