//! Cancel keys handed out, and the upstream behind each. Runs no task: a delivery is the work of the connection
//! that asked for it.

mod guesses;
mod turns;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Mutex, Notify};
use tokio::time;
use tracing::debug;
use zeroize::Zeroizing;

use crate::telemetry::{Causes, Metrics, ResultLabels};
use crate::upstream::{CancelTarget, Upstream, UpstreamError};
use crate::wire::startup::CancelKey;

use guesses::Guesses;
use turns::{Turn, Turns, TurnsAt};

/// Every session that can be cancelled, by the pid that its client knows. Several upstreams may have the same.
#[derive(Debug, Default)]
pub(crate) struct CancelRegistry {
    by_pid: DashMap<i32, Vec<Arc<Cancellable>>>,
    turns: Turns,
    guesses: Guesses,
}

/// Why a cancel was not delivered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CancelError {
    #[error("delivering a cancel took longer than {DELIVERY_TIMEOUT:?}")]
    TimedOut,
    #[error("delivering a cancel")]
    Upstream(#[from] UpstreamError),
    #[error("no randomness for a cancel key")]
    Random,
}

/// A key of our own with a secret of `secret_len` bytes, which cancels nothing unless it is registered.
pub(super) fn own_key(pid: i32, secret_len: usize) -> Result<CancelKey, CancelError> {
    let mut secret = Zeroizing::new(vec![0; secret_len]);
    SystemRandom::new().fill(&mut secret).map_err(|_| CancelError::Random)?;
    Ok(CancelKey { pid, secret })
}

impl CancelRegistry {
    /// Makes a key of our own for a session, with a secret of `secret_len` bytes, good until the registration is
    /// dropped.
    pub(crate) fn register(
        self: &Arc<Self>,
        upstream: Arc<Upstream>,
        target: CancelTarget,
        secret_len: usize,
    ) -> Result<Registration, CancelError> {
        let key = own_key(target.key.pid, secret_len)?;
        let turns = self.turns.at(&target.address);
        let session = Arc::new(Cancellable {
            key,
            turns,
            upstream,
            target,
            under_way: AtomicU32::new(0),
            delivered: Notify::new(),
            is_over: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            last: Mutex::default(),
        });
        self.by_pid.entry(session.key.pid).or_default().push(Arc::clone(&session));
        Ok(Registration { registry: Arc::clone(self), session })
    }

    /// Delivers a client's CancelRequest to the session that it means, if there is one; in its [turn](turns), of one
    /// session one at a time, in the order in which they came. `begins` is asked when it has its turn, and where it says
    /// no nothing is delivered. Cancel safe as [`Cancellable::cancel`] is.
    pub(crate) async fn deliver<E>(
        &self,
        key: &CancelKey,
        metrics: &Metrics,
        begins: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let session = self.find(key);
        let outcome = match &session {
            None => Outcome::Miss,
            Some(session) => self.cancel_in_turn(session, begins).await?,
        };
        metrics.cancel_requests.get_or_create(&ResultLabels { result: outcome.as_str() }).inc();
        // A right key whose session has ended meanwhile is no guess.
        if session.is_none() {
            self.guesses.missed().await;
        }
        Ok(())
    }

    /// A delivery that begins after a request has come does for it, whoever asked for that one. So what one client
    /// asks for in a hurry costs upstream two deliveries, and other clients no more than two turns. Waits for its turn
    /// twice [`DELIVERY_TIMEOUT`] at most.
    async fn cancel_in_turn<E>(
        &self,
        session: &Cancellable,
        begins: impl FnOnce() -> Result<(), E>,
    ) -> Result<Outcome, E> {
        let begun_before = session.begun.load(Ordering::Acquire);
        // Who waits longer than a delivery may take waits behind an upstream that answers none.
        let Ok(mut last) = time::timeout(DELIVERY_TIMEOUT, session.last.lock()).await else {
            return Ok(Outcome::Failed);
        };
        if last.number > begun_before {
            return Ok(last.outcome);
        }
        let Ok(turn) = time::timeout(DELIVERY_TIMEOUT, session.turns.take()).await else {
            return Ok(Outcome::Failed);
        };
        if session.is_over.load(Ordering::Acquire) {
            return Ok(Outcome::Miss);
        }
        begins()?;
        let number = session.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let outcome = match session.deliver(turn).await {
            Ok(()) => Outcome::Delivered,
            Err(error) => {
                debug!(event = "cancel.failed", pid = session.key.pid, error = %Causes(&error));
                Outcome::Failed
            }
        };
        *last = Delivery { number, outcome };
        Ok(outcome)
    }

    /// Compares with every session of that pid, whichever matches, each in constant time.
    fn find(&self, key: &CancelKey) -> Option<Arc<Cancellable>> {
        let sessions = self.by_pid.get(&key.pid)?;
        sessions
            .iter()
            .fold(None, |found, session| if session.key == *key { Some(Arc::clone(session)) } else { found })
    }
}

/// What becomes of a CancelRequest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Outcome {
    Delivered,
    Failed,
    /// There is no session with that key, or there is none any more.
    #[default]
    Miss,
}

impl Outcome {
    /// The word in metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Miss => "miss",
        }
    }
}

/// One that has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Delivery {
    /// Counted from 1.
    number: u64,
    outcome: Outcome,
}

/// One session, as far as a cancel goes.
#[derive(Debug)]
pub(crate) struct Cancellable {
    /// What the client was given: upstream's pid, a secret of ours.
    key: CancelKey,
    upstream: Arc<Upstream>,
    target: CancelTarget,
    turns: TurnsAt,
    /// Deliveries that have begun and not ended.
    under_way: AtomicU32,
    delivered: Notify,
    /// The client cannot cancel any more.
    is_over: AtomicBool,
    /// Deliveries of the client's that have begun.
    begun: AtomicU64,
    /// The last of them; locked by who delivers.
    last: Mutex<Delivery>,
}

