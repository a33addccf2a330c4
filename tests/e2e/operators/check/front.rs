//! Who is in front of a server, on a port of its own: a pooler, a load balancer, a proxy, or somebody else altogether.

use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::support::pki::Issued;

/// Ends on drop.
pub(super) struct Front {
    port: u16,
    does: Arc<Mutex<Does>>,
    _serving: JoinSet<()>,
}

/// What is done with a connection.
#[derive(Clone)]
pub(super) enum Does {
    /// It is passed on to this port.
    PassOn(u16),
    /// What comes first is read; then it is told this, and ended.
    Say(&'static [u8]),
    /// TLS ends here, which has to begin at once or is asked for as PostgreSQL is; what is inside is passed on to this
    /// port.
    EndTls { acceptor: TlsAcceptor, at_once: bool, port: u16 },
    /// SCRAM is done to its end without a proof that the password is known here.
    ProveNothing,
    /// It is refused a startup parameter that PgBouncer does not know, else passed on to this port.
    RefuseRole(u16),
    /// It is passed on to where a CONNECT says.
    Connect,
}

impl Front {
    pub(super) async fn that(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let does = Arc::new(Mutex::new(does));
        let (told, mut serving) = (Arc::clone(&does), JoinSet::new());
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let does = told.lock().unwrap().clone();
                connections.spawn(async move {
                    // The check closes its first connection unused.
                    let _ = serve(stream, does).await;
                });
            }
        });
        Self { port, does, _serving: serving }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What it does with the next connection, and those behind it.
    pub(super) fn now(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }
}

/// With this certificate, and the name of PostgreSQL's protocol.
pub(super) fn acceptor(issued: &Issued) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(mut stream: TcpStream, does: Does) -> std::io::Result<()> {
    match does {
        Does::PassOn(port) => pass_on(stream, port).await,
        Does::Say(bytes) => {
            if stream.read(&mut [0; 4096]).await? > 0 {
                stream.write_all(bytes).await?;
            }
            Ok(())
        }
        Does::EndTls { acceptor, at_once, port } => {
            let mut first = [0; 8];
            if at_once && stream.peek(&mut first[..1]).await? == 1 && first[0] != TLS_HANDSHAKE {
                stream.read_exact(&mut first).await?;
                return stream.write_all(UNEXPECTED_MESSAGE).await;
            }
            if !at_once {
                stream.read_exact(&mut first).await?;
                stream.write_all(b"S").await?;
            }
            pass_on(acceptor.accept(stream).await?, port).await
        }
        Does::ProveNothing => prove_nothing(&mut stream).await,
        Does::RefuseRole(port) => {
            let len = stream.read_u32().await?;
            let mut startup = vec![0; len as usize - 4];
            stream.read_exact(&mut startup).await?;
            if startup.windows(6).any(|window| window == b"\0role\0") {
                return stream.write_all(UNSUPPORTED_ROLE).await;
            }
            let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
            server.write_u32(len).await?;
            server.write_all(&startup).await?;
            copy_bidirectional(&mut stream, &mut server).await.map(drop)
        }
        Does::Connect => {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await?);
            }
            let request = String::from_utf8(request).unwrap();
            let (_, port) = request.split(' ').nth(1).unwrap().rsplit_once(':').unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            pass_on(stream, port.parse().unwrap()).await
        }
    }
}

async fn pass_on(mut client: impl AsyncRead + AsyncWrite + Unpin, port: u16) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

async fn prove_nothing(stream: &mut TcpStream) -> std::io::Result<()> {
    packet(stream).await?;
    stream.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await?;
    let first = message(stream).await?;
    let nonce = first.rsplit("r=").next().unwrap();
    let answer = format!("r={nonce}theirs,s=c2FsdA==,i=4096");
    let len = u32::try_from(answer.len() + 8).unwrap().to_be_bytes();
    stream.write_all(&[b"R", &len[..], &11_u32.to_be_bytes(), answer.as_bytes()].concat()).await?;
    message(stream).await?;
    stream.write_all(b"R\0\0\0\x08\0\0\0\0").await
}

/// One without a type, behind its length.
async fn packet(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let len = stream.read_u32().await?;
    let mut body = vec![0; len as usize - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn message(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.read_u8().await?;
    Ok(String::from_utf8(packet(stream).await?).unwrap())
}

/// First byte of a record with a part of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// The alert.
const UNEXPECTED_MESSAGE: &[u8] = b"\x15\x03\x01\0\x02\x02\x0a";

const UNSUPPORTED_ROLE: &[u8] = b"E\0\0\0\x2dSFATAL\0VFATAL\0C08P01\0Munsupported: role\0\0";
