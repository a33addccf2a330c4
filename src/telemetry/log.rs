//! The log on stderr: its level, which may change while pglease runs, its two formats, and what of it is only counted.

mod counting;
mod fields;
mod repeats;
mod text;

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{self, Instant};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogConfig, LogFormat};

use counting::Counting;
use repeats::{Repeats, Trouble};

/// Starts the log: this crate's lines at the level asked for, those of its libraries from `warn` up.
pub(crate) fn start_log(config: &LogConfig) -> Result<(), TryInitError> {
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let state = Arc::new(Mutex::new(State { level: config.level, repeats: Repeats::default() }));
    let lines = match config.format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_target(false)
            .map_event_format(|format| Counting { format, state: Arc::clone(&state) })
            .with_writer(io::stderr)
            .boxed(),
        LogFormat::Text => fmt::layer()
            .event_format(Counting { format: text::ForPeople, state: Arc::clone(&state) })
            .with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    // Nobody else can have started it.
    let _ = LOG.set(Log { filter: handle, state });
    Ok(())
}

/// From now on what the log has at this level. Gives the one before; `None` where there is no log.
pub(crate) fn set_level(level: Level) -> Option<Level> {
    let log = LOG.get()?;
    // Fails only where the log is gone.
    log.filter.reload(filter(level)).ok()?;
    Some(std::mem::replace(&mut lock(&log.state).level, level))
}

/// What the log has; `None` where there is none.
pub(crate) fn level() -> Option<Level> {
    LOG.get().map(|log| lock(&log.state).level)
}

/// Says now and then what was counted since.
pub(crate) async fn say_repeats() -> Infallible {
    loop {
        time::sleep(BETWEEN_LOOKS).await;
        say(Repeats::over);
    }
}

/// Says what was counted and not said yet: for the end of the process.
pub(crate) fn end_log() {
    say(Repeats::all);
}

fn say(which: impl FnOnce(&mut Repeats, Instant) -> Vec<repeats::Repeated>) {
    let Some(log) = LOG.get() else { return };
    // Said without the lock, which each line of trouble takes.
    let counted = which(&mut lock(&log.state).repeats, Instant::now());
    for repeated in &counted {
        counting::say(repeated);
    }
}

/// The log that was started.
struct Log {
    filter: reload::Handle<Targets, Registry>,
    state: Arc<Mutex<State>>,
}

struct State {
    level: Level,
    repeats: Repeats,
}

impl State {
    /// Whether a line is to be written; else it is counted. Who has the log at `debug` looks into something, and sees
    /// each.
    fn is_written(&mut self, trouble: Trouble, now: Instant) -> bool {
        self.level > Level::INFO || self.repeats.is_news(trouble, now)
    }
}

static LOG: OnceLock<Log> = OnceLock::new();

fn filter(level: Level) -> Targets {
    let libraries = level.min(Level::WARN);
    Targets::new().with_target("pglease", level).with_default(LevelFilter::from(libraries))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A count is said so much later than it might be, at most.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);
