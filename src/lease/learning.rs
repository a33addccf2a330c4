//! Learns what the `vault_role`'s revocation does to open sessions, for those whose `at_lease_end` depends on it: by
//! revoking a throw-away credential and looking, from a session on it, what becomes of its role.
//!
//! This is done once per chain, when the first generation with sessions nears its end. It runs in one task of the
//! chain, which owns the throw-away: whatever comes in between, a token that it got is revoked before the task ends.
//! Where nothing was learned, the next generation that nears its end is another occasion.

use std::sync::Arc;
use std::time::Duration;

use tokio::task;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::chain::ChainEvent;
use super::clock::Now;
use super::generation::Generation;
use super::requests::Report;
use super::token::{self, LiveToken, Requests};
use super::witness::{self, Effect, Footing, MAX_WATCH, Seen, Witness};
use super::{Causes, Chain, Prove, count, schedule};
use crate::credential::{Credential, DerivedKeys};
use crate::ids::{GenerationId, LeaseId};
use crate::upstream::OnCredential;
use crate::vault::{Answer, Lease, Login, Operation, VaultApi, VaultError};

/// What is known of the revocation.
#[derive(Debug)]
pub(super) enum Learning {
    /// Nothing; the end of `tried`, and of those before it, was an occasion.
    Open {
        tried: Option<GenerationId>,
    },
    /// A throw-away is being tried, on the occasion of the end of `of`.
    UnderWay {
        of: GenerationId,
        task: task::Id,
        stop: CancellationToken,
    },
    Known {
        is_harmless: bool,
    },
}

impl Default for Learning {
    fn default() -> Self {
        Self::Open { tried: None }
    }
}

impl Learning {
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay { .. })
    }

    /// Whether open sessions are known to take no harm.
    pub(super) fn is_harmless(&self) -> bool {
        self.known() == Some(true)
    }

    /// What was learned, if anything.
    pub(super) fn known(&self) -> Option<bool> {
        match self {
            Self::Known { is_harmless } => Some(*is_harmless),
            Self::Open { .. } | Self::UnderWay { .. } => None,
        }
    }

    /// Whether the end of this generation is an occasion to learn, or waits for what is under way.
    pub(super) fn is_awaited_by(&self, id: GenerationId) -> bool {
        match self {
            Self::Open { tried } => tried.is_none_or(|tried| id > tried),
            Self::UnderWay { .. } => true,
            Self::Known { .. } => false,
        }
    }

    /// Has the throw-away revoked and its task end soon.
    pub(super) fn stop(&self) {
        if let Self::UnderWay { stop, .. } = self {
            stop.cancel();
        }
    }
}

/// What became of a throw-away credential.
#[derive(Debug)]
pub(super) struct Tried {
    /// `None` where Vault gave none.
    credential: Option<(String, LeaseId)>,
    /// Whether the creds read was answered with one; `None` where it was not come to.
    issued: Option<bool>,
    outcome: Outcome,
    /// What Vault said to the end of its token; `None` where there was none.
    pub(super) revoked: Option<Result<(), VaultError>>,
}

#[derive(Debug)]
enum Outcome {
    Learned(Effect),
    /// In words for the log.
    Unknown(String),
    Stopped,
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Begins to learn, where it is time to.
    pub(super) fn learn_due(&mut self, now: Now) {
        let Learning::Open { .. } = self.learning else { return };
        let Some(of) = self.occasion(now) else { return };
        let (Some(learner), Some(current)) = (self.upstreams.learner().cloned(), self.current()) else {
            return;
        };
        let current = Arc::clone(&current.credential);
        self.last_generation += 1;
        let stop = CancellationToken::new();
        let trial = Trial {
            vault: Arc::clone(&self.vault),
            upstream: learner,
            vault_path: Arc::clone(&self.vault_path),
            generation: GenerationId(self.last_generation),
            current,
            stop: stop.clone(),
        };
        let task = self.tasks.spawn(async move { Report::Learned(Box::new(trial.run().await)) }).id();
        self.learning = Learning::UnderWay { of, task, stop };
        info!(event = "lease.revocation_tried", vault_path = %self.vault_path, at_end_of = %of);
        // Before it is made, so that none for sessions is made beyond the budget meanwhile.
        self.feed(ChainEvent::CredentialMade);
    }

