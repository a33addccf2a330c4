//! What a crash has left behind, revoked at the next start.

use std::time::Duration;

use tokio::time;
use tracing::{info, warn};

use super::state_dir::{Leftover, StateDir};
use super::{Vault, VaultApi, is_last_word};
use crate::backoff::Backoff;
use crate::telemetry::Causes;

impl Vault {
    /// How long to wait before the first login: a process that crashes again and again is to make few credentials.
    pub(crate) fn pause_before_start(&self) -> Duration {
        self.state_dir.as_ref().map(StateDir::pause).unwrap_or_default()
    }

    /// Notes for the next start that credentials are fetched from now on.
    pub(crate) fn note_start(&self) {
        if let Some(state_dir) = &self.state_dir {
            state_dir.note_start();
        }
    }

    /// Revokes the tokens that earlier processes have left in `vault.state_dir`, and with them their leases. Goes on
    /// with growing pauses while Vault is away, and returns when none is left. May be dropped at any point: what is
    /// left then is left for the next start.
    pub(crate) async fn revoke_leftovers(&self) {
        let Some(state_dir) = &self.state_dir else { return };
        let mut leftovers = state_dir.leftovers();
        if leftovers.is_empty() {
            return;
        }
        info!(
            event = "token.leftovers_found",
            tokens = leftovers.len(),
            "left by a process that did not end by itself"
        );
        let mut backoff = Backoff::default();
        loop {
            let mut kept = Vec::new();
            for leftover in leftovers {
                if self.revoke_leftover(&leftover).await {
                    state_dir.clear(&leftover);
                } else {
                    kept.push(leftover);
                }
            }
            if kept.is_empty() {
                return;
            }
            leftovers = kept;
            time::sleep(backoff.next(MAX_PAUSE, fastrand::f64())).await;
        }
    }

    /// Whether the token is of no more use to anybody.
    async fn revoke_leftover(&self, leftover: &Leftover) -> bool {
        let revoked = self.revoke_self(&leftover.token).await;
        match &revoked {
            Ok(()) => info!(event = "token.leftover_revoked"),
            Err(error) if is_last_word(&revoked) => {
                info!(event = "token.leftover_gone", code = error.status(), error = %Causes(error));
            }
            Err(error) => {
                warn!(event = "token.leftover_not_revoked", code = error.status(), error = %Causes(error), "tried again");
            }
        }
        is_last_word(&revoked)
    }
}

const MAX_PAUSE: Duration = Duration::from_secs(30);
