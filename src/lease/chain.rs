//! The states of a chain: whether it serves, and how the next credential is got. Pure: takes an event and a view of
//! the moment, gives the next state and what is to be done.
//!
//! An event that a state has no use for changes nothing: answers may come after what they were asked for has passed.

use std::fmt;
use std::time::Duration;

use super::budget::Budget;
use super::schedule;
use crate::backoff::Backoff;
use crate::vault::Answer;

/// A chain between two events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainState {
    phase: Phase,
    /// No attempt begins before. On the boot clock, as all times here.
    not_before: Duration,
    /// What a client that waits brings it down to.
    hurried: Duration,
    /// How long a renewal goes before the attempt.
    renewing_until: Duration,
    backoff: Backoff,
    budget: Budget,
}

/// What the chain is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was done yet.
    Boot,
    /// No credential is offered; clients wait. `trigger` is how the last one was lost, `None` before the first.
    Fetch { trigger: Option<Trigger>, attempt: Attempt },
    /// The current credential serves, and is not being renewed just now.
    Serving,
    /// The current credential serves, and a renewal of its lease or token is outstanding.
    Renewing,
    /// The current credential serves; its renewal failed and is tried again.
    Degraded,
    /// The current credential serves, and is renewed, while a successor is fetched and proven.
    Rotating { trigger: Trigger, attempt: Attempt },
    /// Nothing is offered, and nothing is begun any more.
    Ended,
}

/// One try for a new credential: login, creds, proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Until the pause is over and the budget allows.
    Waiting,
    /// Until a renewal has failed or hung: one that succeeds makes the attempt needless.
    Renewing,
    Running,
}

/// Why a successor is fetched, the more urgent below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trigger {
    /// The end is known, and there is time.
    Planned,
    /// Renewals have failed until little time was left.
    Degraded,
    /// An operator wants one.
    Asked,
    /// An upstream rejected the credential.
    Rejected,
    /// Somebody ended the credential before its time.
    Revoked,
    /// The credential ended.
    Expired,
}

/// What happens to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainEvent {
    Started,
    /// Time went on.
    Tick,
    /// A renewal of the current credential was asked for.
    RenewalAsked,
    /// Lease and token are renewed, and nothing is outstanding.
    Renewed,
    /// A renewal was not granted. That is no verdict on the credential, even where it was refused: Vault answers so
    /// while the database is away, too.
    RenewalFailed,
    /// The current credential needs a successor.
    RotationDue(Trigger),
    /// An upstream rejected the current credential.
    Rejected,
    /// The current credential lives, and is not renewed because the database is away: so no other could be made.
    DatabaseAway,
    /// The current credential was ended before its time.
    Revoked,
    /// The current credential ended.
    Expired,
    /// Vault made a credential, or may have.
    CredentialMade,
    /// The attempt came to nothing.
    AttemptFailed(Failure),
    /// The successor may be offered.
    SuccessorReady,
    /// A client has begun to wait.
    ClientWaits,
    /// The chain is to end.
    Stopped,
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Vault did not give a credential.
    Vault(Answer),
    /// Upstream rejected the new credential too: more of them would fare no better.
    SuccessorRejected,
}

/// What the chain's task has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChainAction {
    /// Try a renewal of the current credential now.
    Renew,
    /// Begin an attempt.
    Begin,
    /// Fetch no more, and revoke what was made for the successor.
    Abandon,
    /// Offer nothing any more.
    Withdraw,
    /// Offer the successor.
    Promote,
}

/// The moment of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct View {
    /// On the boot clock.
    pub(super) now: Duration,
    /// What is left of the current credential.
    pub(super) left: Duration,
    pub(super) clients_wait: bool,
    /// Uniform in 0–1.
    pub(super) u: f64,
}

impl Default for ChainState {
    fn default() -> Self {
        Self {
            phase: Phase::Boot,
            not_before: Duration::ZERO,
            hurried: Duration::ZERO,
            renewing_until: Duration::ZERO,
            backoff: Backoff::default(),
            budget: Budget::default(),
        }
    }
}

impl ChainState {
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether a credential that no session waits for may be made now.
    pub(super) fn may_make_one_more(&self, now: Duration) -> bool {
        self.phase.attempt().is_none() && self.budget.ready_at() <= now
    }

    /// When the next attempt moves on.
    pub(super) fn attempt_at(&self) -> Option<Duration> {
        match self.phase.attempt()? {
            Attempt::Waiting => Some(self.not_before.max(self.budget.ready_at())),
            Attempt::Renewing => Some(self.renewing_until),
            Attempt::Running => None,
        }
    }

