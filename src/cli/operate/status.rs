//! `/status` as text for a terminal. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use super::{items, last_error, number, word};
use crate::admin::text::{Bytes, Millis, end_in_words, heading, span};

/// Who is at fault first; then the process, its chains with their generations, Vault, PostgreSQL and sessions.
pub(super) fn text(status: &Value) -> String {
    let mut text = String::new();
    for finding in items(status, "verdict") {
        let heading = heading(word(finding, "fault"), word(finding, "severity"));
        let _ = writeln!(text, "{heading}\n  {}\n  {}", word(finding, "says"), word(finding, "cure"));
    }
    let (process, sessions) = (&status["process"], &status["sessions"]);
    let _ = writeln!(
        text,
        "\npglease {}: {}, up {}, {} of {} sessions, log at {}",
        word(status, "version"),
        word(status, "phase"),
        span(number(process, "age_seconds")),
        number(sessions, "open"),
        number(sessions, "max"),
        word(&status["log"], "level")
    );
    write_settings(&mut text, status);
    for chain in items(status, "chains") {
        write_chain(&mut text, chain);
    }
    for file in items(status, "files") {
        write_file(&mut text, file);
    }
    for certificate in items(status, "certificates") {
        let end = end_in_words(number(status, "now"), number(certificate, "ends_at"));
        let _ = writeln!(
            text,
            "certificate {} ({}): {end}",
            word(certificate, "file"),
            word(certificate, "setting")
        );
    }
    write_vault(&mut text, status);
    write_upstreams(&mut text, status);
    write_sessions(&mut text, sessions);
    text
}

/// Of a process that was started without a file there is nothing to say.
fn write_settings(text: &mut String, status: &Value) {
    let config = &status["config"];
    let Some(file) = config["file"].as_str() else { return };
    let _ = writeln!(text, "settings {file}: as read {}", ago(status, config, "loaded_at"));
    let error = &config["last_error"];
    if !error.is_null() {
        let _ = writeln!(text, "  of no use since {}: {}", ago(status, error, "at"), word(error, "error"));
    }
    let keys: Vec<&str> = items(config, "needs_restart").iter().filter_map(Value::as_str).collect();
    if !keys.is_empty() {
        let _ = writeln!(text, "  waits for a restart: {}", keys.join(", "));
    }
}

fn write_chain(text: &mut String, chain: &Value) {
    let _ = writeln!(
        text,
        "{} ({}): {}, {} waiting{}{}",
        word(chain, "vault_path"),
        word(chain, "kind"),
        word(chain, "state"),
        number(chain, "clients_waiting"),
        rotation(chain),
        last_error(chain, ", failed last: "),
    );
    for generation in items(chain, "generations") {
        let _ = writeln!(
            text,
            "  {:4} {:10} {}, lease {} {}, token {}{}, {}, {}{}",
            word(generation, "generation"),
            word(generation, "state"),
            word(generation, "db_role"),
            generation.get("lease").and_then(Value::as_str).unwrap_or("none"),
            left(generation, "lease"),
            left(generation, "token"),
            password(generation),
            sessions(number(generation, "holders")),
            word(generation, "standing"),
            if generation.get("proven") == Some(&Value::Bool(true)) { "" } else { ", unproven" },
        );
    }
}

fn write_file(text: &mut String, file: &Value) {
    let kept: Vec<_> = items(file, "kept").iter().map(|kept| word(kept, "generation")).collect();
    let kept = if kept.is_empty() { String::new() } else { format!(", {} kept alive", kept.join(", ")) };
    let told = match file.pointer("/on_change/told").and_then(Value::as_bool) {
        Some(true) => ", reader told",
        Some(false) => ", reader not told",
        None => "",
    };
    let _ = writeln!(
        text,
        "file {} ({}): {}, {} of {}{kept}{told}",
        word(file, "path"),
        word(file, "format"),
        word(file, "state"),
        file.get("generation").and_then(Value::as_str).unwrap_or("nothing"),
        word(file, "vault_path"),
    );
}

fn sessions(count: u64) -> String {
    if count == 1 { "1 session".to_owned() } else { format!("{count} sessions") }
}

/// Of a static role's password that serves, until Vault changes it.
fn password(generation: &Value) -> String {
    let is_told = generation.get("password_seconds").is_some_and(Value::is_u64);
    if is_told { format!(", password {}", left(generation, "password")) } else { String::new() }
}

fn left(generation: &Value, of: &str) -> String {
    let seconds = |name: String| generation.get(name).and_then(Value::as_u64).map(span);
    match (seconds(format!("{of}_seconds")), seconds(format!("{of}_ttl_seconds"))) {
        (Some(left), Some(whole)) => format!("({left} of {whole})"),
        (Some(left), None) => format!("({left})"),
        (None, _) => "(no end)".to_owned(),
    }
}

fn rotation(chain: &Value) -> String {
    let rotation = chain.get("rotation").unwrap_or(&Value::Null);
    if rotation.is_null() {
        return String::new();
    }
    let trigger = rotation.get("trigger").and_then(Value::as_str).unwrap_or("start");
    format!(", rotation ({trigger}) {}", word(rotation, "attempt"))
}

