//! `env`: libpq's variables, for a shell's `. file` and for systemd's `EnvironmentFile=`.
//!
//! A value of letters and digits stands bare, so that Docker's `--env-file`, which knows no quotes, reads it too.

use super::buffer::Buffer;
use super::{Secret, Target};

pub(super) fn write(secret: &Secret<'_>, target: Option<&Target<'_>>, out: &mut Buffer) {
    variable("PGUSER", secret.username, out);
    variable("PGPASSWORD", secret.password, out);
    let Some(target) = target else { return };
    let (hosts, ports) = target.host_list();
    variable("PGHOST", &hosts, out);
    variable("PGPORT", &ports, out);
    if !target.database.is_empty() {
        variable("PGDATABASE", target.database, out);
    }
    for (keyword, value) in &target.options {
        if let Some((_, name)) = VARIABLES.iter().find(|(known, _)| known == keyword) {
            variable(name, value, out);
        }
    }
}

/// Within double quotes a shell and systemd agree on what `\` does; within single ones they do not.
pub(super) fn variable(name: &str, value: &str, out: &mut Buffer) {
    out.push_str(name);
    out.push('=');
    let is_bare = |character: char| character.is_ascii_alphanumeric() || "_-./:,@%+=".contains(character);
    if value.chars().all(is_bare) {
        out.push_str(value);
    } else {
        out.push('"');
        for character in value.chars() {
            if matches!(character, '"' | '\\' | '$' | '`') {
                out.push('\\');
            }
            out.push(character);
        }
        out.push('"');
    }
    out.push('\n');
}

/// PostgreSQL manual, "Environment Variables": keywords that have one.
const VARIABLES: &[(&str, &str)] = &[
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslsni", "PGSSLSNI"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("require_auth", "PGREQUIREAUTH"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
];
