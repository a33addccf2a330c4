//! Who has a certificate that verifies and not the password's verifier.

use std::fs;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::support::pki::Authority;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with};

/// What it does instead of a login.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attack {
    /// These messages at once.
    Ask(&'static [u8]),
    /// Offers both mechanisms, and then this; `{}` stands for the client's nonce.
    Continue(&'static str),
    /// The same up to the client's proof, and then these.
    Final(&'static [u8]),
}

/// The server's side of one connection, which it ends.
pub(crate) async fn attack(stream: TcpStream, acceptor: &TlsAcceptor, attack: Attack) -> std::io::Result<()> {
    let mut stream = stream;
    stream.read_exact(&mut [0; 8]).await?;
    stream.write_all(b"S").await?;
    let mut stream = acceptor.accept(stream).await?;
    let len = stream.read_u32().await?;
    stream.read_exact(&mut vec![0; len as usize - 4]).await?;
    if let Attack::Ask(messages) = attack {
        send(&mut stream, messages).await?;
        return drain(&mut stream).await;
    }

    send(&mut stream, &request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")).await?;
    let first = receive(&mut stream).await?;
    let nonce = first.rsplit("r=").next().unwrap().to_owned();
    let server_first = match attack {
        Attack::Continue(message) => message.replace("{}", &nonce),
        Attack::Ask(_) | Attack::Final(_) => format!("r={nonce}theirs,s=c2FsdA==,i=4096"),
    };
    send(&mut stream, &request(11, server_first.as_bytes())).await?;
    if let Attack::Final(messages) = attack {
        receive(&mut stream).await?;
        send(&mut stream, messages).await?;
    }
    drain(&mut stream).await
}

async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn receive(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    assert_eq!(stream.read_u8().await?, b'p');
    let len = stream.read_u32().await?;
    let mut body = vec![0; len as usize - 4];
    stream.read_exact(&mut body).await?;
    Ok(String::from_utf8(body).unwrap())
}

/// Nothing may follow.
async fn drain(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!rest.contains(&b'p'), "something was answered: {rest:?}");
    Ok(())
}

fn request(code: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len() + 8).unwrap();
    [b"R", &len.to_be_bytes()[..], &code.to_be_bytes(), data].concat()
}

pub(crate) const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
pub(crate) const WRONG: &[u8] = b"R\0\0\0\x36\0\0\0\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Case C47: nothing that a false server does is a login, or is held against the credential.
#[tokio::test]
async fn case_c47_false_server_is_not_trusted_and_costs_no_credential() {
    let world = World::shared(WorldOptions::default()).await;
    let authority = Authority::create();
    let issued = authority.issue(&["localhost"]);
    let ca_file = world.folder().join("impostor.pem");
    fs::write(&ca_file, authority.pem()).unwrap();
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let next = Arc::new(Mutex::new(Attack::Ask(b"")));
    let mut impostor = JoinSet::new();
    let script = Arc::clone(&next);
    impostor.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let now = *script.lock().unwrap();
            // A client that hangs up on it is what it deserves.
            let _ = attack(stream, &acceptor, now).await;
        }
    });

    let mut settings = world.settings() + &world.route("db-app") + "database = \"honest\"\n";
    for binding in ["disable", "prefer", "require"] {
        let upstream = format!(
            "host=localhost hostaddr=127.0.0.1 port={port} dbname=x sslrootcert={} channel_binding={binding}",
            ca_file.display()
        );
        let vault_path = world.vault_path("db-app");
        let route = format!(
            "[[route]]\ndatabase = {binding:?}\nupstream = {upstream:?}\nvault_path = {vault_path:?}\noptional = true\n"
        );
        settings += &route;
    }
    let pglease = pglease_with(&settings).await;

    let attacks: [(Attack, &str); 15] = [
        (Attack::Ask(b"R\0\0\0\x08\0\0\0\x03"), "asks for the password in clear"),
        (Attack::Ask(b"R\0\0\0\x0c\0\0\0\x05salt"), "asks for an MD5 password"),
        (Attack::Ask(b"R\0\0\0\x08\0\0\0\x07"), "asks for GSSAPI"),
        (Attack::Ask(b"R\0\0\0\x0f\0\0\0\x0cv=abcde"), "AuthenticationSASLFinal out of order"),
        (Attack::Continue("r=theirs,s=c2FsdA==,i=4096"), "not an answer to ours"),
        (Attack::Continue("m=ext,r={}x,s=c2FsdA==,i=4096"), "not an answer to ours"),
        (Attack::Continue("r={}x,s=c2FsdA==,i=2147483647"), "2147483647 rounds"),
        (Attack::Continue("r={}x,s=,i=4096"), "no salt"),
        (Attack::Final(OK), "without proof"),
        (Attack::Final(WRONG), "did not prove"),
        (Attack::Final(b"R\0\0\0\x0a\0\0\0\x0cv="), "did not prove"),
        (Attack::Final(b"R\0\0\0\x15\0\0\0\x0ce=other-error"), "did not prove"),
        (Attack::Final(b"R\0\0\0\x0b\0\0\0\x0br=x"), "out of order"),
        // Where nothing is asked, `none` of require_auth and a binding that is not required let it pass.
        (Attack::Ask(OK), ""),
        (Attack::Ask(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"), ""),
    ];
    for (attack, said) in attacks {
        *next.lock().unwrap() = attack;
        for binding in ["disable", "prefer", "require"] {
            if said.is_empty() && binding != "require" {
                continue;
            }
            let seen = pglease.events("session.refused").len();
            let refused = pglease.connect(binding).await.err().unwrap();
            assert_eq!(refused.code(), Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION));
            let told = refused.as_db_error().unwrap().message();
            assert_eq!(told, "upstream server is not trusted", "{attack:?} {binding}");
            let event = pglease.wait_for_events("session.refused", seen + 1, PATIENCE).await;
            let error = event["error"].as_str().unwrap();
            assert!(
                error.contains(said) && error.contains(&port.to_string()),
                "{attack:?} {binding}: {error}"
            );
        }
    }
    assert!(impostor.try_join_next().is_none(), "it has met what it did not expect");
    pglease.connect("honest").await.unwrap().batch_execute("SELECT 1").await.unwrap();
    assert_eq!(pglease.metric("pglease_upstream_auth_rejects_total", "").await.to_string(), "0");
    assert!(pglease.events("rotation.start").is_empty() && pglease.events("lease.checked").is_empty());
    assert_eq!(world.leased_roles().await.len(), 1);
}
