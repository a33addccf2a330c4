//! Upstream sessions that are logged in ahead of the clients that will have them.
//!
//! Each is handed out once, to a client whose whole startup packet is the one that it was logged in with, and is then
//! that client's as if it had logged in itself. What a packet sets cannot be set afterwards: `RESET ALL` and `DISCARD
//! ALL` go back to it. Packets are learnt from the sessions that begin.
//!
//! One task for each route with `warm`, begun with its first session: it logs in, one at a time and while nobody else
//! does, and ends what has become too old, is of a credential that is not the newest, or has been ended by upstream. It
//! ends with the route, or when no new session may begin any more, and each session that is left with it. Of several
//! threads it runs on the one that the first session was on; what it has made ready goes to clients on any. A panic ends
//! what is ready, and the task goes on.

mod packets;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{Notify, watch as channel};
use tokio::task::yield_now;
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::close;
use super::fault::{Panicked, caught};
use super::login::Login;
use super::watch;
use crate::config::RouteConfig;
use crate::credential::{CredentialSource, Hold, Standing};
use crate::drain::Phase;
use crate::ids::GenerationId;
use crate::telemetry::{Causes, Metrics, ResultLabels, RouteLabels};
use crate::upstream::{LoggedIn, OnCredential, Upstream};
use crate::wire::frame::split_frame;
use crate::wire::message::TERMINATE;
use crate::wire::message::backend::{NOTICE_RESPONSE, PARAMETER_STATUS, READY_FOR_QUERY};
use crate::wire::startup::StartupParameters;
#[cfg(test)]
use crate::wire::status::bug;

use packets::Packets;

/// The sessions that a route has ready. They end when it is dropped.
#[derive(Debug)]
pub(crate) struct Warm {
    pool: Arc<Pool>,
    /// Sessions that are wanted.
    size: usize,
    stop: CancellationToken,
    _stops: DropGuard,
}

#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
    /// Logins of clients that are under way.
    logins: AtomicUsize,
    /// There may be something to do.
    stirred: Notify,
    metrics: Arc<Metrics>,
    route: RouteLabels,
}

#[derive(Debug, Default)]
struct State {
    packets: Packets,
    /// Oldest first.
    ready: VecDeque<Ready>,
    /// To be ended, and counted already.
    left: Vec<Ready>,
    /// When a client has come last.
    came: Option<Instant>,
    /// There is a task.
    is_kept: bool,
}

/// A session that waits for its client.
#[derive(Debug)]
struct Ready {
    packet: Arc<StartupParameters>,
    logged_in: LoggedIn,
    hold: Hold,
    until: Instant,
    /// Which looks after its connection.
    thread: ThreadId,
}

/// What keeps a pool going.
pub(crate) struct Keeping<'a> {
    pub(crate) upstream: &'a Arc<Upstream>,
    pub(crate) source: &'a CredentialSource,
    pub(crate) phase: channel::Receiver<Phase>,
    pub(crate) tasks: &'a TaskTracker,
}

impl Warm {
    /// As many as the route says, at most; `None` where it says none.
    pub(crate) fn new(route: &RouteConfig, metrics: Arc<Metrics>) -> Option<Self> {
        if route.warm == 0 {
            return None;
        }
        let stop = CancellationToken::new();
        let pool = Pool {
            state: Mutex::default(),
            logins: AtomicUsize::new(0),
            stirred: Notify::new(),
            metrics,
            route: RouteLabels::of(route),
        };
        Some(Self { pool: Arc::new(pool), size: route.warm, stop: stop.clone(), _stops: stop.drop_guard() })
    }

    /// Whether there is any.
    pub(crate) fn is_empty(&self) -> bool {
        self.pool.lock().ready.is_empty()
    }

