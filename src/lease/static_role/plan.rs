//! When a static role's password is read again, and when pglease logs in for it. Pure: one request of each kind is
//! outstanding at a time.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::lease::chain::{MAX_ASKED_FOR_UNSERVED, MAX_PAUSE_UNSERVED, MAX_PAUSE_WHILE_CLIENTS_WAIT};
use crate::lease::schedule;
use crate::vault::Answer;

/// What is asked of Vault next. A read makes nothing in Vault: the limits are there to spare it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    login: Errand,
    read: Errand,
    /// When Vault changes the password that was read last, and how long that was when it was first read.
    change: Option<Change>,
    /// The password that is offered was rejected, and the answer to that is not found yet.
    rejected: bool,
}

/// Vault's next change of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    at: Duration,
    /// From the first read of this password.
    whole: Duration,
}

/// The moment of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct View {
    /// On the boot clock, as all times here.
    pub(super) now: Duration,
    /// Whether a password is offered.
    pub(super) serves: bool,
    pub(super) clients_wait: bool,
    /// Uniform in 0–1.
    pub(super) u: f64,
}

/// One kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Errand {
    /// It is outstanding.
    asked: bool,
    /// When it is due.
    at: Duration,
    /// What a haste may bring that forward to.
    soonest: Duration,
    backoff: Backoff,
}

impl Plan {
    /// Whether to log in now, for want of a token that will do for long.
    pub(super) fn take_login(&mut self, now: Duration) -> bool {
        self.login.take(now)
    }

    pub(super) fn logged_in(&mut self, now: Duration) {
        self.login = Errand { at: now + LEAST_BETWEEN_LOGINS, ..Errand::default() };
    }

    pub(super) fn login_failed(&mut self, answer: Answer, view: View) {
        let ceiling = self.ceiling(MAX_PAUSE_UNSERVED, view);
        self.login.pause(ceiling, schedule::asked_for(answer, MAX_ASKED_FOR_UNSERVED), view);
    }

    /// Whether to read now.
    pub(super) fn take_read(&mut self, now: Duration) -> bool {
        self.read.take(now)
    }

    /// Takes a password that Vault changes in `ttl`; `news` where it is not the one that was read before.
    ///
    /// Where the one that is offered was rejected, and Vault knows no other, Vault may be about to: it tells PostgreSQL
    /// first. So it is asked again soon, and then at growing intervals.
    pub(super) fn read(&mut self, ttl: Duration, news: bool, view: View) {
        if news {
            self.read.backoff.reset();
        }
        let known = self.change.filter(|_| !news).map_or(Duration::ZERO, |change| change.whole);
        self.change = Some(Change { at: view.now + ttl, whole: known.max(ttl) });
        let at = view.now + schedule::next_static_read(ttl, view.u);
        if self.rejected && !news {
            let ceiling = self.ceiling(schedule::MAX_RETRY, view);
            self.read.pause(ceiling, Duration::ZERO, view);
            self.read.at = self.read.at.min(at);
        } else {
            self.read.asked = false;
            self.read.at = at;
            self.read.soonest = self.read.soonest.max(view.now + LEAST_BETWEEN_READS);
        }
    }

    pub(super) fn read_failed(&mut self, answer: Answer, view: View) {
        let ceiling = self.ceiling(MAX_PAUSE_UNSERVED, view);
        self.read.pause(ceiling, schedule::asked_for(answer, MAX_ASKED_FOR_UNSERVED), view);
    }

    /// No upstream took the password that was read.
    pub(super) fn refused(&mut self, view: View) {
        if !self.read.asked {
            let ceiling = self.ceiling(schedule::MAX_RETRY, view);
            self.read.pause(ceiling, Duration::ZERO, view);
        }
    }

    /// The password that is offered was rejected: it may have been changed. Tells whether that is news; for any number
    /// of clients it is so once.
    pub(super) fn rejected(&mut self, now: Duration) -> bool {
        let news = !self.rejected;
        self.rejected = true;
        if news {
            self.read.hasten(now);
        }
        news
    }

    /// Until Vault changes the password, and how long that was when it was first read.
    pub(super) fn until_change(&self, now: Duration) -> Option<(Duration, Duration)> {
        self.change.map(|change| (change.at.saturating_sub(now), change.whole))
    }

    pub(super) fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// A password was proven and is offered.
    pub(super) fn promoted(&mut self) {
        self.rejected = false;
    }

    /// Somebody waits: a long pause is shortened.
    pub(super) fn hurry(&mut self, view: View) {
        if !view.serves || self.rejected {
            self.login.hasten(view.now);
            self.read.hasten(view.now);
        }
    }

