//! What the chain of a static role does: login, read, proof, promotion, and the end of a token.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::tenure::Tenure;
use super::{Password, Report, StaticChain};
use crate::credential::{Credential, DerivedKeys, Granted};
use crate::ids::GenerationId;
use crate::lease::chain::Trigger;
use crate::lease::clock::Now;
use crate::lease::promotion::{self, verdict};
use crate::lease::proof::{LastCall, Proof, ProofState, Verdict};
use crate::lease::status::LastError;
use crate::lease::token::LiveToken;
use crate::lease::{Causes, Prove, count, gauges, schedule, whole_seconds};
use crate::telemetry::{ChainLabels, GenerationLabels, RotationLabels};
use crate::upstream::UpstreamError;
use crate::vault::{Answer, Grant, Login, StaticCredential, VaultApi, VaultError};

impl<V: VaultApi, P: Prove> StaticChain<V, P> {
    /// Logs in where there is no token that will do for long.
    pub(super) fn log_in_due(&mut self, now: Now) {
        if !self.needs_login(now) || !self.plan.take_login(now.boot) {
            return;
        }
        let vault = Arc::clone(&self.vault);
        self.tasks.spawn(async move {
            let result = match vault.log_in().await {
                Ok(Login { token, kind, grant, .. }) => {
                    let token = Arc::new(LiveToken::new(token, kind));
                    token.look_up_once(&*vault).await;
                    Ok((token, grant))
                }
                Err(error) => Err(error),
            };
            Report::LoggedIn { asked_at: now, result }
        });
    }

    pub(super) fn on_logged_in(
        &mut self,
        asked_at: Now,
        result: Result<(Arc<LiveToken>, Grant), VaultError>,
    ) {
        let view = self.view();
        match result {
            Ok((token, grant)) => {
                self.plan.logged_in(view.now);
                info!(
                    event = "vault.login",
                    vault_path = %self.vault_path,
                    token_ttl_seconds = grant.ttl.map(|ttl| ttl.as_secs()),
                    token_renewable = grant.renewable,
                );
                self.warn_of_what_is_lost(&token);
                let tenure = Tenure::new(token, grant, asked_at, view.u);
                let old = if self.ends { Some(tenure) } else { self.tenure.replace(tenure) };
                if let Some(old) = old {
                    self.release(&old);
                }
            }
            Err(error) => {
                self.last_error = Some(LastError::of_vault(&error, self.now()));
                warn!(
                    event = "login.failed",
                    vault_path = %self.vault_path,
                    code = error.status(),
                    error = %Causes(&error),
                );
                self.plan.login_failed(error.answer(), view);
            }
        }
    }

    /// Tells the operator once of a setting in Vault that takes something away.
    fn warn_of_what_is_lost(&mut self, token: &LiveToken) {
        if !self.warned && token.lookup_works() == Some(false) {
            self.warned = true;
            warn!(
                event = "token.without_default_policy",
                vault_path = %self.vault_path,
                "the token can be neither renewed nor revoked: give the auth role the default policy",
            );
        }
    }

    /// Asks for the renewal of the token, where it is due.
    pub(super) fn renew_due(&mut self, now: Now) {
        let Some(tenure) = &mut self.tenure else { return };
        if !tenure.take_renewal(now) {
            return;
        }
        let (vault, token) = (Arc::clone(&self.vault), Arc::clone(&tenure.token));
        let timeout = schedule::renewal_timeout(tenure.left(now).unwrap_or(Duration::MAX));
        let request = tenure.token.run(async move {
            let result = vault.renew_self(token.token(), timeout).await;
            Report::Renewed { token, asked_at: now, result }
        });
        self.tasks.spawn(async move { request.await.unwrap_or(Report::RenewalAborted) });
    }

    pub(super) fn on_renewed(
        &mut self,
        token: &Arc<LiveToken>,
        asked_at: Now,
        result: &Result<Grant, VaultError>,
    ) {
        let now = self.now();
        let Some(tenure) = self.tenure.as_mut().filter(|tenure| Arc::ptr_eq(&tenure.token, token)) else {
            return;
        };
        count(&self.metrics.token_renewals, result.is_ok());
        let answer = result.as_ref().copied().map_err(VaultError::answer);
        tenure.answered(asked_at, now, answer, fastrand::f64());
        let token_ttl_seconds = tenure.left(now).map(whole_seconds);
        match result {
            Ok(_) => info!(event = "token.renewed", vault_path = %self.vault_path, token_ttl_seconds),
            Err(error) => {
                warn!(
                    event = "token.renew_failed",
                    vault_path = %self.vault_path,
                    token_ttl_seconds,
                    code = error.status(),
                    error = %Causes(error),
                );
                self.last_error = Some(LastError::of_vault(error, now));
            }
        }
    }

