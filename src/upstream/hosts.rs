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
//! | `28P01`, `28000`, said of our credential | the next host | libpq stops, as its user may have mistyped. Ours is new, and a replica may be late to know it |
//! | the same said of anything else, as of no line in `pg_hba.conf` | the next host | libpq stops. A line for the members of a group finds none of a role that the replica has not heard of |
//! | any other word of upstream's | none: it is the client's to hear | as libpq |
//!
//! A host that has been heard to refuse is not asked at its other addresses, as by libpq: a name is one server.
//!
//! Where a host that could not be heard is beside one that does not know the credential, the credential is not rejected
//! for good, but doubted: the other one may be the very server that Vault makes roles at, and while that is away a new
//! role would be as unknown to the rest as the old one is. Vault is asked instead whether the lease lives.

use std::collections::VecDeque;
use tokio::time::Instant;

use super::error::UpstreamError;
use super::refusal::OnCredential;
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
    /// It keeps us out, for the credential or for something else.
    Barred,
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
            UpstreamError::Refused { credential: OnCredential::Doubtful, .. } => Self::Barred,
            UpstreamError::Refused { response, .. } => match response.code {
                Some(SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW) => {
                    Self::NotNow
                }
                _ => Self::Refused,
            },
        }
    }

    /// Whether another address of the same host may do better. Of a name that stands for several servers, one may be of
    /// the kind that is wanted.
    pub(super) fn is_of_address(self) -> bool {
        matches!(self, Self::Failed | Self::Unfit)
    }
}

/// What is to be made of all attempts, none of which is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conclusion {
    pub(super) telling: Telling,
    pub(super) credential: OnCredential,
}

/// What is told of the attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// What upstream said last.
    Last,
    /// What the first of this kind said.
    First(Outcome),
    All,
}

/// The hosts of one login, by index, in the order in which they are asked.
#[derive(Debug)]
pub(super) struct Plan {
    wanted: TargetSessionAttrs,
    left: VecDeque<usize>,
    /// Those that are not what is preferred.
    unfit: VecDeque<usize>,
    heard: Heard,
}

/// Which outcomes there have been.
#[expect(clippy::struct_excessive_bools, reason = "a set")]
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    silent: bool,
    accepted: bool,
    rejected: bool,
    barred: bool,
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
        Self { wanted, left: order.into(), unfit: VecDeque::new(), heard: Heard::default() }
    }

    /// The host to ask now, and what it has to be. Where all have been asked for a standby that is only preferred,
    /// those that let us in are asked again: libpq asks all.
    pub(super) fn next(&mut self) -> Option<(usize, TargetSessionAttrs)> {
        if self.heard.refused {
            return None;
        }
        if self.left.is_empty() && self.wanted == TargetSessionAttrs::PreferStandby {
            self.wanted = TargetSessionAttrs::Any;
            self.left = std::mem::take(&mut self.unfit);
        }
        self.left.pop_front().map(|host| (host, self.wanted))
    }

    /// When the time of the host that was given last is over, of which it has as much as each of those after it.
    pub(super) fn until(&self, now: Instant, end: Instant) -> Instant {
        let second_pass = usize::from(self.wanted == TargetSessionAttrs::PreferStandby);
        until(now, end, 1 + self.left.len() + second_pass)
    }

    /// Takes what came of the addresses of `host` that were asked, the last of which ended the attempt.
    pub(super) fn take_last(
        &mut self,
        host: usize,
        before: impl IntoIterator<Item = Outcome>,
        last: Outcome,
    ) {
        // It has accepted the credential, and may do where any server does.
        if last != Outcome::Unfit && before.into_iter().any(|outcome| outcome == Outcome::Unfit) {
            self.take(host, Outcome::Unfit);
        }
        self.take(host, last);
    }

    /// Takes what came of `host`.
    pub(super) fn take(&mut self, host: usize, outcome: Outcome) {
        match outcome {
            Outcome::Failed | Outcome::NotNow => self.heard.silent = true,
            Outcome::Unfit => {
                self.heard.accepted = true;
                self.unfit.push_back(host);
            }
            Outcome::Rejected => self.heard.rejected = true,
            Outcome::Barred => self.heard.barred = true,
            Outcome::Refused => self.heard.refused = true,
        }
    }

    /// What it all comes to. Those that there was no time for have said nothing.
    pub(super) fn conclusion(&self) -> Conclusion {
        let Heard { silent, accepted, rejected, barred, refused } = self.heard;
        let all_have_judged = !silent && !barred && !refused && self.left.is_empty();
        let credential = match (accepted, rejected || barred) {
            (true, true) if !refused => OnCredential::Late,
            (true, _) => OnCredential::Accepted,
            (false, true) if all_have_judged => OnCredential::Rejected,
            (false, true) => OnCredential::Doubtful,
            (false, false) => OnCredential::Nothing,
        };
        let telling = match credential {
            _ if refused => Telling::Last,
            OnCredential::Rejected => Telling::First(Outcome::Rejected),
            OnCredential::Doubtful if barred => Telling::First(Outcome::Barred),
            OnCredential::Nothing | OnCredential::Doubtful | OnCredential::Accepted | OnCredential::Late => {
                Telling::All
            }
        };
        Conclusion { telling, credential }
    }
}

/// libpq's `load_balance_hosts`, for hosts and for the addresses of each.
pub(super) fn shuffle<T>(order: &mut [T], balance: LoadBalanceHosts, random: &mut fastrand::Rng) {
    match balance {
        LoadBalanceHosts::Disable => {}
        LoadBalanceHosts::Random => random.shuffle(order),
    }
}

