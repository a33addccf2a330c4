//! TLS with applications and the Unix socket, with psql as it is.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;

use crate::raw::{Raw, packet, startup};
use crate::support::pglease::Pglease;
use crate::support::pki::{Authority, Issued};
use crate::support::process::Folder;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, start, until};

const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
const GSSENC_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x30";

/// What psql prints, errors included.
async fn psql(world: &World<'_>, conninfo: String) -> String {
    let mut psql = Command::new(world.servers.postgres.bin().join("psql"));
    psql.args(["-XAtwc", "SELECT 'served'", &conninfo]).env_clear().env("PGCONNECT_TIMEOUT", "180");
    let output = spawn_blocking(move || psql.output().unwrap()).await.unwrap();
    [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/server").join(name)
}

/// Files of a certificate for pglease's listener.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl Files {
    fn in_folder_of(world: &World<'_>) -> Self {
        let file = |name| world.folder().join(name);
        Self { cert: file("tls.pem"), key: file("tls.key"), ca: file("tls-ca.pem") }
    }

    /// Replaces them as a mounted Secret is.
    fn write(&self, certificate: &str, key: &str, ca: &str) {
        for (path, text) in [(&self.cert, certificate), (&self.key, key), (&self.ca, ca)] {
            let next = path.with_extension("next");
            fs::write(&next, text).unwrap();
            fs::rename(next, path).unwrap();
        }
    }

    /// Those of a new CA.
    fn renew(&self) {
        let authority = Authority::create();
        let Issued { certificate, key } = authority.issue(&["localhost"]);
        self.write(&certificate, &key, &authority.pem());
    }

    fn settings(&self) -> String {
        format!("tls_cert_file = \"{}\"\ntls_key_file = \"{}\"\n", self.cert.display(), self.key.display())
    }
}

/// Over TLS from the first byte on.
async fn connect_tls(address: SocketAddr, ca: &[u8]) -> Raw {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    Raw::over(TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
}

/// pglease with further keys of `[listen]`.
async fn listening(world: &World<'_>, listen: &str) -> Pglease {
    let settings = world.settings_with("debug", &world.servers.openbao.address(), listen);
    pglease_with(&(settings + &world.route("db-app"))).await
}

/// Connects until the log has `event` so many times: who needs the files has them looked at, once a second.
async fn until_looked_at(world: &World<'_>, pglease: &Pglease, event: &str, count: usize) {
    let conninfo = format!("host=localhost port={} dbname=app user=app sslmode=require", pglease.port());
    until(async || {
        assert_eq!(psql(world, conninfo.clone()).await, "served\n");
        pglease.events(event).len() >= count
    })
    .await;
}

#[tokio::test]
async fn psql_is_served_over_tls_as_it_asks_for_it_and_by_a_certificate_that_was_replaced() {
    let world = World::shared(WorldOptions::default()).await;
    let files = Files::in_folder_of(&world);
    files.renew();
    let pglease = listening(&world, &files.settings()).await;
    let base = format!("host=localhost port={} dbname=app user=app", pglease.port());
    let verified = format!("{base} sslmode=verify-full sslrootcert={}", files.ca.display());

    let mut asked = vec![
        base.clone(),
        format!("{base} sslmode=disable"),
        format!("{base} sslmode=require"),
        verified.clone(),
        format!("{verified} ssl_min_protocol_version=TLSv1.3"),
        format!("{verified} ssl_max_protocol_version=TLSv1.2"),
    ];
    if world.servers.postgres.major() >= 17 {
        asked.push(format!("{verified} sslnegotiation=direct"));
    }
    for conninfo in asked {
        assert_eq!(psql(&world, conninfo.clone()).await, "served\n", "{conninfo}");
    }
    let over: Vec<_> =
        pglease.logged("session.start").await.iter().map(|event| event["over"].clone()).collect();
    assert_eq!(over.iter().filter(|over| **over == "tls").count(), over.len() - 1, "{over:?}");

    // One whose key is another's is not taken, a whole one is.
    let key = fs::read_to_string(&files.key).unwrap();
    let other = Authority::create().issue(&["localhost"]);
    files.write(&other.certificate, &key, &fs::read_to_string(&files.ca).unwrap());
    until_looked_at(&world, &pglease, "listen.tls_reload_failed", 1).await;
    assert_eq!(psql(&world, verified.clone()).await, "served\n");
    let failed = pglease.wait_for_event("listen.tls_reload_failed", PATIENCE).await;
    assert!(failed["error"].as_str().unwrap().contains("listen.tls_key_file"), "{failed}");
    files.renew();
    until_looked_at(&world, &pglease, "listen.tls_reloaded", 1).await;
    assert_eq!(psql(&world, verified).await, "served\n");

    // Whatever ring signs with, psql believes.
    for (count, name) in (2..).zip(["rsa", "rsa_pss", "p384", "ed25519"]) {
        let cert = fs::read_to_string(fixture(&format!("{name}.pem"))).unwrap();
        let key = fs::read_to_string(fixture(&format!("{name}.key"))).unwrap();
        files.write(&cert, &key, &cert);
        until_looked_at(&world, &pglease, "listen.tls_reloaded", count).await;
        let conninfo = format!("{base} sslmode=verify-full sslrootcert={}", files.ca.display());
        assert_eq!(psql(&world, conninfo).await, "served\n", "{name}");
    }
    assert!(pglease.metric("pglease_tls_handshakes_total", "result=\"ok\"").await >= 10.0);
}

#[tokio::test]
async fn psql_is_served_over_a_unix_socket() {
    let world = World::shared(WorldOptions::default()).await;
    // A path of a socket is short.
    let folder = Folder::create(None);
    let socket = folder.path().join(".s.PGSQL.5432");
    // What a dead process has left.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());

    let listen = format!("unix_socket = \"{}\"\nunix_socket_mode = \"0600\"", folder.path().display());
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
    let settings = settings.replace("addresses = [\"localhost:0\"]", "addresses = []");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    assert!(pglease.addresses().is_empty());
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);

    for ssl_mode in ["", "sslmode=disable", "sslmode=prefer", "sslmode=require"] {
        let conninfo = format!("host={} dbname=app user=app {ssl_mode}", folder.path().display());
        assert_eq!(psql(&world, conninfo).await, "served\n", "{ssl_mode}");
    }
    assert!(pglease.logged("session.start").await.iter().all(|event| event["over"] == "unix"));
    let mut raw = Raw::connect_unix(&socket).await;
    raw.send(SSL_REQUEST).await;
    assert_eq!(raw.byte().await, Some(b'N'));

    pglease.sigterm();
    pglease.wait_exit(PATIENCE).await;
    assert!(!socket.exists());
}

