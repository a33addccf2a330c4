//! Every open session, and what each thread has of them, as an operator sees it. No task runs here.
//!
//! A session writes down what it does, with plain stores, at the points where that changes; whoever looks reads that.
//! The relay meets no lock: the map is touched only where a session begins and where it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::ids::{GenerationId, SessionId};
use crate::net::Peer;

/// All sessions that have a seat.
#[derive(Debug)]
pub(crate) struct Roster {
    by_id: DashMap<SessionId, Arc<Line>>,
}

impl Default for Roster {
    fn default() -> Self {
        // Written where a session begins and ends, by one thread or a few: the many shards of a large machine would be
        // room for nothing.
        Self { by_id: DashMap::with_shard_amount(SHARDS) }
    }
}

/// What a session is when it gets its seat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer<'a> {
    pub(crate) session: SessionId,
    /// When the connection came.
    pub(crate) began: Instant,
    pub(crate) peer: Peer,
    /// What the client calls them, as text of bounded length.
    pub(crate) database: &'a str,
    pub(crate) application_name: &'a str,
    /// Of the route.
    pub(crate) vault_path: &'a str,
}

impl Roster {
    /// Lists a session for as long as what is returned lives.
    pub(crate) fn enter(self: &Arc<Self>, newcomer: Newcomer<'_>) -> Listed {
        let line = Arc::new(Line::new(newcomer));
        self.by_id.insert(newcomer.session, Arc::clone(&line));
        Listed { roster: Arc::clone(self), line }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All of them, the oldest first.
    pub(crate) fn lines(&self) -> Vec<Arc<Line>> {
        let mut lines: Vec<_> = self.by_id.iter().map(|line| Arc::clone(line.value())).collect();
        lines.sort_unstable_by_key(|line| line.session.0);
        lines
    }
}

/// A session's place on the roster, given back on drop.
#[derive(Debug)]
pub(crate) struct Listed {
    roster: Arc<Roster>,
    line: Arc<Line>,
}

impl Listed {
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.roster.by_id.remove(&self.line.session);
    }
}

/// One session. Written by the session alone.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) session: SessionId,
    pub(crate) peer: Peer,
    began: Instant,
    /// Database, application name and `vault_path`, in one allocation: there may be thousands.
    names: Box<str>,
    ends: [u32; 2],
    state: AtomicU8,
    pid: AtomicI32,
    /// In milliseconds from `began`.
    since: AtomicU64,
    /// 0 is none yet.
    generation: AtomicU64,
    /// From the client, and from upstream.
    bytes: [AtomicU64; 2],
}

impl Line {
    fn new(newcomer: Newcomer<'_>) -> Self {
        let Newcomer { session, began, peer, database, application_name, vault_path } = newcomer;
        let end = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Self {
            session,
            peer,
            began,
            names: [database, application_name, vault_path].concat().into(),
            ends: [end(database.len()), end(database.len() + application_name.len())],
            state: AtomicU8::new(State::Login as u8),
            pid: AtomicI32::new(0),
            since: AtomicU64::new(since(began)),
            generation: AtomicU64::new(0),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// The session does something else from now on; the same again changes nothing.
    pub(crate) fn enter(&self, state: State) {
        if self.state.load(Ordering::Relaxed) != state as u8 {
            self.since.store(since(self.began), Ordering::Relaxed);
            self.state.store(state as u8, Ordering::Relaxed);
        }
    }

    /// Upstream has let it in; `pid` is 0 where upstream gave none.
    pub(crate) fn logged_in(&self, generation: GenerationId, pid: i32) {
        self.generation.store(generation.0, Ordering::Relaxed);
        self.pid.store(pid, Ordering::Relaxed);
        self.enter(State::Idle);
    }

    /// Bytes have passed, so many in all from the client and from upstream.
    pub(crate) fn relayed(&self, [frontend, backend]: [u64; 2], state: State) {
        self.bytes[0].store(frontend, Ordering::Relaxed);
        self.bytes[1].store(backend, Ordering::Relaxed);
        self.enter(state);
    }

    pub(crate) fn database(&self) -> &str {
        self.name(0, self.ends[0])
    }

    pub(crate) fn application_name(&self) -> &str {
        self.name(self.ends[0], self.ends[1])
    }

    pub(crate) fn vault_path(&self) -> &str {
        self.name(self.ends[1], u32::try_from(self.names.len()).unwrap_or(u32::MAX))
    }

    fn name(&self, from: u32, to: u32) -> &str {
        let [from, to] = [from, to].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        self.names.get(from..to).unwrap_or_default()
    }

    pub(crate) fn state(&self) -> State {
        State::ALL
            .into_iter()
            .find(|state| *state as u8 == self.state.load(Ordering::Relaxed))
            .unwrap_or_default()
    }

    /// Since the connection came.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Since it does what it does.
    pub(crate) fn in_state(&self) -> Duration {
        self.age().saturating_sub(Duration::from_millis(self.since.load(Ordering::Relaxed)))
    }

    /// Of its credential, once it has one.
    pub(crate) fn generation(&self) -> Option<GenerationId> {
        Some(self.generation.load(Ordering::Relaxed)).filter(|generation| *generation > 0).map(GenerationId)
    }

    /// Upstream's, once it is known.
    pub(crate) fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// From the client, and from upstream.
    pub(crate) fn bytes(&self) -> [u64; 2] {
        [&self.bytes[0], &self.bytes[1]].map(|bytes| bytes.load(Ordering::Relaxed))
    }
}

fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What a session does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// There is no credential to log in with.
    Waiting,
    /// Upstream has not let it in yet.
    #[default]
    Login,
    /// Nothing is under way, and no transaction is open.
    Idle,
    /// A transaction is open, and nothing runs in it.
    InTransaction,
    /// Something runs, or has been sent in part.
    Active,
    /// It ends.
    Closing,
}

impl State {
    pub(crate) const ALL: [Self; 6] =
        [Self::Waiting, Self::Login, Self::Idle, Self::InTransaction, Self::Active, Self::Closing];

