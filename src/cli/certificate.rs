//! `pglease injector certificate`.

use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::{FAILURE, USAGE, say};
use crate::app;
use crate::config;
use crate::injector::{Done, Secret};
use crate::telemetry::Causes;

pub(super) fn command() -> Command {
    Command::new("certificate")
        .about("Make the webhook's certificate where there is none that is good, and have the API server believe it")
        .long_about(
            "Keeps a certificate for SERVICE.NAMESPACE.svc in a Secret: makes one where there is none, where it does not \
             verify, or where less than a third of its life is left. Then sets the caBundle of the webhooks to its CA. \
             To be run as a Job at install, and every now and then: docs/injector.md.",
        )
        .defer(|command| command.args(config::certificate_flags()))
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    let config = match config::load_certificate(matches, config::environment()) {
        Ok(config) => config,
        Err(error) => {
            say(&mut io::stderr(), &error.to_string());
            return USAGE.into();
        }
    };
    match app::ensure_certificate(&config) {
        Ok(Done { secret, bundles }) => {
            let name = format!("Secret {}/{}", config.namespace, config.secret);
            let secret = match secret {
                Secret::Kept => format!("{name} is good"),
                Secret::Created => format!("{name} is created"),
                Secret::Renewed(reason) => format!("{name} is renewed, as {reason}"),
            };
            say(&mut io::stdout(), &secret);
            say(&mut io::stdout(), &format!("webhook {}: {bundles} caBundle changed", config.webhook));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&mut io::stderr(), &format!("pglease: {}", Causes(&error)));
            FAILURE.into()
        }
    }
}