    /// The session for a client that comes with `packet`, if one is ready. Cancel safe, but for the session.
    pub(crate) async fn take(&self, packet: &StartupParameters, source: &CredentialSource) -> Option<Login> {
        self.pool.lock().came = Some(Instant::now());
        if !suits(packet) {
            return None;
        }
        loop {
            let Some(mut ready) = self.pool.pop(packet) else {
                self.pool.count("miss");
                return None;
            };
            if ready.come_here().is_err() {
                self.pool.leave(ready);
                continue;
            }
            // So that the end of it is known, if it has come.
            yield_now().await;
            let mut cx = Context::from_waker(Waker::noop());
            if source.generation() != Some(ready.generation()) || !ready.is_kept() {
                self.pool.count("flushed");
            } else if !ready.poll_said(&mut cx) {
                self.pool.count("closed");
            } else {
                self.pool.count("hit");
                let Ready { logged_in, hold, .. } = ready;
                return Some(Login { logged_in, hold });
            }
        }
    }

    /// Takes note of a session that has begun with `packet`, and sees to it that the next ones are made ready.
    pub(crate) fn note(&self, packet: &StartupParameters, keeping: &Keeping<'_>) {
        if !suits(packet) {
            return;
        }
        let mut state = self.pool.lock();
        state.packets.note(packet, Instant::now());
        if !std::mem::replace(&mut state.is_kept, true) {
            let keeper = Keeper {
                pool: Arc::clone(&self.pool),
                size: self.size,
                upstream: Arc::clone(keeping.upstream),
                source: keeping.source.clone(),
                stop: self.stop.clone(),
                phase: keeping.phase.clone(),
                tasks: keeping.tasks.clone(),
            };
            keeping.tasks.spawn(keeper.run());
        }
        drop(state);
        self.pool.stirred.notify_one();
    }

    /// Says that a client logs in, until what is returned is dropped: none is made ready meanwhile.
    pub(crate) fn client_logs_in(&self) -> ClientLogin<'_> {
        self.pool.logins.fetch_add(1, Ordering::AcqRel);
        ClientLogin(&self.pool)
    }

    /// Ends all that are ready, as upstream has no room for a client. Says whether there were any.
    pub(crate) async fn make_room(&self) -> bool {
        let given_up: Vec<_> = self.pool.lock().ready.drain(..).collect();
        let any = !given_up.is_empty();
        for mut ready in given_up {
            self.pool.gone(1, "flushed");
            close::close_upstream(&mut ready.logged_in.stream, TERMINATE).await;
        }
        any
    }
}

/// Whether sessions with such a packet are made ready: not those of replication.
fn suits(packet: &StartupParameters) -> bool {
    packet.get("replication").is_none()
}

/// A client that logs in itself.
pub(crate) struct ClientLogin<'a>(&'a Pool);

impl Drop for ClientLogin<'_> {
    fn drop(&mut self) {
        self.0.logins.fetch_sub(1, Ordering::AcqRel);
        self.0.stirred.notify_one();
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest that was logged in with `packet` and is not too old.
    fn pop(&self, packet: &StartupParameters) -> Option<Ready> {
        let now = Instant::now();
        let mut state = self.lock();
        let fits = |ready: &Ready| *ready.packet == *packet && ready.until > now;
        let found = state.ready.iter().position(fits)?;
        let ready = state.ready.remove(found)?;
        self.sessions().dec();
        Some(ready)
    }

    /// Has a session ended that the thread of its client cannot look after.
    fn leave(&self, ready: Ready) {
        self.count("stuck");
        self.lock().left.push(ready);
        self.stirred.notify_one();
    }

    fn sessions(&self) -> Gauge {
        self.metrics.warm_sessions.get_or_create_owned(&self.route)
    }

    fn count(&self, result: &'static str) {
        self.metrics.warm.get_or_create(&ResultLabels { result }).inc();
    }

    /// So many have left without a client.
    fn gone(&self, sessions: usize, result: &'static str) {
        self.sessions().dec_by(i64::try_from(sessions).unwrap_or(i64::MAX));
        let counter = self.metrics.warm.get_or_create_owned(&ResultLabels { result });
        counter.inc_by(u64::try_from(sessions).unwrap_or(u64::MAX));
    }

    /// A panic has broken off the making of sessions.
    fn panicked(&self) {
        let RouteLabels { database, user } = &self.route;
        error!(event = "warm.fault", database, user, "a bug of pglease: no session is ready for a minute");
        self.count("panic");
    }
}

