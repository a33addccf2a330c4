//! How leased roles are called, learned from the name of one. Vault's own template and most others' end in a random part
//! and a time; what is in front is the same for all of one `vault_role`. Pure.

/// A regular expression of PostgreSQL's for the names of this one's kind, without backslashes; `None` where nothing in
/// the name looks random, so that one cannot tell what others are called.
pub(super) fn pattern(name: &str) -> Option<String> {
    let (mut pattern, mut is_random) = ("^".to_owned(), false);
    for piece in pieces(name) {
        let len = piece.len();
        match Kind::of(piece) {
            Kind::Literal => pattern.extend(piece.chars().map(escaped)),
            Kind::Time => pattern += &random("0-9", len),
            Kind::Random => {
                is_random = true;
                pattern += &random("A-Za-z0-9", len);
            }
        }
    }
    pattern.push('$');
    is_random.then_some(pattern)
}

/// So many characters of these.
fn random(of: &str, len: usize) -> String {
    format!("[{of}]{{{len}}}")
}

/// Runs of letters and digits, and the characters between them, each by itself.
fn pieces(name: &str) -> impl Iterator<Item = &str> {
    name.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).flat_map(|piece| {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let separator = piece.get(word.len()..).unwrap_or_default();
        [word, separator].into_iter().filter(|piece| !piece.is_empty())
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Literal,
    Time,
    Random,
}

impl Kind {
    fn of(piece: &str) -> Self {
        let is_digits = piece.bytes().all(|byte| byte.is_ascii_digit());
        match piece.len() {
            9.. if is_digits => Self::Time,
            // PostgreSQL cuts a name at 63 bytes, and so may cut the random part short.
            RANDOM_LEN.. if piece.bytes().all(|byte| byte.is_ascii_alphanumeric()) && is_mixed(piece) => {
                Self::Random
            }
            _ => Self::Literal,
        }
    }
}

/// No word of a language looks so.
fn is_mixed(piece: &str) -> bool {
    let has = |is: fn(&u8) -> bool| usize::from(piece.as_bytes().iter().any(is));
    has(u8::is_ascii_digit) + has(u8::is_ascii_uppercase) + has(u8::is_ascii_lowercase) >= 2
}

/// A character of the name itself.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ' ') || !c.is_ascii() {
        c.to_string()
    } else if c == '^' || c == '\\' {
        // Special in brackets as well: any one character will do.
        ".".to_owned()
    } else {
        format!("[{c}]")
    }
}

/// Vault's `{{random 20}}`, and a little less.
const RANDOM_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vaults_templates_are_known_again() {
        for (name, expected) in [
            (
                "v-kubernet-db-app-Abcdefghij0123456789-1700000000",
                Some("^v-kubernet-db-app-[A-Za-z0-9]{20}-[0-9]{10}$"),
            ),
            ("v_w1-db-app-aB3defghijklmnopqrst", Some("^v_w1-db-app-[A-Za-z0-9]{20}$")),
            ("v.app+1-aB3defghij", Some("^v[.]app[+]1-[A-Za-z0-9]{10}$")),
            ("a^b\\c-aB3defghij", Some("^a.b.c-[A-Za-z0-9]{10}$")),
            ("zauber-ä-aB3defghij", Some("^zauber-ä-[A-Za-z0-9]{10}$")),
            ("report", None),
            ("v-kubernetes-1700000000", None),
            ("application-accounting", None),
            ("", None),
        ] {
            assert_eq!(pattern(name).as_deref(), expected, "{name}");
        }
    }
}
