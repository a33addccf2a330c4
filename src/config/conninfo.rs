//! Syntax of libpq's connection strings: text in, keywords and values out. What they mean is `upstream`'s.
//!
//! PostgreSQL manual, "Connection Strings". Errors carry positions and no text: any part of a string that does not
//! parse may be a piece of a password.

/// Keywords with their values, in the order written, decoded and without judgement.
pub(crate) type Pairs = Vec<(String, String)>;

/// Where a connection string stops being one. Characters count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SyntaxError {
    #[error("a URI of another kind; begin it with postgresql:// or postgres://")]
    Scheme,
    #[error("has a word without \"=\" at character {at}; write keyword=value, and values with spaces in '…'")]
    NoEquals { at: usize },
    #[error("has an opening ' without a closing one; write \\' for a ' within a value")]
    UnterminatedQuote,
    #[error("has a % that is not followed by two hexadecimal digits; write %25 for a %")]
    Percent,
    #[error("has a percent-encoding of a zero byte; remove it")]
    ZeroByte,
    #[error("has a percent-encoding that is not UTF-8; encode UTF-8")]
    NotUtf8,
    #[error("has no IPv6 address between its brackets; write it like [2001:db8::1]:5432")]
    Brackets,
    #[error("has an @ behind its host; write %40 for an @ in a name")]
    AtSign,
    #[error(
        "has a query parameter that is not keyword=value; write ?keyword=value&keyword=value, %3D for a = in a value"
    )]
    Parameter,
}

/// Splits a URI or a conninfo string.
pub(crate) fn parse(text: &str) -> Result<Pairs, SyntaxError> {
    match SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => parse_uri(rest),
        None if is_other_uri(text) => Err(SyntaxError::Scheme),
        None => parse_words(text),
    }
}

/// Whether `text` is meant as a URI of ours.
pub(crate) fn is_uri(text: &str) -> bool {
    SCHEMES.iter().any(|scheme| text.starts_with(scheme))
}

fn is_other_uri(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['=', ' ']))
}

/// `keyword = value …`: values bare or in quotes, a backslash takes the next character as it is.
fn parse_words(text: &str) -> Result<Pairs, SyntaxError> {
    let mut words = Words { text, at: 0 };
    let mut pairs = Vec::new();
    while let Some(pair) = words.next_pair()? {
        pairs.push(pair);
    }
    Ok(pairs)
}

/// What is left of a conninfo string; `at <= text.len()`, on a character's boundary.
struct Words<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    fn next_pair(&mut self) -> Result<Option<(String, String)>, SyntaxError> {
        self.skip_space();
        if self.rest().is_empty() {
            return Ok(None);
        }
        let start = self.at;
        let keyword = self.take_while(|character| character != '=' && !is_space(character)).to_owned();
        self.skip_space();
        if self.next() != Some('=') {
            let before = self.text.get(..start).unwrap_or_default();
            return Err(SyntaxError::NoEquals { at: before.chars().count() + 1 });
        }
        self.skip_space();
        let value = if self.rest().starts_with('\'') { self.quoted()? } else { self.bare() };
        Ok(Some((keyword, value)))
    }

    fn bare(&mut self) -> String {
        let mut value = String::new();
        while let Some(character) = self.next().filter(|character| !is_space(*character)) {
            match character {
                '\\' => value.extend(self.next()),
                other => value.push(other),
            }
        }
        value
    }

    fn quoted(&mut self) -> Result<String, SyntaxError> {
        let _opening = self.next();
        let mut value = String::new();
        loop {
            match self.next().ok_or(SyntaxError::UnterminatedQuote)? {
                '\'' => return Ok(value),
                '\\' => value.extend(self.next()),
                other => value.push(other),
            }
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.rest().chars().next()?;
        self.at += character.len_utf8();
        Some(character)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|character| !wanted(character)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        self.take_while(is_space);
    }
}

/// C's `isspace`, as libpq uses it.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// `[user[:password]@][host[:port],…][/dbname][?keyword=value&…]`, behind the scheme.
fn parse_uri(rest: &str) -> Result<Pairs, SyntaxError> {
    let mut pairs = Vec::new();
    let rest = match rest.find(['@', '/']).and_then(|end| rest.split_at_checked(end)) {
        Some((userinfo, behind)) if behind.starts_with('@') => {
            push_userinfo(&mut pairs, userinfo)?;
            behind.strip_prefix('@').unwrap_or_default()
        }
        _ => rest,
    };

    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    push_hosts(&mut pairs, hosts)?;
    if database.contains('@') {
        return Err(SyntaxError::AtSign);
    }
    push(&mut pairs, "dbname", decode(database)?);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        pairs.push(parse_parameter(parameter)?);
    }
    Ok(pairs)
}

