//! Composition root: builds the parts, binds, starts the threads, and takes everything down again in order.
//!
//! The calling thread becomes the control thread: chains, HTTP, signals. Beside it are the data threads.

mod certificates;
mod chains;
mod files;
mod injector;
mod reload;
mod routing;
mod threads;
mod tidy;
mod wired;

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::admin::{self, Admin};
use crate::config::{self, Config, DrainConfig, ListenConfig, Loaded, PodConfig};
use crate::drain::Drain;
use crate::file::FileSetupError;
use crate::http::{self, Health};
use crate::listener;
use crate::net::Absent;
use crate::session::Shared;
use crate::session::auth::{Auth, AuthFileError};
use crate::session::encryption::ClientTls;
use crate::session::turn;
use crate::telemetry::{self, Metrics};
use crate::tls::TlsError;
use crate::vault::{Vault, VaultSetupError};

use chains::Chains;
use files::CredentialFiles;
use reload::Reloader;
use routing::Routing;
use threads::DataThreads;

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
    #[error(transparent)]
    File(FileSetupError),
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
    #[error("a data thread has ended, and the sessions with it")]
    DataThread(#[source] io::Error),
}

impl AppError {
    /// Whether a setting is at fault, rather than what was found at run time.
    pub(crate) fn is_of_settings(&self) -> bool {
        match self {
            Self::Upstream { .. }
            | Self::AuthFile(_)
            | Self::File(_)
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

/// From now on SIGHUP, which ends a process that has said nothing of it, does nothing until a reload waits for it.
pub(crate) fn outlive_hangup() -> io::Result<()> {
    let runtime = current_thread()?;
    let _entered = runtime.enter();
    // What takes the signal stays when the runtime goes.
    signal(SignalKind::hangup()).map(drop)
}

/// Serves until told to stop by SIGTERM or SIGINT, and returns when everything is given back.
pub(crate) fn run(loaded: Loaded) -> Result<Losses, AppError> {
    // Credentials are in memory only: not in a core, and not for others of the same user to read.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from)?;
    let runtime = current_thread()?;
    let served = runtime.block_on(serve(loaded));
    // What still waits for a disk or a resolver that does not answer is not waited for.
    runtime.shutdown_background();
    served
}

async fn serve(loaded: Loaded) -> Result<Losses, AppError> {
    let (signals, hangup) = (StopSignals::register()?, signal(SignalKind::hangup())?);
    let Loaded { mut config, warnings, origin } = loaded;
    fit_descriptors(&mut config);
    if config.routes.is_empty() {
        // Nobody could be let in.
        config.listen.addresses.clear();
        config.listen.unix_socket = None;
    }
    let drain = Drain::default();
    let metrics = Arc::new(Metrics::new());
    let vault = Arc::new(Vault::load(&config.vault, Arc::clone(&metrics)).map_err(AppError::Vault)?);
    let routes = wired::wire(&config.routes, &[], &metrics)?;
    let mut files = CredentialFiles::load(&config.files, &metrics)?;
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
    // Only now: until all is bound, another pglease may be at work here.
    files.clear()?;
    report_absent(&[listeners.take_absent(), http_absent, admin_absent]);
    let (addresses, http_address) = (join(listeners.addresses()), http_listener.local_addr()?);
    let unix_socket = listeners.unix_socket().map(|path| path.display().to_string());
    let admin_address =
        admin_listener.as_ref().map(TcpListener::local_addr).transpose()?.map(|at| at.to_string());

    let routing = Routing::new(Chains::new(Arc::clone(&vault), Arc::clone(&metrics), files.wanted()), routes);
    let chains = routing.chains().ender();
    let ListenConfig { connect_wait, max_sessions, threads, .. } = config.listen;
    let rules = routing.rules();
    let shared =
        Shared::new(rules, auth, Arc::clone(&metrics), drain.subscribe(), connect_wait, max_sessions);
    let shared = Arc::new(shared.with_tls(tls));
    let roster = Arc::clone(shared.roster());
    let DataThreads { ended: sessions_ended, pinger, loads } =
        threads::start(threads, listeners, Arc::clone(&shared))?;
    let (ask_drain, drain_asked) = mpsc::channel(1);
    let reloader =
        Reloader::new(origin, config.clone(), warnings, hangup, drain.subscribe(), Arc::clone(&metrics));
    let admin = Admin {
        in_effect: reloader.config(),
        chains: routing.chains().handles(),
        config: reloader.status(),
        files: files.status(),
        roster,
        loads,
        metrics: Arc::clone(&metrics),
        phase: drain.subscribe(),
        drain: ask_drain,
    };
    let _leftovers = revoke_leftovers(&vault);
    let measured = Arc::clone(&metrics);
    let health =
        Arc::new(Health::new(metrics, routing.awaited(), files.awaited(), drain.subscribe(), pinger));
    let mut files = files.start(routing.chains());
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

    let (in_effect, certified) = (reloader.config(), reloader.config());
    let to_the_end = async {
        let ended = tokio::select! {
            ended = sessions_ended => ended.unwrap_or_else(|_| Err(io::Error::other("a bug of pglease"))),
            never = signals.drive(&drain, || in_effect.borrow().drain, drain_asked) => match never {},
            never = async { files.watch().await; future::pending().await } => match never {},
        };
        if let Err(error) = &ended {
            // Before what takes its time.
            error!(event = "process.fault", %error, "a data thread has ended, and the sessions with it: so does the process");
        }
        files.stop().await;
        let not_revoked = chains.end().await;
        ended.map(|()| Losses { sessions_cut: shared.cut(), not_revoked })
    };
    // The endpoints answer until all is given back.
    let ended = tokio::select! {
        ended = to_the_end => ended,
        never = http::serve(http_listener, http::router(health), http::EXCHANGE_TIMEOUT) => match never {},
        never = serve_admin(admin_listener, admin) => match never {},
        never = reloader.run(routing, Arc::clone(&shared), &drain) => match never {},
        never = telemetry::say_repeats() => match never {},
        never = tidy::tidy(&shared) => match never {},
        never = certificates::watch_ends(certified, &shared, &measured) => match never {},
    };
    let losses = ended.map_err(AppError::DataThread)?;
    telemetry::end_log();
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
        config: impl Fn() -> DrainConfig,
        mut asked: mpsc::Receiver<()>,
    ) -> Infallible {
        let signal = tokio::select! {
            signal = self.next() => Some(signal),
            Some(()) = asked.recv() => None,
        };
        let config = config();
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
fn fit_descriptors(Config { listen, routes, .. }: &mut Config) {
    let wanted = config::needed_descriptors(listen.max_sessions, listen.threads, routes);
    let limit = getrlimit(Resource::Nofile);
    let granted = limit.maximum.unwrap_or(u64::MAX).min(wanted.max(limit.current.unwrap_or(u64::MAX)));
    let raised = Rlimit { current: Some(granted), maximum: limit.maximum };
    let granted = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => granted,
        Err(_) => limit.current.unwrap_or(u64::MAX),
    };
    if granted < wanted {
        let sessions = config::sessions_within(granted, listen.threads, routes);
        warn!(
            event = "listen.max_sessions_lowered",
            from = listen.max_sessions,
            to = sessions,
            descriptors = granted,
            "the limit of open files is too low for listen.max_sessions, and cannot be raised"
        );
        listen.max_sessions = sessions;
    }
}

fn current_thread() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().on_thread_park(turn::ends).build()
}

fn join(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