    /// The word in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Login => "login",
            Self::Idle => "idle",
            Self::InTransaction => "in_transaction",
            Self::Active => "active",
            Self::Closing => "closing",
        }
    }
}

/// How many connections a thread has, as long as it is there.
#[derive(Clone, Debug)]
pub(crate) struct Load(TaskTracker);

impl Load {
    /// The thread whose connections are these.
    pub(crate) fn of(connections: &TaskTracker) -> Self {
        Self(connections.clone())
    }

    /// Those that have no session, or no session any more, among them.
    pub(crate) fn connections(&self) -> usize {
        self.0.len()
    }
}

/// Of the map.
const SHARDS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomer(session: u64, began: Instant) -> Newcomer<'static> {
        Newcomer {
            session: SessionId(session),
            began,
            peer: Peer::Unix { uid: 7 },
            database: "wizärd",
            application_name: "",
            vault_path: "database/creds/db-app",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn line_tells_what_its_session_does_and_since_when() {
        let roster = Arc::new(Roster::default());
        let listed = roster.enter(newcomer(1, Instant::now()));
        let line = listed.line();
        assert_eq!(
            (line.database(), line.application_name(), line.vault_path()),
            ("wizärd", "", "database/creds/db-app")
        );
        assert_eq!((line.state(), line.generation(), line.pid()), (State::Login, None, None));
        tokio::time::advance(Duration::from_secs(3)).await;
        line.logged_in(GenerationId(2), 42);
        tokio::time::advance(Duration::from_secs(4)).await;
        line.relayed([10, 20], State::Idle);
        assert_eq!((line.age(), line.in_state()), (Duration::from_secs(7), Duration::from_secs(4)));
        assert_eq!(
            (line.generation(), line.pid(), line.bytes()),
            (Some(GenerationId(2)), Some(42), [10, 20])
        );
        for state in State::ALL {
            line.enter(state);
            assert_eq!(line.state(), state);
        }
    }

    #[tokio::test]
    async fn roster_has_those_that_live_the_oldest_first() {
        let roster = Arc::new(Roster::default());
        let now = Instant::now();
        let listed: Vec<_> = [3, 1, 2].map(|id| roster.enter(newcomer(id, now))).into();
        let ids = || roster.lines().iter().map(|line| line.session.0).collect::<Vec<_>>();
        assert_eq!(ids(), [1, 2, 3]);
        drop(listed);
        assert_eq!(ids(), [0; 0]);
    }

    /// Of nine thousand idle sessions, each.
    #[test]
    fn line_stays_small() {
        assert!(size_of::<Line>() <= 128, "{} bytes", size_of::<Line>());
    }
}
