//! Whole sessions: clients over pipes in memory, upstream on loopback where there is one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::{AtLeaseEnd, RouteConfig, UpstreamConfig};
use crate::credential::{self, Credential, CredentialSource, Publisher, Revocation, Standing, Suspicion};
use crate::drain::Drain;
use crate::ids::{GenerationId, LeaseId};
use crate::net::ClientSocket;
use crate::upstream::Upstream;
use crate::wire::message::AUTHENTICATION_OK;

mod auth;

mod cancels;
mod faults;
mod encryption;
mod log;

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
            optional: false,
        };
        let upstream = Arc::new(Upstream::load(&config.upstream).unwrap());
        Route { config, upstream, source: source.clone() }
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

#[tokio::test]
async fn session_goes_from_accept_to_close() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();

    let client_side = async {
        client.write_all(&startup()).await.unwrap();
        let secret = read_greeting(&mut client).await;
        assert_ne!(secret, KEY[9..], "the secret is our own");
        assert_eq!(*issued.holds().borrow(), 1);
        client.write_all(QUERY).await.unwrap();
        expect(&mut client, READY).await;
        client.write_all(TERMINATE).await.unwrap();
        client.shutdown().await.unwrap();
        expect_end(&mut client).await;
    };
    let server_side = async {
        let (mut stream, first) = server.accept().await;
        let text = first.escape_ascii().to_string();
        for pair in ["user\\x00v-1\\x00", "database\\x00wizard\\x00", "role\\x00app_owner\\x00"] {
            assert!(text.contains(pair), "{text}");
        }
        greet(&mut stream).await;
        expect(&mut stream, QUERY).await;
        stream.write_all(READY).await.unwrap();
        expect(&mut stream, TERMINATE).await;
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);

    assert_eq!(*issued.holds().borrow(), 0);
    assert!(proxy.shared.seats().take().is_some());
    assert!(proxy.ended("client_closed"));
    let text = proxy.shared.metrics.encode().unwrap();
    assert!(text.contains("pglease_bytes_total{direction=\"frontend\"} 12\n"), "{text}");
}

/// Nine thousand idle sessions are nine thousand of these.
#[tokio::test]
async fn task_of_a_session_stays_small() {
    let (server, proxy) = (Server::bind().await, proxy(1, 1));
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).await.unwrap();
    let session = run(
        ClientStream::Plain(ClientSocket::Tcp(client)),
        SOMEBODY,
        proxy.shared.places().take(),
        Arc::clone(&proxy.shared),
    );
    assert!(size_of_val(&session) <= 2048, "{} bytes", size_of_val(&session));
}

#[tokio::test]
async fn newer_protocol_is_negotiated_before_anything_else() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let client_side = async {
        client.write_all(&packet(0x0003_270f, b"user\0a\0database\0wizard\0_pq_.x\x001\0\0")).await.unwrap();
        expect(&mut client, b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0").await;
        // Upstream speaks 3.0, and its secret has 4 bytes: ours is as the client's version has it.
        expect(&mut client, &[AUTHENTICATION_OK, STATUS, b"K\0\0\0\x28", &KEY[5..9]].concat()).await;
        client.read_exact(&mut [0; 32]).await.unwrap();
        expect(&mut client, READY).await;
        drop(client);
    };
    let server_side = async {
        let (mut stream, first) = server.accept().await;
        assert!(!first.escape_ascii().to_string().contains("_pq_"));
        assert_eq!(first[4..8], 0x0003_0000_u32.to_be_bytes());
        greet(&mut stream).await;
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);
}

#[tokio::test]
async fn rejected_credential_is_replaced_and_tried_once_more() {
    let server = Server::bind().await;
    let mut proxy = proxy(server.port(), 10);
    let first = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let shared = Arc::clone(&proxy.shared);

    let client_side = async {
        client.write_all(&startup()).await.unwrap();
        read_greeting(&mut client).await;
        drop(client);
    };
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        stream.write_all(b"E\0\0\0\x13SFATAL\0C28P01\0\0").await.unwrap();
        drop(stream);
        assert_eq!(proxy.publisher.suspicion().await, Some(Suspicion::Rejected(GenerationId(1))));
        assert_eq!((*first.holds().borrow(), shared.metrics.clients_waiting.get()), (0, 1));
        let _second = proxy.promote(2);
        let (mut stream, first) = server.accept().await;
        assert!(first.escape_ascii().to_string().contains("user\\x00v-2\\x00"));
        greet(&mut stream).await;
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);
    let metrics = &shared.metrics;
    assert_eq!((metrics.upstream_auth_rejects.get(), metrics.clients_waiting.get()), (1, 0));
}

