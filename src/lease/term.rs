//! One promise of Vault's that ends unless it is renewed: a lease, or the token that it was read with. Pure.

use std::time::Duration;

use super::clock::{Deadline, Now};
use super::schedule;
use crate::backoff::Backoff;
use crate::vault::Answer;

/// How long it lasts, and when to ask for more.
///
/// It ends `granted` after the request was made that it was granted on: Vault counts from a little later, so that
/// this errs on the safe side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Term {
    /// The longest D: without any cut by a maximum.
    nominal: Duration,
    /// D of the last grant.
    granted: Duration,
    end: Deadline,
    kept_by: KeptBy,
    last_word: LastWord,
    /// The answer to the last renewal, unless it was granted.
    failure: Option<Answer>,
    /// It lives, and cannot be renewed as long as the database is away.
    waits_for_database: bool,
    /// Since when it has been found alive while Vault fails to renew it.
    stuck_since: Option<Duration>,
    /// A renewal is outstanding.
    asked: bool,
    /// On the boot clock, as the moments below.
    renew_at: Duration,
    answered_at: Duration,
    /// When to look for a successor.
    rotate_at: Option<Duration>,
    backoff: Backoff,
}

/// Who renews it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeptBy {
    Us,
    /// We look how much is left.
    Others,
    Nobody,
}

impl KeptBy {
    fn us(renewable: bool) -> Self {
        if renewable { Self::Us } else { Self::Nobody }
    }
}

/// What Vault said last about the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastWord {
    /// It moves on.
    Open,
    /// It came nearer to a maximum than was asked for.
    Capped,
    /// A renewal was refused.
    Refused,
}

impl Term {
    /// A term of `ttl`, granted on a request made at `asked_at`.
    pub(super) fn new(asked_at: Now, ttl: Duration, renewable: bool, u: f64) -> Self {
        Self {
            nominal: ttl,
            granted: ttl,
            end: Deadline::after(asked_at, ttl),
            kept_by: KeptBy::us(renewable),
            last_word: LastWord::Open,
            failure: None,
            waits_for_database: false,
            stuck_since: None,
            asked: false,
            renew_at: asked_at.boot + schedule::first_renewal(ttl, u),
            answered_at: asked_at.boot,
            rotate_at: (!renewable).then(|| asked_at.boot + schedule::rotation_of_unrenewable(ttl, u)),
            backoff: Backoff::default(),
        }
    }

    /// The term of a token that somebody else keeps alive. It is looked at when it would be renewed; that it is older
    /// then says nothing, unless less than a third of the longest is left.
    pub(super) fn observed(self) -> Self {
        Self { kept_by: KeptBy::Others, rotate_at: None, ..self }
    }

    /// Whether to ask for more now.
    pub(super) fn is_due(&self, now: Now) -> bool {
        self.may_be_renewed(now) && !self.asked && self.renew_at <= now.boot
    }

    /// Notes that a renewal is outstanding.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// Takes a grant; tells whether it is capped.
    pub(super) fn granted(
        &mut self,
        asked_at: Now,
        now: Now,
        ttl: Duration,
        renewable: bool,
        u: f64,
    ) -> bool {
        let capped = if self.kept_by == KeptBy::Others {
            ttl < self.nominal / 3
        } else {
            schedule::is_capped(ttl, self.nominal)
        };
        self.asked = false;
        self.failure = None;
        self.waits_for_database = false;
        self.stuck_since = None;
        self.backoff.reset();
        self.end = self.later_of_same_end(Deadline::after(asked_at, ttl), capped);
        self.granted = ttl;
        if self.kept_by != KeptBy::Others {
            self.kept_by = KeptBy::us(renewable);
        }
        self.renew_at = now.boot + schedule::next_renewal(ttl, u);
        self.answered_at = now.boot;
        self.last_word = if capped { LastWord::Capped } else { LastWord::Open };
        self.nominal = self.nominal.max(ttl);
        if capped || !self.is_renewable() {
            self.plan_rotation(now, u);
        } else {
            self.rotate_at = None;
        }
        capped
    }

    /// Takes an answer that says nothing about the end.
    pub(super) fn failed(&mut self, now: Now, answer: Answer, u: f64) {
        self.asked = false;
        self.failure = Some(answer);
        self.renew_at = now.boot + schedule::renewal_retry(&mut self.backoff, self.end.left(now), answer, u);
        self.answered_at = now.boot;
    }

    /// Takes a refusal. It is tried again: a refusal is no proof of death, and what was refused may be granted later.
    pub(super) fn refused(&mut self, now: Now, answer: Answer, u: f64) {
        self.failed(now, answer, u);
        self.last_word = LastWord::Refused;
    }

