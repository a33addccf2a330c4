//! Keeps one generation alive: its lease and its token as one family. Pure: says what to ask of Vault and when, and
//! takes the answers.

use std::time::Duration;

use super::chain::Trigger;
use super::check::{Finding, Findings};
use super::clock::{Deadline, Now};
use super::schedule::{self, Window};
use super::term::Term;
use crate::vault::{Answer, Grant};

/// What is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Lease,
    Token,
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    Granted { capped: bool },
    Failed,
    Refused,
}

/// One generation's lease and token.
#[derive(Debug)]
pub(super) struct Keeper {
    lease: Term,
    /// `None` where it does not end.
    token: Option<Term>,
    /// `exp` of the login's JWT, as Unix time. OpenBao renews the token only while that JWT holds; Vault does not
    /// ask. So it is never an end: it tells why a renewal was refused.
    jwt_expiry: Option<Duration>,
    /// When the lease was asked for, on the boot clock.
    issued: Duration,
    /// When to look for a successor though it could be renewed for longer.
    rotate_at: Option<Duration>,
}

impl Keeper {
    pub(super) fn new(lease: Term, token: Option<Term>, jwt_expiry: Option<Duration>, asked_at: Now) -> Self {
        Self { lease, token, jwt_expiry, issued: asked_at.boot, rotate_at: None }
    }

    /// Plans its replacement ahead of an end that it shares with a fleet. `is_first` where the process had none before.
    pub(super) fn spread(self, is_first: bool, asked_at: Now, u: f64) -> Self {
        let jwt_left = self.jwt_expiry.map(|expiry| expiry.saturating_sub(asked_at.wall));
        let age = schedule::early_rotation(is_first, self.lease.nominal(), jwt_left, u);
        Self { rotate_at: age.map(|age| asked_at.boot + age), ..self }
    }

    /// What to renew now; each is outstanding until it is answered.
    pub(super) fn take_due(&mut self, now: Now) -> Vec<Kind> {
        let mut due = Vec::new();
        for (kind, term) in self.terms_mut() {
            if term.is_due(now) {
                term.ask();
                due.push(kind);
            }
        }
        due
    }

    /// Takes the answer to a renewal that was asked for at `asked_at`.
    pub(super) fn answered(
        &mut self,
        kind: Kind,
        asked_at: Now,
        now: Now,
        answer: Result<Grant, Answer>,
        u: f64,
    ) -> Renewal {
        let jwt_is_over = self.jwt_is_over(now);
        let Some(term) = self.term_mut(kind) else { return Renewal::Failed };
        match answer {
            Ok(Grant { ttl: Some(ttl), renewable }) => {
                Renewal::Granted { capped: term.granted(asked_at, now, ttl, renewable, u) }
            }
            Ok(Grant { ttl: None, .. }) => {
                self.token = None;
                Renewal::Granted { capped: false }
            }
            Err(answer) => match (kind, answer) {
                (Kind::Lease, Answer::BadRequest | Answer::Denied | Answer::NotFound) => {
                    term.refused(now, answer, u);
                    Renewal::Refused
                }
                // 403 may be the API server's trouble, which passes; with its JWT past it does not.
                (Kind::Token, Answer::Denied) if !jwt_is_over => {
                    term.refused(now, answer, u);
                    Renewal::Refused
                }
                (Kind::Token, Answer::BadRequest | Answer::Denied | Answer::NotFound) => {
                    term.refused(now, answer, u);
                    term.put_off(now);
                    term.plan_rotation(now, u);
                    Renewal::Refused
                }
                (
                    _,
                    Answer::NotSent
                    | Answer::Lost
                    | Answer::Malformed
                    | Answer::Redirect
                    | Answer::TryLater { .. }
                    | Answer::Unexpected
                    | Answer::Unavailable,
                ) => {
                    term.failed(now, answer, u);
                    Renewal::Failed
                }
            },
        }
    }

    /// Whether the failed renewal of `kind` is a reason to see whether the credential lives.
    pub(super) fn is_doubtful(&self, kind: Kind, now: Now) -> bool {
        let term = match kind {
            Kind::Lease => Some(&self.lease),
            Kind::Token => self.token.as_ref(),
        };
        match term.and_then(Term::failure) {
            Some(Answer::BadRequest | Answer::NotFound) => kind == Kind::Lease,
            Some(Answer::Denied) => kind == Kind::Lease || !self.jwt_is_over(now),
            Some(Answer::Unavailable) => kind == Kind::Token,
            _ => false,
        }
    }

