//! Logins at one address.

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::super::fake::{
    FakeUpstream, Identity, bounded, credential, expect_ssl_request, message, parameters,
};
use super::super::*;
use crate::config::{Host, SslMode, SslNegotiation};

/// AuthenticationOk, BackendKeyData, ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07abcdZ\0\0\0\x05I";

/// `AuthenticationCleartextPassword`.
const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";

/// A listener, and an upstream that points to it.
struct Place {
    listener: TcpListener,
    config: UpstreamConfig,
}

impl Place {
    async fn new(ssl_mode: SslMode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = UpstreamConfig { ssl_mode, ..UpstreamConfig::at("127.0.0.1", port) };
        Self { listener, config }
    }

    async fn with_tls(identity: &Identity, ssl_mode: SslMode, channel_binding: ChannelBinding) -> Self {
        let mut place = Self::new(ssl_mode).await;
        place.config.ssl_root_cert = Some(identity.ca_file.clone());
        place.config.channel_binding = channel_binding;
        place
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// Logs in against what `script` does with the connection.
    async fn log_in<F, T>(&self, script: impl FnOnce(TcpStream) -> F) -> Result<LoggedIn, UpstreamError>
    where
        F: Future<Output = T>,
    {
        let upstream = Upstream::load(&self.config).unwrap();
        let (credential, parameters) = (credential("secret"), parameters());
        let login = upstream.log_in(&credential, &parameters, soon());
        bounded(async { tokio::join!(login, async { script(self.accept().await).await }).0 }).await
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_mins(2)
}

/// The error and its causes, as the log has them.
fn chain(error: &UpstreamError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn plain_login_ends_at_ready_for_query_with_a_way_to_cancel() {
    let place = Place::new(SslMode::Disable).await;
    let logged_in = place.log_in(async |stream| {
        let mut upstream = FakeUpstream::new(stream);
        upstream.startup().await;
        upstream.send(WELCOME).await;
        upstream
    });
    let LoggedIn { stream, cancel, after_key, .. } = logged_in.await.unwrap();

    let Stream::Tcp(stream) = stream else { panic!("TLS where none was asked for") };
    assert!(stream.nodelay().unwrap() && SockRef::from(&stream).keepalive().unwrap());
    let cancel = cancel.unwrap();
    assert_eq!((cancel.address.to_string(), cancel.key.pid), (place.config.to_string(), 7));
    assert_eq!(after_key, b"Z\0\0\0\x05I"[..]);
}

#[tokio::test]
async fn login_over_tls_is_bound_to_the_certificate_that_was_seen() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P384_SHA384);
    for ssl_mode in [SslMode::Require, SslMode::VerifyFull] {
        let place = Place::with_tls(&identity, ssl_mode, ChannelBinding::Require).await;
        let logged_in = place.log_in(async |stream| {
            let mut upstream = identity.accept(stream).await;
            upstream.startup().await;
            let binding = Binding::Required(identity.hash());
            upstream.scram("secret", "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0", &binding).await;
            upstream.send(WELCOME).await;
        });
        assert!(matches!(logged_in.await.unwrap().stream, Stream::Tls(_)));
    }
}

#[tokio::test]
async fn certificate_without_a_hash_means_no_binding_or_no_login() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ED25519);
    let place = Place::with_tls(&identity, SslMode::VerifyFull, ChannelBinding::Prefer).await;
    let logged_in = place.log_in(async |stream| {
        let mut upstream = identity.accept(stream).await;
        upstream.startup().await;
        upstream.scram("secret", "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0", &Binding::None).await;
        upstream.send(WELCOME).await;
    });
    logged_in.await.unwrap();

    let place = Place::with_tls(&identity, SslMode::VerifyFull, ChannelBinding::Require).await;
    let refused = place.log_in(async |stream| {
        assert_eq!(identity.accept(stream).await.rest().await, b"");
    });
    let error = refused.await.unwrap_err();
    assert_eq!(error.reason(), "tls");
    assert!(chain(&error).contains("id-Ed25519"), "{}", chain(&error));
}

