//! TLS with applications, record by record: what client libraries do not show.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::raw::{packet, startup};
use crate::support::pglease::Pglease;
use crate::support::pki::{Authority, Issued};
use crate::support::world::{Revocation, World, WorldOptions};
use crate::{PATIENCE, pglease_with, rotate, until};

/// A CA, and where pglease finds the certificate that it has issued.
struct Trust {
    authority: Authority,
    cert: PathBuf,
    key: PathBuf,
}

impl Trust {
    fn of(world: &World<'_>) -> Self {
        let authority = Authority::create();
        let [cert, key] = ["tls.pem", "tls.key"].map(|name| world.folder().join(name));
        let trust = Self { authority, cert, key };
        trust.write(&trust.authority.issue(&["localhost"]));
        trust
    }

    fn write(&self, issued: &Issued) {
        fs::write(&self.cert, &issued.certificate).unwrap();
        fs::write(&self.key, &issued.key).unwrap();
    }

    /// pglease with this certificate and one route.
    async fn pglease(&self, world: &World<'_>, route: &str) -> Pglease {
        let listen =
            format!("tls_cert_file = \"{}\"\ntls_key_file = \"{}\"", self.cert.display(), self.key.display());
        pglease_with(&(world.settings_with("debug", &world.servers.openbao.address(), &listen) + route)).await
    }

    /// TLS of this version, on which nothing has been said.
    async fn connect(
        &self,
        pglease: &Pglease,
        version: &'static SupportedProtocolVersion,
    ) -> TlsStream<TcpStream> {
        let mut stream = TcpStream::connect(pglease.addresses()[0]).await.unwrap();
        stream.write_all(&packet(80_877_103, b"")).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        let mut provider = rustls::crypto::ring::default_provider();
        if version.version == ProtocolVersion::TLSv1_2 {
            // Of the suites of 1.2 the one whose records are made most simply.
            provider.cipher_suites = vec![TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256];
        }
        let config = ClientConfig::builder_with_provider(Arc::new(provider));
        let mut config = config
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
    }

    /// A session over it that is idle.
    async fn begin(
        &self,
        pglease: &Pglease,
        version: &'static SupportedProtocolVersion,
    ) -> TlsStream<TcpStream> {
        let mut stream = self.connect(pglease, version).await;
        stream.write_all(&startup(&[("user", "app"), ("database", "app")])).await.unwrap();
        let mut greeting = Vec::new();
        while !greeting.ends_with(READY) {
            assert!(stream.read_buf(&mut greeting).await.unwrap() > 0, "{}", greeting.escape_ascii());
        }
        stream
    }
}

/// Hears the goodbye, behind which nothing but a `close_notify` and the end come: without that one TLS cannot tell the
/// end from a cut.
async fn assert_ends(mut stream: TlsStream<TcpStream>, how: &str) {
    let mut told = Vec::new();
    let read = stream.read_to_end(&mut told).await;
    assert!(read.is_ok(), "{how}: {read:?} behind {}", told.escape_ascii());
    let len = u32::from_be_bytes(told[1..5].try_into().unwrap()) as usize;
    let is_one = told[0] == b'E' && told.len() == 1 + len;
    assert!(is_one && told.windows(7).any(|field| field == b"C57P01\0"), "{how}: {}", told.escape_ascii());
}

static VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

#[tokio::test]
async fn close_notify_comes_before_the_end_in_a_drain_and_at_rotate_close() {
    let world = World::shared(WorldOptions::default()).await;
    let trust = Trust::of(&world);
    let pglease = trust.pglease(&world, &world.route("db-app")).await;
    for way in ["rotate --close", "drain"] {
        let [old, new] = VERSIONS.map(|version| trust.begin(&pglease, version));
        let (old, new) = tokio::join!(old, new);
        if way == "drain" {
            pglease.sigterm();
        } else {
            rotate(&pglease, &["--close"]).await;
        }
        tokio::join!(assert_ends(old, way), assert_ends(new, way));
    }
    assert!(pglease.wait_exit(PATIENCE).await.success());
}

#[tokio::test]
async fn close_notify_comes_before_the_end_at_the_end_of_a_lease() {
    let world = World::short_lived(Revocation::Drop).await;
    let trust = Trust::of(&world);
    let pglease = trust.pglease(&world, &(world.route("db-app") + "at_lease_end = \"close\"\n")).await;
    let [old, new] = VERSIONS.map(|version| trust.begin(&pglease, version));
    let (old, new) = tokio::join!(old, new);
    tokio::join!(assert_ends(old, "1.2"), assert_ends(new, "1.3"));
    let ends = pglease.logged("session.end").await;
    assert!(ends.len() == 2 && ends.iter().all(|end| end["reason"] == "lease_ends"), "{ends:?}");
}