#[tokio::test]
async fn refusal_of_upstream_reaches_the_client_as_it_is() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let refusal = b"E\0\0\0\x1bSFATAL\0C53300\0Mtoo many\0Ffile\0\0";
    let refusal =
        [&b"E"[..], &u32::try_from(refusal.len() - 1).unwrap().to_be_bytes(), &refusal[5..]].concat();
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        stream.write_all(&refusal).await.unwrap();
    };
    let startup = startup();
    let (told, ()) = tokio::join!(proxy.told(&startup), server_side);
    assert_eq!(told, refusal);
    assert!(proxy.ended("refused"));
}

#[tokio::test]
async fn refusal_of_one_let_in_comes_behind_its_greeting_and_doubts_the_credential() {
    let refusal = b"E\0\0\0\x13SFATAL\0C28000\0\0";
    let server = Server::bind().await;
    let mut proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        let said = [AUTHENTICATION_OK, STATUS, KEY, STATUS, refusal].concat();
        stream.write_all(&said).await.unwrap();
    };
    let startup = startup();
    let (told, ()) = tokio::join!(proxy.told(&startup), server_side);
    // The secret is not upstream's.
    let (before, rest) = told.split_at(AUTHENTICATION_OK.len() + STATUS.len());
    assert_eq!(before, [AUTHENTICATION_OK, STATUS].concat());
    let (key, rest) = rest.split_at(KEY.len());
    assert_eq!(key[..9], KEY[..9]);
    assert_ne!(key[9..], KEY[9..]);
    assert_eq!(rest, [STATUS, refusal].concat());
    assert_eq!(proxy.publisher.suspicion().await, Some(Suspicion::Doubted(GenerationId(1))));
    assert_eq!(proxy.shared.metrics.upstream_auth_rejects.get(), 0);
}

#[tokio::test]
async fn refusal_before_anything_was_asked_is_the_clients_to_hear_and_doubts_the_credential() {
    let refusal = b"E\0\0\0\x13SFATAL\0C28000\0\0";
    let server = Server::bind().await;
    let mut proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        stream.write_all(refusal).await.unwrap();
    };
    let startup = startup();
    let (told, ()) = tokio::join!(proxy.told(&startup), server_side);
    assert_eq!(told, refusal);
    assert_eq!(proxy.publisher.suspicion().await, Some(Suspicion::Doubted(GenerationId(1))));
}

#[tokio::test]
async fn lost_upstream_is_told_unless_upstream_said_why_itself() {
    for fatal in [&b""[..], b"E\0\0\0\x13SFATAL\0C57P01\0\0"] {
        let server = Server::bind().await;
        let proxy = proxy(server.port(), 10);
        let _issued = proxy.promote(1);
        let (session, mut client) = proxy.connect();
        let client_side = async {
            client.write_all(&startup()).await.unwrap();
            read_greeting(&mut client).await;
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            drop(client);
            told
        };
        let server_side = async {
            let mut stream = server.let_in().await;
            stream.write_all(fatal).await.unwrap();
        };
        let ((), told, ()) = tokio::join!(session, client_side, server_side);
        assert_eq!(code(&told), if fatal.is_empty() { "08006" } else { "57P01" });
        assert!(fatal.is_empty() || told == fatal);
        assert!(proxy.ended("upstream_closed"));
    }
}

#[tokio::test]
async fn ended_session_tells_client_and_upstream_and_waits_for_upstream() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let client_side = async {
        client.write_all(&startup()).await.unwrap();
        read_greeting(&mut client).await;
        issued.set_standing(Standing::Revoked(Revocation::ByVault));
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert_eq!(code(&told), "57P01");
        drop(client);
    };
    let server_side = async {
        let mut stream = server.let_in().await;
        expect(&mut stream, TERMINATE).await;
        expect_end(&mut stream).await;
        assert_eq!(*issued.holds().borrow(), 1, "held until upstream has ended");
    };
    tokio::join!(session, client_side, server_side);
    assert_eq!(*issued.holds().borrow(), 0);
}