    /// The generation whose end is near and an occasion to learn, if there is to be a credential for it.
    fn occasion(&self, now: Now) -> Option<GenerationId> {
        let nears_its_end = |generation: &&Generation| {
            generation.is_superseded()
                && generation.keeper.window().is_some()
                && self.learning.is_awaited_by(generation.id())
        };
        let may = self.may_learn() && self.state.may_make_one_more(now.boot);
        self.generations.values().filter(|_| may).find(nears_its_end).map(Generation::id)
    }

    /// Whether a verdict is of use, and to be had now.
    pub(super) fn may_learn(&self) -> bool {
        // A token that may not end itself would leave a throw-away to end by its TTL.
        let may_revoke = |current: &Generation| current.token.lookup_works() != Some(false);
        self.upstreams.learner().is_some() && self.has_successor() && self.current().is_some_and(may_revoke)
    }

    pub(super) fn on_learned(&mut self, tried: Tried) {
        let Learning::UnderWay { of, .. } = self.learning else { return };
        let Tried { credential, issued, outcome, revoked } = tried;
        let (db_role, lease) = credential.unzip();
        if let Some(issued) = issued {
            count(&self.metrics.lease_issued, issued);
        }
        if db_role.is_some()
            && let Some(revoked) = &revoked
        {
            count(&self.metrics.lease_revocations, revoked.is_ok());
        }
        if let Some(Err(error)) = revoked {
            self.metrics.orphans.inc();
            warn!(
                event = "lease.orphaned",
                vault_path = %self.vault_path,
                db_role,
                lease = lease.as_ref().map(tracing::field::display),
                code = error.status(),
                error = %Causes(&error),
                "not revoked: it ends by itself",
            );
        }
        self.learning = Learning::Open { tried: Some(of) };
        match outcome {
            Outcome::Stopped => {}
            Outcome::Unknown(reason) => warn!(
                event = "lease.revocation_unknown",
                vault_path = %self.vault_path,
                at_end_of = %of,
                reason,
                "sessions end as with at_lease_end = \"close\", and it is tried again at the next end",
            ),
            Outcome::Learned(effect) => {
                let is_harmless = effect.is_harmless();
                self.learning = Learning::Known { is_harmless };
                info!(
                    event = "lease.revocation_learned",
                    vault_path = %self.vault_path,
                    db_role,
                    saw = effect.as_str(),
                    harmless = is_harmless,
                );
            }
        }
    }

    /// Takes notice of a task that panicked: if it was the one that learns, its throw-away is left to itself.
    pub(super) fn forget_throw_away(&mut self, of: Option<task::Id>) {
        if let Learning::UnderWay { of: generation, task, .. } = self.learning
            && of.is_none_or(|id| id == task)
        {
            self.metrics.orphans.inc();
            self.learning = Learning::Open { tried: Some(generation) };
        }
    }
}

/// One throw-away credential, from its login to its revocation and what came of that.
struct Trial<V, P> {
    vault: Arc<V>,
    upstream: Arc<P>,
    vault_path: Arc<str>,
    /// Its number.
    generation: GenerationId,
    /// What sessions log in with.
    current: Arc<Credential>,
    stop: CancellationToken,
}

impl<V: VaultApi, P: Prove> Trial<V, P> {
    async fn run(self) -> Tried {
        let nothing = |outcome| Tried { credential: None, issued: None, outcome, revoked: None };
        let login = match self.finish(self.vault.log_in()).await {
            Some(Ok(login)) => login,
            Some(Err(error)) => return nothing(Outcome::unknown("login", &error)),
            None => return nothing(Outcome::Stopped),
        };
        let Login { token, kind, grant, .. } = login;
        let token = LiveToken::new(token, kind);
        let timeout = schedule::creds_timeout(grant.ttl);
        let read = async {
            token.look_up_once(&*self.vault).await;
            self.vault.read_creds(token.token(), &self.vault_path, timeout).await
        };
        let read = if self.stop.is_cancelled() { None } else { self.finish(read).await };
        match read {
            Some(Ok(lease)) => self.try_out(&token, lease).await,
            Some(Err(error)) => {
                let issued = Some(false);
                let revoked = Some(self.revoke(&token, Err(error.answer())).await);
                Tried { credential: None, issued, outcome: Outcome::unknown("creds", &error), revoked }
            }
            None => {
                time::sleep(token::PAUSE_AFTER_ABORT).await;
                let revoked = Some(self.revoke(&token, Err(Answer::Lost)).await);
                Tried { revoked, ..nothing(Outcome::Stopped) }
            }
        }
    }

