//! `check`: the doctor.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::{FAILURE, say};
use crate::check::{self, Asked, Report};
use crate::config;

pub(super) fn command() -> Command {
    Command::new("check")
        .about("Go the whole way with a throw-away credential, and say what is wrong and what to do")
        .long_about(
            "Looks at the settings, goes the way to Vault and to every upstream host, logs in and takes a credential of \
             its own, tries it, and revokes it whatever happens. Each step has a line: ✓, ✗ or ! with cause and cure, – \
             where it could not be done. A running sidecar is left alone.\n\nExit codes: 0 nothing failed; 69 something \
             does not answer; 77 something is not allowed; 78 a setting is wrong; of several 78, then 77; 1 not done to \
             the end; 2 usage. The steps are in docs/check.md.",
        )
        .arg(
            Arg::new(OFFLINE)
                .long(OFFLINE)
                .action(ArgAction::SetTrue)
                .help("Look at the settings alone, and at the files that they name"),
        )
        .arg(Arg::new(JSON).long(JSON).action(ArgAction::SetTrue).help("One JSON document, see docs/check.md"))
        .arg(
            Arg::new(MAX)
                .long(MAX)
                .value_name("DURATION")
                .default_value("2m")
                .value_parser(humantime::parse_duration)
                .help("Break off after so long, and revoke what was made"),
        )
        .defer(|command| command.args(config::flags()))
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let is_json = matches.get_flag(JSON);
    let limit = matches.get_one::<Duration>(MAX).copied().unwrap_or(Duration::MAX);
    let asked = Asked { offline: matches.get_flag(OFFLINE), limit };
    match check(matches, asked, is_json) {
        Ok(report) => {
            let text = if is_json { check::json(&report) } else { check::summary(&report) };
            say(&mut io::stdout(), &text);
            report.exit_code().into()
        }
        Err(error) => {
            say(&mut io::stderr(), &format!("pglease: {error}"));
            FAILURE.into()
        }
    }
}

fn check(matches: &ArgMatches, asked: Asked, is_json: bool) -> io::Result<Report> {
    // As in the proxy: the credential is in memory only.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let loaded = config::load(matches, config::environment());
    let report = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (mut hangup, mut quit) = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => "SIGHUP",
                _ = quit.recv() => "SIGQUIT",
            }
        };
        let tell = |step: &check::Step| {
            if !is_json {
                say(&mut io::stdout(), &check::line(step));
            }
        };
        io::Result::Ok(Box::pin(check::run(loaded, asked, stop, tell)).await)
    });
    // A resolver that does not answer is not waited for.
    runtime.shutdown_background();
    report
}

const OFFLINE: &str = "offline";
const JSON: &str = "json";
const MAX: &str = "max";
