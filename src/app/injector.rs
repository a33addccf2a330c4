//! `pglease injector`: one thread for connections, beside it those that reviews are judged on.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::reload::{Watched, on_blocking_thread};
use super::{AppError, StopSignals, VERSION, current_thread, report_absent};
use crate::config::{CertificateConfig, DrainConfig, InjectorConfig, Loaded, Origin};
use crate::drain::Drain;
use crate::http;
use crate::injector::{self, CertificateError, Done, Injector};
use crate::reload::Why;
use crate::telemetry::{self, InjectorMetrics};

/// Serves until told to stop by SIGTERM or SIGINT, and returns when the last review is answered.
pub(crate) fn run(loaded: Loaded<InjectorConfig>) -> Result<(), AppError> {
    // The certificate's key is in memory only: not in a core, and not for others of the same user to read.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    current_thread()?.block_on(serve(loaded))
}

/// Runs `pglease injector certificate`.
pub(crate) fn ensure_certificate(config: &CertificateConfig) -> Result<Done, CertificateCommandError> {
    Ok(current_thread()?.block_on(injector::ensure_certificate(config))?)
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateCommandError {
    #[error("starting a runtime")]
    Start(#[from] io::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

async fn serve(loaded: Loaded<InjectorConfig>) -> Result<(), AppError> {
    let (signals, hangup) = (StopSignals::register()?, signal(SignalKind::hangup())?);
    let Loaded { config, origin, .. } = loaded;
    let watched = Watched::new(&origin, hangup);
    let drain = Drain::default();
    let metrics = Arc::new(InjectorMetrics::new());
    let injector = Injector::load(&config, &metrics, drain.subscribe()).map_err(AppError::WebhookTls)?;
    let (listener, absent) =
        http::bind_to("injector.address", config.address, config.explicit).map_err(AppError::Http)?;
    let (http_listener, http_absent) = http::bind(config.http).map_err(AppError::Http)?;
    report_absent(&[absent, http_absent]);
    let health = injector::health(metrics, drain.subscribe());
    info!(
        event = "listen.ready",
        addresses = %listener.local_addr()?,
        http = %http_listener.local_addr()?,
        version = VERSION
    );

    // By signals only: nobody else asks for a drain.
    let (_ask, asked) = mpsc::channel(1);
    tokio::select! {
        () = injector.serve(listener) => {}
        never = signals.drive(&drain, || DRAIN, asked) => match never {},
        never = reload(watched, origin) => match never {},
        never = telemetry::say_repeats() => match never {},
        never = http::serve(http_listener, health, http::EXCHANGE_TIMEOUT) => match never {},
    }
    telemetry::end_log();
    info!(event = "process.end");
    Ok(())
}

/// The log's level changes while it runs, and nothing else.
async fn reload(mut watched: Watched, origin: Origin) -> Infallible {
    loop {
        let (why, content) = watched.next().await;
        let sources = origin.sources.clone();
        let file = sources.path();
        match on_blocking_thread(move || sources.load_injector(content.as_ref())).await {
            Ok(Loaded { config, origin: now, .. }) => {
                watched.looks.loaded();
                telemetry::set_level(config.log.level);
                info!(event = "config.reloaded", file);
                let needs_restart = origin.fixed.differing(&now.fixed);
                if !needs_restart.is_empty() {
                    warn!(event = "config.needs_restart", keys = needs_restart.join(", "));
                }
            }
            Err(error) => {
                if watched.looks.failed(&error, Instant::now()) || why == Why::Asked {
                    error!(event = "config.rejected", file, error, "nothing changes");
                }
            }
        }
    }
}

/// The API server hears a moment later than we that this replica goes.
const DRAIN: DrainConfig = DrainConfig {
    accept_for: Duration::from_secs(5),
    grace: Duration::ZERO,
    deadline: Duration::from_secs(15),
    strict_exit: false,
};