fn write_vault(text: &mut String, status: &Value) {
    let vault = &status["vault"];
    let _ = writeln!(
        text,
        "Vault {} ({}): last answer {}{}",
        word(vault, "address"),
        word(vault, "login_method"),
        ago(status, vault, "last_ok_at"),
        failed(status, vault)
    );
    for requests in items(vault, "requests") {
        let _ = writeln!(text, "  {:12} {}", word(requests, "operation"), figures(requests));
    }
}

fn write_upstreams(text: &mut String, status: &Value) {
    let upstreams = &status["upstreams"];
    for host in items(upstreams, "hosts") {
        let _ = writeln!(
            text,
            "PostgreSQL {}: {} logins, {} failed, last one {}{}",
            word(host, "host"),
            number(host, "logins"),
            number(host, "failures"),
            ago(status, host, "last_ok_at"),
            failed(status, host)
        );
    }
    let _ = writeln!(text, "  {:12} {}", "of sessions", figures(&upstreams["logins"]));
}

fn write_sessions(text: &mut String, sessions: &Value) {
    let threads = items(sessions, "threads");
    if threads.len() > 1 {
        let each: Vec<_> = threads.iter().map(|thread| number(thread, "connections").to_string()).collect();
        let _ = writeln!(text, "connections of each thread: {}", each.join(", "));
    }
    let list = items(sessions, "list");
    if !list.is_empty() {
        text.push_str("sessions, the oldest first\n");
    }
    for session in list.iter().take(MAX_ROWS) {
        let application = word(session, "application_name");
        let _ = writeln!(
            text,
            "  {:6} {:14} {:>10}, age {}, {}{}, from {}, {}, pid {}, in {}, out {}",
            word(session, "session"),
            word(session, "state").replace('_', " "),
            span(number(session, "state_seconds")),
            span(number(session, "age_seconds")),
            word(session, "database"),
            if application.is_empty() { String::new() } else { format!(" ({application})") },
            word(session, "client"),
            session["generation"].as_str().unwrap_or("no credential"),
            session["pid"].as_i64().map_or_else(|| "none".to_owned(), |pid| pid.to_string()),
            Bytes(number(session, "frontend_bytes")),
            Bytes(number(session, "backend_bytes")),
        );
    }
    let open = usize::try_from(number(sessions, "open")).unwrap_or(usize::MAX);
    if open > MAX_ROWS.min(list.len()) {
        let _ = writeln!(text, "  and {} more: --json", open - MAX_ROWS.min(list.len()));
    }
}

fn figures(of: &Value) -> String {
    let time = |name| Millis(of.get(name).and_then(Value::as_f64));
    format!(
        "{} sent, {} failed, p50 {}, p99 {}",
        number(of, "count"),
        number(of, "failures"),
        time("p50_seconds"),
        time("p99_seconds")
    )
}

fn ago(status: &Value, of: &Value, name: &str) -> String {
    match of.get(name).and_then(Value::as_u64) {
        Some(at) => format!("{} ago", span(number(status, "now").saturating_sub(at))),
        None => "none yet".to_owned(),
    }
}

fn failed(status: &Value, of: &Value) -> String {
    let error = &of["last_error"];
    if error.is_null() {
        return String::new();
    }
    format!("; last error {}: {}", ago(status, error, "at"), word(error, "says"))
}

/// Sessions one by one: more is for programs.
const MAX_ROWS: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the docs, which is held to what is answered.
    fn documented() -> Value {
        let docs = include_str!("../../../docs/status.md").split("<!-- status -->\n```json").nth(1).unwrap();
        serde_json::from_str(docs.split("```").next().unwrap()).unwrap()
    }

    #[test]
    fn first_lines_say_who_is_at_fault_and_what_to_do() {
        let text = text(&documented());
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("PostgreSQL: look at it"));
        assert!(
            lines.next().is_some_and(|says| says.contains("Vault could not make a user in PostgreSQL")),
            "{text}"
        );
        assert!(lines.next().is_some_and(|cure| cure.contains("Vault's log")), "{text}");
        for part in [
            "\npglease 0.1.0: serving, up 23 h 58 min, 12 of 1000 sessions, log at debug\n\
             settings /etc/pglease/pglease.toml: as read 30 min ago\n  of no use since 10 min ago: drain.grace = \"30s\"",
            "; make it at most that\n  waits for a restart: vault.address\n",
            "  g1   current    v-kubernet-db-app-Ym4W0K2jvA1cUeZx8o9q-1764115200, lease 0f3a9c4b7d21 (5 min 40 s of 1 h)",
            "certificate /etc/pglease/tls/tls.crt (listen.tls_cert_file): ends in 89 d\n",
            "Vault https://vault.vault.svc:8200 (kubernetes): last answer 3 min 30 s ago; last error 10 s ago: Vault answered",
            "  creds        3 sent, 1 failed, p50 12 ms, p99 24 ms\n",
            "PostgreSQL postgres:5432: 31 logins, 0 failed, last one 41 s ago\n",
            "  s7     in transaction       12 s, age 2 h, wizard (web), from 127.0.0.1:50312, g1, pid 4711, in 18 KiB",
            "  and 11 more: --json\n",
            "\nconnections of each thread: 7, 6\n",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }
}
