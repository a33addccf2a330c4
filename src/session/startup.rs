//! From the first byte to the StartupMessage: what a client wants, within limits on time, bytes and number.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time;

use super::encryption::{ClientTls, Encryption};
use crate::net::ClientStream;
use crate::tls::ALPN;
use crate::wire::error::{ClientError, SqlState};
use crate::wire::startup::{
    CancelKey, FirstPacket, FirstPacketError, GSSENC_REQUEST, NEWEST_PROTOCOL, ProtocolVersion, SSL_REQUEST,
    StartupMessage, split_first_packet,
};

/// What a connection is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    Cancel(CancelKey),
    Session(StartupMessage, Encryption),
}

/// Why a connection never came to a StartupMessage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartupError {
    #[error("client closed the connection before its StartupMessage")]
    Closed,
    #[error("no StartupMessage within {STARTUP_TIMEOUT:?}")]
    TimedOut,
    #[error("connection gave its place to a newer one")]
    Evicted,
    /// Bytes that were sent before the answer to SSLRequest or GSSENCRequest was known belong to nobody that
    /// can be trusted (CVE-2021-23214).
    #[error("client sent unencrypted data behind its {request}")]
    Stuffed { request: &'static str },
    /// The same where the answer was yes: TLS comes next, and nothing can be said.
    #[error("client sent unencrypted data behind its SSL request, ahead of the TLS handshake")]
    StuffedHandshake,
    #[error("client begins with TLS, and there is none here")]
    NoTls,
    #[error("TLS handshake with the client")]
    Handshake(#[source] io::Error),
    #[error("client begins with TLS without naming the protocol \"postgresql\" (ALPN)")]
    NoAlpn,
    #[error("client sent a malformed first packet")]
    Malformed(#[from] FirstPacketError),
    #[error("connection to the client")]
    Io(#[from] io::Error),
}

impl StartupError {
    /// PostgreSQL's own answer, where it has one.
    pub(crate) fn client_error(&self) -> Option<ClientError> {
        match self {
            Self::Malformed(FirstPacketError::Version { version }) => {
                Some(ClientError::fatal(SqlState::FEATURE_NOT_SUPPORTED, unsupported(*version)))
            }
            Self::Malformed(FirstPacketError::Layout) => Some(ClientError::fatal(
                SqlState::PROTOCOL_VIOLATION,
                "invalid startup packet layout: expected terminator as last byte",
            )),
            Self::Stuffed { request } => Some(
                ClientError::fatal(
                    SqlState::PROTOCOL_VIOLATION,
                    format!("received unencrypted data after {request}"),
                )
                .with_detail(
                    "This could be either a client-software bug or evidence of an attempted man-in-the-middle \
                     attack.",
                ),
            ),
            Self::Malformed(FirstPacketError::Length { .. } | FirstPacketError::CancelKey { .. })
            | Self::StuffedHandshake
            | Self::NoTls
            | Self::Handshake(_)
            | Self::NoAlpn
            | Self::Closed
            | Self::TimedOut
            | Self::Evicted
            | Self::Io(_) => None,
        }
    }

    /// The same for a client of protocol 2 and below, who knows no fields: `E`, the text, `\0`.
    pub(crate) fn old_style_answer(&self) -> Option<Vec<u8>> {
        let Self::Malformed(FirstPacketError::Version { version }) = self else {
            return None;
        };
        // A client that names no version at all is taken for one of today.
        (version.major() < 3 && version.0 != 0)
            .then(|| format!("EFATAL:  {}\n\0", unsupported(*version)).into_bytes())
    }
}

fn unsupported(version: ProtocolVersion) -> String {
    format!("unsupported frontend protocol {version}: server supports 3.0 to {NEWEST_PROTOCOL}")
}

/// Reads up to the end of the CancelRequest or StartupMessage, within TLS where the client asks for it and there is
/// `tls`. What has come behind that stays in `early`.
///
/// Not cancel safe: what was read is lost.
pub(crate) async fn read<T>(
    client: &mut ClientStream<T>,
    early: &mut BytesMut,
    tls: Option<&ClientTls>,
) -> Result<Startup, StartupError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening = Opening { client, early, tls, encryption: Encryption::None };
    time::timeout(STARTUP_TIMEOUT, opening.converse()).await.unwrap_or(Err(StartupError::TimedOut))
}

/// A connection that has not said yet what it is for.
struct Opening<'a, T> {
    client: &'a mut ClientStream<T>,
    early: &'a mut BytesMut,
    tls: Option<&'a ClientTls>,
    encryption: Encryption,
}

impl<T> Opening<'_, T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Answers requests for encryption, each kind once, until the client says what it wants; tells it at once of
    /// what it wants in vain.
    async fn converse(&mut self) -> Result<Startup, StartupError> {
        self.accept_direct().await?;
        let (mut ssl_answered, mut gssenc_answered) = (false, false);
        loop {
            match self.read_packet().await? {
                FirstPacket::Startup(message) => {
                    let mut negotiation = BytesMut::new();
                    message.encode_negotiation(&mut negotiation);
                    self.say(&negotiation).await?;
                    return Ok(Startup::Session(
                        message,
                        std::mem::replace(&mut self.encryption, Encryption::None),
                    ));
                }
                FirstPacket::Cancel(key) => return Ok(Startup::Cancel(key)),
                FirstPacket::SslRequest if !std::mem::replace(&mut ssl_answered, true) => {
                    // Within TLS there is no other kind of encryption to be had, either.
                    gssenc_answered |= self.answer_ssl_request().await?;
                }
                FirstPacket::GssencRequest if !std::mem::replace(&mut gssenc_answered, true) => {
                    self.decline("GSSAPI encryption request").await?;
                }
                // A second time the code is a version like any other, as in the server.
                FirstPacket::SslRequest => return Err(unknown_version(SSL_REQUEST)),
                FirstPacket::GssencRequest => return Err(unknown_version(GSSENC_REQUEST)),
            }
        }
    }

    /// TLS from the first byte on, without a request. PostgreSQL manual, "SSL Session Encryption": such a client
    /// must name the protocol, so that what was meant for another server cannot be taken for ours.
    async fn accept_direct(&mut self) -> Result<(), StartupError> {
        while self.early.is_empty() {
            self.read_more().await?;
        }
        if self.early.first() != Some(&TLS_HANDSHAKE) {
            return Ok(());
        }
        let tls = self.tls.ok_or(StartupError::NoTls)?;
        self.accept(tls).await?;
        if self.client.alpn() == Some(ALPN) { Ok(()) } else { Err(StartupError::NoAlpn) }
    }

    /// Whether TLS has begun.
    async fn answer_ssl_request(&mut self) -> Result<bool, StartupError> {
        let Some(tls) = self.tls.filter(|_| self.encryption == Encryption::None) else {
            return self.decline("SSL request").await.map(|()| false);
        };
        self.say(b"S").await?;
        if !self.early.is_empty() {
            return Err(StartupError::StuffedHandshake);
        }
        self.accept(tls).await.map(|()| true)
    }

    async fn accept(&mut self, tls: &ClientTls) -> Result<(), StartupError> {
        let accepted = tls.accept(self.client, self.early.split()).await;
        self.encryption = accepted.map_err(StartupError::Handshake)?;
        Ok(())
    }

    async fn decline(&mut self, request: &'static str) -> Result<(), StartupError> {
        self.say(b"N").await?;
        if self.early.is_empty() { Ok(()) } else { Err(StartupError::Stuffed { request }) }
    }

    async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.client.write_all(bytes).await?;
        self.client.flush().await
    }

    async fn read_packet(&mut self) -> Result<FirstPacket, StartupError> {
        loop {
            if let Some((packet, len)) = split_first_packet(self.early)? {
                self.early.advance(len);
                return Ok(packet);
            }
            // A declared length above the limit is an error at its fourth byte, so this grows to the limit at most.
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> Result<(), StartupError> {
        self.early.reserve(READ_LEN);
        match self.client.read_buf(self.early).await? {
            0 => Err(StartupError::Closed),
            _ => Ok(()),
        }
    }
}

fn unknown_version(code: u32) -> StartupError {
    FirstPacketError::Version { version: ProtocolVersion(code) }.into()
}

/// What a TLS handshake begins with (RFC 8446 §5.1, `ContentType`).
const TLS_HANDSHAKE: u8 = 0x16;
/// From accept to the end of the StartupMessage.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A usual StartupMessage, in bytes.
const READ_LEN: usize = 256;

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::wire::startup::PROTOCOL_3_0;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len() + 8).unwrap().to_be_bytes()[..], &code.to_be_bytes(), body].concat()
    }

    fn startup() -> Vec<u8> {
        packet(PROTOCOL_3_0, b"user\0a\0\0")
    }

    /// Reads what `sent` begins with; gives the verdict, what was answered and what was left.
    async fn after(sent: &[u8]) -> (Result<Startup, StartupError>, Vec<u8>, BytesMut) {
        let (ours, mut theirs) = duplex(64 * 1024);
        let mut ours = ClientStream::Plain(ours);
        theirs.write_all(sent).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut early = BytesMut::new();
        let outcome = read(&mut ours, &mut early, None).await;
        drop(ours);
        let mut answered = Vec::new();
        theirs.read_to_end(&mut answered).await.unwrap();
        (outcome, answered, early)
    }

    /// As [`after`], each packet once the one before it has been answered.
    async fn in_turn(packets: &[Vec<u8>]) -> (Result<Startup, StartupError>, usize) {
        let (ours, mut theirs) = duplex(64 * 1024);
        let mut ours = ClientStream::Plain(ours);
        let mut early = BytesMut::new();
        let talk = async {
            let mut answers = 0;
            for packet in packets {
                theirs.write_all(packet).await.unwrap();
                if packet.len() == 8 && theirs.read_u8().await.is_ok_and(|byte| byte == b'N') {
                    answers += 1;
                }
            }
            answers
        };
        let outcome = async {
            let outcome = read(&mut ours, &mut early, None).await;
            drop(ours);
            outcome
        };
        tokio::join!(outcome, talk)
    }

    #[tokio::test(start_paused = true)]
    async fn startup_message_may_have_company_behind_it() {
        let (outcome, answered, early) = after(&[startup(), b"Q\0\0\0\x06a\0".to_vec()].concat()).await;
        assert!(
            matches!(outcome, Ok(Startup::Session(message, Encryption::None)) if message.parameters.get("user") == Some(b"a"))
        );
        assert!(answered.is_empty());
        assert_eq!(&early[..], b"Q\0\0\0\x06a\0");
    }

    #[tokio::test(start_paused = true)]
    async fn encryption_is_declined_once_of_each_kind() {
        let (ssl, gssenc) = (packet(SSL_REQUEST, b""), packet(GSSENC_REQUEST, b""));

        let (outcome, answers) = in_turn(&[gssenc.clone(), ssl.clone(), startup()]).await;
        assert!(matches!(outcome, Ok(Startup::Session(..))));
        assert_eq!(answers, 2);

        let (outcome, answers) = in_turn(&[ssl.clone(), gssenc, ssl]).await;
        let error = outcome.unwrap_err();
        assert_eq!(answers, 2);
        assert_eq!(
            error.client_error(),
            Some(ClientError::fatal(
                SqlState::FEATURE_NOT_SUPPORTED,
                "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2"
            ))
        );
        assert_eq!(error.old_style_answer(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_behind_a_request_for_encryption_are_not_read() {
        for (code, request) in [(SSL_REQUEST, "SSL request"), (GSSENC_REQUEST, "GSSAPI encryption request")] {
            let (outcome, answered, early) = after(&[packet(code, b""), startup()].concat()).await;
            assert_eq!(answered, b"N");
            assert_eq!(early, startup());
            let error = outcome.unwrap_err();
            assert!(matches!(error, StartupError::Stuffed { .. }));
            let Some(ClientError::Own { message, .. }) = error.client_error() else { panic!("{error}") };
            assert_eq!(message, format!("received unencrypted data after {request}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_garbage_and_half_packets_are_answered_as_postgresql_does() {
        for sent in
            [&b""[..], b"\0\0", &startup()[..9], b"GET / HTTP/1.1\r\n", b"\0\0\0\x07", b"\x7f\xff\xff\xff"]
        {
            let (outcome, answered, _) = after(sent).await;
            assert_eq!(outcome.unwrap_err().client_error(), None);
            assert!(answered.is_empty());
        }
        let (outcome, ..) = after(&packet(0x0002_0000, b"\0")).await;
        assert_eq!(
            outcome.unwrap_err().old_style_answer().unwrap(),
            b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_says_a_byte_now_and_then_is_given_ten_seconds() {
        for pause in [Duration::from_secs(1), Duration::from_mins(1)] {
            let (ours, mut theirs) = duplex(64);
            let mut ours = ClientStream::Plain(ours);
            let mut early = BytesMut::new();
            let began = time::Instant::now();
            let drip = async {
                for byte in startup() {
                    theirs.write_all(&[byte]).await.unwrap();
                    time::sleep(pause).await;
                }
            };
            tokio::select! {
                outcome = read(&mut ours, &mut early, None) => {
                    assert!(matches!(outcome, Err(StartupError::TimedOut)));
                }
                () = drip => panic!("outlived the limit"),
            }
            assert_eq!(began.elapsed(), STARTUP_TIMEOUT);
        }
    }
}
