//! A token with the requests that go out under it, its end, and the end of single leases under it. Runs in tasks of the
//! chain, and of `pglease check`.
//!
//! A creds read that is under way while its token is revoked leaves a lease behind that nothing ends before its TTL; a
//! renewal that is under way while its lease is ended may bring it back. So requests are counted, and what ends them
//! waits for the last of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::ids::LeaseId;
use crate::vault::{Answer, Token, TokenKind, VaultApi, VaultError};

/// A token from its login to its revocation. Generations may share it.
#[derive(Debug)]
pub(crate) struct LiveToken {
    token: Token,
    kind: TokenKind,
    requests: Requests,
    /// Creds reads under it that were sent and not answered.
    lost_reads: AtomicU32,
    /// Whether lookup-self has answered 200, or 403: under policies that do not allow it a 403 says nothing about a
    /// token's life. Unset until one of them came.
    lookup_works: OnceLock<bool>,
}

impl LiveToken {
    pub(crate) fn new(token: Token, kind: TokenKind) -> Self {
        Self {
            token,
            kind,
            requests: Requests::default(),
            lost_reads: AtomicU32::new(0),
            lookup_works: OnceLock::new(),
        }
    }

    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    pub(crate) fn kind(&self) -> TokenKind {
        self.kind
    }

    /// Whether it is ours to end, and can be.
    pub(crate) fn can_be_revoked(&self) -> bool {
        self.kind == TokenKind::Service
    }

    /// Whether its revocation has begun.
    pub(super) fn is_ending(&self) -> bool {
        self.requests.tracker.is_closed()
    }

    /// `request`, counted from now on; `None` when it is aborted by the revocation.
    pub(crate) fn run<F: Future>(&self, request: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        self.requests.run(request)
    }

    /// Whether the next read may be made with this token after one that failed so. Where it may have made what nobody
    /// knows, the token ends with that.
    pub(super) fn serves_after(&self, answer: Answer, is_dead: bool) -> bool {
        match answer {
            Answer::Lost => self.lost_reads.fetch_add(1, Ordering::Relaxed) + 1 < MAX_LOST_READS,
            Answer::Malformed => false,
            Answer::Denied => !is_dead,
            Answer::NotSent
            | Answer::Redirect
            | Answer::BadRequest
            | Answer::NotFound
            | Answer::TryLater { .. }
            | Answer::Unexpected
            | Answer::Unavailable => true,
        }
    }

    /// Whether there may be leases under it that nobody knows.
    pub(super) fn has_lost_reads(&self) -> bool {
        self.lost_reads.load(Ordering::Relaxed) > 0
    }

    /// Whether the token may look itself up, as far as is known.
    pub(super) fn lookup_works(&self) -> Option<bool> {
        self.lookup_works.get().copied()
    }

    /// Looks the token up unless it has been. A failure says nothing, and is tried again before the next creds read.
    pub(crate) async fn look_up_once(&self, vault: &impl VaultApi) {
        if self.lookup_works().is_none() {
            let works = match vault.look_up_self(&self.token).await {
                Ok(_) => true,
                Err(error) if error.answer() == Answer::Denied => false,
                Err(_) => return,
            };
            // Set once: nobody else looks this token up before it has been read with.
            let _ = self.lookup_works.set(works);
        }
    }

    /// Looks the token up.
    pub(super) async fn look_up(&self, vault: &impl VaultApi) -> Result<(), VaultError> {
        let result = vault.look_up_self(&self.token).await;
        if result.is_ok() {
            // Set before, or here.
            let _ = self.lookup_works.set(true);
        }
        result.map(drop)
    }

    /// Whether a creds read that was denied was denied for the token's own sake, as far as lookup can tell: a token
    /// that cannot be looked up is not trusted to live.
    pub(super) async fn is_dead(&self, vault: &impl VaultApi) -> bool {
        match vault.look_up_self(&self.token).await {
            Ok(_) => false,
            Err(error) => error.answer() == Answer::Denied,
        }
    }

