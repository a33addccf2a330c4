//! A PostgreSQL server to log in to: connect, TLS, startup and SCRAM with a given credential. Used by sessions and
//! by the proof of a credential. Runs no task; every wait here is the caller's to bound.

mod connect;
mod login;
mod inquiry;
mod error;
#[cfg(test)]
mod fake;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::lookup_host;
use tokio::time;
use tracing::{debug, warn};

use crate::config::{ChannelBinding, UpstreamConfig};
use crate::credential::Credential;
use crate::net::Stream;
use crate::tls::TlsError;
use crate::wire::scram::Binding;
use crate::wire::startup::{CancelKey, StartupParameters};

pub(crate) use error::UpstreamError;
pub(crate) use inquiry::{Inquiry, QueryError};

use connect::{NegotiationError, Tls};
use login::Greeting;

/// One server, as a route names it.
pub(crate) struct Upstream {
    config: UpstreamConfig,
    /// `None`: plain TCP.
    tls: Option<Tls>,
    /// Done once it has been said that logins here cannot be bound.
    unbound: Once,
}

/// A session that upstream has opened for us.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub(crate) stream: Stream,
    /// Whole messages before BackendKeyData, but those of the login itself (ParameterStatus, NoticeResponse), as
    /// they came.
    pub(crate) before_key: BytesMut,
    /// What a CancelRequest must bring, and where to. `None` where upstream gave no key, as some poolers do.
    pub(crate) cancel: Option<CancelTarget>,
    /// All that came behind BackendKeyData: up to ReadyForQuery whole messages of the same kinds, then
    /// ReadyForQuery, then whatever else came; it may end within a message.
    pub(crate) after_key: BytesMut,
}

/// A login that is tried for the sake of the credential.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    upstream: Arc<Upstream>,
    parameters: StartupParameters,
}

impl Probe {
    /// Asks for `database`. Any will do: a server that finds fault with it has accepted the credential.
    pub(crate) fn new(upstream: Arc<Upstream>, database: &str) -> Self {
        let mut parameters = StartupParameters::default();
        parameters.push("database", database);
        parameters.push("application_name", "pglease");
        Self { upstream, parameters }
    }

    /// Logs in and out again, within a time that is the caller's to bound.
    pub(crate) async fn prove(&self, credential: &Credential) -> Result<(), UpstreamError> {
        self.upstream.prove(credential, &self.parameters).await
    }

    /// Logs in to ask something, within a time that is the caller's to bound.
    pub(crate) async fn open(&self, credential: &Credential) -> Result<Inquiry, UpstreamError> {
        self.upstream.log_in(credential, &self.parameters).await.map(Inquiry::new)
    }
}

/// Where a cancel of one session goes: the same address over the same kind of connection.
#[derive(Clone, Debug)]
pub(crate) struct CancelTarget {
    pub(crate) address: SocketAddr,
    pub(crate) key: CancelKey,
}

impl Upstream {
    /// Reads the CA file and makes the TLS configuration.
    pub(crate) fn load(config: &UpstreamConfig) -> Result<Self, TlsError> {
        Ok(Self { tls: Tls::load(config)?, config: config.clone(), unbound: Once::new() })
    }

    /// Connects and logs in. `parameters` go as they are, with `user` set to the credential's. Not cancel safe: what
    /// was begun is closed.
    ///
    /// The host is looked up anew, and its addresses are tried in turn, each within `connect_timeout`, until one
    /// lets us in or refuses us: a server's refusal holds for all of its addresses, a stranger's bytes do not.
    pub(crate) async fn log_in(
        &self,
        credential: &Credential,
        parameters: &StartupParameters,
    ) -> Result<LoggedIn, UpstreamError> {
        let unresolved = |source| UpstreamError::Resolve { host: self.config.host.clone(), source };
        let addresses =
            lookup_host((self.config.host.as_str(), self.config.port)).await.map_err(unresolved)?;

        let mut failure = unresolved(io::Error::new(io::ErrorKind::NotFound, "no address"));
        for address in addresses {
            // In a box: a session's task would keep the room of its login, 3 KiB, to the end.
            let attempt = Box::pin(self.log_in_at(address, credential, parameters));
            match self.within_limit(address, attempt).await {
                Err(error) if !error.is_verdict() => {
                    debug!(event = "upstream.address_failed", %address, reason = error.reason());
                    // What a server did tells more than that another address has none.
                    if error.is_of_server() || !failure.is_of_server() {
                        failure = error;
                    }
                }
                settled => return settled,
            }
        }
        Err(failure)
    }

