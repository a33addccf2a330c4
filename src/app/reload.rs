//! Has the settings read again on SIGHUP and when their file changes, and brings into effect what may change.
//!
//! Part of the control thread, to the end of the process. What blocks on a disk is done on a thread that may. All that
//! can be wrong is found before anything changes.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::task;
use tokio::time::{self, Instant};
use tracing::{error, info, warn};

use super::routing::Routing;
use super::wired::{self, Wired};
use super::{AppError, fit_descriptors};
use crate::config::{Config, Content, Loaded, Origin, Sources};
use crate::drain::{Drain, Phase};
use crate::reload::{Looks, Plan, Routes, Status, Why};
use crate::session::Shared;
use crate::session::auth::Auth;
use crate::session::encryption::ClientTls;
use crate::telemetry::{self, Causes, Metrics, ResultLabels};

/// Settings in effect, and the file that may change them.
pub(super) struct Reloader {
    watched: Watched,
    /// Of the start, but for the print.
    origin: Origin,
    warnings: Vec<String>,
    config: watch::Sender<Arc<Config>>,
    status: watch::Sender<Status>,
    phase: watch::Receiver<Phase>,
    metrics: Arc<Metrics>,
}

/// What a plan needs, all of it built.
struct Parts {
    routes: Vec<Wired>,
    /// Where they change.
    auth: Option<Auth>,
    #[expect(clippy::option_option, reason = "as it was, or none")]
    tls: Option<Option<ClientTls>>,
}

impl Reloader {
    /// Of a process that was started on `config`, which was made of `origin`.
    pub(super) fn new(
        origin: Origin,
        config: Config,
        warnings: Vec<String>,
        hangup: Signal,
        phase: watch::Receiver<Phase>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let watched = Watched::new(&origin, hangup);
        let status = watch::Sender::new(Status::new(&origin, unix_time()));
        let config = watch::Sender::new(Arc::new(config));
        let reloader = Self { watched, origin, warnings, config, status, phase, metrics };
        reloader.note_loaded();
        reloader
    }

    /// What is in effect.
    pub(super) fn config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// What is known of the settings.
    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Reloads as long as the process serves.
    pub(super) async fn run(
        mut self,
        mut routing: Routing,
        shared: Arc<Shared>,
        drain: &Drain,
    ) -> Infallible {
        loop {
            let (why, content) = self.watched.next().await;
            if self.is_stopping() {
                if why == Why::Asked {
                    say_ignored();
                }
                continue;
            }
            match self.load(content, &mut routing, &shared, drain).await {
                Ok(()) => self.watched.looks.loaded(),
                Err(error) => self.reject(&error, why),
            }
        }
    }

    fn is_stopping(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }

