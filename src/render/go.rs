//! Go's ways of writing a string, byte for byte: `encoding/json`, `strconv.Quote`, `net/url.QueryEscape`,
//! `unicode.ToUpper`.

use std::fmt::Write as _;

use super::buffer::Buffer;

/// Whether `<`, `>` and `&` are escaped in JSON, as `json.Marshal` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Html {
    Escaped,
    AsIs,
}

/// `json.Marshal`, or an `Encoder` with `SetEscapeHTML(false)`.
pub(crate) fn json_string(text: &str, html: Html, out: &mut Buffer) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' if html == Html::Escaped => unicode_escape(character, out),
            '\0'..='\x1f' | '\u{2028}' | '\u{2029}' => unicode_escape(character, out),
            other => out.push(other),
        }
    }
    out.push('"');
}

fn unicode_escape(character: char, out: &mut Buffer) {
    let _ = write!(out, "\\u{:04x}", u32::from(character));
}

/// `strconv.Quote`, which is `%q` of `fmt`.
pub(crate) fn quote(text: &str, out: &mut Buffer) {
    out.push('"');
    for character in text.chars() {
        let code = u32::from(character);
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            other if is_print(other) => out.push(other),
            '\0'..='\x7f' => {
                let _ = write!(out, "\\x{code:02x}");
            }
            '\u{80}'..='\u{ffff}' => {
                let _ = write!(out, "\\u{code:04x}");
            }
            _ => {
                let _ = write!(out, "\\U{code:08x}");
            }
        }
    }
    out.push('"');
}

/// `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols, and the space of ASCII. `escape_debug` keeps the
/// same ones behind another character.
fn is_print(character: char) -> bool {
    match character {
        ' '..='~' => true,
        '\0'..='\u{a0}' => false,
        other => {
            let mut pair = String::from("a");
            pair.push(other);
            pair.escape_debug().nth(1) == Some(other)
        }
    }
}

/// `url.QueryEscape`, which is `urlquery`.
pub(crate) fn query_escape(text: &str, out: &mut Buffer) {
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            _ => percent(byte, out),
        }
    }
}

/// The unreserved characters of RFC 3986 as they are, others as `%XX`.
pub(crate) fn percent(byte: u8, out: &mut Buffer) {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
        _ => {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// `unicode.ToUpper`: one character for one.
pub(crate) fn to_upper(character: char) -> char {
    match (character, one(character.to_uppercase())) {
        (_, Some(upper)) => upper,
        // Greek with an iota below: of two letters in full, of one here.
        ('\u{1f80}'..='\u{1faf}', None) => char::from_u32(u32::from(character) | 8).unwrap_or(character),
        ('\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}', None) => {
            char::from_u32(u32::from(character) + 9).unwrap_or(character)
        }
        (_, None) => character,
    }
}

/// `unicode.ToLower`.
pub(crate) fn to_lower(character: char) -> char {
    // The capital dotted I is of two characters in full.
    one(character.to_lowercase()).unwrap_or('i')
}

fn one(mut characters: impl Iterator<Item = char>) -> Option<char> {
    let first = characters.next()?;
    characters.next().is_none().then_some(first)
}
