//! The way at PostgreSQL: each host of each route and file by itself, as sessions reach it and log in; then, from one
//! session on the throw-away credential, what will hurt later; and in the end what became of that session and its role
//! when the credential was revoked.
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
use super::{Name, Target, Who};
use crate::config::{self, UpstreamConfig};
use crate::credential::Credential;

use host::{Host, Logins};
pub(super) use quote::identifier;
pub(super) use watched::Watched;

/// All hosts of all routes and files, each once.
#[derive(Debug)]
pub(super) struct Hosts {
    visits: Vec<Visit>,
}

/// What is looked at for one target, or for several that differ in nothing which matters here.
#[derive(Debug)]
struct Visit {
    target: Target,
    /// In the order of the target.
    hosts: Vec<Host>,
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
    pub(super) async fn reach(targets: Vec<Target>, record: &Recorder) -> Self {
        let mut visits: Vec<Visit> = Vec::new();
        for target in targets {
            if visits.iter().any(|visit| visit.covers(&target)) || is_visited(&visits, &target) {
                continue;
            }
            let mut hosts = Vec::new();
            for host in &target.config.hosts {
                let alone = login::alone(&target.config, host);
                let known = visits.iter().flat_map(|visit| &visit.hosts).find(|known| known.is_as(&alone));
                match known {
                    Some(known) => hosts.push(known.clone()),
                    None => hosts.push(Host::reach(alone, host, record).await),
                }
            }
            visits.push(Visit { target, hosts });
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
        let (mut watched, mut logins) = (Watched::default(), Logins::default());
        for visit in self.visits {
            let Some(own) = credentials.get(visit.target.vault_path.as_str()) else {
                for host in &visit.hosts {
                    record.skip(Name::PostgresLogin, host.name(), "vault.creds gave no credential").await;
                }
                continue;
            };
            let ttl = own.credential.lease.as_ref().and(own.grant.ttl);
            let own = Own { credential: &own.credential, ttl, since };
            if let Some(session) = session::look(&visit, own, &mut logins, max_sessions, record).await {
                watched.add(session);
            }
        }
        watched
    }
}

impl Visit {
    /// Whether all that the target's would show is seen here.
    fn covers(&self, target: &Target) -> bool {
        let Target { config, upstream: _, database, vault_path, who } = &self.target;
        (config, database, vault_path, who)
            == (&target.config, &target.database, &target.vault_path, &target.who)
    }

    fn has(&self, host: &UpstreamConfig) -> bool {
        self.hosts.iter().any(|known| known.is_as(host))
    }
}

/// Whether a reader's hosts have each been visited on its credential: there is nothing else to be seen for it.
fn is_visited(visits: &[Visit], target: &Target) -> bool {
    let is_same = |visit: &&Visit| {
        visit.target.database == target.database && visit.target.vault_path == target.vault_path
    };
    let is_known = |host: &config::Host| {
        let alone = login::alone(&target.config, host);
        visits.iter().filter(is_same).any(|visit| visit.has(&alone))
    };
    target.who == Who::Readers && target.config.hosts.iter().all(is_known)
}

/// For one step of the way to one host.
const STEP: Duration = Duration::from_secs(10);
