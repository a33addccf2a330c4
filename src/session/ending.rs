//! When a session is ended by others than its client and its upstream, and what it is told then. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::error::Blame;
use crate::config::AtLeaseEnd;
use crate::credential::{LeaseEnd, Revocation, Standing};
use crate::drain::Phase;
use crate::wire::error::{ClientError, SqlState};

/// Why a session is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Its lease ends soon and it is at a point where that costs nothing, or little.
    LeaseEnds,
    /// Its lease is over and a statement still runs.
    LeaseOver,
    /// Its credential was revoked before its time.
    Revoked(Revocation),
    /// Its route is gone.
    RouteRemoved,
    /// It is idle, and as old as its route lets it get.
    MaxAge,
    /// The process stops and it is idle.
    Draining,
    /// The process stops, and time is up.
    Cut,
    /// The process stops, its client has hung up, and a statement still runs.
    HungUp,
}

impl Order {
    /// The word in logs and metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::LeaseEnds => "lease_ends",
            Self::LeaseOver => "lease_over",
            Self::Revoked(Revocation::ByVault) => "revoked",
            Self::Revoked(Revocation::ByOperator) => "rotate_close",
            Self::RouteRemoved => "route_removed",
            Self::MaxAge => "max_session_age",
            Self::Draining => "drain",
            Self::Cut => "cut",
            Self::HungUp => "hung_up",
        }
    }

    /// Who brought it about.
    pub(crate) fn blame(self) -> Blame {
        match self {
            Self::LeaseEnds | Self::LeaseOver | Self::Revoked(Revocation::ByVault) => Blame::Vault,
            Self::Revoked(Revocation::ByOperator)
            | Self::RouteRemoved
            | Self::MaxAge
            | Self::Draining
            | Self::Cut => Blame::Proxy,
            Self::HungUp => Blame::Client,
        }
    }

    /// What the client is told. `is_running`: a statement has been sent and not answered.
    pub(crate) fn client_error(self, is_running: bool) -> ClientError {
        let (message, detail, hint) = match self {
            Self::LeaseEnds => (
                "terminating connection because the lease of its database credential ends",
                "The session logged in with a leased database role that is about to be dropped.",
                "Connect again to get a session on the next credential. To leave sessions open, set startup_role \
                 or at_lease_end = \"leave\" for the route; to not notice, let the pool close connections before \
                 they are as old as max_ttl.",
            ),
            Self::LeaseOver => (
                "terminating connection because the lease of its database credential has ended",
                "The session logged in with a leased database role that is now dropped, and was still busy.",
                "Connect again to get a session on the next credential. To leave sessions open, set startup_role \
                 or at_lease_end = \"leave\" for the route; statements that run for longer than a lease need \
                 that, or a longer max_ttl.",
            ),
            Self::Revoked(Revocation::ByVault) => (
                "terminating connection because its database credential was revoked",
                "The lease of the session's database role, or the Vault token that it depends on, was revoked \
                 before its time.",
                "Connect again to get a session on a new credential. Vault's audit log tells who revoked it; \
                 at_lease_end is about leases that end in their time.",
            ),
            Self::Revoked(Revocation::ByOperator) => (
                "terminating connection because an operator has replaced its database credential",
                "pglease was told to take a new credential and to end the sessions of the old one: \
                 pglease rotate --close.",
                "Connect again to get a session on the new credential. Without --close, pglease rotate leaves \
                 sessions open.",
            ),
            Self::RouteRemoved => (
                "terminating connection because its route was removed",
                "The settings of pglease have no route any more for the database and the user that the session \
                 asked for.",
                "Whoever changes the settings knows why. A route that is back in them serves new sessions.",
            ),
            Self::MaxAge => (
                "terminating connection because it is as old as sessions may get",
                "The session was idle, and had reached max_session_age of its route, which varies by a tenth.",
                "Connect again to get a new session. To not notice, let the pool close connections before they are \
                 nine tenths that old; max_session_age = \"0s\" sets no limit.",
            ),
            Self::Draining => (
                "terminating connection because pglease is shutting down",
                "pglease was told to stop, and the session was idle.",
                "Connect again once it is back. A longer drain.grace leaves idle sessions alone for longer.",
            ),
            Self::Cut | Self::HungUp => (
                "terminating connection because pglease is shutting down",
                "pglease was told to stop, and the session was still busy when time was up.",
                "Connect again once it is back. A longer drain.deadline gives statements and transactions more \
                 time to finish.",
            ),
        };
        let unknown = " A statement was running: whether it took effect is not known.";
        let detail = if is_running { [detail, unknown].concat() } else { detail.to_owned() };
        ClientError::fatal(SqlState::ADMIN_SHUTDOWN, message).with_detail(detail).with_hint(hint)
    }
}

/// What goes on around a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outlook {
    pub(crate) standing: Standing,
    pub(crate) phase: Phase,
    /// `Auto` leaves it to what the chain knows of the end.
    pub(crate) at_lease_end: AtLeaseEnd,
    /// When it is to end as its route was removed, whatever becomes of its lease.
    pub(crate) removed: Option<LeaseEnd>,
    /// From when on it is too old to go on once it is idle; `None`: never.
    pub(crate) aged_from: Option<Instant>,
    /// Whether there is a credential for its client to come back with.
    pub(crate) has_credential: bool,
    /// Uniform in 0–1, the same for the life of the session.
    pub(crate) seed: f64,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doing {
    /// Since when it has been idle, if it is.
    pub(crate) idle_since: Option<Instant>,
    /// A statement has been sent and not answered.
    pub(crate) is_running: bool,
    /// The client will send nothing more.
    pub(crate) hung_up: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Stay(Look),
    End(Order),
}

