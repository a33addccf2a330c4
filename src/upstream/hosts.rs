//! Which host is asked next, and what all of them come to. Pure.
//!
//! The rules are libpq's (PostgreSQL manual, "Specifying Multiple Hosts"), with two exceptions of which the table
//! says why:
//!
//! | what came of an attempt | asked next | why |
//! | --- | --- | --- |
//! | no address, no connection, no answer in time, connection lost | the next address, then the next host | as libpq |
//! | a stranger, no TLS, a certificate that is not believed, no proof of the password | the same | libpq stops. What is behind one port says nothing of another, and whoever can put a stranger there can also let nobody in |
//! | `57P01`, `57P02`, `57P03`: the server goes or comes | the next host | as libpq for `57P03`; a login that a shutdown meets half-way ends with the others |
//! | let in, and not what `target_session_attrs` asks for | the next host | as libpq, which does not ask its other addresses |
//! | `28P01`, `28000`: not our credential | the next host | libpq stops, as its user may have mistyped. Ours is new, and a replica may be late to know it |
//! | any other word of upstream's | none: it is the client's to hear | as libpq |

use std::collections::VecDeque;
use std::time::Duration;

use super::error::UpstreamError;
use crate::config::{LoadBalanceHosts, TargetSessionAttrs};
use crate::wire::error::SqlState;

/// What came of an attempt that is not a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No server of ours is behind this address, as far as one can tell.
    Failed,
    /// It is starting, or going away.
    NotNow,
    /// It has accepted the credential, and is not the kind of server that is wanted.
    Unfit,
    /// It does not know the credential.
    Rejected,
    /// It has spoken, and not of itself or the credential.
    Refused,
}

impl Outcome {
    pub(super) fn of(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::Resolve { .. }
            | UpstreamError::Connect { .. }
            | UpstreamError::TimedOut { .. }
            | UpstreamError::Tls { .. }
            | UpstreamError::Login { .. }
            | UpstreamError::Cancel { .. }
            | UpstreamError::NoHost(_) => Self::Failed,
            UpstreamError::Unfit { .. } => Self::Unfit,
            UpstreamError::CredentialRejected { .. } => Self::Rejected,
            UpstreamError::Refused { response, .. } => match response.code {
                Some(SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW) => {
                    Self::NotNow
                }
                _ => Self::Refused,
            },
        }
    }

    /// Whether another address of the same host may do better.
    pub(super) fn is_of_address(self) -> bool {
        self == Self::Failed
    }
}

/// What is to be made of all attempts, none of which is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conclusion {
    /// What upstream said last counts.
    LastWord,
    /// No host has accepted the credential, and at least one does not know it.
    Rejected,
    /// A host has accepted the credential, and another one does not know it yet.
    Late,
    NoHost,
}

/// The hosts of one login, by index, in the order in which they are asked.
#[derive(Debug)]
pub(super) struct Plan {
    wanted: TargetSessionAttrs,
    left: VecDeque<usize>,
    /// Those that are not what is preferred.
    unfit: VecDeque<usize>,
    accepted: bool,
    rejected: bool,
    refused: bool,
}

impl Plan {
    pub(super) fn new(
        hosts: usize,
        wanted: TargetSessionAttrs,
        balance: LoadBalanceHosts,
        random: &mut fastrand::Rng,
    ) -> Self {
        let mut order: Vec<usize> = (0..hosts).collect();
        shuffle(&mut order, balance, random);
        Self {
            wanted,
            left: order.into(),
            unfit: VecDeque::new(),
            accepted: false,
            rejected: false,
            refused: false,
        }
    }

    /// The host to ask now, and what it has to be. Where all have been asked for a standby that is only preferred,
    /// those that let us in are asked again: libpq asks all.
    pub(super) fn next(&mut self) -> Option<(usize, TargetSessionAttrs)> {
        if self.refused {
            return None;
        }
        if self.left.is_empty() && self.wanted == TargetSessionAttrs::PreferStandby {
            self.wanted = TargetSessionAttrs::Any;
            self.left = std::mem::take(&mut self.unfit);
        }
        self.left.pop_front().map(|host| (host, self.wanted))
    }

    /// How much of the time that is left is for the host that was given last: as much as for each of those after it.
    pub(super) fn share(&self, left: Duration) -> Duration {
        let second_pass = usize::from(self.wanted == TargetSessionAttrs::PreferStandby);
        share(left, 1 + self.left.len() + second_pass)
    }

    /// Takes what came of `host`.
    pub(super) fn take(&mut self, host: usize, outcome: Outcome) {
        match outcome {
            Outcome::Failed | Outcome::NotNow => {}
            Outcome::Unfit => {
                self.accepted = true;
                self.unfit.push_back(host);
            }
            Outcome::Rejected => self.rejected = true,
            Outcome::Refused => self.refused = true,
        }
    }

    pub(super) fn conclusion(&self) -> Conclusion {
        match (self.refused, self.rejected, self.accepted) {
            (true, ..) => Conclusion::LastWord,
            (false, true, false) => Conclusion::Rejected,
            (false, true, true) => Conclusion::Late,
            (false, false, _) => Conclusion::NoHost,
        }
    }
}

/// libpq's `load_balance_hosts`, for hosts and for the addresses of each.
pub(super) fn shuffle<T>(order: &mut [T], balance: LoadBalanceHosts, random: &mut fastrand::Rng) {
    match balance {
        LoadBalanceHosts::Disable => {}
        LoadBalanceHosts::Random => random.shuffle(order),
    }
}