    /// Reads the password, where that is due.
    pub(super) fn read_due(&mut self, now: Now) {
        let Some(tenure) = self.tenure.as_ref().filter(|tenure| tenure.lives(now)) else { return };
        if !self.plan.take_read(now.boot) {
            return;
        }
        let (vault, token) = (Arc::clone(&self.vault), Arc::clone(&tenure.token));
        let path = Arc::clone(&self.vault_path);
        let request = tenure.token.run(async move {
            let result = vault.read_static_creds(token.token(), &path).await;
            let denied = result.as_ref().is_err_and(|error| error.answer() == Answer::Denied);
            let token_is_dead = denied && token.is_dead(&*vault).await;
            Report::Read { token, result, token_is_dead }
        });
        self.tasks.spawn(async move { request.await.unwrap_or(Report::ReadAborted) });
        self.note_read_sent();
    }

    pub(super) fn on_read(
        &mut self,
        token: &Arc<LiveToken>,
        result: Result<StaticCredential, VaultError>,
        token_is_dead: bool,
    ) {
        let view = self.view();
        match result {
            Ok(read) => {
                let news = !self.last_read.as_ref().is_some_and(|last| read.is(&last.user, &last.password));
                self.plan.read(read.ttl, news, view);
                self.hold_candidate(read, news);
                self.note_read(true);
            }
            Err(error) => {
                self.note_read(false);
                self.last_error = Some(LastError::of_vault(&error, self.now()));
                warn!(
                    event = "creds.failed",
                    vault_path = %self.vault_path,
                    code = error.status(),
                    error = %Causes(&error),
                );
                self.plan.read_failed(error.answer(), view);
                let of_tenure = self.tenure.as_mut().filter(|tenure| Arc::ptr_eq(&tenure.token, token));
                if let Some(tenure) = of_tenure.filter(|_| token_is_dead) {
                    tenure.note_death();
                }
            }
        }
    }

    /// Has a password proven that is not the one on offer, or that is and was rejected: upstream may have been late to
    /// know it.
    fn hold_candidate(&mut self, read: StaticCredential, news: bool) {
        let ttl_seconds = read.ttl.as_secs();
        let is_current = |current: &Password| read.is(&current.credential.user, &current.credential.password);
        let changed = !self.current.as_ref().is_some_and(is_current);
        let is_being_proven = self.candidate.is_some() && !news;
        if is_being_proven || !changed && !self.plan.is_rejected() {
            debug!(event = "password.unchanged", vault_path = %self.vault_path, db_role = read.user, ttl_seconds);
            if !changed {
                self.candidate = None;
            }
            return;
        }
        self.last_generation += 1;
        let id = GenerationId(self.last_generation);
        info!(
            event = "password.read",
            vault_path = %self.vault_path,
            generation = %id,
            db_role = read.user,
            changed,
            ttl_seconds,
        );
        let trigger = self.current.as_ref().map(|_| match (self.plan.is_rejected(), self.is_asked()) {
            (true, _) => Trigger::Rejected,
            (false, true) => Trigger::Asked,
            (false, false) => Trigger::Planned,
        });
        if let Some(trigger) = trigger.filter(|trigger| *trigger != Trigger::Rejected) {
            info!(event = "rotation.start", vault_path = %self.vault_path, trigger = %trigger);
        }
        let StaticCredential { user, password, .. } = read;
        let credential = Arc::new(Credential {
            user,
            password,
            lease: None,
            generation: id,
            keys: DerivedKeys::default(),
            granted: Granted::default(),
        });
        self.last_read = Some(Arc::clone(&credential));
        let proof = Some(Proof::new(self.upstreams.provers().len(), self.now().boot));
        self.candidate = Some(Password { credential, proof, issued: None, trigger });
    }

    /// Makes the probe logins that are due.
    pub(super) fn prove_due(&mut self, now: Now) {
        for password in self.current.iter_mut().chain(&mut self.candidate) {
            let Some(proof) = &mut password.proof else { continue };
            for index in proof.take_due(now.boot) {
                let Some((number, prover)) = self.upstreams.prover(index) else { continue };
                let credential = Arc::clone(&password.credential);
                self.tasks.spawn(async move {
                    let result = promotion::probe(&*prover, &credential).await;
                    Report::Probed { generation: credential.generation, prover: number, result }
                });
            }
        }
    }

    /// The routes have other upstreams: what is not proven yet is proven there.
    pub(super) fn change_upstreams(&mut self) {
        self.upstreams.update();
        let (upstreams, now) = (self.upstreams.provers().len(), self.now().boot);
        for proof in self.passwords_mut().filter_map(|password| password.proof.as_mut()) {
            *proof = Proof::new(upstreams, now);
        }
    }