/// When it is to be judged again, but for when something changes around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) at: Option<Instant>,
    /// Whenever it does something else.
    pub(crate) closely: bool,
}

impl Look {
    fn closely_until(at: Instant) -> Self {
        Self { at: Some(at), closely: true }
    }

    fn or(self, other: Self) -> Self {
        Self { at: self.at.into_iter().chain(other.at).min(), closely: self.closely || other.closely }
    }
}

impl Outlook {
    /// The verdict on a session that does `doing` at `now`.
    pub(crate) fn judge(&self, doing: Doing, now: Instant) -> Verdict {
        let judges = [Self::judge_phase, Self::judge_lease, Self::judge_route, Self::judge_age];
        judges.iter().fold(Verdict::Stay(Look::default()), |verdict, judge| match verdict {
            Verdict::End(_) => verdict,
            Verdict::Stay(one) => match judge(self, doing, now) {
                Verdict::Stay(other) => Verdict::Stay(one.or(other)),
                end @ Verdict::End(_) => end,
            },
        })
    }

    fn judge_phase(&self, doing: Doing, now: Instant) -> Verdict {
        match self.phase {
            Phase::Serving => Verdict::Stay(Look::default()),
            Phase::Cut => Verdict::End(Order::Cut),
            Phase::Draining { cut_at, .. } if now >= cut_at => Verdict::End(Order::Cut),
            Phase::Draining { .. } if doing.hung_up && doing.is_running => Verdict::End(Order::HungUp),
            Phase::Draining { idle_from, cut_at, .. } => match doing.idle_since {
                Some(_) if now >= idle_from => Verdict::End(Order::Draining),
                Some(_) => Verdict::Stay(Look::closely_until(idle_from.min(cut_at))),
                None => Verdict::Stay(Look::closely_until(cut_at)),
            },
        }
    }

    fn judge_lease(&self, doing: Doing, now: Instant) -> Verdict {
        let end = match self.standing {
            Standing::Kept => return Verdict::Stay(Look::default()),
            Standing::Revoked(by) => return Verdict::End(Order::Revoked(by)),
            Standing::Ending(end) if self.outlives(end) => return Verdict::Stay(Look::default()),
            Standing::Ending(end) => end,
        };
        self.judge_end(end, [Order::LeaseEnds, Order::LeaseOver], doing, now)
    }

    fn judge_route(&self, doing: Doing, now: Instant) -> Verdict {
        let orders = [Order::RouteRemoved; 2];
        self.removed.map_or(Verdict::Stay(Look::default()), |end| self.judge_end(end, orders, doing, now))
    }

    /// `boundary` where it ends at a good point, `cut` where that has not come.
    fn judge_end(&self, end: LeaseEnd, [boundary, cut]: [Order; 2], doing: Doing, now: Instant) -> Verdict {
        let due = doing.idle_since.map(|idle_since| idle_due(end, idle_since, self.seed));
        if now >= end.boundary_from && !doing.is_running || due.is_some_and(|due| now >= due) {
            return Verdict::End(boundary);
        }
        if now >= end.cut_at {
            return Verdict::End(cut);
        }
        let next = if now < end.boundary_from { end.boundary_from } else { end.cut_at };
        Verdict::Stay(Look::closely_until(due.map_or(next, |due| due.min(next))))
    }

    fn outlives(&self, end: LeaseEnd) -> bool {
        match self.at_lease_end {
            AtLeaseEnd::Leave => true,
            AtLeaseEnd::Auto => end.harmless,
            AtLeaseEnd::Close => false,
        }
    }

    /// Nobody loses a session for its age who would not get another.
    fn judge_age(&self, doing: Doing, now: Instant) -> Verdict {
        match self.aged_from {
            None => Verdict::Stay(Look::default()),
            Some(at) if now < at => Verdict::Stay(Look { at: Some(at), closely: false }),
            Some(_) if !self.has_credential => {
                Verdict::Stay(Look { at: Some(now + WITHOUT_CREDENTIAL), closely: false })
            }
            Some(_) if doing.idle_since.is_some() => Verdict::End(Order::MaxAge),
            Some(_) => Verdict::Stay(Look { at: None, closely: true }),
        }
    }
}

/// When a session that began at `began` has reached `max_age`, give or take a tenth, so that a pool that connected at
/// once does not reconnect at once.
pub(crate) fn aged_from(began: Instant, max_age: Duration, seed: f64) -> Instant {
    began + max_age.mul_f64(0.9 + 0.2 * seed.clamp(0.0, 1.0))
}

/// When an idle session ends for its lease: not before it has been idle for [`SETTLED`], and spread over the time
/// from `idle_from` to `boundary_from`, so that a pool does not reconnect all at once.
///
/// The position in that time is `(r + seed) / 2` with `r = H / (H + x)`: `x` how long it had been idle at
/// `idle_from`, `H` [`HALF_RANK`]. So of two sessions with the same seed the longer idle one goes first, and no
/// part of the time gets more than twice its share.
fn idle_due(end: LeaseEnd, idle_since: Instant, seed: f64) -> Instant {
    let idle = end.idle_from.saturating_duration_since(idle_since).as_secs_f64();
    let half = HALF_RANK.as_secs_f64();
    let position = f64::midpoint(half / (half + idle), seed.clamp(0.0, 1.0));
    let window = end.boundary_from.saturating_duration_since(end.idle_from);
    (end.idle_from + window.mul_f64(position)).max(idle_since + SETTLED)
}

/// A session that was in use less than this ago is likely to be used again at once.
const SETTLED: Duration = Duration::from_secs(2);
/// While there is no credential, a session that is old enough to end is looked at this often.
const WITHOUT_CREDENTIAL: Duration = Duration::from_secs(1);
/// Idle for so long, a session stands half-way between those just used and those long forgotten.
const HALF_RANK: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests;