    /// After a jump of the clocks, or where somebody asks for it, the password is read soon.
    pub(super) fn read_soon(&mut self, now: Duration) {
        self.read.hasten(now);
    }

    /// Forgets requests whose answers will not come.
    pub(super) fn forget_requests(&mut self, view: View) {
        for errand in [&mut self.login, &mut self.read] {
            if errand.asked {
                errand.pause(schedule::MAX_RETRY, Duration::ZERO, view);
            }
        }
    }

    pub(super) fn is_logging_in(&self) -> bool {
        self.login.asked
    }

    pub(super) fn next_login(&self) -> Option<Duration> {
        self.login.next()
    }

    pub(super) fn next_read(&self) -> Option<Duration> {
        self.read.next()
    }

    /// The longest pause: `unhurried` where nothing is offered that is good.
    fn ceiling(&self, unhurried: Duration, view: View) -> Duration {
        match (view.serves && !self.rejected, view.clients_wait) {
            (true, _) => schedule::MAX_RETRY,
            (false, true) => MAX_PAUSE_WHILE_CLIENTS_WAIT,
            (false, false) => unhurried,
        }
    }
}

impl Errand {
    fn take(&mut self, now: Duration) -> bool {
        let due = self.next().is_some_and(|at| at <= now);
        self.asked |= due;
        due
    }

    fn next(&self) -> Option<Duration> {
        (!self.asked).then_some(self.at)
    }

    /// Tries again later.
    fn pause(&mut self, ceiling: Duration, asked_for: Duration, view: View) {
        let pause = self.backoff.next(ceiling, view.u).max(LEAST_BETWEEN_READS).max(asked_for);
        self.asked = false;
        self.at = view.now + pause;
        self.soonest = view.now + pause.min(MAX_PAUSE_WHILE_CLIENTS_WAIT).max(asked_for);
    }

    fn hasten(&mut self, now: Duration) {
        self.at = self.at.min(self.soonest.max(now));
    }
}

/// At `ttl` 0, and while a password is rejected, Vault is asked no more often.
const LEAST_BETWEEN_READS: Duration = Duration::from_millis(500);

