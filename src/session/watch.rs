//! Everything outside of a session that may end it: its lease, the process, a cancel on its way.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{self, Instant};

use super::cancel::Cancellable;
use super::doubt::Doubts;
use super::ending::{Doing, Outlook, Verdict};
use super::route::Removal;
use crate::config::AtLeaseEnd;
use crate::credential::{CredentialSource, Standing};
use crate::drain::Phase;
use crate::wire::status::Signs;

/// What a session looks out for while it relays.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// With the hold on the credential.
    pub(crate) doubts: Doubts,
    pub(crate) at_lease_end: AtLeaseEnd,
    /// Of its route. Whoever changes it has everybody look again, by the phase: a session has no room for one more wait.
    pub(crate) removed: Removal,
    pub(crate) max_age: Option<Box<MaxAge>>,
    /// Uniform in 0–1.
    pub(crate) seed: f64,
    /// `None` where upstream gave no cancel key.
    pub(crate) cancellable: Option<Arc<Cancellable>>,
    /// Whether a cancel was on its way to the session at the last verdict.
    pub(crate) is_cancelled: bool,
}

/// The end of a session that gets too old.
#[derive(Debug)]
pub(crate) struct MaxAge {
    pub(crate) aged_from: Instant,
    /// Where its client would get another one.
    pub(crate) source: CredentialSource,
}

impl Watch {
    /// The verdict as of now. A session is not idle while a cancel is on its way to it: it might hit what comes
    /// next.
    pub(crate) fn judge(&mut self, doing: Doing) -> Verdict {
        let outlook = Outlook {
            standing: *self.standing.borrow_and_update(),
            phase: *self.phase.borrow_and_update(),
            at_lease_end: self.at_lease_end,
            removed: *self.removed.borrow(),
            aged_from: self.max_age.as_ref().map(|max_age| max_age.aged_from),
            has_credential: self.max_age.as_ref().is_none_or(|max_age| max_age.source.is_ready()),
            seed: self.seed,
        };
        self.is_cancelled = self.cancellable.as_ref().is_some_and(|session| session.is_under_way());
        let idle_since = doing.idle_since.filter(|_| !self.is_cancelled);
        outlook.judge(Doing { idle_since, ..doing }, Instant::now())
    }

    /// Takes note of what upstream has said.
    pub(crate) fn heed(&mut self, signs: Signs) {
        self.doubts.heed(signs, Instant::now());
    }

    /// Returns when there may be another verdict: something has changed, or it is `look_again`. Cancel safe.
    pub(crate) async fn changed(&mut self, look_again: Option<Instant>) {
        let Self { standing, phase, cancellable, is_cancelled, .. } = self;
        tokio::select! {
            () = change(standing) => {}
            () = change(phase) => {}
            () = delivered(cancellable.as_deref(), *is_cancelled) => {}
            () = until(look_again) => {}
        }
    }
}

/// Returns when the process stops and a client that asks for a session is refused. Cancel safe.
pub(crate) async fn refused(phase: watch::Receiver<Phase>) {
    draining(phase, |accept_until, _| accept_until).await;
}

/// Returns when the process stops and a session that has not begun will not any more. Cancel safe.
pub(crate) async fn too_late(phase: watch::Receiver<Phase>) {
    draining(phase, Instant::max).await;
}

/// Returns at the time in a drain that `at` makes of `accept_until` and `idle_from`, or at the cut.
async fn draining(mut phase: watch::Receiver<Phase>, at: impl Fn(Instant, Instant) -> Instant) {
    loop {
        let at = match *phase.borrow_and_update() {
            Phase::Serving => None,
            Phase::Draining { accept_until, idle_from, cut_at } => {
                Some(at(accept_until, idle_from).min(cut_at))
            }
            Phase::Cut => return,
        };
        tokio::select! {
            () = until(at) => return,
            () = change(&mut phase) => {}
        }
    }
}

/// The next change. What nobody can change any more stays as it is.
async fn change<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn delivered(session: Option<&Cancellable>, was_under_way: bool) {
    match session {
        Some(session) => session.delivered(was_under_way).await,
        None => pending().await,
    }
}

/// Sets a timer only where there is a time, and has room for it only then.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => Box::pin(time::sleep_until(at)).await,
        None => pending().await,
    }
}
