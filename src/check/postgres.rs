//! The way at PostgreSQL: each host of each route by itself, as sessions reach it and log in; then, from one session on
//! the throw-away credential, what will hurt later; and in the end what became of that session and its role when the
//! credential was revoked.
//!
//! The shell: what is asked, and in which order. What the answers mean is judged by the modules below, which are pure
//! but for their SQL.

mod ask;
mod quote;
mod naming;
mod trouble;
mod certificate;
mod login;
mod clock;
mod role;
mod ownership;
mod room;
mod remains;
mod revocation;
mod host;
mod session;
mod watched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::report::Recorder;
use super::throwaway::OwnCredential;
use super::{Name, Target};
use crate::config::RouteConfig;
use crate::credential::Credential;
use crate::upstream::Upstream;

use host::Host;
pub(super) use watched::Watched;

/// All hosts of all routes, each once.
#[derive(Debug)]
pub(super) struct Hosts {
    visits: Vec<Visit>,
}

/// What is looked at for one route, or for several that differ in nothing which matters here.
#[derive(Debug)]
struct Visit {
    route: RouteConfig,
    upstream: Arc<Upstream>,
    /// In the order of the route.
    hosts: Vec<Host>,
    database: String,
}

/// A visit's credential.
#[derive(Clone, Copy, Debug)]
struct Own<'a> {
    credential: &'a Arc<Credential>,
    /// Of its lease; `None`: it has none, or one without end.
    ttl: Option<Duration>,
    /// Not before it was read.
    since: Instant,
}

impl Hosts {
    /// Looks hosts up, connects to each, and begins TLS.
    pub(super) async fn reach(targets: &[Target], record: &Recorder) -> Self {
        let mut visits: Vec<Visit> = Vec::new();
        for Target { route, upstream } in targets {
            let database = route.upstream.database.as_deref().or(route.database.as_deref());
            let database = database.unwrap_or(ANY_DATABASE).to_owned();
            let is_known = |visit: &Visit| visit.is_for(route, &database);
            if visits.iter().any(is_known) {
                continue;
            }
            let mut hosts = Vec::new();
            for host in &route.upstream.hosts {
                let alone = login::alone(&route.upstream, host);
                let known = visits.iter().flat_map(|visit| &visit.hosts).find(|known| known.is_as(&alone));
                match known {
                    Some(known) => hosts.push(known.clone()),
                    None => hosts.push(Host::reach(alone, host, record).await),
                }
            }
            visits.push(Visit { route: route.clone(), upstream: Arc::clone(upstream), hosts, database });
        }
        Self { visits }
    }

    /// Logs in everywhere, and looks around.
    pub(super) async fn look(
        self,
        credentials: &BTreeMap<&str, OwnCredential>,
        max_sessions: usize,
        record: &Recorder,
    ) -> Watched {
        let since = Instant::now();
        let mut watched = Watched::default();
        for visit in self.visits {
            let Some(own) = credentials.get(visit.route.vault_path.as_str()) else {
                for host in &visit.hosts {
                    record.skip(Name::PostgresLogin, host.name(), "vault.creds gave no credential").await;
                }
                continue;
            };
            let ttl = own.credential.lease.as_ref().and(own.grant.ttl);
            let own = Own { credential: &own.credential, ttl, since };
            if let Some(session) = session::look(&visit, own, max_sessions, record).await {
                watched.add(session);
            }
        }
        watched
    }
}

impl Visit {
    fn is_for(&self, route: &RouteConfig, database: &str) -> bool {
        let RouteConfig { upstream, vault_path, startup_role, at_lease_end, .. } = &self.route;
        let same = (upstream, vault_path, startup_role, at_lease_end);
        self.database == database
            && same == (&route.upstream, &route.vault_path, &route.startup_role, &route.at_lease_end)
    }
}

/// Where neither route nor upstream names one, as a proof of a credential has it.
const ANY_DATABASE: &str = "postgres";

/// For one step of the way to one host.
const STEP: Duration = Duration::from_secs(10);
