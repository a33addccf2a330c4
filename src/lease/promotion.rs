//! From a candidate to the current credential: proof and promotion.

use std::sync::Arc;
use std::time::Duration;

use tokio::time;
use tracing::{info, warn};

use super::chain::{ChainEvent, Failure, Trigger};
use super::check::Haste;
use super::clock::Now;
use super::fetch::Step;
use super::generation::Generation;
use super::proof::{LastCall, Proof, ProofState, Verdict};
use super::requests::Report;
use super::state::LeaseEvent;
use super::{Causes, Chain, Prove};
use crate::credential::Credential;
use crate::ids::GenerationId;
use crate::upstream::{OnCredential, UpstreamError};
use crate::vault::{Answer, VaultApi};

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Makes the probe logins that are due.
    pub(super) fn prove_due(&mut self, now: Now) {
        for generation in self.generations.values_mut() {
            let id = generation.id();
            let Some(proof) = generation.proof_mut() else { continue };
            for index in proof.take_due(now.boot) {
                let Some((number, prover)) = self.upstreams.prover(index) else { continue };
                let credential = Arc::clone(&generation.credential);
                self.tasks.spawn(async move {
                    let result = probe(&*prover, &credential).await;
                    Report::Probed { generation: id, prover: number, result }
                });
            }
        }
    }

    /// The routes have other upstreams: what is not proven yet is proven there.
    pub(super) fn change_upstreams(&mut self) {
        self.upstreams.update();
        let (upstreams, now) = (self.upstreams.provers().len(), self.now().boot);
        for proof in self.generations.values_mut().filter_map(Generation::proof_mut) {
            *proof = Proof::new(upstreams, now);
        }
    }

    /// `result` is `None` where the probe took too long.
    pub(super) fn on_probed(
        &mut self,
        id: GenerationId,
        prover: usize,
        result: Option<&Result<(), UpstreamError>>,
    ) {
        let Some(index) = self.upstreams.index_of(prover) else { return };
        let verdict = verdict(result);
        let now = self.now();
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let Some(proof) = generation.proof_mut() else { return };
        proof.answered(index, verdict, now.boot, fastrand::f64());
        if verdict == Verdict::Accepted {
            return;
        }
        log_failure(&self.vault_path, &generation.credential, verdict, result);
        self.note_proof_error(result.and_then(|result| result.as_ref().err()));
    }

    /// Promotes the candidate when its proof is enough, drops it when it was rejected or came to its end.
    pub(super) fn judge_candidate(&mut self, now: Now) {
        let Step::Proving(id) = self.fetch.step else { return };
        let Some(candidate) = self.generations.get(&id) else { return };
        let Some(proof) = candidate.proof() else { return };
        let failure = if proof.state() == ProofState::Rejected {
            Failure::SuccessorRejected
        } else if candidate.keeper.is_over(now, Duration::ZERO) {
            Failure::Vault(Answer::Unavailable)
        } else {
            if proof.is_enough(now.boot, self.last_call(now)) {
                self.feed(ChainEvent::SuccessorReady);
            }
            return;
        };
        self.fetch.step = Step::Idle;
        self.discard(id);
        self.attempt_failed(failure);
    }

    /// Takes notice of the proof of what is offered, which may end after its promotion.
    pub(super) fn judge_current(&mut self, now: Now) {
        let Some(current) = self.current_mut() else { return };
        match current.proof().map(Proof::state) {
            Some(ProofState::Proven) => {
                current.end_proof();
                self.publisher.note_proof();
            }
            Some(ProofState::Rejected) => {
                current.end_proof();
                current.raise_check(Haste::Refused, now);
                self.feed(ChainEvent::Rejected);
            }
            Some(ProofState::Open | ProofState::Doubted) | None => {}
        }
    }

    /// Offers the candidate in place of the current credential.
    pub(super) fn promote(&mut self, trigger: Option<Trigger>) {
        let Step::Proving(id) = self.fetch.step else { return };
        self.fetch.step = Step::Idle;
        let old = self.current().map(Generation::id);
        let Some(candidate) = self.generations.get_mut(&id) else { return };
        candidate.promote(&self.publisher);
        let proven = candidate.is_proven();
        if let Some(trigger) = trigger {
            info!(
                event = "rotation.done",
                vault_path = %self.vault_path,
                trigger = %trigger,
                generation = %id,
                db_role = candidate.user(),
                lease = %candidate.lease(),
                proven,
            );
            self.count_rotation(trigger, if proven { "ok" } else { "unproven" });
        } else {
            info!(
                event = "lease.serving",
                vault_path = %self.vault_path,
                generation = %id,
                db_role = candidate.user(),
                lease = %candidate.lease(),
                proven,
            );
        }
        if let Some(old) = old {
            self.supersede(old);
        }
        self.answer_rotation(id);
    }

    fn last_call(&self, now: Now) -> LastCall {
        let ends =
            self.current().is_some_and(|current| current.keeper.left(now) <= current.keeper.last_call());
        if ends {
            LastCall::Now
        } else if self.state.phase().is_unserved() {
            LastCall::Unserved
        } else {
            LastCall::No
        }
    }

    /// Gives up a credential that was never offered.
    pub(super) fn discard(&mut self, id: GenerationId) {
        if let Some(candidate) = self.generations.get_mut(&id) {
            candidate.end_proof();
            candidate.apply(LeaseEvent::Discarded);
        }
        self.revoke_due(id);
    }
}