impl Cancellable {
    /// Cancels what runs, in its turn, and waits until upstream has taken note of it. Cancel safe as far as one can
    /// tell: what was sent was sent.
    pub(crate) async fn cancel(&self) -> Result<(), CancelError> {
        let turn = self.turns.take().await;
        self.deliver(turn).await
    }

    async fn deliver(&self, _turn: Turn<'_>) -> Result<(), CancelError> {
        let _under_way = UnderWay::begin(self);
        time::timeout(DELIVERY_TIMEOUT, self.upstream.cancel(&self.target))
            .await
            .map_err(|_| CancelError::TimedOut)?
            .map_err(CancelError::from)
    }

    /// Whether a cancel may still hit what the client sends next.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
    }

    /// Returns when a delivery has ended since [`Self::is_under_way`] said `was_under_way`. Cancel safe.
    pub(crate) async fn delivered(&self, was_under_way: bool) {
        // Told of every end from here on, and of those before the state tells: none is missed on whatever thread it is.
        let delivered = self.delivered.notified();
        if was_under_way && !self.is_under_way() {
            return;
        }
        delivered.await;
    }
}

/// Counts a delivery for as long as it lives.
struct UnderWay<'a>(&'a Cancellable);

impl<'a> UnderWay<'a> {
    fn begin(session: &'a Cancellable) -> Self {
        session.under_way.fetch_add(1, Ordering::AcqRel);
        Self(session)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
        self.0.delivered.notify_waiters();
    }
}

/// A key in use; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<CancelRegistry>,
    session: Arc<Cancellable>,
}

impl Registration {
    /// What the client is given.
    pub(crate) fn key(&self) -> &CancelKey {
        &self.session.key
    }

    pub(crate) fn session(&self) -> &Arc<Cancellable> {
        &self.session
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let pid = self.session.key.pid;
        self.session.is_over.store(true, Ordering::Release);
        if let Some(mut sessions) = self.registry.by_pid.get_mut(&pid) {
            sessions.retain(|session| !Arc::ptr_eq(session, &self.session));
        }
        self.registry.by_pid.remove_if(&pid, |_, sessions| sessions.is_empty());
    }
}

/// Connect, write, wait for the close.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamConfig;

    fn upstream() -> Arc<Upstream> {
        Arc::new(Upstream::load(&UpstreamConfig::plain("127.0.0.1", 1)).unwrap())
    }

    fn register(registry: &Arc<CancelRegistry>, pid: i32, secret: &[u8]) -> Registration {
        let key = CancelKey { pid, secret: Zeroizing::new(secret.to_vec()) };
        let upstream = upstream();
        let target = upstream.cancel_target(key);
        registry.register(upstream, target, 32).unwrap()
    }

    #[test]
    fn key_has_upstreams_pid_and_a_secret_of_our_own() {
        let registry = Arc::new(CancelRegistry::default());
        let registration = register(&registry, 42, b"upstream");

        assert_eq!(registration.key().pid, 42);
        assert_eq!(registration.key().secret.len(), 32);
        assert!(registry.find(registration.key()).is_some());
        let guess = CancelKey { pid: 42, secret: Zeroizing::new(b"upstream".to_vec()) };
        assert!(registry.find(&guess).is_none(), "upstream's own secret is good upstream only");
    }

    #[test]
    fn sessions_that_share_a_pid_are_told_apart_and_go_one_by_one() {
        let registry = Arc::new(CancelRegistry::default());
        let (first, second) = (register(&registry, 7, b"a"), register(&registry, 7, b"b"));
        let (first_key, second_key) = (first.key().clone(), second.key().clone());

        assert!(Arc::ptr_eq(&registry.find(&first_key).unwrap(), first.session()));
        drop(first);
        assert!(registry.find(&first_key).is_none());
        assert!(Arc::ptr_eq(&registry.find(&second_key).unwrap(), second.session()));
        drop(second);
        assert!(registry.by_pid.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn cancel_is_under_way_until_it_has_ended_however_it_ends() {
        let registry = Arc::new(CancelRegistry::default());
        let registration = register(&registry, 7, b"a");
        let session = registration.session();
        let mut delivered = std::pin::pin!(session.delivered(false));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(delivered.as_mut().poll(cx).is_pending())).await
        );

        let under_way = UnderWay::begin(session);
        assert!(session.is_under_way());
        drop(under_way);
        assert!(!session.is_under_way());
        delivered.await;
        // It ended before anybody waited for that, and after it was looked at.
        session.delivered(true).await;
    }

    #[tokio::test]
    async fn guess_and_failure_are_counted() {
        let metrics = Metrics::new();
        let registry = Arc::new(CancelRegistry::default());
        let registration = register(&registry, 7, b"a");
        let guess = CancelKey { pid: 7, secret: Zeroizing::new(vec![0; 5]) };
        registry.deliver(&guess, &metrics, || Err("a guess has no turn")).await.unwrap();
        registry.deliver(registration.key(), &metrics, || Err("its place is lost")).await.unwrap_err();
        registry.deliver(registration.key(), &metrics, || Ok::<_, &str>(())).await.unwrap();

        let count = |result| metrics.cancel_requests.get_or_create(&ResultLabels { result }).get();
        assert_eq!((count("miss"), count("failed"), count("delivered")), (1, 1, 0));
    }
}
