//! The mutating webhook of `pglease injector`: the API server posts each labelled pod, and it gets its sidecar.
//!
//! [`server`] accepts connections and shows the certificate of [`identity`]; [`webhook`] takes requests and gives
//! answers; [`review`] judges one review, without a socket. `app` owns all of it, and `/livez`, `/readyz` and
//! `/metrics` of [`mod@health`].
//!
//! What becomes of a pod is plain functions: [`patch`] decides, by its [`annotations`] (and those of the Vault
//! [`agent`]), of which [`proxy`] makes settings and [`files`] those of credential files, [`sidecar`] the container and
//! [`application`] what the author's containers get; [`draft`] writes down what is added.

mod certificate;
mod health;
mod identity;
mod server;
mod webhook;
mod review;
mod patch;
mod annotations;
mod agent;
mod proxy;
mod sidecar;
mod mesh;
mod application;
mod files;
mod template;
mod draft;
mod pod;
#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::InjectorConfig;
use crate::drain::Phase;
use crate::telemetry::InjectorMetrics;
use crate::tls::TlsError;

pub(crate) use certificate::{CertificateError, Done, Secret, ensure as ensure_certificate};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::fuzz_review;
pub(crate) use health::router as health;

/// Everything that answers the API server.
#[derive(Debug)]
pub(crate) struct Injector {
    identity: Arc<identity::Identity>,
    webhook: Arc<webhook::Webhook>,
    phase: watch::Receiver<Phase>,
    timeouts: Timeouts,
}

/// How long a peer may take for what it does.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    handshake: Duration,
    /// The API server waits for 30 s at most, and for 5 s by our own configuration.
    body: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let limit = Duration::from_secs(10);
        Self { handshake: limit, body: limit }
    }
}

impl Injector {
    /// Reads the certificate.
    pub(crate) fn load(
        config: &InjectorConfig,
        metrics: &Arc<InjectorMetrics>,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, TlsError> {
        Self::with(Timeouts::default(), config, metrics, phase)
    }

    fn with(
        timeouts: Timeouts,
        config: &InjectorConfig,
        metrics: &Arc<InjectorMetrics>,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, TlsError> {
        let identity = Arc::new(identity::Identity::load(&config.tls, metrics)?);
        let sidecar = config.sidecar.clone();
        let webhook = webhook::Webhook::new(sidecar, Arc::clone(metrics), phase.clone(), timeouts.body);
        Ok(Self { identity, webhook: Arc::new(webhook), phase, timeouts })
    }
}