/// One of so many equal parts.
pub(super) fn share(left: Duration, parts: usize) -> Duration {
    left / u32::try_from(parts.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::error::ErrorResponse;

    use LoadBalanceHosts::{Disable, Random};
    use Outcome::{Failed, NotNow, Refused, Rejected, Unfit};

    fn plan(hosts: usize, wanted: TargetSessionAttrs) -> Plan {
        Plan::new(hosts, wanted, Disable, &mut fastrand::Rng::with_seed(1))
    }

    /// Hosts that are asked, in this order, until `outcomes` end or nobody is left.
    fn play(
        wanted: TargetSessionAttrs,
        hosts: usize,
        outcomes: &[Outcome],
    ) -> (Vec<(usize, TargetSessionAttrs)>, Plan) {
        let mut plan = plan(hosts, wanted);
        let mut asked = Vec::new();
        let mut outcomes = outcomes.iter();
        while let Some(next) = plan.next() {
            asked.push(next);
            let Some(&outcome) = outcomes.next() else { break };
            plan.take(next.0, outcome);
        }
        (asked, plan)
    }

    #[test]
    fn every_word_of_upstreams_goes_on_or_stops() {
        let refused = |code: &str| {
            let response = ErrorResponse::parse(format!("SFATAL\0C{code}\0Mno\0\0").as_bytes());
            Outcome::of(&UpstreamError::login(
                String::new(),
                super::super::error::LoginError::Refused(response),
            ))
        };
        for (code, expected) in [
            ("57P01", NotNow),
            ("57P02", NotNow),
            ("57P03", NotNow),
            ("28P01", Rejected),
            ("28000", Rejected),
            ("53300", Refused),
            ("3D000", Refused),
            ("42501", Refused),
            ("08P01", Refused),
            ("", Refused),
        ] {
            assert_eq!(refused(code), expected, "{code}");
        }
        assert!([NotNow, Unfit, Rejected, Refused].iter().all(|outcome| !outcome.is_of_address()));
    }

    #[test]
    fn hosts_are_asked_in_their_order_until_one_says_what_the_client_is_to_hear() {
        for (outcomes, asked, conclusion) in [
            (&[Failed, Failed, Failed][..], 3, Conclusion::NoHost),
            (&[Failed, NotNow, Failed], 3, Conclusion::NoHost),
            (&[Unfit, Unfit, Failed], 3, Conclusion::NoHost),
            (&[Rejected, Failed, NotNow], 3, Conclusion::Rejected),
            (&[Rejected, Rejected, Rejected], 3, Conclusion::Rejected),
            (&[Rejected, Unfit, Failed], 3, Conclusion::Late),
            (&[Unfit, Failed, Rejected], 3, Conclusion::Late),
            (&[Refused], 1, Conclusion::LastWord),
            (&[Rejected, Refused], 2, Conclusion::LastWord),
        ] {
            let (hosts, plan) = play(TargetSessionAttrs::ReadWrite, 3, outcomes);
            let expected: Vec<_> = (0..asked).map(|host| (host, TargetSessionAttrs::ReadWrite)).collect();
            assert_eq!((hosts, plan.conclusion()), (expected, conclusion), "{outcomes:?}");
        }
        assert_eq!(play(TargetSessionAttrs::Any, 1, &[Failed]).0, [(0, TargetSessionAttrs::Any)]);
    }

    #[test]
    fn standby_that_is_only_preferred_is_done_without_in_a_second_pass() {
        let prefer = |host| (host, TargetSessionAttrs::PreferStandby);
        let any = |host| (host, TargetSessionAttrs::Any);
        for (outcomes, expected) in [
            (
                &[Unfit, Failed, Unfit, Failed, Failed][..],
                vec![prefer(0), prefer(1), prefer(2), any(0), any(2)],
            ),
            (&[Unfit, Rejected], vec![prefer(0), prefer(1), prefer(2)]),
            (&[Unfit, Rejected, Failed], vec![prefer(0), prefer(1), prefer(2), any(0)]),
            (&[Failed, Failed, Failed], vec![prefer(0), prefer(1), prefer(2)]),
            (&[Unfit, Refused], vec![prefer(0), prefer(1)]),
        ] {
            assert_eq!(play(TargetSessionAttrs::PreferStandby, 3, outcomes).0, expected, "{outcomes:?}");
        }
    }

    #[test]
    fn time_that_is_left_is_shared_by_those_that_are_left() {
        let seconds = Duration::from_secs;
        let mut three = plan(3, TargetSessionAttrs::Any);
        for (left, expected) in [(9, 3), (6, 3), (3, 3)] {
            three.next();
            assert_eq!(three.share(seconds(left)), seconds(expected));
        }
        let mut two = plan(2, TargetSessionAttrs::PreferStandby);
        two.next();
        assert_eq!(two.share(seconds(9)), seconds(3));
        assert_eq!(share(seconds(1), 0), seconds(1));
    }

    #[test]
    fn random_order_is_another_each_time_and_every_host_comes_first_as_often() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut first = [0_u32; 3];
        for _ in 0..3000 {
            let mut plan = Plan::new(3, TargetSessionAttrs::Any, Random, &mut random);
            let mut order: Vec<_> = std::iter::from_fn(|| plan.next()).map(|(host, _)| host).collect();
            first[order[0]] += 1;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
        assert!(first.iter().all(|&times| (850..1150).contains(&times)), "{first:?}");
        let mut addresses = ["a", "b"];
        shuffle(&mut addresses, Disable, &mut random);
        assert_eq!(addresses, ["a", "b"]);
    }
}
