//! Upstreams of several hosts of which one is a stranger, and paths that die without a word.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::raw::Raw;
use crate::support::pki::Authority;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_with, rotate, until};

/// What somebody answers who is not PostgreSQL, and the words for it in the log.
const STRANGERS: [(&str, Answer, &str); 9] = [
    ("http", Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\nhush-hush", End::Fin), "byte 0x48 (HTTP?)"),
    ("alert", Answer::Bytes(b"\x15\x03\x01\x00\x02\x02\x28", End::Stays), "a TLS alert"),
    ("stuffed", Answer::Bytes(b"S\x16\x03\x01\x00\x05", End::Stays), "unencrypted bytes behind"),
    ("error", Answer::Bytes(b"E\0\0\0\x19SFATAL\0Mhush-hush\0\0", End::Stays), "not to be trusted"),
    ("fin", Answer::Bytes(b"", End::Fin), "closed the connection"),
    ("reset", Answer::Bytes(b"", End::Reset), "connection broke during the request for TLS"),
    ("silent", Answer::Bytes(b"", End::Stays), "has not let us in within 3s"),
    ("within", Answer::Bytes(b"S", End::FinBehindHello), "TLS handshake with upstream failed"),
    ("other", Answer::OtherName, "TLS handshake with upstream failed"),
];

#[derive(Clone, Copy)]
enum Answer {
    Bytes(&'static [u8], End),
    /// A certificate for another name.
    OtherName,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Stays,
    Fin,
    Reset,
    /// Once there is something behind the request for TLS.
    FinBehindHello,
}

/// One that answers the request for TLS so, each time.
async fn stranger(answer: Answer, strangers: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let other = other_name();
    strangers.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(receive(stream, answer, other.clone()));
        }
    });
    port
}

async fn receive(mut stream: TcpStream, answer: Answer, other: TlsAcceptor) {
    let mut request = [0; 8];
    if stream.read_exact(&mut request).await.is_err() {
        return;
    }
    match answer {
        Answer::OtherName => {
            let _ = stream.write_all(b"S").await;
            assert!(other.accept(stream).await.is_err());
        }
        Answer::Bytes(bytes, end) => {
            let _ = stream.write_all(bytes).await;
            match end {
                End::Fin => {}
                End::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
                End::FinBehindHello => drop(stream.read(&mut request).await),
                End::Stays => while stream.read(&mut request).await.is_ok_and(|len| len > 0) {},
            }
        }
    }
}

fn other_name() -> TlsAcceptor {
    let issued = Authority::create().issue(&["other.example"]);
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config).into()
}

#[tokio::test]
async fn case_c09_stranger_is_named_and_passed_over_and_costs_no_credential() {
    let world = World::shared(WorldOptions::default()).await;
    let real = format!("localhost:{}", world.servers.postgres.port());
    let route = world.route("db-app");
    assert!(route.contains(&format!("{real}/")));

    let mut strangers = JoinSet::new();
    let mut settings = world.settings();
    let mut ports = Vec::new();
    for (name, answer, _) in STRANGERS {
        let port = stranger(answer, &mut strangers).await;
        ports.push(port);
        // Who is silent is waited for; all others answer, however busy the machine is.
        let is_silent = name == "silent";
        let more = if is_silent { "connect_timeout=3&sslmode=" } else { "sslmode=" };
        let with = |hosts: &str| route.replace(&real, hosts).replace("sslmode=", more);
        settings += &with(&format!("127.0.0.1:{port},{real}"));
        // A proof has 5 s for both hosts: what is left of them may not be enough for a login.
        writeln!(settings, "user = \"{name}\"\noptional = {is_silent}").unwrap();
        settings += &with(&format!("127.0.0.1:{port}"));
        writeln!(settings, "user = \"{name}-alone\"\noptional = true").unwrap();
    }
    let pglease = pglease_with(&settings).await;

    for ((name, _, said), port) in STRANGERS.into_iter().zip(ports) {
        until(async || match pglease.connect_as("app", name).await {
            Ok(session) => session.batch_execute("SELECT 1").await.is_ok(),
            Err(_) => false,
        })
        .await;
        let refused = pglease.connect_as("app", &format!("{name}-alone")).await.err().unwrap();
        let refused = refused.as_db_error().unwrap();
        assert_eq!(refused.code().code(), "08001", "{name}: {refused:?}");
        let detail = refused.detail().unwrap();
        assert!(detail.starts_with(&format!("127.0.0.1:{port}: ")), "{name}: {detail}");
        assert!(!format!("{refused:?}").contains("hush"), "{name}: {refused:?}");

        let failed = pglease.logged("upstream.host_failed").await;
        let is_said = |event: &Value| {
            event["upstream"] == format!("127.0.0.1:{port}")
                && event["error"].as_str().unwrap().contains(said)
        };
        assert!(failed.iter().any(is_said), "{name}: {failed:?}");
    }
    assert!(!pglease.lines().all().join("\n").contains("hush"));
    assert_eq!(world.leased_roles().await.len(), 1);
    assert!(pglease.metric("pglease_upstream_auth_rejects_total", "").await < 1.0);
}

