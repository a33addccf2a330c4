use std::io;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time;

use super::*;
use crate::config::ClientCert;
use crate::tls::server_name;
use crate::upstream::fake::{Identity, bounded, expect_ssl_request};
use tokio::io::AsyncWriteExt;

fn config(identity: &Identity, ssl: SslOptions) -> UpstreamConfig {
    let ssl_root_cert = Some(identity.ca_file.clone());
    UpstreamConfig { ssl_root_cert, ssl, ..UpstreamConfig::at("127.0.0.1", 1) }
}

/// What comes of TLS with a server that has this identity; it asks for no certificate and knows nothing of ALPN.
async fn negotiate(
    tls: &Tls,
    identity: &Identity,
    is_asked: bool,
) -> Result<TlsStream<TcpStream>, NegotiationError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = async {
        let (mut stream, _) = listener.accept().await?;
        if is_asked {
            expect_ssl_request(&mut stream).await;
            stream.write_all(b"S").await?;
        }
        identity.acceptor.accept(stream).await
    };
    let client = async {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tls.negotiate(stream, &server_name("127.0.0.1").unwrap()).await
    };
    let (negotiated, served): (_, io::Result<_>) = bounded(async { tokio::join!(client, server) }).await;
    drop(served);
    negotiated
}

#[tokio::test]
async fn tls_at_once_is_for_a_server_that_agrees_to_speak_postgresql() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    let ssl = SslOptions { negotiation: SslNegotiation::Direct, ..SslOptions::default() };
    let direct = Tls::load(&config(&identity, ssl)).unwrap().unwrap();
    assert!(matches!(negotiate(&direct, &identity, false).await, Err(NegotiationError::NoAlpn)));
    let asking = Tls::load(&config(&identity, SslOptions::default())).unwrap().unwrap();
    negotiate(&asking, &identity, true).await.unwrap();
}

#[tokio::test]
async fn certificate_that_has_to_be_asked_for_and_is_not_ends_it() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    let (cert_file, key_file) = (identity.ca_file.clone(), identity.key_file.clone());
    let client = Some(ClientCert { cert_file, key_file });
    for must_ask in [false, true] {
        let ssl = SslOptions { client: client.clone(), must_ask, ..SslOptions::default() };
        let tls = Tls::load(&config(&identity, ssl)).unwrap().unwrap();
        match negotiate(&tls, &identity, true).await {
            Ok(_) => assert!(!must_ask),
            Err(error) => {
                assert!(must_ask && matches!(error, NegotiationError::CertificateNotShown), "{error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn key_that_others_may_read_is_refused_at_start_and_when_it_changes() {
    use std::os::unix::fs::PermissionsExt;
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    let (cert_file, key_file) = (identity.ca_file.clone(), identity.key_file.clone());
    let ssl = SslOptions {
        client: Some(ClientCert { cert_file, key_file: key_file.clone() }),
        ..SslOptions::default()
    };
    let config = config(&identity, ssl);
    let tls = Tls::load(&config).unwrap().unwrap();
    let client = async || {
        time::advance(Duration::from_secs(1)).await;
        tls.client.get().await
    };
    let before = client().await;
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(matches!(Tls::load(&config), Err(TlsError::OpenKey { .. })));

    // Seen when one of the files changes, and then what was read before stays.
    let certificate = fs::read_to_string(&identity.ca_file).unwrap();
    fs::write(&identity.ca_file, certificate.clone() + "\n").unwrap();
    assert!(Arc::ptr_eq(&before, &client().await));
    // No file changes any more.
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!Arc::ptr_eq(&before, &client().await));
}
