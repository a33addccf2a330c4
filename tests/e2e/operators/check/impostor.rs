//! What answers at a host and is no PostgreSQL, or one in a state that none can be brought to at will: scripted.

use std::fs;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Patient;
use crate::support::pki::Authority;

/// What it does with a connection, once it has read the first packet.
#[derive(Clone, Copy)]
enum Script {
    /// Says this and hangs up.
    Says(&'static [u8]),
    /// Does TLS, offers SCRAM alone, and hangs up.
    Unbound,
    /// Does SCRAM to its end without having shown that it knows the password.
    Unproven,
}

async fn play(mut stream: TcpStream, script: Script, acceptor: TlsAcceptor) -> std::io::Result<()> {
    packet(&mut stream).await?;
    match script {
        Script::Says(bytes) => stream.write_all(bytes).await?,
        Script::Unbound => {
            stream.write_all(b"S").await?;
            let mut stream = acceptor.accept(stream).await?;
            packet(&mut stream).await?;
            stream.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await?;
            stream.shutdown().await?;
        }
        Script::Unproven => {
            stream.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await?;
            let first = message(&mut stream).await?;
            let nonce = first.rsplit("r=").next().unwrap();
            let answer = format!("r={nonce}theirs,s=c2FsdA==,i=4096");
            let len = u32::try_from(answer.len() + 8).unwrap().to_be_bytes();
            stream.write_all(&[b"R", &len[..], &11_u32.to_be_bytes(), answer.as_bytes()].concat()).await?;
            message(&mut stream).await?;
            stream.write_all(b"R\0\0\0\x08\0\0\0\0").await?;
        }
    }
    Ok(())
}

async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let len = stream.read_u32().await?;
    let mut body = vec![0; len as usize - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn message(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<String> {
    stream.read_u8().await?;
    Ok(String::from_utf8(packet(stream).await?).unwrap())
}

#[tokio::test]
async fn who_is_no_postgresql_or_is_in_trouble_is_told_apart() {
    let mut patient = Patient::new().await;
    let well = patient.settings.clone();
    let authority = Authority::create();
    let ca_file = patient.world.folder().join("impostor.pem");
    fs::write(&ca_file, authority.pem()).unwrap();
    let plain = "sslmode=disable".to_owned();
    let tls = format!("sslmode=verify-full&sslrootcert={}", ca_file.display());
    let issued = authority.issue(&["localhost"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let bound = format!("channel_binding=require&{tls}");
    let newest = format!("min_protocol_version=3.2&{plain}");

    for (script, keywords, name, fault) in [
        (Script::Says(b"\x15\x03\x01\0\x02\x02\x28"), &tls, "postgres.tls", "tls-at-once"),
        (Script::Says(b"H"), &tls, "postgres.tls", "not-postgres"),
        (Script::Says(b"E\0\0\0\x0cSFATAL\0\0"), &tls, "postgres.tls", "postgres-cannot-begin"),
        (Script::Says(b""), &tls, "postgres.tls", "postgres-handshake-broken"),
        (Script::Unbound, &bound, "postgres.login", "binding-not-offered"),
        (Script::Unproven, &plain, "postgres.login", "server-not-proven"),
        (Script::Says(b""), &plain, "postgres.login", "login-broken"),
        (Script::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), &plain, "postgres.login", "protocol-unknown"),
        (Script::Says(b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0"), &newest, "postgres.login", "protocol-version"),
        (Script::Says(OUT_OF_MEMORY), &plain, "postgres.login", "server-in-trouble"),
        (Script::Says(NO_SUCH_USER), &plain, "postgres.login", "pooler-refuses-startup"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut serving = JoinSet::new();
        let acceptor = acceptor.clone();
        serving.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // The check closes its first connection unused.
                let _ = play(stream, script, acceptor.clone()).await;
            }
        });
        let vault_path = patient.world.vault_path("db-app");
        let upstream = format!("postgresql://localhost:{port}/app?{keywords}");
        patient.settings = format!(
            "{}[[route]]\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n",
            patient.world.settings()
        );
        let cure = patient.finds(name, fault).await;
        assert!(!cure.is_empty());
    }
    // The cure of them all is another host: the one that is PostgreSQL.
    patient.settings = well;
    patient.is_well("postgres.login").await;
}

const OUT_OF_MEMORY: &[u8] = b"E\0\0\0\x26SFATAL\0VFATAL\0C53200\0Mout of mem\0\0";
const NO_SUCH_USER: &[u8] = b"E\0\0\0\x28SFATAL\0VFATAL\0C08P01\0Mno such user\0\0";
