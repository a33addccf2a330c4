//! The words of a program that may have read the file, without what is secret in it.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::ids::GenerationId;
use crate::render;

/// The passwords that a file has, had, or is about to have: whoever reads it may come to know any of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Passwords {
    /// The oldest first.
    known: Arc<Mutex<Known>>,
}

type Known = VecDeque<(GenerationId, SecretString)>;

impl Passwords {
    /// Before a reader can find it.
    pub(super) fn add(&self, generation: GenerationId, password: &SecretString) {
        let mut known = self.lock();
        known.push_back((generation, password.clone()));
        if known.len() > MAX_KNOWN {
            known.pop_front();
        }
    }

    /// One that has not got into the file.
    pub(super) fn forget(&self, generation: GenerationId) {
        self.lock().retain(|(known, _)| *known != generation);
    }

    /// The first of what a program has said on its outputs, in one line: without a password, in whatever form a file
    /// has it, and without characters that are not for a log.
    pub(super) fn redacted(&self, outputs: &[&[u8]]) -> String {
        let forms = self.forms();
        let clean = outputs.iter().map(|output| redacted(output, &forms)).fold(
            Zeroizing::new(String::new()),
            |mut all, clean| {
                all.push_str(&clean);
                all.push('\n');
                all
            },
        );
        let shown =
            clean.trim().chars().map(|character| if character.is_control() { ' ' } else { character });
        shown.take(MAX_SHOWN).collect()
    }

    /// A thread that panicked has left the list whole.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What contains another goes first.
    fn forms(&self) -> Vec<Zeroizing<String>> {
        let mut forms: Vec<_> =
            self.lock().iter().flat_map(|(_, password)| render::forms(password.expose_secret())).collect();
        forms.retain(|form| !form.is_empty());
        forms.sort_by(|one, other| Reverse(one.len()).cmp(&Reverse(other.len())).then(one.cmp(other)));
        forms.dedup();
        forms
    }
}

fn redacted(output: &[u8], forms: &[Zeroizing<String>]) -> Zeroizing<String> {
    let text = Zeroizing::new(String::from_utf8_lossy(output).into_owned());
    let mut clean = forms.iter().fold(text, |text, form| Zeroizing::new(text.replace(form.as_str(), MASK)));
    // It was cut off within one, where there was no room for more or the program was killed.
    let whole_len = clean.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
    let whole = clean.get(..whole_len).unwrap_or_default();
    if let Some(begun_len) = forms.iter().filter_map(|form| begun(whole, form)).max() {
        clean.truncate(whole_len - begun_len);
        clean.push_str(MASK);
    }
    clean
}

/// How much of `form` stands at the end of `text`, where that is worth a thought.
fn begun(text: &str, form: &str) -> Option<usize> {
    let ends = form.char_indices().map(|(at, _)| at).rev().take_while(|at| *at >= MIN_BEGUN_LEN);
    ends.into_iter().find(|at| form.get(..*at).is_some_and(|begin| text.ends_with(begin)))
}

/// More than a chain keeps alive at a time.
const MAX_KNOWN: usize = 16;
/// Stands for what is not shown.
const MASK: &str = "***";
/// Characters of a program's words that are logged.
const MAX_SHOWN: usize = 400;
/// Bytes of a password by which nobody can guess it, and which may begin any word.
const MIN_BEGUN_LEN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{Format, Secret, Target, Template};

    #[test]
    fn password_is_masked_in_every_form_that_a_file_has() {
        let password = "p:a=s's w\"o\\r%d/&<>$x`y!#é z";
        let passwords = Passwords::default();
        passwords.add(GenerationId(1), &SecretString::from(password));
        let target = Target {
            hosts: vec![("db", 5432)],
            database: "app",
            options: vec![("sslmode", "verify-full")],
            service: "pglease",
        };
        let credential =
            Secret { username: "v-app", password, lease_id: "", lease_duration: 60, renewable: false };
        let functions = [
            "",
            "| toJSON",
            "| toJSONPretty",
            "| toUnescapedJSON",
            "| urlquery",
            "| base64Encode",
            "| toUpper",
            "| toLower",
            "| trimSpace",
            "| printf \"v-app:%s\" | base64Encode",
        ];
        let templates = functions.map(|function| {
            format!("{{{{ with secret \"a/creds/b\" }}}}{{{{ .Data.password {function} }}}}{{{{ end }}}}")
        });
        let quoted = "{{ with secret \"a/creds/b\" }}{{ printf \"%q\" .Data.password }}{{ end }}".to_owned();
        let templates = templates.iter().chain([&quoted]);
        let templates = templates.map(|text| Format::Template(Template::parse(text, "a/creds/b").unwrap()));
        let formats = [
            Format::Json,
            Format::Env,
            Format::Pgpass,
            Format::PgService,
            Format::Uri,
            Format::Properties,
            Format::UsernamePassword,
        ];
        for format in formats.into_iter().chain(templates) {
            let written = format.render(&credential, Some(&target)).unwrap();
            let shown = passwords.redacted(&[&written]);
            assert!(shown.contains(MASK), "{format:?}: {shown}");
            for piece in ["s w", "s%20w", "s+w", "x`y", "x\\`y", "x%60y", "r%d", "r%25d"] {
                assert!(!shown.contains(piece), "{format:?}: {piece}: {shown}");
            }
        }
    }

    #[test]
    fn all_that_are_known_are_masked_and_one_that_never_got_into_the_file_is_forgotten() {
        let passwords = Passwords::default();
        let name = |number: u64| format!("s3cret-{number}-x");
        for number in 1..=20 {
            passwords.add(GenerationId(number), &SecretString::from(name(number)));
        }
        passwords.forget(GenerationId(19));
        assert_eq!(passwords.redacted(&[name(5).as_bytes(), name(20).as_bytes()]), "*** ***");
        assert_eq!(passwords.redacted(&[format!("{} is free", name(19)).as_bytes()]), "s3cret-19-x is free");
        assert_eq!(passwords.lock().len(), MAX_KNOWN - 1);
    }

    #[test]
    fn what_was_cut_off_within_a_password_is_masked_as_well() {
        let passwords = Passwords::default();
        passwords.add(GenerationId(1), &SecretString::from("lönglong"));
        for (said, shown) in
            [("is lönglon", "is ***"), ("is lönglong", "is ***"), ("is lön", "is ***"), ("is lö", "is lö")]
        {
            assert_eq!(passwords.redacted(&[said.as_bytes()]), shown);
        }
        let within_a_character = ["is ".as_bytes(), "lönglong lö".as_bytes()].concat();
        let (last, rest) = within_a_character.split_last().unwrap();
        assert_eq!((*last, passwords.redacted(&[rest])), (0xb6, "is *** l\u{fffd}".to_owned()));
    }

    #[test]
    fn words_are_one_short_line() {
        let passwords = Passwords::default();
        passwords.add(GenerationId(1), &SecretString::from("s3cret"));
        let shown = passwords.redacted(&[&[b"a\nb\x1b[1m".to_vec(), vec![b'x'; 10_000]].concat()]);
        assert!(shown.starts_with("a b [1mxxx"), "{shown}");
        assert_eq!(shown.chars().count(), MAX_SHOWN);
    }
}
