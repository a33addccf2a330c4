//! Looks into credentials that something speaks against: asks Vault for lease and token and upstreams for a login, and
//! acts on what was found.

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::info;

use super::chain::{ChainEvent, Trigger};
use super::check::{Finding, Findings, Haste, Known, Verdict};
use super::clock::Now;
use super::generation::Generation;
use super::requests::Report;
use super::retire::Ending;
use super::token::LiveToken;
use super::{Chain, Prove, promotion, proof, schedule};
use crate::credential::Credential;
use crate::ids::{GenerationId, LeaseId};
use crate::vault::{VaultApi, VaultError};

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Has `id` looked into, if it is kept.
    pub(super) fn raise_check(&mut self, id: GenerationId, haste: Haste) {
        let now = self.now();
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.raise_check(haste, now);
        }
    }

    /// Makes the lookups and logins that are due.
    pub(super) fn check_due(&mut self, now: Now) {
        for generation in self.generations.values_mut().filter(|generation| generation.is_checked()) {
            if !generation.check.take_due(now.boot) {
                continue;
            }
            let (vault, token) = (Arc::clone(&self.vault), Arc::clone(&generation.token));
            let (id, lease) = (generation.id(), generation.lease().clone());
            let lookups = generation.token.run(async move { look_up(&*vault, &token, &lease).await });
            let login = log_in(self.upstreams.provers(), &generation.credential);
            self.tasks.spawn(async move {
                let (lookups, login) = tokio::join!(lookups, login);
                let (lease, token) = lookups.unwrap_or((Finding::Unknown, Finding::Unknown));
                Report::Checked { generation: id, asked_at: now, found: Findings { lease, token, login } }
            });
        }
    }

    pub(super) fn on_checked(&mut self, id: GenerationId, asked_at: Now, found: Findings) {
        if found.token == Finding::Alive {
            self.note_lookup(asked_at);
        }
        let (now, looked_up_at) = (self.now(), self.looked_up_at);
        let Some(generation) = self.generations.get_mut(&id).filter(|generation| generation.is_checked())
        else {
            return;
        };
        let max_pause = schedule::MAX_RETRY.min(generation.keeper.left(now) / 4);
        generation.check.answered(found, now.boot, max_pause, fastrand::f64());
        let verdict = found.judge(Known {
            token_was_seen: generation.token.lookup_works() == Some(true),
            others_are_seen: generation.check.denied_at().is_some_and(|denied_at| denied_at < looked_up_at),
            is_well_before_end: generation.keeper.is_well_before_end(asked_at),
        });
        info!(
            event = "lease.checked",
            vault_path = %self.vault_path,
            generation = %id,
            db_role = generation.user(),
            lease = %generation.lease(),
            verdict = %verdict,
        );
        self.act_on(verdict, id, found, now);
    }

    fn act_on(&mut self, verdict: Verdict, id: GenerationId, found: Findings, now: Now) {
        let Some(generation) = self.generations.get_mut(&id) else { return };
        let is_current = generation.is_current();
        match verdict {
            Verdict::Alive | Verdict::LoginRejected => {
                generation.keeper.found_alive(found, now, fastrand::f64());
            }
            Verdict::DatabaseAway => generation.keeper.wait_for_database(now, fastrand::f64()),
            Verdict::TokenDenied | Verdict::Finished => {}
            Verdict::Revoked => {
                self.expire(id, Ending::Revoked, now);
                // Whoever ended one may have ended them all.
                self.generations.values_mut().for_each(|other| other.raise_check(Haste::Refused, now));
            }
        }
        if is_current {
            match verdict {
                Verdict::LoginRejected => self.feed(ChainEvent::Rejected),
                Verdict::DatabaseAway => self.feed(ChainEvent::DatabaseAway),
                Verdict::TokenDenied => self.feed(ChainEvent::RotationDue(Trigger::Degraded)),
                Verdict::Alive | Verdict::Finished | Verdict::Revoked => {}
            }
        }
    }

    /// Vault lets tokens be looked up: one that was denied it is looked up once more, as that tells now.
    pub(super) fn note_lookup(&mut self, asked_at: Now) {
        self.looked_up_at = self.looked_up_at.max(asked_at.boot);
        let denied =
            |generation: &&mut Generation| generation.check.denied_at().is_some_and(|at| at < asked_at.boot);
        for generation in self.generations.values_mut().filter(denied) {
            generation.raise_check(Haste::Refused, asked_at);
        }
    }
}

/// Lease and token, as Vault knows them.
async fn look_up(vault: &impl VaultApi, token: &LiveToken, lease: &LeaseId) -> (Finding, Finding) {
    let (lease, token) = tokio::join!(vault.look_up_lease(token.token(), lease), token.look_up(vault));
    let lease = lease.map(|grant| grant.ttl).map_err(|error: VaultError| error.answer());
    (Finding::of_lease(lease), Finding::of_token(token.map_err(|error| error.answer())))
}

/// A probe login at the upstream of each route: one that rejects it counts for all, then one that accepts it.
fn log_in<P: Prove>(
    provers: &[Arc<P>],
    credential: &Arc<Credential>,
) -> impl Future<Output = proof::Verdict> + use<P> {
    let mut probes = JoinSet::new();
    for prover in provers {
        let (prover, credential) = (Arc::clone(prover), Arc::clone(credential));
        probes
            .spawn(async move { promotion::verdict(promotion::probe(&*prover, &credential).await.as_ref()) });
    }
    async move {
        let mut verdict = proof::Verdict::Unknown;
        while let Some(probed) = probes.join_next().await {
            match probed {
                Ok(proof::Verdict::Rejected) => return proof::Verdict::Rejected,
                Ok(proof::Verdict::Accepted | proof::Verdict::Late) => verdict = proof::Verdict::Accepted,
                Ok(proof::Verdict::Unknown) | Err(_) => {}
            }
        }
        verdict
    }
}