    /// Logs in and says goodbye: upstream may count the session against a limit of the credential until it is over.
    async fn prove(
        &self,
        credential: &Credential,
        parameters: &StartupParameters,
    ) -> Result<(), UpstreamError> {
        let mut stream = self.log_in(credential, parameters).await?.stream;
        say_goodbye(&mut stream).await;
        Ok(())
    }

    /// Delivers a CancelRequest over a connection of its own, and waits until upstream has closed it: only then has
    /// it been acted upon.
    pub(crate) async fn cancel(&self, target: &CancelTarget) -> Result<(), UpstreamError> {
        let address = target.address;
        let attempt = Box::pin(async {
            let mut stream = self.connect(address).await?;
            let mut request = BytesMut::new();
            target.key.encode_request(&mut request);
            let sent = async {
                stream.write_all(&request).await?;
                stream.flush().await
            };
            sent.await.map_err(|source| UpstreamError::Cancel { address: self.name(address), source })?;
            // A TLS server says no goodbye either: any end is one.
            let _ = read_to_end(&mut stream).await;
            Ok(())
        });
        self.within_limit(address, attempt).await
    }

    async fn log_in_at(
        &self,
        address: SocketAddr,
        credential: &Credential,
        parameters: &StartupParameters,
    ) -> Result<LoggedIn, UpstreamError> {
        let mut stream = self.connect(address).await?;
        let binding = self
            .binding(&stream)
            .map_err(|source| UpstreamError::Tls { address: self.name(address), source })?;

        let Greeting { before_key, key, after_key } =
            login::log_in(&mut stream, credential, parameters, &binding)
                .await
                .map_err(|error| UpstreamError::login(self.name(address), error))?;
        let cancel = key.map(|key| CancelTarget { address, key });
        Ok(LoggedIn { stream, before_key, cancel, after_key })
    }

    async fn connect(&self, address: SocketAddr) -> Result<Stream, UpstreamError> {
        let stream = connect::tcp(address)
            .await
            .map_err(|source| UpstreamError::Connect { address: self.name(address), source })?;
        match &self.tls {
            None => Ok(Stream::Tcp(stream)),
            Some(tls) => match tls.negotiate(stream).await {
                Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
                Err(source) => Err(UpstreamError::Tls { address: self.name(address), source }),
            },
        }
    }

    fn binding(&self, stream: &Stream) -> Result<Binding, NegotiationError> {
        Ok(match (self.config.channel_binding, stream) {
            (ChannelBinding::Disable, _) | (ChannelBinding::Prefer, Stream::Tcp(_)) => Binding::None,
            (ChannelBinding::Require, Stream::Tcp(_)) => return Err(NegotiationError::NoTls),
            (ChannelBinding::Require, Stream::Tls(stream)) => Binding::Required(connect::end_point(stream)?),
            (ChannelBinding::Prefer, Stream::Tls(stream)) => match connect::end_point(stream) {
                Ok(hash) => Binding::Preferred(hash),
                Err(reason) => {
                    self.unbound.call_once(|| {
                        warn!(event = "upstream.no_channel_binding", host = %self.config.host, %reason);
                    });
                    Binding::None
                }
            },
        })
    }

