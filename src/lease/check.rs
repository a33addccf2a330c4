//! Whether a credential that something speaks against is still alive: when to look, and what is to be made of what was
//! found. Pure.
//!
//! No answer to a renewal tells: Vault refuses with 400 while the database is away, and with 403 while the API server
//! is. So lease and token are looked up, and upstreams are asked.

use std::fmt;
use std::time::Duration;

use super::proof;
use crate::backoff::Backoff;
use crate::vault::Answer;

/// How soon to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// A renewal or a login was refused.
    Refused,
    /// A session met something that the end of its role would explain, and other things would too.
    Doubted,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Alive,
    /// Vault does not know it any more.
    Gone,
    /// Not allowed, or the token is dead: Vault says the same to both.
    Denied,
    /// No answer that tells.
    Unknown,
}

/// What was found out about one credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) lease: Finding,
    pub(super) token: Finding,
    pub(super) login: proof::Verdict,
}

/// What was known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Whether its token was looked up with success before.
    pub(super) token_was_seen: bool,
    /// Whether another token was looked up with success after this one was denied it: then it is not the policy, and
    /// nothing between us and Vault.
    pub(super) others_are_seen: bool,
    /// Whether its own end is far.
    pub(super) is_well_before_end: bool,
}

/// What is to be made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Alive,
    /// Alive as far as Vault knows, while no upstream can be reached: Vault cannot renew it just now.
    DatabaseAway,
    /// Upstream does not let it in, and Vault does not say that it ended: a new one is needed, and open sessions are
    /// none the worse.
    LoginRejected,
    /// Its token seems dead, and nothing else says so yet.
    TokenDenied,
    /// Somebody ended it before its time.
    Revoked,
    /// It came to its end.
    Finished,
}

impl Findings {
    /// The verdict. A lease that is gone counts only where another answer shows that it was Vault who said so; a
    /// dead token only where it could be looked up before.
    pub(super) fn judge(self, known: Known) -> Verdict {
        let rejected = self.login == proof::Verdict::Rejected;
        let token_denied = self.token == Finding::Denied && known.token_was_seen;
        let token_gone = token_denied && (rejected || known.others_are_seen);
        let lease_gone = self.lease == Finding::Gone && (rejected || self.token == Finding::Alive);
        if token_gone || lease_gone {
            return if known.is_well_before_end { Verdict::Revoked } else { Verdict::Finished };
        }
        match self.login {
            proof::Verdict::Rejected => Verdict::LoginRejected,
            proof::Verdict::Accepted | proof::Verdict::Late | proof::Verdict::Unknown if token_denied => {
                Verdict::TokenDenied
            }
            proof::Verdict::Unknown if self.lease == Finding::Alive => Verdict::DatabaseAway,
            proof::Verdict::Accepted | proof::Verdict::Late | proof::Verdict::Unknown => Verdict::Alive,
        }
    }

    /// Whether to look once more, as Vault did not tell and upstream does not speak for it.
    fn is_open(self) -> bool {
        let silent = self.lease == Finding::Unknown || self.token == Finding::Unknown;
        silent && self.login != proof::Verdict::Accepted
    }
}

impl Finding {
    /// What the answer to `sys/leases/lookup` says: what is left, if Vault knows it.
    pub(super) fn of_lease(answer: Result<Option<Duration>, Answer>) -> Self {
        match answer {
            // At its end, and its revocation not done yet.
            Ok(Some(Duration::ZERO)) | Err(Answer::BadRequest | Answer::NotFound) => Self::Gone,
            Ok(_) => Self::Alive,
            Err(answer) => Self::of_failure(answer),
        }
    }

    /// What the answer to lookup-self says.
    pub(super) fn of_token(answer: Result<(), Answer>) -> Self {
        answer.map_or_else(Self::of_failure, |()| Self::Alive)
    }

    fn of_failure(answer: Answer) -> Self {
        match answer {
            Answer::Denied => Self::Denied,
            Answer::NotSent
            | Answer::Lost
            | Answer::Malformed
            | Answer::Redirect
            | Answer::BadRequest
            | Answer::NotFound
            | Answer::TryLater { .. }
            | Answer::Unexpected
            | Answer::Unavailable => Self::Unknown,
        }
    }
}

impl Verdict {
    /// The word in the log.
    fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::DatabaseAway => "database_away",
            Self::LoginRejected => "login_rejected",
            Self::TokenDenied => "token_denied",
            Self::Revoked => "revoked",
            Self::Finished => "finished",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When one credential is looked into. One look is outstanding at most.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// On the boot clock, as all times here.
    due_at: Option<Duration>,
    asked: bool,
    asked_at: Option<Duration>,
    /// Since when its token has been denied lookups.
    denied_at: Option<Duration>,
    backoff: Backoff,
}

