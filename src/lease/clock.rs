//! The two clocks that leases are told by. Pure, but for [`Now::read`].
//!
//! The boot clock runs on while a machine is suspended and cannot be set; the wall clock is set right after a paused
//! virtual machine goes on, which the boot clock does not notice. Where they disagree, the one that leaves less time
//! counts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// Since boot, time of suspension included.
    pub(crate) boot: Duration,
    /// Since 1970.
    pub(crate) wall: Duration,
}

/// Tells the time; tests bring their own.
pub(crate) type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

impl Now {
    /// This moment.
    pub(crate) fn read() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { boot: boot.try_into().unwrap_or_default(), wall: wall.unwrap_or_default() }
    }

    /// By how much more the one clock went on than the other since `earlier`.
    pub(super) fn jump_since(self, earlier: Self) -> Duration {
        (self.wall + earlier.boot).abs_diff(self.boot + earlier.wall)
    }
}

/// A moment to come, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    pub(super) boot: Duration,
    pub(super) wall: Duration,
}

impl Deadline {
    /// `span` after `start`.
    pub(super) fn after(start: Now, span: Duration) -> Self {
        Self { boot: start.boot.saturating_add(span), wall: start.wall.saturating_add(span) }
    }

    /// What is left, zero when it is past.
    pub(super) fn left(self, now: Now) -> Duration {
        let (end, now) = self.governing(now);
        end.saturating_sub(now)
    }

    /// For how long it has been past.
    pub(super) fn overdue(self, now: Now) -> Duration {
        let (end, now) = self.governing(now);
        now.saturating_sub(end)
    }

    /// Whether the boot clock alone, which nobody can set, says that it is past.
    pub(super) fn is_past_on_boot_clock(self, now: Now) -> bool {
        self.boot <= now.boot
    }

    fn governing(self, now: Now) -> (Duration, Duration) {
        let (wall, boot) = (self.wall + now.boot, self.boot + now.wall);
        if wall.abs_diff(boot) > TOLERANCE && wall < boot {
            (self.wall, now.wall)
        } else {
            (self.boot, now.boot)
        }
    }
}

/// By how much the clocks may differ before it counts.
const TOLERANCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_clock_that_leaves_less_counts_where_they_differ() {
        let start = Now { boot: secs(100), wall: secs(10_000) };
        let end = Deadline::after(start, secs(60));
        let after = |boot, wall| Now { boot: start.boot + secs(boot), wall: start.wall + secs(wall) };

        assert_eq!(end.left(start), secs(60));
        assert_eq!(end.left(after(10, 10)), secs(50));
        // Within the tolerance: the boot clock's word.
        assert_eq!(end.left(after(10, 12)), secs(50));
        // Paused for 20 s, or the wall clock put forward.
        assert_eq!(end.left(after(10, 30)), secs(30));
        // The wall clock put back.
        assert_eq!(end.left(Now { boot: secs(110), wall: secs(6_400) }), secs(50));
        assert_eq!((end.left(after(10, 70)), end.overdue(after(10, 70))), (secs(0), secs(10)));
        assert!(!end.is_past_on_boot_clock(after(10, 70)));
        assert!(end.is_past_on_boot_clock(after(60, 60)));
    }

    #[test]
    fn jumps_are_seen_both_ways() {
        let start = Now { boot: secs(100), wall: secs(10_000) };
        for (boot, wall, jump) in
            [(101, 10_001, 0), (101, 13_601, 3_600), (101, 6_401, 3_600), (161, 10_001, 60)]
        {
            assert_eq!(Now { boot: secs(boot), wall: secs(wall) }.jump_since(start), secs(jump));
        }
    }

    #[test]
    fn system_clocks_are_read() {
        let now = Now::read();
        assert!(now.boot > Duration::ZERO && now.wall > secs(1_700_000_000));
    }
}
