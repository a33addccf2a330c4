//! Accepts connections, and hands each to a session of its own.
//!
//! [`bind`] opens the sockets and says where; [`serve`] is the accept loop, run on one of the [`threads`] that carry
//! the sessions. It spawns one task per connection and returns when the process has drained and the last of them has
//! ended.

mod spare;
mod threads;
mod unix;

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time;
use tracing::{debug, error, info};

use crate::backoff::Backoff;
use crate::config::{DEFAULT_PORT, ListenAddress, ListenConfig, Silence};
use crate::net::{self, Absent, ClientSocket, Copies, Peer};
use crate::session::Shared;

use spare::Spare;
pub(crate) use threads::Threads;

/// Open sockets; clients that connect wait in the kernel until [`serve`] takes them.
#[derive(Debug)]
pub(crate) struct Listeners {
    sockets: Vec<StdListener>,
    addresses: Vec<SocketAddr>,
    unix: Option<unix::Bound>,
    /// Of `localhost`.
    absent: Option<Absent>,
    spare: Spare,
}

/// Why pglease cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("listen.addresses: binding {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("listen.addresses: this machine has neither 127.0.0.1 nor ::1")]
    NoLoopback { source: io::Error },
    #[error("listen.unix_socket: making {path:?}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("listen.unix_socket: another server is listening at {path:?}")]
    UnixInUse { path: PathBuf },
    #[error("listen.unix_socket: {path:?} is there and is no socket; remove it")]
    NotASocket { path: PathBuf },
    #[error("listen.addresses: no port is free on both 127.0.0.1 and ::1")]
    NoCommonPort,
}

impl Listeners {
    /// Where it listens, with the ports that were chosen.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The Unix socket, if there is one.
    pub(crate) fn unix_socket(&self) -> Option<&Path> {
        self.unix.as_ref().map(|bound| bound.file.path())
    }

    /// What of `localhost` this machine does not have.
    pub(crate) fn take_absent(&mut self) -> Option<Absent> {
        self.absent.take()
    }

    fn push(&mut self, (socket, address): Bound) {
        self.sockets.push(socket);
        self.addresses.push(address);
    }
}

/// Opens all addresses of `config`, or none.
pub(crate) fn bind(config: &ListenConfig) -> Result<Listeners, BindError> {
    let mut listeners = Listeners {
        sockets: Vec::new(),
        addresses: Vec::new(),
        unix: None,
        absent: None,
        spare: Spare::keep(),
    };
    for &address in &config.addresses {
        match address {
            ListenAddress::Socket(address) => listeners.push(bind_socket(address)?),
            ListenAddress::Localhost { port } => {
                let (bound, absent) = bind_localhost(port, bind_socket)?;
                for socket in bound {
                    listeners.push(socket);
                }
                listeners.absent = absent.or(listeners.absent);
            }
        }
    }
    if let Some(socket) = &config.unix_socket {
        let port = listeners.addresses.first().map_or(DEFAULT_PORT, SocketAddr::port);
        listeners.unix = Some(unix::bind(socket, port)?);
    }
    Ok(listeners)
}

type Bound = (StdListener, SocketAddr);

/// 127.0.0.1 and `::1` on the same port; one of them, where the machine has no other. `bind` is [`bind_socket`], or
/// that of another machine.
fn bind_localhost(
    port: u16,
    bind: impl Fn(SocketAddr) -> Result<Bound, BindError>,
) -> Result<(Vec<Bound>, Option<Absent>), BindError> {
    for _ in 0..COMMON_PORT_TRIES {
        let first = if_present(bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))?;
        let common = first.as_ref().map_or(port, |(_, address)| address.port());
        let second = match if_present(bind(SocketAddr::from((Ipv6Addr::LOCALHOST, common)))) {
            // Chosen for the one, in use on the other: choose again.
            Err(BindError::Bind { source, .. }) if port == 0 && source.kind() == io::ErrorKind::AddrInUse => {
                continue;
            }
            second => second?,
        };
        return match (first, second) {
            (Err(Absent { source, .. }), Err(_)) => Err(BindError::NoLoopback { source }),
            (Ok(first), Ok(second)) => Ok((vec![first, second], None)),
            (Ok(only), Err(absent)) | (Err(absent), Ok(only)) => Ok((vec![only], Some(absent))),
        };
    }
    Err(BindError::NoCommonPort)
}

/// The inner error: the machine has no such address.
fn if_present(bound: Result<Bound, BindError>) -> Result<Result<Bound, Absent>, BindError> {
    match bound {
        Ok(bound) => Ok(Ok(bound)),
        Err(BindError::Bind { address, source }) => match Absent::or_error(address, source) {
            Ok(absent) => Ok(Err(absent)),
            Err(source) => Err(BindError::Bind { address, source }),
        },
        Err(error) => Err(error),
    }
}