    async fn within_limit<T>(
        &self,
        address: SocketAddr,
        attempt: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let Some(limit) = self.config.connect_timeout else {
            return attempt.await;
        };
        time::timeout(limit, attempt)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::TimedOut { address: self.name(address), limit }))
    }

    /// For people: the host as settings have it, and the address that it had this time.
    fn name(&self, address: SocketAddr) -> String {
        let host = &self.config.host;
        if host.parse::<IpAddr>().is_ok() { address.to_string() } else { format!("{host} ({address})") }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Says Terminate and waits a little until upstream has closed. How it ends is of no account.
async fn say_goodbye(stream: &mut Stream) {
    let _ = time::timeout(CLOSE_TIMEOUT, async {
        stream.write_all(&TERMINATE).await?;
        stream.shutdown().await?;
        read_to_end(stream).await
    })
    .await;
}

/// Discards whatever comes until the end.
async fn read_to_end(stream: &mut Stream) -> io::Result<()> {
    let mut discarded = [0; 512];
    while stream.read(&mut discarded).await? > 0 {}
    Ok(())
}

/// Terminate. PostgreSQL manual, "Message Formats".
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];
/// How long a goodbye waits for upstream's end of the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};

    use super::fake::{FakeUpstream, Identity, bounded, credential, expect_ssl_request, message, parameters};
    use super::*;
    use crate::config::SslMode;

    /// AuthenticationOk, BackendKeyData, ReadyForQuery.
    const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07abcdZ\0\0\0\x05I";

    /// A listener, and an upstream that points to it.
    struct Place {
        listener: TcpListener,
        config: UpstreamConfig,
    }

    impl Place {
        async fn new(ssl_mode: SslMode) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let config = UpstreamConfig {
                host: "127.0.0.1".to_owned(),
                port: listener.local_addr().unwrap().port(),
                database: None,
                ssl_mode,
                ssl_root_cert: None,
                channel_binding: ChannelBinding::Prefer,
                connect_timeout: None,
            };
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
            let login = upstream.log_in(&credential, &parameters);
            bounded(async { tokio::join!(login, async { script(self.accept().await).await }).0 }).await
        }
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
        assert_eq!((cancel.address.port(), cancel.key.pid), (place.config.port, 7));
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
            assert!(!error.is_verdict() && error.sqlstate().is_none());
            let text = chain(&error);
            assert!(text.contains(said) && !text.contains("secret"), "{text}");
            assert!(text.contains(&format!("127.0.0.1:{}", place.config.port)), "{text}");
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
        place.config.host = "localhost".to_owned();
        let logged_in = place.log_in(async |stream| {
            let mut upstream = FakeUpstream::new(stream);
            upstream.startup().await;
            upstream.send(WELCOME).await;
        });
        logged_in.await.unwrap();

        let Place { listener, mut config } = place;
        drop(listener);
        let try_with = async |config: &UpstreamConfig| {
            let upstream = Upstream::load(config).unwrap();
            upstream.log_in(&credential("secret"), &parameters()).await.unwrap_err()
        };
        let error = try_with(&config).await;
        assert_eq!(error.reason(), "connect");
        assert!(error.to_string().contains(&format!("localhost (127.0.0.1:{})", config.port)), "{error}");
        // Not a name: no resolver is asked.
        config.host = "db\0".to_owned();
        assert_eq!(try_with(&config).await.reason(), "resolve");
    }

    #[tokio::test]
    async fn proof_says_goodbye_and_waits_for_the_end() {
        let place = Place::new(SslMode::Disable).await;
        let upstream = Upstream::load(&place.config).unwrap();
        let (credential, parameters) = (credential("secret"), parameters());
        let (proof, ()) = tokio::join!(upstream.prove(&credential, &parameters), async {
            let mut upstream = FakeUpstream::new(place.accept().await);
            upstream.startup().await;
            upstream.send(WELCOME).await;
            assert_eq!(upstream.rest().await, TERMINATE);
        });
        proof.unwrap();

        let refused = tokio::join!(upstream.prove(&credential, &parameters), async {
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
        let address = place.listener.local_addr().unwrap();
        let upstream = Upstream::load(&place.config).unwrap();
        let target = CancelTarget { address, key: key.clone() };
        let (cancelled, ()) = tokio::join!(upstream.cancel(&target), async {
            let mut received = [0; 16];
            place.accept().await.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, request);
        });
        cancelled.unwrap();

        let identity = Identity::new("127.0.0.1", &rcgen::PKCS_ECDSA_P256_SHA256);
        let place = Place::with_tls(&identity, SslMode::VerifyFull, ChannelBinding::Require).await;
        let address = place.listener.local_addr().unwrap();
        let upstream = Upstream::load(&place.config).unwrap();
        let target = CancelTarget { address, key };
        let (cancelled, ()) = tokio::join!(upstream.cancel(&target), async {
            let mut received = identity.accept(place.accept().await).await;
            assert_eq!(received.startup().await, request[4..]);
        });
        cancelled.unwrap();
    }
}
