//! The token that a static role's password is read with, from its login until another takes its place. Pure, but for
//! the requests that [`LiveToken`] counts.

use std::sync::Arc;
use std::time::Duration;

use crate::lease::clock::Now;
use crate::lease::term::Term;
use crate::lease::token::LiveToken;
use crate::vault::{Answer, Grant, TokenKind};

/// A token in use.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) token: Arc<LiveToken>,
    /// `None` where it does not end.
    term: Option<Term>,
    /// Vault does not know it any more.
    is_dead: bool,
}

impl Tenure {
    /// A token that was looked up, where that could be done.
    pub(super) fn new(token: Arc<LiveToken>, grant: Grant, asked_at: Now, u: f64) -> Self {
        let renewable =
            grant.renewable && token.kind() == TokenKind::Service && token.lookup_works() != Some(false);
        let term = grant.ttl.map(|ttl| Term::new(asked_at, ttl, renewable, u));
        Self { token, term, is_dead: false }
    }

    /// Whether it will do for long, so that no other is needed yet.
    pub(super) fn is_fit(&self, now: Now) -> bool {
        let ends = |term: &Term| term.wants_rotation(now) || term.runs_low(now);
        !self.is_dead && !self.term.as_ref().is_some_and(ends)
    }

    /// Whether Vault knows it still.
    pub(super) fn lives(&self, now: Now) -> bool {
        !self.is_dead && self.term.is_none_or(|term| !term.end().is_past_on_boot_clock(now))
    }

    /// Whether it is pglease that ends it, and can.
    pub(super) fn is_ours_to_revoke(&self, now: Now) -> bool {
        self.token.can_be_revoked() && self.lives(now)
    }

    /// Notes that Vault does not know it.
    pub(super) fn note_death(&mut self) {
        self.is_dead = true;
    }

    /// Whether to renew it now; the renewal is outstanding until it is answered.
    pub(super) fn take_renewal(&mut self, now: Now) -> bool {
        let Some(term) = self.term.as_mut().filter(|term| !self.is_dead && term.is_due(now)) else {
            return false;
        };
        term.ask();
        true
    }

    /// Takes the answer to a renewal. One that is refused has another token fetched in time.
    pub(super) fn answered(&mut self, asked_at: Now, now: Now, answer: Result<Grant, Answer>, u: f64) {
        let Some(term) = &mut self.term else { return };
        match answer {
            Ok(Grant { ttl: Some(ttl), renewable }) => {
                term.granted(asked_at, now, ttl, renewable, u);
            }
            Ok(Grant { ttl: None, .. }) => self.term = None,
            Err(answer @ (Answer::BadRequest | Answer::Denied | Answer::NotFound)) => {
                term.refused(now, answer, u);
                term.plan_rotation(now, u);
            }
            Err(
                answer @ (Answer::NotSent
                | Answer::Lost
                | Answer::Malformed
                | Answer::Redirect
                | Answer::TryLater { .. }
                | Answer::Unexpected
                | Answer::Unavailable),
            ) => term.failed(now, answer, u),
        }
    }

    /// After a jump of the clocks.
    pub(super) fn reconsider(&mut self, now: Now) {
        if let Some(term) = &mut self.term {
            term.reconsider(now);
        }
    }

    /// Forgets a renewal whose answer will not come.
    pub(super) fn forget_request(&mut self) {
        if let Some(term) = &mut self.term {
            term.forget_request();
        }
    }

    /// What is left of it; `None` where it does not end.
    pub(super) fn left(&self, now: Now) -> Option<Duration> {
        self.term.map(|term| term.end().left(now))
    }

    /// How long it lasts, where it has an end.
    pub(super) fn term(&self) -> Option<&Term> {
        self.term.as_ref()
    }

    /// When something falls due, on the boot clock.
    pub(super) fn next_due(&self, now: Now) -> Option<Duration> {
        self.term.as_ref().filter(|_| !self.is_dead).and_then(|term| term.next_due(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Token;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn at(seconds: u64) -> Now {
        Now { boot: secs(1_000 + seconds), wall: secs(1_000_000 + seconds) }
    }

    fn tenure(ttl: Option<u64>, renewable: bool, kind: TokenKind) -> Tenure {
        let token = Arc::new(LiveToken::new(Token::from_text("s.1"), kind));
        Tenure::new(token, Grant { ttl: ttl.map(secs), renewable }, at(0), 0.0)
    }

    #[test]
    fn token_is_renewed_and_fit_as_long_as_vault_agrees() {
        let mut tenure = tenure(Some(100), true, TokenKind::Service);
        assert!(!tenure.take_renewal(at(9)) && tenure.take_renewal(at(10)) && !tenure.take_renewal(at(10)));
        tenure.answered(at(10), at(10), Ok(Grant { ttl: Some(secs(100)), renewable: true }), 0.0);
        assert!(tenure.is_fit(at(100)) && tenure.lives(at(109)) && !tenure.lives(at(110)));
        // Capped: another one is fetched when half of it is over.
        tenure.answered(at(60), at(60), Ok(Grant { ttl: Some(secs(40)), renewable: true }), 0.0);
        assert!(!tenure.is_fit(at(60)) && tenure.lives(at(99)));
    }

    #[test]
    fn refused_renewal_brings_another_token_and_a_failed_one_when_time_runs_low() {
        let mut refused = tenure(Some(100), true, TokenKind::Service);
        refused.answered(at(10), at(10), Err(Answer::Denied), 0.0);
        assert!(!refused.is_fit(at(10)) && refused.lives(at(99)));
        let mut failed = tenure(Some(99), true, TokenKind::Service);
        failed.answered(at(10), at(10), Err(Answer::Unavailable), 0.0);
        assert!(failed.is_fit(at(66)) && !failed.is_fit(at(67)));
    }

    #[test]
    fn tokens_of_other_kinds_are_neither_renewed_nor_revoked() {
        for kind in [TokenKind::Batch, TokenKind::Foreign] {
            let mut tenure = tenure(Some(100), true, kind);
            assert!(!tenure.take_renewal(at(50)) && tenure.is_fit(at(59)) && !tenure.is_fit(at(60)));
            assert!(!tenure.is_ours_to_revoke(at(59)));
        }
        assert!(tenure(Some(100), true, TokenKind::Service).is_ours_to_revoke(at(59)));
    }

    #[test]
    fn token_without_an_end_is_fit_until_it_is_dead() {
        let mut tenure = tenure(None, true, TokenKind::Service);
        assert!(tenure.is_fit(at(1_000_000)) && !tenure.take_renewal(at(1_000_000)));
        tenure.note_death();
        assert!(!tenure.is_fit(at(0)) && !tenure.is_ours_to_revoke(at(0)));
    }
}