/// Where tokens live for a second or two.
const LEAST_BETWEEN_LOGINS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn at(now: Duration) -> View {
        View { now, serves: true, clients_wait: false, u: 0.0 }
    }

    /// One that has read a password of 60 s at 100 s and offers it.
    fn serving() -> Plan {
        let mut plan = Plan::default();
        assert!(plan.take_login(secs(100)) && !plan.take_login(secs(100)));
        plan.logged_in(secs(100));
        assert!(plan.take_read(secs(100)) && !plan.take_read(secs(100)));
        plan.read(secs(60), true, View { serves: false, ..at(secs(100)) });
        plan.promoted();
        plan
    }

    #[test]
    fn password_is_read_a_second_or_two_after_its_ttl() {
        for (u, due) in [(0.0, ms(161_000)), (1.0, ms(162_000))] {
            let mut plan = serving();
            assert!(plan.take_read(secs(161)));
            plan.read(secs(60), true, View { u, ..at(secs(101)) });
            assert_eq!(plan.next_read(), Some(due + secs(1)));
        }
    }

    #[test]
    fn change_of_the_password_is_told_as_it_comes_nearer() {
        let mut plan = serving();
        assert_eq!(Plan::default().until_change(secs(100)), None);
        assert_eq!(plan.until_change(secs(110)), Some((secs(50), secs(60))));
        plan.read(secs(10), false, at(secs(150)));
        assert_eq!(plan.until_change(secs(155)), Some((secs(5), secs(60))));
        plan.read(secs(30), true, at(secs(160)));
        assert_eq!(plan.until_change(secs(160)), Some((secs(30), secs(30))));
        assert_eq!(plan.until_change(secs(900)), Some((Duration::ZERO, secs(30))));
    }

    #[test]
    fn at_ttl_zero_it_is_read_again_after_a_second_or_two() {
        let mut plan = serving();
        assert!(plan.take_read(secs(161)));
        plan.read(secs(0), false, at(secs(161)));
        assert_eq!(plan.next_read(), Some(secs(162)));
    }

    #[test]
    fn rejection_brings_one_read_at_once_for_any_number_of_clients() {
        let mut plan = serving();
        assert!(plan.rejected(secs(120)) && !plan.rejected(secs(120)));
        assert!(plan.take_read(secs(120)));
        assert!(!plan.rejected(secs(120)) && plan.next_read().is_none());
        plan.read(secs(60), true, at(secs(120)));
        // Its proof is under way.
        assert!(!plan.rejected(secs(120)) && !plan.take_read(secs(125)));
        plan.promoted();
        assert!(!plan.is_rejected());
    }

    #[test]
    fn unchanged_password_that_is_rejected_is_read_again_at_growing_intervals() {
        let mut plan = serving();
        assert!(plan.rejected(secs(120)));
        let (mut now, mut pauses) = (secs(120), Vec::new());
        for _ in 0..8 {
            assert!(plan.take_read(now));
            plan.read(secs(3_600), false, View { u: 1.0, ..at(now) });
            let next = plan.next_read().unwrap();
            pauses.push(next.saturating_sub(now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    }

    #[test]
    fn password_that_was_proven_again_unchanged_is_not_read_at_each_rejection() {
        let mut plan = serving();
        let mut reads = 0;
        for now in (120_000..180_000).step_by(100).map(ms) {
            // Somebody else's upstream rejects what ours accepts.
            plan.rejected(now);
            if plan.take_read(now) {
                reads += 1;
                plan.read(secs(3_600), false, View { u: 1.0, clients_wait: true, ..at(now) });
                plan.promoted();
            }
        }
        assert!((15..=19).contains(&reads), "{reads}");
    }

    #[test]
    fn planned_read_is_made_though_the_password_is_rejected() {
        let mut plan = serving();
        plan.rejected(secs(120));
        assert!(plan.take_read(secs(120)));
        for _ in 0..9 {
            plan.read.backoff.next(secs(1), 0.0);
        }
        plan.read(secs(2), false, View { u: 1.0, ..at(secs(120)) });
        assert_eq!(plan.next_read(), Some(secs(124)));
    }

    #[test]
    fn client_that_waits_shortens_a_pause_but_not_what_vault_asks_for() {
        let mut plan = Plan::default();
        let view = View { serves: false, u: 1.0, ..at(secs(100)) };
        for _ in 0..8 {
            plan.login.asked = true;
            plan.login_failed(Answer::Unavailable, view);
        }
        assert_eq!(plan.next_login(), Some(secs(110)));
        plan.hurry(view);
        assert_eq!(plan.next_login(), Some(secs(104)));
        let later = Answer::TryLater { retry_after: Some(secs(9)) };
        plan.read_failed(later, view);
        plan.hurry(view);
        assert_eq!(plan.next_read(), Some(secs(109)));

        let mut calm = serving();
        calm.hurry(at(secs(120)));
        assert_eq!(calm, serving());
    }

    #[test]
    fn failures_pause_for_as_long_as_there_is_need() {
        for (serves, clients_wait, rejected, ceiling) in [
            (true, true, false, 30),
            (true, true, true, 4),
            (false, true, false, 4),
            (false, false, false, 10),
        ] {
            let mut plan = Plan { rejected, ..Plan::default() };
            let view = View { now: secs(100), serves, clients_wait, u: 1.0 };
            (0..9).for_each(|_| plan.read_failed(Answer::Lost, view));
            assert_eq!(plan.next_read(), Some(secs(100 + ceiling)), "{serves} {clients_wait} {rejected}");
        }
    }

    #[test]
    fn refused_password_is_asked_for_again_long_before_its_ttl() {
        let mut plan = serving();
        plan.refused(View { u: 1.0, ..at(secs(105)) });
        assert_eq!(plan.next_read(), Some(ms(105_500)));
    }

    proptest! {
        /// Whatever happens, Vault is read at most twice in any second.
        #[test]
        fn two_reads_a_second_at_most(events in prop::collection::vec((0_u8..7, 0_u64..400, 0.0..=1.0), 1..200)) {
            let (mut plan, mut now, mut reads) = (Plan::default(), secs(100), Vec::new());
            for (event, wait, u) in events {
                now += ms(wait);
                let view = View { now, serves: event % 2 == 0, clients_wait: event % 3 == 0, u };
                match event {
                    0 => drop(plan.rejected(now)),
                    1 => plan.hurry(view),
                    2 => plan.promoted(),
                    3 => plan.read_soon(now),
                    4 => plan.refused(view),
                    _ if plan.take_read(now) => {
                        reads.push(now);
                        match event {
                            5 => plan.read(secs(0), u > 0.5, view),
                            _ => plan.read_failed(Answer::Unavailable, view),
                        }
                    }
                    _ => {}
                }
            }
            for three in reads.windows(3) {
                prop_assert!(three[2].saturating_sub(three[0]) >= secs(1));
            }
        }
    }
}
