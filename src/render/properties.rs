//! `properties`: for `java.util.Properties`, with the names that a JDBC pool has: `url`, `username`, `password`.

use std::fmt::Write as _;

use super::buffer::Buffer;
use super::{Secret, Target, uri};

pub(super) fn write(secret: &Secret<'_>, target: Option<&Target<'_>>, out: &mut Buffer) {
    // The driver knows no Unix socket.
    if let Some(target) = target.filter(|target| target.hosts.iter().all(|(host, _)| !host.starts_with('/')))
    {
        let mut url = Buffer::default();
        jdbc(target, &mut url);
        property("url", &url.into_text(), out);
    }
    property("username", secret.username, out);
    property("password", secret.password, out);
}

/// The driver's URL, without a credential.
fn jdbc(target: &Target<'_>, out: &mut Buffer) {
    out.push_str("jdbc:postgresql:");
    for (number, (host, port)) in target.hosts.iter().enumerate() {
        out.push_str(if number == 0 { "//" } else { "," });
        let _ =
            if host.contains(':') { write!(out, "[{host}]:{port}") } else { write!(out, "{host}:{port}") };
    }
    out.push('/');
    uri::encoded(target.database, out);
    let mut before = '?';
    for &(keyword, value) in &target.options {
        let Some((name, value)) = parameter(keyword, value) else { continue };
        out.push(before);
        before = '&';
        out.push_str(name);
        out.push('=');
        uri::encoded(value, out);
    }
}

/// The driver's word for what libpq's means.
fn parameter<'a>(keyword: &str, value: &'a str) -> Option<(&'static str, &'a str)> {
    Some(match (keyword, value) {
        ("sslmode", _) => ("sslmode", value),
        // Java's own store takes the place of the system's.
        ("sslrootcert", "system") => ("sslfactory", "org.postgresql.ssl.DefaultJavaSSLFactory"),
        ("sslrootcert", _) => ("sslrootcert", value),
        ("connect_timeout", _) => ("connectTimeout", value),
        ("target_session_attrs", "read-write" | "primary") => ("targetServerType", "primary"),
        ("target_session_attrs", "read-only" | "standby") => ("targetServerType", "secondary"),
        ("target_session_attrs", "prefer-standby") => ("targetServerType", "preferSecondary"),
        _ => return None,
    })
}

/// `java.util.Properties.load`: what is not plain ASCII as `\uXXXX`, so that the reader's encoding does not matter.
pub(super) fn property(name: &str, value: &str, out: &mut Buffer) {
    out.push_str(name);
    out.push('=');
    for (at, character) in value.char_indices() {
        match character {
            '\\' | ':' | '=' | '#' | '!' => {
                out.push('\\');
                out.push(character);
            }
            // White space in front of a value is not of it.
            ' ' if at == 0 => out.push_str("\\ "),
            ' '..='~' => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
    out.push('\n');
}
