//! Whether leases that came to their end are gone: Vault says of a revocation that it has begun. Where that fails, as
//! a role that owns something cannot be dropped, Vault tries again in silence for some minutes and gives up. What tells
//! is the lease, which Vault knows until its revocation is done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time;
use tracing::warn;

use super::requests::Report;
use super::{Chain, Prove};
use crate::ids::{GenerationId, LeaseId};
use crate::vault::{Grant, VaultApi, VaultError};

/// A lease that nothing is done for any more.
#[derive(Clone, Debug)]
pub(super) struct Retired {
    generation: GenerationId,
    db_role: String,
    lease: LeaseId,
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Has the lease of `id` looked for when its revocation should be done.
    pub(super) fn watch_revocation(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get(&id) else { return };
        let (db_role, lease) = (generation.user().to_owned(), generation.lease().clone());
        let retired = Retired { generation: id, db_role, lease };
        self.tasks.spawn(async move {
            time::sleep(MAX_REVOCATION).await;
            Report::RevocationDue(retired)
        });
    }

    /// Asks under the token that serves by now, if it may.
    pub(super) fn look_for(&mut self, retired: Retired) {
        let Some(current) = self.current().filter(|current| current.token.lookup_works() != Some(false))
        else {
            return;
        };
        let (vault, token) = (Arc::clone(&self.vault), Arc::clone(&current.token));
        let request = current.token.run(async move {
            let result = vault.look_up_lease(token.token(), &retired.lease).await;
            Report::LookedFor { retired, result }
        });
        self.tasks.spawn(async move { request.await.unwrap_or(Report::Aborted) });
    }

    /// Any answer but a lease says nothing, or that it is gone.
    pub(super) fn on_looked_for(&self, retired: &Retired, result: &Result<Grant, VaultError>) {
        if result.is_err() {
            return;
        }
        self.metrics.revocations_blocked.inc();
        let Retired { generation, db_role, lease } = retired;
        warn!(
            event = "lease.revocation_blocked",
            vault_path = %self.vault_path,
            %generation,
            db_role,
            %lease,
            "Vault has not ended it yet: the role may own something, or its table be locked; Vault's log has the reason",
        );
    }
}

/// A revocation that takes longer is blocked, or has failed at least once.
const MAX_REVOCATION: Duration = Duration::from_secs(10);
