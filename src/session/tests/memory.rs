//! What an idle session has allocated, in bytes, which come out the same however busy the machine is.

use std::fs;
use std::sync::mpsc;
use std::thread;

use rcgen::generate_simple_self_signed;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::config::{Ca, ServerCert, SslMode};
use crate::net::ClientSocket;
use crate::session::encryption::ClientTls;
use crate::tls::{self, Verify, client_config};

/// Which connections of a session are encrypted.
#[derive(Clone, Copy, Debug, Default)]
struct Encrypted {
    client: bool,
    upstream: bool,
}

/// A certificate for both sides.
struct Identity {
    files: ServerCert,
    acceptor: TlsAcceptor,
    _dir: TempDir,
}

impl Identity {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files =
            ServerCert { cert_file: dir.path().join("tls.pem"), key_file: dir.path().join("tls.key") };
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&files.cert_file, made.cert.pem()).unwrap();
        fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        // As PostgreSQL.
        config.send_tls13_tickets = 0;
        Self { files, acceptor: TlsAcceptor::from(Arc::new(config)), _dir: dir }
    }
}

/// An upstream that lets everyone in, and says that it is ready to whatever it is asked.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut buf = [0; 1024];
    let len = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
    stream.read_exact(&mut buf[..len - 4]).await.unwrap();
    stream.write_all(&[AUTHENTICATION_OK, STATUS, KEY, READY].concat()).await.unwrap();
    while stream.read(&mut buf).await.is_ok_and(|len| len > 0) {
        stream.write_all(READY).await.unwrap();
    }
}

async fn serve_all(listener: TcpListener, acceptor: Option<TlsAcceptor>) {
    let sessions = TaskTracker::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        sessions.spawn(async move {
            let Some(acceptor) = acceptor else { return serve(stream).await };
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(b"S").await.unwrap();
            serve(acceptor.accept(stream).await.unwrap()).await;
        });
    }
}

trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection for S {}

/// A client that has a session and has made use of it.
async fn open(proxy: SocketAddr, is_encrypted: bool) -> Box<dyn Connection> {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let mut stream: Box<dyn Connection> = if is_encrypted {
        stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'S');
        let config = client_config(&tls::ClientTls::new(Verify::Nothing, &Ca::System)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap())
    } else {
        Box::new(stream)
    };
    stream.write_all(&startup()).await.unwrap();
    let mut greeting = [0; 256];
    let mut len = 0;
    while !greeting[..len].ends_with(READY) {
        len += stream.read(&mut greeting[len..]).await.unwrap();
    }
    for _ in 0..3 {
        stream.write_all(QUERY).await.unwrap();
        expect(&mut stream, READY).await;
    }
    stream
}

/// Bytes that the proxy has allocated for each of some idle sessions. Clients and upstream are on a thread of their own,
/// which is not counted.
fn bytes_of_a_session(encrypted: Encrypted) -> i64 {
    let identity = Identity::make();
    let (say_port, port) = mpsc::channel();
    let (send_proxy, proxy_address) = oneshot::channel::<SocketAddr>();
    let (rounds, mut round) = tokio::sync::mpsc::channel::<()>(2);
    let acceptor = encrypted.upstream.then(|| identity.acceptor.clone());
    let far = thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
            let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
            say_port.send(upstream.local_addr().unwrap().port()).unwrap();
            let clients = async {
                let (proxy, mut held) = (proxy_address.await.unwrap(), Vec::new());
                for _ in 0..2 * SESSIONS {
                    held.push(open(proxy, encrypted.client).await);
                    if held.len() % SESSIONS == 0 {
                        rounds.send(()).await.unwrap();
                    }
                }
                rounds.closed().await;
            };
            tokio::select! {
                () = clients => {}
                () = serve_all(upstream, acceptor) => {}
            }
        });
    });

    let Proxy { shared, publisher, .. } = proxy(port.recv().unwrap(), 10 * SESSIONS);
    shared.change(|rules| {
        let tls = ClientTls::load(&identity.files, &shared.metrics).unwrap();
        rules.tls = encrypted.client.then(|| Arc::new(tls));
        let route = &mut rules.routes[0];
        route.config.upstream.ssl_mode = if encrypted.upstream { SslMode::Require } else { SslMode::Disable };
        route.upstream = Arc::new(Upstream::load(&route.config.upstream).unwrap());
    });
    let _issued = publisher.promote(Credential {
        user: "v-1".to_owned(),
        password: SecretString::from("secret"),
        lease: Some(LeaseId::from("lease")),
        generation: GenerationId(1),
        keys: DerivedKeys::default(),
        granted: credential::Granted::default(),
    });
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = TaskTracker::new();
    let listener = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        send_proxy.send(listener.local_addr().unwrap()).unwrap();
        listener
    });
    let accept = async {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let client = ClientStream::Plain(ClientSocket::Tcp(stream));
            sessions.spawn(run(client, Peer::Tcp(peer), shared.places().take(), Arc::clone(&shared)));
        }
    };
    let mut accept = Box::pin(accept);
    let mut until_round = || {
        runtime.block_on(async {
            tokio::select! {
                () = &mut accept => {}
                next = round.recv() => next.unwrap(),
            }
        });
    };
    // What comes once is not of a session.
    until_round();
    let counts = allocation_counter::measure(until_round);
    drop(round);
    far.join().unwrap();
    counts.bytes_current / i64::try_from(SESSIONS).unwrap()
}

#[test]
fn idle_session_has_no_more_than_it_needs() {
    for (client, upstream, most) in [(false, false, 2600), (true, false, 11_000), (false, true, 11_000)] {
        let encrypted = Encrypted { client, upstream };
        let bytes = bytes_of_a_session(encrypted);
        assert!((most / 2..=most).contains(&bytes), "{encrypted:?}: {bytes} bytes");
    }
}

const SESSIONS: usize = 32;