#[tokio::test]
async fn cancel_reaches_the_upstream_of_its_session_with_the_key_that_is_good_there() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        let mut stream = server.let_in().await;
        let secret = read_greeting(&mut client).await;
        let pid = &KEY[5..9];

        // No seat is left, and none is needed.
        let request = packet(80_877_102, &[pid, &secret].concat());
        let (told, ()) = tokio::join!(proxy.told(&request), async {
            let (_, cancel) = server.accept().await;
            assert_eq!(cancel, packet(80_877_102, &KEY[5..]));
        });
        assert!(told.is_empty());

        let guess = packet(80_877_102, &KEY[5..]);
        assert!(proxy.told(&guess).await.is_empty());
        drop(client);
        expect_end(&mut stream).await;
        drop(stream);
        request
    };
    let ((), request) = tokio::join!(session, talk);
    assert!(proxy.told(&request).await.is_empty(), "the key is gone with its session");
    let text = proxy.shared.metrics.encode().unwrap();
    assert!(text.contains("cancel_requests_total{result=\"delivered\"} 1\n"));
    assert!(text.contains("cancel_requests_total{result=\"miss\"} 2\n"));
}

#[tokio::test]
async fn client_that_hangs_up_in_a_drain_has_its_statement_cancelled() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        let mut stream = server.let_in().await;
        read_greeting(&mut client).await;
        client.write_all(QUERY).await.unwrap();
        expect(&mut stream, QUERY).await;
        drop(client);
        expect_end(&mut stream).await;
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        proxy.drain.begin(
            crate::config::DrainConfig { accept_for: second, grace: second, deadline: minute },
            Instant::now(),
        );
        let (_, cancel) = server.accept().await;
        assert_eq!(cancel, packet(80_877_102, &KEY[5..]));
        drop(stream);
    };
    tokio::join!(session, talk);
    assert!(proxy.ended("hung_up"));
}

#[tokio::test(start_paused = true)]
async fn client_is_told_when_no_credential_comes_in_time() {
    let proxy = proxy(1, 10);
    let began = Instant::now();
    let told = proxy.told(&startup()).await;
    assert_eq!(code(&told), "57P03");
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert!(proxy.ended("no_credential"));
}

