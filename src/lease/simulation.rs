//! The requests of one instance, by the tables of this module, to a Vault that answers at once and always. Pure, and
//! for `benches/fleet.rs` only, which sums them up over a fleet: the shell around the tables is left out, time is
//! virtual, and sessions follow to a new credential at once.

use std::time::Duration;

use fastrand::Rng;

use super::chain::{ChainAction, ChainEvent, ChainState, View};
use super::clock::Now;
use super::keeper::{Keeper, Kind};
use super::term::Term;
use crate::vault::{Answer, Grant};

/// What Vault was set up for, and what the pod logs in with.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `default_ttl` and `max_ttl` of the `vault_role`.
    pub lease: (Duration, Duration),
    /// `token_ttl` and `token_max_ttl` of the auth role.
    pub token: (Duration, Duration),
    /// Life of the pod's JWT. The kubelet replaces it after four fifths of that.
    pub jwt: Duration,
    /// Whether a token is renewed only while its login's JWT holds, as OpenBao does and Vault does not.
    pub renewal_needs_jwt: bool,
}

/// A request to Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `auth/kubernetes/login`, with the `auth/token/lookup-self` that goes with it.
    Login,
    /// The read of the `vault_path`.
    Creds,
    /// `sys/leases/renew`
    RenewLease,
    /// `auth/token/renew-self`
    RenewToken,
    /// `auth/token/revoke-self`
    Revoke,
}

/// Lets an instance live from `start` to `end`, and tells each of its requests with its time. The same `seed` gives
/// the same life.
pub fn live(
    rules: &Rules,
    start: Duration,
    end: Duration,
    seed: u64,
    request: impl FnMut(Request, Duration),
) {
    let state = ChainState::default();
    let mut instance =
        Instance { rules, now: start, state, current: None, rng: Rng::with_seed(seed), request };
    instance.feed(ChainEvent::Started);
    while let Some(next) = instance.next_due().filter(|&next| next <= end) {
        instance.now = next;
        instance.advance();
    }
}

struct Instance<'a, F> {
    rules: &'a Rules,
    now: Duration,
    state: ChainState,
    current: Option<Generation>,
    rng: Rng,
    request: F,
}

struct Generation {
    keeper: Keeper,
    issued: Duration,
    jwt_expiry: Duration,
}

impl<F: FnMut(Request, Duration)> Instance<'_, F> {
    fn next_due(&self) -> Option<Duration> {
        let keeper = self.current.as_ref().and_then(|current| current.keeper.next_due(self.clocks()));
        keeper.into_iter().chain(self.state.attempt_at()).min()
    }

    /// What the chain's task does at each turn.
    fn advance(&mut self) {
        let now = self.clocks();
        self.renew_due(now);
        if self.current.as_ref().is_some_and(|current| current.keeper.is_over(now, Duration::ZERO)) {
            self.feed(ChainEvent::Expired);
        }
        let trigger = self.current.as_ref().and_then(|current| current.keeper.wants_rotation(now));
        if let Some(trigger) = trigger {
            self.feed(ChainEvent::RotationDue(trigger));
        }
        self.feed(ChainEvent::Tick);
    }

    fn renew_due(&mut self, now: Now) {
        let Some(current) = &mut self.current else { return };
        let due = current.keeper.take_due(now);
        if !due.is_empty() {
            self.feed(ChainEvent::RenewalAsked);
        }
        for kind in due {
            self.renew(kind, now);
        }
    }

    fn renew(&mut self, kind: Kind, now: Now) {
        let u = self.rng.f64();
        let Some(current) = &mut self.current else { return };
        let age = self.now.saturating_sub(current.issued);
        let (request, (ttl, max_ttl), allowed) = match kind {
            Kind::Lease => (Request::RenewLease, self.rules.lease, true),
            Kind::Token => {
                let allowed = !self.rules.renewal_needs_jwt || self.now < current.jwt_expiry + JWT_LEEWAY;
                (Request::RenewToken, self.rules.token, allowed)
            }
        };
        (self.request)(request, self.now);
        let granted = Duration::from_secs(ttl.min(max_ttl.saturating_sub(age)).as_secs());
        let answer = match (allowed, granted.is_zero()) {
            (true, false) => Ok(Grant { ttl: Some(granted), renewable: true }),
            (true, true) => Err(Answer::BadRequest),
            (false, _) => Err(Answer::Denied),
        };
        current.keeper.answered(kind, now, now, answer, u);
        let keeper = &current.keeper;
        if keeper.is_unwell() {
            self.feed(ChainEvent::RenewalFailed);
        } else if !keeper.is_asked() && keeper.wants_rotation(now).is_none() {
            self.feed(ChainEvent::Renewed);
        }
    }

    fn feed(&mut self, event: ChainEvent) {
        let now = self.clocks();
        let left = self.current.as_ref().map(|current| current.keeper.left(now)).unwrap_or_default();
        let view = View { now: self.now, left, clients_wait: false, u: self.rng.f64() };
        let (state, actions) = self.state.on(event, view);
        self.state = state;
        for action in actions {
            match action {
                ChainAction::Begin => self.fetch(now),
                ChainAction::Renew => {
                    if self.current.as_mut().is_some_and(|current| current.keeper.hurry(now)) {
                        self.renew_due(now);
                    } else {
                        self.feed(ChainEvent::RenewalFailed);
                    }
                }
                ChainAction::Abandon | ChainAction::Withdraw | ChainAction::Promote => {}
            }
        }
    }

    /// A new credential in place of the current one.
    fn fetch(&mut self, now: Now) {
        (self.request)(Request::Login, self.now);
        (self.request)(Request::Creds, self.now);
        let lease = Term::new(now, self.rules.lease.0, true, self.rng.f64());
        let token = Term::new(now, self.rules.token.0, true, self.rng.f64());
        let replaced = self.rules.jwt.mul_f64(0.8).as_secs().max(1);
        let jwt_expiry = Duration::from_secs(self.now.as_secs() / replaced * replaced) + self.rules.jwt;
        let is_first = self.state.phase().trigger().is_none();
        let keeper = Keeper::new(lease, Some(token), Some(jwt_expiry), now);
        let keeper = keeper.spread(is_first, now, self.rng.f64());
        if self.current.replace(Generation { keeper, issued: self.now, jwt_expiry }).is_some() {
            (self.request)(Request::Revoke, self.now);
        }
        self.feed(ChainEvent::CredentialMade);
        self.feed(ChainEvent::SuccessorReady);
    }

    /// Both clocks go together.
    fn clocks(&self) -> Now {
        Now { boot: self.now, wall: self.now }
    }
}

/// Vault takes a JWT for so long after its end.
const JWT_LEEWAY: Duration = Duration::from_mins(1);
