//! The proof of a credential before it is offered: for each route of the chain one upstream must have accepted it.
//! Pure: says which upstream to try and when, and takes the verdicts.

use std::time::Duration;

use crate::backoff::Backoff;

/// What one probe login tells of the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    /// Its password or its role is not accepted. A replica or pooler may only be late to know the role.
    Rejected,
    /// One host has accepted it, and the one that sessions would go to does not know it yet.
    Late,
    /// Nothing: upstream was not reached, is full, is starting, or takes nobody from where we are.
    Unknown,
}

/// What all of them together tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProofState {
    /// Nobody has rejected it, and not everybody has accepted it yet.
    Open,
    /// Rejected at least once, for less than [`MAX_LAG`].
    Doubted,
    Proven,
    Rejected,
}

/// The proof of one credential.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    routes: Vec<Route>,
    /// On the boot clock, as all times here.
    since: Duration,
}

#[derive(Clone, Debug)]
struct Route {
    step: Step,
    rejected_since: Option<Duration>,
    late_since: Option<Duration>,
    backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Due { at: Duration },
    Asked,
    Accepted,
    Rejected,
}

impl Proof {
    /// A proof at as many upstreams as the chain has, begun now.
    pub(super) fn new(upstreams: usize, now: Duration) -> Self {
        let route = Route {
            step: Step::Due { at: now },
            rejected_since: None,
            late_since: None,
            backoff: Backoff::default(),
        };
        Self { routes: vec![route; upstreams], since: now }
    }

    /// The upstreams to try now, by index; each is outstanding until it is answered.
    pub(super) fn take_due(&mut self, now: Duration) -> Vec<usize> {
        let mut due = Vec::new();
        for (index, route) in self.routes.iter_mut().enumerate() {
            if matches!(route.step, Step::Due { at } if at <= now) {
                route.step = Step::Asked;
                due.push(index);
            }
        }
        due
    }

    /// Takes the verdict of the upstream at `index`.
    pub(super) fn answered(&mut self, index: usize, verdict: Verdict, now: Duration, u: f64) {
        let Some(route) = self.routes.get_mut(index) else { return };
        route.step = match verdict {
            Verdict::Accepted => Step::Accepted,
            Verdict::Unknown => Step::Due { at: now + route.backoff.next(MAX_PAUSE, u) },
            // It is good; sessions have it easier once the replica knows it, too.
            Verdict::Late => {
                route.rejected_since = None;
                let since = *route.late_since.get_or_insert(now);
                if now.saturating_sub(since) < MAX_LAG {
                    Step::Due { at: now + route.backoff.next(MAX_PAUSE_WHILE_REJECTED, u) }
                } else {
                    Step::Accepted
                }
            }
            Verdict::Rejected => {
                let since = *route.rejected_since.get_or_insert(now);
                if now.saturating_sub(since) < MAX_LAG {
                    Step::Due { at: now + route.backoff.next(MAX_PAUSE_WHILE_REJECTED, u) }
                } else {
                    Step::Rejected
                }
            }
        };
    }

    /// Forgets outstanding probes whose answers will not come.
    pub(super) fn forget_requests(&mut self, now: Duration) {
        for route in self.routes.iter_mut().filter(|route| route.step == Step::Asked) {
            route.step = Step::Due { at: now + MAX_PAUSE };
        }
    }

    pub(super) fn state(&self) -> ProofState {
        let any = |step| self.routes.iter().any(|route| route.step == step);
        if any(Step::Rejected) {
            ProofState::Rejected
        } else if self.routes.iter().all(|route| route.step == Step::Accepted) {
            ProofState::Proven
        } else if self
            .routes
            .iter()
            .any(|route| route.rejected_since.is_some() && route.step != Step::Accepted)
        {
            ProofState::Doubted
        } else {
            ProofState::Open
        }
    }

