//! A PostgreSQL server to log in to: connect, TLS, startup and SCRAM with a given credential. Used by sessions and
//! by the proof of a credential. Runs no task; every wait here is the caller's to bound.

mod address;
mod ahead;
mod hosts;
mod connect;
mod tls;
mod login;
mod refusal;
mod attrs;
mod inquiry;
mod error;
mod survey;
#[cfg(test)]
mod fake;
#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::BytesMut;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{self, Instant};
use tracing::{debug, info, warn};

use crate::config::{self, ChannelBinding, TargetSessionAttrs, UpstreamConfig};
use crate::credential::Credential;
use crate::net::Stream;
use crate::telemetry::{Answers, Causes, HostFailureLabels, Metrics};
use crate::tls::TlsError;
use crate::wire::message::TERMINATE;
use crate::wire::negotiation::Versions;
use crate::wire::scram::Binding;
use crate::wire::startup::{CancelKey, PROTOCOL_3_0, PROTOCOL_3_2, ProtocolVersion, StartupParameters};

pub(crate) use address::Address;
pub(crate) use ahead::Ahead;
pub(crate) use attrs::Unfit;
pub(crate) use connect::NegotiationError;
pub(crate) use error::{LoginError, UpstreamError};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::fuzz_login;
pub(crate) use inquiry::{Inquiry, QueryError};
pub(crate) use refusal::OnCredential;
pub(crate) use survey::Shown;