    /// Takes note that what was refused just now will be refused again.
    pub(super) fn put_off(&mut self, now: Now) {
        self.renew_at = self.renew_at.max(now.boot + schedule::retry_of_refused(self.end.left(now)));
    }

    /// Looks for a successor well before the end, but not at once where there is time.
    pub(super) fn plan_rotation(&mut self, now: Now, u: f64) {
        let wait = schedule::wait_before_rotation(self.nominal, self.end.left(now), u);
        let at = now.boot + wait;
        self.rotate_at = Some(self.rotate_at.map_or(at, |planned| planned.min(at)));
    }

    /// Takes note that it lives, and that the database is not what it waits for.
    pub(super) fn found_alive(&mut self) {
        self.waits_for_database = false;
    }

    /// Takes note that it lives although Vault fails to renew it. What lasts longer than an election is given up.
    pub(super) fn found_stuck(&mut self, now: Now, u: f64) {
        if self.failure == Some(Answer::Unavailable) {
            let since = *self.stuck_since.get_or_insert(now.boot);
            if now.boot.saturating_sub(since) >= MAX_STUCK.min(self.granted / 8) {
                self.plan_rotation(now, u);
            }
        }
    }

    /// Takes note that nobody has the right to renew it.
    pub(super) fn may_not_be_renewed(&mut self, now: Now, u: f64) {
        (self.kept_by, self.failure, self.last_word) = (KeptBy::Nobody, None, LastWord::Open);
        self.plan_rotation(now, u);
    }

    /// Takes note that it lives and that the database is away: renewed as soon as that is back, and not given up.
    pub(super) fn wait_for_database(&mut self, now: Now, u: f64) {
        if matches!(self.failure, Some(Answer::BadRequest | Answer::NotFound)) {
            self.waits_for_database = true;
            self.renew_at = now.boot + schedule::renewal_after_outage(self.end.left(now), u);
        }
    }

    /// The answer to the last renewal, unless it was granted.
    pub(super) fn failure(&self) -> Option<Answer> {
        self.failure
    }

    /// Takes note that there is another one in its place: nobody renews it any more.
    pub(super) fn replaced(&mut self, now: Now, u: f64) {
        self.asked = false;
        self.may_not_be_renewed(now, u);
    }

    pub(super) fn is_renewable(&self) -> bool {
        self.kept_by != KeptBy::Nobody
    }

    /// Asks for no more from now on.
    pub(super) fn stop_renewing(&mut self) {
        self.kept_by = KeptBy::Nobody;
    }

    /// After a jump of the clocks: what is further gone than a renewal in time lets it be, is renewed now.
    pub(super) fn reconsider(&mut self, now: Now) {
        if !self.is_unwell() && self.end.left(now) < self.granted.mul_f64(0.4) {
            self.renew_at = self.renew_at.min(now.boot);
        }
    }

    /// Cuts the pause after a failure short, but for the least pause; tells whether a renewal will be answered.
    pub(super) fn hurry(&mut self, now: Now) -> bool {
        if self.is_unwell() && self.may_be_renewed(now) {
            let soon = self.answered_at + schedule::LEAST_BETWEEN_RENEWALS;
            self.renew_at = self.renew_at.min(soon.max(now.boot));
            return true;
        }
        self.asked
    }

    /// Forgets an outstanding request whose answer will not come.
    pub(super) fn forget_request(&mut self) {
        self.asked = false;
    }

    pub(super) fn end(&self) -> Deadline {
        self.end
    }

