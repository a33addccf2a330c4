//! Whole sessions: clients over pipes in memory, upstream on loopback where there is one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::{AtLeaseEnd, RouteConfig, UpstreamConfig};
use crate::credential::{self, Credential, CredentialSource, DerivedKeys, Publisher};
use crate::drain::Drain;
use crate::ids::{GenerationId, LeaseId};
use crate::upstream::Upstream;
use crate::wire::message::AUTHENTICATION_OK;

mod life;
mod refused;
mod auth;
mod encryption;
mod cancels;
mod evictions;
mod faults;
mod panics;
mod log;
mod memory;
mod warm;

const SOMEBODY: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 50_000));
const QUERY: &[u8] = b"Q\0\0\0\x06;\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const STATUS: &[u8] = b"S\0\0\0\x08a\0b\0";
const KEY: &[u8] = b"K\0\0\0\x0c\0\0\x10\x92abcd";

fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len() + 8).unwrap().to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

fn startup() -> Vec<u8> {
    startup_for("wizard")
}

fn startup_for(database: &str) -> Vec<u8> {
    packet(0x0003_0000, format!("user\0app\0database\0{database}\0\0").as_bytes())
}

/// A proxy, and what a test moves.
struct Proxy {
    shared: Arc<Shared>,
    publisher: Publisher,
    source: CredentialSource,
    drain: Drain,
}

fn proxy(upstream_port: u16, max_sessions: usize) -> Proxy {
    proxy_with(Auth::Trust, upstream_port, max_sessions)
}

fn proxy_with(auth: Auth, upstream_port: u16, max_sessions: usize) -> Proxy {
    proxy_to(auth, &[("wizard", upstream_port)], max_sessions)
}

/// With a route for each database, to the upstream at this port.
fn proxy_to(auth: Auth, routes: &[(&str, u16)], max_sessions: usize) -> Proxy {
    let (publisher, source) = credential::channel();
    let route = |&(database, upstream_port): &(&str, u16)| {
        let config = RouteConfig {
            database: Some(database.to_owned()),
            user: None,
            upstream: UpstreamConfig::plain(&Ipv4Addr::LOCALHOST.to_string(), upstream_port),
            vault_path: "database/creds/db-app".to_owned(),
            startup_role: Some("app_owner".to_owned()),
            at_lease_end: AtLeaseEnd::Close,
            max_session_age: None,
            warm: 0,
            optional: false,
        };
        let upstream = Arc::new(Upstream::load(&config.upstream).unwrap());
        Route::to_stay(config, upstream, source.clone())
    };
    let drain = Drain::default();
    let shared = Shared::new(
        routes.iter().map(route).collect(),
        auth,
        Arc::new(Metrics::new()),
        drain.subscribe(),
        Duration::from_secs(10),
        max_sessions,
    );
    Proxy { shared: Arc::new(shared), publisher, source, drain }
}

impl Proxy {
    fn promote(&self, generation: u64) -> credential::Issued {
        self.publisher.promote(Credential {
            user: format!("v-{generation}"),
            password: SecretString::from("secret"),
            lease: Some(LeaseId::from("lease")),
            generation: GenerationId(generation),
            keys: DerivedKeys::default(),
            granted: credential::Granted::default(),
        })
    }

    /// A connection's task, and the client's end of the connection.
    fn connect(&self) -> (impl Future<Output = ()> + use<>, DuplexStream) {
        let (client, far_client) = duplex(64 * 1024);
        (
            run(ClientStream::Plain(client), SOMEBODY, self.shared.places().take(), Arc::clone(&self.shared)),
            far_client,
        )
    }

    /// What a client that sends `sent` is told until the end.
    async fn told(&self, sent: &[u8]) -> Vec<u8> {
        let (session, mut client) = self.connect();
        let talk = async {
            client.write_all(sent).await.unwrap();
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            drop(client);
            told
        };
        tokio::join!(session, talk).1
    }

    fn ended(&self, reason: &'static str) -> bool {
        let text = self.shared.metrics.encode().unwrap();
        text.contains(&format!("pglease_session_seconds_count{{reason=\"{reason}\"}} 1\n"))
    }
}

/// Field `C` of the one ErrorResponse in `told`.
fn code(told: &[u8]) -> &str {
    assert_eq!(told.first(), Some(&b'E'), "{}", told.escape_ascii());
    assert_eq!(told.len(), 1 + u32::from_be_bytes(told[1..5].try_into().unwrap()) as usize, "one message");
    let field = told[5..].split(|&byte| byte == 0).find_map(|field| field.strip_prefix(b"C"));
    std::str::from_utf8(field.unwrap()).unwrap()
}

async fn expect<S: AsyncRead + Unpin>(stream: &mut S, expected: &[u8]) {
    let mut buf = vec![0; expected.len()];
    stream.read_exact(&mut buf).await.unwrap();
    assert_eq!(buf, expected, "{}", buf.escape_ascii());
}

async fn expect_end<S: AsyncRead + Unpin>(stream: &mut S) {
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

async fn read_packet(stream: &mut TcpStream) -> Vec<u8> {
    let len = stream.read_u32().await.unwrap();
    let mut packet = len.to_be_bytes().to_vec();
    packet.resize(len as usize, 0);
    stream.read_exact(&mut packet[4..]).await.unwrap();
    packet
}

struct Server(TcpListener);

impl Server {
    async fn bind() -> Self {
        Self(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap())
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// The next connection and its first packet.
    async fn accept(&self) -> (TcpStream, Vec<u8>) {
        let (mut stream, _) = self.0.accept().await.unwrap();
        let first = read_packet(&mut stream).await;
        (stream, first)
    }

    /// Lets the next connection in.
    async fn let_in(&self) -> TcpStream {
        let (mut stream, _) = self.accept().await;
        greet(&mut stream).await;
        stream
    }
}

async fn greet(stream: &mut TcpStream) {
    let greeting = [AUTHENTICATION_OK, STATUS, KEY, READY].concat();
    stream.write_all(&greeting).await.unwrap();
}

/// Reads a client's greeting; gives the secret in it.
async fn read_greeting(client: &mut DuplexStream) -> [u8; 4] {
    expect(client, &[AUTHENTICATION_OK, STATUS, &KEY[..9]].concat()).await;
    let mut secret = [0; 4];
    client.read_exact(&mut secret).await.unwrap();
    expect(client, READY).await;
    secret
}