    /// The state after `event`, and what is to be done.
    pub(super) fn on(mut self, event: ChainEvent, view: View) -> (Self, Vec<ChainAction>) {
        if event == ChainEvent::CredentialMade {
            self.budget.spend(view.now);
        }
        if event == ChainEvent::RotationDue(Trigger::Asked) {
            // Somebody is there and waits. Asking again and again is no way around all pauses.
            self.not_before = self.not_before.min(view.now + MAX_PAUSE_WHEN_ASKED);
            self.renewing_until = view.now;
        }
        if event == ChainEvent::Stopped {
            self.phase = Phase::Ended;
            return (self, vec![ChainAction::Withdraw, ChainAction::Abandon]);
        }
        let mut actions = match self.phase {
            Phase::Ended => Vec::new(),
            Phase::Boot => self.on_boot(event),
            Phase::Fetch { trigger, attempt } => self.on_fetch(trigger, attempt, event, view),
            Phase::Serving | Phase::Renewing | Phase::Degraded => self.on_serving(event),
            Phase::Rotating { trigger, attempt } => self.on_rotating(trigger, attempt, event, view),
        };
        if view.clients_wait && self.phase.is_unserved() {
            self.hurry(view.now);
        }
        if self.attempt_at().is_some_and(|at| at <= view.now) {
            actions.push(self.move_attempt_on(event, view.now));
        }
        (self, actions)
    }

    /// Begins the attempt; after a renewal, where one could make it needless and did not fail just now.
    fn move_attempt_on(&mut self, event: ChainEvent, now: Duration) -> ChainAction {
        let waits = self.phase.attempt() == Some(Attempt::Waiting);
        let may_be_needless = self.phase.trigger().is_some_and(Trigger::ends_with_a_renewal);
        if waits && may_be_needless && event != ChainEvent::RenewalFailed {
            self.set_attempt(Attempt::Renewing);
            self.renewing_until = now + MAX_RENEWAL_BEFORE_ATTEMPT;
            ChainAction::Renew
        } else {
            self.set_attempt(Attempt::Running);
            ChainAction::Begin
        }
    }

    fn on_boot(&mut self, event: ChainEvent) -> Vec<ChainAction> {
        if event == ChainEvent::Started {
            self.phase = Phase::Fetch { trigger: None, attempt: Attempt::Waiting };
        }
        Vec::new()
    }

    fn on_fetch(
        &mut self,
        trigger: Option<Trigger>,
        attempt: Attempt,
        event: ChainEvent,
        view: View,
    ) -> Vec<ChainAction> {
        use ChainEvent as E;
        match (attempt, event) {
            (Attempt::Running, E::SuccessorReady) => return self.promoted(),
            (Attempt::Running, E::AttemptFailed(failure)) => {
                self.phase = Phase::Fetch { trigger, attempt: Attempt::Waiting };
                self.pause(failure, pause_ceiling_unserved(failure, view), MAX_ASKED_FOR_UNSERVED, view);
            }
            _ => {}
        }
        Vec::new()
    }

    fn on_serving(&mut self, event: ChainEvent) -> Vec<ChainAction> {
        use ChainEvent as E;
        let rotating = |trigger| Phase::Rotating { trigger, attempt: Attempt::Waiting };
        self.phase = match (self.phase, event) {
            (Phase::Serving, E::RenewalAsked) => Phase::Renewing,
            (_, E::Renewed) => Phase::Serving,
            (_, E::RenewalFailed) => Phase::Degraded,
            (_, E::RotationDue(trigger)) => rotating(trigger),
            (_, E::Rejected) => rotating(Trigger::Rejected),
            (_, E::Revoked) => return self.lost(Trigger::Revoked, Attempt::Waiting),
            (_, E::Expired) => return self.lost(Trigger::Expired, Attempt::Waiting),
            (phase, _) => phase,
        };
        Vec::new()
    }

    fn on_rotating(
        &mut self,
        trigger: Trigger,
        attempt: Attempt,
        event: ChainEvent,
        view: View,
    ) -> Vec<ChainAction> {
        use ChainEvent as E;
        match (attempt, event) {
            (Attempt::Running, E::SuccessorReady) => return self.promoted(),
            (Attempt::Running, E::AttemptFailed(failure)) => {
                self.set_attempt(Attempt::Waiting);
                let ceiling = pause_ceiling_serving(failure, trigger, view);
                self.pause(failure, ceiling, view.left / 4, view);
            }
            // The one that serves is alive after all.
            (_, E::Renewed) if trigger.ends_with_a_renewal() => {
                self.phase = Phase::Serving;
                self.not_before = view.now + self.backoff.next(schedule::MAX_RETRY, view.u);
                return vec![ChainAction::Abandon];
            }
            (_, E::RenewalFailed) => self.renewing_until = view.now,
            (_, E::Rejected) => {
                self.renewing_until = view.now;
                self.raise(Trigger::Rejected);
            }
            (_, E::RotationDue(to)) => self.raise(to),
            (_, E::DatabaseAway) if trigger.ends_with_a_renewal() => {
                self.phase = Phase::Degraded;
                return vec![ChainAction::Abandon];
            }
            (_, E::Revoked) => return self.lost(trigger.max(Trigger::Revoked), attempt),
            (_, E::Expired) => return self.lost(trigger.max(Trigger::Expired), attempt),
            _ => {}
        }
        Vec::new()
    }

    /// Goes on without a credential.
    fn lost(&mut self, trigger: Trigger, attempt: Attempt) -> Vec<ChainAction> {
        let attempt = if attempt == Attempt::Running { attempt } else { Attempt::Waiting };
        self.phase = Phase::Fetch { trigger: Some(trigger), attempt };
        vec![ChainAction::Withdraw]
    }