    /// Takes note that lease and token live, as far as it was found.
    pub(super) fn found_alive(&mut self, found: Findings, now: Now, u: f64) {
        self.lease.found_alive();
        if found.token == Finding::Alive {
            if self.lease.failure() == Some(Answer::Denied) {
                self.lease.may_not_be_renewed(now, u);
            }
            if let Some(token) = &mut self.token {
                token.found_stuck(now, u);
            }
        }
    }

    /// Takes note that there is another token in the place of this one, which somebody else has kept alive.
    pub(super) fn token_replaced(&mut self, now: Now, u: f64) {
        if let Some(token) = &mut self.token {
            token.replaced(now, u);
        }
    }

    /// Whether a successor is wanted for the token's sake alone: a lease under the same token would not live longer.
    pub(super) fn wants_another_token(&self, now: Now) -> bool {
        !self.lease.wants_rotation(now)
            && !self.lease.runs_low(now)
            && self.token.is_some_and(|token| token.wants_rotation(now))
    }

    /// What is left of the token and the end of its JWT, if one more lease can be read with it: at least half of the
    /// time that a generation lasts.
    pub(super) fn spare_login(&self, now: Now) -> Option<(Grant, Option<Duration>)> {
        let grant = match self.token {
            None => Grant { ttl: None, renewable: false },
            Some(token) => {
                let left = token.end().left(now);
                if left < self.lease.nominal().min(token.nominal()) / 2 {
                    return None;
                }
                Grant { ttl: Some(left), renewable: token.is_renewable() }
            }
        };
        Some((grant, self.jwt_expiry))
    }

    /// Takes note that the lease lives and cannot be renewed, as the database is away.
    pub(super) fn wait_for_database(&mut self, now: Now, u: f64) {
        self.lease.wait_for_database(now, u);
    }

    /// Whether its end, if it came now, came before its time.
    pub(super) fn is_well_before_end(&self, now: Now) -> bool {
        self.left(now) > self.last_call()
    }

    /// Whether the last renewal of either was no success.
    pub(super) fn is_unwell(&self) -> bool {
        self.terms().any(Term::is_unwell)
    }

    /// Whether a renewal is outstanding.
    pub(super) fn is_asked(&self) -> bool {
        self.terms().any(Term::is_asked)
    }

    /// Why a successor is needed now, if it is.
    pub(super) fn wants_rotation(&self, now: Now) -> Option<Trigger> {
        if self.terms().any(|term| term.runs_low(now)) {
            Some(Trigger::Degraded)
        } else {
            let is_planned = self.rotate_at.is_some_and(|at| at <= now.boot);
            (is_planned || self.terms().any(|term| term.wants_rotation(now))).then_some(Trigger::Planned)
        }
    }

    /// What is left of the credential: the lesser of lease and token.
    pub(super) fn left(&self, now: Now) -> Duration {
        self.terms().map(|term| term.end().left(now)).min().unwrap_or_default()
    }

    /// Time since the lease was asked for.
    pub(super) fn age(&self, now: Now) -> Duration {
        now.boot.saturating_sub(self.issued)
    }

    /// What is left of the lease alone.
    pub(super) fn lease_left(&self, now: Now) -> Duration {
        self.lease.end().left(now)
    }

    /// What is left of the token; `None` where it does not end.
    pub(super) fn token_left(&self, now: Now) -> Option<Duration> {
        self.token.map(|token| token.end().left(now))
    }

    /// Unix time of the ends of lease and token.
    pub(super) fn wall_ends(&self) -> (Duration, Option<Duration>) {
        (self.lease.end().wall, self.token.map(|token| token.end().wall))
    }

    /// Whether the credential has been dead for `grace`.
    pub(super) fn is_over(&self, now: Now, grace: Duration) -> bool {
        self.terms().any(|term| term.is_over(now, grace))
    }

    /// Whether there is a token that Vault would still know.
    pub(super) fn has_living_token(&self, now: Now) -> bool {
        self.token.is_none_or(|token| !token.end().is_past_on_boot_clock(now))
    }

    /// The last moments of the generation, where its end is final.
    pub(super) fn window(&self) -> Option<(Deadline, Window)> {
        let last = self.terms().filter(|term| term.is_final()).min_by_key(|term| term.end().boot)?;
        Some((last.end(), schedule::window(self.issued, last.end().boot, last.nominal())))
    }

