//! The chains that run: one for each `vault_path` that a route or a file names, begun when the first does, ended after
//! the last session when none does any more. Those of files last as long as the process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::files::Wanted;
use super::wired::Wired;
use crate::config;
use crate::credential::{self, CredentialSource};
use crate::lease::{Chain, ChainEnd, ChainHandle, ChainSettings, StaticChain, Upstreams};
use crate::telemetry::Metrics;
use crate::vault::Vault;

/// The chains of a process.
pub(super) struct Chains {
    vault: Arc<Vault>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Credentials that could not be revoked.
    not_revoked: Arc<AtomicUsize>,
    /// Nothing is fetched before.
    begins_at: Instant,
    by_path: BTreeMap<String, Running>,
    files: Vec<Wanted>,
    /// Those that wait for the last session of a chain.
    retiring: JoinSet<()>,
    handles: Arc<watch::Sender<Vec<ChainHandle>>>,
}

/// One chain, seen from the routes.
struct Running {
    source: CredentialSource,
    routes: Vec<Wired>,
    upstreams: watch::Sender<Upstreams>,
    stop: CancellationToken,
    /// Where no route names it any more.
    retirement: Option<AbortHandle>,
}

impl Chains {
    /// None yet. They begin at once, or a while after the last start of a process that crashes again and again.
    pub(super) fn new(vault: Arc<Vault>, metrics: Arc<Metrics>, files: Vec<Wanted>) -> Self {
        let pause = vault.pause_before_start();
        if !pause.is_zero() {
            warn!(
                event = "start.delayed",
                seconds = pause.as_secs_f64(),
                "the last start was a moment ago: credentials are fetched later"
            );
        }
        Self {
            vault,
            metrics,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            not_revoked: Arc::default(),
            begins_at: Instant::now() + pause,
            by_path: BTreeMap::new(),
            files,
            retiring: JoinSet::new(),
            handles: Arc::default(),
        }
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// By what they are asked how they stand; also those that end.
    pub(super) fn handles(&self) -> watch::Receiver<Vec<ChainHandle>> {
        self.handles.subscribe()
    }

    /// Ends them all.
    pub(super) fn ender(&self) -> Ender {
        Ender {
            stop: self.stop.clone(),
            tasks: self.tasks.clone(),
            not_revoked: Arc::clone(&self.not_revoked),
        }
    }

    /// Has those run that `routes` name, with a new one for each path that has none, and the others end after their last
    /// session. A chain whose path stays goes on as it is.
    pub(super) fn follow(&mut self, routes: &[Wired]) {
        self.by_path.retain(|_, chain| !chain.stop.is_cancelled());
        let files = self.files.clone();
        let mut by_path = BTreeMap::<&str, Vec<Wired>>::new();
        for file in &files {
            by_path.entry(&file.vault_path).or_default();
        }
        for route in routes {
            by_path.entry(&route.config.vault_path).or_default().push(route.clone());
        }
        for (path, routes) in &by_path {
            match self.by_path.get_mut(*path) {
                Some(chain) => chain.serve(routes, &of_path(&files, path)),
                None => self.begin(path, routes.clone()),
            }
        }
        for (path, chain) in &mut self.by_path {
            if !by_path.contains_key(path.as_str()) && chain.retirement.is_none() {
                info!(
                    event = "chain.retired",
                    vault_path = path,
                    "no route names it: it ends after its last session"
                );
                let (source, stop, handles) =
                    (chain.source.clone(), chain.stop.clone(), Arc::clone(&self.handles));
                chain.retirement = Some(self.retiring.spawn(async move {
                    source.unused().await;
                    stop.cancel();
                    source.ended().await;
                    handles.send_modify(|handles| handles.retain(|handle| !handle.has_ended()));
                }));
            }
        }
        while self.retiring.try_join_next().is_some() {}
    }

    /// The paths of files that are not optional.
    pub(super) fn required(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter(|file| !file.optional).map(|file| file.vault_path.as_str())
    }

    /// Where sessions of a route on this path get their credentials.
    pub(super) fn source(&self, vault_path: &str) -> Option<CredentialSource> {
        self.by_path.get(vault_path).map(|chain| chain.source.clone())
    }

    fn begin(&mut self, vault_path: &str, routes: Vec<Wired>) {
        let (publisher, source) = credential::channel();
        let upstreams = upstreams(&routes, &of_path(&self.files, vault_path));
        let (upstreams, tried) = watch::channel(upstreams);
        let settings = ChainSettings { vault_path: vault_path.to_owned(), upstreams: tried };
        let (vault, metrics) = (Arc::clone(&self.vault), Arc::clone(&self.metrics));
        let chain = if config::is_static(vault_path) {
            AnyChain::Static(StaticChain::new(settings, vault, publisher, metrics))
        } else {
            AnyChain::Leased(Chain::new(settings, vault, publisher, metrics))
        };
        self.handles.send_modify(|handles| {
            handles.push(chain.handle());
            handles.sort_by(|one, other| one.vault_path().cmp(other.vault_path()));
        });
        let stop = self.stop.child_token();
        let (vault, begins_at, stopped) = (Arc::clone(&self.vault), self.begins_at, stop.clone());
        let not_revoked = Arc::clone(&self.not_revoked);
        self.tasks.spawn(async move {
            // In a task of its own, so that a bug in it is heard of.
            let mut running = JoinSet::new();
            running.spawn(async move {
                if stopped.run_until_cancelled(time::sleep_until(begins_at)).await.is_none() {
                    return ChainEnd::default();
                }
                vault.note_start();
                chain.run(stopped).await
            });
            while let Some(chain) = running.join_next().await {
                not_revoked.fetch_add(chain.as_ref().map_or(1, |end| end.failed), Ordering::Relaxed);
                report_fault(chain);
            }
        });
        let running = Running { source, routes, upstreams, stop, retirement: None };
        self.by_path.insert(vault_path.to_owned(), running);
    }
}

impl Running {
    /// Goes on for these routes.
    fn serve(&mut self, routes: &[Wired], files: &[Wanted]) {
        if let Some(retirement) = self.retirement.take() {
            retirement.abort();
        }
        let same = |one: &Wired, other: &Wired| {
            Arc::ptr_eq(&one.upstream, &other.upstream)
                && one.database() == other.database()
                && one.config.optional == other.config.optional
                && one.depends_on_revocation() == other.depends_on_revocation()
        };
        let is_same = routes.len() == self.routes.len()
            && routes.iter().zip(&self.routes).all(|(one, other)| same(one, other));
        if !is_same {
            self.upstreams.send_replace(upstreams(routes, files));
        }
        self.routes = routes.to_vec();
    }
}

fn of_path(files: &[Wanted], vault_path: &str) -> Vec<Wanted> {
    files.iter().filter(|file| file.vault_path == vault_path).cloned().collect()
}

/// Where the credentials of these routes' and files' chain are tried.
///
/// Proven at the upstreams of those that are not optional, which the others must not hold up; of all where all are
/// optional; nowhere where only files want it that name none. What a revocation does is watched at one that wants to know, one that must work if there is one.
fn upstreams(routes: &[Wired], files: &[Wanted]) -> Upstreams {
    let of_routes = routes.iter().map(|route| (route.config.optional, Arc::new(route.probe())));
    let of_files = files.iter().filter_map(|file| Some((file.optional, Arc::clone(file.probe.as_ref()?))));
    let probes: Vec<_> = of_routes.chain(of_files).collect();
    let any_required = probes.iter().any(|(optional, _)| !optional);
    let provers = probes.into_iter().filter(|(optional, _)| !(any_required && *optional));
    let dependent = routes.iter().filter(|route| route.depends_on_revocation());
    let learner = dependent.min_by_key(|route| route.config.optional);
    Upstreams {
        provers: provers.map(|(_, probe)| probe).collect(),
        learner: learner.map(|route| Arc::new(route.probe())),
    }
}

/// Ends the chains.
pub(super) struct Ender {
    stop: CancellationToken,
    tasks: TaskTracker,
    not_revoked: Arc<AtomicUsize>,
}

impl Ender {
    /// Returns when all have given back what they had, and how many credentials they could not revoke.
    pub(super) async fn end(self) -> usize {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.not_revoked.load(Ordering::Relaxed)
    }
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
