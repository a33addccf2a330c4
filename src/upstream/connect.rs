//! From an address to a connection that a login may begin on: TCP, and TLS by SSLRequest.

use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::config::Silence;
use crate::net;
use crate::wire::binding::{EndPointError, EndPointHash};
use crate::wire::startup::SSL_REQUEST;

/// Why there is no TLS with an upstream that accepted the connection. Of what a stranger sent no more is shown than
/// its first byte: it is not PostgreSQL's, or not protected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NegotiationError {
    #[error("upstream does not do TLS, which sslmode asks for")]
    Refused,
    #[error("upstream answered the request for TLS with an error, of which the text is not to be trusted")]
    ErrorResponse,
    #[error("upstream answered the request for TLS with byte {byte:#04x} ({}), not as PostgreSQL does", guess(*byte))]
    Stranger { byte: u8 },
    #[error("upstream sent unencrypted bytes behind its consent to TLS")]
    Stuffed,
    #[error("upstream closed the connection on the request for TLS")]
    Closed,
    #[error("connection broke during the request for TLS")]
    Io(#[source] io::Error),
    #[error("TLS handshake with upstream failed{}", meaning(source, *is_direct))]
    Handshake { source: io::Error, is_direct: bool },
    #[error("upstream does TLS at once but has not agreed to speak PostgreSQL over it (ALPN)")]
    NoAlpn,
    #[error(
        "upstream has not asked for the certificate of sslcert, or takes none of its kind; sslcertmode=require insists on it"
    )]
    CertificateNotShown,
    #[error("channel binding is required and cannot be had")]
    EndPoint(#[from] EndPointError),
    #[error("channel binding is required, which plain TCP does not have")]
    NoTls,
}

/// What else a first byte could belong to.
fn guess(byte: u8) -> &'static str {
    match byte {
        0x15 => "a TLS alert: does this port want TLS at once?",
        b'H' => "HTTP?",
        _ => "another protocol?",
    }
}

/// What a failed handshake means, where rustls' own words leave that open.
fn meaning(failure: &io::Error, is_direct: bool) -> &'static str {
    let fault = failure.get_ref().and_then(|fault| fault.downcast_ref::<rustls::Error>());
    match fault {
        Some(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)) => {
            ": it may have no certificate that can be verified here, where RSA, ECDSA with P-256 or P-384 and Ed25519 \
             can"
        }
        Some(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            ": it speaks no version of TLS that we do"
        }
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            ": it is there for other protocols than PostgreSQL's"
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        )) => ": its certificate is signed in a way that cannot be verified here",
        None if is_direct && is_end(failure) => {
            ": it closed the connection, as servers before PostgreSQL 17 do with sslnegotiation=direct"
        }
        _ => "",
    }
}

fn is_end(failure: &io::Error) -> bool {
    matches!(
        failure.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// What a login over `stream` can be bound to.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Result<EndPointHash, EndPointError> {
    let (_, connection) = stream.get_ref();
    // Without a certificate there would be no connection: an empty one is malformed.
    let certificate = connection.peer_certificates().and_then(<[_]>::first);
    EndPointHash::of_certificate(certificate.map_or(&[], AsRef::as_ref))
}

/// One TCP connection, with its socket options.
pub(super) async fn tcp(address: SocketAddr, silence: &Silence) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    net::prepare(&stream, silence)?;
    Ok(stream)
}

/// SSLRequest and its answer, which is one byte: what is read beyond it would pass for protected.
///
/// PostgreSQL manual, "SSL Session Encryption"; CVE-2021-23222, CVE-2024-10977.
pub(super) async fn request(stream: &mut TcpStream) -> Result<(), NegotiationError> {
    let [c3, c2, c1, c0] = SSL_REQUEST.to_be_bytes();
    stream.write_all(&[0, 0, 0, 8, c3, c2, c1, c0]).await.map_err(NegotiationError::Io)?;

    let mut answer = [0];
    match stream.read(&mut answer).await.map_err(NegotiationError::Io)? {
        0 => return Err(NegotiationError::Closed),
        _ => match answer {
            [b'S'] => {}
            [b'N'] => return Err(NegotiationError::Refused),
            [b'E'] => return Err(NegotiationError::ErrorResponse),
            [byte] => return Err(NegotiationError::Stranger { byte }),
        },
    }
    // PostgreSQL says nothing until it has our ClientHello.
    if has_more(stream).await { Err(NegotiationError::Stuffed) } else { Ok(()) }
}

/// Whether a byte is there to be read. Does not wait; an end or a broken connection is for the reader to find.
async fn has_more(stream: &TcpStream) -> bool {
    let mut byte = [0];
    std::future::poll_fn(|cx| {
        let peeked = stream.poll_peek(cx, &mut ReadBuf::new(&mut byte));
        Poll::Ready(matches!(peeked, Poll::Ready(Ok(len)) if len > 0))
    })
    .await
}