/// Each asks for both kinds of encryption, and gets its reason all the same.
#[tokio::test]
async fn case_c05_reason_comes_behind_the_answer_to_ssl_request() {
    let world = World::shared(WorldOptions::default()).await;
    let files = Files::in_folder_of(&world);
    files.renew();
    for with_tls in [false, true] {
        let tls = if with_tls { files.settings() } else { String::new() };
        // The only session is taken.
        let pglease = listening(&world, &format!("max_sessions = 1\n{tls}")).await;
        let held = pglease.connect("app").await.unwrap();
        told(&world, &pglease, with_tls, "FATAL:  sorry, too many sessions already").await;
        // More connections that say nothing than there are places for: who comes later gets its answer.
        let mut silent = Vec::new();
        for _ in 0..66 {
            silent.push(Raw::connect(pglease.addresses()[0]).await);
        }
        told(&world, &pglease, with_tls, "FATAL:  sorry, too many sessions already").await;
        drop((silent, held));

        // No credential, as there is no Vault.
        let listen = format!("connect_wait = \"100ms\"\n{tls}");
        let settings = world.settings_with("debug", "http://127.0.0.1:1", &listen) + &world.route("db-app");
        let pglease = start(&settings).await;
        told(&world, &pglease, with_tls, "FATAL:  no database credential is available yet").await;
    }
}

#[tokio::test]
async fn case_c05_reason_comes_behind_the_answer_to_ssl_request_while_draining() {
    let world = World::shared(WorldOptions::default()).await;
    let files = Files::in_folder_of(&world);
    files.renew();
    for with_tls in [false, true] {
        let listen = if with_tls { files.settings() } else { String::new() };
        let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
        let settings = format!("{settings}[drain]\ndeadline = \"10m\"\n\n{}", world.route("db-app"));
        let pglease = pglease_with(&settings).await;
        let held = pglease.connect("app").await.unwrap();
        held.batch_execute("BEGIN").await.unwrap();
        pglease.sigterm();
        pglease.wait_for_event("drain.start", PATIENCE).await;
        until(async || pglease.get("/readyz").await.0 == 503).await;
        told(&world, &pglease, with_tls, "FATAL:  pglease is shutting down").await;
    }
}

