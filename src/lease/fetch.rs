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
use super::warnings::Losses;
use super::{Causes, Chain, Prove, count, schedule, whole_seconds};
use crate::credential::{Credential, DerivedKeys, Granted};
use crate::ids::GenerationId;
use crate::telemetry::RotationLabels;
use crate::vault::{Answer, Grant, Lease, Login, Token, TokenKind, VaultApi, VaultError};

/// How far the attempt at a new credential is, and what it has in hand.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    pub(super) step: Step,
    /// The login to read the next creds with: kept from one attempt to the next.
    draft: Option<Draft>,
    /// Creds reads under way that nobody waits for any more.
    pub(super) strays: usize,
}

impl Fetch {
    /// Whether the attempt goes on with this token.
    pub(super) fn uses(&self, token: &Arc<LiveToken>) -> bool {
        self.draft.as_ref().is_some_and(|draft| Arc::ptr_eq(&draft.token, token))
    }
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
    /// Whether it is the current credential's login as well. Then it is seen to work before it is read with.
    is_sibling: bool,
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
        let token = self.grant.ttl.map(|ttl| {
            let token = Term::new(self.asked_at, ttl, renewable(self.grant), fastrand::f64());
            match self.token.kind() {
                TokenKind::Foreign => token.observed(),
                TokenKind::Service | TokenKind::Batch => token,
            }
        });
        let keeper = Keeper::new(lease, token, self.jwt_expiry, asked_at);
        keeper.spread(is_first, asked_at, fastrand::f64())
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
                    self.release(draft.token, Revoked::Draft);
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
            Step::Reading => {
                self.fetch.step = Step::Idle;
                self.fetch.strays += 1;
            }
            Step::Idle => {}
            Step::Proving(id) => {
                self.fetch.step = Step::Idle;
                self.discard(id);
            }
        }
        if let Some(draft) = self.fetch.draft.take() {
            self.release(draft.token, Revoked::Draft);
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
            Ok(Login { token, kind, grant, jwt_expiry }) => {
                info!(
                    event = "vault.login",
                    vault_path = %self.vault_path,
                    token_ttl_seconds = grant.ttl.map(|ttl| ttl.as_secs()),
                    token_renewable = grant.renewable,
                );
                let token = self.known_or_new(token, kind);
                if !wanted {
                    self.release(token, Revoked::Draft);
                } else if self.would_gain_nothing(&token) {
                    warn!(
                        event = "token.unchanged",
                        vault_path = %self.vault_path,
                        "the token in vault.login.token_file ends soon, and nobody renews it",
                    );
                    self.attempt_failed(Failure::Vault(Answer::Unavailable));
                } else {
                    self.read_creds(Draft { token, asked_at, grant, jwt_expiry, is_sibling: false });
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
                if !wanted {
                    return;
                }
                if let Some(sibling) = self.sibling() {
                    info!(
                        event = "creds.sibling",
                        vault_path = %self.vault_path,
                        "read with the token of the current credential instead",
                    );
                    self.read_creds(sibling);
                } else {
                    self.attempt_failed(Failure::Vault(error.answer()));
                }
            }
        }
    }

    /// A token of somebody else's is the same at each login, until it is replaced.
    fn known_or_new(&self, token: Token, kind: TokenKind) -> Arc<LiveToken> {
        let is_known = |live: &&Arc<LiveToken>| live.kind() == kind && live.token().is_same_as(&token);
        let known = self.generations.values().map(|generation| &generation.token).find(is_known);
        known.map_or_else(|| Arc::new(LiveToken::new(token, kind)), Arc::clone)
    }

    /// Whether a lease under this token would end with the current one, for the same reason.
    fn would_gain_nothing(&self, token: &Arc<LiveToken>) -> bool {
        let now = self.now();
        let is_planned = self.state.phase().trigger() == Some(Trigger::Planned);
        let ends_too =
            |current: &Generation| current.is_under(token) && current.keeper.wants_another_token(now);
        is_planned && self.current().is_some_and(ends_too)
    }

    /// Where no login succeeds: the token of the current credential, if it lasts long enough to read another lease.
    /// Not where an operator asks for a rotation: he may have no trust in that token any more.
    fn sibling(&self) -> Option<Draft> {
        let now = self.now();
        let current = self.current()?;
        let token = Arc::clone(&current.token);
        if self.state.phase().trigger() == Some(Trigger::Asked) || self.would_gain_nothing(&token) {
            return None;
        }
        let is_in_doubt = current.check.denied_at().is_some() || token.has_lost_reads() || token.is_ending();
        if token.kind() == TokenKind::Foreign || is_in_doubt {
            return None;
        }
        let (grant, jwt_expiry) = current.keeper.spare_login(now)?;
        Some(Draft { token, asked_at: now, grant, jwt_expiry, is_sibling: true })
    }

    fn read_creds(&mut self, draft: Draft) {
        let timeout = schedule::creds_timeout(draft.left(self.now()));
        let (vault, clock, token) =
            (Arc::clone(&self.vault), Arc::clone(&self.clock), Arc::clone(&draft.token));
        let (path, is_sibling) = (Arc::clone(&self.vault_path), draft.is_sibling);
        let request = draft.token.run(async move {
            if is_sibling && let Err(error) = token.look_up(&*vault).await {
                return Report::NoSibling { token, error };
            }
            token.look_up_once(&*vault).await;
            let asked_at = clock();
            let result = vault.read_creds(token.token(), &path, timeout).await;
            let denied = result.as_ref().is_err_and(|error| error.answer() == Answer::Denied);
            let token_is_dead = denied && token.is_dead(&*vault).await;
            Report::CredsRead { token, asked_at, result, token_is_dead }
        });
        self.tasks.spawn(async move { request.await.unwrap_or(Report::ReadAborted) });
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
        if answer.map_or_else(Answer::may_have_made_one, |_| true) {
            self.feed(ChainEvent::CredentialMade);
        }
        count(&self.metrics.lease_issued, result.is_ok());
        if result.is_ok() && token.lookup_works() == Some(true) {
            self.note_lookup(asked_at);
        }
        let wanted = self.fetch.draft.take_if(|draft| Arc::ptr_eq(&draft.token, token));
        let Some(draft) = wanted else { return self.on_stray(token, result) };
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
                let is_shared = self.generations.values().any(|generation| generation.uses(token));
                if token.serves_after(error.answer(), token_is_dead) && !is_shared {
                    self.fetch.draft = Some(draft);
                } else {
                    if error.answer().may_have_made_one() && !token.can_be_revoked() {
                        self.metrics.orphans.inc();
                    }
                    self.release(draft.token, Revoked::Draft);
                }
                self.attempt_failed(Failure::Vault(error.answer()));
            }
        }
    }

    pub(super) fn on_no_sibling(&mut self, token: &Arc<LiveToken>, error: &VaultError) {
        if self.fetch.draft.take_if(|draft| Arc::ptr_eq(&draft.token, token)).is_none() {
            self.fetch.strays = self.fetch.strays.saturating_sub(1);
            return;
        }
        self.fetch.step = Step::Idle;
        self.attempt_failed(Failure::Vault(error.answer()));
    }

    /// The attempt was abandoned. The lease ends with its token, unless that one lives on.
    fn on_stray(&mut self, token: &Arc<LiveToken>, result: Result<Lease, VaultError>) {
        self.fetch.strays = self.fetch.strays.saturating_sub(1);
        if let Ok(lease) = result
            && !token.is_ending()
        {
            self.expire_lease(Arc::clone(token), lease.id, Arc::default(), Revoked::Draft);
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
        let lost = Losses {
            kind: draft.token.kind(),
            may_renew: draft.may_renew(),
            token: draft.grant,
            lease: lease.grant,
        };
        self.warnings.tell(&self.vault_path, lost);
        let credential = Credential {
            user: lease.user,
            password: lease.password,
            lease: Some(lease.id.clone()),
            generation: id,
            keys: DerivedKeys::default(),
            granted: Granted {
                duration: lease.grant.ttl.unwrap_or_default(),
                renewable: lease.grant.renewable,
            },
        };
        let proof = Proof::new(self.upstreams.provers().len(), now.boot);
        self.generations.insert(id, Generation::new(credential, lease.id, draft.token, keeper, proof));
        self.fetch.step = Step::Proving(id);
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
                self.release(draft.token, Revoked::Draft);
            }
            self.attempt_failed(Failure::Vault(Answer::Lost));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(ttl: Option<u64>) -> Draft {
        Draft {
            token: Arc::new(LiveToken::new(Token::from_text("s.1"), TokenKind::Service)),
            asked_at: Now::default(),
            grant: Grant { ttl: ttl.map(Duration::from_secs), renewable: true },
            jwt_expiry: None,
            is_sibling: false,
        }
    }

    #[test]
    fn token_serves_until_half_of_its_life() {
        let at = |seconds| Now { boot: Duration::from_secs(seconds), wall: Duration::ZERO };
        assert!(draft(Some(60)).is_fresh(at(30)) && !draft(Some(60)).is_fresh(at(31)));
        assert!(draft(None).is_fresh(at(1_000_000)));
    }
}
