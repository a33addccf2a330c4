//! The subcommands, and all that pglease prints.

mod about;
mod certificate;
mod check;
mod operate;
mod wait;

use std::error::Error;
use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use tokio::runtime;
use tracing::warn;

use crate::app::{self, AppError, Losses};
use crate::config::{self, ConfigErrors, LogConfig};
use crate::telemetry::{self, Causes};

/// Runs the command that `arguments` ask for, the program's own name being the first of them.
///
/// Exit codes: 0 done; 1 failure at run time; 2 usage or settings; 3 drained with losses, under `drain.strict_exit`;
/// those of `check` are its own.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version come this way, too. A closed pipe is no reason to say more.
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let Some((name, matches)) = matches.remove_subcommand() else { return USAGE.into() };
    match name.as_str() {
        "proxy" => proxy(matches),
        "injector" => match matches.subcommand() {
            Some((_, matches)) => certificate::run(matches),
            None => injector(matches),
        },
        "check" => check::run(&matches),
        "wait" => wait::run(&matches),
        name @ ("rotate" | "drain" | "log-level" | "status") => operate::run(name, &matches),
        name => about::run(name, &matches),
    }
}

fn command() -> Command {
    let commands = [proxy_command(), injector_command(), check::command(), wait::command()];
    let command = Command::new("pglease")
        .about("Lets applications reach PostgreSQL without a password, on credentials leased from Vault or OpenBao")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands)
        .subcommands(operate::commands())
        .subcommands(about::commands())
        .after_help(
            "pglease COMMAND --help says more of each. Every setting is a key of the file, a variable and a flag.\n\
             Exit codes: 0 done; 1 it failed while it ran; 2 usage or settings, and nothing was begun;\n\
             3 drained with losses, where drain.strict_exit is set. Those of check are its own.",
        );
    let template = format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}\n\n{{after-help}}",
        list(&command)
    );
    command.help_template(template)
}

/// The commands by what they are for, each with its line.
fn list(command: &Command) -> String {
    let mut list = String::new();
    for (heading, names) in GROUPS {
        let _ = writeln!(list, "{heading}:");
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            // That of clap comes later.
            let about =
                about.map_or_else(|| "Print this, or the help of a command".to_owned(), ToString::to_string);
            let _ = writeln!(list, "  {name:<12} {about}");
        }
        list.push('\n');
    }
    list
}

const GROUPS: &[(&str, &[&str])] = &[
    ("Serve", &["proxy", "injector"]),
    ("See how it stands", &["check", "wait", "status"]),
    ("Have the running one", &["rotate", "drain", "log-level"]),
    ("Know pglease", &["schema", "version", "completions", "man", "help"]),
];

// Settings become flags of the command that is run, and of no other.
fn proxy_command() -> Command {
    Command::new("proxy")
        .about("Serve applications until SIGTERM")
        .long_about(
            "Listens for PostgreSQL clients on loopback, and logs in to PostgreSQL for them with credentials leased \
             from Vault or OpenBao. On SIGTERM sessions end, then every lease is revoked; a second signal does not \
             wait for sessions.\n\nEvery setting is a key of the file, a variable and a flag: docs/settings.md.",
        )
        .defer(|command| command.args(config::flags()))
}

fn injector_command() -> Command {
    Command::new("injector")
        .about("Give annotated pods their sidecar: the mutating webhook for Kubernetes' API server")
        .long_about(
            "Answers the AdmissionReviews that an API server posts to /mutate over HTTPS: pods with the label \
             pglease.dev/inject: \"true\" get a sidecar as their annotations say. On SIGTERM it ends when what it was \
             asked is answered.\n\nEvery setting is a key of the file, a variable and a flag: docs/injector.md.",
        )
        .defer(|command| command.args(config::injector_flags()))
        .subcommand(certificate::command())
}

fn proxy(matches: ArgMatches) -> ExitCode {
    serve(
        move || config::load(&matches, config::environment()),
        |loaded| (loaded.config.log.clone(), loaded.warnings.clone(), loaded),
        |loaded| {
            let is_strict = loaded.config.drain.strict_exit;
            let losses = app::run(loaded)?;
            Ok(if is_strict && losses != Losses::default() { LOSSES.into() } else { ExitCode::SUCCESS })
        },
    )
}

fn injector(matches: ArgMatches) -> ExitCode {
    serve(
        move || config::load_injector(&matches, config::environment()),
        |loaded| (loaded.config.log.clone(), Vec::new(), loaded),
        |loaded| app::run_injector(loaded).map(|()| ExitCode::SUCCESS),
    )
}

/// Loads the settings, starts the log, says the warnings, and runs to the end. SIGHUP ends it at no moment.
fn serve<T, C>(
    load: impl FnOnce() -> Result<T, ConfigErrors>,
    parts: impl FnOnce(T) -> (LogConfig, Vec<String>, C),
    run: impl FnOnce(C) -> Result<ExitCode, AppError>,
) -> ExitCode {
    if let Err(error) = app::outlive_hangup() {
        return fail(&error);
    }
    let (log, warnings, config) = match load() {
        Ok(loaded) => parts(loaded),
        Err(errors) => return refuse(&errors),
    };
    if let Err(error) = telemetry::start_log(&log) {
        return fail(&Causes(&error));
    }
    for warning in warnings {
        warn!(event = "config.warning", "{warning}");
    }
    let ended = run(config);
    telemetry::end_log();
    match ended {
        Ok(code) => code,
        Err(error) => {
            let code = fail(&Causes(&error));
            if error.is_of_settings() { USAGE.into() } else { code }
        }
    }
}

/// What a command that asks the running one has to print, and whether all that was asked for is done.
struct Outcome {
    text: String,
    is_done: bool,
}

/// Asks to the end, and prints what came of it.
fn ask<E: Error>(asking: impl Future<Output = Result<Outcome, E>>) -> ExitCode {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(asking) {
        Ok(Outcome { text, is_done }) => {
            say(&mut io::stdout(), text.trim_end());
            if is_done { ExitCode::SUCCESS } else { FAILURE.into() }
        }
        Err(error) => fail(&Causes(&error)),
    }
}

/// Says all that is wrong with the settings.
fn refuse(errors: &ConfigErrors) -> ExitCode {
    say(&mut io::stderr(), &errors.to_string());
    USAGE.into()
}

/// Says what has failed.
fn fail(error: &impl Display) -> ExitCode {
    say(&mut io::stderr(), &format!("pglease: {error}"));
    FAILURE.into()
}

/// A line for whoever is there to read it.
fn say(out: &mut impl io::Write, text: &str) {
    let _ = writeln!(out, "{text}");
}

const FAILURE: u8 = 1;

const USAGE: u8 = 2;

const LOSSES: u8 = 3;

#[cfg(test)]
mod tests;
