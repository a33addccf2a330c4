//! A load generator for whoever sizes a fleet: sessions, a rate, a mix of statements on any `DATABASE_URL`, and how long
//! each took. `docs/performance.md` says how it is used.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what it measured, for people")]

mod database;
#[expect(dead_code, reason = "the bench `performance` looks when each statement was due")]
mod engine;
mod summary;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Arg, ArgAction, Command, value_parser};

use database::Database;
use engine::{Done, Kind, Plan};
use summary::Summary;

#[tokio::main]
async fn main() -> ExitCode {
    let matches = command().get_matches();
    #[expect(
        clippy::disallowed_methods,
        reason = "config/env.rs is pglease's own; this is the operator's environment"
    )]
    let url = matches.get_one::<String>("url").cloned().or_else(|| std::env::var("DATABASE_URL").ok());
    let Some(url) = url else {
        eprintln!("which database? --url postgresql://… or DATABASE_URL");
        return ExitCode::from(2);
    };
    let database = match Database::parse(&url) {
        Ok(database) => database,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let plan = plan(&matches);
    let summary = Arc::new(Mutex::new(Summary::new(plan.sessions, plan.rate)));
    let kept = Arc::clone(&summary);
    let begun = tokio::time::Instant::now();
    engine::run(database, plan, move |done: Done| {
        let mut summary = kept.lock().unwrap_or_else(PoisonError::into_inner);
        match done.kind {
            Kind::Statement => summary.statements.add(done.took, done.error),
            Kind::Connect => summary.connects.add(done.took, done.error),
            Kind::Late => summary.late.add(done.took, done.error),
        }
    })
    .await;
    let summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
    let took = begun.elapsed();
    if matches.get_flag("json") {
        println!("{}", summary.to_json(took));
    } else {
        print!("{}", summary.to_text(took));
    }
    if summary.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("load")
        .about("Sessions at work on a database, and how long each statement took.")
        .after_help(
            "With --rate, latencies count from when a statement was due, so that a stall shows in all that it held up. \
             Ends with 1 where anything failed.",
        )
        .arg(option("url", "URL", "postgresql://…; else DATABASE_URL. TLS is verified, against sslrootcert or the system's"))
        .arg(option("sessions", "N", "open at the same time").default_value("8").value_parser(value_parser!(u16).range(1..)))
        .arg(option("rate", "N", "statements a second of all sessions; else as fast as they are answered").value_parser(rate))
        .arg(option("duration", "SPAN", "how long: 30s, 5m").default_value("10s").value_parser(humantime::parse_duration))
        .arg(
            option("query", "[WEIGHT:]SQL", "what is sent, of several by their weights; else SELECT 1")
                .action(ArgAction::Append)
                .value_parser(weighted),
        )
        .arg(option("life", "N", "statements after which a session is replaced").value_parser(value_parser!(u64).range(1..)))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("prints JSON"))
}

fn plan(matches: &clap::ArgMatches) -> Plan {
    let mix: Vec<(u32, String)> = matches.get_many("query").into_iter().flatten().cloned().collect();
    Plan {
        sessions: matches.get_one::<u16>("sessions").copied().map_or(1, usize::from),
        rate: matches.get_one("rate").copied(),
        time: matches.get_one::<Duration>("duration").copied().unwrap_or_default(),
        mix: if mix.is_empty() { vec![(1, "SELECT 1".to_owned())] } else { mix },
        life: matches.get_one("life").copied(),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().map_err(|error| error.to_string())?;
    let is_one = rate.is_finite() && rate > 0.0;
    is_one.then_some(rate).ok_or_else(|| "a number above 0".to_owned())
}

/// `9:SELECT 1` or, with the weight 1, `SELECT 1`.
#[expect(clippy::unnecessary_wraps, reason = "a parser of clap")]
fn weighted(text: &str) -> Result<(u32, String), String> {
    let weighted =
        text.split_once(':').and_then(|(weight, sql)| Some((weight.trim().parse().ok()?, sql.to_owned())));
    Ok(weighted.unwrap_or_else(|| (1, text.to_owned())))
}