fn push_userinfo(pairs: &mut Pairs, userinfo: &str) -> Result<(), SyntaxError> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    push(pairs, "user", decode(user)?);
    push(pairs, "password", decode(password)?);
    Ok(())
}

/// Host and port become comma separated lists of the same length, as in a conninfo string.
fn push_hosts(pairs: &mut Pairs, hosts: &str) -> Result<(), SyntaxError> {
    let split = hosts.split(',').map(split_port).collect::<Result<Vec<_>, _>>()?;
    let hosts: Vec<&str> = split.iter().map(|(host, _)| *host).collect();
    let ports: Vec<&str> = split.iter().map(|(_, port)| *port).collect();
    push(pairs, "host", decode(&hosts.join(","))?);
    push(pairs, "port", decode(&ports.join(","))?);
    Ok(())
}

fn split_port(host: &str) -> Result<(&str, &str), SyntaxError> {
    let Some(bracketed) = host.strip_prefix('[') else {
        return Ok(host.split_once(':').unwrap_or((host, "")));
    };
    let (address, behind) = bracketed.split_once(']').ok_or(SyntaxError::Brackets)?;
    let port = match behind {
        "" => "",
        _ => behind.strip_prefix(':').ok_or(SyntaxError::Brackets)?,
    };
    if address.is_empty() { Err(SyntaxError::Brackets) } else { Ok((address, port)) }
}

fn parse_parameter(parameter: &str) -> Result<(String, String), SyntaxError> {
    let (keyword, value) = parameter.split_once('=').ok_or(SyntaxError::Parameter)?;
    if value.contains('=') {
        return Err(SyntaxError::Parameter);
    }
    match (decode(keyword)?.as_str(), decode(value)?.as_str()) {
        // libpq's one exception, for JDBC's sake.
        ("ssl", "true") => Ok(("sslmode".to_owned(), "require".to_owned())),
        (keyword, value) => Ok((keyword.to_owned(), value.to_owned())),
    }
}

fn push(pairs: &mut Pairs, keyword: &str, value: String) {
    if !value.is_empty() {
        pairs.push((keyword.to_owned(), value));
    }
}

fn decode(text: &str) -> Result<String, SyntaxError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (&[high, low], behind) = behind.split_first_chunk().ok_or(SyntaxError::Percent)?;
        rest = behind;
        match hex(high)? << 4 | hex(low)? {
            0 => return Err(SyntaxError::ZeroByte),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| SyntaxError::NotUtf8)
}

fn hex(digit: u8) -> Result<u8, SyntaxError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(SyntaxError::Percent),
    }
}

