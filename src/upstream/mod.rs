//! A PostgreSQL server to log in to: connect, TLS, startup and SCRAM with a given credential. Used by sessions and
//! by the proof of a credential. Runs no task; every wait here is the caller's to bound.

mod connect;
mod tls;
mod login;
mod inquiry;
mod error;
#[cfg(test)]
mod fake;
#[cfg(any(test, fuzzing))]
mod fuzz;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::time;
use tracing::{debug, warn};

use crate::config::{self, ChannelBinding, Host, UpstreamConfig};
use crate::credential::Credential;
use crate::net::Stream;
use crate::tls::{TlsError, server_name};
use crate::wire::negotiation::Versions;
use crate::wire::scram::Binding;
use crate::wire::startup::{CancelKey, PROTOCOL_3_0, PROTOCOL_3_2, ProtocolVersion, StartupParameters};

pub(crate) use error::UpstreamError;
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::fuzz_login;
pub(crate) use inquiry::{Inquiry, QueryError};

use connect::NegotiationError;
use login::{Greeting, Terms};
use tls::Tls;

/// Servers that stand for one another, as a route names them.
pub(crate) struct Upstream {
    config: UpstreamConfig,
    servers: Vec<Arc<Server>>,
    /// `None`: plain TCP.
    tls: Option<Tls>,
    /// Done once it has been said that logins here cannot be bound.
    unbound: Once,
    /// For key derivations, which take a processor for a while each.
    turns: Semaphore,
}

/// A session that upstream has opened for us.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub(crate) stream: Stream,
    pub(crate) address: Address,
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

/// One host of an upstream.
#[derive(Debug)]
struct Server {
    host: Host,
    /// What its certificate is for; `None` without TLS.
    tls_name: Option<ServerName<'static>>,
}

/// One address of one host. As text it is both, for people: `db:5432 (10.0.0.1:5432)`.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    server: Arc<Server>,
    socket: SocketAddr,
}

impl Address {
    /// The host, as settings have it.
    pub(crate) fn host(&self) -> &Host {
        &self.server.host
    }

    pub(crate) fn socket(&self) -> SocketAddr {
        self.socket
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, socket } = self;
        let is_address = server.host.name.parse::<IpAddr>().is_ok_and(|address| address == socket.ip());
        if is_address { write!(f, "{socket}") } else { write!(f, "{} ({socket})", server.host) }
    }
}

/// Where a cancel of one session goes: the same address over the same kind of connection.
#[derive(Clone, Debug)]
pub(crate) struct CancelTarget {
    pub(crate) address: Address,
    pub(crate) key: CancelKey,
}

impl Upstream {
    /// Reads the CA file and makes the TLS configuration.
    pub(crate) fn load(config: &UpstreamConfig) -> Result<Self, TlsError> {
        let tls = Tls::load(config)?;
        let server = |host: &Host| {
            let tls_name = tls.is_some().then(|| server_name(&host.name)).transpose()?;
            Ok(Arc::new(Server { host: host.clone(), tls_name }))
        };
        let servers = config.hosts.iter().map(server).collect::<Result<_, TlsError>>()?;
        let turns = Semaphore::new(MAX_DERIVATIONS);
        Ok(Self { config: config.clone(), servers, tls, unbound: Once::new(), turns })
    }

    /// Connects and logs in. `parameters` go as they are, with `user` set to the credential's. Not cancel safe: what
    /// was begun is closed.
    ///
    /// Each host is looked up anew, and its addresses are tried in turn, each within `connect_timeout`, until one
    /// lets us in or refuses us: a server's refusal holds for all of its addresses, a stranger's bytes do not.
    pub(crate) async fn log_in(
        &self,
        credential: &Credential,
        parameters: &StartupParameters,
    ) -> Result<LoggedIn, UpstreamError> {
        let mut failure = None::<UpstreamError>;
        for server in &self.servers {
            let error = match self.log_in_to(server, credential, parameters).await {
                Err(error) if !error.is_verdict() => error,
                settled => return settled,
            };
            // What a server did tells more than that another is not there.
            if error.is_of_server() || !failure.as_ref().is_some_and(UpstreamError::is_of_server) {
                failure = Some(error);
            }
        }
        Err(failure.unwrap_or_else(|| no_address(&self.config)))
    }

