//! What a CancelRequest gets whose key is no session's: silence, and once there are many of them, a wait.
//!
//! A few are clients that come too late. Many are somebody who tries keys: each is compared all the same, or a flood
//! of them would keep right cancels away; so the wait is all that it costs, for some of them at a time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{self, Instant};
use tracing::warn;

use crate::session::SPARE_PLACES;

/// Misses of the process.
#[derive(Debug)]
pub(super) struct Guesses {
    pace: Mutex<Pace>,
    /// For those that are kept waiting, each with a connection that takes a place.
    bench: Semaphore,
}

impl Default for Guesses {
    fn default() -> Self {
        Self { pace: Mutex::default(), bench: Semaphore::new(MAX_WAITING) }
    }
}

impl Guesses {
    /// Returns when the one that has just missed may be let go: at once up to [`BURST`] misses, [`INTERVAL`] apart in
    /// the long run, and also where [`MAX_WAITING`] wait already; else after [`WAIT`]. Tells of a flood when it begins.
    /// Cancel safe.
    pub(super) async fn missed(&self) {
        let pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner).miss(Instant::now());
        match pace {
            Miss::InPace => return,
            Miss::Above => {}
            Miss::FirstAbove => warn!(
                event = "cancel.flood",
                "many CancelRequests bring keys of no session: somebody may be trying keys"
            ),
        }
        if let Ok(_seat) = self.bench.try_acquire() {
            time::sleep(WAIT).await;
        }
    }
}

/// How fast they come.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// When all misses so far are forgotten: each adds an [`INTERVAL`].
    forgotten_at: Option<Instant>,
    /// The flood that lasts has been told of.
    is_told: bool,
}

/// How one of them stands to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    InPace,
    /// There were too many before it.
    Above,
    /// It is the first of a flood: before the last one all had been forgotten.
    FirstAbove,
}

impl Pace {
    fn miss(&mut self, now: Instant) -> Miss {
        let forgotten_at = match self.forgotten_at {
            Some(at) if at > now => at,
            _ => {
                self.is_told = false;
                now
            }
        };
        if forgotten_at.saturating_duration_since(now) > INTERVAL * (BURST - 1) {
            return if std::mem::replace(&mut self.is_told, true) { Miss::Above } else { Miss::FirstAbove };
        }
        self.forgotten_at = Some(forgotten_at + INTERVAL);
        Miss::InPace
    }
}

/// Misses that may come at once.
const BURST: u32 = 100;
/// Between two in the long run.
const INTERVAL: Duration = Duration::from_millis(100);
/// For one above that.
const WAIT: Duration = Duration::from_secs(1);
/// Half of the places that there are where no seat is free: no newcomer loses its place to them.
const MAX_WAITING: usize = SPARE_PLACES / 2;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn flood_is_what_comes_faster_than_it_is_forgotten_and_is_told_of_once() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        let mut misses = |after: u64, count: usize| {
            let now = begun + Duration::from_millis(after);
            std::iter::repeat_with(|| pace.miss(now)).take(count).collect::<Vec<_>>()
        };
        let burst = usize::try_from(BURST).unwrap();
        assert_eq!(misses(0, burst), vec![Miss::InPace; burst]);
        assert_eq!(misses(0, 3), [Miss::FirstAbove, Miss::Above, Miss::Above]);
        // Ten a second are in pace, and what lies between is not, while the flood lasts.
        for after in (100..60_000).step_by(100) {
            assert_eq!(misses(after, 2), [Miss::InPace, Miss::Above], "{after}");
        }
        // A second of calm does not end it, ten do.
        assert_eq!(misses(61_000, 12)[10..], [Miss::InPace, Miss::Above]);
        assert_eq!(misses(71_000, burst + 2)[burst - 1..], [Miss::InPace, Miss::FirstAbove, Miss::Above]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_of_a_flood_wait_and_only_so_many() {
        let guesses = Arc::new(Guesses::default());
        let begun = Instant::now();
        for _ in 0..BURST {
            guesses.missed().await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        guesses.missed().await;
        assert_eq!(begun.elapsed(), WAIT);

        // In the second that has passed ten were forgotten.
        let mut all = JoinSet::new();
        for _ in 0..1000 {
            let guesses = Arc::clone(&guesses);
            all.spawn(async move {
                guesses.missed().await;
                begun.elapsed()
            });
        }
        let took = all.join_all().await;
        assert_eq!(took.iter().filter(|took| **took > WAIT).count(), MAX_WAITING);
        assert_eq!(begun.elapsed(), WAIT * 2);
    }
}
