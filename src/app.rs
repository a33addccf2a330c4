//! Composition root: builds the parts, binds, starts the two threads, and takes everything down again in order.
//!
//! The calling thread becomes the control thread: chains, HTTP, signals. A second one, the data thread, runs listener
//! and sessions, so that nothing done for a lease delays a byte of the relay.

mod injector;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Admin, VaultPlace};
use crate::config::{self, AtLeaseEnd, Config, DrainConfig, ListenConfig, PodConfig, RouteConfig};
use crate::credential::{self, CredentialSource, Publisher};
use crate::drain::Drain;
use crate::http::{self, Health};
use crate::lease::{Chain, ChainEnd, ChainHandle, ChainSettings, StaticChain};
use crate::listener::{self, Listeners};
use crate::net::Absent;
use crate::session::Shared;
use crate::session::auth::{Auth, AuthFileError};
use crate::session::encryption::ClientTls;
use crate::session::route::Route;
use crate::telemetry::Metrics;
use crate::tls::TlsError;
use crate::upstream::{Probe, Upstream};
use crate::vault::{Vault, VaultSetupError};

pub(crate) use injector::{ensure_certificate, run as run_injector};

/// Why pglease did not serve, or not to the end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("upstream of the route on {vault_path}")]
    Upstream { vault_path: String, source: TlsError },
    #[error(transparent)]
    AuthFile(AuthFileError),
    #[error(transparent)]
    Vault(VaultSetupError),
    #[error("TLS for clients")]
    ClientTls(#[source] TlsError),
    #[error("TLS towards the API server")]
    WebhookTls(#[source] TlsError),
    #[error(transparent)]
    Listen(listener::BindError),
    #[error(transparent)]
    Http(http::BindError),
    #[error("starting a runtime, a thread or a signal handler")]
    Start(#[from] io::Error),
    #[error("the data thread has ended, and the sessions with it")]
    DataThread(#[source] io::Error),
}

impl AppError {
    /// Whether a setting is at fault, rather than what was found at run time.
    pub(crate) fn is_of_settings(&self) -> bool {
        match self {
            Self::Upstream { .. }
            | Self::AuthFile(_)
            | Self::Vault(_)
            | Self::ClientTls(_)
            | Self::WebhookTls(_) => true,
            Self::Listen(_) | Self::Http(_) | Self::Start(_) | Self::DataThread(_) => false,
        }
    }
}

/// What a drain could not end well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Sessions that were still busy when time was up.
    pub(crate) sessions_cut: u64,
    /// Credentials that could not be revoked: they end by themselves.
    pub(crate) not_revoked: usize,
}

/// Serves until told to stop by SIGTERM or SIGINT, and returns when everything is given back.
pub(crate) fn run(config: Config) -> Result<Losses, AppError> {
    // Credentials are in memory only: not in a core, and not for others of the same user to read.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    let runtime = current_thread()?;
    let served = runtime.block_on(serve(config));
    // What still waits for a disk or a resolver that does not answer is not waited for.
    runtime.shutdown_background();
    served
}

async fn serve(mut config: Config) -> Result<Losses, AppError> {
    let signals = StopSignals::register()?;
    fit_descriptors(&mut config.listen);
    let drain = Drain::default();
    let metrics = Arc::new(Metrics::new());
    let parts = Parts::build(&config, &metrics)?;
    let auth = Auth::load(&config.listen.auth).map_err(AppError::AuthFile)?;
    let tls = config
        .listen
        .tls
        .as_ref()
        .map(|files| ClientTls::load(files, &metrics))
        .transpose()
        .map_err(AppError::ClientTls)?;
    let mut listeners = listener::bind(&config.listen).map_err(AppError::Listen)?;
    let (http_listener, http_absent) = http::bind(config.http).map_err(AppError::Http)?;
    let (admin_listener, admin_absent) = admin::bind(config.admin).map_err(AppError::Http)?;
    report_absent(&[listeners.take_absent(), http_absent, admin_absent]);
    let (addresses, http_address) = (join(listeners.addresses()), http_listener.local_addr()?);
    let unix_socket = listeners.unix_socket().map(|path| path.display().to_string());
    let admin_address =
        admin_listener.as_ref().map(TcpListener::local_addr).transpose()?.map(|at| at.to_string());

    let (pinger, pings) = http::pings();
    let ListenConfig { connect_wait, max_sessions, .. } = config.listen;
    let shared =
        Shared::new(parts.routes, auth, Arc::clone(&metrics), drain.subscribe(), connect_wait, max_sessions)
            .with_tls(tls);
    let roster = Arc::clone(shared.roster());
    let shared = Arc::new(shared);
    let sessions_ended = start_data_thread(listeners, Arc::clone(&shared), pings)?;
    let stop = CancellationToken::new();
    let (ask_drain, drain_asked) = mpsc::channel(1);
    let admin = Admin {
        control: config.admin.control,
        chains: parts.chains.iter().map(AnyChain::handle).collect(),
        routes: config.routes,
        roster,
        max_sessions,
        metrics: Arc::clone(&metrics),
        vault: VaultPlace::of(&config.vault),
        pod: config.pod.clone(),
        phase: drain.subscribe(),
        drain: ask_drain,
        deadline: config.drain.deadline,
    };
    let _leftovers = revoke_leftovers(&parts.vault);
    let mut chains = start_chains(parts.chains, &parts.vault, &stop);
    let health = Arc::new(Health::new(metrics, parts.awaited, drain.subscribe(), pinger));
    let PodConfig { name: pod, namespace, uid: pod_uid, .. } = &config.pod;
    info!(
        event = "listen.ready",
        addresses,
        unix_socket,
        http = %http_address,
        admin = admin_address,
        pod,
        namespace,
        pod_uid,
        version = VERSION
    );

    let to_the_end = async {
        let mut sessions_ended = sessions_ended;
        let mut stopping = pin!(signals.drive(&drain, config.drain, drain_asked));
        let ended = loop {
            tokio::select! {
                ended = &mut sessions_ended => {
                    break ended.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
                }
                never = &mut stopping => match never {},
                Some(chain) = chains.join_next() => report_fault(chain),
            }
        };
        stop.cancel();
        let mut not_revoked = 0;
        while let Some(chain) = chains.join_next().await {
            not_revoked += chain.as_ref().map_or(1, |end| end.failed);
            report_fault(chain);
        }
        ended.map(|()| Losses { sessions_cut: shared.cut(), not_revoked })
    };
    // The endpoints answer until all is given back.
    let ended = tokio::select! {
        ended = to_the_end => ended,
        never = http::serve(http_listener, http::router(health), http::EXCHANGE_TIMEOUT) => match never {},
        never = serve_admin(admin_listener, admin) => match never {},
    };
    let losses = ended.map_err(AppError::DataThread)?;
    let Losses { sessions_cut, not_revoked } = losses;
    info!(event = "process.end", sessions_cut, not_revoked);
    Ok(losses)
}

/// In one warning, what of the defaults this machine does not have.
fn report_absent(absent: &[Option<Absent>]) {
    let absent = absent.iter().flatten();
    if let Some(Absent { source, .. }) = absent.clone().next() {
        let addresses = join(&absent.map(|absent| absent.address).collect::<Vec<_>>());
        warn!(event = "listen.absent", addresses, error = %source, "this machine has no such address: listen.ready names those that it has");
    }
}

async fn serve_admin(listener: Option<TcpListener>, admin: Admin) -> Infallible {
    match listener {
        Some(listener) => {
            http::serve(listener, admin::router(Arc::new(admin)), admin::EXCHANGE_TIMEOUT).await
        }
        None => future::pending().await,
    }
}

/// Revokes what a crash has left behind, for as long as that takes and the returned lives.
fn revoke_leftovers(vault: &Arc<Vault>) -> JoinSet<()> {
    let vault = Arc::clone(vault);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { vault.revoke_leftovers().await });
    tasks
}

/// Starts the chains, at once or a while after the last start of a process that crashes again and again.
fn start_chains(chains: Vec<AnyChain>, vault: &Arc<Vault>, stop: &CancellationToken) -> JoinSet<ChainEnd> {
    let pause = vault.pause_before_start();
    if !pause.is_zero() {
        warn!(
            event = "start.delayed",
            seconds = pause.as_secs_f64(),
            "the last start was a moment ago: credentials are fetched later"
        );
    }
    let begins_at = Instant::now() + pause;
    let mut tasks = JoinSet::new();
    for chain in chains {
        let (vault, stop) = (Arc::clone(vault), stop.clone());
        tasks.spawn(async move {
            if stop.run_until_cancelled(time::sleep_until(begins_at)).await.is_none() {
                return ChainEnd::default();
            }
            vault.note_start();
            chain.run(stop).await
        });
    }
    tasks
}

/// A chain ends before it is stopped in a panic only, and has nothing left to revoke with then.
fn report_fault(chain: Result<ChainEnd, JoinError>) {
    if let Err(fault) = chain {
        error!(event = "process.fault", error = %fault, "a bug of pglease ended a chain: its leases end by themselves");
    }
}

/// The credentials of one `vault_path`.
enum AnyChain {
    Leased(Chain<Vault>),
    Static(StaticChain<Vault>),
}

impl AnyChain {
    fn handle(&self) -> ChainHandle {
        match self {
            Self::Leased(chain) => chain.handle(),
            Self::Static(chain) => chain.handle(),
        }
    }

    async fn run(self, stop: CancellationToken) -> ChainEnd {
        match self {
            Self::Leased(chain) => chain.run(stop).await,
            Self::Static(chain) => chain.run(stop).await,
        }
    }
}

/// What is built before anything is bound.
struct Parts {
    routes: Vec<Route>,
    /// Of the routes that are not optional.
    awaited: Vec<CredentialSource>,
    chains: Vec<AnyChain>,
    vault: Arc<Vault>,
}

impl Parts {
    /// One route for each in the configuration, one chain for each of their `vault_path`s.
    fn build(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, AppError> {
        let vault = Arc::new(Vault::load(&config.vault, Arc::clone(metrics)).map_err(AppError::Vault)?);
        let mut chains = BTreeMap::<&str, (Publisher, CredentialSource, Vec<(&RouteConfig, Probe)>)>::new();
        let (mut routes, mut awaited) = (Vec::new(), Vec::new());
        for route in &config.routes {
            let vault_path = route.vault_path.as_str();
            let upstream = Upstream::load(&route.upstream)
                .map_err(|source| AppError::Upstream { vault_path: vault_path.to_owned(), source })?;
            let upstream = Arc::new(upstream.counting(metrics));
            let (_, source, provers) = chains.entry(vault_path).or_insert_with(|| {
                let (publisher, source) = credential::channel();
                (publisher, source, Vec::new())
            });
            let database = route.upstream.database.as_deref().or(route.database.as_deref());
            provers.push((route, Probe::new(Arc::clone(&upstream), database.unwrap_or("postgres"))));
            if !route.optional {
                awaited.push(source.clone());
            }
            routes.push(Route { config: route.clone(), upstream, source: source.clone() });
        }
        let chain = |(vault_path, (publisher, _, provers)): (&str, (Publisher, CredentialSource, Vec<_>))| {
            let settings = ChainSettings {
                vault_path: vault_path.to_owned(),
                learner: learner(&provers),
                provers: that_count(provers),
            };
            let (vault, metrics) = (Arc::clone(&vault), Arc::clone(metrics));
            if config::is_static(vault_path) {
                AnyChain::Static(StaticChain::new(settings, vault, publisher, metrics))
            } else {
                AnyChain::Leased(Chain::new(settings, vault, publisher, metrics))
            }
        };
        let chains = chains.into_iter().map(chain).collect();
        Ok(Self { routes, awaited, chains, vault })
    }
}

/// Where it is watched what a revocation does to a session, if any depends on it: at a route that must work, if there
/// is one.
fn learner(provers: &[(&RouteConfig, Probe)]) -> Option<Probe> {
    let depends =
        |route: &RouteConfig| route.at_lease_end == AtLeaseEnd::Auto && route.startup_role.is_none();
    let dependent = provers.iter().filter(|(route, _)| depends(route));
    dependent.min_by_key(|(route, _)| route.optional).map(|(_, prober)| prober.clone())
}

/// Where a credential is proven: at the upstreams of the routes that are not optional, which the others must not hold
/// up; of all routes where all are optional.
fn that_count(mut provers: Vec<(&RouteConfig, Probe)>) -> Vec<Probe> {
    if provers.iter().any(|(route, _)| !route.optional) {
        provers.retain(|(route, _)| !route.optional);
    }
    provers.into_iter().map(|(_, prover)| prover).collect()
}

/// Runs the listener and its sessions on a thread of their own; what is returned resolves when they have ended.
fn start_data_thread(
    listeners: Listeners,
    shared: Arc<Shared>,
    pings: impl Future<Output = ()> + Send + 'static,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (ended, has_ended) = oneshot::channel();
    let runtime = current_thread()?;
    thread::Builder::new().name("data".to_owned()).spawn(move || {
        let served = runtime.block_on(async {
            tokio::select! {
                served = listener::serve(listeners, shared) => served,
                // Over when the endpoints are, which is after the sessions.
                () = pings => future::pending().await,
            }
        });
        // Nobody waits for it only where the process ends anyway.
        let _ = ended.send(served);
    })?;
    Ok(has_ended)
}

/// The signals that stop the process.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn register() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one, by name. Cancel safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The first begins the drain, the second cuts it short; more change nothing. A drain that was `asked` for by
    /// command is begun by no signal: the first one, which Kubernetes sends after a preStop command, leaves it alone.
    async fn drive(
        mut self,
        drain: &Drain,
        config: DrainConfig,
        mut asked: mpsc::Receiver<()>,
    ) -> Infallible {
        let signal = tokio::select! {
            signal = self.next() => Some(signal),
            Some(()) = asked.recv() => None,
        };
        info!(
            event = "drain.start",
            signal = signal.unwrap_or("none: pglease drain"),
            deadline_seconds = config.deadline.as_secs_f64(),
        );
        drain.begin(config, Instant::now());
        if signal.is_none() {
            self.next().await;
        }
        loop {
            let signal = self.next().await;
            warn!(event = "drain.cut", signal);
            drain.cut();
        }
    }
}

/// Raises the limit of open files to what `max_sessions` needs, or lowers `max_sessions` to what can be had: running
/// out of descriptors would cost the leases as well.
fn fit_descriptors(config: &mut ListenConfig) {
    let wanted = config::needed_descriptors(config.max_sessions);
    let limit = getrlimit(Resource::Nofile);
    let granted = limit.maximum.unwrap_or(u64::MAX).min(wanted.max(limit.current.unwrap_or(u64::MAX)));
    let raised = Rlimit { current: Some(granted), maximum: limit.maximum };
    let granted = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => granted,
        Err(_) => limit.current.unwrap_or(u64::MAX),
    };
    if granted < wanted {
        let sessions = config::sessions_within(granted);
        warn!(
            event = "listen.max_sessions_lowered",
            from = config.max_sessions,
            to = sessions,
            descriptors = granted,
            "the limit of open files is too low for listen.max_sessions, and cannot be raised"
        );
        config.max_sessions = sessions;
    }
}

fn current_thread() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

fn join(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
