//! Routes with the upstreams that they lead to.

use std::sync::Arc;

use super::AppError;
use crate::config::{AtLeaseEnd, RouteConfig};
use crate::telemetry::Metrics;
use crate::upstream::{Probe, Upstream};

/// A route of the settings and what is made of its upstream's. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Wired {
    pub(super) config: Arc<RouteConfig>,
    pub(super) upstream: Arc<Upstream>,
}

impl Wired {
    /// The database that a credential is tried in.
    pub(super) fn database(&self) -> &str {
        let database = self.config.upstream.database.as_deref().or(self.config.database.as_deref());
        database.unwrap_or("postgres")
    }

    pub(super) fn probe(&self) -> Probe {
        Probe::new(Arc::clone(&self.upstream), self.database())
    }

    /// Whether what becomes of its sessions depends on what a revocation does.
    pub(super) fn depends_on_revocation(&self) -> bool {
        self.config.at_lease_end == AtLeaseEnd::Auto && self.config.startup_role.is_none()
    }
}

/// Each route with its upstream, which is that of `before` where it is the same. Blocks on the files of the others.
pub(super) fn wire(
    routes: &[RouteConfig],
    before: &[Wired],
    metrics: &Arc<Metrics>,
) -> Result<Vec<Wired>, AppError> {
    let wire = |route: &RouteConfig| {
        let same = before.iter().find(|wired| wired.config.upstream == route.upstream);
        let upstream = match same {
            Some(wired) => Arc::clone(&wired.upstream),
            None => Arc::new(load(route)?.counting(metrics)),
        };
        Ok(Wired { config: Arc::new(route.clone()), upstream })
    };
    routes.iter().map(wire).collect()
}

fn load(route: &RouteConfig) -> Result<Upstream, AppError> {
    Upstream::load(&route.upstream)
        .map_err(|source| AppError::Upstream { vault_path: route.vault_path.clone(), source })
}
