//! The hosts of an upstream and their addresses, looked up anew for each login.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::pki_types::ServerName;
use tokio::net::lookup_host;

use crate::config::{Host, Place};
use crate::tls::{self, TlsError};

/// One host.
#[derive(Debug)]
pub(super) struct Server {
    host: Host,
    /// What its certificate is for; `None` without TLS.
    tls_name: Option<ServerName<'static>>,
    /// Whether the last login here failed, for the log: it is told of a change.
    failing: AtomicBool,
}

impl Server {
    pub(super) fn new(host: &Host, with_tls: bool) -> Result<Self, TlsError> {
        let tls_name = match host.place {
            Place::Network(_) if with_tls => Some(tls::server_name(without_zone(&host.name))?),
            Place::Network(_) | Place::Socket(_) => None,
        };
        Ok(Self { host: host.clone(), tls_name, failing: AtomicBool::new(false) })
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Remembers how the last login here went; whether the one before went otherwise.
    pub(super) fn note(&self, failed: bool) -> bool {
        self.failing.swap(failed, Ordering::Relaxed) != failed
    }

    /// Where it is now. At least one.
    pub(super) async fn look_up(self: &Arc<Self>) -> io::Result<Vec<Address>> {
        let sockets: Vec<Socket> = match &self.host.place {
            Place::Socket(path) => vec![Socket::Unix(path.clone())],
            Place::Network(name) => {
                lookup_host((name.as_str(), self.host.port)).await?.map(Socket::Tcp).collect()
            }
        };
        if sockets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no address"));
        }
        Ok(sockets.into_iter().map(|socket| Address { server: Arc::clone(self), socket }).collect())
    }
}

/// A zone (`fe80::1%eth0`) says by which interface an address is reached from here: no certificate has it.
fn without_zone(name: &str) -> &str {
    match name.split_once('%') {
        Some((address, _zone)) if address.parse::<Ipv6Addr>().is_ok() => address,
        _ => name,
    }
}

/// One address of one host. As text it is both, for people: `db:5432 (10.0.0.1:5432)`.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    server: Arc<Server>,
    socket: Socket,
}

/// What a connection is made to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// The host, as settings have it.
    pub(crate) fn host(&self) -> &Host {
        &self.server.host
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether both are the same address of the same host.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.server, &other.server) && self.socket == other.socket
    }

    /// What the certificate has to be for; `None` without TLS.
    pub(super) fn tls_name(&self) -> Option<&ServerName<'static>> {
        self.server.tls_name.as_ref()
    }

    #[cfg(test)]
    pub(super) fn of(server: &Arc<Server>) -> Self {
        let ip = server.host.name.parse().expect("an address");
        let socket = Socket::Tcp(SocketAddr::new(ip, server.host.port));
        Self { server: Arc::clone(server), socket }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, socket } = self;
        let is_said = match socket {
            Socket::Tcp(socket) => {
                server.host.name.parse().is_ok_and(|address: IpAddr| address == socket.ip())
            }
            Socket::Unix(_) => true,
        };
        if is_said { socket.fmt(f) } else { write!(f, "{} ({socket})", server.host) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn zone_is_of_the_way_and_not_of_the_certificate() {
        for (name, certified, scope) in
            [("fe80::1%lo", "fe80::1", 1), ("fe80::1%1", "fe80::1", 1), ("::1", "::1", 0)]
        {
            let server = Arc::new(Server::new(&Host::at(name, 5432), true).unwrap());
            let addresses = server.look_up().await.unwrap();
            let [address] = &addresses[..] else { panic!("{addresses:?}") };
            let expected: IpAddr = certified.parse().unwrap();
            assert_eq!(address.tls_name(), Some(&ServerName::from(expected)));
            let Socket::Tcp(SocketAddr::V6(socket)) = address.socket() else { panic!("{address}") };
            assert_eq!((IpAddr::V6(*socket.ip()), socket.scope_id()), (expected, scope));
        }
        for name in ["a%b", "10.0.0.1%lo", "%lo"] {
            assert!(
                matches!(Server::new(&Host::at(name, 5432), true), Err(TlsError::ServerName { .. })),
                "{name}"
            );
        }
    }
}