    /// All of what `content` says takes effect, or nothing; nothing as well where the process is to stop by then.
    async fn load(
        &mut self,
        content: Option<Content>,
        routing: &mut Routing,
        shared: &Shared,
        drain: &Drain,
    ) -> Result<(), String> {
        let sources = self.origin.sources.clone();
        let loaded = on_blocking_thread(move || sources.load(content.as_ref())).await?;
        let Loaded { mut config, warnings, origin } = loaded;
        // It takes a restart to change them.
        config.listen.threads = self.config.borrow().listen.threads;
        fit_descriptors(&mut config);
        let needs_restart = self.origin.fixed.differing(&origin.fixed);
        let plan = Plan::new(&self.config.borrow(), config);
        if plan.is_empty() && self.origin.print == origin.print {
            self.unchanged();
            return Ok(());
        }
        let (metrics, before) = (Arc::clone(&self.metrics), routing.routes().to_vec());
        let build = move || Parts::build(&plan, &before, &metrics).map(|parts| (plan, parts));
        let (plan, parts) = on_blocking_thread(build).await?;
        // From here on nothing waits.
        if self.is_stopping() {
            say_ignored();
            return Ok(());
        }

        self.origin.print = origin.print;
        for warning in warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
            warn!(event = "config.warning", "{warning}");
        }
        self.warnings = warnings;
        let changed = plan.changed.join(", ");
        self.apply(plan, parts, routing, shared, drain);
        self.status.send_modify(|status| status.loaded(&self.origin, needs_restart.clone(), unix_time()));
        self.note_loaded();
        self.count("ok");
        info!(
            event = "config.reloaded",
            file = self.status.borrow().file(),
            sha256 = self.status.borrow().sha256(),
            changed,
        );
        if !needs_restart.is_empty() {
            warn!(
                event = "config.needs_restart",
                keys = needs_restart.join(", "),
                "these change with a restart only: the values from the start stay"
            );
        }
        Ok(())
    }

    fn apply(&self, plan: Plan, parts: Parts, routing: &mut Routing, shared: &Shared, drain: &Drain) {
        // What somebody has set by hand stays until the file says something else of it.
        if plan.changes("log.level") {
            telemetry::set_level(plan.config.log.level);
        }
        let Plan { config, routes, .. } = plan;
        shared.set_max_sessions(config.listen.max_sessions);
        routing.follow(parts.routes);
        let rules = routing.rules();
        shared.change(|shared| {
            shared.routes = rules;
            shared.connect_wait = config.listen.connect_wait;
            if let Some(auth) = parts.auth {
                shared.auth = Arc::new(auth);
            }
            if let Some(tls) = parts.tls {
                shared.tls = tls.map(Arc::new);
            }
        });
        // Now that no new session gets there.
        routing.end(&routes.removed, drain);
        log(&routes);
        self.config.send_replace(Arc::new(config));
    }

    fn unchanged(&self) {
        self.status.send_modify(Status::unchanged);
        self.metrics.config_rejected.set(0);
        self.count("unchanged");
        info!(event = "config.unchanged", file = self.status.borrow().file(), "nothing to be done");
    }

    fn reject(&mut self, error: &str, why: Why) {
        let is_news = self.watched.looks.failed(error, Instant::now());
        if !is_news && why == Why::Clock {
            return;
        }
        self.status.send_modify(|status| status.rejected(error, unix_time()));
        self.metrics.config_rejected.set(1);
        self.count("rejected");
        error!(
            event = "config.rejected",
            file = self.status.borrow().file(),
            error,
            "nothing changes: the settings before stay in effect"
        );
    }

    fn note_loaded(&self) {
        self.metrics.config_loaded.set(i64::try_from(unix_time()).unwrap_or(i64::MAX));
        self.metrics.config_rejected.set(0);
    }

    fn count(&self, result: &'static str) {
        self.metrics.config_reloads.get_or_create(&ResultLabels { result }).inc();
    }
}

impl Parts {
    /// Blocks on the files that settings name.
    fn build(plan: &Plan, before: &[Wired], metrics: &Arc<Metrics>) -> Result<Self, AppError> {
        let listen = &plan.config.listen;
        let tls = || listen.tls.as_ref().map(|files| ClientTls::load(files, metrics)).transpose();
        Ok(Self {
            routes: wired::wire(&plan.config.routes, before, metrics)?,
            auth: plan
                .changes("listen.auth")
                .then(|| Auth::load(&listen.auth))
                .transpose()
                .map_err(AppError::AuthFile)?,
            tls: plan.changes("listen.tls").then(tls).transpose().map_err(AppError::ClientTls)?,
        })
    }
}

fn log(Routes { added, changed, removed }: &Routes) {
    let any = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
    for route in added {
        let (database, user) = (any(&route.database), any(&route.user));
        info!(event = "route.added", database, user, upstream = %route.upstream, vault_path = route.vault_path);
    }
    for route in changed {
        let (database, user) = (any(&route.database), any(&route.user));
        info!(
            event = "route.changed",
            database,
            user,
            upstream = %route.upstream,
            vault_path = route.vault_path,
            "sessions that are open go on as they are"
        );
    }
    for route in removed {
        let (database, user) = (any(&route.database), any(&route.user));
        info!(event = "route.removed", database, user, vault_path = route.vault_path, "its sessions end");
    }
}

fn say_ignored() {
    info!(event = "config.reload_ignored", "pglease stops: its settings stay as they are");
}

/// The file that settings come from, if there is one, and the signal to look at it.
pub(super) struct Watched {
    sources: Sources,
    hangup: Signal,
    pub(super) looks: Looks,
}

impl Watched {
    pub(super) fn new(origin: &Origin, hangup: Signal) -> Self {
        Self { sources: origin.sources.clone(), hangup, looks: Looks::new(origin.print.clone()) }
    }

