//! From the first byte to the StartupMessage: what a client wants, within limits on time, bytes and number.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time;

use crate::wire::error::{ClientError, SqlState};
use crate::wire::startup::{
    CancelKey, FirstPacket, FirstPacketError, GSSENC_REQUEST, NEWEST_PROTOCOL, ProtocolVersion, SSL_REQUEST,
    StartupMessage, split_first_packet,
};

/// What a connection is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    Cancel(CancelKey),
    Session(StartupMessage),
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

/// Reads up to the end of the CancelRequest or StartupMessage. What has come behind that stays in `early`.
///
/// Not cancel safe: what was read is lost.
pub(crate) async fn read<C>(client: &mut C, early: &mut BytesMut) -> Result<Startup, StartupError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    time::timeout(STARTUP_TIMEOUT, converse(client, early)).await.unwrap_or(Err(StartupError::TimedOut))
}

/// Declines encryption, each kind once, until the client says what it wants; tells it at once of what it wants in
/// vain.
async fn converse<C>(client: &mut C, early: &mut BytesMut) -> Result<Startup, StartupError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (mut ssl_declined, mut gssenc_declined) = (false, false);
    loop {
        let (declined, code, request) = match read_packet(client, early).await? {
            FirstPacket::Startup(message) => {
                let mut negotiation = BytesMut::new();
                message.encode_negotiation(&mut negotiation);
                say(client, &negotiation).await?;
                return Ok(Startup::Session(message));
            }
            FirstPacket::Cancel(key) => return Ok(Startup::Cancel(key)),
            FirstPacket::SslRequest => (&mut ssl_declined, SSL_REQUEST, "SSL request"),
            FirstPacket::GssencRequest => (&mut gssenc_declined, GSSENC_REQUEST, "GSSAPI encryption request"),
        };
        if std::mem::replace(declined, true) {
            // A second time the code is a version like any other, as in the server.
            return Err(FirstPacketError::Version { version: ProtocolVersion(code) }.into());
        }
        say(client, b"N").await?;
        if !early.is_empty() {
            return Err(StartupError::Stuffed { request });
        }
    }
}

async fn say<C: AsyncWrite + Unpin>(client: &mut C, bytes: &[u8]) -> io::Result<()> {
    client.write_all(bytes).await?;
    client.flush().await
}

async fn read_packet<C>(client: &mut C, buf: &mut BytesMut) -> Result<FirstPacket, StartupError>
where
    C: AsyncRead + Unpin,
{
    loop {
        if let Some((packet, len)) = split_first_packet(buf)? {
            buf.advance(len);
            return Ok(packet);
        }
        // A declared length above the limit is an error at its fourth byte, so this grows to the limit at most.
        buf.reserve(READ_LEN);
        if client.read_buf(buf).await? == 0 {
            return Err(StartupError::Closed);
        }
    }
}

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
        let (mut ours, mut theirs) = duplex(64 * 1024);
        theirs.write_all(sent).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut early = BytesMut::new();
        let outcome = read(&mut ours, &mut early).await;
        drop(ours);
        let mut answered = Vec::new();
        theirs.read_to_end(&mut answered).await.unwrap();
        (outcome, answered, early)
    }

    /// As [`after`], each packet once the one before it has been answered.
    async fn in_turn(packets: &[Vec<u8>]) -> (Result<Startup, StartupError>, usize) {
        let (mut ours, mut theirs) = duplex(64 * 1024);
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
            let outcome = read(&mut ours, &mut early).await;
            drop(ours);
            outcome
        };
        tokio::join!(outcome, talk)
    }

    #[tokio::test(start_paused = true)]
    async fn startup_message_may_have_company_behind_it() {
        let (outcome, answered, early) = after(&[startup(), b"Q\0\0\0\x06a\0".to_vec()].concat()).await;
        assert!(
            matches!(outcome, Ok(Startup::Session(message)) if message.parameters.get("user") == Some(b"a"))
        );
        assert!(answered.is_empty());
        assert_eq!(&early[..], b"Q\0\0\0\x06a\0");
    }

    #[tokio::test(start_paused = true)]
    async fn encryption_is_declined_once_of_each_kind() {
        let (ssl, gssenc) = (packet(SSL_REQUEST, b""), packet(GSSENC_REQUEST, b""));

        let (outcome, answers) = in_turn(&[gssenc.clone(), ssl.clone(), startup()]).await;
        assert!(matches!(outcome, Ok(Startup::Session(_))));
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
            let (mut ours, mut theirs) = duplex(64);
            let mut early = BytesMut::new();
            let began = time::Instant::now();
            let drip = async {
                for byte in startup() {
                    theirs.write_all(&[byte]).await.unwrap();
                    time::sleep(pause).await;
                }
            };
            tokio::select! {
                outcome = read(&mut ours, &mut early) => {
                    assert!(matches!(outcome, Err(StartupError::TimedOut)));
                }
                () = drip => panic!("outlived the limit"),
            }
            assert_eq!(began.elapsed(), STARTUP_TIMEOUT);
        }
    }
}
