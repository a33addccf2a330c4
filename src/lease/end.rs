//! The end of a chain: every token is revoked, and with it every lease.

use std::time::Duration;

use tokio::time::{self, Instant};
use tracing::info;

use super::chain::ChainEvent;
use super::control::Asked;
use super::generation::Generation;
use super::state::{LeaseEvent, LeaseState};
use super::{Chain, Prove, gauges, token};
use crate::vault::{Operation, VaultApi, VaultError};

/// What became of what was alive at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainEnd {
    /// Tokens whose revocation Vault accepted.
    pub(crate) revoked: usize,
    /// Tokens that are left to end by themselves, with their leases.
    pub(crate) failed: usize,
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Revokes all generations side by side, each after the requests under it: a lease whose creds read is not over
    /// would outlive its token. Takes [`MAX_END`] at most.
    pub(super) async fn end(mut self) -> ChainEnd {
        let began = Instant::now();
        // Nobody is answered any more, and is told so at once.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        self.asked = Asked::default();
        self.feed(ChainEvent::Stopped);
        self.learning.stop();
        self.revoke_all();

        let mut end = ChainEnd::default();
        while self.is_revoking() || self.is_logging_in() || self.fetch.strays > 0 {
            // A login that is not answered has made no lease; a creds read may have.
            let limit = if self.is_revoking() { MAX_END } else { token::MAX_WAIT };
            match time::timeout_at(began + limit, self.tasks.join_next()).await {
                Ok(Some(Ok(report))) => {
                    if let Some(result) = report.revocation() {
                        *(if result.is_ok() { &mut end.revoked } else { &mut end.failed }) += 1;
                    }
                    self.on_report(report);
                }
                Ok(Some(Err(fault))) => self.on_fault(&fault),
                Ok(None) | Err(_) => break,
            }
        }
        end.failed += self.revoking + usize::from(self.learning.is_under_way());
        self.give_up_revocations();
        gauges::forget(&self.metrics, &self.vault_path);
        info!(event = "lease.chain_ended", vault_path = %self.vault_path, revoked = end.revoked, failed = end.failed);
        end
    }

    /// A throw-away's token is revoked by the task that has it.
    fn is_revoking(&self) -> bool {
        self.revoking > 0 || self.learning.is_under_way()
    }

    fn revoke_all(&mut self) {
        let now = self.now();
        let lives = |generation: &Generation| generation.keeper.has_living_token(now);
        for generation in self.generations.values_mut().filter(|generation| lives(generation)) {
            generation.apply(LeaseEvent::Stopped);
        }
        for id in self.generations.keys().copied().collect::<Vec<_>>() {
            self.revoke_due(id);
        }
    }

    /// What was not answered in time counts as failed.
    fn give_up_revocations(&mut self) {
        self.forget_throw_away(None);
        let is_left = |generation: &&Generation| generation.state() == LeaseState::Revoking;
        for id in self.generations.values().filter(is_left).map(Generation::id).collect::<Vec<_>>() {
            self.on_lease_revoked(
                id,
                Err(&VaultError::NoAnswer { operation: Operation::RevokeSelf, source: None }),
            );
        }
    }
}

/// All waits and tries of the end together.
pub(super) const MAX_END: Duration = Duration::from_secs(5);
