//! The subcommands, and all that pglease prints.

mod certificate;
mod check;
mod operate;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use tracing::warn;

use crate::app::{self, AppError};
use crate::config::{self, ConfigErrors, Loaded, LogConfig};
use crate::telemetry::{self, Causes};

/// Runs the command that `arguments` ask for, the program's own name being the first of them.
///
/// Exit codes: 0 done; 1 failure at run time; 2 usage or settings; those of `check` are its own.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version come this way, too. A closed pipe is no reason to say more.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match matches.subcommand() {
        Some(("proxy", matches)) => return proxy(matches),
        Some(("injector", matches)) => {
            return match matches.subcommand() {
                Some((_, matches)) => certificate::run(matches),
                None => injector(matches),
            };
        }
        Some(("check", matches)) => return check::run(matches),
        Some((name @ ("rotate" | "drain" | "status"), matches)) => return operate::run(name, matches),
        _ => {}
    }
    say(&mut io::stdout(), concat!("pglease ", env!("CARGO_PKG_VERSION")));
    ExitCode::SUCCESS
}

fn command() -> Command {
    let proxy = Command::new("proxy")
        .about("Serve applications until SIGTERM")
        .long_about(
            "Listens for PostgreSQL clients on loopback, and logs in to PostgreSQL for them with credentials leased \
             from Vault or OpenBao. On SIGTERM sessions end, then every lease is revoked; a second signal does not \
             wait for sessions.\n\nEvery setting is a key of the file, a variable and a flag: docs/settings.md.",
        )
        .args(config::flags());
    Command::new("pglease")
        .about("Lets applications reach PostgreSQL without a password, on credentials leased from Vault or OpenBao")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(proxy)
        .subcommand(injector_command())
        .subcommands(operate::commands())
        .subcommand(check::command())
        .subcommand(Command::new("version").about("Print the version"))
}

fn injector_command() -> Command {
    Command::new("injector")
        .about("Give annotated pods their sidecar: the mutating webhook for Kubernetes' API server")
        .long_about(
            "Answers the AdmissionReviews that an API server posts to /mutate over HTTPS: pods with the label \
             pglease.dev/inject: \"true\" get a sidecar as their annotations say. On SIGTERM it ends when what it was \
             asked is answered.\n\nEvery setting is a key of the file, a variable and a flag: docs/injector.md.",
        )
        .args(config::injector_flags())
        .subcommand(certificate::command())
}

fn proxy(matches: &ArgMatches) -> ExitCode {
    serve(
        config::load(matches, config::environment()),
        |Loaded { config, warnings }| (config.log.clone(), config, warnings),
        app::run,
    )
}

fn injector(matches: &ArgMatches) -> ExitCode {
    serve(
        config::load_injector(matches, config::environment()),
        |config| (config.log.clone(), config, Vec::new()),
        app::run_injector,
    )
}

/// Starts the log, says the warnings, and runs to the end.
fn serve<T, C>(
    loaded: Result<T, ConfigErrors>,
    parts: impl FnOnce(T) -> (LogConfig, C, Vec<String>),
    run: impl FnOnce(C) -> Result<(), AppError>,
) -> ExitCode {
    let (log, config, warnings) = match loaded {
        Ok(loaded) => parts(loaded),
        Err(errors) => {
            say(&mut io::stderr(), &errors.to_string());
            return USAGE.into();
        }
    };
    if let Err(error) = telemetry::start_log(&log) {
        say(&mut io::stderr(), &format!("pglease: {}", Causes(&error)));
        return FAILURE.into();
    }
    for warning in warnings {
        warn!(event = "config.warning", "{warning}");
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&mut io::stderr(), &format!("pglease: {}", Causes(&error)));
            if error.is_of_settings() { USAGE.into() } else { FAILURE.into() }
        }
    }
}

/// A line for whoever is there to read it.
fn say(out: &mut impl io::Write, text: &str) {
    let _ = writeln!(out, "{text}");
}

const FAILURE: u8 = 1;

const USAGE: u8 = 2;
