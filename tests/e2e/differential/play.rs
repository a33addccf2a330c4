//! Plays a script on one leg and takes down what was heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::script::{Key, Names, Script, Step, Who};
use crate::PATIENCE;
use crate::raw::{Message, packet};
use crate::support::postgres::Database;

/// A way to PostgreSQL.
#[derive(Clone)]
pub(super) struct Leg {
    pub(super) address: Address,
    pub(super) names: Names,
    /// What its clients prove that they know if they are asked, unless the script has its own answers.
    pub(super) password: Option<&'static str>,
    /// The CA that vouches for the other side.
    pub(super) trust: Option<Arc<RootCertStore>>,
    /// Where the superuser's connection goes: straight to the server.
    pub(super) port: u16,
}

#[derive(Clone)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// With TLS from the start of each script on, by SSLRequest.
    Tls(SocketAddr),
}

/// In what pieces bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pieces {
    /// As the script has them.
    Whole,
    /// Each of them cut at random.
    Cut,
    /// Byte by byte.
    Bytes,
    /// All at once, before anything is read.
    Merged,
}

/// What the clients of a script have heard.
#[derive(Default)]
pub(super) struct Transcript {
    pub(super) heard: BTreeMap<Who, Vec<Heard>>,
    pub(super) pids: BTreeMap<Who, i32>,
}

pub(super) enum Heard {
    Byte(u8),
    /// TLS stands, with this protocol of the application layer.
    Tls(Option<Vec<u8>>),
    Message(Message),
    /// The end, behind bytes that are no whole message.
    End {
        behind: Vec<u8>,
        is_reset: bool,
    },
}

impl Leg {
    /// Whether a session begins.
    pub(super) async fn lets_in(&self) -> bool {
        let transcript = self.play(&Script::session("beginning", &self.names), Pieces::Whole).await;
        !transcript.pids.is_empty()
    }

    pub(super) async fn play(&self, script: &Script, pieces: Pieces) -> Transcript {
        let mut playing = Playing {
            leg: self,
            script,
            pieces,
            // The same cuts in each run.
            dice: fastrand::Rng::with_seed(script.seed()),
            clients: BTreeMap::new(),
            transcript: Transcript::default(),
            superuser: None,
        };
        let merged = (pieces == Pieces::Merged).then(|| script.merged());
        for step in merged.as_ref().unwrap_or(&script.steps) {
            let played = time::timeout(PATIENCE, playing.step(step)).await;
            assert!(played.is_ok(), "{}: client {} hears nothing", script.name, who(step));
        }
        // Whoever is left says goodbye by saying nothing more.
        for client in playing.clients.keys().copied().collect::<Vec<_>>() {
            let finished = time::timeout(PATIENCE, playing.step(&Step::Finish(client))).await;
            assert!(finished.is_ok(), "{}: client {client} hears no end", script.name);
        }
        playing.transcript
    }
}

fn who(step: &Step) -> Who {
    match step {
        Step::Open(who)
        | Step::Send(who, _)
        | Step::Read(who, _)
        | Step::Ready(who, _)
        | Step::Until(who, _)
        | Step::Byte(who)
        | Step::Tls(who, _)
        | Step::End(who)
        | Step::Finish(who)
        | Step::Prove(who, _)
        | Step::Reset(who)
        | Step::Cancel(who, _) => *who,
        Step::Await(_) | Step::Superuser(_) => Who::MAX,
    }
}

struct Playing<'a> {
    leg: &'a Leg,
    script: &'a Script,
    pieces: Pieces,
    dice: fastrand::Rng,
    clients: BTreeMap<Who, Client>,
    transcript: Transcript,
    superuser: Option<Database>,
}

/// One connection.
struct Client {
    stream: Box<dyn Stream>,
    unread: BytesMut,
    proving: Option<ScramSha256>,
    has_ended: bool,
    is_reset: bool,
}