const SCHEMES: &[&str] = &["postgresql://", "postgres://"];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(keyword, value)| ((*keyword).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn conninfo_strings_are_split_as_libpq_splits_them() {
        for (text, expected) in [
            ("", Ok(pairs(&[]))),
            ("  \t\n", Ok(pairs(&[]))),
            ("host=db port=5432", Ok(pairs(&[("host", "db"), ("port", "5432")]))),
            ("host = db\nport\t=\t5432 ", Ok(pairs(&[("host", "db"), ("port", "5432")]))),
            ("dbname='my db'", Ok(pairs(&[("dbname", "my db")]))),
            (r"dbname='it\'s \\ here'", Ok(pairs(&[("dbname", r"it's \ here")]))),
            (r"dbname=it\'s\ here", Ok(pairs(&[("dbname", "it's here")]))),
            ("host='' dbname=a", Ok(pairs(&[("host", ""), ("dbname", "a")]))),
            ("host= dbname=a", Ok(pairs(&[("host", "dbname=a")]))),
            ("dbname=a=b", Ok(pairs(&[("dbname", "a=b")]))),
            ("dbname='a'port=1", Ok(pairs(&[("dbname", "a"), ("port", "1")]))),
            ("dbname=a\\", Ok(pairs(&[("dbname", "a")]))),
            ("=x", Ok(pairs(&[("", "x")]))),
            ("host", Err(SyntaxError::NoEquals { at: 1 })),
            ("hôte=a db", Err(SyntaxError::NoEquals { at: 8 })),
            ("dbname='it''s'", Err(SyntaxError::NoEquals { at: 12 })),
            ("dbname='a", Err(SyntaxError::UnterminatedQuote)),
            (r"dbname='a\'", Err(SyntaxError::UnterminatedQuote)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn uris_are_split_as_libpq_splits_them() {
        for (text, expected) in [
            ("postgresql://", Ok(pairs(&[]))),
            ("postgres://db", Ok(pairs(&[("host", "db")]))),
            ("postgresql://db:1/app", Ok(pairs(&[("host", "db"), ("port", "1"), ("dbname", "app")]))),
            ("postgresql://db:/", Ok(pairs(&[("host", "db")]))),
            ("postgresql:///app?host=db", Ok(pairs(&[("dbname", "app"), ("host", "db")]))),
            ("postgresql://[::1]:1/app", Ok(pairs(&[("host", "::1"), ("port", "1"), ("dbname", "app")]))),
            ("postgresql://[fe80::1%25eth0]", Ok(pairs(&[("host", "fe80::1%eth0")]))),
            ("postgresql://a:1,[::1],c:3", Ok(pairs(&[("host", "a,::1,c"), ("port", "1,,3")]))),
            ("postgresql://a,b", Ok(pairs(&[("host", "a,b"), ("port", ",")]))),
            (
                "postgresql://u%20v:p%40w@db/x",
                Ok(pairs(&[("user", "u v"), ("password", "p@w"), ("host", "db"), ("dbname", "x")])),
            ),
            ("postgresql://u@db", Ok(pairs(&[("user", "u"), ("host", "db")]))),
            ("postgresql://db/m%C3%BCll%2Fx", Ok(pairs(&[("host", "db"), ("dbname", "müll/x")]))),
            (
                "postgresql://db?sslmode=require&dbname=a%26b",
                Ok(pairs(&[("host", "db"), ("sslmode", "require"), ("dbname", "a&b")])),
            ),
            ("postgresql://db?ssl=true", Ok(pairs(&[("host", "db"), ("sslmode", "require")]))),
            ("postgresql://db?ssl=false", Ok(pairs(&[("host", "db"), ("ssl", "false")]))),
            ("postgresql://db?sslmode", Err(SyntaxError::Parameter)),
            ("postgresql://db?sslmode=a=b", Err(SyntaxError::Parameter)),
            ("postgresql://[::1", Err(SyntaxError::Brackets)),
            ("postgresql://[]", Err(SyntaxError::Brackets)),
            ("postgresql://[::1]5432", Err(SyntaxError::Brackets)),
            ("postgresql://db/%", Err(SyntaxError::Percent)),
            ("postgresql://db/%4", Err(SyntaxError::Percent)),
            ("postgresql://db/%zz", Err(SyntaxError::Percent)),
            ("postgresql://db/%00", Err(SyntaxError::ZeroByte)),
            ("postgresql://db/%ff", Err(SyntaxError::NotUtf8)),
            ("postgresql://u:1/2@db/app", Err(SyntaxError::AtSign)),
            ("jdbc:postgresql://db/app", Err(SyntaxError::Scheme)),
            ("postgresql+asyncpg://db/app", Err(SyntaxError::Scheme)),
            ("PostgreSQL://db/app", Err(SyntaxError::Scheme)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    fn quote(value: &str) -> String {
        format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
    }

    fn encode(value: &str) -> String {
        value.bytes().fold(String::new(), |mut encoded, byte| {
            let _ = write!(encoded, "%{byte:02X}");
            encoded
        })
    }

    proptest! {
        #[test]
        fn quoted_values_come_back(host in ".*", database in ".*") {
            let text = format!("host={} dbname = {}", quote(&host), quote(&database));
            prop_assert_eq!(parse(&text), Ok(pairs(&[("host", &host), ("dbname", &database)])));
        }

        #[test]
        fn encoded_values_come_back(host in "[^\0]+", database in "[^\0]+") {
            let text = format!("postgresql://{}/{}?options={}", encode(&host), encode(&database), encode(&host));
            prop_assert_eq!(parse(&text), Ok(pairs(&[("host", &host), ("dbname", &database), ("options", &host)])));
        }

        #[test]
        fn no_text_panics(text in ".*", uri in "postgres(ql)?://[a@:/?,%\\[\\]=&1é]*", words in "[a ='\\\\é]*") {
            let _ = (parse(&text), parse(&uri), parse(&words));
        }
    }
}