impl Check {
    /// Has it looked into.
    pub(super) fn raise(&mut self, haste: Haste, now: Duration) {
        let pause = match haste {
            Haste::Refused => LEAST_PAUSE,
            Haste::Doubted => LEAST_PAUSE_WHEN_DOUBTED,
        };
        let at = self.asked_at.map_or(now, |asked_at| now.max(asked_at + pause));
        self.due_at = Some(self.due_at.map_or(at, |due_at| due_at.min(at)));
    }

    /// Whether to look now; the look is outstanding until it is answered.
    pub(super) fn take_due(&mut self, now: Duration) -> bool {
        let is_due = !self.asked && self.due_at.is_some_and(|at| at <= now);
        if is_due {
            (self.asked, self.asked_at, self.due_at) = (true, Some(now), None);
        }
        is_due
    }

    /// Takes what was found; looks once more after a pause of `max_pause` at most where that does not tell.
    pub(super) fn answered(&mut self, found: Findings, now: Duration, max_pause: Duration, u: f64) {
        self.asked = false;
        self.denied_at = match found.token {
            Finding::Denied => self.denied_at.or(self.asked_at),
            Finding::Alive | Finding::Gone => None,
            Finding::Unknown => self.denied_at,
        };
        if found.is_open() {
            let at = now + self.backoff.next(max_pause, u).max(LEAST_PAUSE);
            self.due_at = Some(self.due_at.map_or(at, |due_at| due_at.min(at)));
        } else {
            self.backoff.reset();
        }
    }

    /// Since when its token has been denied lookups, if it is.
    pub(super) fn denied_at(&self) -> Option<Duration> {
        self.denied_at
    }

    /// Forgets an outstanding look whose answer will not come.
    pub(super) fn forget_request(&mut self, now: Duration) {
        if std::mem::take(&mut self.asked) {
            self.due_at = Some(now + LEAST_PAUSE_WHEN_DOUBTED);
        }
    }

    /// When something falls due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due_at.filter(|_| !self.asked)
    }
}

