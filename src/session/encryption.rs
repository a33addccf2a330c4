//! TLS towards clients: the certificate as its files say now, and the handshake.
//!
//! The files are looked at when a client comes, and now and then where none does, for the metric that tells when the
//! certificate ends: [`keep_looking`].

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::Shared;
use crate::config::ServerCert;
use crate::net::{ClientStream, Peer};
use crate::telemetry::{Causes, CertificateLabels, Metrics, ResultLabels};
use crate::tls::{self, Reread, ServerIdentity, ShownTo, TlsError};
use crate::wire::binding::EndPointHash;

/// How a client came: what [`super::auth`] may go by, beside what the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    pub(crate) peer: Peer,
    pub(crate) encryption: Encryption,
}

/// What is between the client and us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    None,
    Tls {
        /// Of the certificate that this client was shown; `None` where its algorithm has no such hash, and
        /// SCRAM-SHA-256-PLUS cannot be offered.
        end_point: Option<EndPointHash>,
    },
}

impl Transport {
    /// Plain TCP from this machine.
    #[cfg(test)]
    pub(crate) fn test() -> Self {
        Self { peer: Peer::Tcp(([127, 0, 0, 1], 50_000).into()), encryption: Encryption::None }
    }

    /// Whether others on the way can read and change what it carries.
    pub(crate) fn is_exposed(&self) -> bool {
        match self.peer {
            Peer::Tcp(peer) => self.encryption == Encryption::None && !peer.ip().to_canonical().is_loopback(),
            Peer::Unix { .. } => false,
        }
    }

    /// The word in logs.
    pub(crate) fn as_str(&self) -> &'static str {
        match (self.peer, &self.encryption) {
            (Peer::Unix { .. }, _) => "unix",
            (Peer::Tcp(_), Encryption::None) => "tcp",
            (Peer::Tcp(_), Encryption::Tls { .. }) => "tls",
        }
    }
}

/// TLS as `listen.tls_cert_file` and `listen.tls_key_file` have it. Both are read again when they change.
#[derive(Debug)]
pub(crate) struct ClientTls {
    served: Reread<Arc<Served>, TlsError>,
    handshakes: Family<ResultLabels, Counter>,
    expiry: Expiry,
}

type Expiry = Family<CertificateLabels, Gauge>;

/// What a new client is shown.
struct Served {
    acceptor: TlsAcceptor,
    end_point: Option<EndPointHash>,
    /// When the certificate ends, since 1970.
    ends_at: Option<Duration>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("end_point", &self.end_point).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files.
    pub(crate) fn load(config: &ServerCert, metrics: &Metrics) -> Result<Self, TlsError> {
        let paths = vec![config.cert_file.clone(), config.key_file.clone()];
        let (config, expiry) = (config.clone(), metrics.certificate_expiry.clone());
        let of_new = expiry.clone();
        let tell = move |made: Result<&Arc<Served>, &TlsError>| tell(made, &of_new);
        let served = Reread::new(paths, move || Served::read(&config), tell)?;
        Ok(Self { served, handshakes: metrics.tls_handshakes.clone(), expiry })
    }

    /// Has the metric tell when the certificate ends that clients are shown from now on.
    pub(super) fn show_end(&self) {
        self.served.value().show_end(&self.expiry);
    }

    /// Does the handshake with a client that has sent `early` of it; says what has come between us.
    ///
    /// Not cancel safe: the connection is lost.
    pub(crate) async fn accept<T>(
        &self,
        client: &mut ClientStream<T>,
        early: BytesMut,
    ) -> io::Result<Encryption>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let served = self.served.get().await;
        // In a box: a session keeps the room of its largest phase to the end.
        let accepted = Box::pin(client.upgrade(&served.acceptor, early)).await;
        let result = if accepted.is_ok() { "ok" } else { "failed" };
        self.handshakes.get_or_create(&ResultLabels { result }).inc();
        accepted.map(|()| Encryption::Tls { end_point: served.end_point.clone() })
    }
}

/// Looks at the files once a minute, as long as the process lives.
pub(crate) async fn keep_looking(shared: &Shared) -> Infallible {
    loop {
        time::sleep(INTERVAL).await;
        if let Some(tls) = &shared.rules().tls {
            tls.served.get().await;
        }
        // A look that a reload has overtaken tells of a certificate that nobody is shown any more.
        shared.show_certificate();
    }
}

/// The metric tells nothing where clients are shown no certificate any more.
pub(super) fn show_no_end(metrics: &Metrics) {
    metrics.certificate_expiry.remove(&SETTING);
}

fn tell(made: Result<&Arc<Served>, &TlsError>, expiry: &Expiry) {
    match made {
        Ok(served) => {
            served.show_end(expiry);
            info!(event = "listen.tls_reloaded");
        }
        Err(error) => warn!(
            event = "listen.tls_reload_failed",
            error = %Causes(error),
            "the certificate read before stays in use",
        ),
    }
}

impl Served {
    fn read(config: &ServerCert) -> Result<Arc<Self>, TlsError> {
        let identity = tls::server_identity(config, ShownTo::Clients)?;
        let ends_at = identity.ends_at();
        let ServerIdentity { config, certificate } = identity;
        let end_point = EndPointHash::of_certificate(&certificate)
            .inspect_err(|error| info!(event = "listen.no_channel_binding", %error))
            .ok();
        Ok(Arc::new(Self { acceptor: config.into(), end_point, ends_at }))
    }

    fn show_end(&self, expiry: &Expiry) {
        match self.ends_at {
            Some(ends_at) => {
                let seconds = i64::try_from(ends_at.as_secs()).unwrap_or(i64::MAX);
                expiry.get_or_create(&SETTING).set(seconds);
            }
            None => drop(expiry.remove(&SETTING)),
        }
    }
}

const SETTING: CertificateLabels = CertificateLabels { setting: "listen.tls_cert_file" };

/// Between two looks where no client comes.
const INTERVAL: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::drain::Drain;
    use crate::session::auth::Auth;

    #[tokio::test(start_paused = true)]
    async fn end_of_the_certificate_is_told_for_as_long_as_it_is_shown() {
        let metrics = Arc::new(Metrics::new());
        let told = || {
            let all = metrics.encode().unwrap();
            let name = "pglease_certificate_expiry_timestamp_seconds{setting=\"listen.tls_cert_file\"} ";
            all.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.parse::<u64>().unwrap())
        };
        let folder = tempfile::tempdir().unwrap();
        let fixture =
            |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/server").join(name);
        let files = ServerCert { cert_file: folder.path().join("cert"), key_file: folder.path().join("key") };
        for (from, to) in [("rsa.pem", &files.cert_file), ("rsa.key", &files.key_file)] {
            std::fs::copy(fixture(from), to).unwrap();
        }
        let load = || ClientTls::load(&files, &metrics).unwrap();
        let tls = load();
        // Of a reload that may come to nothing.
        assert_eq!(told(), None);
        let (auth, phase) = (Auth::Trust, Drain::default().subscribe());
        let shared = Shared::new(Vec::new(), auth, Arc::clone(&metrics), phase, Duration::ZERO, 1);
        let shared = shared.with_tls(Some(tls));
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(told() > Some(now), "{:?}", told());
        let none = shared.with_tls(None);
        assert_eq!(told(), None);
        // By a look that began before that.
        load().show_end();
        assert!(told().is_some());
        let _never = time::timeout(INTERVAL * 3 / 2, keep_looking(&none)).await;
        assert_eq!(told(), None);
    }
}