impl Playing<'_> {
    async fn step(&mut self, step: &Step) {
        match step {
            Step::Open(who) => {
                self.clients.insert(*who, Client::open(self.leg).await);
                self.transcript.heard.insert(*who, Vec::new());
            }
            Step::Send(who, bytes) => self.send(*who, bytes).await,
            Step::Read(who, count) => {
                for _ in 0..*count {
                    self.hear(*who).await;
                }
            }
            Step::Ready(who, count) => {
                for _ in 0..*count {
                    while self.hear(*who).await.is_some_and(|tag| tag != b'Z') {}
                }
            }
            Step::Until(who, wanted) => while self.hear(*who).await.is_some_and(|tag| tag != *wanted) {},
            Step::Byte(who) => {
                let client = self.clients.get_mut(who).unwrap();
                let heard = match client.byte().await {
                    Some(byte) => Heard::Byte(byte),
                    None => client.end(),
                };
                self.transcript.heard.get_mut(who).unwrap().push(heard);
            }
            Step::Tls(who, protocol) => {
                let client = self.clients.remove(who).unwrap();
                let heard = match client.shake_hands(self.leg, *protocol).await {
                    Some((client, protocol)) => {
                        self.clients.insert(*who, client);
                        Heard::Tls(protocol)
                    }
                    None => Heard::End { behind: Vec::new(), is_reset: false },
                };
                self.transcript.heard.get_mut(who).unwrap().push(heard);
            }
            Step::End(who) => while self.hear(*who).await.is_some() {},
            Step::Finish(who) => {
                let _ = self.clients.get_mut(who).unwrap().stream.shutdown().await;
                while self.hear(*who).await.is_some() {}
                self.clients.remove(who);
            }
            Step::Prove(who, password) => {
                let mut is_asked = self.answer(*who, password).await;
                while is_asked {
                    is_asked = self.hear(*who).await == Some(b'R') && self.answer(*who, password).await;
                }
            }
            Step::Reset(who) => self.clients.remove(who).unwrap().stream.reset(),
            Step::Cancel(who, key) => self.cancel(*who, *key).await,
            Step::Await(sql) => {
                let sql = self.with_pids(sql);
                let superuser = self.superuser().await;
                while superuser.rows(&sql).await.is_empty() {
                    time::sleep(time::Duration::from_millis(5)).await;
                }
            }
            Step::Superuser(sql) => {
                let sql = self.with_pids(sql);
                self.superuser().await.rows(&sql).await;
            }
        }
    }

    /// Sends as much as the other side takes; it may have ended.
    async fn send(&mut self, who: Who, bytes: &[u8]) {
        let stream = &mut self.clients.get_mut(&who).unwrap().stream;
        let longest = match self.pieces {
            Pieces::Whole | Pieces::Merged => bytes.len(),
            Pieces::Bytes => 1,
            Pieces::Cut => bytes.len().div_ceil(3),
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = match self.pieces {
                Pieces::Cut => self.dice.usize(1..=longest).min(rest.len()),
                Pieces::Whole | Pieces::Merged | Pieces::Bytes => longest,
            };
            let (piece, after) = rest.split_at(len);
            rest = after;
            if stream.write_all(piece).await.is_err() {
                return;
            }
            if self.pieces == Pieces::Bytes {
                tokio::task::yield_now().await;
            } else if !rest.is_empty() {
                // Long enough for the other side to see the piece alone, mostly; nothing depends on it.
                time::sleep(time::Duration::from_micros(200)).await;
            }
        }
    }

    /// Takes down the next message and gives its tag; `None` at the end.
    async fn hear(&mut self, who: Who) -> Option<u8> {
        let client = self.clients.get_mut(&who).unwrap();
        if client.has_ended {
            return None;
        }
        let heard = client.message().await;
        let tag = if let Heard::Message(message) = &heard { Some(message.tag) } else { None };
        if let Heard::Message(Message { tag: b'K', body }) = &heard {
            let pid = i32::from_be_bytes(body[..4].try_into().unwrap());
            self.transcript.pids.insert(who, pid);
        }
        self.transcript.heard.get_mut(&who).unwrap().push(heard);
        if tag == Some(b'R')
            && let Some(password) = self.leg.password.filter(|_| !self.script.is_of_authentication)
        {
            self.answer(who, password).await;
        }
        tag
    }

    /// Answers the authentication request that was heard last, as who knows `password`; false where nothing more is
    /// asked.
    async fn answer(&mut self, who: Who, password: &str) -> bool {
        let Some(Heard::Message(Message { body, .. })) = self.transcript.heard[&who].last() else {
            return false;
        };
        let (code, data) = body.split_first_chunk().unwrap();
        let client = self.clients.get_mut(&who).unwrap();
        let mut out = BytesMut::new();
        match (u32::from_be_bytes(*code), &mut client.proving) {
            (10, proving) => {
                let scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                let scram = proving.insert(scram);
                frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).unwrap();
            }
            (11, Some(scram)) => {
                scram.update(data).unwrap();
                frontend::sasl_response(scram.message(), &mut out).unwrap();
            }
            (12, Some(scram)) => scram.finish(data).unwrap(),
            _ => return false,
        }
        self.send(who, &out).await;
        true
    }

    async fn cancel(&mut self, who: Who, key: Key) {
        let key_data = self.transcript.heard[&who].iter().find_map(|heard| {
            if let Heard::Message(Message { tag: b'K', body }) = heard { Some(body.clone()) } else { None }
        });
        let Some(mut sent) = key_data else {
            return;
        };
        match key {
            Key::Right => {}
            Key::WrongSecret => *sent.last_mut().unwrap() ^= 1,
            Key::WrongPid => sent[3] ^= 1,
            Key::Short => drop(sent.pop()),
            Key::Long => sent.push(0),
        }
        let mut client = Client::open(self.leg).await;
        let _ = client.stream.write_all(&packet(CANCEL_REQUEST, &sent)).await;
        let heard = client.message().await;
        assert!(matches!(heard, Heard::End { behind, .. } if behind.is_empty()), "an answer to a cancel");
    }

    async fn superuser(&mut self) -> &Database {
        if self.superuser.is_none() {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(self.leg.port).dbname(&self.leg.names.database);
            config.user("postgres").password("postgres");
            self.superuser = Some(Database::open(&config).await.unwrap());
        }
        self.superuser.as_ref().unwrap()
    }

    fn with_pids(&self, sql: &str) -> String {
        let pids = self.transcript.pids.iter();
        pids.fold(sql.to_owned(), |sql, (who, pid)| sql.replace(&format!("{{{who}}}"), &pid.to_string()))
    }
}