/// The end of the first of so many equal parts. The last part ends at `end` itself: whoever waits until then as well
/// hears of the host rather than of the time.
pub(super) fn until(now: Instant, end: Instant, parts: usize) -> Instant {
    match u32::try_from(parts).unwrap_or(u32::MAX) {
        0 | 1 => end,
        parts => now + end.saturating_duration_since(now) / parts,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::error::LoginError;
    use super::super::refusal::Stage;
    use super::*;
    use crate::wire::error::ErrorResponse;

    use LoadBalanceHosts::{Disable, Random};
    use OnCredential::{Accepted, Doubtful, Late, Nothing};
    use Outcome::{Barred, Failed, NotNow, Refused, Rejected, Unfit};
    use Telling::{All, First, Last};

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
        let refused = |stage: Stage, code: &str| {
            let response = ErrorResponse::parse(format!("SFATAL\0C{code}\0Mno\0\0").as_bytes());
            Outcome::of(&UpstreamError::login(String::new(), LoginError::Refused { response, stage }))
        };
        for (code, expected) in [
            ("57P01", [NotNow; 3]),
            ("57P02", [NotNow; 3]),
            ("57P03", [NotNow; 3]),
            ("28P01", [Rejected, Barred, Rejected]),
            ("28000", [Rejected, Barred, Barred]),
            ("53300", [Refused; 3]),
            ("3D000", [Refused; 3]),
            ("42501", [Refused; 3]),
            ("08P01", [Refused; 3]),
            ("", [Refused; 3]),
        ] {
            let stages = [Stage::Asked, Stage::Begun, Stage::Unasked];
            assert_eq!(stages.map(|stage| refused(stage, code)), expected, "{code}");
        }
        assert!([NotNow, Rejected, Barred, Refused].iter().all(|outcome| !outcome.is_of_address()));
        assert!([Failed, Unfit].iter().all(|outcome| outcome.is_of_address()));
    }

    #[test]
    fn address_of_another_kind_has_accepted_the_credential_whatever_the_next_one_says() {
        for (before, last, credential) in [
            (&[Failed][..], Failed, Nothing),
            (&[Unfit], Failed, Accepted),
            (&[Unfit], Rejected, Late),
            (&[Failed, Unfit], NotNow, Accepted),
            (&[Failed], Rejected, OnCredential::Rejected),
        ] {
            let mut plan = plan(1, TargetSessionAttrs::PreferStandby);
            assert_eq!(plan.next(), Some((0, TargetSessionAttrs::PreferStandby)));
            plan.take_last(0, before.iter().copied().chain([last]), last);
            assert_eq!(plan.conclusion().credential, credential, "{before:?} {last:?}");
            let again = before.contains(&Unfit).then_some((0, TargetSessionAttrs::Any));
            assert_eq!(plan.next(), again, "{before:?} {last:?}");
        }
    }

    #[test]
    fn hosts_are_asked_in_their_order_until_one_says_what_the_client_is_to_hear() {
        for (outcomes, asked, telling, credential) in [
            (&[Failed, Failed, Failed][..], 3, All, Nothing),
            (&[Failed, NotNow, Failed], 3, All, Nothing),
            (&[Unfit, Unfit, Failed], 3, All, Accepted),
            (&[Rejected, Rejected, Rejected], 3, First(Rejected), OnCredential::Rejected),
            // One that has said nothing may be the one that knows it.
            (&[Rejected, Failed, Rejected], 3, All, Doubtful),
            (&[NotNow, Rejected, Rejected], 3, All, Doubtful),
            (&[Rejected, Barred, Rejected], 3, First(Barred), Doubtful),
            (&[Barred, Failed, Failed], 3, First(Barred), Doubtful),
            (&[Rejected, Unfit, Failed], 3, All, Late),
            (&[Unfit, Failed, Rejected], 3, All, Late),
            (&[Unfit, Barred, Failed], 3, All, Late),
            (&[Refused], 1, Last, Nothing),
            (&[Rejected, Refused], 2, Last, Doubtful),
            (&[Barred, Refused], 2, Last, Doubtful),
            (&[Unfit, Refused], 2, Last, Accepted),
            (&[Unfit, Rejected, Refused], 3, Last, Accepted),
        ] {
            let (hosts, plan) = play(TargetSessionAttrs::ReadWrite, 3, outcomes);
            let expected: Vec<_> = (0..asked).map(|host| (host, TargetSessionAttrs::ReadWrite)).collect();
            assert_eq!(
                (hosts, plan.conclusion()),
                (expected, Conclusion { telling, credential }),
                "{outcomes:?}"
            );
        }
        // No time for the third.
        let mut plan = plan(3, TargetSessionAttrs::Any);
        for host in 0..2 {
            plan.next();
            plan.take(host, Rejected);
        }
        assert_eq!(plan.conclusion(), Conclusion { telling: All, credential: Doubtful });
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
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut three = plan(3, TargetSessionAttrs::Any);
        for (now, expected) in [(0, 3), (3, 6), (7, 9)] {
            three.next();
            assert_eq!(three.until(at(now), at(9)), at(expected));
        }
        // To the very end, and no rounding before it.
        assert_eq!(three.until(at(8) + Duration::from_nanos(1), at(9)), at(9));
        let mut two = plan(2, TargetSessionAttrs::PreferStandby);
        two.next();
        assert_eq!((two.until(at(0), at(9)), two.until(at(10), at(9))), (at(3), at(10)));
        assert_eq!((until(at(0), at(1), 0), until(at(2), at(1), 1)), (at(1), at(1)));
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
