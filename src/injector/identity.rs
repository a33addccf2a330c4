//! What the API server is shown: the certificate as its files say now.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use tracing::{info, warn};

use crate::config::ServerCert;
use crate::telemetry::{Causes, InjectorMetrics, ResultLabels};
use crate::tls::{self, Reread, ShownTo, TlsError};

/// The certificate of `injector.tls_cert_file` and `injector.tls_key_file`. Both are read again when they change.
#[derive(Debug)]
pub(super) struct Identity {
    shown: Reread<Arc<ServerConfig>, TlsError>,
}

impl Identity {
    /// Reads the files.
    pub(super) fn load(files: &ServerCert, metrics: &Arc<InjectorMetrics>) -> Result<Self, TlsError> {
        let paths = vec![files.cert_file.clone(), files.key_file.clone()];
        let (files, reading, telling) = (files.clone(), Arc::clone(metrics), Arc::clone(metrics));
        let make = move || read(&files, &reading);
        let shown = Reread::new(paths, make, move |made| tell(&telling, made))?;
        Ok(Self { shown })
    }

    /// What to show now. Has the files looked at where nobody has for a second.
    pub(super) async fn current(&self) -> Arc<ServerConfig> {
        self.shown.get().await
    }
}

fn tell(metrics: &InjectorMetrics, made: Result<&Arc<ServerConfig>, &TlsError>) {
    let result = match made {
        Ok(_) => {
            info!(event = "injector.certificate_reloaded");
            "ok"
        }
        Err(error) => {
            warn!(
                event = "injector.certificate_reload_failed",
                error = %Causes(error),
                "the certificate read before stays in use",
            );
            "failed"
        }
    };
    metrics.certificate_reloads.get_or_create(&ResultLabels { result }).inc();
}

fn read(files: &ServerCert, metrics: &InjectorMetrics) -> Result<Arc<ServerConfig>, TlsError> {
    let identity = tls::server_identity(files, ShownTo::ApiServer)?;
    if let Some(until) = identity.ends_at() {
        metrics.certificate_expiry.set(i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if until < now {
            warn!(
                event = "injector.certificate_expired",
                path = ?files.cert_file,
                "the API server will refuse the certificate"
            );
        }
    }
    Ok(identity.config)
}
