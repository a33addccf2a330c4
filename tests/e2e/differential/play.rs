//! Plays a script on one leg and takes down what was heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time;

use super::script::{Key, Names, Script, Step, Who};
use crate::PATIENCE;
use crate::raw::{Message, packet};
use crate::support::postgres::Database;

/// A way to PostgreSQL.
#[derive(Clone)]
pub(super) struct Leg {
    pub(super) address: Address,
    pub(super) names: Names,
    /// Where the superuser's connection goes: straight to the server.
    pub(super) port: u16,
}

#[derive(Clone)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
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
    Message(Message),
    /// The end, behind bytes that are no whole message.
    End {
        behind: Vec<u8>,
        is_reset: bool,
    },
}

impl Leg {
    pub(super) async fn play(&self, script: &Script, pieces: Pieces) -> Transcript {
        let mut playing = Playing {
            leg: self,
            pieces,
            // The same cuts in each run.
            dice: fastrand::Rng::with_seed(
                script
                    .name
                    .bytes()
                    .fold(7, |seed, byte| u64::wrapping_mul(seed, 31).wrapping_add(u64::from(byte))),
            ),
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
        | Step::End(who)
        | Step::Finish(who)
        | Step::Reset(who)
        | Step::Cancel(who, _) => *who,
        Step::Await(_) | Step::Superuser(_) => Who::MAX,
    }
}

struct Playing<'a> {
    leg: &'a Leg,
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
    has_ended: bool,
    is_reset: bool,
}

impl Playing<'_> {
    async fn step(&mut self, step: &Step) {
        match step {
            Step::Open(who) => {
                self.clients.insert(*who, Client::open(&self.leg.address).await);
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
            Step::End(who) => while self.hear(*who).await.is_some() {},
            Step::Finish(who) => {
                let _ = self.clients.get_mut(who).unwrap().stream.shutdown().await;
                while self.hear(*who).await.is_some() {}
                self.clients.remove(who);
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
        tag
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
        let mut client = Client::open(&self.leg.address).await;
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
    async fn open(address: &Address) -> Self {
        let stream: Box<dyn Stream> = match address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
        };
        Self { stream, unread: BytesMut::new(), has_ended: false, is_reset: false }
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

impl Stream for UnixStream {
    fn reset(self: Box<Self>) {}
}

const CANCEL_REQUEST: u32 = 80_877_102;