impl Ready {
    fn generation(&self) -> GenerationId {
        self.hold.credential().generation
    }

    /// Has the thread that calls this look after its connection, if another one did.
    fn come_here(&mut self) -> io::Result<()> {
        let here = thread::current().id();
        if self.thread != here {
            self.logged_in.stream.come_here()?;
            self.thread = here;
        }
        Ok(())
    }

    /// Whether its credential has no end that sessions are told of.
    fn is_kept(&self) -> bool {
        *self.hold.standing().borrow() == Standing::Kept
    }

    /// Reads what upstream says unasked, for the client to hear. Says whether it is still a session, in which nothing was
    /// said that a client would not have had behind its own login.
    fn poll_said(&mut self, cx: &mut Context<'_>) -> bool {
        let LoggedIn { stream, after_key, .. } = &mut self.logged_in;
        let mut room = [0; 512];
        loop {
            let mut buf = ReadBuf::new(&mut room);
            match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                Poll::Pending => return is_calm(after_key),
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && after_key.len() < MAX_SAID_LEN => {
                    #[cfg(test)]
                    bug::meet(buf.filled());
                    after_key.extend_from_slice(buf.filled());
                }
                Poll::Ready(_) => return false,
            }
        }
    }
}

/// Whether there is nothing in it but what settings are and notices, around ReadyForQuery.
fn is_calm(mut after_key: &[u8]) -> bool {
    loop {
        match split_frame(after_key, u32::MAX) {
            Ok(Some((frame, rest))) => match frame.tag {
                PARAMETER_STATUS | NOTICE_RESPONSE | READY_FOR_QUERY => after_key = rest,
                _ => return false,
            },
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// The task of one pool.
struct Keeper {
    pool: Arc<Pool>,
    size: usize,
    upstream: Arc<Upstream>,
    source: CredentialSource,
    stop: CancellationToken,
    phase: channel::Receiver<Phase>,
    tasks: TaskTracker,
}

impl Keeper {
    async fn run(self) {
        let keeps = async {
            loop {
                let Err(Panicked) = caught(pin!(self.make_ready())).await;
                self.pool.panicked();
                // Any of them may be what it has stumbled at.
                self.end_stale(None);
                time::sleep(MAX_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = watch::refused(self.phase.clone()) => {}
            never = keeps => match never {},
        }
        self.end_stale(None);
    }

    /// Never ends by itself. Cancel safe.
    async fn make_ready(&self) -> Infallible {
        let mut failures = 0;
        let mut not_before = Instant::now();
        loop {
            let generation = self.source.generation();
            self.end_stale(generation);
            let (packet, look_again) = self.due(not_before);
            let work = async {
                if let Some(packet) = packet {
                    return Some(self.log_in(packet).await);
                }
                self.stirred(look_again).await;
                None
            };
            let made = tokio::select! {
                biased;
                () = self.source.other_than(generation) => continue,
                made = work => made,
            };
            match made {
                Some(Some(ready)) => {
                    failures = 0;
                    self.keep(ready);
                }
                Some(None) => {
                    self.pool.count("failed");
                    not_before = Instant::now() + (MIN_PAUSE * 2_u32.saturating_pow(failures)).min(MAX_PAUSE);
                    failures = (failures + 1).min(MAX_DOUBLINGS);
                }
                None => {}
            }
        }
    }

    /// Ends what is too old, not of `generation`, ended by upstream, or left by its client.
    fn end_stale(&self, generation: Option<GenerationId>) {
        let now = Instant::now();
        let mut cx = Context::from_waker(Waker::noop());
        let mut state = self.pool.lock();
        for left in std::mem::take(&mut state.left) {
            self.end(left);
        }
        let mut index = 0;
        // Each is judged where it is: what a panic breaks off is still counted as ready, and is so.
        while let Some(ready) = state.ready.get_mut(index) {
            let result = if Some(ready.generation()) != generation || !ready.is_kept() {
                "flushed"
            } else if ready.until <= now {
                "expired"
            } else if !ready.poll_said(&mut cx) {
                "closed"
            } else {
                index += 1;
                continue;
            };
            self.pool.gone(1, result);
            state.ready.remove(index).into_iter().for_each(|ready| self.end(ready));
        }
    }

    /// The hold goes back behind the session.
    fn end(&self, mut ready: Ready) {
        self.tasks.spawn(async move {
            close::close_upstream(&mut ready.logged_in.stream, TERMINATE).await;
        });
    }

    /// The packet of the next login, if it is time for one; else when to look again at the latest.
    fn due(&self, not_before: Instant) -> (Option<Arc<StartupParameters>>, Option<Instant>) {
        let now = Instant::now();
        let state = self.pool.lock();
        let ready =
            |packet: &StartupParameters| state.ready.iter().filter(|ready| *ready.packet == *packet).count();
        let packet = state.packets.next(self.size, ready, now).filter(|_| self.source.is_ready());
        let expires = state.ready.front().map(|ready| ready.until);
        let Some(packet) = packet else { return (None, expires) };
        let calm = state.came.map_or(now, |came| came + CALM).max(not_before);
        let clients_log_in = self.pool.logins.load(Ordering::Acquire) > 0;
        if calm <= now && !clients_log_in && state.ready.len() < self.size {
            return (Some(Arc::clone(packet)), None);
        }
        // A client that has logged in says so.
        let calm = Some(calm).filter(|calm| *calm > now && !clients_log_in);
        (None, calm.into_iter().chain(expires).min())
    }

    /// Returns when there may be something to do: a client has come or gone, upstream has said something, or it is
    /// `look_again`. Cancel safe.
    async fn stirred(&self, look_again: Option<Instant>) {
        let said = poll_fn(|cx| {
            let mut state = self.pool.lock();
            let said = state.ready.iter_mut().any(|ready| !ready.poll_said(cx));
            if said { Poll::Ready(()) } else { Poll::Pending }
        });
        let until = async {
            match look_again {
                Some(at) => time::sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.pool.stirred.notified() => {}
            () = said => {}
            () = until => {}
        }
    }

    /// A login as a client's.
    async fn log_in(&self, packet: Arc<StartupParameters>) -> Option<Ready> {
        let hold = self.source.hold().await.ok()?;
        let deadline = Instant::now() + LOGIN_LIMIT;
        // In a box, as it is large and seldom.
        let login = Box::pin(self.upstream.log_in(hold.credential(), &packet, deadline));
        match time::timeout_at(deadline, login).await {
            Ok(Ok(logged_in)) => {
                let (until, thread) = (Instant::now() + MAX_AGE, thread::current().id());
                Some(Ready { packet, logged_in, hold, until, thread })
            }
            Ok(Err(error)) => {
                debug!(event = "warm.failed", error = %Causes(&error));
                if matches!(error.on_credential(), OnCredential::Rejected | OnCredential::Doubtful) {
                    hold.doubt();
                }
                None
            }
            Err(_) => None,
        }
    }

    fn keep(&self, ready: Ready) {
        self.pool.lock().ready.push_back(ready);
        self.pool.sessions().inc();
    }
}

/// From login to its client: what was changed for a role or a database since then is not in it.
const MAX_AGE: Duration = Duration::from_mins(1);
/// None is logged in until no client has come for so long: in a burst those have the processor that are served, and
/// under steady load nothing is done that would be done for each client anyway.
const CALM: Duration = Duration::from_millis(50);
/// Of one login.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// Between logins that fail.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(1);
const MAX_DOUBLINGS: u32 = 6;
/// What upstream may say unasked before it is believed not to be well, in bytes; with what came at once behind the key.
const MAX_SAID_LEN: usize = 64 * 1024;
