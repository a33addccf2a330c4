//! A client that speaks in bytes and shows what it is told as it came.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time;

use crate::PATIENCE;

/// One connection, to pglease or to PostgreSQL itself.
pub(crate) struct Raw {
    stream: Box<dyn Stream>,
    unread: BytesMut,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A whole message of the backend.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn connect_unix(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).await.unwrap())
    }

    /// Over TLS, say.
    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), unread: BytesMut::new() }
    }

    /// A session of pglease's, or of a server that asks for SCRAM; with its greeting up to ReadyForQuery.
    pub(crate) async fn log_in(
        address: SocketAddr,
        parameters: &[(&str, &str)],
        password: &str,
    ) -> (Self, Vec<Message>) {
        let mut raw = Self::connect(address).await;
        raw.send(&startup(parameters)).await;
        raw.authenticate(password).await;
        let greeting = raw.up_to(b'Z').await;
        (raw, greeting)
    }

    /// Answers what is asked up to AuthenticationOk or an error, which is left to be read.
    pub(crate) async fn authenticate(&mut self, password: &str) {
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let header = self.peek().await;
            if header[0] != b'R' {
                return;
            }
            let message = self.message().await.unwrap();
            let (code, data) = message.body.split_first_chunk().unwrap();
            let mut out = BytesMut::new();
            match u32::from_be_bytes(*code) {
                0 => return,
                10 => frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).unwrap(),
                11 => {
                    scram.update(data).unwrap();
                    frontend::sasl_response(scram.message(), &mut out).unwrap();
                }
                12 => scram.finish(data).unwrap(),
                code => panic!("request {code}"),
            }
            self.send(&out).await;
        }
    }

    /// Sends, unless the other side has closed: what it said before that is still to be read.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        // TLS may keep some of it.
        let _ = self.stream.flush().await;
    }

    pub(crate) async fn query(&mut self, sql: &str) {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).unwrap();
        self.send(&out).await;
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The one byte that answers a request for encryption; `None` at the end.
    pub(crate) async fn byte(&mut self) -> Option<u8> {
        self.fill(1).await.then(|| self.unread.split_to(1)[0])
    }

    /// The next message; `None` at the end.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        if !self.fill(5).await {
            assert!(self.unread.is_empty(), "cut within a message: {}", self.unread.escape_ascii());
            return None;
        }
        let len = u32::from_be_bytes(self.unread[1..5].try_into().unwrap()) as usize;
        assert!(self.fill(1 + len).await, "cut within a message: {}", self.unread.escape_ascii());
        let bytes = self.unread.split_to(1 + len);
        Some(Message { tag: bytes[0], body: bytes[5..].to_vec() })
    }

    /// The next message; `None` at an end, and also where that comes within a message. Cancel safe.
    pub(crate) async fn whole_message(&mut self) -> Option<Message> {
        if !self.fill(5).await {
            return None;
        }
        let len = u32::from_be_bytes(self.unread[1..5].try_into().unwrap()) as usize;
        if self.fill(1 + len).await { self.message().await } else { None }
    }

    /// All messages up to the first of this kind.
    pub(crate) async fn up_to(&mut self, tag: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.last().is_none_or(|message: &Message| message.tag != tag) {
            let message = self.message().await;
            messages.push(message.unwrap_or_else(|| panic!("closed behind {messages:?}")));
        }
        messages
    }

    /// All messages up to the end, which may be a reset.
    pub(crate) async fn rest(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message().await {
            messages.push(message);
        }
        messages
    }

    /// All bytes up to the end.
    pub(crate) async fn bytes(&mut self) -> Vec<u8> {
        while self.read().await {}
        self.unread.split().to_vec()
    }

    /// Tag and length of the next message, which is left to be read.
    pub(crate) async fn peek(&mut self) -> [u8; 5] {
        assert!(self.fill(5).await, "closed at once");
        self.unread[..5].try_into().unwrap()
    }

    /// Whether so many bytes are there before the end.
    async fn fill(&mut self, len: usize) -> bool {
        while self.unread.len() < len {
            if !self.read().await {
                return false;
            }
        }
        true
    }

    async fn read(&mut self) -> bool {
        let read = time::timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await;
        match read.expect("neither a word nor an end") {
            Ok(len) => len > 0,
            // The latter is TLS without a goodbye.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                false
            }
            Err(error) => panic!("{error}"),
        }
    }
}

impl Message {
    /// The fields of an ErrorResponse, in order.
    pub(crate) fn fields(&self) -> Vec<(char, String)> {
        let fields = self.body.split(|&byte| byte == 0).filter_map(|field| {
            let (&name, value) = field.split_first()?;
            Some((char::from(name), String::from_utf8(value.to_vec()).unwrap()))
        });
        fields.collect()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", char::from(self.tag), self.body.escape_ascii())
    }
}

/// Tag and body of a row of one text.
pub(crate) fn row(text: &str) -> (u8, Vec<u8>) {
    let len = u32::try_from(text.len()).unwrap();
    (b'D', [&[0, 1][..], &len.to_be_bytes(), text.as_bytes()].concat())
}

/// A StartupMessage of protocol 3.0.
pub(crate) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::startup_message(parameters.iter().copied(), &mut out).unwrap();
    out.to_vec()
}

/// A packet without a tag: length, code, body.
pub(crate) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len() + 8).unwrap().to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}
