//! When what the file holds is loaded. Pure: takes what a look has found and the time, and says what to do.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Print;

/// Why the file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Somebody wants it to be loaded, whatever it holds.
    Asked,
    /// It may have changed.
    Clock,
}

/// The looks at one file.
#[derive(Debug)]
pub(crate) struct Looks {
    /// What was loaded last, whatever came of it.
    tried: Option<Print>,
    /// What the last look found.
    seen: Option<Print>,
    failure: Option<Failure>,
}

/// What was loaded last was of no use.
#[derive(Debug)]
struct Failure {
    error: String,
    pause: Duration,
    again_at: Instant,
}

impl Looks {
    /// After a start on this.
    pub(crate) fn new(print: Option<Print>) -> Self {
        Self { tried: print.clone(), seen: print, failure: None }
    }

    /// Whether what was found `now` is to be loaded: where somebody asks, where it is new and two looks have found the
    /// same, and now and then where it was of no use, as the fault may be in a file that it names.
    ///
    /// A file that is being written is thus left alone until it is whole.
    pub(crate) fn wants(&mut self, found: &Print, why: Why, now: Instant) -> bool {
        let is_settled = self.seen.as_ref() == Some(found);
        let is_new = self.tried.as_ref() != Some(found);
        let is_due = self.failure.as_ref().is_some_and(|failure| now >= failure.again_at);
        self.seen = Some(found.clone());
        let wants = why == Why::Asked || (is_settled && (is_new || is_due));
        if wants && is_new {
            self.failure = None;
        }
        if wants {
            self.tried = Some(found.clone());
        }
        wants
    }

    /// What was loaded is in effect.
    pub(crate) fn loaded(&mut self) {
        self.failure = None;
    }

    /// What was loaded is of no use; says whether that is news.
    pub(crate) fn failed(&mut self, error: &str, now: Instant) -> bool {
        let before = self.failure.take().filter(|failure| failure.error == error);
        let pause = before.as_ref().map_or(INTERVAL, |failure| (failure.pause * 2).min(MAX_PAUSE));
        self.failure = Some(Failure { error: error.to_owned(), pause, again_at: now + pause });
        before.is_none()
    }

    /// Until the next look.
    pub(crate) fn pause(&self) -> Duration {
        if self.seen == self.tried { INTERVAL } else { SETTLING }
    }
}

/// Between two looks. Reading a page or two from memory costs microseconds.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at a file that has just changed.
const SETTLING: Duration = Duration::from_millis(250);
/// Before a file that was of no use, and has not changed, is loaded again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn print(digits: &str) -> Print {
        Print::Sha256(digits.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn file_is_loaded_when_it_has_changed_and_two_looks_found_the_same() {
        let now = Instant::now();
        let mut looks = Looks::new(Some(print("a")));
        for (found, wants, pause) in [
            ("a", false, INTERVAL),
            // Being written.
            ("b", false, SETTLING),
            ("bc", false, SETTLING),
            ("bcd", false, SETTLING),
            ("bcd", true, INTERVAL),
            ("bcd", false, INTERVAL),
            // There and back between two looks.
            ("e", false, SETTLING),
            ("bcd", false, INTERVAL),
            ("a", false, SETTLING),
            ("a", true, INTERVAL),
        ] {
            assert_eq!(looks.wants(&print(found), Why::Clock, now), wants, "{found}");
            assert_eq!(looks.pause(), pause, "{found}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_has_it_loaded_at_once_and_the_rest_of_it_later() {
        let now = Instant::now();
        let mut looks = Looks::new(Some(print("a")));
        assert!(looks.wants(&print("a"), Why::Asked, now));
        assert!(looks.wants(&print("b"), Why::Asked, now));
        assert!(!looks.wants(&print("b"), Why::Clock, now));
        assert!(!looks.wants(&print("bc"), Why::Clock, now));
        assert!(looks.wants(&print("bc"), Why::Clock, now));
    }

    #[tokio::test(start_paused = true)]
    async fn file_of_no_use_is_loaded_again_with_growing_pauses_and_told_of_once() {
        let mut now = Instant::now();
        let mut looks = Looks::new(Some(print("a")));
        assert!(looks.wants(&print("b"), Why::Asked, now));
        assert!(looks.failed("no ca.pem", now));
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            let pause = Duration::from_secs(pause);
            assert!(!looks.wants(&print("b"), Why::Clock, now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(looks.wants(&print("b"), Why::Clock, now));
            assert!(!looks.failed("no ca.pem", now));
        }
        // Another reason is news, and so is another file.
        assert!(looks.failed("no key.pem", now));
        assert!(looks.wants(&print("c"), Why::Asked, now));
        assert!(looks.failed("no key.pem", now));
        looks.loaded();
        assert!(!looks.wants(&print("c"), Why::Clock, now + MAX_PAUSE));
    }
}