/// Between two looks, whatever is refused meanwhile.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Sessions may come upon the same oddity again and again.
pub(super) const LEAST_PAUSE_WHEN_DOUBTED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A token that was seen, with its own end far away.
    const SEEN: Known = Known { token_was_seen: true, others_are_seen: false, is_well_before_end: true };

    fn found(lease: Finding, token: Finding, login: proof::Verdict) -> Findings {
        Findings { lease, token, login }
    }

    /// Whatever lease, token and upstream say, in every combination.
    #[test]
    fn verdict_follows_from_all_three() {
        use Finding::{Alive, Denied, Gone, Unknown};
        use Verdict as V;
        let logins = [proof::Verdict::Accepted, proof::Verdict::Rejected, proof::Verdict::Unknown];
        for (lease, token, verdicts) in [
            (Alive, Alive, [V::Alive, V::LoginRejected, V::DatabaseAway]),
            (Gone, Alive, [V::Revoked, V::Revoked, V::Revoked]),
            (Denied, Alive, [V::Alive, V::LoginRejected, V::Alive]),
            (Unknown, Alive, [V::Alive, V::LoginRejected, V::Alive]),
            (Alive, Denied, [V::TokenDenied, V::Revoked, V::TokenDenied]),
            (Gone, Denied, [V::TokenDenied, V::Revoked, V::TokenDenied]),
            (Denied, Denied, [V::TokenDenied, V::Revoked, V::TokenDenied]),
            (Unknown, Denied, [V::TokenDenied, V::Revoked, V::TokenDenied]),
            (Alive, Unknown, [V::Alive, V::LoginRejected, V::DatabaseAway]),
            (Gone, Unknown, [V::Alive, V::Revoked, V::Alive]),
            (Denied, Unknown, [V::Alive, V::LoginRejected, V::Alive]),
            (Unknown, Unknown, [V::Alive, V::LoginRejected, V::Alive]),
        ] {
            for (login, verdict) in logins.into_iter().zip(verdicts) {
                assert_eq!(found(lease, token, login).judge(SEEN), verdict, "{lease:?} {token:?} {login:?}");
            }
        }
    }

    #[test]
    fn token_that_could_never_be_looked_up_leaves_the_verdict_to_upstream() {
        let known = Known { token_was_seen: false, others_are_seen: true, ..SEEN };
        for (login, verdict) in [
            (proof::Verdict::Accepted, Verdict::Alive),
            (proof::Verdict::Rejected, Verdict::LoginRejected),
            (proof::Verdict::Unknown, Verdict::Alive),
        ] {
            assert_eq!(found(Finding::Denied, Finding::Denied, login).judge(known), verdict, "{login:?}");
        }
    }

    #[test]
    fn denied_token_is_dead_once_others_can_be_looked_up() {
        let known = Known { others_are_seen: true, ..SEEN };
        let denied = found(Finding::Denied, Finding::Denied, proof::Verdict::Accepted);
        assert_eq!(denied.judge(known), Verdict::Revoked);
    }

    #[test]
    fn what_is_gone_at_its_end_was_not_revoked() {
        let known = Known { is_well_before_end: false, ..SEEN };
        let gone = found(Finding::Gone, Finding::Alive, proof::Verdict::Rejected);
        assert_eq!(gone.judge(known), Verdict::Finished);
    }

    #[test]
    fn answers_of_lookups_are_findings() {
        let later = Answer::TryLater { retry_after: None };
        for (answer, lease, token) in [
            (Answer::NotSent, Finding::Unknown, Finding::Unknown),
            (Answer::Lost, Finding::Unknown, Finding::Unknown),
            (Answer::Malformed, Finding::Unknown, Finding::Unknown),
            (Answer::Redirect, Finding::Unknown, Finding::Unknown),
            (Answer::BadRequest, Finding::Gone, Finding::Unknown),
            (Answer::Denied, Finding::Denied, Finding::Denied),
            (Answer::NotFound, Finding::Gone, Finding::Unknown),
            (later, Finding::Unknown, Finding::Unknown),
            (Answer::Unexpected, Finding::Unknown, Finding::Unknown),
            (Answer::Unavailable, Finding::Unknown, Finding::Unknown),
        ] {
            assert_eq!(Finding::of_lease(Err(answer)), lease, "{answer:?}");
            assert_eq!(Finding::of_token(Err(answer)), token, "{answer:?}");
        }
        assert_eq!(Finding::of_lease(Ok(Some(secs(1)))), Finding::Alive);
        assert_eq!(Finding::of_lease(Ok(Some(secs(0)))), Finding::Gone);
        assert_eq!(Finding::of_token(Ok(())), Finding::Alive);
    }

    const ALIVE: Findings =
        Findings { lease: Finding::Alive, token: Finding::Alive, login: proof::Verdict::Accepted };

    #[test]
    fn one_look_at_a_time_and_a_pause_between_them() {
        let mut check = Check::default();
        assert!(!check.take_due(secs(100)) && check.next_due().is_none());
        for _ in 0..50 {
            check.raise(Haste::Refused, secs(100));
        }
        assert!(check.take_due(secs(100)));
        check.raise(Haste::Refused, secs(100));
        assert!(!check.take_due(secs(109)));
        check.answered(ALIVE, secs(109), secs(30), 1.0);
        assert!(check.take_due(secs(109)));
        check.answered(ALIVE, secs(109), secs(30), 1.0);
        assert!(!check.take_due(secs(200)));
    }

    #[test]
    fn doubts_are_looked_into_every_ten_seconds_and_refusals_every_second() {
        for (haste, at) in [(Haste::Doubted, 110), (Haste::Refused, 101)] {
            let mut check = Check::default();
            check.raise(Haste::Doubted, secs(100));
            assert!(check.take_due(secs(100)));
            check.answered(ALIVE, secs(100), secs(30), 1.0);
            check.raise(haste, secs(100));
            assert_eq!(check.next_due(), Some(secs(at)), "{haste:?}");
        }
    }

    #[test]
    fn look_that_tells_nothing_is_repeated_with_growing_pauses() {
        let mut check = Check::default();
        let nothing = found(Finding::Unknown, Finding::Unknown, proof::Verdict::Rejected);
        check.raise(Haste::Refused, secs(100));
        let (mut now, mut pauses) = (secs(100), Vec::new());
        for _ in 0..8 {
            assert!(check.take_due(now));
            check.answered(nothing, now, secs(30), 1.0);
            let next = check.next_due().unwrap();
            pauses.push(next.saturating_sub(now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 1, 2, 4, 8, 16, 30, 30]);
        assert!(check.take_due(now));
        check.answered(ALIVE, now, secs(30), 1.0);
        assert_eq!(check.next_due(), None);
    }

    #[test]
    fn denied_token_is_remembered_until_it_is_seen_again() {
        let mut check = Check::default();
        let denied = found(Finding::Denied, Finding::Denied, proof::Verdict::Accepted);
        for (at, found, denied_at) in [
            (100, denied, Some(secs(100))),
            (200, denied, Some(secs(100))),
            (300, Findings { token: Finding::Unknown, ..denied }, Some(secs(100))),
            (400, ALIVE, None),
        ] {
            check.raise(Haste::Refused, secs(at));
            assert!(check.take_due(secs(at)));
            check.answered(found, secs(at), secs(30), 0.0);
            assert_eq!(check.denied_at(), denied_at);
        }
    }

    #[test]
    fn lost_look_is_made_again() {
        let mut check = Check::default();
        check.raise(Haste::Refused, secs(100));
        assert!(check.take_due(secs(100)));
        check.forget_request(secs(100));
        assert_eq!(check.next_due(), Some(secs(110)));
    }
}
