//! A client's connection: TCP or a Unix socket, and TLS over it once the client has asked for that.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Direct;

/// What the listener has accepted.
#[derive(Debug)]
pub(crate) enum ClientSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl ClientSocket {
    /// The same on the thread that calls this, which looks after it from here on.
    pub(crate) fn come_here(self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.into_std().and_then(TcpStream::from_std).map(Self::Tcp),
            Self::Unix(stream) => stream.into_std().and_then(UnixStream::from_std).map(Self::Unix),
        }
    }
}

impl Direct for ClientSocket {
    fn direct(&self) -> Option<RawFd> {
        match self {
            Self::Tcp(stream) => Some(stream.as_raw_fd()),
            Self::Unix(stream) => Some(stream.as_raw_fd()),
        }
    }
}

/// Who is at the other end, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// The user of the process that connected, at the time it did.
    Unix {
        uid: u32,
    },
}

/// An address and port, or `uid` and its number.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { uid } => write!(f, "uid {uid}"),
        }
    }
}

/// A client over a transport `T`. Begins in plain; [`Self::upgrade`] puts TLS over it.
#[derive(Debug)]
pub(crate) enum ClientStream<T> {
    Plain(T),
    /// In a box, so that a plain session does not keep the room for it.
    Tls(Box<TlsStream<Rewound<T>>>),
    /// A handshake failed, and its alert may be on its way: nothing is said behind it.
    Refused(T),
    /// A handshake has begun and was given up. The connection is closed.
    Gone,
}

impl<T> ClientStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Does the handshake with a client that has already sent `early` of it.
    ///
    /// Not cancel safe: the connection is lost.
    pub(crate) async fn upgrade(&mut self, acceptor: &TlsAcceptor, early: BytesMut) -> io::Result<()> {
        let stream = match std::mem::replace(self, Self::Gone) {
            Self::Plain(stream) => stream,
            other @ (Self::Tls(_) | Self::Refused(_) | Self::Gone) => {
                *self = other;
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        match acceptor.accept(Rewound { early, stream }).into_fallible().await {
            Ok(stream) => {
                *self = Self::Tls(Box::new(stream));
                Ok(())
            }
            Err((error, Rewound { stream, .. })) => {
                *self = Self::Refused(stream);
                Err(error)
            }
        }
    }

    /// The protocol that both sides have agreed on within TLS.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Plain(_) | Self::Refused(_) | Self::Gone => None,
        }
    }

    /// Whether a close takes more than closing the socket: TLS has a word for the end, and its alerts are lost where
    /// a reset follows them.
    pub(crate) fn has_goodbye(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Refused(_))
    }
}

impl<T: Direct> Direct for ClientStream<T> {
    fn direct(&self) -> Option<RawFd> {
        match self {
            Self::Plain(socket) => socket.direct(),
            Self::Tls(_) | Self::Refused(_) | Self::Gone => None,
        }
    }
}

impl<T> AsyncRead for ClientStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Over TLS, an end of the socket without the word for it is an end as any other: PostgreSQL's messages have
    /// lengths of their own, so that none can be cut short unnoticed, and many drivers just close.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) | Self::Refused(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf).map(|read| match read {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                read => read,
            }),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}

impl<T> AsyncWrite for ClientStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Refused(_) | Self::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) | Self::Refused(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) | Self::Refused(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}

/// A stream of which the beginning has been read already.
#[derive(Debug)]
pub(crate) struct Rewound<T> {
    early: BytesMut,
    stream: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { early, stream } = self.get_mut();
        if early.is_empty() {
            return Pin::new(stream).poll_read(cx, buf);
        }
        let len = early.len().min(buf.remaining());
        buf.put_slice(early.get(..len).unwrap_or_default());
        early.advance(len);
        if early.is_empty() {
            // Its memory is of no more use.
            *early = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// With `poll_write_vectored`, by which TLS writes several records at once.
impl<T: AsyncWrite + Unpin> AsyncWrite for Rewound<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
