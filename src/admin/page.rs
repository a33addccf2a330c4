//! `/`: the status for people, as one page that needs nothing else. Pure but for the headers.
//!
//! All text goes through [`Text`], which leaves nothing of it to be taken for HTML; names that a client chose stand in
//! `bdi` as well, so that they do not turn the letters around them. The page says all without its script, which only
//! asks for the next one.

mod files;
mod settings;
mod text;

use std::fmt::{self, Write};
use std::sync::OnceLock;

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use super::blame;
use super::status::{ErrorStatus, FiguresStatus, HostStatus, SessionStatus, Status};
use super::text::{self as values, Bytes, Millis, span};
use super::verdict::Finding;
use crate::lease::{ChainStatus, GenerationStatus};

use text::{Ago, Text};

/// The answer to `/`.
pub(super) fn answer(status: &Status) -> Response {
    match render(status) {
        Ok(page) => (StatusCode::OK, headers(), page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Nothing but what is in the page is loaded or run, and no other page may hold it.
fn headers() -> [(HeaderName, &'static str); 2] {
    static POLICY: OnceLock<String> = OnceLock::new();
    let policy = POLICY.get_or_init(|| {
        let hash = |text: &str| STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes()));
        format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        )
    });
    [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)]
}

/// The page as text.
pub(super) fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut out = String::with_capacity(16 * 1024);
    let place = match (&status.pod.namespace, &status.pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.clone(),
        _ => "pglease".to_owned(),
    };
    let worst = status.verdict.first().map(heading).unwrap_or_default();
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0} – {1}</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><link rel=\"icon\" href=\"data:,\">\
         <noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript><style>{STYLE}</style></head>\n<body>\
         <p class=\"gone\" role=\"status\" hidden>pglease does not answer any more. What is below is old.</p>\n<main>\
         <header><h1>{1}</h1><p class=\"soft\">pglease {2}, {3}, up {4}, {5} of {6} sessions</p></header>\n",
        Text(&worst),
        Text(&place),
        status.version,
        status.phase,
        span(status.process.age_seconds),
        status.sessions.open,
        status.sessions.max,
    )?;
    out.push_str("<section aria-label=\"Verdict\">\n");
    status.verdict.iter().try_for_each(|finding| write_finding(&mut out, finding))?;
    out.push_str("</section>\n<section><h2>Credentials</h2>\n");
    status.chains.iter().try_for_each(|chain| write_chain(&mut out, chain, status))?;
    out.push_str("</section>\n");
    write_vault(&mut out, status)?;
    write_upstreams(&mut out, status)?;
    write_sessions(&mut out, status)?;
    files::write(&mut out, status)?;
    write_rest(&mut out, status)?;
    settings::write(&mut out, status)?;
    write!(
        out,
        "<footer class=\"soft\"><p>As of {}. The same as JSON: <a href=\"/status\">/status</a></p></footer>\
         </main>\n<script>{SCRIPT}</script></body></html>\n",
        text::utc(status.now)
    )?;
    Ok(out)
}

fn heading(finding: &Finding) -> String {
    values::heading(finding.fault.as_str(), finding.severity.as_str())
}

fn write_finding(out: &mut String, finding: &Finding) -> fmt::Result {
    let class = finding.severity.as_str();
    writeln!(
        out,
        "<div class=\"finding {class}\"><b>{}</b><p>{}</p><p class=\"soft\">{}</p></div>",
        Text(&heading(finding)),
        Text(&finding.says),
        Text(&finding.cure)
    )
}

