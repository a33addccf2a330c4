//! How those that pglease depends on have answered: Vault, and each host of an upstream. Counts, and the last answer
//! of each kind, for `/status`.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Causes;

/// The answers of one of them.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    ok: AtomicU64,
    failed: AtomicU64,
    /// Unix time in seconds; 0 is never.
    last_ok: AtomicU64,
    /// Of the last that went well, in microseconds.
    last_took: AtomicU64,
    last_failure: Mutex<Option<Failure>>,
    /// Whether the last answer of all was no good one: seconds do not tell.
    failing: AtomicBool,
}

/// What went wrong last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What was asked, where there is more than one thing.
    pub(crate) operation: &'static str,
    /// As in logs and metrics.
    pub(crate) kind: &'static str,
    /// HTTP status or SQLSTATE.
    pub(crate) code: Option<String>,
    /// The error in words, as the log has it.
    pub(crate) says: String,
    /// Unix time.
    pub(crate) at: u64,
}

impl Answers {
    pub(crate) fn note_ok(&self, took: Duration) {
        self.ok.fetch_add(1, Ordering::Relaxed);
        self.last_ok.store(unix_now(), Ordering::Relaxed);
        self.last_took.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.failing.store(false, Ordering::Relaxed);
    }

    pub(crate) fn note_failure(
        &self,
        operation: &'static str,
        kind: &'static str,
        code: Option<String>,
        error: &dyn Error,
    ) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let failure = Failure { operation, kind, code, says: in_words(error), at: unix_now() };
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
        self.failing.store(true, Ordering::Relaxed);
    }

    /// How many went well, and how many did not.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [&self.ok, &self.failed].map(|count| count.load(Ordering::Relaxed))
    }

    /// When the last went well, in Unix time, and how long it took.
    pub(crate) fn last_ok(&self) -> Option<(u64, Duration)> {
        let at = Some(self.last_ok.load(Ordering::Relaxed)).filter(|at| *at > 0)?;
        Some((at, Duration::from_micros(self.last_took.load(Ordering::Relaxed))))
    }

    /// Whether the last one went wrong.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn last_failure(&self) -> Option<Failure> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An error with all that is behind it, in one line of bounded length.
pub(crate) fn in_words(error: &dyn Error) -> String {
    let mut words = String::new();
    let whole = Causes(error).to_string();
    let letters = whole.chars().map(|c| if c.is_control() { ' ' } else { c });
    letters.take(MAX_WORDS).for_each(|letter| words.push(letter));
    if whole.chars().nth(MAX_WORDS).is_some() {
        let _ = words.write_char('…');
    }
    words
}

/// Unix time in seconds.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Of an error in words, in characters.
const MAX_WORDS: usize = 400;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn last_of_each_kind_is_kept() {
        let answers = Answers::default();
        assert_eq!((answers.counts(), answers.last_ok(), answers.last_failure()), ([0, 0], None, None));
        answers.note_ok(Duration::from_millis(3));
        assert!(!answers.is_failing());
        answers.note_failure("creds", "denied", Some("403".to_owned()), &io::Error::other("no\nway"));
        answers.note_failure("renew", "no_answer", None, &io::Error::other("x".repeat(1000)));
        assert_eq!(answers.counts(), [1, 2]);
        // Within the second.
        assert!(answers.is_failing());
        assert_eq!(answers.last_ok().unwrap().1, Duration::from_millis(3));
        let failure = answers.last_failure().unwrap();
        assert_eq!((failure.operation, failure.kind, failure.code), ("renew", "no_answer", None));
        assert_eq!(failure.says.chars().count(), MAX_WORDS + 1);
        assert_eq!(in_words(&io::Error::other("no\nway")), "no way");
    }
}