    /// Gives the rotation a more urgent trigger.
    fn raise(&mut self, to: Trigger) {
        if let Phase::Rotating { trigger, .. } = &mut self.phase {
            *trigger = to.max(*trigger);
        }
    }

    fn promoted(&mut self) -> Vec<ChainAction> {
        self.phase = Phase::Serving;
        self.backoff.reset();
        vec![ChainAction::Promote]
    }

    /// Puts off the next attempt.
    fn pause(&mut self, failure: Failure, ceiling: Duration, max_asked_for: Duration, view: View) {
        let pause = self.backoff.next(ceiling, view.u).max(LEAST_BETWEEN_ATTEMPTS);
        let (pause, hurried) = match failure {
            Failure::Vault(answer) => {
                let asked_for = schedule::asked_for(answer, max_asked_for);
                (pause.max(asked_for), MAX_PAUSE_WHILE_CLIENTS_WAIT.max(asked_for))
            }
            Failure::SuccessorRejected => (pause, pause),
        };
        self.not_before = view.now + pause;
        self.hurried = view.now + hurried;
    }

    /// A client that waits shortens a long pause, but nothing goes on without one.
    fn hurry(&mut self, now: Duration) {
        self.not_before = self.not_before.min(self.hurried.max(now + LEAST_PAUSE));
    }

    fn set_attempt(&mut self, to: Attempt) {
        match &mut self.phase {
            Phase::Fetch { attempt, .. } | Phase::Rotating { attempt, .. } => *attempt = to,
            Phase::Boot | Phase::Serving | Phase::Renewing | Phase::Degraded | Phase::Ended => {}
        }
    }
}

impl Phase {
    /// Why a successor is being fetched, if it is.
    pub(super) fn trigger(self) -> Option<Trigger> {
        match self {
            Self::Fetch { trigger, .. } => trigger,
            Self::Rotating { trigger, .. } => Some(trigger),
            Self::Boot | Self::Serving | Self::Renewing | Self::Degraded | Self::Ended => None,
        }
    }

    /// Whether clients wait for the outcome: nothing is offered, or what is was rejected.
    pub(super) fn is_unserved(self) -> bool {
        match self {
            Self::Fetch { .. } => true,
            Self::Rotating { trigger, .. } => trigger >= Trigger::Rejected,
            Self::Boot | Self::Serving | Self::Renewing | Self::Degraded | Self::Ended => false,
        }
    }

    /// Whether what is offered was rejected, and the attempt at a successor has failed.
    pub(super) fn is_stranded(self) -> bool {
        matches!(self, Self::Rotating { trigger, attempt: Attempt::Waiting } if trigger >= Trigger::Rejected)
    }

    /// How far the attempt at a new credential is, if there is to be one.
    fn attempt(self) -> Option<Attempt> {
        match self {
            Self::Fetch { attempt, .. } | Self::Rotating { attempt, .. } => Some(attempt),
            Self::Boot | Self::Serving | Self::Renewing | Self::Degraded | Self::Ended => None,
        }
    }
}

impl Trigger {
    /// The label in metrics and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Degraded => "degraded",
            Self::Asked => "asked",
            Self::Rejected => "rejected",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }

    /// Whether a renewal that succeeds makes the rotation needless.
    fn ends_with_a_renewal(self) -> bool {
        self == Self::Degraded
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn pause_ceiling_unserved(failure: Failure, view: View) -> Duration {
    match failure {
        Failure::SuccessorRejected => schedule::MAX_RETRY,
        Failure::Vault(_) if view.clients_wait => MAX_PAUSE_WHILE_CLIENTS_WAIT,
        Failure::Vault(_) => MAX_PAUSE_UNSERVED,
    }
}

fn pause_ceiling_serving(failure: Failure, trigger: Trigger, view: View) -> Duration {
    match failure {
        Failure::SuccessorRejected => MAX_PAUSE_WHEN_REJECTED.min(view.left / 4),
        Failure::Vault(_) if trigger >= Trigger::Rejected && view.clients_wait => {
            MAX_PAUSE_WHILE_CLIENTS_WAIT
        }
        Failure::Vault(_) => schedule::MAX_RETRY.min(view.left / 4),
    }
}

pub(super) const MAX_PAUSE_WHILE_CLIENTS_WAIT: Duration = Duration::from_secs(4);

const MAX_PAUSE_WHEN_ASKED: Duration = Duration::from_secs(1);

pub(super) const MAX_PAUSE_UNSERVED: Duration = Duration::from_secs(10);

/// Where upstream rejects even new credentials, as with a `pg_hba.conf` that does not know them.
const MAX_PAUSE_WHEN_REJECTED: Duration = Duration::from_mins(5);

/// The longest `Retry-After` that is honoured while nothing is offered.
pub(super) const MAX_ASKED_FOR_UNSERVED: Duration = Duration::from_secs(30);

/// Whatever the dice say, and however little is left of what serves.
const LEAST_BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);

const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// A renewal that hangs for longer does not keep the attempt waiting.
const MAX_RENEWAL_BEFORE_ATTEMPT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
