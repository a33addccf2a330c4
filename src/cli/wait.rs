//! `pglease wait`: returns when the running pglease has all that it serves with, for what is to start after it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::http::Method;
use clap::{Arg, ArgMatches, Command};
use tokio::time::{self, Instant};

use super::operate::{ANSWER_LIMIT, POLL, items, last_error, parse, word};
use super::{Outcome, ask, refuse};
use crate::admin::client::{self, AskError};
use crate::config::{self, AdminConfig};

pub(super) fn command() -> Command {
    Command::new("wait")
        .about("Return when the running pglease can serve: for an application that starts beside it")
        .long_about(
            "Returns when /startup says that every route which is not optional has had a proven credential, with exit \
             code 0. A pglease that is not there yet is waited for. When the time is over it says what was missing, \
             with exit code 1.",
        )
        .arg(
            Arg::new(MAX)
                .long(MAX)
                .value_name("DURATION")
                .default_value("60s")
                .value_parser(|text: &str| humantime::parse_duration(text))
                .help("How long to wait; 0s asks once"),
        )
        .defer(|command| command.args(config::wait_flags()))
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let http = match config::load_http(matches, config::environment()) {
        Ok(http) => client::address(http.address, http.explicit),
        Err(errors) => return refuse(&errors),
    };
    // Only for more words.
    let admin = config::load_admin(matches, config::environment()).ok();
    let admin =
        admin.and_then(|AdminConfig { address, explicit, .. }| Some(client::address(address?, explicit)));
    let max = matches.get_one(MAX).copied().unwrap_or_default();
    ask(wait(http, admin, max))
}

/// Why the time was over before pglease could serve.
#[derive(Debug, thiserror::Error)]
#[error("not ready after {}: {reason}", humantime::format_duration(*max))]
struct NotReady {
    max: Duration,
    reason: String,
}

async fn wait(http: SocketAddr, admin: Option<SocketAddr>, max: Duration) -> Result<Outcome, NotReady> {
    let until = Instant::now() + max;
    loop {
        let limit = ANSWER_LIMIT.min(until.saturating_duration_since(Instant::now()).max(LEAST_LIMIT));
        let Err(error) = client::ask(http, Method::GET, "/startup", limit).await else {
            return Ok(Outcome { text: "ready".to_owned(), is_done: true });
        };
        if Instant::now() + POLL >= until {
            return Err(NotReady { max, reason: reason(http, &error) + &of_chains(admin).await });
        }
        time::sleep(POLL).await;
    }
}

/// Of its last answer, or of its silence.
fn reason(http: SocketAddr, error: &AskError) -> String {
    match error {
        AskError::Connect { .. } => format!("nobody listens on http.address {http}"),
        AskError::TimedOut { .. } | AskError::Gone { .. } => format!("http.address {http} does not answer"),
        AskError::Foreign { .. } => format!("what http.address {http} answers is not pglease's"),
        AskError::Refused { said, .. } => said.clone(),
    }
}

/// What failed last in each chain, as far as somebody says so.
async fn of_chains(admin: Option<SocketAddr>) -> String {
    let Some(admin) = admin else { return String::new() };
    let answer = client::ask(admin, Method::GET, "/status", ANSWER_LIMIT).await;
    let Some(status) = answer.ok().and_then(|(_, said)| parse(admin, &said).ok()) else {
        return String::new();
    };
    let mut text = String::new();
    for chain in items(&status, "chains") {
        let _ = write!(
            text,
            "\n{}: {}{}",
            word(chain, "vault_path"),
            word(chain, "state"),
            last_error(chain, ", failed last: ")
        );
    }
    text
}

const MAX: &str = "max";

/// Of the one question that is always asked.
const LEAST_LIMIT: Duration = Duration::from_secs(1);