    async fn log_in_to(
        &self,
        server: &Arc<Server>,
        credential: &Credential,
        parameters: &StartupParameters,
    ) -> Result<LoggedIn, UpstreamError> {
        let Host { address, port, .. } = &server.host;
        let unresolved = |source| UpstreamError::Resolve { host: server.host.to_string(), source };
        let sockets = lookup_host((address.as_str(), *port)).await.map_err(unresolved)?;

        let mut failure = unresolved(io::Error::new(io::ErrorKind::NotFound, "no address"));
        for socket in sockets {
            let address = Address { server: Arc::clone(server), socket };
            // In a box: a session's task would keep the room of its login, 3 KiB, to the end.
            let attempt = Box::pin(self.log_in_at(&address, credential, parameters));
            match self.within_limit(&address, attempt).await {
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
        let address = &target.address;
        let attempt = Box::pin(async {
            let mut stream = self.connect(address).await?;
            let mut request = BytesMut::new();
            target.key.encode_request(&mut request);
            let sent = async {
                stream.write_all(&request).await?;
                stream.flush().await
            };
            sent.await.map_err(|source| UpstreamError::Cancel { address: address.to_string(), source })?;
            // A TLS server says no goodbye either: any end is one.
            let _ = read_to_end(&mut stream).await;
            Ok(())
        });
        self.within_limit(address, attempt).await
    }

    async fn log_in_at(
        &self,
        address: &Address,
        credential: &Credential,
        parameters: &StartupParameters,
    ) -> Result<LoggedIn, UpstreamError> {
        let mut stream = self.connect(address).await?;
        let terms = self
            .terms(&stream)
            .map_err(|source| UpstreamError::Tls { address: address.to_string(), source })?;

        let Greeting { before_key, key, after_key } =
            login::log_in(&mut stream, credential, parameters, &terms)
                .await
                .map_err(|error| UpstreamError::login(address.to_string(), error))?;
        let cancel = key.map(|key| CancelTarget { address: address.clone(), key });
        Ok(LoggedIn { stream, address: address.clone(), before_key, cancel, after_key })
    }

    async fn connect(&self, address: &Address) -> Result<Stream, UpstreamError> {
        let stream = connect::tcp(address.socket, &self.config.silence)
            .await
            .map_err(|source| UpstreamError::Connect { address: address.to_string(), source })?;
        match self.tls.as_ref().zip(address.server.tls_name.as_ref()) {
            None => Ok(Stream::Tcp(stream)),
            Some((tls, name)) => match tls.negotiate(stream, name).await {
                Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
                Err(source) => Err(UpstreamError::Tls { address: address.to_string(), source }),
            },
        }
    }

    fn terms(&self, stream: &Stream) -> Result<Terms<'_>, NegotiationError> {
        Ok(Terms {
            binding: self.binding(stream)?,
            require_auth: self.config.require_auth,
            is_verified: matches!(stream, Stream::Tls(_)) && self.config.ssl_mode.verifies(),
            versions: Versions {
                least: on_wire(self.config.min_protocol_version),
                most: on_wire(self.config.max_protocol_version),
            },
            turns: &self.turns,
        })
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
                        warn!(event = "upstream.no_channel_binding", upstream = %self.config, %reason);
                    });
                    Binding::None
                }
            },
        })
    }

    async fn within_limit<T>(
        &self,
        address: &Address,
        attempt: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let Some(limit) = self.config.connect_timeout else {
            return attempt.await;
        };
        time::timeout(limit, attempt)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::TimedOut { address: address.to_string(), limit }))
    }
}

#[cfg(test)]
impl Upstream {
    /// At the first host, which is an address.
    pub(crate) fn cancel_target(&self, key: CancelKey) -> CancelTarget {
        let server = Arc::clone(self.servers.first().expect("settings have a host"));
        let ip = server.host.address.parse().expect("an address");
        let socket = SocketAddr::new(ip, server.host.port);
        CancelTarget { address: Address { server, socket }, key }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What cannot be: settings without a host.
fn no_address(config: &UpstreamConfig) -> UpstreamError {
    let source = io::Error::new(io::ErrorKind::NotFound, "no host");
    UpstreamError::Resolve { host: config.to_string(), source }
}

fn on_wire(version: config::ProtocolVersion) -> ProtocolVersion {
    ProtocolVersion(match version {
        config::ProtocolVersion::V3_0 => PROTOCOL_3_0,
        config::ProtocolVersion::V3_2 => PROTOCOL_3_2,
    })
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
/// Key derivations of one upstream at a time: more would take the processor from the relay and be done no sooner.
const MAX_DERIVATIONS: usize = 2;
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
            assert!(!error.is_verdict() && error.sqlstate().is_none());
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

        let Place { listener, mut config } = place;
        drop(listener);
        let try_with = async |config: &UpstreamConfig| {
            let upstream = Upstream::load(config).unwrap();
            upstream.log_in(&credential("secret"), &parameters()).await.unwrap_err()
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
}
