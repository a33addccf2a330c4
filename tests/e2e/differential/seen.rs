//! What was heard, in words that can be compared and read.

use std::fmt;

use super::play::Heard;
use crate::raw::Message;

/// One thing heard, its parts named.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) what: String,
    pub(super) parts: Vec<(String, String)>,
}

impl Seen {
    pub(super) fn of(heard: &Heard) -> Self {
        match heard {
            Heard::Byte(byte) => Self::plain("byte", vec![("is", byte.escape_ascii().to_string())]),
            Heard::Tls(protocol) => {
                let protocol = protocol.as_deref().map(|protocol| protocol.escape_ascii().to_string());
                Self::plain("TLS", vec![("protocol", protocol.unwrap_or_else(|| "none".to_owned()))])
            }
            Heard::End { behind, is_reset } => {
                let how = if *is_reset { "reset" } else { "orderly" };
                let mut parts = vec![("is", how.to_owned())];
                if !behind.is_empty() {
                    parts.push(("behind", behind.escape_ascii().to_string()));
                }
                Self::plain("end", parts)
            }
            Heard::Message(message) => Self::message(message),
        }
    }

    fn message(message: &Message) -> Self {
        let mut body = Body(&message.body);
        let parts = body.parts(message.tag).filter(|_| body.0.is_empty());
        let parts =
            parts.unwrap_or_else(|| vec![("body".to_owned(), message.body.escape_ascii().to_string())]);
        Self { what: message.tag.escape_ascii().to_string(), parts }
    }

    fn plain(what: &str, parts: Vec<(&str, String)>) -> Self {
        let parts = parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { what: what.to_owned(), parts }
    }

    /// Whether it is this message.
    pub(super) fn is(&self, what: &str) -> bool {
        self.what == what
    }

    pub(super) fn part(&self, name: &str) -> Option<&str> {
        self.parts.iter().find(|(part, _)| part == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn part_mut(&mut self, name: &str) -> Option<&mut String> {
        self.parts.iter_mut().find(|(part, _)| part == name).map(|(_, value)| value)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.parts.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// A message's body that is being read. PostgreSQL manual, "Message Formats".
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    /// `None` where it is not what its tag says.
    fn parts(&mut self, tag: u8) -> Option<Vec<(String, String)>> {
        let mut parts = Vec::new();
        let mut add = |name: &str, value: String| parts.push((name.to_owned(), value));
        match tag {
            b'R' => {
                add("request", self.int32()?.to_string());
                add("data", self.rest());
            }
            b'S' => {
                add("name", self.string()?);
                add("value", self.string()?);
            }
            b'K' => {
                add("pid", self.int32()?.to_string());
                add("secret", self.rest());
            }
            b'E' | b'N' => loop {
                match self.byte()? {
                    0 => break,
                    field => add(&field.escape_ascii().to_string(), self.string()?),
                }
            },
            b'v' => {
                add("newest", format!("{:#x}", self.int32()?));
                for _ in 0..self.int32()? {
                    add("unknown", self.string()?);
                }
            }
            b'A' => {
                add("pid", self.int32()?.to_string());
                add("channel", self.string()?);
                add("payload", self.string()?);
            }
            b'T' => {
                for _ in 0..self.int16()? {
                    add("column", self.string()?);
                    add("table", self.int32()?.to_string());
                    add("number", self.int16()?.to_string());
                    add("type", self.int32()?.to_string());
                    add("size", self.int16()?.to_string());
                    add("modifier", self.int32()?.to_string());
                    add("format", self.int16()?.to_string());
                }
            }
            b'D' => {
                for _ in 0..self.int16()? {
                    let value = self.value()?;
                    add("value", value);
                }
            }
            b't' => {
                for _ in 0..self.int16()? {
                    add("type", self.int32()?.to_string());
                }
            }
            b'V' => add("value", self.value()?),
            b'C' => add("tag", self.string()?),
            b'Z' => add("status", self.rest()),
            _ => add("body", self.rest()),
        }
        Some(parts)
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn int16(&mut self) -> Option<i16> {
        let (&bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(i16::from_be_bytes(bytes))
    }

    fn int32(&mut self) -> Option<i32> {
        let (&bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(i32::from_be_bytes(bytes))
    }

    fn string(&mut self) -> Option<String> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        let string = self.0[..end].escape_ascii().to_string();
        self.0 = &self.0[end + 1..];
        Some(string)
    }

    fn value(&mut self) -> Option<String> {
        match self.int32()? {
            -1 => Some("NULL".to_owned()),
            len => {
                let (value, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
                self.0 = rest;
                Some(format!("{:?}", value.escape_ascii().to_string()))
            }
        }
    }

    fn rest(&mut self) -> String {
        std::mem::take(&mut self.0).escape_ascii().to_string()
    }
}