#[tokio::test]
async fn certificate_of_another_time_is_warned_of_at_the_start_and_shown() {
    let world = World::shared(WorldOptions::default()).await;
    for (years, event) in [((2001, 2002), "listen.tls_expired"), ((3001, 3002), "listen.tls_not_yet_valid")] {
        let trust = Trust::of(&world);
        trust.write(&trust.authority.issue_for(&["localhost"], years));
        let pglease = trust.pglease(&world, &world.route("db-app")).await;
        let warned = pglease.wait_for_event(event, PATIENCE).await;
        assert!(
            warned["level"] == "WARN" && warned["path"].as_str().unwrap().contains("tls.pem"),
            "{warned}"
        );
        if event == "listen.tls_expired" {
            until(async || {
                let worst = pglease.status().await["verdict"][0].clone();
                worst["severity"] == "error"
                    && worst["says"].as_str().unwrap().contains("(listen.tls_cert_file) ended")
            })
            .await;
        }
        // A client that looks at it refuses it, one that does not is served.
        let base = format!("host=localhost port={} dbname=app user=app", pglease.port());
        let ca_file = world.folder().join("ca.pem");
        fs::write(&ca_file, trust.authority.pem()).unwrap();
        for (how, said) in [
            ("sslmode=verify-full sslrootcert=".to_owned() + &ca_file.display().to_string(), "certificate"),
            ("sslmode=require".to_owned(), "served"),
        ] {
            let mut psql = tokio::process::Command::new(world.servers.postgres.bin().join("psql"));
            psql.args(["-XAtwc", "SELECT 'served'", &format!("{base} {how}")]).env_clear();
            let output = psql.kill_on_drop(true).output().await.unwrap();
            let output = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(output.contains(said), "{how}: {output}");
        }
    }
}

#[tokio::test]
async fn renegotiation_is_refused_and_the_session_goes_on() {
    let world = World::shared(WorldOptions::default()).await;
    let trust = Trust::of(&world);
    let pglease = trust.pglease(&world, &world.route("db-app")).await;
    let mut records = Records::over(trust.connect(&pglease, &version::TLS12).await);
    records.send(DATA, &startup(&[("user", "app"), ("database", "app")])).await;
    records.up_to_ready().await;

    // The refusal goes out with what is said next.
    records.send(HANDSHAKE, &client_hello()).await;
    let mut query = BytesMut::new();
    frontend::query("SELECT 'as before'", &mut query).unwrap();
    records.send(DATA, &query).await;
    assert_eq!(records.receive().await, Some((ALERT, vec![WARNING, NO_RENEGOTIATION])));
    let answer = records.up_to_ready().await;
    assert!(answer.windows(9).any(|part| part == b"as before"), "{}", answer.escape_ascii());

    // Who insists is cut off.
    records.send(HANDSHAKE, &client_hello()).await;
    while let Some((kind, _)) = records.receive().await {
        assert_eq!(kind, ALERT);
    }
    pglease.wait_for_event("session.end", PATIENCE).await;
}

/// TLS 1.2 by hand, from the end of the handshake on (RFC 5246 §6.2, RFC 7905).
struct Records {
    stream: TcpStream,
    sending: Half,
    receiving: Half,
}

struct Half {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Records {
    fn over(stream: TlsStream<TcpStream>) -> Self {
        let (stream, connection) = stream.into_inner();
        let secrets = connection.dangerous_extract_secrets().unwrap();
        Self { stream, sending: Half::of(secrets.tx), receiving: Half::of(secrets.rx) }
    }

    async fn send(&mut self, kind: u8, bytes: &[u8]) {
        let mut sealed = bytes.to_vec();
        let (nonce, aad) = self.sending.next(kind, bytes.len());
        self.sending.key.seal_in_place_append_tag(nonce, aad, &mut sealed).unwrap();
        let [.., high, low] = sealed.len().to_be_bytes();
        self.stream.write_all(&[&[kind, 3, 3, high, low], &sealed[..]].concat()).await.unwrap();
    }

    /// Kind and content of the next record; `None` at the end.
    async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        let read = time::timeout(PATIENCE, self.stream.read_exact(&mut head)).await;
        read.expect("neither a record nor an end").ok()?;
        let [kind, _, _, high, low] = head;
        let mut sealed = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        self.stream.read_exact(&mut sealed).await.ok()?;
        let (nonce, aad) = self.receiving.next(kind, sealed.len() - CHACHA20_POLY1305.tag_len());
        let opened = self.receiving.key.open_in_place(nonce, aad, &mut sealed).unwrap();
        Some((kind, opened.to_vec()))
    }

    /// Data up to ReadyForQuery.
    async fn up_to_ready(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(READY) {
            let (kind, bytes) = self.receive().await.expect("more");
            assert_eq!(kind, DATA);
            all.extend(bytes);
        }
        all
    }
}

impl Half {
    fn of((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else { panic!("another suite") };
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).unwrap());
        Self { key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    fn next(&mut self, kind: u8, len: usize) -> (Nonce, Aad<[u8; 13]>) {
        let sequence = self.sequence.to_be_bytes();
        self.sequence += 1;
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(sequence).for_each(|(byte, other)| *byte ^= other);
        let [.., high, low] = len.to_be_bytes();
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&sequence);
        aad[8..].copy_from_slice(&[kind, 3, 3, high, low]);
        (Nonce::assume_unique_for_key(nonce), Aad::from(aad))
    }
}

/// One that wants TLS 1.2 of that suite (RFC 5246 §7.4.1.2).
fn client_hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0xcc, 0xa9], &[1, 0]].concat();
    let [.., high, low] = body.len().to_be_bytes();
    [&[1, 0, high, low], &body[..]].concat()
}

const READY: &[u8] = b"Z\0\0\0\x05I";
/// RFC 5246 §6.2.1, `ContentType`.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// RFC 5246 §7.2.
const WARNING: u8 = 1;
const NO_RENEGOTIATION: u8 = 100;