use address::{Server, Socket};
use error::NoHost;
use hosts::{Conclusion, Outcome, Plan, Telling};
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
    turns: Arc<Semaphore>,
    failures: Option<Family<HostFailureLabels, Counter>>,
    /// Of the servers, in their order.
    answers: Vec<Arc<Answers>>,
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
    /// Of one login, at whichever hosts.
    pub(crate) const LIMIT: Duration = Duration::from_secs(5);

    /// Asks for `database`. Any will do: a server that finds fault with it has accepted the credential.
    pub(crate) fn new(upstream: Arc<Upstream>, database: &str) -> Self {
        let mut parameters = StartupParameters::default();
        parameters.push("database", database);
        parameters.push("application_name", "pglease");
        Self { upstream, parameters }
    }

    /// Logs in within [`Probe::LIMIT`], and out again.
    pub(crate) async fn prove(&self, credential: &Credential) -> Result<(), UpstreamError> {
        self.upstream.prove(credential, &self.parameters, Instant::now() + Self::LIMIT).await
    }

    /// Logs in within [`Probe::LIMIT`], to ask something.
    pub(crate) async fn open(&self, credential: &Credential) -> Result<Inquiry, UpstreamError> {
        let deadline = Instant::now() + Self::LIMIT;
        self.upstream.log_in(credential, &self.parameters, deadline).await.map(Inquiry::new)
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
        let server = |host| Server::new(host, tls.is_some()).map(Arc::new);
        let servers = config.hosts.iter().map(server).collect::<Result<_, _>>()?;
        Ok(Self {
            config: config.clone(),
            servers,
            tls,
            unbound: Once::new(),
            turns: Arc::new(Semaphore::new(MAX_DERIVATIONS)),
            failures: None,
            answers: Vec::new(),
        })
    }

    /// Has failures counted, and answers noted.
    pub(crate) fn counting(self, metrics: &Metrics) -> Self {
        let answers = |server: &Arc<Server>| {
            Arc::clone(&metrics.host_answers.entry(server.host().to_string()).or_default())
        };
        let answers = self.servers.iter().map(answers).collect();
        Self { failures: Some(metrics.upstream_host_failures.clone()), answers, ..self }
    }

    /// Connects and logs in before `deadline`. `parameters` go as they are, with `user` set to the credential's. Not
    /// cancel safe: what was begun is closed.
    ///
    /// Hosts are asked in the order that [`hosts`] has, each looked up anew and at all its addresses, until one is a
    /// session of the kind that is wanted. Each attempt has its share of what is left, or `connect_timeout` where
    /// that is less.
    pub(crate) async fn log_in(
        &self,
        credential: &Credential,
        parameters: &StartupParameters,
        deadline: Instant,
    ) -> Result<LoggedIn, UpstreamError> {
        self.log_in_on(None, credential, parameters, deadline).await
    }

    /// The same, on a connection that is there already if it leads to where the first attempt is made.
    pub(crate) async fn log_in_on(
        &self,
        mut ahead: Option<Ahead>,
        credential: &Credential,
        parameters: &StartupParameters,
        deadline: Instant,
    ) -> Result<LoggedIn, UpstreamError> {
        let UpstreamConfig { target_session_attrs: wanted, load_balance_hosts: balance, .. } = self.config;
        let mut plan = Plan::new(self.servers.len(), wanted, balance, &mut fastrand::Rng::new());
        let mut tried = Vec::new();
        while let Some((index, wanted)) = plan.next() {
            let Some(server) = self.servers.get(index) else { continue };
            let now = Instant::now();
            if now >= deadline && !tried.is_empty() {
                // It has said nothing.
                plan.take(index, Outcome::Failed);
                break;
            }
            let until = plan.until(now, deadline);
            let ahead = ahead.take();
            let asking = Asking { credential, parameters, wanted, until, deadline, ahead };
            let before = tried.len();
            match self.log_in_to(server, asking, &mut tried).await {
                Ok(logged_in) => {
                    note_back(server);
                    if let Some(answers) = self.answers.get(index) {
                        answers.note_ok(now.elapsed());
                    }
                    return Ok(logged_in);
                }
                Err(outcome) => {
                    let ended = tried.get(before..).unwrap_or_default().iter().map(Outcome::of);
                    plan.take_last(index, ended, outcome);
                }
            }
            if let Some(error) = error::telling(tried.get(before..).unwrap_or_default()) {
                self.note_failure(server, error);
                if let Some(answers) = self.answers.get(index) {
                    let sqlstate = error.sqlstate().map(|code| code.to_string());
                    answers.note_failure("login", error.reason(), sqlstate, error);
                }
            }
        }
        Err(self.conclude(&plan, wanted, tried))
    }

    /// Tries the addresses of one host; what failed is in `tried`.
    async fn log_in_to(
        &self,
        server: &Arc<Server>,
        mut asking: Asking<'_>,
        tried: &mut Vec<UpstreamError>,
    ) -> Result<LoggedIn, Outcome> {
        let until = asking.until;
        let host = || server.host().to_string();
        let mut failed = |error: UpstreamError| {
            let outcome = Outcome::of(&error);
            tried.push(error);
            outcome
        };
        let mut addresses = match time::timeout_at(until, server.look_up()).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(source)) => return Err(failed(UpstreamError::Resolve { host: host(), source })),
            Err(_) => {
                let source = io::Error::from(io::ErrorKind::TimedOut);
                return Err(failed(UpstreamError::Resolve { host: host(), source }));
            }
        };
        hosts::shuffle(&mut addresses, self.config.load_balance_hosts, &mut fastrand::Rng::new());

        let mut outcome = Outcome::Failed;
        let count = addresses.len();
        for (index, address) in addresses.into_iter().enumerate() {
            let now = Instant::now();
            let share = hosts::until(now, until, count - index);
            let until = self.config.connect_timeout.map_or(share, |limit| share.min(now + limit));
            // In a box: a session's task would keep the room of its login, 3 KiB, to the end.
            let attempt = Box::pin(self.log_in_at(&address, &mut asking));
            let error = match within(until, &address, attempt).await {
                Ok((logged_in, Ok(()))) => return Ok(logged_in),
                Ok((mut logged_in, Err(is))) => {
                    // Not in its own time, as what it is is known.
                    let goodbye = say_goodbye(&mut logged_in.stream);
                    let _ = time::timeout_at(asking.deadline, goodbye).await;
                    UpstreamError::Unfit { address: address.to_string(), is }
                }
                Err(error) => error,
            };
            debug!(event = "upstream.address_failed", %address, reason = error.reason());
            outcome = failed(error);
            if !outcome.is_of_address() {
                break;
            }
        }
        Err(outcome)
    }

    /// Counts what a host did not serve for, and tells of it: loudly where the login before went well. A server of
    /// another kind than is wanted is in order.
    fn note_failure(&self, server: &Server, error: &UpstreamError) {
        let (reason, host) = (error.reason(), server.host());
        let cause = Causes(error);
        if matches!(error, UpstreamError::Unfit { .. }) {
            note_back(server);
            debug!(event = "upstream.host_unfit", upstream = %host, error = %cause);
        } else if Outcome::of(error) == Outcome::Refused {
            // Its word on what the client asked for, or on its limits: it serves.
            note_back(server);
        } else if server.note(true) {
            warn!(event = "upstream.host_failed", upstream = %host, reason, error = %cause);
        } else {
            debug!(event = "upstream.host_failed", upstream = %host, reason, error = %cause);
        }
        if let Some(failures) = &self.failures {
            failures.get_or_create(&HostFailureLabels { host: host.to_string(), reason }).inc();
        }
    }

    fn conclude(
        &self,
        plan: &Plan,
        wanted: TargetSessionAttrs,
        mut tried: Vec<UpstreamError>,
    ) -> UpstreamError {
        let Conclusion { telling, credential } = plan.conclusion();
        let told = match telling {
            Telling::Last => tried.len().checked_sub(1),
            Telling::First(outcome) => tried.iter().position(|error| Outcome::of(error) == outcome),
            Telling::All => (tried.len() == 1 && credential == OnCredential::Nothing).then_some(0),
        };
        match told {
            Some(told) if told < tried.len() => tried.swap_remove(told).beside(credential),
            _ if tried.is_empty() => {
                let source = io::Error::new(io::ErrorKind::NotFound, "no host");
                UpstreamError::Resolve { host: self.config.to_string(), source }
            }
            _ => UpstreamError::NoHost(Box::new(NoHost { wanted, tried, credential })),
        }
    }

    /// Logs in and says goodbye: upstream may count the session against a limit of the credential until it is over.
    async fn prove(
        &self,
        credential: &Credential,
        parameters: &StartupParameters,
        deadline: Instant,
    ) -> Result<(), UpstreamError> {
        let mut stream = self.log_in(credential, parameters, deadline).await?.stream;
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
        match self.config.connect_timeout {
            Some(limit) => within(Instant::now() + limit, address, attempt).await,
            None => attempt.await,
        }
    }

    /// A session, and whether it is of the kind that is wanted.
    async fn log_in_at(
        &self,
        address: &Address,
        asking: &mut Asking<'_>,
    ) -> Result<(LoggedIn, Result<(), Unfit>), UpstreamError> {
        let Asking { credential, parameters, wanted, .. } = *asking;
        let ahead = match asking.ahead.take() {
            Some(ahead) => ahead.into_stream(address).await,
            None => None,
        };
        let mut stream = match ahead {
            Some(stream) => stream,
            None => self.connect(address).await?,
        };
        let terms = self
            .terms(&stream)
            .map_err(|source| UpstreamError::Tls { address: address.to_string(), source })?;

        let Greeting { before_key, key, after_key } =
            login::log_in(&mut stream, credential, parameters, &terms)
                .await
                .map_err(|error| UpstreamError::login(address.to_string(), error))?;
        let cancel = key.map(|key| CancelTarget { address: address.clone(), key });
        let mut logged_in = LoggedIn { stream, address: address.clone(), before_key, cancel, after_key };
        let fits = attrs::check(&mut logged_in, wanted).await;
        Ok((logged_in, fits))
    }

    async fn connect(&self, address: &Address) -> Result<Stream, UpstreamError> {
        let failed = |source| UpstreamError::Connect { address: address.to_string(), source };
        let stream = match address.socket() {
            Socket::Unix(path) => return UnixStream::connect(path).await.map(Stream::Unix).map_err(failed),
            Socket::Tcp(socket) => connect::tcp(*socket, &self.config.silence).await.map_err(failed)?,
        };
        match self.tls.as_ref().zip(address.tls_name()) {
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
            (ChannelBinding::Disable, _) | (ChannelBinding::Prefer, Stream::Tcp(_) | Stream::Unix(_)) => {
                Binding::None
            }
            (ChannelBinding::Require, Stream::Tcp(_) | Stream::Unix(_)) => {
                return Err(NegotiationError::NoTls);
            }
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
}

fn note_back(server: &Server) {
    if server.note(false) {
        info!(event = "upstream.host_back", upstream = %server.host());
    }
}

/// What one login asks of a host.
struct Asking<'a> {
    credential: &'a Credential,
    parameters: &'a StartupParameters,
    wanted: TargetSessionAttrs,
    /// For all addresses of the host, looking them up included.
    until: Instant,
    /// For all hosts.
    deadline: Instant,
    /// For the first address.
    ahead: Option<Ahead>,
}

async fn within<T>(
    until: Instant,
    address: &Address,
    attempt: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let limit = until.saturating_duration_since(Instant::now());
    time::timeout_at(until, attempt).await.unwrap_or_else(|_| {
        // A share has nanoseconds, which tell nothing.
        let limit = Duration::from_micros(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX) + 500);
        let limit = Duration::from_millis(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        Err(UpstreamError::TimedOut { address: address.to_string(), limit })
    })
}

#[cfg(test)]
impl Upstream {
    /// At the first host, which is an address.
    pub(crate) fn cancel_target(&self, key: CancelKey) -> CancelTarget {
        let address = Address::of(self.servers.first().expect("settings have a host"));
        CancelTarget { address, key }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("config", &self.config).finish_non_exhaustive()
    }
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
        stream.write_all(TERMINATE).await?;
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

/// Key derivations of one upstream at a time: more would take the processor from the relay and be done no sooner.
const MAX_DERIVATIONS: usize = 2;
/// How long a goodbye waits for upstream's end of the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
