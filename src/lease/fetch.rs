//! The next credential: login and creds, up to a candidate that waits for its proof.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::chain::{ChainEvent, Failure, Trigger};
use super::clock::Now;
use super::generation::Generation;
use super::keeper::Keeper;
use super::proof::Proof;
use super::requests::{Report, Revoked};
use super::term::Term;
use super::token::LiveToken;
use super::{Causes, Chain, Prove, count, schedule, whole_seconds};
use crate::credential::Credential;
use crate::ids::GenerationId;
use crate::telemetry::RotationLabels;
use crate::vault::{Answer, Grant, Lease, Login, VaultApi, VaultError};

/// How far the attempt at a new credential is, and what it has in hand.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    pub(super) step: Step,
    /// The login to read the next creds with: kept from one attempt to the next.
    draft: Option<Draft>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Step {
    #[default]
    Idle,
    /// `wanted` is false where the attempt has ended meanwhile: the token will be revoked.
    LoggingIn {
        wanted: bool,
    },
    Reading,
    Proving(GenerationId),
}

/// A login without a credential yet.
#[derive(Debug)]
struct Draft {
    token: Arc<LiveToken>,
    asked_at: Now,
    grant: Grant,
    jwt_expiry: Option<Duration>,
    /// Creds reads under it that were sent and not answered.
    lost_reads: u32,
}

impl Draft {
    fn left(&self, now: Now) -> Option<Duration> {
        self.grant.ttl.map(|ttl| (self.asked_at.boot + ttl).saturating_sub(now.boot))
    }

    /// Whether enough of the token is left for one more read.
    fn is_fresh(&self, now: Now) -> bool {
        self.left(now).is_none_or(|left| self.grant.ttl.is_some_and(|ttl| left >= ttl / 2))
    }

    /// Whether lease and token can be renewed: a token that may not look itself up may not do that either.
    fn may_renew(&self) -> bool {
        self.token.lookup_works() != Some(false)
    }

    /// The upkeep of this login and of a lease that was read with it.
    fn keeper(&self, asked_at: Now, lease: Grant, is_first: bool) -> Keeper {
        let renewable = |grant: Grant| grant.renewable && self.may_renew();
        let ttl = lease.ttl.unwrap_or_default();
        let lease = Term::new(asked_at, ttl, renewable(lease), fastrand::f64());
        let token =
            self.grant.ttl.map(|ttl| Term::new(self.asked_at, ttl, renewable(self.grant), fastrand::f64()));
        let keeper = Keeper::new(lease, token, self.jwt_expiry, asked_at);
        keeper.spread(is_first, asked_at, fastrand::f64())
    }

    /// Whether the next read may be made with this token after one that failed so.
    fn serves_after(&mut self, answer: Answer, token_is_dead: bool) -> bool {
        match answer {
            Answer::Lost => {
                self.lost_reads += 1;
                self.lost_reads < MAX_LOST_READS
            }
            Answer::Malformed => false,
            Answer::Denied => !token_is_dead,
            Answer::NotSent
            | Answer::Redirect
            | Answer::BadRequest
            | Answer::NotFound
            | Answer::TryLater { .. }
            | Answer::Unexpected
            | Answer::Unavailable => true,
        }
    }
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Begins an attempt: with the login of the last one, where that still serves.
    pub(super) fn begin_attempt(&mut self) {
        let now = self.now();
        if let Step::LoggingIn { wanted } = &mut self.fetch.step {
            *wanted = true;
            return;
        }
        match self.fetch.draft.take() {
            Some(draft) if draft.is_fresh(now) => self.read_creds(draft),
            stale => {
                if let Some(draft) = stale {
                    self.revoke(draft.token, Revoked::Draft);
                }
                self.log_in();
            }
        }
    }

    /// Ends the attempt and revokes what it has made.
    pub(super) fn abandon_attempt(&mut self) {
        match self.fetch.step {
            // Its answer is waited for: an unread token could not be revoked.
            Step::LoggingIn { .. } => self.fetch.step = Step::LoggingIn { wanted: false },
            Step::Idle | Step::Reading => self.fetch.step = Step::Idle,
            Step::Proving(id) => {
                self.fetch.step = Step::Idle;
                self.discard(id);
            }
        }
        if let Some(draft) = self.fetch.draft.take() {
            self.revoke(draft.token, Revoked::Draft);
        }
    }