fn write_chain(out: &mut String, chain: &ChainStatus, status: &Status) -> fmt::Result {
    let class = match chain.state {
        "serving" | "renewing" | "rotating" if chain.current.is_some() => "good",
        "degraded" | "fetch" | "boot" => "warn",
        _ => "bad",
    };
    write!(
        out,
        "<div class=\"card\"><h3><code>{}</code> <small>{}, <span class=\"{class}\">{}</span></small></h3>",
        Text(&chain.vault_path),
        chain.kind,
        chain.state
    )?;
    if chain.clients_waiting > 0 {
        write!(out, "<p class=\"bad\">{} clients wait for a credential</p>", chain.clients_waiting)?;
    }
    if let Some(rotation) = &chain.rotation {
        let wait =
            rotation.in_seconds.map(|seconds| format!(", goes on in {}", span(seconds))).unwrap_or_default();
        let trigger = rotation.trigger.unwrap_or("first");
        write!(out, "<p>Next credential ({trigger}): {}{wait}</p>", rotation.attempt)?;
    }
    if let Some(error) = &chain.last_error {
        let (says, ago) = (Text(&error.says), Ago(status.now, error.at));
        write!(out, "<p class=\"soft\">Last error, {ago}: {says}</p>")?;
    }
    out.push_str("<div class=\"gens\">\n");
    chain.generations.iter().rev().try_for_each(|generation| write_generation(out, generation))?;
    out.push_str("</div></div>\n");
    Ok(())
}

fn write_generation(out: &mut String, generation: &GenerationStatus) -> fmt::Result {
    let proven = if generation.proven { "" } else { ", unproven" };
    let sessions = match generation.holders {
        1 => "1 session".to_owned(),
        holders => format!("{holders} sessions"),
    };
    write!(
        out,
        "<div class=\"gen\"><p><b>{}</b> {}{proven}, {sessions} {}</p><p class=\"soft\"><code>{}</code></p>",
        Text(&generation.generation),
        generation.state,
        generation.standing,
        Text(&generation.db_role)
    )?;
    let is_final = generation.end_is_final;
    write_bar(out, "Lease", generation.lease_seconds, generation.lease_ttl_seconds, is_final)?;
    write_bar(out, "Token", generation.token_seconds, generation.token_ttl_seconds, false)?;
    write_bar(out, "Password", generation.password_seconds, generation.password_ttl_seconds, false)?;
    out.push_str("</div>\n");
    Ok(())
}

/// What is left, as text and as a bar; nothing where there is no end.
fn write_bar(
    out: &mut String,
    of: &str,
    left: Option<u64>,
    whole: Option<u64>,
    is_final: bool,
) -> fmt::Result {
    let (Some(left), Some(whole)) = (left, whole.filter(|whole| *whole > 0)) else { return Ok(()) };
    let per_mille = left.min(whole) * 1000 / whole;
    let low = if per_mille < LOW_PER_MILLE { " low" } else { "" };
    let end = if is_final { "ends in" } else { "left" };
    let (left, whole) = (span(left), span(whole));
    let words = if is_final { format!("{end} {left}") } else { format!("{left} of {whole} {end}") };
    writeln!(
        out,
        "<p class=\"label\"><span>{of}</span><span>{words}</span></p><svg class=\"bar{low}\" viewBox=\"0 0 100 1\" \
         preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{of}: {words}\"><rect width=\"{}.{}\" \
         height=\"1\"/></svg>",
        per_mille / 10,
        per_mille % 10
    )
}

fn write_sessions(out: &mut String, status: &Status) -> fmt::Result {
    let sessions = &status.sessions;
    let states = &sessions.states;
    writeln!(out, "<section><h2>Sessions <small>{} of {}</small></h2>", sessions.open, sessions.max)?;
    out.push_str("<ul class=\"tags\">");
    for (count, of) in [
        (states.active, "active"),
        (states.in_transaction, "in transaction"),
        (states.idle, "idle"),
        (states.login, "logging in"),
        (states.waiting, "waiting for a credential"),
        (states.closing, "closing"),
    ] {
        write!(out, "<li>{count} {of}</li>")?;
    }
    out.push_str("</ul>\n");
    if sessions.threads.len() > 1 {
        let each: Vec<_> = sessions.threads.iter().map(|thread| thread.connections.to_string()).collect();
        writeln!(out, "<p class=\"soft\">Connections of each thread: {}</p>", each.join(", "))?;
    }
    if !sessions.list.is_empty() {
        write_table_head(
            out,
            "wide",
            &[
                "Session",
                "State",
                "For",
                "Age",
                "Database",
                "Application",
                "Client",
                "Credential",
                "Pid",
                "In",
                "Out",
            ],
        )?;
        sessions.list.iter().take(MAX_ROWS).try_for_each(|session| write_session(out, session))?;
        out.push_str("</tbody></table></div>\n");
    }
    if sessions.open > MAX_ROWS {
        let more = sessions.open - MAX_ROWS;
        write!(
            out,
            "<p class=\"soft\">The {MAX_ROWS} oldest; {more} more: <a href=\"/status\">/status</a></p>"
        )?;
    }
    out.push_str("</section>\n");
    Ok(())
}

