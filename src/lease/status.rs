//! How a chain stands, for `/status`: nothing secret, and nothing that a client chose.

use serde::Serialize;

use super::chain::{Attempt, Phase};
use super::clock::Now;
use super::control::ChainHandle;
use super::generation::Generation;
use super::term::Term;
use super::{Chain, Prove, whole_seconds};
use crate::telemetry;
use crate::upstream::UpstreamError;
use crate::vault::{VaultApi, VaultError};

/// One chain.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChainStatus {
    pub(crate) vault_path: String,
    /// `leased` or `static`.
    pub(crate) kind: &'static str,
    /// As in docs/lease.md, in lower case.
    pub(crate) state: &'static str,
    /// What serves now.
    pub(crate) current: Option<String>,
    /// The next credential, while one is wanted.
    pub(crate) rotation: Option<RotationStatus>,
    /// The last thing that failed, whether or not it has been made good since.
    pub(crate) last_error: Option<LastError>,
    /// Whether the end of a lease does open sessions no harm, once that was learned.
    pub(crate) end_is_harmless: Option<bool>,
    /// Sessions that wait for a credential.
    pub(crate) clients_waiting: usize,
    /// Revocations that Vault has not answered yet.
    pub(crate) revocations: usize,
    /// The oldest first.
    pub(crate) generations: Vec<GenerationStatus>,
}

/// The way to the next credential.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RotationStatus {
    /// Why it is wanted, in the words of the metric; none for the first one of all.
    pub(crate) trigger: Option<&'static str>,
    /// `waiting`, `renewing` or `running`.
    pub(crate) attempt: &'static str,
    /// Until the attempt goes on, where it waits.
    pub(crate) in_seconds: Option<u64>,
    /// The sessions on older generations will end with it.
    pub(crate) close: bool,
}

/// What failed last, in our words.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LastError {
    /// As in the metric `vault_requests`, or `proof`.
    pub(crate) operation: &'static str,
    pub(crate) kind: &'static str,
    /// HTTP status or SQLSTATE.
    pub(crate) code: Option<String>,
    /// The error in words, as the log has it.
    pub(crate) says: String,
    /// Unix time.
    pub(crate) at: u64,
}

/// One generation. Seconds are rounded.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GenerationStatus {
    /// As in the log: `g1`.
    pub(crate) generation: String,
    pub(crate) state: &'static str,
    pub(crate) db_role: String,
    /// The hash that the log has. A static role has no lease, and these three are none.
    pub(crate) lease: Option<String>,
    pub(crate) age_seconds: Option<u64>,
    pub(crate) lease_seconds: Option<u64>,
    /// None where the token does not end.
    pub(crate) token_seconds: Option<u64>,
    /// Of what a whole grant is.
    pub(crate) lease_ttl_seconds: Option<u64>,
    pub(crate) token_ttl_seconds: Option<u64>,
    /// Of a static role, of the password that serves: until Vault changes it.
    pub(crate) password_seconds: Option<u64>,
    /// The same when it was first read.
    pub(crate) password_ttl_seconds: Option<u64>,
    /// No renewal will move the end any more.
    pub(crate) end_is_final: bool,
    /// Every route's upstream has accepted it.
    pub(crate) proven: bool,
    /// Sessions.
    pub(crate) holders: usize,
    /// Credential files that have it, or had it and keep it alive for their readers.
    pub(crate) files: usize,
    /// What its sessions are told.
    pub(crate) standing: &'static str,
}

impl ChainStatus {
    /// What is known of a chain from outside.
    pub(crate) fn empty(chain: &ChainHandle, state: &'static str) -> Self {
        Self {
            vault_path: chain.vault_path().to_owned(),
            kind: chain.kind(),
            state,
            current: None,
            rotation: None,
            last_error: None,
            end_is_harmless: None,
            clients_waiting: 0,
            revocations: 0,
            generations: Vec::new(),
        }
    }
}

