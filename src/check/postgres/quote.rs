//! Names and texts as SQL has them: in what is asked, and in what a person is told to run. Pure.

/// An identifier, in quotes where it needs them.
pub(in crate::check) fn identifier(name: &str) -> String {
    let mut bytes = name.bytes();
    let is_plain = bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// A string constant, whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_one_name_or_one_text() {
        for (name, expected) in [
            ("app_owner", "app_owner"),
            ("_a1", "_a1"),
            ("v-db-app", "\"v-db-app\""),
            ("App", "\"App\""),
            ("1a", "\"1a\""),
            ("a\"; DROP", "\"a\"\"; DROP\""),
            ("", "\"\""),
        ] {
            assert_eq!(identifier(name), expected);
        }
        for (text, expected) in [("a", "'a'"), ("it's", "'it''s'"), ("a\\'b", "E'a\\\\''b'"), ("", "''")] {
            assert_eq!(literal(text), expected);
        }
    }
}
