//! The connections that sessions run over, and their socket options.

mod absent;
pub(crate) mod batch;
mod client;
mod low_mark;
mod seats;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::config::{Keepalive, Silence};

pub(crate) use absent::{Absent, counterpart, is_absent};
pub(crate) use client::{ClientSocket, ClientStream, Peer};
pub(crate) use low_mark::set_low_mark;
pub(crate) use seats::{Seat, Seats};

/// Sets what every connection has, to a client or an upstream: no delay of small messages, and how its death is
/// noticed where no word of it comes. `socket` is new, so that what is left to the system need not be set.
///
/// Linux gives what a listening socket has to the connections that it accepts, at no call each: [`Copies`].
pub(crate) fn prepare<S: AsFd>(socket: &S, silence: &Silence) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    if let Some(Keepalive { idle, interval, count }) = silence.keepalive {
        let keepalive = TcpKeepalive::new();
        let keepalive = idle.into_iter().fold(keepalive, TcpKeepalive::with_time);
        let keepalive = interval.into_iter().fold(keepalive, TcpKeepalive::with_interval);
        let keepalive = count.into_iter().fold(keepalive, TcpKeepalive::with_retries);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    match silence.user_timeout {
        timeout @ Some(_) => socket.set_tcp_user_timeout(timeout),
        None => Ok(()),
    }
}

/// Whether connections have the options of the socket that has accepted them: of Linux, and not of gVisor, which keeps
/// keepalives and the like to each socket. Known from the first connection on.
#[derive(Debug, Default)]
pub(crate) struct Copies(Option<bool>);

impl Copies {
    /// Sees to it that `stream`, which a socket that was prepared for `silence` has accepted, is so as well.
    pub(crate) fn complete(&mut self, stream: &TcpStream, silence: &Silence) -> io::Result<()> {
        let is_prepared = match self.0 {
            Some(is_prepared) => is_prepared,
            None => *self.0.insert(stream.nodelay()?),
        };
        if is_prepared { Ok(()) } else { prepare(stream, silence) }
    }
}

/// A connection that may be a socket and nothing else.
pub(crate) trait Direct {
    /// The socket, where what is written to it is what goes out. It is the connection's, and never waits.
    fn direct(&self) -> Option<RawFd> {
        None
    }
}

/// A connection to an upstream.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Has the thread that calls this look after the connection from here on. Nothing of what goes over it is lost; what
    /// goes wrong leaves it with the thread before.
    pub(crate) fn come_here(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => come_here(stream),
            Self::Unix(stream) => {
                *stream = UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?;
                Ok(())
            }
            Self::Tls(stream) => come_here(stream.get_mut().0),
        }
    }

    /// See [`set_low_mark`]. Not of TLS, whose cost is another, nor of a Unix socket, which does not heed it.
    pub(crate) fn set_low_mark(&self, len: usize) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => set_low_mark(stream, len),
            Self::Unix(_) | Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Direct for Stream {
    fn direct(&self) -> Option<RawFd> {
        match self {
            Self::Tcp(stream) => Some(stream.as_raw_fd()),
            Self::Unix(stream) => Some(stream.as_raw_fd()),
            Self::Tls(_) => None,
        }
    }
}

#[cfg(test)]
impl Direct for tokio::io::DuplexStream {}

#[cfg(test)]
impl Direct for TcpStream {
    fn direct(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

#[cfg(test)]
impl Direct for UnixStream {
    fn direct(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

/// In place, by a second descriptor: TLS does not let go of its connection.
fn come_here(stream: &mut TcpStream) -> io::Result<()> {
    *stream = TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?;
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Whether it probes, idle, interval, count and timeout.
    type Options = (bool, Duration, Duration, u32, Option<Duration>);

    fn options(stream: &TcpStream) -> Options {
        let socket = SockRef::from(stream);
        (
            socket.keepalive().unwrap(),
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
            socket.tcp_keepalive_retries().unwrap(),
            socket.tcp_user_timeout().unwrap().filter(|timeout| !timeout.is_zero()),
        )
    }

    /// Those of a socket that is prepared for `silence`.
    async fn prepared(silence: Silence) -> Options {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        prepare(&stream, &silence).unwrap();
        assert!(stream.nodelay().unwrap());
        options(&stream)
    }

    /// What sends at once and probes as asked, in every option but the system's own.
    fn quick() -> Silence {
        let seconds = Duration::from_secs;
        let keepalive = Keepalive { idle: Some(seconds(2)), interval: Some(seconds(1)), count: Some(3) };
        Silence { keepalive: Some(keepalive), user_timeout: Some(seconds(5)) }
    }

    const QUICK: Options =
        (true, Duration::from_secs(2), Duration::from_secs(1), 3, Some(Duration::from_secs(5)));

    #[tokio::test]
    async fn prepared_connection_sends_at_once_and_probes_a_silent_path() {
        let seconds = Duration::from_secs;
        assert_eq!(prepared(Silence::default()).await, (true, seconds(60), seconds(10), 6, None));
        assert_eq!(prepared(quick()).await, QUICK);
    }

    #[tokio::test]
    async fn accepted_connection_is_as_the_listening_socket_or_is_made_so() {
        for is_prepared in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if is_prepared {
                prepare(&listener, &quick()).unwrap();
            }
            let mut copies = Copies::default();
            for _ in 0..2 {
                let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (stream, _) = listener.accept().await.unwrap();
                assert_eq!(options(&stream) == QUICK, is_prepared);
                copies.complete(&stream, &quick()).unwrap();
                assert_eq!((options(&stream), stream.nodelay().unwrap()), (QUICK, true));
            }
            assert_eq!(copies.0, Some(is_prepared));
        }
    }

    /// Bytes over a connection that two threads have looked after, the first of which is gone.
    fn moved(connected: impl AsyncFnOnce() -> (Stream, Stream)) -> [u8; 2] {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (runtime(), runtime());
        let (mut far, mut near) = first.block_on(connected());
        first.block_on(far.write_all(b"1")).unwrap();
        second.block_on(async move {
            far.come_here().unwrap();
            near.come_here().unwrap();
            first.shutdown_background();
            far.write_all(b"2").await.unwrap();
            let mut read = [0; 2];
            near.read_exact(&mut read).await.unwrap();
            read
        })
    }

    #[test]
    fn connection_goes_on_with_another_thread() {
        let tcp = async || {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (Stream::Tcp(listener.accept().await.unwrap().0), Stream::Tcp(near))
        };
        let unix = async || {
            let (far, near) = UnixStream::pair().unwrap();
            (Stream::Unix(far), Stream::Unix(near))
        };
        assert_eq!((moved(tcp), moved(unix)), (*b"12", *b"12"));
    }

    #[tokio::test]
    async fn what_is_left_to_the_system_is_not_touched() {
        let off = Silence { keepalive: None, user_timeout: None };
        let (is_on, idle, interval, count, timeout) = prepared(off).await;
        assert!(!is_on && timeout.is_none());
        let systems = Keepalive { idle: None, interval: None, count: None };
        let left = Silence { keepalive: Some(systems), user_timeout: None };
        assert_eq!(prepared(left).await, (true, idle, interval, count, None));
    }
}