fn bind_socket(address: SocketAddr) -> Result<Bound, BindError> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart need not wait for the connections of the process before.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // Of the connections that it accepts.
        net::prepare(&socket, &Silence::default())?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = StdListener::from(socket);
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    bound().map_err(|source| BindError::Bind { address, source })
}

/// Accepts until the process has drained. Returns when no task of it is left.
///
/// While draining it accepts on: a client may still want to cancel what runs. Fails only where the runtime cannot
/// take the sockets.
pub(crate) async fn serve(listeners: Listeners, threads: Threads, shared: Arc<Shared>) -> io::Result<()> {
    let tcp = listeners.sockets.into_iter().map(|socket| TcpListener::from_std(socket).map(Listener::Tcp));
    let (unix, file) = listeners.unix.map(|bound| (bound.listener, bound.file)).unzip();
    let unix = unix.into_iter().map(|socket| UnixListener::from_std(socket).map(Listener::Unix));
    let sockets = tcp.chain(unix).collect::<io::Result<Vec<_>>>()?;

    {
        let accepting = accept_all(&sockets, listeners.spare, &threads, &shared);
        tokio::select! {
            biased;
            () = drained(&shared) => {}
            () = accepting => {}
        }
    }
    drop((sockets, file));
    shared.places().clear();
    threads.all_free().await;
    shared.none_ready().await;
    info!(event = "listen.end");
    Ok(())
}

/// Returns when no new session may come and none is left.
async fn drained(shared: &Shared) {
    shared.refuses().await;
    shared.seats().all_free().await;
}

/// Never ends by itself. Where the process is out of descriptors or memory it pauses until there is more than one
/// connection takes.
async fn accept_all(sockets: &[Listener], mut spare: Spare, threads: &Threads, shared: &Arc<Shared>) {
    let mut backoff = Backoff::default();
    let mut is_exhausted = false;
    let mut copies = Copies::default();
    let mut next = 0;
    loop {
        match accept(sockets, &mut next).await {
            Ok(accepted) => {
                if std::mem::take(&mut is_exhausted) {
                    info!(event = "accept.resumed");
                    backoff.reset();
                }
                match accepted.identify(&mut copies) {
                    Ok((stream, peer)) => threads.carry(stream, peer, shared).await,
                    // It is gone already.
                    Err(error) => debug!(event = "accept.failed", %error),
                }
            }
            Err(error) if is_of_peer(&error) => debug!(event = "accept.failed", %error),
            Err(error) => {
                if !std::mem::replace(&mut is_exhausted, true) {
                    error!(event = "accept.exhausted", %error, "no new connection until there is room again");
                }
                spare.release();
                loop {
                    time::sleep(backoff.next(MAX_ACCEPT_DELAY, fastrand::f64())).await;
                    if spare.restore() {
                        break;
                    }
                }
            }
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        match self {
            Self::Tcp(socket) => {
                socket.poll_accept(cx).map_ok(|(stream, address)| Accepted::Tcp(stream, address))
            }
            Self::Unix(socket) => socket.poll_accept(cx).map_ok(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

#[derive(Debug)]
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Accepted {
    /// Who has connected. A TCP connection gets its socket options, if it does not have them.
    fn identify(self, copies: &mut Copies) -> io::Result<(ClientSocket, Peer)> {
        match self {
            Self::Tcp(stream, address) => {
                copies.complete(&stream, &Silence::default())?;
                Ok((ClientSocket::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix(stream) => {
                let uid = stream.peer_cred()?.uid();
                Ok((ClientSocket::Unix(stream), Peer::Unix { uid }))
            }
        }
    }
}

/// The next connection of any socket, beginning with that of `next`: a busy one keeps none of the others waiting. Cancel
/// safe.
async fn accept(sockets: &[Listener], next: &mut usize) -> io::Result<Accepted> {
    poll_fn(|cx| {
        let (before, from) = sockets.split_at((*next).min(sockets.len()));
        for socket in from.iter().chain(before) {
            *next = (*next + 1) % sockets.len().max(1);
            if let ready @ Poll::Ready(_) = socket.poll_accept(cx) {
                return ready;
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether the error is that of one connection, which then never was. accept(2) passes on errors of the network
/// that are already pending on the new socket.
fn is_of_peer(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const OF_PEER: [Errno; 10] = [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::INTR,
        Errno::PERM,
        Errno::PROTO,
        Errno::TIMEDOUT,
        Errno::NETDOWN,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
    ];
    OF_PEER.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Connections that the kernel keeps for us: a burst of a large pool.
const BACKLOG: i32 = 1024;
/// Between attempts to accept when the process is out of descriptors or memory.
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);
/// Free ports that are tried for both loopback addresses.
const COMMON_PORT_TRIES: usize = 16;

#[cfg(test)]
pub(crate) mod tests;