#[tokio::test]
async fn stranger_behind_the_port_is_named_and_not_quoted() {
    for (answer, said) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "byte 0x48 (HTTP?)"),
        (b"\x15\x03\x01\0\x02\x02\x28", "a TLS alert"),
        (b"S\x16\x03\x01\0\x05", "unencrypted bytes behind"),
        (b"N", "does not do TLS"),
        (b"ESFATAL\0Msecret\0\0", "not to be trusted"),
        (b"", "closed the connection"),
        (b"S", "TLS handshake with upstream failed"),
    ] {
        let place = Place::new(SslMode::Require).await;
        let outcome = place.log_in(async |mut stream| {
            expect_ssl_request(&mut stream).await;
            stream.write_all(answer).await.unwrap();
        });
        let error = outcome.await.unwrap_err();
        assert_eq!(error.reason(), "tls", "{error}");
        assert!(error.sqlstate().is_none());
        let text = chain(&error);
        assert!(text.contains(said) && !text.contains("secret"), "{text}");
        assert!(text.contains(&place.config.to_string()), "{text}");
    }
}

#[tokio::test]
async fn reset_instead_of_an_answer_is_an_error_of_the_way() {
    let place = Place::new(SslMode::Require).await;
    let outcome = place.log_in(async |mut stream| {
        expect_ssl_request(&mut stream).await;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let text = chain(&outcome.await.unwrap_err());
    assert!(text.contains("connection broke during the request for TLS"), "{text}");
}

#[tokio::test]
async fn certificate_of_another_name_gets_no_startup() {
    let identity = Identity::new("other.example", &rcgen::PKCS_ECDSA_P256_SHA256);
    let place = Place::with_tls(&identity, SslMode::VerifyFull, ChannelBinding::Prefer).await;
    let outcome = place.log_in(async |mut stream| {
        expect_ssl_request(&mut stream).await;
        stream.write_all(b"S").await.unwrap();
        assert!(identity.acceptor.accept(stream).await.is_err());
    });
    let text = chain(&outcome.await.unwrap_err());
    assert!(text.contains("handshake") && text.contains("not valid for name"), "{text}");
}

#[tokio::test]
async fn silent_upstream_is_given_up_after_the_connect_timeout() {
    let mut place = Place::new(SslMode::Require).await;
    place.config.connect_timeout = Some(Duration::from_millis(20));
    let error = place.log_in(async |stream| FakeUpstream::new(stream).rest().await).await.unwrap_err();
    assert_eq!(error.reason(), "timeout");
}

#[tokio::test]
async fn name_is_looked_up_and_a_missing_one_or_a_closed_port_is_an_error() {
    let mut place = Place::new(SslMode::Disable).await;
    let port = place.config.hosts[0].port;
    place.config.hosts = vec![Host::at("localhost", port)];
    let logged_in = place.log_in(async |stream| {
        let mut upstream = FakeUpstream::new(stream);
        upstream.startup().await;
        upstream.send(WELCOME).await;
    });
    logged_in.await.unwrap();

    // A port that nobody listens on, and nobody else gets.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (port, mut config) = (closed.local_addr().unwrap().port(), place.config);
    config.hosts = vec![Host::at("localhost", port)];
    let try_with = async |config: &UpstreamConfig| {
        let upstream = Upstream::load(config).unwrap();
        upstream.log_in(&credential("secret"), &parameters(), soon()).await.unwrap_err()
    };
    let error = try_with(&config).await;
    assert_eq!(error.reason(), "connect");
    assert!(error.to_string().contains(&format!("localhost:{port} (127.0.0.1:{port})")), "{error}");
    // Not a name: no resolver is asked.
    config.hosts = vec![Host::at("db\0", port)];
    assert_eq!(try_with(&config).await.reason(), "resolve");
}

#[tokio::test]
async fn proof_says_goodbye_and_waits_for_the_end() {
    let place = Place::new(SslMode::Disable).await;
    let upstream = Upstream::load(&place.config).unwrap();
    let (credential, parameters) = (credential("secret"), parameters());
    let (proof, ()) = tokio::join!(upstream.prove(&credential, &parameters, soon()), async {
        let mut upstream = FakeUpstream::new(place.accept().await);
        upstream.startup().await;
        upstream.send(WELCOME).await;
        assert_eq!(upstream.rest().await, TERMINATE);
    });
    proof.unwrap();

    let refused = tokio::join!(upstream.prove(&credential, &parameters, soon()), async {
        let mut upstream = FakeUpstream::new(place.accept().await);
        upstream.startup().await;
        upstream.send(&message(b'E', b"SFATAL\0C28P01\0Mno\0\0")).await;
    });
    assert_eq!(refused.0.unwrap_err().reason(), "auth_rejected");
}

#[tokio::test]
async fn cancel_goes_the_way_of_its_session_and_waits_for_the_end() {
    let request = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd";
    let key = CancelKey { pid: 7, secret: b"abcd".to_vec().into() };

    let place = Place::new(SslMode::Disable).await;
    let upstream = Upstream::load(&place.config).unwrap();
    let target = upstream.cancel_target(key.clone());
    let (cancelled, ()) = tokio::join!(upstream.cancel(&target), async {
        let mut received = [0; 16];
        place.accept().await.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, request);
    });
    cancelled.unwrap();

    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    let place = Place::with_tls(&identity, SslMode::VerifyFull, ChannelBinding::Require).await;
    let upstream = Upstream::load(&place.config).unwrap();
    let target = upstream.cancel_target(key);
    let (cancelled, ()) = tokio::join!(upstream.cancel(&target), async {
        let mut received = identity.accept(place.accept().await).await;
        assert_eq!(received.startup().await, request[4..]);
    });
    cancelled.unwrap();
}

#[tokio::test]
async fn cancel_is_given_to_no_other_server() {
    let identity = Identity::new("other.example", &rcgen::PKCS_ECDSA_P256_SHA256);
    let place = Place::with_tls(&identity, SslMode::VerifyFull, ChannelBinding::Prefer).await;
    let upstream = Upstream::load(&place.config).unwrap();
    let target = upstream.cancel_target(CancelKey { pid: 7, secret: b"abcd".to_vec().into() });
    let (cancelled, ()) = tokio::join!(upstream.cancel(&target), async {
        let mut stream = place.accept().await;
        expect_ssl_request(&mut stream).await;
        stream.write_all(b"S").await.unwrap();
        assert!(identity.acceptor.accept(stream).await.is_err());
    });
    assert_eq!(cancelled.unwrap_err().reason(), "tls");
}

/// Case C47, of a cancel: its key goes to nobody without TLS where that is wanted, and nothing that is asked is answered.
#[tokio::test]
async fn case_c47_cancel_tells_a_false_server_nothing() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    let key = || CancelKey { pid: 7, secret: b"abcd".to_vec().into() };
    for binding in [ChannelBinding::Disable, ChannelBinding::Prefer, ChannelBinding::Require] {
        let place = Place::with_tls(&identity, SslMode::VerifyFull, binding).await;
        let upstream = Upstream::load(&place.config).unwrap();
        let target = upstream.cancel_target(key());
        let (cancelled, rest) = tokio::join!(upstream.cancel(&target), async {
            let mut stream = place.accept().await;
            expect_ssl_request(&mut stream).await;
            stream.write_all(b"N").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            rest
        });
        assert_eq!((cancelled.unwrap_err().reason(), rest), ("tls", Vec::new()));

        let target = upstream.cancel_target(key());
        let (cancelled, rest) = tokio::join!(upstream.cancel(&target), async {
            let mut stream = identity.accept(place.accept().await).await;
            stream.startup().await;
            for asked in [CLEARTEXT, WELCOME] {
                stream.send(asked).await;
            }
            let mut stream = stream.into_stream();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            rest
        });
        cancelled.unwrap();
        assert_eq!(rest, b"");
    }
}