    fn log_in(&mut self) {
        self.fetch.step = Step::LoggingIn { wanted: true };
        let (vault, asked_at) = (Arc::clone(&self.vault), self.now());
        self.tasks.spawn(async move { Report::LoggedIn { asked_at, result: vault.log_in().await } });
    }

    pub(super) fn on_logged_in(&mut self, asked_at: Now, result: Result<Login, VaultError>) {
        let wanted = self.fetch.step == Step::LoggingIn { wanted: true };
        if self.is_logging_in() {
            self.fetch.step = Step::Idle;
        }
        match result {
            Ok(Login { token, kind: _, grant, jwt_expiry }) => {
                info!(
                    event = "vault.login",
                    vault_path = %self.vault_path,
                    token_ttl_seconds = grant.ttl.map(|ttl| ttl.as_secs()),
                    token_renewable = grant.renewable,
                );
                let token = Arc::new(LiveToken::new(token));
                if wanted {
                    self.read_creds(Draft { token, asked_at, grant, jwt_expiry, lost_reads: 0 });
                } else {
                    self.revoke(token, Revoked::Draft);
                }
            }
            Err(error) => {
                self.note_vault_error(&error);
                warn!(
                    event = "login.failed",
                    vault_path = %self.vault_path,
                    code = error.status(),
                    error = %Causes(&error),
                );
                if wanted {
                    self.attempt_failed(Failure::Vault(error.answer()));
                }
            }
        }
    }

    fn read_creds(&mut self, draft: Draft) {
        let timeout = schedule::creds_timeout(draft.left(self.now()));
        let (vault, clock, token) =
            (Arc::clone(&self.vault), Arc::clone(&self.clock), Arc::clone(&draft.token));
        let path = Arc::clone(&self.vault_path);
        let request = draft.token.run(async move {
            token.look_up_once(&*vault).await;
            let asked_at = clock();
            let result = vault.read_creds(token.token(), &path, timeout).await;
            let denied = result.as_ref().is_err_and(|error| error.answer() == Answer::Denied);
            let token_is_dead = denied && token.is_dead(&*vault).await;
            Report::CredsRead { token, asked_at, result, token_is_dead }
        });
        self.tasks.spawn(async move { request.await.unwrap_or(Report::Aborted) });
        self.fetch.step = Step::Reading;
        self.fetch.draft = Some(draft);
    }

    pub(super) fn on_creds_read(
        &mut self,
        token: &Arc<LiveToken>,
        asked_at: Now,
        result: Result<Lease, VaultError>,
        token_is_dead: bool,
    ) {
        let answer = result.as_ref().map_err(VaultError::answer);
        if matches!(answer, Ok(_) | Err(Answer::Lost | Answer::Malformed)) {
            self.feed(ChainEvent::CredentialMade);
        }
        count(&self.metrics.lease_issued, result.is_ok());
        if result.is_ok() && token.lookup_works() == Some(true) {
            self.note_lookup(asked_at);
        }
        let wanted = self.fetch.draft.take_if(|draft| Arc::ptr_eq(&draft.token, token));
        // Without its draft the attempt was abandoned, and the token is being revoked.
        let Some(mut draft) = wanted else { return };
        self.fetch.step = Step::Idle;
        match result {
            Ok(lease) => self.hold_candidate(draft, asked_at, lease),
            Err(error) => {
                self.note_vault_error(&error);
                warn!(
                    event = "creds.failed",
                    vault_path = %self.vault_path,
                    code = error.status(),
                    error = %Causes(&error),
                );
                if draft.serves_after(error.answer(), token_is_dead) {
                    self.fetch.draft = Some(draft);
                } else {
                    self.revoke(draft.token, Revoked::Draft);
                }
                self.attempt_failed(Failure::Vault(error.answer()));
            }
        }
    }

