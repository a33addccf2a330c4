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

    /// The lease, and the token where it ends.
    pub(super) fn lease_and_token(&self) -> (&Term, Option<&Term>) {
        (&self.lease, self.token.as_ref())
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
mod tests;