    /// Opens a session on the throw-away, revokes it, and watches.
    async fn try_out(&self, token: &LiveToken, lease: Lease) -> Tried {
        let id = lease.id.clone();
        let credential = Credential {
            user: lease.user,
            password: lease.password,
            lease: Some(lease.id),
            generation: self.generation,
            keys: DerivedKeys::default(),
            granted: crate::credential::Granted::default(),
        };
        let witness = self.stop.run_until_cancelled(self.open(&credential)).await;
        let revoked = self.revoke(token, Ok(&id)).await;
        let outcome = match (witness, &revoked) {
            (Some(Ok((mut witness, before))), Ok(())) => {
                let watched = self.stop.run_until_cancelled(self.watch(&mut witness, before)).await;
                witness.close().await;
                watched.unwrap_or(Outcome::Stopped)
            }
            (None, _) => Outcome::Stopped,
            (Some(Err(unknown)), _) => unknown,
            (Some(Ok(_)), Err(error)) => Outcome::unknown("revocation", error),
        };
        Tried { credential: Some((credential.user, id)), issued: Some(true), outcome, revoked: Some(revoked) }
    }

    /// A session on the credential, and how its role stands before its revocation. A replica or a pooler may be late to
    /// know of it.
    async fn open(&self, credential: &Credential) -> Result<(P::Witness, Footing), Outcome> {
        let opened = async {
            loop {
                match self.upstream.open(credential).await {
                    Err(error) if error.on_credential() == OnCredential::Rejected => {
                        time::sleep(PAUSE_WHILE_REJECTED).await;
                    }
                    opened => return opened,
                }
            }
        };
        let mut witness = match time::timeout(MAX_OPEN, opened).await {
            Ok(Ok(witness)) => witness,
            Ok(Err(error)) => return Err(Outcome::unknown("session", &error)),
            Err(_) => return Err(Outcome::Unknown(format!("session: none within {MAX_OPEN:?}"))),
        };
        match witness.look().await {
            Ok(Some(footing)) if footing.can_login => Ok((witness, footing)),
            Ok(_) => Err(Outcome::Unknown("session: its role is not the credential's".to_owned())),
            Err(error) => Err(Outcome::unknown("session", &error)),
        }
    }

    async fn watch(&self, witness: &mut P::Witness, before: Footing) -> Outcome {
        match witness::watch(witness, before).await {
            Seen::Effect(effect) => Outcome::Learned(effect),
            Seen::Ended if self.server_goes_on().await => Outcome::Learned(Effect::Terminated),
            Seen::Ended => Outcome::Unknown("the server ends its sessions".to_owned()),
            Seen::Unclear(Some(error)) => Outcome::unknown("session", &error),
            Seen::Unclear(None) => Outcome::Unknown(String::new()),
            Seen::Nothing => Outcome::Unknown(format!("the role was not revoked within {MAX_WATCH:?}")),
        }
    }

    /// Whether a session ended for itself alone: a server that stops or fails over lets nobody in.
    async fn server_goes_on(&self) -> bool {
        let proven = time::timeout(MAX_OPEN, self.upstream.prove(&self.current)).await;
        matches!(proven, Ok(Ok(())))
    }

    /// Ends the token, or the lease alone where the token is not ours to end or cannot be. A read that failed so may
    /// have made one that nobody knows.
    async fn revoke(&self, token: &LiveToken, read: Result<&LeaseId, Answer>) -> Result<(), VaultError> {
        match read {
            _ if token.can_be_revoked() => token.revoke(&*self.vault).await,
            Ok(lease) => token.expire(&*self.vault, lease, &Requests::default()).await,
            Err(Answer::Lost | Answer::Malformed) => {
                Err(VaultError::NoAnswer { operation: Operation::ReadCreds, source: None })
            }
            Err(_) => Ok(()),
        }
    }

    /// The outcome of a request, for which a stop still leaves a little time: one that is answered can be undone.
    async fn finish<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        let too_late = async {
            self.stop.cancelled().await;
            time::sleep(token::MAX_WAIT).await;
        };
        tokio::select! {
            biased;
            answer = request => Some(answer),
            () = too_late => None,
        }
    }
}

impl Outcome {
    fn unknown(step: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Unknown(format!("{step}: {}", Causes(error)))
    }
}

/// For the login of a session, and for a probe.
const MAX_OPEN: Duration = Duration::from_secs(5);
const PAUSE_WHILE_REJECTED: Duration = Duration::from_millis(250);