    /// A credential is there: it is kept alive from now on, and proven.
    fn hold_candidate(&mut self, draft: Draft, asked_at: Now, lease: Lease) {
        self.last_generation += 1;
        let (id, now) = (GenerationId(self.last_generation), self.now());
        let is_first = self.state.phase().trigger().is_none();
        let keeper = draft.keeper(asked_at, lease.grant, is_first);
        info!(
            event = "lease.issued",
            vault_path = %self.vault_path,
            generation = %id,
            db_role = lease.user,
            lease = %lease.id,
            ttl_seconds = whole_seconds(keeper.lease_left(now)),
            token_ttl_seconds = keeper.token_left(now).map(whole_seconds),
            renewable = lease.grant.renewable,
        );
        self.warn_of_what_is_lost(&draft, keeper.lease_left(now));
        let credential = Credential {
            user: lease.user,
            password: lease.password,
            lease: Some(lease.id.clone()),
            generation: id,
        };
        let proof = Proof::new(self.provers.len(), now.boot);
        self.generations.insert(id, Generation::new(credential, lease.id, draft.token, keeper, proof));
        self.fetch.step = Step::Proving(id);
    }

    /// Tells the operator once of settings in Vault that take something away.
    fn warn_of_what_is_lost(&mut self, draft: &Draft, ttl: Duration) {
        if self.warned {
            return;
        }
        if !draft.may_renew() {
            self.warned = true;
            warn!(
                event = "token.without_default_policy",
                vault_path = %self.vault_path,
                "neither lease nor token can be renewed or revoked: give the auth role the default policy",
            );
        }
        if ttl > LONG_TTL {
            self.warned = true;
            warn!(
                event = "lease.long_ttl",
                vault_path = %self.vault_path,
                ttl_seconds = whole_seconds(ttl),
                "what a crash leaves behind lives as long: give the vault_role a default_ttl",
            );
        }
    }

    pub(super) fn attempt_failed(&mut self, failure: Failure) {
        if let Some(trigger) = self.state.phase().trigger() {
            self.count_rotation(trigger, "failed");
        }
        self.feed(ChainEvent::AttemptFailed(failure));
    }

    pub(super) fn count_rotation(&self, trigger: Trigger, result: &'static str) {
        let labels = RotationLabels { trigger: trigger.as_str(), result };
        self.metrics.rotations.get_or_create(&labels).inc();
    }

    /// Whether a login is not answered yet.
    pub(super) fn is_logging_in(&self) -> bool {
        matches!(self.fetch.step, Step::LoggingIn { .. })
    }

    /// Ends an attempt whose request was lost to a fault of ours.
    pub(super) fn forget_attempt(&mut self) {
        if matches!(self.fetch.step, Step::LoggingIn { .. } | Step::Reading) {
            self.fetch.step = Step::Idle;
            if let Some(draft) = self.fetch.draft.take() {
                self.revoke(draft.token, Revoked::Draft);
            }
            self.attempt_failed(Failure::Vault(Answer::Lost));
        }
    }
}

/// After so many reads without an answer there may be leases that nobody knows: the token ends with them.
const MAX_LOST_READS: u32 = 2;

/// A `vault_role` without a TTL of its own gets Vault's 32 days.
const LONG_TTL: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Token;

    fn draft(ttl: Option<u64>) -> Draft {
        Draft {
            token: Arc::new(LiveToken::new(Token::from_text("s.1"))),
            asked_at: Now::default(),
            grant: Grant { ttl: ttl.map(Duration::from_secs), renewable: true },
            jwt_expiry: None,
            lost_reads: 0,
        }
    }

    #[test]
    fn token_serves_until_half_of_its_life() {
        let at = |seconds| Now { boot: Duration::from_secs(seconds), wall: Duration::ZERO };
        assert!(draft(Some(60)).is_fresh(at(30)) && !draft(Some(60)).is_fresh(at(31)));
        assert!(draft(None).is_fresh(at(1_000_000)));
    }

    #[test]
    fn token_is_given_up_where_it_may_have_made_what_nobody_knows() {
        let later = Answer::TryLater { retry_after: None };
        for (answer, dead, serves) in [
            (Answer::NotSent, false, true),
            (Answer::Lost, false, true),
            (Answer::Malformed, false, false),
            (Answer::Redirect, false, true),
            (Answer::BadRequest, false, true),
            (Answer::Denied, false, true),
            (Answer::Denied, true, false),
            (Answer::NotFound, false, true),
            (later, false, true),
            (Answer::Unexpected, false, true),
            (Answer::Unavailable, false, true),
        ] {
            assert_eq!(draft(None).serves_after(answer, dead), serves, "{answer:?}");
        }
        let mut draft = draft(None);
        assert!(draft.serves_after(Answer::Lost, false) && !draft.serves_after(Answer::Lost, false));
    }
}
