//! Routes as sessions find them, with the chains behind them: what a reload changes of both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::chains::Chains;
use super::wired::Wired;
use crate::config::RouteConfig;
use crate::credential::{CredentialSource, LeaseEnd};
use crate::drain::Drain;
use crate::session::route::{Removal, Route};
use crate::session::warm::Warm;

/// The routes in effect.
pub(super) struct Routing {
    chains: Chains,
    routes: Vec<Wired>,
    /// Of each of them, where it has sessions that are logged in ahead.
    warm: Vec<Option<Arc<Warm>>>,
    /// By database and user. Sessions of a route that has changed are still its sessions, and so are those of one that
    /// was removed, for as long as they are there.
    ends: BTreeMap<Asked, Removal>,
    awaited: watch::Sender<Vec<CredentialSource>>,
}

/// What a client asks for, `None` being any.
type Asked = (Option<String>, Option<String>);

impl Routing {
    /// These, each with its chain.
    pub(super) fn new(chains: Chains, routes: Vec<Wired>) -> Self {
        let (ends, awaited) = (BTreeMap::new(), watch::Sender::default());
        let mut routing = Self { chains, routes: Vec::new(), warm: Vec::new(), ends, awaited };
        routing.follow(routes);
        routing
    }

    pub(super) fn chains(&self) -> &Chains {
        &self.chains
    }

    pub(super) fn routes(&self) -> &[Wired] {
        &self.routes
    }

    /// What `/startup` and `/readyz` wait for: the credentials of the routes that are not optional.
    pub(super) fn awaited(&self) -> watch::Receiver<Vec<CredentialSource>> {
        self.awaited.subscribe()
    }

    /// Goes over to these. A route that is back before its sessions have ended keeps them.
    pub(super) fn follow(&mut self, routes: Vec<Wired>) {
        self.chains.follow(&routes);
        let required = routes.iter().filter(|route| !route.config.optional);
        let required = required.map(|route| route.config.vault_path.as_str());
        let awaited = required.chain(self.chains.required()).filter_map(|path| self.chains.source(path));
        self.awaited.send_replace(awaited.collect());
        self.warm = routes.iter().map(|route| self.warm(route)).collect();
        self.routes = routes;
        self.ends.retain(|_, end| Arc::strong_count(end) > 1);
        for route in &self.routes {
            self.ends.entry(asked(&route.config)).or_default().send_if_modified(|end| end.take().is_some());
        }
    }

    /// The sessions that a route has ready, which end where anything of it changes.
    fn warm(&self, route: &Wired) -> Option<Arc<Warm>> {
        let is_same =
            |before: &Wired| before.config == route.config && Arc::ptr_eq(&before.upstream, &route.upstream);
        let mut before = self.routes.iter().zip(&self.warm);
        let kept = before.find(|(before, _)| is_same(before)).and_then(|(_, warm)| warm.clone());
        kept.or_else(|| Warm::new(&route.config, Arc::clone(self.chains.metrics())).map(Arc::new))
    }

    /// As sessions find them.
    pub(super) fn rules(&self) -> Vec<Route> {
        let rule = |(route, warm): (&Wired, &Option<Arc<Warm>>)| {
            Some(Route {
                config: RouteConfig::clone(&route.config),
                upstream: Arc::clone(&route.upstream),
                source: self.chains.source(&route.config.vault_path)?,
                removed: Arc::clone(self.ends.get(&asked(&route.config))?),
                warm: warm.clone(),
            })
        };
        self.routes.iter().zip(&self.warm).filter_map(rule).collect()
    }

    /// Has the sessions of these routes end as at the end of a lease that nobody presses: the idle ones soon, those in
    /// a transaction then, and a statement has its time.
    pub(super) fn end(&self, removed: &[RouteConfig], drain: &Drain) {
        let now = Instant::now();
        let end = LeaseEnd {
            idle_from: now,
            boundary_from: now + IDLE_END,
            cut_at: now + MAX_STATEMENT,
            harmless: false,
        };
        for route in removed.iter().filter_map(|route| self.ends.get(&asked(route))) {
            route.send_replace(Some(end));
        }
        drain.remind();
    }
}

fn asked(route: &RouteConfig) -> Asked {
    (route.database.clone(), route.user.clone())
}

/// The idle sessions of a route that was removed end within this, spread over it.
const IDLE_END: Duration = Duration::from_secs(10);
/// A statement may run on for so long.
const MAX_STATEMENT: Duration = Duration::from_mins(10);
