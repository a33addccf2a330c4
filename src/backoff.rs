//! Jittered exponential delays between attempts. Pure: the caller brings the random number.

use std::time::Duration;

/// Doubles from [`FIRST`] up to a cap, each delay drawn from the whole range below ("full jitter"), so that a
/// fleet that failed together does not come back together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The delay before the next attempt, between [`LEAST`] and `cap` (or [`LEAST`], if that is more).
    /// `u` is uniform in 0–1.
    pub(crate) fn next(&mut self, cap: Duration, u: f64) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.attempts.min(16)).min(cap);
        self.attempts = self.attempts.saturating_add(1);
        ceiling.mul_f64(u.clamp(0.0, 1.0)).max(LEAST)
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// The ceiling of the first delay.
const FIRST: Duration = Duration::from_millis(500);

/// No delay is shorter: nothing retries without a pause.
const LEAST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..5).map(|_| backoff.next(Duration::from_secs(3), 1.0).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 3000, 3000]);

        backoff.reset();
        assert_eq!(backoff.next(Duration::from_secs(3), 0.5), Duration::from_millis(250));
    }

    #[test]
    fn no_delay_is_zero_whatever_the_dice_and_the_cap_say() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Duration::from_secs(3), 0.0), LEAST);
        assert_eq!(backoff.next(Duration::ZERO, 1.0), LEAST);
    }
}
