//! Case C04 where the client speaks TLS, before an upstream that does and one that does not: what is decrypted is
//! passed on at once, and the end of a client's TLS is the end of what it sends, with a goodbye and without.

use std::fs;
use std::net::Shutdown;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, Socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tags;
use crate::raw::{Raw, packet, startup};
use crate::support::pglease::Pglease;
use crate::support::pki::Authority;
use crate::support::world::{World, WorldOptions};
use crate::{expect_rest, pglease_with, until};

#[tokio::test]
async fn case_c04_client_in_tls_gets_everything_at_once_from_upstreams_of_both_kinds() {
    let world = World::shared(WorldOptions::default()).await;
    let authority = Authority::create();
    let certificate = authority.issue(&["localhost"]);
    let (certificate_file, key_file) =
        (world.folder().join("pglease.crt"), world.folder().join("pglease.key"));
    fs::write(&certificate_file, certificate.certificate).unwrap();
    fs::write(&key_file, certificate.key).unwrap();
    let listen = format!(
        "tls_cert_file = {:?}\ntls_key_file = {:?}",
        certificate_file.display().to_string(),
        key_file.display().to_string()
    );
    let route = world.route("db-app");
    let (address, _) = route.split_once("?sslmode=").unwrap();
    let plain = format!("{address}?sslmode=disable\"\nvault_path = {:?}\n", world.vault_path("db-app"));
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
    let pglease = pglease_with(&(settings + &plain + "user = \"plain\"\n" + &route)).await;

    for user in ["plain", "app"] {
        let mut client = Client::connect(&pglease, &authority, user).await;
        every_size_passes(&mut client.raw).await;
        reader_that_pauses(&world, &mut client.raw, user).await;
        expect_rest(&pglease).await;

        for says_goodbye in [true, false] {
            let Client { mut raw, socket } = Client::connect(&pglease, &authority, user).await;
            raw.query("SELECT 'answered' FROM pg_sleep(0.2)").await;
            if says_goodbye {
                raw.finish().await;
            } else {
                socket.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(tags(&raw.rest().await), "TDCZ", "{says_goodbye}");
        }
    }
    let ends = pglease.wait_for_events("session.end", 4, crate::PATIENCE).await;
    assert_eq!(ends["reason"], "client_closed", "{ends}");
}

struct Client {
    raw: Raw,
    /// Underneath.
    socket: Socket,
}

impl Client {
    async fn connect(pglease: &Pglease, authority: &Authority, user: &str) -> Self {
        let mut stream = TcpStream::connect(pglease.addresses()[0]).await.unwrap();
        let socket = SockRef::from(&stream).try_clone().unwrap();
        stream.write_all(&packet(80_877_103, b"")).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let connector =
            TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let mut raw = Raw::over(stream);
        raw.send(&startup(&[("user", user), ("database", "app")])).await;
        raw.authenticate("").await;
        raw.up_to(b'Z').await;
        Self { raw, socket }
    }
}

/// Around whole numbers of TLS records, of the relay's buffer, and of what it reads in one turn.
fn sizes() -> impl Iterator<Item = usize> {
    let around = |size: usize| (size - 300..=size + 300).step_by(47);
    [16_384, 65_536, 131_072, 524_288].into_iter().flat_map(around)
}

async fn every_size_passes(raw: &mut Raw) {
    raw.query("CREATE TEMP TABLE copied (line text)").await;
    raw.up_to(b'Z').await;
    for size in sizes() {
        raw.query(&format!("SELECT repeat('x', {size}); TRUNCATE copied; COPY copied FROM STDIN")).await;
        let answer = raw.up_to(b'G').await;
        assert_eq!(answer[1].body.len(), 6 + size);
        let line = [&vec![b'x'; size][..], b"\n"].concat();
        let len = u32::try_from(line.len() + 4).unwrap().to_be_bytes();
        raw.send(&[b"d", &len[..], &line, b"c\0\0\0\x04"].concat()).await;
        let answer = raw.up_to(b'Z').await;
        assert_eq!(answer[0].body, b"COPY 1\0", "{size}: {answer:?}");
    }
}

async fn reader_that_pauses(world: &World<'_>, raw: &mut Raw, user: &str) {
    raw.query(&format!("SELECT repeat('x', 30000000) AS held_up_{user}")).await;
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%held_up_{user}' AND wait_event = 'ClientWrite'"
    );
    until(async || !world.superuser.rows(&sql).await.is_empty()).await;
    let answer = raw.up_to(b'Z').await;
    assert_eq!(answer[1].body.len(), 30_000_006);
}