    pub(super) fn nominal(&self) -> Duration {
        self.nominal
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Whether Vault's last verdict is that it will not last longer.
    pub(super) fn is_final(&self) -> bool {
        !self.is_renewable() || self.last_word != LastWord::Open
    }

    /// Whether the last renewal was no success.
    pub(super) fn is_unwell(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether a successor is due as planned.
    pub(super) fn wants_rotation(&self, now: Now) -> bool {
        self.rotate_at.is_some_and(|at| at <= now.boot)
    }

    /// Whether renewals have failed for so long that a third of D is left.
    pub(super) fn runs_low(&self, now: Now) -> bool {
        let fails = self.is_unwell() && !self.waits_for_database;
        self.end.is_past_on_boot_clock(now) || fails && self.end.left(now) < self.whole() / 3
    }

    /// The whole of which a part is left: D of the last grant. Of a token that others keep the longest D, as what was
    /// seen last is itself only what was left.
    pub(super) fn whole(&self) -> Duration {
        if self.kept_by == KeptBy::Others { self.nominal } else { self.granted }
    }

    /// Whether it has been over for `grace`.
    ///
    /// Where only the wall clock says so, which an administrator may have set, one renewal is tried first.
    pub(super) fn is_over(&self, now: Now, grace: Duration) -> bool {
        let tried = !self.is_renewable() || self.is_unwell() && !self.asked;
        self.end.left(now).is_zero()
            && self.end.overdue(now) >= grace
            && (tried || self.end.is_past_on_boot_clock(now))
    }

    /// When something falls due, on the boot clock.
    pub(super) fn next_due(&self, now: Now) -> Option<Duration> {
        let renew_at = (self.may_be_renewed(now) && !self.asked).then_some(self.renew_at);
        let moments = [renew_at, self.rotate_at, Some(self.end.boot)];
        moments.into_iter().flatten().filter(|&at| at > now.boot).min()
    }

    /// A term that is past on the boot clock is not begged back: Vault may revoke it any moment. One that was capped
    /// to its last seconds would only be refused.
    fn may_be_renewed(&self, now: Now) -> bool {
        let spent = self.last_word == LastWord::Capped && self.granted < LEAST_CAPPED;
        self.is_renewable() && !spent && !self.end.is_past_on_boot_clock(now)
    }

    /// Grants are in whole seconds: of two capped ones that name the same end, the later is nearer to it.
    fn later_of_same_end(&self, end: Deadline, capped: bool) -> Deadline {
        let same = self.end.boot.saturating_sub(end.boot) <= Duration::from_secs(1);
        if capped && same && self.end.boot > end.boot && self.last_word == LastWord::Capped {
            self.end
        } else {
            end
        }
    }
}

/// What is alive and cannot be renewed for so long will not be: a token's auth role may be gone.
const MAX_STUCK: Duration = Duration::from_secs(30);

/// A capped grant of less is not asked to be renewed once more.
const LEAST_CAPPED: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn at(seconds: u64) -> Now {
        Now { boot: secs(1_000 + seconds), wall: secs(1_000_000 + seconds) }
    }

    fn term() -> Term {
        Term::new(at(0), secs(100), true, 0.0)
    }

    #[test]
    fn end_is_counted_from_the_request() {
        let mut term = term();
        assert!(!term.is_due(at(9)) && term.is_due(at(10)));
        term.ask();
        assert!(!term.is_due(at(10)) && term.is_asked());

        assert!(!term.granted(at(10), at(14), secs(100), true, 0.0));
        assert_eq!(term.end().left(at(14)), secs(96));
        assert!(!term.is_due(at(63)) && term.is_due(at(64)));
    }

    #[test]
    fn capped_grant_plans_a_rotation_and_an_uncapped_one_takes_it_back() {
        let mut term = Term::new(at(0), secs(3_600), true, 0.0);
        assert!(term.granted(at(0), at(0), secs(1_800), true, 0.0));
        assert!(term.is_final() && !term.wants_rotation(at(899)) && term.wants_rotation(at(900)));

        assert!(!term.granted(at(100), at(100), secs(3_600), true, 0.0));
        assert!(!term.is_final() && !term.wants_rotation(at(3_000)));
    }

    #[test]
    fn capped_end_stands_still_while_grants_are_cut_to_whole_seconds() {
        let mut term = Term::new(at(0), secs(10), true, 0.0);
        term.granted(at(18), at(18), secs(7), true, 0.0);
        term.granted(at(22), at(22), secs(2), true, 0.0);
        assert_eq!(term.end().boot, at(25).boot);
        assert!(!term.is_due(at(24)));
        // An operator made the maximum shorter.
        term.granted(at(22), at(22), secs(1), true, 0.0);
        assert_eq!(term.end().boot, at(23).boot);
    }

    #[test]
    fn unrenewable_term_is_not_asked_for_and_rotates_in_time() {
        let term = Term::new(at(0), secs(100), false, 0.0);
        assert!(term.is_final() && !term.is_due(at(99)));
        assert!(!term.wants_rotation(at(59)) && term.wants_rotation(at(60)));
    }

    #[test]
    fn failures_pause_and_run_low_at_a_third() {
        let mut term = term();
        for _ in 0..10 {
            term.failed(at(60), Answer::Unavailable, 1.0);
        }
        assert!(!term.is_due(at(69)) && term.is_due(at(70)));
        assert!(term.is_unwell() && !term.is_final());
        assert!(!term.runs_low(at(66)) && term.runs_low(at(67)));
        // Without a failure only the end itself is low.
        assert!(!self::term().runs_low(at(99)) && self::term().runs_low(at(100)));
    }

    #[test]
    fn pause_after_a_failure_is_cut_short_to_a_second() {
        let mut term = term();
        assert!(!term.hurry(at(50)));
        for _ in 0..10 {
            term.failed(at(50), Answer::Unavailable, 1.0);
        }
        assert!(term.hurry(at(50)) && !term.is_due(at(50)) && term.is_due(at(51)));
        term.ask();
        assert!(term.hurry(at(51)));
        assert!(!term.hurry(at(100)) || term.is_asked());
    }

    #[test]
    fn refusal_is_final_until_a_grant() {
        let mut term = term();
        term.refused(at(50), Answer::BadRequest, 0.0);
        assert!(term.is_final() && term.is_unwell() && term.is_due(at(51)));
        term.failed(at(51), Answer::Unavailable, 0.0);
        assert!(term.is_final());
        term.granted(at(52), at(52), secs(100), true, 0.0);
        assert!(!term.is_final() && !term.is_unwell());
    }

    #[test]
    fn what_waits_for_the_database_does_not_run_low() {
        let mut term = term();
        term.refused(at(60), Answer::BadRequest, 1.0);
        term.wait_for_database(at(60), 0.5);
        assert!(!term.is_due(at(64)) && term.is_due(at(65)) && !term.runs_low(at(99)));
        // Still away, and Vault away as well.
        term.failed(at(65), Answer::Unavailable, 0.0);
        term.wait_for_database(at(65), 0.0);
        assert!(!term.runs_low(at(99)) && term.runs_low(at(100)));
        // Back, and refused all the same.
        term.found_alive();
        assert!(!term.runs_low(at(66)) && term.runs_low(at(67)));

        term.wait_for_database(at(70), 0.0);
        assert!(term.runs_low(at(70)), "nothing is known of the database");
    }

    #[test]
    fn what_is_alive_and_fails_for_long_is_given_up() {
        let mut term = Term::new(at(0), secs(3_600), true, 0.0);
        for (seconds, failure) in [(0, Answer::Denied), (1, Answer::Unavailable), (30, Answer::Unavailable)] {
            term.failed(at(1_800 + seconds), failure, 0.0);
            term.found_stuck(at(1_800 + seconds), 0.0);
            assert!(!term.wants_rotation(at(3_599)));
        }
        term.found_stuck(at(1_831), 0.0);
        assert!(term.wants_rotation(at(2_716)) && !term.wants_rotation(at(2_715)));
        term.granted(at(1_832), at(1_832), secs(3_600), true, 0.0);
        assert!(!term.wants_rotation(at(5_399)));
    }

    #[test]
    fn what_nobody_may_renew_is_not_asked_for() {
        let mut term = Term::new(at(0), secs(3_600), true, 0.0);
        term.refused(at(1_800), Answer::Denied, 0.0);
        term.may_not_be_renewed(at(1_800), 0.0);
        assert!(term.is_final() && !term.is_unwell() && !term.is_due(at(3_599)));
        assert!(!term.wants_rotation(at(2_699)) && term.wants_rotation(at(2_700)));
    }

    #[test]
    fn past_end_nothing_is_asked_for() {
        let term = term();
        assert!(!term.is_due(at(100)));
        assert!(!term.is_over(at(104), secs(5)) && term.is_over(at(105), secs(5)));
        assert_eq!(term.next_due(at(100)), None);
    }

    #[test]
    fn wall_clock_put_forward_brings_a_renewal_before_a_verdict() {
        let mut term = term();
        term.granted(at(0), at(0), secs(100), true, 0.0);
        let jumped = Now { boot: at(10).boot, wall: at(3_610).wall };
        assert!(!term.is_due(jumped) && !term.is_over(jumped, secs(5)));

        term.reconsider(jumped);
        assert!(term.is_due(jumped));
        term.ask();
        assert!(!term.is_over(jumped, secs(5)));
        let mut failed = term;
        failed.failed(jumped, Answer::Lost, 0.0);
        assert!(failed.is_over(jumped, secs(5)));

        term.granted(jumped, jumped, secs(100), true, 0.0);
        assert_eq!(term.end().left(jumped), secs(100));
    }

    #[test]
    fn wall_clock_put_back_changes_nothing() {
        let mut term = term();
        term.granted(at(0), at(0), secs(100), true, 0.0);
        let jumped = Now { boot: at(10).boot, wall: secs(996_410) };
        term.reconsider(jumped);
        assert!(!term.is_due(jumped) && term.end().left(jumped) == secs(90));
    }
}