/// Rows of a `wide` one stand one below the other where there is not enough room.
fn write_table_head(out: &mut String, class: &str, columns: &[&str]) -> fmt::Result {
    write!(out, "<div class=\"card\"><table class=\"{class}\"><thead><tr>")?;
    columns.iter().try_for_each(|column| write!(out, "<th scope=\"col\">{column}</th>"))?;
    out.push_str("</tr></thead><tbody>\n");
    Ok(())
}

fn write_session(out: &mut String, session: &SessionStatus) -> fmt::Result {
    let generation = session.generation.as_deref().unwrap_or("–");
    let pid = session.pid.map_or_else(|| "–".to_owned(), |pid| pid.to_string());
    writeln!(
        out,
        "<tr><td data-of=\"Session\">{}</td><td data-of=\"State\">{}</td><td data-of=\"For\">{}</td>\
         <td data-of=\"Age\">{}</td><td data-of=\"Database\" class=\"any\"><bdi>{}</bdi></td>\
         <td data-of=\"Application\" class=\"any\"><bdi>{}</bdi></td><td data-of=\"Client\">{}</td><td data-of=\"Credential\">{}</td>\
         <td data-of=\"Pid\">{pid}</td><td data-of=\"In\" class=\"n\">{}</td><td data-of=\"Out\" class=\"n\">{}</td></tr>",
        session.session,
        session.state.replace('_', " "),
        span(session.state_seconds),
        span(session.age_seconds),
        Text(&session.database),
        Text(&session.application_name),
        Text(&session.client),
        Text(generation),
        Bytes(session.frontend_bytes),
        Bytes(session.backend_bytes)
    )
}

