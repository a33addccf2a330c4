//! A template with names in angle brackets.

/// Why it cannot be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// In words.
    Unknown(String),
    /// The name is known, and has no value.
    Absent(String),
}

/// `template` with what `known` has for each `<name>`. In a URL values are percent-encoded (RFC 3986 §2.1), and in all
/// of them `$` is doubled, as Kubernetes looks for `$(NAME)` in the result.
pub(super) fn fill(template: &str, known: &[(&str, Option<&str>)]) -> Result<String, Error> {
    let is_url = template.contains("://");
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('<') {
        let (name, after) = behind
            .split_once('>')
            .ok_or_else(|| Error::Unknown("has a < without a >; write one behind the name".to_owned()))?;
        let value = known.iter().find(|(known, _)| *known == name);
        let value = value.ok_or_else(|| Error::Unknown(unknown(name, known)))?.1;
        let value = value.ok_or_else(|| Error::Absent(name.to_owned()))?;
        filled.push_str(before);
        filled.push_str(&if is_url { encoded(value) } else { value.replace('$', "$$") });
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn unknown(name: &str, known: &[(&str, Option<&str>)]) -> String {
    let known: Vec<String> = known.iter().map(|(name, _)| format!("<{name}>")).collect();
    let name: String = name.chars().take(20).collect();
    format!("knows no <{name}>; use {}", known.join(", "))
}

fn encoded(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_encoded_where_it_is_a_url() {
        let known = [("host", Some("/run/a b")), ("database", Some("my$db")), ("user", None)];
        for (template, expected) in [
            ("postgresql://<host>/<database>", Ok("postgresql://%2Frun%2Fa%20b/my%24db")),
            ("host=<host> dbname=<database>", Ok("host=/run/a b dbname=my$$db")),
            ("plain $(OTHER) >", Ok("plain $(OTHER) >")),
            ("", Ok("")),
            ("<user>", Err(Error::Absent("user".to_owned()))),
            ("a<host", Err(Error::Unknown("has a < without a >; write one behind the name".to_owned()))),
            ("<hst>", Err(Error::Unknown("knows no <hst>; use <host>, <database>, <user>".to_owned()))),
        ] {
            assert_eq!(fill(template, &known), expected.map(str::to_owned), "{template}");
        }
    }
}
