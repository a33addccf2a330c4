//! Has lines of trouble counted instead of written again, and says the counts.

use std::fmt;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tracing::{Event, Level, Subscriber, error, warn};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;
use super::repeats::{Repeated, Trouble};
use super::{State, lock};

/// A format in which what is only counted is no line. (A filter that judges an event by its fields, which would be the
/// place for it, has tracing-subscriber 0.3 fail an assertion of its own at the next event.)
pub(super) struct Counting<F> {
    pub(super) format: F,
    pub(super) state: Arc<Mutex<State>>,
}

impl<F> Counting<F> {
    fn is_written(&self, event: &Event<'_>) -> bool {
        let level = *event.metadata().level();
        // Most lines are no trouble, and their fields need not be looked at.
        if level > Level::WARN {
            return true;
        }
        let trouble = Trouble::of(level, &Fields::of(event));
        trouble.is_none_or(|trouble| lock(&self.state).is_written(trouble, Instant::now()))
    }
}

impl<S, N, F> FormatEvent<S, N> for Counting<F>
where
    F: FormatEvent<S, N>,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.is_written(event) { self.format.format_event(context, writer, event) } else { Ok(()) }
    }
}

/// At the level of what was counted.
pub(super) fn say(Repeated { trouble, times, within }: &Repeated) {
    let get = |name| trouble.get(name);
    let (repeated, seconds) = (*times, within.as_secs());
    let of = get("event").or_else(|| get("log.target"));
    let [vault_path, generation, db_role, lease] = ["vault_path", "generation", "db_role", "lease"].map(get);
    let [upstream, path, reason, error] = ["upstream", "path", "reason", "error"].map(get);
    let code = get("code").and_then(|code| code.parse::<u64>().ok());
    if trouble.level == Level::ERROR {
        error!(
            event = "log.repeated",
            of,
            repeated,
            seconds,
            vault_path,
            generation,
            db_role,
            lease,
            upstream,
            path,
            reason,
            code,
            error
        );
    } else {
        warn!(
            event = "log.repeated",
            of,
            repeated,
            seconds,
            vault_path,
            generation,
            db_role,
            lease,
            upstream,
            path,
            reason,
            code,
            error
        );
    }
}