    /// What is to be loaded next, and why. `None`: there is no file, and somebody asked.
    ///
    /// Not cancel safe: that somebody asked would be forgotten.
    pub(super) async fn next(&mut self) -> (Why, Option<Content>) {
        loop {
            let why = tokio::select! {
                _ = self.hangup.recv() => Why::Asked,
                () = time::sleep(self.looks.pause()), if self.sources.path().is_some() => Why::Clock,
            };
            let sources = self.sources.clone();
            // Only a bug would have it end without one.
            let Ok(content) = task::spawn_blocking(move || sources.read()).await else { continue };
            let Some(found) = &content else { return (why, None) };
            if self.looks.wants(found.print(), why, Instant::now()) {
                return (why, content);
            }
        }
    }
}

/// What `load` gives, or all that is wrong in one line. It may block.
pub(super) async fn on_blocking_thread<T: Send + 'static, E: Error + Send + 'static>(
    load: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match task::spawn_blocking(load).await {
        Ok(loaded) => loaded.map_err(|error| Causes(&error).to_string().replace('\n', " | ")),
        Err(fault) => Err(format!("a bug of pglease: {fault}")),
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use clap::Command;
    use tempfile::TempDir;
    use tokio::runtime::Builder;
    use tokio::signal::unix::{SignalKind, signal};

    use super::*;
    use crate::app::chains::Chains;
    use crate::config;
    use crate::vault::Vault;

    fn write(folder: &Path, max_sessions: usize) {
        let token = folder.join("token");
        fs::write(&token, "eyJhbGciOi").unwrap();
        let text = format!(
            "[vault]\naddress = \"http://127.0.0.1:1\"\n[vault.login]\nrole = \"web\"\njwt_file = {token:?}\n\
             [listen]\nmax_sessions = {max_sessions}\n\
             [[route]]\nupstream = \"postgresql://127.0.0.1/app?sslmode=disable\"\nvault_path = \"database/creds/x\"\n"
        );
        fs::write(folder.join("pglease.toml"), text).unwrap();
    }

    /// Has the file changed, and loads it, with a drain that begins while the only thread for disks is busy.
    /// Gives the sessions that are allowed then, and whether the status has another file.
    async fn reloaded(folder: &TempDir, drains: bool) -> (usize, bool) {
        write(folder.path(), 10);
        let file = folder.path().join("pglease.toml");
        let command = Command::new("pglease").args(config::flags());
        let matches = command.get_matches_from(["pglease", "--config-file", file.to_str().unwrap()]);
        let Loaded { config, warnings, origin } = config::load(&matches, []).unwrap();
        let (metrics, drain) = (Arc::new(Metrics::new()), Drain::default());
        let vault = Arc::new(Vault::load(&config.vault, Arc::clone(&metrics)).unwrap());
        let mut routing = Routing::new(Chains::new(vault, Arc::clone(&metrics), Vec::new()), Vec::new());
        let auth = Auth::load(&config.listen.auth).unwrap();
        let (wait, phase) = (Duration::ZERO, drain.subscribe());
        let shared = Shared::new(Vec::new(), auth, Arc::clone(&metrics), phase.clone(), wait, 10);
        let sources = origin.sources.clone();
        let hangup = signal(SignalKind::user_defined2()).unwrap();
        let mut reloader = Reloader::new(origin, config.clone(), warnings, hangup, phase, metrics);

        let sha256 = |reloader: &Reloader| reloader.status().borrow().sha256().map(str::to_owned);
        let before = sha256(&reloader);
        write(folder.path(), 20);
        let (go, gone) = mpsc::channel::<()>();
        let busy = task::spawn_blocking(move || gone.recv());
        let load = reloader.load(sources.read(), &mut routing, &shared, &drain);
        let (loaded, ()) = tokio::join!(biased; load, async {
            if drains {
                drain.begin(config.drain, Instant::now());
            }
            drop(go);
        });
        loaded.unwrap();
        let _ = busy.await;
        let max = reloader.config().borrow().listen.max_sessions;
        (max, sha256(&reloader) != before)
    }

    #[test]
    fn reload_that_a_drain_overtakes_changes_nothing() {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        for drains in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let expected = if drains { (10, false) } else { (20, true) };
            assert_eq!(runtime.block_on(reloaded(&folder, drains)), expected);
        }
    }
}