    /// A promotion that waits for proof waits no longer than this before the end of the one that serves.
    pub(super) fn last_call(&self) -> Duration {
        let shortest = self.terms().map(Term::nominal).min().unwrap_or_default();
        (shortest / 8).clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// Has what failed renewed without further pause; tells whether an answer will come of it.
    pub(super) fn hurry(&mut self, now: Now) -> bool {
        let hurried: Vec<_> = self.terms_mut().map(|(_, term)| term.hurry(now)).collect();
        hurried.contains(&true)
    }

    /// Renews no more: the end is final.
    pub(super) fn stop_renewing(&mut self) {
        self.terms_mut().for_each(|(_, term)| term.stop_renewing());
    }

    /// Takes notice of a jump of the clocks.
    pub(super) fn reconsider(&mut self, now: Now) {
        self.terms_mut().for_each(|(_, term)| term.reconsider(now));
    }

    /// Forgets outstanding requests whose answers will not come.
    pub(super) fn forget_requests(&mut self) {
        self.terms_mut().for_each(|(_, term)| term.forget_request());
    }

    /// When something falls due, on the boot clock.
    pub(super) fn next_due(&self, now: Now) -> Option<Duration> {
        let planned = self.rotate_at.filter(|&at| at > now.boot);
        self.terms().filter_map(|term| term.next_due(now)).chain(planned).min()
    }

    fn jwt_is_over(&self, now: Now) -> bool {
        self.jwt_expiry.is_some_and(|expiry| expiry <= now.wall)
    }

    fn terms(&self) -> impl Iterator<Item = &Term> {
        [Some(&self.lease), self.token.as_ref()].into_iter().flatten()
    }

    fn terms_mut(&mut self) -> impl Iterator<Item = (Kind, &mut Term)> {
        let token = self.token.as_mut().map(|token| (Kind::Token, token));
        [Some((Kind::Lease, &mut self.lease)), token].into_iter().flatten()
    }

    fn term_mut(&mut self, kind: Kind) -> Option<&mut Term> {
        match kind {
            Kind::Lease => Some(&mut self.lease),
            Kind::Token => self.token.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::proof;
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn at(seconds: u64) -> Now {
        Now { boot: secs(1_000 + seconds), wall: secs(1_000_000 + seconds) }
    }

    /// Lease of 100 s, token of 300 s, JWT until 400 s.
    fn family() -> Keeper {
        let lease = Term::new(at(0), secs(100), true, 0.0);
        let token = Term::new(at(0), secs(300), true, 0.0);
        Keeper::new(lease, Some(token), Some(at(400).wall), at(0))
    }

    fn grant(seconds: u64) -> Grant {
        Grant { ttl: Some(secs(seconds)), renewable: true }
    }

    #[test]
    fn lease_and_token_are_renewed_each_in_its_own_time() {
        let mut keeper = family();
        assert_eq!(keeper.take_due(at(9)), []);
        assert_eq!(keeper.take_due(at(10)), [Kind::Lease]);
        assert_eq!(keeper.take_due(at(30)), [Kind::Token]);
        assert!(keeper.is_asked() && keeper.take_due(at(60)).is_empty());

        assert_eq!(
            keeper.answered(Kind::Lease, at(10), at(11), Ok(grant(100)), 0.0),
            Renewal::Granted { capped: false }
        );
        assert_eq!(
            keeper.answered(Kind::Token, at(30), at(31), Ok(grant(300)), 0.0),
            Renewal::Granted { capped: false }
        );
        assert_eq!((keeper.left(at(31)), keeper.token_left(at(31))), (secs(79), Some(secs(299))));
        assert!(!keeper.is_unwell());
    }

    /// Every kind of answer to either renewal: what it is taken for, and whether a successor of the token is wanted
    /// at once. One of the lease never is.
    #[test]
    fn each_answer_is_taken_as_the_policy_says() {
        let later = Answer::TryLater { retry_after: None };
        let (failed, refused) = (Renewal::Failed, Renewal::Refused);
        for (answer, of_lease, of_token, planned) in [
            (Answer::NotSent, failed, failed, false),
            (Answer::Lost, failed, failed, false),
            (Answer::Malformed, failed, failed, false),
            (Answer::Redirect, failed, failed, false),
            (Answer::BadRequest, refused, refused, true),
            (Answer::Denied, refused, refused, false),
            (Answer::NotFound, refused, refused, true),
            (later, failed, failed, false),
            (Answer::Unexpected, failed, failed, false),
            (Answer::Unavailable, failed, failed, false),
        ] {
            let mut keeper = family();
            assert_eq!(
                keeper.answered(Kind::Lease, at(50), at(50), Err(answer), 0.0),
                of_lease,
                "{answer:?}"
            );
            assert!(keeper.is_unwell(), "{answer:?}");
            assert_eq!(keeper.wants_rotation(at(50)), None, "{answer:?}");
            assert_eq!(keeper.left(at(50)), secs(50), "{answer:?}");

            let mut keeper = family();
            keeper.answered(Kind::Lease, at(150), at(150), Ok(grant(100)), 0.0);
            assert_eq!(
                keeper.answered(Kind::Token, at(150), at(150), Err(answer), 0.0),
                of_token,
                "{answer:?}"
            );
            assert!(keeper.is_unwell(), "{answer:?}");
            assert_eq!(keeper.wants_rotation(at(150)).is_some(), planned, "{answer:?}");
        }
    }

    #[test]
    fn refused_token_waits_for_a_third_while_its_jwt_holds() {
        let mut keeper = family();
        for seconds in [150, 160, 190] {
            keeper.answered(Kind::Lease, at(seconds), at(seconds), Ok(grant(100)), 0.0);
            keeper.answered(Kind::Token, at(seconds), at(seconds), Err(Answer::Denied), 0.0);
            assert_eq!(keeper.wants_rotation(at(seconds)), None);
        }
        assert_eq!(keeper.wants_rotation(at(201)), Some(Trigger::Degraded));
        keeper.answered(Kind::Token, at(201), at(201), Ok(grant(300)), 0.0);
        assert_eq!((keeper.wants_rotation(at(201)), keeper.is_unwell()), (None, false));
    }

    #[test]
    fn refused_token_is_planned_for_once_its_jwt_is_over() {
        let mut keeper = family();
        keeper.answered(Kind::Lease, at(399), at(399), Ok(grant(3_600)), 0.0);
        keeper.answered(Kind::Token, at(250), at(250), Ok(grant(300)), 0.0);
        keeper.answered(Kind::Token, at(401), at(401), Err(Answer::Denied), 0.0);
        assert_eq!(keeper.wants_rotation(at(401)), Some(Trigger::Planned));
        // The reason is known, and stays.
        assert!(!keeper.is_doubtful(Kind::Token, at(401)));
        assert_eq!((keeper.take_due(at(474)), keeper.take_due(at(476))), (vec![], vec![Kind::Token]));
    }

    #[test]
    fn first_generation_of_a_fleet_is_replaced_each_at_its_own_time() {
        let of_an_hour = |is_first, u| {
            let lease = Term::new(at(0), secs(3_600), true, 0.0);
            Keeper::new(lease, None, None, at(0)).spread(is_first, at(0), u)
        };
        let mut keeper = of_an_hour(true, 0.0);
        assert_eq!(keeper.next_due(at(400)), Some(at(3_600).boot));
        keeper.answered(Kind::Lease, at(3_000), at(3_000), Ok(grant(3_600)), 0.0);
        assert_eq!(keeper.wants_rotation(at(3_599)), None);
        assert_eq!((keeper.wants_rotation(at(3_600)), keeper.window()), (Some(Trigger::Planned), None));
        for (is_first, u) in [(true, 1.0), (false, 0.0)] {
            assert_eq!(of_an_hour(is_first, u).wants_rotation(at(3_599)), None);
        }
    }

    /// What was refused and is alive all the same.
    #[test]
    fn what_is_found_alive_is_not_given_up_without_need() {
        let alive =
            Findings { lease: Finding::Alive, token: Finding::Alive, login: proof::Verdict::Accepted };
        let unknown = Findings { token: Finding::Unknown, ..alive };
        for (kind, answer, found, doubtful, planned) in [
            (Kind::Lease, Answer::BadRequest, alive, true, false),
            (Kind::Lease, Answer::NotFound, alive, true, false),
            (Kind::Lease, Answer::Denied, alive, true, true),
            (Kind::Lease, Answer::Denied, unknown, true, false),
            (Kind::Lease, Answer::Unavailable, alive, false, false),
            (Kind::Token, Answer::Denied, alive, true, false),
            (Kind::Token, Answer::Unavailable, alive, true, true),
            (Kind::Token, Answer::Unavailable, unknown, true, false),
            (Kind::Token, Answer::Lost, alive, false, false),
        ] {
            let term = Term::new(at(0), secs(400), true, 0.0);
            let mut keeper = Keeper::new(term, Some(term), None, at(0));
            let now = at(200);
            keeper.answered(kind, now, now, Err(answer), 0.0);
            assert_eq!(keeper.is_doubtful(kind, now), doubtful, "{kind:?} {answer:?}");
            keeper.found_alive(found, now, 0.0);
            let later = at(230);
            keeper.found_alive(found, later, 0.0);
            assert_eq!(keeper.wants_rotation(later).is_some(), planned, "{kind:?} {answer:?} {found:?}");
        }
    }

    #[test]
    fn window_opens_only_where_an_end_is_final() {
        let mut keeper = family();
        assert_eq!(keeper.window(), None);
        keeper.answered(Kind::Lease, at(60), at(60), Err(Answer::Unavailable), 0.0);
        assert_eq!(keeper.window(), None);
        keeper.answered(Kind::Lease, at(60), at(60), Ok(grant(40)), 0.0);
        let (end, window) = keeper.window().unwrap();
        assert_eq!((end.boot, window.cut_at), (at(100).boot, at(100).boot));
        keeper.answered(Kind::Lease, at(70), at(70), Ok(grant(100)), 0.0);
        assert_eq!(keeper.window(), None);

        keeper.stop_renewing();
        assert_eq!(keeper.window().unwrap().1.cut_at, at(170).boot);
        assert_eq!(keeper.take_due(at(169)), []);
    }

    #[test]
    fn generation_is_over_with_the_first_of_its_ends() {
        let mut keeper = family();
        keeper.answered(Kind::Lease, at(0), at(0), Ok(grant(1_000)), 0.0);
        assert!(!keeper.is_over(at(304), secs(5)) && keeper.is_over(at(305), secs(5)));
        assert!(keeper.has_living_token(at(299)) && !keeper.has_living_token(at(300)));
    }

    #[test]
    fn token_has_a_lease_to_spare_for_half_a_generation() {
        let mut keeper = family();
        assert_eq!(keeper.spare_login(at(250)), Some((grant(50), Some(at(400).wall))));
        assert_eq!(keeper.spare_login(at(251)), None);
        keeper.answered(Kind::Lease, at(50), at(50), Ok(grant(1_000)), 0.0);
        assert!(keeper.spare_login(at(150)).is_some() && keeper.spare_login(at(151)).is_none());

        let keeper = Keeper::new(Term::new(at(0), secs(100), true, 0.0), None, None, at(0));
        assert_eq!(keeper.spare_login(at(9_999)), Some((Grant { ttl: None, renewable: false }, None)));
    }

    #[test]
    fn token_that_somebody_else_keeps_is_watched() {
        let lease = Term::new(at(0), secs(3_600), true, 0.0);
        let token = Term::new(at(0), secs(600), false, 0.0).observed();
        let mut keeper = Keeper::new(lease, Some(token), None, at(0));
        assert_eq!(keeper.take_due(at(60)), [Kind::Token]);
        // Older, renewed by its keeper, older.
        for (seconds, left) in [(60, 540), (330, 270), (470, 600), (770, 300), (920, 200)] {
            keeper.answered(Kind::Token, at(seconds), at(seconds), Ok(grant(left)), 0.0);
            assert_eq!((keeper.wants_rotation(at(seconds)), keeper.window()), (None, None), "{seconds}");
            assert_eq!(keeper.token_left(at(seconds)), Some(secs(left)));
        }
        keeper.answered(Kind::Token, at(1_000), at(1_000), Ok(grant(120)), 0.0);
        assert_eq!(keeper.wants_rotation(at(1_000)), Some(Trigger::Planned));
        assert!(keeper.wants_another_token(at(1_000)) && keeper.window().is_some());
        keeper.answered(Kind::Token, at(1_060), at(1_060), Ok(grant(600)), 0.0);
        assert_eq!(keeper.wants_rotation(at(1_060)), None);

        keeper.token_replaced(at(1_360), 0.0);
        assert_eq!(keeper.wants_rotation(at(1_360)), Some(Trigger::Planned));
        assert_eq!(keeper.take_due(at(1_659)), [Kind::Lease]);
    }

    #[test]
    fn token_without_an_end_is_left_alone() {
        let lease = Term::new(at(0), secs(100), true, 0.0);
        let mut keeper = Keeper::new(lease, None, None, at(0));
        assert_eq!(keeper.take_due(at(50)), [Kind::Lease]);
        assert_eq!((keeper.token_left(at(0)), keeper.has_living_token(at(9_999))), (None, true));
    }
}
