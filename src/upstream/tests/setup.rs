//! What a login takes: flights, derivations of keys, and the connection where one is there before it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::super::fake::{FakeUpstream, Identity, bounded, credential, message, parameters};
use super::super::*;
use crate::config::SslMode;

/// AuthenticationOk, BackendKeyData, ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07abcdZ\0\0\0\x05I";

/// A server's end of a connection, with the flights counted that the client has sent: all that comes before an answer.
struct Counting {
    stream: TcpStream,
    flights: usize,
    has_answered: bool,
}

impl Counting {
    fn new(stream: TcpStream) -> Self {
        Self { stream, flights: 0, has_answered: true }
    }
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && std::mem::take(&mut self.has_answered) {
            self.flights += 1;
        }
        read
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A listener, and an upstream that points to it.
async fn place(ssl_mode: SslMode, identity: Option<&Identity>) -> (TcpListener, Arc<Upstream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ssl_root_cert = identity.map(|identity| identity.ca_file.clone());
    let config = UpstreamConfig { ssl_mode, ssl_root_cert, ..UpstreamConfig::at("127.0.0.1", port) };
    (listener, Arc::new(Upstream::load(&config).unwrap()))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_mins(2)
}

/// SCRAM, its end and the greeting in one write, as PostgreSQL has it.
async fn let_in<S: AsyncRead + AsyncWrite + Unpin>(upstream: &mut FakeUpstream<S>, binding: &Binding) {
    upstream.startup().await;
    let offered = match binding {
        Binding::None => "SCRAM-SHA-256\0",
        Binding::Preferred(_) | Binding::Required(_) => "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0",
    };
    let server_final = upstream.scram_up_to_proof("secret", offered, binding).await;
    let last = message(b'R', &[&b"\0\0\0\x0c"[..], server_final.as_bytes()].concat());
    upstream.send(&[&last[..], WELCOME].concat()).await;
}

/// Startup, the first and the last of SCRAM; over TLS SSLRequest and `ClientHello` before them. All else goes out with
/// one of these.
#[tokio::test]
async fn login_takes_as_many_flights_as_the_protocol_has_questions() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    for (ssl_mode, expected) in [(SslMode::Disable, 3), (SslMode::VerifyFull, 5)] {
        let (listener, upstream) = place(ssl_mode, Some(&identity)).await;
        let server = async {
            let stream = Counting::new(listener.accept().await.unwrap().0);
            if ssl_mode == SslMode::Disable {
                let mut upstream = FakeUpstream::new(stream);
                let_in(&mut upstream, &Binding::None).await;
                (upstream.into_stream().flights, None)
            } else {
                let mut upstream = identity.accept(stream).await;
                let_in(&mut upstream, &Binding::Preferred(identity.hash())).await;
                let stream = upstream.into_stream();
                (stream.get_ref().0.flights, Some(stream))
            }
        };
        let (credential, parameters) = (credential("secret"), parameters());
        let login = upstream.log_in(&credential, &parameters, soon());
        let (login, (flights, _stream)) = bounded(Box::pin(async { tokio::join!(login, server) })).await;
        login.unwrap();
        assert_eq!(flights, expected, "{ssl_mode:?}");
    }
}

#[tokio::test]
async fn login_finds_the_keys_that_another_has_derived() {
    let (listener, upstream) = place(SslMode::Disable, None).await;
    // With these keys the password itself is not needed any more: it is another one.
    let first = credential("secret");
    let parameters = parameters();
    let log_in = async |credential: &Credential| {
        let server = async {
            let mut upstream = FakeUpstream::new(listener.accept().await.unwrap().0);
            let_in(&mut upstream, &Binding::None).await;
        };
        let login = upstream.log_in(credential, &parameters, soon());
        bounded(async { tokio::join!(login, server) }).await.0.unwrap();
    };
    log_in(&first).await;
    let Credential { keys, .. } = first;
    let second = Credential { keys, ..credential("forgotten") };
    log_in(&second).await;
}

#[tokio::test]
async fn connection_ahead_is_used_where_it_leads_to_and_nowhere_else() {
    let (listener, upstream) = place(SslMode::Disable, None).await;
    let places = Arc::new(Semaphore::new(1));
    let seat = || Arc::clone(&places).try_acquire_owned().unwrap();
    let mut ahead = upstream.connect_ahead(seat()).unwrap();
    let accepted = tokio::select! {
        never = ahead.go_on() => match never {},
        accepted = listener.accept() => accepted.unwrap().0,
    };
    let (credential, parameters) = (credential("secret"), parameters());
    let server = async {
        let mut upstream = FakeUpstream::new(accepted);
        let_in(&mut upstream, &Binding::None).await;
    };
    let login = upstream.log_in_on(Some(ahead), &credential, &parameters, soon());
    bounded(async { tokio::join!(login, server) }).await.0.unwrap();

    let (_elsewhere, other) = place(SslMode::Disable, None).await;
    // The place has been given back.
    let ahead = other.connect_ahead(seat());
    let server = async {
        let mut upstream = FakeUpstream::new(listener.accept().await.unwrap().0);
        let_in(&mut upstream, &Binding::None).await;
    };
    let login = upstream.log_in_on(ahead, &credential, &parameters, soon());
    bounded(async { tokio::join!(login, server) }).await.0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn connection_that_nobody_comes_for_is_given_up() {
    let (listener, upstream) = place(SslMode::Disable, None).await;
    let places = Arc::new(Semaphore::new(1));
    let mut ahead = upstream.connect_ahead(Arc::clone(&places).try_acquire_owned().unwrap()).unwrap();
    let given_up = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    };
    tokio::select! {
        never = ahead.go_on() => match never {},
        // In no time of the clock: a bound would run ahead of the sockets.
        () = given_up => {}
    }
    assert_eq!(places.available_permits(), 1);
}
