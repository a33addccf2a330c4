//! Sessions at work on a database, by a clock or as fast as they can.
//!
//! With a rate, statements are due at times of their own, which no answer changes: one that had to wait for a session
//! counts from when it was due. So a stall shows in every statement that it held up, and not only in the one that met
//! it (coordinated omission). What the generator itself was late for counts as its own, apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::database::{Database, Session};

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) sessions: usize,
    /// Statements a second of all sessions together; none: each as soon as the one before it is answered.
    pub(crate) rate: Option<f64>,
    pub(crate) time: Duration,
    /// What is sent, each so many times as often as others.
    pub(crate) mix: Vec<(u32, String)>,
    /// Statements after which a session is closed and another is opened.
    pub(crate) life: Option<u64>,
}

/// Something that was done.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) kind: Kind,
    /// When it was to begin.
    pub(crate) due: Instant,
    pub(crate) took: Duration,
    pub(crate) error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With the opening of its session, where it had to wait for that.
    Statement,
    Connect,
    /// What the generator was late, though a session was free.
    Late,
}

struct Shared<F> {
    database: Database,
    plan: Plan,
    /// Of the sessions that have been opened, or not, before the first statement is due.
    opened: Barrier,
    start: OnceLock<Instant>,
    /// Statements that have been taken.
    taken: AtomicU64,
    done: F,
}

/// Runs to the end of the plan; `done` is told of everything, from many tasks.
pub(crate) async fn run<F>(database: Database, plan: Plan, done: F)
where
    F: Fn(Done) + Send + Sync + 'static,
{
    let sessions = plan.sessions;
    let opened = Barrier::new(sessions);
    let shared =
        Arc::new(Shared { database, plan, opened, start: OnceLock::new(), taken: AtomicU64::new(0), done });
    let mut tasks = JoinSet::new();
    for _ in 0..sessions {
        tasks.spawn(work(Arc::clone(&shared)));
    }
    while tasks.join_next().await.is_some() {}
}

async fn work<F: Fn(Done)>(shared: Arc<Shared<F>>) {
    let mut session = open(&shared).await.map(|session| (session, 0));
    shared.opened.wait().await;
    while let Some(due) = shared.next_due() {
        let due = shared.wait_for(due).await;
        if session.is_none() {
            session = open(&shared).await.map(|session| (session, 0));
        }
        let Some((open, statements)) = &mut session else {
            shared.say(Kind::Statement, due, Some("no session".to_owned()));
            // One that is refused at once does not ask again at once.
            time::sleep(PAUSE).await;
            continue;
        };
        let outcome = open.client.batch_execute(shared.plan.statement()).await;
        *statements += 1;
        let is_over = shared.plan.life.is_some_and(|life| *statements >= life) || open.client.is_closed();
        shared.say(Kind::Statement, due, outcome.err().map(|error| text(&error)));
        if is_over && let Some((open, _)) = session.take() {
            open.close().await;
        }
    }
    if let Some((open, _)) = session {
        open.close().await;
    }
}

async fn open<F: Fn(Done)>(shared: &Shared<F>) -> Option<Session> {
    let begun = Instant::now();
    let opened = shared.database.open().await;
    let error = opened.as_ref().err().map(text);
    shared.say(Kind::Connect, begun, error);
    opened.ok()
}

impl<F: Fn(Done)> Shared<F> {
    /// When the next statement is due that nobody has taken; none after the end.
    fn next_due(&self) -> Option<Instant> {
        let start = *self.start.get_or_init(Instant::now);
        let due = match self.plan.rate {
            None => Instant::now(),
            Some(rate) => {
                #[expect(clippy::cast_precision_loss, reason = "statements are fewer than 2^52")]
                let number = self.taken.fetch_add(1, Ordering::Relaxed) as f64;
                start + Duration::from_secs_f64(number / rate)
            }
        };
        (due < start + self.plan.time).then_some(due)
    }

    /// Gives the time that a statement counts from: when it is due, or when the generator, late itself, had a session
    /// free for it.
    async fn wait_for(&self, due: Instant) -> Instant {
        if due <= Instant::now() {
            return due;
        }
        time::sleep_until(due).await;
        self.say(Kind::Late, due, None);
        Instant::now()
    }

    fn say(&self, kind: Kind, due: Instant, error: Option<String>) {
        (self.done)(Done { kind, due, took: due.elapsed(), error });
    }
}

impl Plan {
    /// One of the mix, by weight.
    fn statement(&self) -> &str {
        let total: u32 = self.mix.iter().map(|(weight, _)| weight).sum();
        let mut at = fastrand::u32(..total.max(1));
        for (weight, statement) in &self.mix {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return statement,
            }
        }
        "SELECT 1"
    }
}

/// An error without what differs each time.
fn text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} {}", error.code().code(), error.message()),
        None => error.to_string(),
    }
}

/// After a session that could not be opened.
const PAUSE: Duration = Duration::from_millis(100);
