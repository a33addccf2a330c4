//! The end of single generations: rotated out, come to the end of lease or token, revoked.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::chain::ChainEvent;
use super::clock::Now;
use super::generation::Generation;
use super::requests::{Report, Revoked};
use super::state::{LeaseEvent, LeaseState};
use super::token::{LiveToken, Requests};
use super::{Causes, Chain, Prove, count};
use crate::credential::Revocation;
use crate::ids::{GenerationId, LeaseId};
use crate::vault::{VaultApi, VaultError};

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Takes note of leases and tokens that came to their end.
    pub(super) fn end_the_expired(&mut self, now: Now) {
        let over = self.generations.values().filter(|generation| {
            // PostgreSQL lets the current one in for a while longer: Vault puts VALID UNTIL 5 s after its end.
            let grace = if generation.is_current() { MAX_SERVED_PAST_END } else { Duration::ZERO };
            let serves = generation.is_current() || generation.is_superseded();
            serves && generation.keeper.is_over(now, grace)
        });
        let over: Vec<_> = over.map(Generation::id).collect();
        for id in over {
            self.expire(id, Ending::Due, now);
        }
    }

    /// Ends a generation whose lease or token is gone.
    pub(super) fn expire(&mut self, id: GenerationId, ending: Ending, now: Now) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let was_current = generation.is_current();
        generation.count_holds();
        let outlived_sessions = generation.sessions();
        if generation.state() == LeaseState::Revoking {
            // Its last session went just now: the report of it is under way.
            return;
        }
        generation.end_proof();
        generation.keeper.stop_renewing();
        generation.apply(LeaseEvent::Expired);
        match ending {
            Ending::Due => info!(
                event = "lease.ended",
                vault_path = %self.vault_path,
                generation = %id,
                db_role = generation.user(),
                lease = %generation.lease(),
                outlived_sessions,
            ),
            Ending::Revoked => {
                generation.announce_revocation(Revocation::ByVault);
                warn!(
                    event = "lease.revoked_early",
                    vault_path = %self.vault_path,
                    generation = %id,
                    db_role = generation.user(),
                    lease = %generation.lease(),
                    sessions = outlived_sessions,
                    "its sessions end",
                );
            }
        }
        // The lease is gone, its token may not be.
        let token = generation.keeper.has_living_token(now).then(|| Arc::clone(&generation.token));
        if was_current {
            self.feed(match ending {
                Ending::Due => ChainEvent::Expired,
                Ending::Revoked => ChainEvent::Revoked,
            });
            self.watch_release(id);
        }
        if let Some(token) = token {
            self.release(token, Revoked::Nothing);
        }
        if ending == Ending::Due {
            self.watch_revocation(id);
        }
        self.forget_done();
    }

    /// Rotates `id` out: it is kept for the sessions that hold it, or revoked at once.
    pub(super) fn supersede(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.end_proof();
        generation.count_holds();
        generation.apply(LeaseEvent::Rotated);
        if generation.is_superseded() {
            self.watch_release(id);
            self.limit_superseded();
        }
        self.revoke_due(id);
    }

    /// Above [`MAX_SUPERSEDED`] the oldest are renewed no more.
    fn limit_superseded(&mut self) {
        let superseded = self.generations.values_mut().filter(|generation| generation.is_superseded());
        let mut kept: Vec<_> = superseded.collect();
        let excess = kept.len().saturating_sub(MAX_SUPERSEDED);
        for generation in kept.iter_mut().take(excess) {
            generation.keeper.stop_renewing();
        }
    }

    fn watch_release(&mut self, id: GenerationId) {
        if let Some(generation) = self.generations.get(&id) {
            let released = generation.released();
            self.tasks.spawn(async move {
                released.await;
                Report::Released(id)
            });
        }
    }

    pub(super) fn on_released(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.count_holds();
        self.revoke_due(id);
        self.forget_done();
    }

    /// Begins the revocation of `id`, where it is due: with its token, if nobody else needs that and it may be revoked.
    pub(super) fn revoke_due(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        if !generation.take_due_revocation() {
            return;
        }
        let (token, lease) = (Arc::clone(&generation.token), generation.lease().clone());
        let about = Arc::clone(&generation.requests);
        if token.can_be_revoked() && !self.is_in_use(&token) {
            // Those that come to it later are ended by this one.
            for other in self.generations.values_mut().filter(|other| other.is_under(&token)) {
                other.take_due_revocation();
            }
            self.revoke(Arc::clone(&token), Revoked::Token(token));
        } else {
            self.expire_lease(token, lease, about, Revoked::Lease(id));
        }
    }

    /// Ends a lease, and leaves its token to others.
    pub(super) fn expire_lease(
        &mut self,
        token: Arc<LiveToken>,
        lease: LeaseId,
        about: Arc<Requests>,
        with: Revoked,
    ) {
        let vault = Arc::clone(&self.vault);
        self.revoking += 1;
        self.tasks.spawn(async move {
            let result = token.expire(&*vault, &lease, &about).await;
            Report::Revoked { with, result }
        });
    }

    /// Lets go of a token that something went on with. The last one to do so revokes it.
    pub(super) fn release(&mut self, token: Arc<LiveToken>, with: Revoked) {
        if token.can_be_revoked() && !self.is_in_use(&token) {
            self.revoke(token, with);
        }
    }

    /// Whether something goes on with this token.
    fn is_in_use(&self, token: &Arc<LiveToken>) -> bool {
        self.fetch.uses(token) || self.generations.values().any(|generation| generation.uses(token))
    }

    /// Revokes a token, and what ends with it.
    fn revoke(&mut self, token: Arc<LiveToken>, with: Revoked) {
        let vault = Arc::clone(&self.vault);
        self.revoking += 1;
        self.tasks.spawn(async move {
            let result = token.revoke(&*vault).await;
            Report::Revoked { with, result }
        });
    }

    pub(super) fn on_revoked(&mut self, with: Revoked, result: Result<(), VaultError>) {
        self.revoking = self.revoking.saturating_sub(1);
        match with {
            Revoked::Lease(id) => self.on_lease_revoked(id, result.as_ref().copied()),
            Revoked::Token(token) => {
                let is_ended = |generation: &&Generation| {
                    generation.is_under(&token) && generation.state() == LeaseState::Revoking
                };
                let ended = self.generations.values().filter(is_ended).map(Generation::id);
                for id in ended.collect::<Vec<_>>() {
                    self.on_lease_revoked(id, result.as_ref().copied());
                }
            }
            Revoked::Draft | Revoked::Nothing => {
                let Err(error) = result else { return };
                if matches!(with, Revoked::Draft) {
                    self.metrics.orphans.inc();
                }
                warn!(
                    event = "token.orphaned",
                    vault_path = %self.vault_path,
                    code = error.status(),
                    error = %Causes(&error),
                    "not revoked: it ends by itself",
                );
            }
        }
    }

    pub(super) fn on_lease_revoked(&mut self, id: GenerationId, result: Result<(), &VaultError>) {
        if let Err(error) = result {
            self.note_vault_error(error);
            self.note_orphan(id);
        }
        if result.is_ok() {
            self.watch_revocation(id);
        }
        let Some(generation) = self.generations.get_mut(&id) else { return };
        count(&self.metrics.lease_revocations, result.is_ok());
        match result {
            Ok(()) => info!(
                event = "lease.revoked",
                vault_path = %self.vault_path,
                generation = %id,
                db_role = generation.user(),
                lease = %generation.lease(),
            ),
            Err(error) => {
                self.metrics.orphans.inc();
                warn!(
                    event = "lease.orphaned",
                    vault_path = %self.vault_path,
                    generation = %id,
                    db_role = generation.user(),
                    lease = %generation.lease(),
                    code = error.status(),
                    error = %Causes(error),
                    "not revoked: it ends by itself",
                );
            }
        }
        generation.apply(LeaseEvent::Revoked);
        self.forget_done();
    }

    fn forget_done(&mut self) {
        self.generations.retain(|_, generation| !generation.is_done());
    }
}

/// How a lease came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// As was to be expected.
    Due,
    /// By somebody's hand, before its time.
    Revoked,
}

/// Generations that are rotated out and kept alive.
const MAX_SUPERSEDED: usize = 8;

/// How long the current credential is offered past its end.
const MAX_SERVED_PAST_END: Duration = Duration::from_secs(5);
