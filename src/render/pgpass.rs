//! `pgpass`: a line for each host, which libpq looks up by host, port, database and user.
//!
//! PostgreSQL manual, "The Password File".

use std::fmt::Write as _;

use super::buffer::Buffer;
use super::{RenderError, Secret, Target};

pub(super) fn write(secret: &Secret<'_>, target: &Target<'_>, out: &mut Buffer) -> Result<(), RenderError> {
    if [secret.username, secret.password].iter().any(|value| value.contains(['\n', '\r'])) {
        return Err(RenderError::LineBreak { format: "pgpass" });
    }
    for &(host, port) in &target.hosts {
        line(host, port, secret, target, out);
        if host.starts_with('/') {
            // libpq looks its default socket directory up under this name, and which one that is was chosen when it
            // was built.
            line("localhost", port, secret, target, out);
        }
    }
    Ok(())
}

fn line(host: &str, port: u16, secret: &Secret<'_>, target: &Target<'_>, out: &mut Buffer) {
    field(host, out);
    let _ = write!(out, ":{port}:");
    if target.database.is_empty() {
        out.push('*');
    } else {
        field(target.database, out);
    }
    for value in [secret.username, secret.password] {
        out.push(':');
        field(value, out);
    }
    out.push('\n');
}

pub(super) fn field(value: &str, out: &mut Buffer) {
    for character in value.chars() {
        if matches!(character, ':' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
}