impl LastError {
    pub(super) fn of_vault(error: &VaultError, now: Now) -> Self {
        Self {
            operation: error.operation().as_str(),
            kind: error.kind(),
            code: error.status().map(|status| status.to_string()),
            says: telemetry::in_words(error),
            at: now.wall.as_secs(),
        }
    }

    /// `None` is no verdict in time.
    pub(super) fn of_proof(error: Option<&UpstreamError>, now: Now) -> Self {
        Self {
            operation: "proof",
            kind: error.map_or("timeout", UpstreamError::reason),
            code: error.and_then(UpstreamError::sqlstate).map(|code| code.to_string()),
            says: error.map_or_else(|| NO_VERDICT.to_owned(), |error| telemetry::in_words(error)),
            at: now.wall.as_secs(),
        }
    }
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    pub(super) fn status(&mut self) -> ChainStatus {
        let now = self.now();
        ChainStatus {
            current: self.current().map(|current| current.id().to_string()),
            rotation: self.rotation(now),
            last_error: self.last_error.clone(),
            end_is_harmless: self.learning.known(),
            clients_waiting: *self.waiting.borrow(),
            revocations: self.revoking,
            generations: self.generations.values_mut().map(|generation| generation.status(now)).collect(),
            ..ChainStatus::empty(&self.handle, self.state.phase().as_str())
        }
    }

    fn rotation(&self, now: Now) -> Option<RotationStatus> {
        let phase = self.state.phase();
        let in_seconds = self.state.attempt_at().map(|at| whole_seconds(at.saturating_sub(now.boot)));
        let attempt = match phase {
            Phase::Fetch { attempt, .. } | Phase::Rotating { attempt, .. } => attempt,
            Phase::Boot | Phase::Serving | Phase::Renewing | Phase::Degraded | Phase::Ended => return None,
        };
        Some(RotationStatus {
            trigger: phase.trigger().map(super::chain::Trigger::as_str),
            attempt: attempt.as_str(),
            in_seconds,
            close: self.asked.close,
        })
    }

    /// Keeps what Vault refused for those who ask.
    pub(super) fn note_vault_error(&mut self, error: &VaultError) {
        self.last_error = Some(LastError::of_vault(error, self.now()));
    }

    /// Keeps what an upstream said to a probe; `None` is nothing in time.
    pub(super) fn note_proof_error(&mut self, error: Option<&UpstreamError>) {
        self.last_error = Some(LastError::of_proof(error, self.now()));
    }
}

impl Generation {
    fn status(&mut self, now: Now) -> GenerationStatus {
        let (lease, token) = self.keeper.lease_and_token();
        let (lease_ttl, token_ttl) = (lease.nominal(), token.map(Term::nominal));
        GenerationStatus {
            generation: self.id().to_string(),
            holders: self.sessions(),
            files: self.files(),
            state: self.state().as_str(),
            db_role: self.user().to_owned(),
            lease: Some(self.lease().to_string()),
            age_seconds: Some(whole_seconds(self.keeper.age(now))),
            lease_seconds: Some(whole_seconds(self.keeper.lease_left(now))),
            token_seconds: self.keeper.token_left(now).map(whole_seconds),
            lease_ttl_seconds: Some(whole_seconds(lease_ttl)),
            token_ttl_seconds: token_ttl.map(whole_seconds),
            password_seconds: None,
            password_ttl_seconds: None,
            end_is_final: self.keeper.window().is_some(),
            proven: self.is_proven(),
            standing: self.standing().as_str(),
        }
    }
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Fetch { .. } => "fetch",
            Self::Serving => "serving",
            Self::Renewing => "renewing",
            Self::Degraded => "degraded",
            Self::Rotating { .. } => "rotating",
            Self::Ended => "ended",
        }
    }
}

impl Attempt {
    fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Renewing => "renewing",
            Self::Running => "running",
        }
    }
}

/// Where a proof brought no error and no login.
const NO_VERDICT: &str = "no upstream has given a verdict on the credential in time";
