//! The commands that ask a running pglease: `rotate`, `drain`, `log-level`, `status`.

mod drain;
mod status;

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::{Outcome, USAGE, ask, refuse, say};
use crate::admin::client::{self, AskError};
use crate::config::{self, AdminConfig};

/// The commands, each with the settings that say whom to ask.
pub(super) fn commands() -> [Command; 4] {
    let rotate = Command::new("rotate")
        .about("Have the running pglease take new credentials now")
        .long_about(
            "Asks the running pglease for new credentials of all its routes, and returns when new sessions get them. \
             Sessions that are open stay, and so do their credentials. Needs admin.control = true.",
        )
        .arg(
            Arg::new(CLOSE)
                .long(CLOSE)
                .action(ArgAction::SetTrue)
                .help("Then end the sessions on older credentials with 57P01, and revoke those"),
        );
    let drain = Command::new("drain").about("Have the running pglease drain and end").long_about(
        "Asks the running pglease to drain, as SIGTERM does, and returns when it has ended. Needs admin.control = true.",
    );
    let log_level = Command::new("log-level")
        .about("Have the running pglease log more or less")
        .long_about(
            "Has the running pglease log from this level on, until it ends or its settings say something else of \
             log.level. Needs admin.control = true.",
        )
        .arg(
            Arg::new(LEVEL)
                .required(true)
                .value_parser(["error", "warn", "info", "debug", "trace"])
                .help("The least important lines that are logged"),
        );
    let status =
        Command::new("status").about("Print who is at fault, and how the running pglease stands").arg(
            Arg::new(JSON)
                .long(JSON)
                .action(ArgAction::SetTrue)
                .help("As /status has it, see docs/status.md"),
        );
    [rotate, drain, log_level, status]
        .map(|command| command.defer(|command| command.args(config::admin_flags())))
}

/// Runs one of [`commands`].
pub(super) fn run(name: &str, matches: &ArgMatches) -> ExitCode {
    let address = match config::load_admin(matches, config::environment()) {
        Ok(AdminConfig { address: Some(address), explicit, .. }) => client::address(address, explicit),
        Ok(_) => {
            say(&mut io::stderr(), "pglease: admin.address is off, so there is nobody to ask");
            return USAGE.into();
        }
        Err(errors) => return refuse(&errors),
    };
    ask(async {
        match name {
            "rotate" => rotate(address, matches.get_flag(CLOSE)).await,
            "drain" => drain(address).await,
            "log-level" => {
                let level = matches.get_one::<String>(LEVEL).map(String::as_str).unwrap_or_default();
                log_level(address, level).await
            }
            _ => ask_status(address, matches.get_flag(JSON)).await,
        }
    })
}

async fn rotate(address: SocketAddr, close: bool) -> Result<Outcome, AskError> {
    let path = if close { "/rotate?close=true" } else { "/rotate" };
    let (status, said) = client::ask(address, Method::POST, path, MAX_ROTATE_WAIT).await?;
    let answer = parse(address, &said)?;
    let (mut text, mut orphans) = (String::new(), 0);
    for chain in items(&answer, "chains") {
        orphans += number(chain, "orphans");
        let _ = writeln!(text, "{}: {}", word(chain, "vault_path"), rotated(chain, close));
    }
    Ok(Outcome { text, is_done: status == StatusCode::OK && orphans == 0 })
}

fn rotated(chain: &Value, close: bool) -> String {
    let serves = || format!("{} serves, {}", word(chain, "db_role"), word(chain, "generation"));
    match (word(chain, "result"), number(chain, "orphans")) {
        ("done", 0) if close => format!("{}; those before it are revoked", serves()),
        ("done", 0) => serves(),
        ("done", orphans) => {
            format!("{}; {orphans} before it could not be revoked and end by themselves", serves())
        }
        ("ended", _) => "pglease is ending".to_owned(),
        _ => format!("not done yet; pglease goes on trying{}", last_error(chain, "; failed last: ")),
    }
}

async fn drain(address: SocketAddr) -> Result<Outcome, AskError> {
    drain::drain(address, async |method, path| client::ask(address, method, path, ANSWER_LIMIT).await).await
}

async fn log_level(address: SocketAddr, level: &str) -> Result<Outcome, AskError> {
    let path = format!("/log?level={level}");
    let (status, said) = client::ask(address, Method::POST, &path, ANSWER_LIMIT).await?;
    let answer = parse(address, &said)?;
    let text =
        format!("the log has {} and above, it was {}", word(&answer, "level"), word(&answer, "before"));
    Ok(Outcome { text, is_done: status == StatusCode::OK })
}

async fn ask_status(address: SocketAddr, json: bool) -> Result<Outcome, AskError> {
    let (_, said) = client::ask(address, Method::GET, "/status", ANSWER_LIMIT).await?;
    let text = if json { said } else { status::text(&parse(address, &said)?) };
    Ok(Outcome { text, is_done: true })
}

pub(super) fn last_error(chain: &Value, before: &str) -> String {
    let error = chain.get("last_error").unwrap_or(&Value::Null);
    if error.is_null() {
        return String::new();
    }
    let code = error.get("code").and_then(Value::as_str).unwrap_or("no code");
    format!("{before}{} {} ({code})", word(error, "operation"), word(error, "kind"))
}

pub(super) fn parse(address: SocketAddr, text: &str) -> Result<Value, AskError> {
    serde_json::from_str(text).map_err(|_| AskError::Foreign { address })
}

pub(super) fn items<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn word<'a>(of: &'a Value, name: &str) -> &'a str {
    of.get(name).and_then(Value::as_str).unwrap_or("?")
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or_default()
}

const CLOSE: &str = "close";
const JSON: &str = "json";
const LEVEL: &str = "level";

/// Longer than pglease itself takes to answer.
const MAX_ROTATE_WAIT: Duration = Duration::from_secs(45);

/// Of what is answered at once.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

pub(super) const POLL: Duration = Duration::from_millis(100);
