//! What `/status` says: docs/status.md. Nothing secret, and nothing that a client chose.

use serde::Serialize;

use super::{Admin, ask_all};
use crate::config::{AtLeaseEnd, RouteConfig};
use crate::lease::{ChainHandle, ChainStatus, NoAnswer};

/// The process.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    /// `serving`, `draining` or `cut`.
    phase: &'static str,
    chains: Vec<ChainStatus>,
    routes: Vec<RouteStatus>,
}

/// One route, in the order in which they are tried.
#[derive(Debug, Serialize)]
struct RouteStatus {
    /// `*` is any.
    database: String,
    user: String,
    upstream: String,
    /// Names the chain.
    vault_path: String,
    startup_role: Option<String>,
    at_lease_end: &'static str,
    optional: bool,
}

impl Status {
    pub(super) async fn of(admin: &Admin) -> Self {
        let phase = admin.phase.borrow().as_str();
        let chains = ask_all(&admin.chains, |chain| async move {
            let status = chain.status().await;
            status.unwrap_or_else(|silence| silent(&chain, silence))
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            phase,
            chains: chains.await,
            routes: admin.routes.iter().map(RouteStatus::of).collect(),
        }
    }
}

/// A chain that says nothing of itself.
fn silent(chain: &ChainHandle, silence: NoAnswer) -> ChainStatus {
    let state = match silence {
        NoAnswer::Ended => "ended",
        NoAnswer::NotYet => "silent",
    };
    ChainStatus::empty(chain, state)
}

impl RouteStatus {
    fn of(route: &RouteConfig) -> Self {
        let any = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
        Self {
            database: any(&route.database),
            user: any(&route.user),
            upstream: route.upstream.to_string(),
            vault_path: route.vault_path.clone(),
            startup_role: route.startup_role.clone(),
            at_lease_end: match route.at_lease_end {
                AtLeaseEnd::Auto => "auto",
                AtLeaseEnd::Leave => "leave",
                AtLeaseEnd::Close => "close",
            },
            optional: route.optional,
        }
    }
}
