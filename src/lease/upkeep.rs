//! The upkeep of the generations that are there: renewal, and what their sessions are told.

use std::sync::Arc;

use tracing::{info, warn};

use super::chain::ChainEvent;
use super::check::Haste;
use super::clock::Now;
use super::generation::{Generation, Outlook};
use super::keeper::{Kind, Renewal};
use super::requests::Report;
use super::{Causes, Chain, Prove, count, schedule, whole_seconds};
use crate::ids::GenerationId;
use crate::vault::{Grant, Token, TokenKind, VaultApi, VaultError};

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
                let renewed = move |result| Report::Renewed { generation: id, kind, asked_at: now, result };
                match kind {
                    Kind::Lease => {
                        let request = generation.requests.run(
                            generation
                                .token
                                .run(async move { vault.renew_lease(token.token(), &lease, timeout).await }),
                        );
                        self.tasks
                            .spawn(async move { request.await.flatten().map_or(Report::Aborted, renewed) });
                    }
                    Kind::Token if token.kind() == TokenKind::Foreign => {
                        self.tasks.spawn(async move {
                            let result = see_again(&*vault, token.token()).await;
                            Report::TokenSeen { generation: id, asked_at: now, result }
                        });
                    }
                    Kind::Token => {
                        let request = generation
                            .token
                            .run(async move { vault.renew_self(token.token(), timeout).await });
                        self.tasks.spawn(async move { request.await.map_or(Report::Aborted, renewed) });
                    }
                }
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
        let renewals = match kind {
            Kind::Lease => &self.metrics.lease_renewals,
            Kind::Token => &self.metrics.token_renewals,
        };
        count(renewals, result.is_ok());
        if let Err(error) = result {
            self.note_vault_error(error);
        }
        let now = self.now();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let answer = result.as_ref().copied().map_err(VaultError::answer);
        let renewal = generation.keeper.answered(kind, asked_at, now, answer, fastrand::f64());
        log_renewal(&self.vault_path, generation, kind, renewal, now, result.as_ref().err());

        if generation.keeper.is_doubtful(kind, now) {
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

    /// A token that somebody else keeps was looked at again.
    pub(super) fn on_token_seen(
        &mut self,
        id: GenerationId,
        asked_at: Now,
        result: Result<Option<Grant>, VaultError>,
    ) {
        if let Some(result) = result.transpose() {
            return self.on_renewed(id, Kind::Token, asked_at, &result);
        }
        let now = self.now();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        generation.keeper.token_replaced(now, fastrand::f64());
        info!(
            event = "token.replaced",
            vault_path = %self.vault_path,
            generation = %id,
            db_role = generation.user(),
            lease = %generation.lease(),
        );
    }

    /// Rotates where the current credential asks for it.
    pub(super) fn rotate_due(&mut self, now: Now) {
        let trigger = self.current().and_then(|current| current.keeper.wants_rotation(now));
        if let Some(trigger) = trigger {
            self.feed(ChainEvent::RotationDue(trigger));
        }
    }

    /// Tells the sessions of generations that are rotated out how they stand.
    pub(super) fn announce_ends(&mut self, now: Now) {
        let has_successor = self.has_successor();
        let may_learn = self.may_learn();
        for generation in self.generations.values_mut() {
            let is_verdict_awaited = may_learn && self.learning.is_awaited_by(generation.id());
            let is_harmless = self.learning.is_harmless();
            generation.announce(now, Outlook { has_successor, is_verdict_awaited, is_harmless });
        }
    }

    /// Whether sessions that end now can reconnect. A credential that was rejected after its proof does not serve.
    pub(super) fn has_successor(&self) -> bool {
        self.current().is_some_and(Generation::is_accepted) && !self.state.phase().is_unserved()
    }
}

/// What is left of a token whose file somebody else writes; `None` where there is another one in it.
async fn see_again(vault: &impl VaultApi, token: &Token) -> Result<Option<Grant>, VaultError> {
    let login = vault.log_in().await?;
    Ok(login.token.is_same_as(token).then_some(login.grant))
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
            info!(event = "token.renewed", vault_path, generation = %id, db_role, %lease, token_ttl_seconds, capped);
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
            %lease,
            token_ttl_seconds,
            code,
            error,
        ),
    }
}
