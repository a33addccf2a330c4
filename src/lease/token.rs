//! A token of ours with the requests that go out under it, and its end. Runs in tasks of the chain.
//!
//! A creds read that is under way while its token is revoked leaves a lease behind that nothing ends before its TTL.
//! So every request is counted, and the revocation waits for the last of them.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::vault::{Answer, Token, VaultApi, VaultError};

/// A token from its login to its revocation.
#[derive(Debug)]
pub(super) struct LiveToken {
    token: Token,
    requests: TaskTracker,
    abort: CancellationToken,
    /// Whether lookup-self has answered 200, or 403: under policies that do not allow it a 403 says nothing about a
    /// token's life. Unset until one of them came.
    lookup_works: OnceLock<bool>,
}

impl LiveToken {
    pub(super) fn new(token: Token) -> Self {
        Self {
            token,
            requests: TaskTracker::new(),
            abort: CancellationToken::new(),
            lookup_works: OnceLock::new(),
        }
    }

    pub(super) fn token(&self) -> &Token {
        &self.token
    }

    /// `request`, counted from now on; `None` when it is aborted by the revocation.
    pub(super) fn run<F: Future>(&self, request: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        let (counted, abort) = (self.requests.token(), self.abort.clone());
        async move {
            let _counted = counted;
            abort.run_until_cancelled(request).await
        }
    }

    /// Whether the token may look itself up, as far as is known.
    pub(super) fn lookup_works(&self) -> Option<bool> {
        self.lookup_works.get().copied()
    }

    /// Looks the token up unless it has been. A failure says nothing, and is tried again before the next creds read.
    pub(super) async fn look_up_once(&self, vault: &impl VaultApi) {
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
    pub(super) async fn look_up(&self, vault: &impl VaultApi) -> Result<(), Answer> {
        let result = vault.look_up_self(&self.token).await;
        if result.is_ok() {
            // Set before, or here.
            let _ = self.lookup_works.set(true);
        }
        result.map(drop).map_err(|error| error.answer())
    }

    /// Whether a creds read that was denied was denied for the token's own sake, as far as lookup can tell: a token
    /// that cannot be looked up is not trusted to live.
    pub(super) async fn is_dead(&self, vault: &impl VaultApi) -> bool {
        match vault.look_up_self(&self.token).await {
            Ok(_) => false,
            Err(error) => error.answer() == Answer::Denied,
        }
    }

    /// Ends the token and every lease that was read with it: waits up to [`MAX_WAIT`] for the requests under way,
    /// aborts the others, and has three tries. An error means that the leases are left to end by themselves.
    pub(super) async fn revoke(&self, vault: &impl VaultApi) -> Result<(), VaultError> {
        self.requests.close();
        if time::timeout(MAX_WAIT, self.requests.wait()).await.is_err() {
            self.abort.cancel();
            self.requests.wait().await;
            time::sleep(PAUSE_AFTER_ABORT).await;
        }
        let mut backoff = Backoff::default();
        let mut tries = 1;
        loop {
            let Err(error) = vault.revoke_self(&self.token).await else { return Ok(()) };
            match self.judge(error.answer()) {
                Revocation::Done => return Ok(()),
                Revocation::Refused => return Err(error),
                Revocation::TryAgain if tries == MAX_TRIES => return Err(error),
                Revocation::TryAgain => {}
            }
            tries += 1;
            time::sleep(backoff.next(MAX_PAUSE, fastrand::f64())).await;
        }
    }

    fn judge(&self, answer: Answer) -> Revocation {
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

/// What an answer to revoke-self means.
enum Revocation {
    Done,
    Refused,
    TryAgain,
}

/// How long a revocation waits for requests under way.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(2);

/// For Vault to notice that an aborted request's connection is gone.
const PAUSE_AFTER_ABORT: Duration = Duration::from_millis(100);

const MAX_TRIES: u32 = 3;

const MAX_PAUSE: Duration = Duration::from_secs(1);
