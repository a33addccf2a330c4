//! The doctor: goes the whole way that the proxy would go, step by step, with a throw-away credential, and says of each
//! step how it went, why it failed and what to do about it.
//!
//! What the steps call is what the proxy calls: `config`, `vault`, `upstream`, `lease`. [`run`] is called by the
//! command; it ends when the walk has ended, was told to stop or has taken too long, and everything that the walk has
//! made at Vault is given back by then, or it says what is left. The walk is one task, which writes its steps to
//! [`run`] as they end.

mod name;
mod fault;
mod report;
mod text;
mod end;
mod throwaway;
mod certificate;
mod resolver;
mod target;
mod config;
mod pod;
mod vault;
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

pub(crate) use report::{Report, Step};
pub(crate) use text::{SCHEMA, json, line, summary};

use fault::Fault;
use name::Name;
use report::{Found, Recorder};
use target::{ANY_DATABASE, Target, Who};
use throwaway::Throwaway;

use crate::config::{Config, ConfigErrors, Loaded};
use crate::vault::Vault;

use self::config::Parts;
use self::vault::Way;

/// How far to go, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The settings alone.
    pub(crate) offline: bool,
    /// For all steps but the last, which gives back what was made.
    pub(crate) limit: Duration,
}

/// Does all steps, and tells each as it ends. `stop` resolves, with its reason, when somebody wants an end.
pub(crate) async fn run(
    loaded: Result<Loaded, ConfigErrors>,
    asked: Asked,
    stop: impl Future<Output = &'static str>,
    tell: impl FnMut(&Step),
) -> Report {
    let begins_at = Instant::now();
    let mut told = Told { steps: Vec::new(), tell };
    let ((record, mut written), mut parts) = (Recorder::new(), None);
    told.all_while(&mut written, async { parts = config::check(loaded, asked.offline, &record).await }).await;
    if let Some(Parts { config, vault, targets }) = parts.filter(|_| !asked.offline) {
        let throwaway = Arc::new(Throwaway::new(Arc::clone(&vault)));
        let mut walking = JoinSet::new();
        let walk = Walk { config, vault, targets, throwaway: Arc::clone(&throwaway), record: record.clone() };
        walking.spawn(Box::pin(walk.go()));
        let mut broken_off = None;
        told.all_while(&mut written, async { broken_off = end_of(&mut walking, stop, asked.limit).await })
            .await;
        told.all_while(&mut written, walking.shutdown()).await;
        if let Some(reason) = broken_off {
            let is_told = told.steps.iter().any(|step| step.name == Name::VaultRevoke);
            let ending = Box::pin(end_early(&throwaway, &record, reason, is_told));
            told.all_while(&mut written, ending).await;
        }
    }
    Report { steps: told.steps, took: begins_at.elapsed() }
}

/// Why the walk was not gone to its end, if so.
async fn end_of(
    walking: &mut JoinSet<()>,
    stop: impl Future<Output = &'static str>,
    limit: Duration,
) -> Option<String> {
    tokio::select! {
        biased;
        ended = walking.join_next() => match ended {
            Some(Err(fault)) if fault.is_panic() => Some("a bug of pglease ended the check".to_owned()),
            _ => None,
        },
        signal = stop => Some(format!("stopped by {signal}")),
        () = time::sleep(limit) => Some(format!("not done within {}", humantime::format_duration(limit))),
    }
}

/// Says why the walk was not gone to its end, and gives back what it has made, where it has not told of that itself.
async fn end_early(throwaway: &Throwaway, record: &Recorder, reason: String, is_told: bool) {
    let (cause, cure) = ("the steps behind the last one were not done", "run it again; --max sets the limit");
    record
        .write(Name::CheckEnd, "", Duration::ZERO, Found::<()>::fault(Fault::Unfinished, reason, cause, cure))
        .await;
    if !is_told {
        vault::give_back(throwaway, record).await;
    }
}

/// The steps that have ended, and who is told of each.
struct Told<F> {
    steps: Vec<Step>,
    tell: F,
}

impl<F: FnMut(&Step)> Told<F> {
    /// Tells what is written until `work` has ended, and what it has left.
    async fn all_while(&mut self, written: &mut mpsc::Receiver<Step>, work: impl Future<Output = ()>) {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                Some(step) = written.recv() => self.take(step),
                () = &mut work => break,
            }
        }
        while let Ok(step) = written.try_recv() {
            self.take(step);
        }
    }

    fn take(&mut self, step: Step) {
        (self.tell)(&step);
        self.steps.push(step);
    }
}

/// The way behind the settings.
struct Walk {
    config: Config,
    vault: Arc<Vault>,
    targets: Vec<Target>,
    throwaway: Arc<Throwaway>,
    record: Recorder,
}

impl Walk {
    async fn go(self) {
        let Self { config, vault, targets, throwaway, record } = self;
        pod::check(&config, &record).await;
        let of_files = config.files.iter().map(|file| file.vault_path.as_str());
        let of_routes = config.routes.iter().map(|route| route.vault_path.as_str());
        let paths: BTreeSet<&str> = of_routes.chain(of_files).collect();
        let vault_paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let mut way = Way::new(vault, config.vault, vault_paths, record.clone());
        let is_reached = way.reach().await;
        let hosts = postgres::Hosts::reach(targets, &record).await;
        let login = if is_reached { way.log_in(&throwaway).await } else { None };
        let mut credentials = BTreeMap::new();
        for path in paths {
            let Some(login) = &login else {
                record.skip(Name::VaultCreds, path, "there is no login").await;
                continue;
            };
            if let Some(own) = way.read_creds(&throwaway, login, path).await {
                credentials.insert(path, own);
            }
        }
        let watched = hosts.look(&credentials, config.listen.max_sessions, &record).await;
        if let Some(login) = &login {
            let credentials: Vec<_> = credentials.iter().map(|(path, own)| (*path, own)).collect();
            way.look_ahead(&throwaway, login, &credentials).await;
        }
        let given = vault::give_back(&throwaway, &record).await;
        watched.after_revocation(given, &config.files, &record).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    async fn ended(
        walk: impl Future<Output = ()> + Send + 'static,
        stop: impl Future<Output = &'static str>,
    ) -> Option<String> {
        let mut walking = JoinSet::new();
        walking.spawn(walk);
        end_of(&mut walking, stop, Duration::from_secs(90)).await
    }

    #[tokio::test(start_paused = true)]
    async fn walk_ends_by_itself_by_a_signal_at_the_limit_or_in_a_panic() {
        assert_eq!(ended(ready(()), pending()).await, None);
        assert_eq!(ended(pending(), ready("SIGTERM")).await.unwrap(), "stopped by SIGTERM");
        assert_eq!(ended(pending(), pending()).await.unwrap(), "not done within 1m 30s");
        let bug = async { panic!("as a step may") };
        assert_eq!(ended(bug, pending()).await.unwrap(), "a bug of pglease ended the check");
    }
}