    pub(super) fn on_probed(
        &mut self,
        id: GenerationId,
        prover: usize,
        result: Option<&Result<(), UpstreamError>>,
    ) {
        let Some(index) = self.upstreams.index_of(prover) else { return };
        let (verdict, now) = (verdict(result), self.now());
        let Some(password) = self.passwords_mut().find(|password| password.credential.generation == id)
        else {
            return;
        };
        let Some(proof) = &mut password.proof else { return };
        proof.answered(index, verdict, now.boot, fastrand::f64());
        let credential = Arc::clone(&password.credential);
        if verdict != Verdict::Accepted {
            promotion::log_failure(&self.vault_path, &credential, verdict, result);
            let error = result.and_then(|result| result.as_ref().err());
            self.last_error = Some(LastError::of_proof(error, now));
        }
    }

    /// Promotes the candidate when its proof is enough, drops it when it was rejected. The one before it is as good as
    /// gone, as PostgreSQL knows one password at a time.
    pub(super) fn judge_candidate(&mut self, now: Now) {
        let Some(candidate) = &self.candidate else { return };
        let Some(proof) = &candidate.proof else { return };
        if proof.state() == ProofState::Rejected {
            if let Some(trigger) = candidate.trigger {
                self.count_rotation(trigger, "failed");
            }
            self.candidate = None;
            self.note_refusal();
            self.publisher.note_rejection(self.plan.is_rejected());
            let view = self.view();
            self.plan.refused(view);
        } else if proof.is_enough(now.boot, LastCall::Unserved) {
            self.promote();
        }
    }

    fn promote(&mut self) {
        let Some(mut candidate) = self.candidate.take() else { return };
        candidate.issued = Some(self.publisher.promote(Arc::clone(&candidate.credential)));
        let proven = candidate.proof.as_ref().is_none_or(|proof| proof.state() == ProofState::Proven);
        let (db_role, generation) = (candidate.credential.user.as_str(), candidate.credential.generation);
        if let Some(trigger) = candidate.trigger {
            info!(
                event = "rotation.done",
                vault_path = %self.vault_path,
                trigger = %trigger,
                db_role,
                %generation,
                proven,
            );
            self.count_rotation(trigger, if proven { "ok" } else { "unproven" });
        } else {
            info!(event = "password.serving", vault_path = %self.vault_path, db_role, %generation, proven);
        }
        let old = self.current.replace(candidate);
        self.superseded.extend(old.and_then(|old| old.issued));
        self.plan.promoted();
        self.publisher.note_rejection(false);
    }

    /// Takes notice of the proof of what is offered, which may end after its promotion.
    pub(super) fn judge_current(&mut self) {
        let Some(current) = &mut self.current else { return };
        match current.proof.as_ref().map(Proof::state) {
            Some(ProofState::Proven) => {
                current.proof = None;
                self.publisher.note_proof();
            }
            Some(ProofState::Rejected) => {
                current.proof = None;
                self.note_rejection();
            }
            Some(ProofState::Open | ProofState::Doubted) | None => {}
        }
    }

    fn count_rotation(&self, trigger: Trigger, result: &'static str) {
        let labels = RotationLabels { trigger: trigger.as_str(), result };
        self.metrics.rotations.get_or_create(&labels).inc();
    }

    /// Revokes a token that is used no more, if it is ours and lives.
    pub(super) fn release(&mut self, tenure: &Tenure) {
        if !tenure.is_ours_to_revoke(self.now()) {
            return;
        }
        let (vault, token) = (Arc::clone(&self.vault), Arc::clone(&tenure.token));
        self.revoking += 1;
        self.tasks.spawn(async move { Report::Revoked(token.revoke(&*vault).await) });
    }

    pub(super) fn on_revoked(&mut self, result: &Result<(), VaultError>) {
        self.revoking = self.revoking.saturating_sub(1);
        if let Err(error) = result {
            warn!(
                event = "token.orphaned",
                vault_path = %self.vault_path,
                code = error.status(),
                error = %Causes(error),
                "not revoked: it ends by itself",
            );
        }
    }

    /// Brings the figures up to date.
    pub(super) fn update_gauges(&mut self) {
        self.superseded.retain(|issued| *issued.holds().borrow() > 0);
        let holds = |issued: &super::Issued| issued.sessions();
        let current = self.current.iter().filter_map(|current| current.issued.as_ref()).map(holds).sum();
        let superseded = self.superseded.iter().map(holds).sum();
        for (generation, holds) in [("current", current), ("superseded", superseded)] {
            let labels = GenerationLabels { vault_path: self.vault_path.to_string(), generation };
            let holds: usize = holds;
            self.metrics.sessions.get_or_create(&labels).set(i64::try_from(holds).unwrap_or(i64::MAX));
        }
        let labels = ChainLabels { vault_path: self.vault_path.to_string() };
        let gauges = (&self.metrics.token_expiry, &self.metrics.token_duration);
        gauges::set_term(gauges, &labels, self.tenure.as_ref().and_then(Tenure::term));
    }
}