/// One probe login; `None` where it takes too long.
pub(super) async fn probe(prover: &impl Prove, credential: &Credential) -> Option<Result<(), UpstreamError>> {
    time::timeout(PROBE_TIMEOUT, prover.prove(credential)).await.ok()
}

/// Logs a probe login that did not speak for the credential.
pub(super) fn log_failure(
    vault_path: &str,
    credential: &Credential,
    verdict: Verdict,
    result: Option<&Result<(), UpstreamError>>,
) {
    let error = match result {
        Some(Err(error)) => Causes(error).to_string(),
        Some(Ok(())) | None => format!("no verdict within {PROBE_TIMEOUT:?}"),
    };
    warn!(
        event = "proof.failed",
        vault_path,
        generation = %credential.generation,
        db_role = credential.user,
        lease = credential.lease.as_ref().map(tracing::field::display),
        rejected = verdict == Verdict::Rejected,
        error,
    );
}

/// What a probe login says of the credential.
pub(super) fn verdict(result: Option<&Result<(), UpstreamError>>) -> Verdict {
    match result {
        Some(Ok(())) => Verdict::Accepted,
        Some(Err(error)) => match error.on_credential() {
            OnCredential::Accepted => Verdict::Accepted,
            OnCredential::Late => Verdict::Late,
            OnCredential::Rejected => Verdict::Rejected,
            OnCredential::Doubtful | OnCredential::Nothing => Verdict::Unknown,
        },
        None => Verdict::Unknown,
    }
}

/// Of one probe login with its goodbye: its own limit and a moment.
const PROBE_TIMEOUT: Duration = Duration::from_secs(7);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::error::ErrorResponse;

    #[test]
    fn only_upstreams_word_on_the_credential_counts() {
        let refused = |credential| {
            let response = ErrorResponse::parse(b"");
            Some(Err(UpstreamError::Refused { address: "db:5432".to_owned(), response, credential }))
        };
        let rejected =
            UpstreamError::CredentialRejected { address: String::new(), response: ErrorResponse::parse(b"") };
        for (result, expected) in [
            (Some(Ok(())), Verdict::Accepted),
            (None, Verdict::Unknown),
            (Some(Err(rejected)), Verdict::Rejected),
            (refused(OnCredential::Accepted), Verdict::Accepted),
            (refused(OnCredential::Late), Verdict::Late),
            (refused(OnCredential::Doubtful), Verdict::Unknown),
            (refused(OnCredential::Nothing), Verdict::Unknown),
        ] {
            assert_eq!(verdict(result.as_ref()), expected, "{result:?}");
        }
    }
}
