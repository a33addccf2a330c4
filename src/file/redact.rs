//! The words of a program that may have read the file, without what is secret in it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// The first lines of `output`, without `password`, in whatever form a file has it, and without characters that are
/// not for a log.
pub(super) fn redacted(output: &[u8], password: &SecretString) -> String {
    let text = Zeroizing::new(String::from_utf8_lossy(output).into_owned());
    let mut forms = forms(password.expose_secret());
    // What contains another goes first.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    let clean = forms
        .iter()
        .filter(|form| !form.is_empty())
        .fold(text, |text, form| Zeroizing::new(text.replace(form.as_str(), MASK)));
    let shown = clean.trim().chars().map(|character| if character.is_control() { ' ' } else { character });
    shown.take(MAX_SHOWN).collect()
}

/// The password as formats and templates write it.
fn forms(password: &str) -> Vec<Zeroizing<String>> {
    let encoded: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
    let escaped = |specials: &[char]| {
        let backslashed = |character: char| {
            specials.contains(&character).then_some('\\').into_iter().chain([character]).collect::<String>()
        };
        password.chars().map(backslashed).collect::<String>()
    };
    let percent = |keep: fn(u8) -> bool| {
        let byte = |byte: u8| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        password.bytes().map(byte).collect::<String>()
    };
    let json = serde_json::to_string(password).unwrap_or_default();
    [
        password.to_owned(),
        encoded.clone(),
        encoded.replace('+', "%20"),
        percent(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
        json.trim_matches('"').to_owned(),
        escaped(&['\\', '\'']),
        escaped(&['\\', ':']),
        escaped(&['\\', ':', '=', '#', '!', ' ']),
        password.replace('\'', "'\\''"),
        STANDARD.encode(password),
        URL_SAFE_NO_PAD.encode(password),
    ]
    .map(Zeroizing::new)
    .into()
}

/// Stands for what is not shown.
const MASK: &str = "***";
/// Characters of a program's words that are logged.
const MAX_SHOWN: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_masked_in_every_form_that_a_file_has() {
        let password = r#"p:a=s's w"o\r%d/&"#;
        let secret = SecretString::from(password);
        let said = format!(
            "reload: {password}\n{}\n{}\n{} {}",
            STANDARD.encode(password),
            r"p\:a=s's w",
            "p%3Aa%3Ds%27s%20w%22o%5Cr%25d%2F%26",
            serde_json::to_string(password).unwrap(),
        );
        let shown = redacted(said.as_bytes(), &secret);
        assert!(shown.starts_with("reload: ***"), "{shown}");
        for piece in [password, "%3Aa%3Ds", &STANDARD.encode(password), r#"w\"o"#] {
            assert!(!shown.contains(piece), "{shown}");
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
