//! A login's steps one at a time, for `pglease check`: where a host is, whether it can be reached, what it shows in TLS.

use std::io;
use std::net::IpAddr;

use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;
use tokio::time::{self, Instant};

use super::address::{Address, Socket};
use super::{Upstream, UpstreamError, connect, within};
use crate::net::Stream;
use crate::wire::binding::EndPointError;

/// What a server has shown of itself in TLS.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) version: Option<ProtocolVersion>,
    /// Its own first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// Whether a login can be bound to its certificate.
    pub(crate) binding: Result<(), EndPointError>,
}

impl Upstream {
    /// Where its first host is now; at least one address.
    pub(crate) async fn look_up(&self, deadline: Instant) -> Result<Vec<Address>, UpstreamError> {
        let Some(server) = self.servers.first() else { return Ok(Vec::new()) };
        let found = time::timeout_at(deadline, server.look_up()).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        found.map_err(|source| UpstreamError::Resolve { host: server.host().to_string(), source })
    }

    /// Connects, says nothing and goes. Gives the address that the server has seen us come from, unless somebody in
    /// between has changed it; `None` for a Unix socket.
    pub(crate) async fn knock(
        &self,
        address: &Address,
        deadline: Instant,
    ) -> Result<Option<IpAddr>, UpstreamError> {
        let failed = |source| UpstreamError::Connect { address: address.to_string(), source };
        let knocking = async {
            match address.socket() {
                Socket::Unix(path) => {
                    tokio::net::UnixStream::connect(path).await.map_err(failed)?;
                    Ok(None)
                }
                Socket::Tcp(socket) => {
                    let stream = connect::tcp(*socket, &self.config.silence).await.map_err(failed)?;
                    Ok(Some(stream.local_addr().map_err(failed)?.ip()))
                }
            }
        };
        within(deadline, address, knocking).await
    }

    /// Connects, goes as far as TLS, and closes. `None` where there is to be no TLS.
    pub(crate) async fn shake_hands(
        &self,
        address: &Address,
        deadline: Instant,
    ) -> Result<Option<Shown>, UpstreamError> {
        let Stream::Tls(stream) = within(deadline, address, self.connect(address)).await? else {
            return Ok(None);
        };
        let (_, connection) = stream.get_ref();
        let certificates = connection.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|shown| shown.clone().into_owned()).collect();
        let binding = connect::end_point(&stream).map(drop);
        Ok(Some(Shown { version: connection.protocol_version(), certificates, binding }))
    }
}
