//! How many credentials a chain may make: three at once, then one each ten seconds. Pure.

use std::time::Duration;

/// A bucket of permissions that fills up with time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Budget {
    /// When the bucket is full again, on the boot clock.
    full_at: Duration,
}

impl Budget {
    /// The earliest moment for one more credential; past or present where there is one to spend.
    pub(super) fn ready_at(self) -> Duration {
        self.full_at.saturating_sub(REFILL * (BURST - 1))
    }

    /// Notes that a credential was made, or may have been.
    pub(super) fn spend(&mut self, now: Duration) {
        self.full_at = self.full_at.max(now) + REFILL;
    }
}

/// Time in which one more credential is allowed.
const REFILL: Duration = Duration::from_secs(10);

/// Credentials that may be made at once after a calm time.
const BURST: u32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn three_at_once_then_one_each_ten_seconds() {
        let mut budget = Budget::default();
        for _ in 0..3 {
            assert!(budget.ready_at() <= secs(100));
            budget.spend(secs(100));
        }
        assert_eq!(budget.ready_at(), secs(110));
        budget.spend(secs(110));
        assert_eq!(budget.ready_at(), secs(120));
        // All is forgotten after half a minute.
        budget.spend(secs(200));
        budget.spend(secs(200));
        assert!(budget.ready_at() <= secs(200));
    }

    proptest! {
        #[test]
        fn no_span_of_time_sees_more_than_burst_and_refill(waits in prop::collection::vec(0_u64..30, 1..60)) {
            let (mut budget, mut now, mut spent) = (Budget::default(), secs(1_000), Vec::new());
            for wait in waits {
                now += secs(wait);
                if budget.ready_at() <= now {
                    budget.spend(now);
                    spent.push(now);
                }
            }
            for (first, from) in spent.iter().enumerate() {
                for (last, to) in spent.iter().enumerate().skip(first) {
                    let allowed = 3 + to.saturating_sub(*from).as_secs() / 10;
                    prop_assert!((last - first + 1) as u64 <= allowed);
                }
            }
        }
    }
}
