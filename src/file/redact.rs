//! The words of a program that may have read the file, without what is secret in it.

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::render;

/// The first lines of `output`, without `password`, in whatever form a file has it, and without characters that are
/// not for a log.
pub(super) fn redacted(output: &[u8], password: &SecretString) -> String {
    let text = Zeroizing::new(String::from_utf8_lossy(output).into_owned());
    let mut forms = render::forms(password.expose_secret());
    // What contains another goes first.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    let clean = forms
        .iter()
        .filter(|form| !form.is_empty())
        .fold(text, |text, form| Zeroizing::new(text.replace(form.as_str(), MASK)));
    let shown = clean.trim().chars().map(|character| if character.is_control() { ' ' } else { character });
    shown.take(MAX_SHOWN).collect()
}

/// Stands for what is not shown.
const MASK: &str = "***";
/// Characters of a program's words that are logged.
const MAX_SHOWN: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{Format, Secret, Target, Template};

    #[test]
    fn password_is_masked_in_every_form_that_a_file_has() {
        let password = "p:a=s's w\"o\\r%d/&<>$x`y!#é z";
        let secret = SecretString::from(password);
        let target = Target {
            hosts: vec![("db", 5432)],
            database: "app",
            options: vec![("sslmode", "verify-full")],
            service: "pglease",
        };
        let credential =
            Secret { username: "v-app", password, lease_id: "", lease_duration: 60, renewable: false };
        let functions =
            ["", "| toJSON", "| toJSONPretty", "| toUnescapedJSON", "| urlquery", "| base64Encode"];
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
            let shown = redacted(&written, &secret);
            assert!(shown.contains(MASK), "{format:?}: {shown}");
            for piece in ["s w", "s%20w", "s+w", "x`y", "x\\`y", "x%60y", "r%d", "r%25d"] {
                assert!(!shown.contains(piece), "{format:?}: {piece}: {shown}");
            }
        }
    }

    #[test]
    fn words_are_one_short_line() {
        let shown =
            redacted(&[b"a\nb\x1b[1m".to_vec(), vec![b'x'; 10_000]].concat(), &SecretString::from("s3cret"));
        assert!(shown.starts_with("a b [1mxxx"), "{shown}");
        assert_eq!(shown.chars().count(), MAX_SHOWN);
    }
}