#[tokio::test(start_paused = true)]
async fn client_that_goes_away_while_it_waits_frees_its_place() {
    for early in [&b""[..], TERMINATE] {
        let proxy = proxy(1, 1);
        let (session, mut client) = proxy.connect();
        let began = Instant::now();
        let talk = async {
            client.write_all(&startup()).await.unwrap();
            time::sleep(Duration::from_secs(3)).await;
            let metrics = &proxy.shared.metrics;
            assert_eq!((proxy.source.waiting(), metrics.clients_waiting.get()), (1, 1));
            assert!(proxy.shared.seats().take().is_none());
            client.write_all(early).await.unwrap();
            drop(client);
        };
        tokio::join!(session, talk);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        assert_eq!((proxy.source.waiting(), proxy.shared.metrics.clients_waiting.get()), (0, 0));
        assert!(proxy.shared.seats().take().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_are_refused_as_the_server_would() {
    let proxy = proxy(1, 1);
    let seat = proxy.shared.seats().take();
    assert_eq!(code(&proxy.told(&startup()).await), "53300");
    drop(seat);
    let asking = |body: &[u8]| packet(0x0003_0000, body);
    assert_eq!(code(&proxy.told(&asking(b"database\0wizard\0\0")).await), "28000");
    assert_eq!(code(&proxy.told(&asking(b"user\0app\0\0")).await), "3D000");
    assert_eq!(code(&proxy.told(&asking(b"user\0app")).await), "08P01");
    assert_eq!(code(&proxy.told(&packet(0x0004_0000, b"\0")).await), "0A000");
    assert_eq!(proxy.told(&packet(0x0002_0000, b"\0")).await.first_chunk(), Some(b"EFATAL:  "));
    assert!(proxy.told(b"GET / HTTP/1.1\r\n\r\n").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn sessions_that_have_not_begun_are_told_of_the_drain() {
    let proxy = proxy(1, 1);
    let [accept_for, grace, deadline] = [1, 2, 3].map(Duration::from_secs);
    let begun = Instant::now();
    proxy.drain.begin(crate::config::DrainConfig { accept_for, grace, deadline }, begun);
    // Still let in: it waits for a credential, as an idle session would wait for a statement.
    assert_eq!(code(&proxy.told(&startup()).await), "57P03");
    assert_eq!(begun.elapsed(), grace);
    assert_eq!(code(&proxy.told(&startup()).await), "57P03");
    assert_eq!(begun.elapsed(), grace);
}

/// A client at which pglease stumbles: reading the word "bug" makes it panic.
struct Stumbling(DuplexStream);

impl AsyncRead for Stumbling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        assert!(!buf.filled()[before..].windows(3).any(|word| word == b"bug"), "as the test wants it");
        read
    }
}

impl AsyncWrite for Stumbling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn panic_ends_one_session_and_its_client_is_told() {
    let proxy = proxy(1, 1);
    let (client, mut far_client) = duplex(1024);
    let session = run(
        ClientStream::Plain(Stumbling(client)),
        SOMEBODY,
        proxy.shared.places().take(),
        Arc::clone(&proxy.shared),
    );
    let talk = async {
        far_client.write_all(&packet(0x0003_0000, b"user\0bug\0\0")).await.unwrap();
        let mut told = Vec::new();
        far_client.read_to_end(&mut told).await.unwrap();
        drop(far_client);
        told
    };
    let ((), told) = tokio::join!(session, talk);
    assert_eq!(code(&told), "XX000");
    assert!(told.escape_ascii().to_string().contains("under session "));
    assert!(proxy.ended("panic"));
}

#[tokio::test]
async fn panic_in_the_relay_ends_both_sides_in_frame() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let issued = proxy.promote(1);
    let (client, mut far_client) = duplex(1024);
    let session = run(
        ClientStream::Plain(Stumbling(client)),
        SOMEBODY,
        proxy.shared.places().take(),
        Arc::clone(&proxy.shared),
    );
    let client_side = async {
        far_client.write_all(&startup()).await.unwrap();
        read_greeting(&mut far_client).await;
        far_client.write_all(b"Q\0\0\0\x08bug\0").await.unwrap();
        let mut told = Vec::new();
        far_client.read_to_end(&mut told).await.unwrap();
        drop(far_client);
        told
    };
    let server_side = async {
        let mut stream = server.let_in().await;
        // What the bug has read is lost, and nothing may follow it.
        expect_end(&mut stream).await;
    };
    let ((), told, ()) = tokio::join!(session, client_side, server_side);
    assert_eq!(code(&told), "XX000");
    assert!(proxy.ended("panic"));
    assert_eq!(*issued.holds().borrow(), 0);
    assert!(proxy.shared.seats().take().is_some());
}

#[tokio::test(start_paused = true)]
async fn connection_without_a_place_ends_whatever_it_is_about() {
    let proxy = proxy(1, 1);
    let seat = proxy.shared.seats().take();
    // Silent; half-way; told no, and still to close.
    for sent in [&b""[..], &startup()[..9], &startup()] {
        let (session, mut client) = proxy.connect();
        let talk = async {
            client.write_all(sent).await.unwrap();
            time::sleep(Duration::from_millis(1)).await;
            proxy.shared.places().clear();
        };
        let began = Instant::now();
        tokio::join!(session, talk);
        assert_eq!(began.elapsed(), Duration::from_millis(1));
        drop(client);
    }
    drop(seat);
    // With a seat there is no place to lose.
    let (session, mut client) = proxy.connect();
    let began = Instant::now();
    tokio::join!(session, async {
        client.write_all(&startup()).await.unwrap();
        time::sleep(Duration::from_millis(1)).await;
        proxy.shared.places().clear();
        time::sleep(Duration::from_secs(1)).await;
        drop(client);
    });
    assert!(began.elapsed() > Duration::from_secs(1));
}