/// psql prints this, and SSLRequest and GSSENCRequest have been answered with their one byte.
async fn told(world: &World<'_>, pglease: &Pglease, with_tls: bool, reason: &str) {
    let base = format!("host=localhost port={} dbname=app user=app", pglease.port());
    for ssl_mode in ["disable", "prefer", "require"] {
        let said = psql(world, format!("{base} sslmode={ssl_mode}")).await;
        let expected = if ssl_mode == "require" && !with_tls {
            "server does not support SSL, but SSL was required"
        } else {
            reason
        };
        assert!(said.contains(expected), "sslmode={ssl_mode}: {said}");
        assert!(!said.contains("error response during SSL exchange"), "{said}");
    }
    let mut raw = Raw::connect(pglease.addresses()[0]).await;
    raw.send(GSSENC_REQUEST).await;
    assert_eq!(raw.byte().await, Some(b'N'));
    raw.send(SSL_REQUEST).await;
    assert_eq!(raw.byte().await, Some(if with_tls { b'S' } else { b'N' }));
    if !with_tls {
        raw.send(&startup(&[("user", "app"), ("database", "app")])).await;
        let told = raw.rest().await;
        assert_eq!(told.len(), 1);
        assert!(reason.ends_with(&told[0].fields()[3].1), "{told:?}");
    }
}

#[tokio::test]
async fn cancel_over_tls_ends_what_runs() {
    let world = World::shared(WorldOptions::default()).await;
    let files = Files::in_folder_of(&world);
    files.renew();
    let pglease = listening(&world, &files.settings()).await;
    let (mut session, greeting) =
        Raw::log_in(pglease.addresses()[0], &[("user", "app"), ("database", "app")], "").await;
    let key = greeting.into_iter().find(|message| message.tag == b'K').unwrap().body;
    session.query("SELECT pg_sleep(600)").await;
    let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)'";
    until(async || !world.superuser.rows(sql).await.is_empty()).await;

    let ca = fs::read(&files.ca).unwrap();
    let mut canceller = connect_tls(pglease.addresses()[0], &ca).await;
    canceller.send(&packet(80_877_102, &key)).await;
    assert_eq!(canceller.bytes().await, b"");
    let answer = session.up_to(b'Z').await;
    let error = answer.iter().find(|message| message.tag == b'E').unwrap();
    assert!(error.fields().contains(&('C', "57014".to_owned())), "{error:?}");
}

#[tokio::test]
async fn reload_of_the_settings_brings_tls_changes_it_and_takes_it_away_while_sessions_stay() {
    let world = World::shared(WorldOptions::default()).await;
    let file = |name| world.folder().join(name);
    let first = Files::in_folder_of(&world);
    let second = Files { cert: file("second.pem"), key: file("second.key"), ca: file("second-ca.pem") };
    for files in [&first, &second] {
        files.renew();
    }
    let of = |listen: &str| {
        world.settings_with("debug", &world.servers.openbao.address(), listen) + &world.route("db-app")
    };
    let pglease = pglease_with(&of("")).await;
    let reload = async |listen: &str, count: usize| {
        pglease.write_settings(&of(listen));
        let line = pglease.wait_for_events("config.reloaded", count, PATIENCE).await;
        assert_eq!(line["changed"], "listen.tls");
    };
    let base = format!("host=localhost port={} dbname=app user=app", pglease.port());
    let believing = |files: &Files| format!("{base} sslmode=verify-full sslrootcert={}", files.ca.display());
    let logged_in = async |mut session: Raw| {
        session.send(&startup(&[("user", "app"), ("database", "app")])).await;
        session.up_to(b'Z').await;
        session
    };
    assert!(psql(&world, believing(&first)).await.contains("does not support SSL"));
    let plain = logged_in(Raw::connect(pglease.addresses()[0]).await).await;

    reload(&first.settings(), 1).await;
    assert_eq!(psql(&world, believing(&first)).await, "served\n");
    let ca = fs::read(&first.ca).unwrap();
    let encrypted = logged_in(connect_tls(pglease.addresses()[0], &ca).await).await;

    let told = async || {
        let samples = pglease.metrics().await.into_iter();
        let mut of_it = samples.filter(|(name, _)| name.starts_with("pglease_certificate_expiry_timestamp"));
        of_it.next().map_or_else(String::new, |(name, _)| name)
    };
    until(async || told().await.contains("tls.pem")).await;

    reload(&second.settings(), 2).await;
    until(async || told().await.contains("second.pem")).await;
    assert_eq!(psql(&world, believing(&second)).await, "served\n");
    let said = psql(&world, believing(&first)).await;
    assert!(said.contains("SSL error"), "{said}");

    // A key that is not there changes nothing.
    let missing = second.settings().replace("second.key", "third.key");
    pglease.write_settings(&of(&missing));
    let line = pglease.wait_for_event("config.rejected", PATIENCE).await;
    assert!(line["error"].as_str().unwrap().contains("listen.tls_key_file"), "{line}");
    assert_eq!(psql(&world, believing(&second)).await, "served\n");

    reload("", 3).await;
    until(async || told().await.is_empty()).await;
    assert!(psql(&world, believing(&second)).await.contains("does not support SSL"));
    for mut session in [plain, encrypted] {
        session.query("SELECT 1").await;
        assert!(session.up_to(b'Z').await.iter().any(|message| message.tag == b'D'));
    }
}
