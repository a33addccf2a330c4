//! `pg_service`: one section of libpq's service file. It has no quotes and no escapes: what stands behind `=` is the
//! value, without the white space at its end.
//!
//! PostgreSQL manual, "The Connection Service File".

use super::buffer::Buffer;
use super::{RenderError, Secret, Target};

pub(super) fn write(secret: &Secret<'_>, target: &Target<'_>, out: &mut Buffer) -> Result<(), RenderError> {
    let (hosts, ports) = target.host_list();
    let place = [("host", hosts.as_str()), ("port", ports.as_str()), ("dbname", target.database)];
    let who = [("user", secret.username), ("password", secret.password)];

    out.push('[');
    out.push_str(target.service);
    out.push_str("]\n");
    for (keyword, value) in place.into_iter().chain(who).chain(target.options.iter().copied()) {
        if value.is_empty() {
            continue;
        }
        if value.contains('\n') {
            return Err(RenderError::LineBreak { format: "pg_service" });
        }
        if value.ends_with(|character: char| character.is_ascii_whitespace() || character == '\x0b') {
            return Err(RenderError::TrailingSpace);
        }
        if keyword.len() + 1 + value.len() > MAX_LINE_LEN {
            return Err(RenderError::LongLine { max_len: MAX_LINE_LEN });
        }
        out.push_str(keyword);
        out.push('=');
        out.push_str(value);
        out.push('\n');
    }
    Ok(())
}

/// libpq has a place of 1024 bytes, with the line break and the zero byte.
const MAX_LINE_LEN: usize = 1020;
