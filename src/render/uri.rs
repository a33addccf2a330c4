//! `uri`: libpq's connection URI, and nothing behind it, not even a line break.
//!
//! PostgreSQL manual, "Connection URIs".

use std::fmt::Write as _;

use super::buffer::Buffer;
use super::{Secret, Target, go};

pub(super) fn write(secret: &Secret<'_>, target: &Target<'_>, out: &mut Buffer) {
    out.push_str("postgresql://");
    encoded(secret.username, out);
    out.push(':');
    encoded(secret.password, out);
    for (number, (host, port)) in target.hosts.iter().enumerate() {
        out.push(if number == 0 { '@' } else { ',' });
        if host.contains(':') {
            let _ = write!(out, "[{host}]");
        } else {
            encoded(host, out);
        }
        let _ = write!(out, ":{port}");
    }
    out.push('/');
    encoded(target.database, out);
    for (number, (keyword, value)) in target.options.iter().enumerate() {
        out.push(if number == 0 { '?' } else { '&' });
        out.push_str(keyword);
        out.push('=');
        encoded(value, out);
    }
}

/// Nothing but letters, digits and `-_.~` stands for itself everywhere in a URI.
pub(super) fn encoded(text: &str, out: &mut Buffer) {
    text.bytes().for_each(|byte| go::percent(byte, out));
}