impl Client {
    async fn open(leg: &Leg) -> Self {
        let stream: Box<dyn Stream> = match &leg.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
            Address::Tcp(address) | Address::Tls(address) => {
                let stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
        };
        let mut client = Self::over(stream);
        if !matches!(leg.address, Address::Tls(_)) {
            return client;
        }
        client.stream.write_all(&packet(SSL_REQUEST, b"")).await.unwrap();
        assert_eq!(client.byte().await, Some(b'S'));
        client.shake_hands(leg, None).await.expect("TLS").0
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream, unread: BytesMut::new(), proving: None, has_ended: false, is_reset: false }
    }

    /// The same over TLS, and the protocol that was agreed on; `None` where they do not agree.
    async fn shake_hands(self, leg: &Leg, protocol: Option<&str>) -> Option<(Self, Option<Vec<u8>>)> {
        let trust = Arc::clone(leg.trust.as_ref().expect("a CA for this leg"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(trust).with_no_client_auth();
        config.alpn_protocols = protocol.map(|protocol| protocol.as_bytes().to_vec()).into_iter().collect();
        let name = "localhost".try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, self.stream).await.ok()?;
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        Some((Self::over(Box::new(stream)), agreed))
    }

    async fn byte(&mut self) -> Option<u8> {
        self.fill(1).await.then(|| self.unread.split_to(1)[0])
    }

    async fn message(&mut self) -> Heard {
        if !self.fill(5).await {
            return self.end();
        }
        let len = u32::from_be_bytes(self.unread[1..5].try_into().unwrap()) as usize;
        if len < 4 || !self.fill(1 + len).await {
            return self.end();
        }
        let bytes = self.unread.split_to(1 + len);
        Heard::Message(Message { tag: bytes[0], body: bytes[5..].to_vec() })
    }

    fn end(&mut self) -> Heard {
        self.has_ended = true;
        Heard::End { behind: self.unread.split().to_vec(), is_reset: self.is_reset }
    }

    /// Whether so many bytes are there before the end.
    async fn fill(&mut self, len: usize) -> bool {
        while self.unread.len() < len && !self.has_ended {
            match self.stream.read_buf(&mut self.unread).await {
                Ok(0) => self.has_ended = true,
                Ok(_) => {}
                Err(_) => (self.has_ended, self.is_reset) = (true, true),
            }
        }
        self.unread.len() >= len
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    fn reset(self: Box<Self>);
}

impl Stream for TcpStream {
    fn reset(self: Box<Self>) {
        self.set_zero_linger().unwrap();
    }
}

impl Stream for TlsStream<Box<dyn Stream>> {
    fn reset(self: Box<Self>) {
        self.into_inner().0.reset();
    }
}

impl Stream for UnixStream {
    fn reset(self: Box<Self>) {}
}

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