    /// Ends the token and every lease that was read with it, after the requests under way; has three tries. An error
    /// means that the leases are left to end by themselves.
    pub(crate) async fn revoke(&self, vault: &impl VaultApi) -> Result<(), VaultError> {
        self.requests.end().await;
        self.end(vault, None).await
    }

    /// Ends one lease and leaves the token to others, after the requests about that lease; has three tries.
    pub(crate) async fn expire(
        &self,
        vault: &impl VaultApi,
        lease: &LeaseId,
        about: &Requests,
    ) -> Result<(), VaultError> {
        about.end().await;
        // Aborted by the end of the token, which ends the lease as well.
        self.run(self.end(vault, Some(lease))).await.unwrap_or(Ok(()))
    }

    async fn end(&self, vault: &impl VaultApi, lease: Option<&LeaseId>) -> Result<(), VaultError> {
        let mut backoff = Backoff::default();
        let mut tries = 1;
        loop {
            let result = match lease {
                Some(lease) => vault.expire_lease(&self.token, lease).await,
                None => vault.revoke_self(&self.token).await,
            };
            let Err(error) = result else { return Ok(()) };
            let judged = match lease {
                Some(lease) => self.judge_expiry(vault, lease, error.answer()).await,
                None => self.judge(error.answer()),
            };
            match judged {
                Revocation::Done => return Ok(()),
                Revocation::Refused => return Err(error),
                Revocation::TryAgain if tries == MAX_TRIES => return Err(error),
                Revocation::TryAgain => {}
            }
            tries += 1;
            time::sleep(backoff.next(MAX_PAUSE, fastrand::f64())).await;
        }
    }

    /// A lease is ended by a renewal, and that is refused as well where the database is away.
    async fn judge_expiry(&self, vault: &impl VaultApi, lease: &LeaseId, answer: Answer) -> Revocation {
        if !matches!(answer, Answer::BadRequest | Answer::NotFound) {
            return self.judge(answer);
        }
        let looked_up = vault.look_up_lease(&self.token, lease).await.map_err(|error| error.answer());
        if matches!(looked_up, Err(Answer::BadRequest | Answer::NotFound)) {
            Revocation::Done
        } else {
            Revocation::TryAgain
        }
    }

    /// What an answer to revoke-self means.
    pub(super) fn judge(&self, answer: Answer) -> Revocation {
        match answer {
            // 400 is a batch token's, which cannot be revoked.
            Answer::Malformed | Answer::BadRequest | Answer::NotFound | Answer::Unexpected => {
                Revocation::Done
            }
            // No such token any more, or not allowed to end itself.
            Answer::Denied if self.lookup_works() == Some(true) => Revocation::Done,
            Answer::Denied => Revocation::Refused,
            Answer::NotSent
            | Answer::Lost
            | Answer::Redirect
            | Answer::TryLater { .. }
            | Answer::Unavailable => Revocation::TryAgain,
        }
    }
}

/// Requests that are counted, for what must come after the last of them.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    tracker: TaskTracker,
    abort: CancellationToken,
}

impl Requests {
    /// `request`, counted from now on; `None` when it is aborted by the end.
    pub(super) fn run<F: Future>(&self, request: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        let (counted, abort) = (self.tracker.token(), self.abort.clone());
        async move {
            let _counted = counted;
            abort.run_until_cancelled(request).await
        }
    }

    /// Waits up to [`MAX_WAIT`] for those that are under way, and aborts the others.
    async fn end(&self) {
        self.tracker.close();
        if time::timeout(MAX_WAIT, self.tracker.wait()).await.is_err() {
            self.abort.cancel();
            self.tracker.wait().await;
            time::sleep(PAUSE_AFTER_ABORT).await;
        }
    }
}

/// What an answer to a revocation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revocation {
    Done,
    Refused,
    TryAgain,
}

/// After so many reads without an answer there may be leases that nobody knows.
const MAX_LOST_READS: u32 = 2;

/// How long a revocation waits for requests under way.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(2);

/// For Vault to notice that an aborted request's connection is gone.
pub(super) const PAUSE_AFTER_ABORT: Duration = Duration::from_millis(100);

const MAX_TRIES: u32 = 3;

const MAX_PAUSE: Duration = Duration::from_secs(1);