    /// Whether an upstream has accepted it and none speaks against it: sessions may be told to reconnect with it.
    pub(super) fn is_accepted(&self) -> bool {
        match self.state() {
            ProofState::Proven => true,
            ProofState::Open => self.routes.iter().any(|route| route.step == Step::Accepted),
            ProofState::Doubted | ProofState::Rejected => false,
        }
    }

    /// Whether it is time to promote. A credential that nobody has rejected is better than one that ends or was
    /// rejected (`last_call`), and than none: clients then hear upstream's own trouble from itself.
    pub(super) fn is_enough(&self, now: Duration, last_call: LastCall) -> bool {
        let took = now.saturating_sub(self.since);
        match self.state() {
            ProofState::Proven => true,
            ProofState::Open => match last_call {
                // A route whose upstream is away holds up nobody else's.
                LastCall::No => self.is_accepted() && took >= MAX_WAIT_UNSERVED,
                LastCall::Unserved => took >= MAX_WAIT_UNSERVED,
                LastCall::Now => took >= MAX_WAIT_AT_LAST_CALL,
            },
            ProofState::Doubted | ProofState::Rejected => false,
        }
    }

    /// When something falls due.
    pub(super) fn next_due(&self, now: Duration) -> Option<Duration> {
        let probes = self.routes.iter().filter_map(|route| match route.step {
            Step::Due { at } => Some(at),
            Step::Asked | Step::Accepted | Step::Rejected => None,
        });
        let limits = [self.since + MAX_WAIT_AT_LAST_CALL, self.since + MAX_WAIT_UNSERVED];
        probes.chain(limits).filter(|&at| at > now).min()
    }
}

/// How much longer the proof of a successor may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastCall {
    /// A good credential serves.
    No,
    /// None serves, or the one that does was rejected: up to [`MAX_WAIT_UNSERVED`].
    Unserved,
    /// The one that serves is about to end: [`MAX_WAIT_AT_LAST_CALL`], which an upstream that is there needs not.
    Now,
}

/// How long a rejection may be the lag of a replica or a pooler.
const MAX_LAG: Duration = Duration::from_secs(5);

/// How long clients wait for a proof that nobody gives or denies.
const MAX_WAIT_UNSERVED: Duration = Duration::from_secs(5);

const MAX_WAIT_AT_LAST_CALL: Duration = Duration::from_millis(500);

const MAX_PAUSE: Duration = Duration::from_secs(4);

