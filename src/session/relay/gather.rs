//! Fewer wakes for a long answer.
//!
//! PostgreSQL sends 8 KiB at a time, and who is fast enough is woken for each of them. So once an answer has become
//! long, upstream's socket says that it has something only where that is [`MARK`] bytes, an end or an error. What stays
//! below, as the last bytes of the answer may, is had when [`LULL`] has passed without as much: little beside the
//! time that the answer has taken by then.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{self, Instant, Sleep};

/// Has a socket say that it has something only where that is so many bytes; 1 is as it was. Where there are as many
/// already, it says so once more.
pub(crate) type SetMark<U> = fn(&U, usize) -> io::Result<()>;

#[derive(Debug)]
pub(super) struct Gather<U> {
    /// `None` where the socket has no such mark.
    set_mark: Option<SetMark<U>>,
    /// How many bytes will have come from upstream when the mark is next set.
    from: u64,
    /// While the mark is set.
    lull: Option<Pin<Box<Sleep>>>,
}

/// What a poll of both directions has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Upstream is not done with what it was asked.
    pub(super) is_running: bool,
    pub(super) client_spoke: bool,
    pub(super) upstream_spoke: bool,
    /// All bytes that have come from upstream.
    pub(super) bytes: u64,
}

impl<U> Gather<U> {
    pub(super) const fn new(set_mark: Option<SetMark<U>>) -> Self {
        Self { set_mark, from: BEGIN, lull: None }
    }

    /// Sets the mark or lifts it, as the poll asks that has just been; sees to it that the task is polled again when
    /// it is to be lifted.
    pub(super) fn after(&mut self, cx: &mut Context<'_>, upstream: &U, seen: Seen) {
        if !seen.is_running || seen.client_spoke {
            self.lift(upstream, seen.bytes.saturating_add(BEGIN));
        } else if seen.bytes >= self.from {
            if seen.upstream_spoke {
                self.set(upstream);
            }
            if self.lull.as_mut().is_some_and(|lull| lull.as_mut().poll(cx).is_ready()) {
                self.lift(upstream, seen.bytes.saturating_add(AGAIN));
            }
        }
    }

    fn set(&mut self, upstream: &U) {
        if let Some(lull) = &mut self.lull {
            // A timer that is moved on costs nothing but the look at the clock.
            lull.as_mut().reset(Instant::now() + LULL);
        } else if self.set_mark.is_some_and(|set_mark| set_mark(upstream, MARK).is_ok()) {
            self.lull = Some(Box::pin(time::sleep(LULL)));
        } else {
            self.set_mark = None;
        }
    }

    fn lift(&mut self, upstream: &U, from: u64) {
        self.from = from;
        if let (Some(_), Some(set_mark)) = (self.lull.take(), self.set_mark) {
            // What the socket has taken once it takes again.
            let _ = set_mark(upstream, 1);
        }
    }
}

/// Six of what PostgreSQL sends at a time. A read has room for more, so that it is known to have taken all there was.
pub(super) const MARK: usize = 48 * 1024;
/// tokio's timers tell no shorter ones apart.
const LULL: Duration = Duration::from_millis(1);
/// Bytes of an answer from which on it counts as long. PostgreSQL takes some 40 ms for them.
const BEGIN: u64 = 16 * 1024 * 1024;
/// Bytes from a lull to the next mark. The server has paused then, and is not held up.
const AGAIN: u64 = 1024 * 1024;

#[cfg(test)]
mod tests;
