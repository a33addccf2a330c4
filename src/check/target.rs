//! Where somebody logs in with a credential: sessions of a route, or who reads a file.

use std::sync::Arc;

use super::postgres::identifier;
use crate::config::{AtLeaseEnd, FileConfig, RouteConfig, UpstreamConfig};
use crate::upstream::Upstream;

/// A PostgreSQL, and who logs in there on which credential.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) config: UpstreamConfig,
    pub(super) upstream: Arc<Upstream>,
    pub(super) database: String,
    pub(super) vault_path: String,
    pub(super) who: Who,
}

/// Whose sessions they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Those of a route.
    Clients { startup_role: Option<String>, at_lease_end: AtLeaseEnd },
    /// Those of programs that read a file, which connect by themselves: pglease does not see them.
    Readers,
}

impl Target {
    pub(super) fn of_route(route: &RouteConfig, upstream: Upstream) -> Self {
        let database = route.upstream.database.as_deref().or(route.database.as_deref());
        Self {
            config: route.upstream.clone(),
            upstream: Arc::new(upstream),
            database: database.unwrap_or(ANY_DATABASE).to_owned(),
            vault_path: route.vault_path.clone(),
            who: Who::Clients { startup_role: route.startup_role.clone(), at_lease_end: route.at_lease_end },
        }
    }

    /// Of a file whose `upstream` this is.
    pub(super) fn of_file(file: &FileConfig, config: &UpstreamConfig, upstream: Upstream) -> Self {
        Self {
            config: config.clone(),
            upstream: Arc::new(upstream),
            database: config.database.as_deref().unwrap_or(ANY_DATABASE).to_owned(),
            vault_path: file.vault_path.clone(),
            who: Who::Readers,
        }
    }

    pub(super) fn startup_role(&self) -> Option<&str> {
        match &self.who {
            Who::Clients { startup_role, .. } => startup_role.as_deref(),
            Who::Readers => None,
        }
    }
}

impl Who {
    /// Where it is said what sessions begin as.
    pub(super) fn place_of_role(&self) -> &'static str {
        match self {
            Self::Clients { .. } => "startup_role on the route",
            Self::Readers => "ALTER ROLE \"{{name}}\" SET role in creation_statements",
        }
    }

    /// What is said there for sessions to begin as `role`.
    pub(super) fn beginning_as(&self, role: &str) -> String {
        match self {
            Self::Clients { .. } => format!("startup_role = \"{role}\" on the route"),
            Self::Readers => {
                let role = identifier(role);
                format!("ALTER ROLE \"{{{{name}}}}\" SET role = {role}; in creation_statements")
            }
        }
    }
}

/// Where nothing names one, as a proof of a credential has it.
pub(super) const ANY_DATABASE: &str = "postgres";