const MAX_PAUSE_WHILE_REJECTED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn credential_is_proven_when_each_route_has_accepted_it() {
        let mut proof = Proof::new(2, ms(0));
        assert_eq!((proof.take_due(ms(0)), proof.take_due(ms(0))), (vec![0, 1], vec![]));
        proof.answered(0, Verdict::Accepted, ms(10), 0.0);
        assert_eq!(proof.state(), ProofState::Open);
        proof.answered(1, Verdict::Accepted, ms(10), 0.0);
        assert_eq!(proof.state(), ProofState::Proven);
        assert!(proof.is_enough(ms(10), LastCall::No));
    }

    #[test]
    fn rejection_counts_after_five_seconds_only() {
        let mut proof = Proof::new(1, ms(0));
        let (mut now, mut tries) = (ms(0), 0);
        while proof.state() != ProofState::Rejected {
            for route in proof.take_due(now) {
                proof.answered(route, Verdict::Rejected, now, 1.0);
                tries += 1;
            }
            assert!(!proof.is_enough(now, LastCall::Now));
            now += ms(100);
        }
        assert!(now > ms(5_000) && now < ms(6_200), "{now:?}");
        assert!(tries < 9, "{tries}");
    }

    #[test]
    fn late_replica_is_forgiven() {
        let mut proof = Proof::new(1, ms(0));
        proof.take_due(ms(0));
        proof.answered(0, Verdict::Rejected, ms(0), 0.0);
        assert_eq!(proof.state(), ProofState::Doubted);
        assert_eq!(proof.take_due(ms(100)), [0]);
        proof.answered(0, Verdict::Accepted, ms(150), 0.0);
        assert_eq!(proof.state(), ProofState::Proven);
    }

    #[test]
    fn replica_that_lags_behind_a_host_that_accepts_is_waited_for_and_no_rejection() {
        let mut proof = Proof::new(1, ms(0));
        let (mut now, mut tries) = (ms(0), 0);
        while proof.state() != ProofState::Proven {
            for route in proof.take_due(now) {
                proof.answered(route, Verdict::Late, now, 1.0);
                tries += 1;
            }
            assert_ne!(proof.state(), ProofState::Doubted);
            now += ms(100);
        }
        assert!(now > ms(5_000) && now < ms(6_200) && tries < 9, "{now:?} {tries}");

        let mut proof = Proof::new(1, ms(0));
        proof.answered(0, Verdict::Rejected, ms(0), 0.0);
        proof.answered(0, Verdict::Late, ms(100), 0.0);
        assert_eq!(proof.state(), ProofState::Open);
        // The one that serves is about to end.
        assert!(proof.is_enough(ms(500), LastCall::Now));
    }

    #[test]
    fn one_route_that_accepts_is_enough_to_reconnect_with_where_none_rejects() {
        for (verdicts, accepted) in [
            ([Verdict::Unknown, Verdict::Unknown], false),
            ([Verdict::Accepted, Verdict::Unknown], true),
            ([Verdict::Accepted, Verdict::Rejected], false),
            ([Verdict::Accepted, Verdict::Accepted], true),
        ] {
            let mut proof = Proof::new(2, ms(0));
            for (route, verdict) in verdicts.into_iter().enumerate() {
                proof.answered(route, verdict, ms(0), 0.0);
            }
            assert_eq!(proof.is_accepted(), accepted, "{verdicts:?}");
        }
    }

    #[test]
    fn route_whose_upstream_is_away_does_not_hold_up_the_others() {
        let mut proof = Proof::new(2, ms(0));
        proof.answered(0, Verdict::Accepted, ms(10), 0.0);
        proof.answered(1, Verdict::Unknown, ms(10), 0.0);
        assert!(!proof.is_enough(ms(4_999), LastCall::No) && proof.is_enough(ms(5_000), LastCall::No));
        proof.answered(1, Verdict::Rejected, ms(10), 0.0);
        assert!(!proof.is_enough(ms(5_000), LastCall::No));
    }

    #[test]
    fn silence_is_no_verdict_and_paused_for() {
        let mut proof = Proof::new(1, ms(0));
        let mut tries = 0;
        for now in (0..60_000).step_by(100).map(ms) {
            for route in proof.take_due(now) {
                proof.answered(route, Verdict::Unknown, now, 1.0);
                tries += 1;
            }
        }
        assert_eq!(proof.state(), ProofState::Open);
        assert!((10..20).contains(&tries), "{tries}");
        assert!(!proof.is_enough(ms(60_000), LastCall::No));
    }

    #[test]
    fn unproven_is_better_than_none() {
        let proof = Proof::new(1, ms(0));
        assert!(
            !proof.is_enough(ms(4_999), LastCall::Unserved) && proof.is_enough(ms(5_000), LastCall::Unserved)
        );
        assert!(!proof.is_enough(ms(499), LastCall::Now) && proof.is_enough(ms(500), LastCall::Now));
        assert_eq!((proof.next_due(ms(0)), proof.next_due(ms(500))), (Some(ms(500)), Some(ms(5_000))));
    }

    #[test]
    fn lost_probes_are_tried_again() {
        let mut proof = Proof::new(1, ms(0));
        proof.take_due(ms(0));
        proof.forget_requests(ms(0));
        assert_eq!((proof.take_due(ms(3_999)), proof.take_due(ms(4_000))), (vec![], vec![0]));
    }
}