fn write_vault(out: &mut String, status: &Status) -> fmt::Result {
    let vault = &status.vault;
    write!(
        out,
        "<section><h2>Vault</h2><div class=\"card\"><dl><dt>Address</dt><dd><code>{}</code></dd><dt>Login</dt><dd>{}\
         </dd><dt>Last answer</dt><dd>",
        Text(&vault.address),
        vault.login_method
    )?;
    write_ago(out, vault.last_ok_at, status.now)?;
    out.push_str("</dd>");
    if let Some(error) = &vault.last_error {
        let code = error.code.as_deref();
        let blame = blame::of_vault(error.operation, error.kind, code, &error.says, vault.login_method);
        write_error(out, error, blame.cure, status.now)?;
    }
    out.push_str("</dl></div>\n");
    if !vault.requests.is_empty() {
        write_table_head(out, "few", &["Request", "Sent", "Failed", "p50", "p99"])?;
        for requests in &vault.requests {
            write_figures(out, "Request", &requests.operation, &requests.figures)?;
        }
        out.push_str("</tbody></table></div>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

fn write_upstreams(out: &mut String, status: &Status) -> fmt::Result {
    out.push_str("<section><h2>PostgreSQL</h2>\n");
    status.upstreams.hosts.iter().try_for_each(|host| write_host(out, host, status.now))?;
    write_table_head(out, "few", &["Logins", "Sent", "Failed", "p50", "p99"])?;
    write_figures(out, "Logins", "of sessions", &status.upstreams.logins)?;
    out.push_str("</tbody></table></div></section>\n");
    Ok(())
}

fn write_host(out: &mut String, host: &HostStatus, now: u64) -> fmt::Result {
    write!(
        out,
        "<div class=\"card\"><h3><code>{}</code></h3><dl><dt>Logins</dt><dd>{}, {} failed</dd><dt>Last login</dt><dd>",
        Text(&host.host),
        host.logins,
        host.failures
    )?;
    write_ago(out, host.last_ok_at, now)?;
    if let Some(seconds) = host.last_ok_seconds {
        write!(out, ", in {}", Millis(Some(seconds)))?;
    }
    out.push_str("</dd>");
    if let Some(error) = &host.last_error {
        let blame = blame::of_upstream(error.kind, error.code.as_deref(), &error.says);
        write_error(out, error, blame.cure, now)?;
    }
    out.push_str("</dl></div>\n");
    Ok(())
}

fn write_ago(out: &mut String, at: Option<u64>, now: u64) -> fmt::Result {
    match at {
        Some(at) => write!(out, "{}", Ago(now, at)),
        None => write!(out, "none yet"),
    }
}

fn write_error(out: &mut String, error: &ErrorStatus, cure: &str, now: u64) -> fmt::Result {
    let code = error.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
    write!(
        out,
        "<dt>Last error</dt><dd>{}, {} {}{}: {}<br><span class=\"soft\">{}</span></dd>",
        Ago(now, error.at),
        error.operation,
        error.kind,
        Text(&code),
        Text(&error.says),
        Text(cure)
    )
}

fn write_figures(out: &mut String, column: &str, of: &str, figures: &FiguresStatus) -> fmt::Result {
    let failed = if figures.failures > 0 { " class=\"bad\"" } else { "" };
    writeln!(
        out,
        "<tr><td data-of=\"{column}\">{}</td><td data-of=\"Sent\">{}</td><td data-of=\"Failed\"{failed}>{}</td>\
         <td data-of=\"p50\">{}</td><td data-of=\"p99\">{}</td></tr>",
        Text(of),
        figures.count,
        figures.failures,
        Millis(figures.p50_seconds),
        Millis(figures.p99_seconds)
    )
}

fn write_rest(out: &mut String, status: &Status) -> fmt::Result {
    out.push_str("<section><h2>Routes</h2>\n");
    write_table_head(out, "wide", &["Database", "User", "Upstream", "Credential", "Role", "At lease end"])?;
    for route in &status.routes {
        let optional = if route.optional { " (optional)" } else { "" };
        writeln!(
            out,
            "<tr><td data-of=\"Database\">{}{optional}</td><td data-of=\"User\">{}</td><td data-of=\"Upstream\">{}</td>\
             <td data-of=\"Credential\">{}</td><td data-of=\"Role\">{}</td><td data-of=\"At lease end\">{}</td></tr>",
            Text(&route.database),
            Text(&route.user),
            Text(&route.upstream),
            Text(&route.vault_path),
            Text(route.startup_role.as_deref().unwrap_or("–")),
            route.at_lease_end
        )?;
    }
    out.push_str("</tbody></table></div></section>\n<section><h2>Process</h2><div class=\"card\"><dl>");
    let process = &status.process;
    write!(out, "<dt>Started</dt><dd>{}, process {}</dd>", Ago(status.now, process.started_at), process.pid)?;
    if let (Some(open), Some(max)) = (process.descriptors, process.max_descriptors) {
        write!(out, "<dt>Descriptors</dt><dd>{open} of {max}</dd>")?;
    }
    if let Some(memory) = process.memory_bytes {
        write!(out, "<dt>Memory</dt><dd>{}</dd>", Bytes(memory))?;
    }
    out.push_str("</dl></div></section>\n");
    Ok(())
}

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/refresh.js");
/// Sessions in the table: more is nothing to read.
const MAX_ROWS: usize = 100;
/// From here a bar is red.
const LOW_PER_MILLE: u64 = 150;

#[cfg(test)]
mod tests;
