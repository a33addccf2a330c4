//! The upkeep of the generations that are there: renewal, the end of those that are rotated out, and what their
//! sessions are told.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::chain::ChainEvent;
use super::check::Haste;
use super::clock::Now;
use super::generation::Generation;
use super::keeper::{Kind, Renewal};
use super::requests::{Report, Revoked};
use super::state::{LeaseEvent, LeaseState};
use super::token::LiveToken;
use super::{Causes, Chain, Prove, count, schedule, whole_seconds};
use crate::ids::GenerationId;
use crate::telemetry::{ChainLabels, GenerationLabels};
use crate::vault::{Grant, VaultApi, VaultError};

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Asks for the renewals that are due.
    pub(super) fn renew_due(&mut self, now: Now) {
        let mut of_current = false;
        for generation in self.generations.values_mut().filter(|generation| generation.state().is_kept()) {
            for kind in generation.keeper.take_due(now) {
                of_current |= generation.is_current();
                let (vault, token) = (Arc::clone(&self.vault), Arc::clone(&generation.token));
                let (id, lease) = (generation.id(), generation.lease().clone());
                let timeout = schedule::renewal_timeout(generation.keeper.left(now));
                let request = generation.token.run(async move {
                    let result = match kind {
                        Kind::Lease => vault.renew_lease(token.token(), &lease, timeout).await,
                        Kind::Token => vault.renew_self(token.token(), timeout).await,
                    };
                    Report::Renewed { generation: id, kind, asked_at: now, result }
                });
                self.tasks.spawn(async move { request.await.unwrap_or(Report::Aborted) });
            }
        }
        if of_current {
            self.feed(ChainEvent::RenewalAsked);
        }
    }

    /// Tries to save the current credential before a successor is fetched.
    pub(super) fn renew_before_attempt(&mut self) {
        let now = self.now();
        if self.current_mut().is_some_and(|current| current.keeper.hurry(now)) {
            self.renew_due(now);
        } else {
            self.feed(ChainEvent::RenewalFailed);
        }
    }

    pub(super) fn on_renewed(
        &mut self,
        id: GenerationId,
        kind: Kind,
        asked_at: Now,
        result: &Result<Grant, VaultError>,
    ) {
        if kind == Kind::Lease {
            count(&self.metrics.lease_renewals, result.is_ok());
        }
        let now = self.now();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let answer = result.as_ref().copied().map_err(VaultError::answer);
        let renewal = generation.keeper.answered(kind, asked_at, now, answer, fastrand::f64());
        log_renewal(&self.vault_path, generation, kind, renewal, now, result.as_ref().err());

        if generation.keeper.is_doubtful(kind) {
            generation.raise_check(Haste::Refused, now);
        }
        if !generation.is_current() {
            return;
        }
        let keeper = &generation.keeper;
        if keeper.is_unwell() {
            self.feed(ChainEvent::RenewalFailed);
        } else if !keeper.is_asked() && keeper.wants_rotation(now).is_none() {
            self.feed(ChainEvent::Renewed);
        }
    }

    /// Rotates where the current credential asks for it.
    pub(super) fn rotate_due(&mut self, now: Now) {
        let trigger = self.current().and_then(|current| current.keeper.wants_rotation(now));
        if let Some(trigger) = trigger {
            self.feed(ChainEvent::RotationDue(trigger));
        }
    }

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
        let outlived_sessions = generation.count_holds();
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
                generation.announce_revocation();
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
            self.revoke(token, Revoked::Nothing);
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

    /// Begins the revocation of `id`, where it is due.
    pub(super) fn revoke_due(&mut self, id: GenerationId) {
        if let Some(token) = self.generations.get_mut(&id).and_then(Generation::take_due_revocation) {
            self.revoke(token, Revoked::Lease(id));
        }
    }

    /// Revokes a token, and what ends with it.
    pub(super) fn revoke(&mut self, token: Arc<LiveToken>, with: Revoked) {
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
            Revoked::Lease(id) => self.on_lease_revoked(id, result),
            Revoked::Draft | Revoked::Nothing => {
                let Err(error) = result else { return };
                if with == Revoked::Draft {
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

    pub(super) fn on_lease_revoked(&mut self, id: GenerationId, result: Result<(), VaultError>) {
        count(&self.metrics.lease_revocations, result.is_ok());
        let Some(generation) = self.generations.get_mut(&id) else { return };
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
                    error = %Causes(&error),
                    "not revoked: it ends by itself",
                );
            }
        }
        generation.apply(LeaseEvent::Revoked);
        self.forget_done();
    }

    /// Tells the sessions of generations that are rotated out how they stand.
    pub(super) fn announce_ends(&mut self, now: Now) {
        // One that was rejected after its proof is none.
        let is_accepted = self.current().is_some_and(Generation::is_accepted);
        let has_successor = is_accepted && !self.state.phase().is_unserved();
        for generation in self.generations.values_mut() {
            generation.announce(now, has_successor);
        }
    }

    /// Brings the figures up to date.
    pub(super) fn update_gauges(&mut self) {
        let (mut current, mut superseded, mut outlived) = (0, 0, 0);
        for generation in self.generations.values_mut() {
            let holds = generation.count_holds();
            *(if generation.is_current() { &mut current } else { &mut superseded }) += holds;
            if matches!(generation.state(), LeaseState::Ended { .. }) {
                outlived += holds;
            }
        }
        let figure = |holds: usize| i64::try_from(holds).unwrap_or(i64::MAX);
        for (generation, holds) in [("current", current), ("superseded", superseded)] {
            let labels = GenerationLabels { vault_path: self.vault_path.to_string(), generation };
            self.metrics.sessions.get_or_create(&labels).set(figure(holds));
        }
        let labels = ChainLabels { vault_path: self.vault_path.to_string() };
        self.metrics.sessions_outlived_lease.get_or_create(&labels).set(figure(outlived));
        let Some((lease, token)) = self.current().map(|current| current.keeper.wall_ends()) else { return };
        let seconds = |end: Duration| i64::try_from(end.as_secs()).unwrap_or(i64::MAX);
        self.metrics.lease_expiry.get_or_create(&labels).set(seconds(lease));
        if let Some(token) = token {
            self.metrics.token_expiry.get_or_create(&labels).set(seconds(token));
        }
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

fn log_renewal(
    vault_path: &str,
    generation: &Generation,
    kind: Kind,
    renewal: Renewal,
    now: Now,
    error: Option<&VaultError>,
) {
    let (id, db_role, lease) = (generation.id(), generation.user(), generation.lease());
    let ttl_seconds = whole_seconds(generation.keeper.lease_left(now));
    let token_ttl_seconds = generation.keeper.token_left(now).map(whole_seconds);
    let code = error.and_then(VaultError::status);
    let error = error.map(|error| Causes(error).to_string());
    match (kind, renewal) {
        (Kind::Lease, Renewal::Granted { capped }) => info!(
            event = "lease.renewed",
            vault_path,
            generation = %id,
            db_role,
            %lease,
            ttl_seconds,
            token_ttl_seconds,
            capped,
        ),
        (Kind::Token, Renewal::Granted { capped }) => {
            info!(event = "token.renewed", vault_path, generation = %id, db_role, token_ttl_seconds, capped);
        }
        (Kind::Lease, Renewal::Failed | Renewal::Refused) => warn!(
            event = "lease.renew_failed",
            vault_path,
            generation = %id,
            db_role,
            %lease,
            ttl_seconds,
            code,
            error,
        ),
        (Kind::Token, Renewal::Failed | Renewal::Refused) => warn!(
            event = "token.renew_failed",
            vault_path,
            generation = %id,
            db_role,
            token_ttl_seconds,
            code,
            error,
        ),
    }
}

/// Generations that are rotated out and kept alive.
const MAX_SUPERSEDED: usize = 8;

/// How long the current credential is offered past its end.
const MAX_SERVED_PAST_END: Duration = Duration::from_secs(5);