/// A way to a server that a test kills without a word: what comes is dropped by the kernel, unacknowledged, and nothing
/// goes out any more.
struct Path {
    address: SocketAddr,
    dead: watch::Sender<bool>,
    /// Connections that there are, and those of them that are dead.
    open: Arc<AtomicUsize>,
    frozen: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

impl Path {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dead, is_dead) = watch::channel(false);
        let (open, frozen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&open), Arc::clone(&frozen));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (open, frozen) = counts;
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let (open, frozen, mut is_dead) = (Arc::clone(&open), Arc::clone(&frozen), is_dead.clone());
                open.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        biased;
                        _ = is_dead.wait_for(|dead| *dead) => {}
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                            open.fetch_sub(1, Ordering::SeqCst);
                            return;
                        }
                    }
                    SockRef::from(&client).attach_filter(&[DROP]).unwrap();
                    frozen.fetch_add(1, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, dead, open, frozen, _connections: tasks }
    }

    async fn die(&self) {
        self.dead.send_replace(true);
        until(async || self.frozen.load(Ordering::SeqCst) == self.open.load(Ordering::SeqCst)).await;
    }
}

/// Takes no byte of a packet: `BPF_RET | BPF_K` with 0.
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);

#[tokio::test]
async fn case_c10_path_that_dies_without_a_word_ends_its_sessions() {
    let world = World::shared(WorldOptions::default()).await;
    let path = Path::to(world.servers.postgres.port()).await;
    let route = world.route("db-app").replace(
        &format!("localhost:{}/", world.servers.postgres.port()),
        &format!("localhost:{}/", path.address.port()),
    );
    let with = |user: &str, more: &str| {
        route.replace("sslmode=", &format!("hostaddr=127.0.0.1&{more}&sslmode="))
            + &format!("user = {user:?}\n")
    };
    let settings = world.settings()
        + &with("idle", "keepalives_idle=2&keepalives_interval=1&keepalives_count=3")
        + &with("asks", "keepalives=0&tcp_user_timeout=3000");
    let pglease = pglease_with(&settings).await;
    let session = async |user| {
        let parameters = [("user", user), ("database", "app")];
        Raw::log_in(pglease.addresses()[0], &parameters, "").await.0
    };
    let (mut idle, mut asks) = (session("idle").await, session("asks").await);
    idle.query("LISTEN x").await;
    idle.up_to(b'Z').await;
    // Held by both, the older credential lives.
    rotate(&pglease, &[]).await;
    assert_eq!(world.living_roles().await.len(), 2);

    path.die().await;
    asks.query("SELECT 1").await;
    for session in [&mut idle, &mut asks] {
        let last = session.rest().await;
        let [last] = &last[..] else { panic!("{last:?}") };
        let fields = last.fields();
        for field in [('S', "FATAL"), ('C', "08006"), ('M', "connection to upstream server was lost")] {
            assert!(fields.contains(&(field.0, field.1.to_owned())), "{fields:?}");
        }
    }
    // Their holds are given back, so that their credential is revoked.
    until(async || world.living_roles().await.len() == 1).await;
    until(async || pglease.metric("pglease_sessions", "").await < 1.0).await;
    for end in pglease.logged("session.end").await {
        assert_eq!((&end["reason"], &end["blame"]), (&"upstream_failed".into(), &"upstream".into()), "{end}");
    }
}