/// Case C47, of a credential's proof: what a false server says tells nothing of the credential.
#[tokio::test]
async fn case_c47_proof_at_a_false_server_is_no_verdict() {
    let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
    for binding in [ChannelBinding::Disable, ChannelBinding::Prefer, ChannelBinding::Require] {
        let place = Place::with_tls(&identity, SslMode::VerifyFull, binding).await;
        let upstream = Upstream::load(&place.config).unwrap();
        let (credential, parameters) = (credential("secret"), parameters());
        let (proof, ()) = tokio::join!(upstream.prove(&credential, &parameters, soon()), async {
            let mut upstream = identity.accept(place.accept().await).await;
            upstream.startup().await;
            upstream.begin_scram("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0").await;
            upstream.send(WELCOME).await;
            assert_eq!(upstream.rest().await, b"");
        });
        let error = proof.unwrap_err();
        assert_eq!(error.reason(), "untrusted");
        assert!(error.sqlstate().is_none(), "{error}");
    }
}

#[tokio::test]
async fn end_within_the_handshake_is_told_of_as_such() {
    for (negotiation, said) in [
        (SslNegotiation::Postgres, "handshake with upstream failed: "),
        (SslNegotiation::Direct, "before PostgreSQL 17"),
    ] {
        let mut place = Place::new(SslMode::Require).await;
        place.config.ssl.negotiation = negotiation;
        let outcome = place.log_in(async |mut stream| {
            if negotiation == SslNegotiation::Postgres {
                expect_ssl_request(&mut stream).await;
                stream.write_all(b"S").await.unwrap();
            }
            stream.read_exact(&mut [0; 16]).await.unwrap();
        });
        let text = chain(&outcome.await.unwrap_err());
        assert!(text.contains(said), "{text}");
    }
}
