//! TLS towards clients: the certificate as its files say now, and the handshake.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::config::ServerCert;
use crate::net::{ClientStream, Peer};
use crate::telemetry::{Causes, Metrics, ResultLabels};
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
}

/// What a new client is shown.
struct Served {
    acceptor: TlsAcceptor,
    end_point: Option<EndPointHash>,
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
        let config = config.clone();
        let served = Reread::new(paths, move || Served::read(&config), tell)?;
        Ok(Self { served, handshakes: metrics.tls_handshakes.clone() })
    }

    /// Looks at the files where no client has them looked at.
    pub(crate) async fn look(&self) {
        self.served.get().await;
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

fn tell(made: Result<&Arc<Served>, &TlsError>) {
    match made {
        Ok(_) => info!(event = "listen.tls_reloaded"),
        Err(error) => warn!(
            event = "listen.tls_reload_failed",
            error = %Causes(error),
            "the certificate read before stays in use",
        ),
    }
}

impl Served {
    fn read(config: &ServerCert) -> Result<Arc<Self>, TlsError> {
        let ServerIdentity { config, certificate } = tls::server_identity(config, ShownTo::Clients)?;
        let end_point = EndPointHash::of_certificate(&certificate)
            .inspect_err(|error| info!(event = "listen.no_channel_binding", %error))
            .ok();
        Ok(Arc::new(Self { acceptor: config.into(), end_point }))
    }
}
