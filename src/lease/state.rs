//! The life of one generation. Pure: acting on a state is the chain's work.

use std::num::NonZeroUsize;

/// Where a generation stands. Only a `Current` one is offered to new sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// Read, and not offered yet: it waits for its proof.
    Candidate,
    /// The newest of its chain, kept alive with or without sessions.
    Current { holds: usize },
    /// Rotated out, kept alive for the sessions that logged in with it.
    Superseded { holds: NonZeroUsize },
    /// Rotated out and unused: its token is being revoked.
    Revoking,
    /// Revoked or expired, as far as Vault is concerned. Sessions may outlive it.
    Ended { holds: usize },
}

/// What happens to a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseEvent {
    /// It is offered from now on.
    Promoted,
    /// It will not be offered.
    Discarded,
    /// So many sessions hold it.
    Held(usize),
    /// A successor took its place.
    Rotated,
    /// Its lease or its token came to its end, or was ended by somebody else.
    Expired,
    /// Its revocation was accepted, or given up.
    Revoked,
    /// The chain ends.
    Stopped,
}

/// An order of events that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} in state {state:?}")]
pub(super) struct InvalidTransition {
    state: LeaseState,
    event: LeaseEvent,
}

impl LeaseState {
    /// The state after `event`.
    pub(super) fn on(self, event: LeaseEvent) -> Result<Self, InvalidTransition> {
        use LeaseEvent as E;
        let invalid = InvalidTransition { state: self, event };

        Ok(match (self, event) {
            (Self::Candidate, E::Promoted) => Self::Current { holds: 0 },
            (Self::Candidate, E::Discarded | E::Expired)
            | (Self::Candidate | Self::Current { .. } | Self::Superseded { .. }, E::Stopped)
            | (Self::Revoking, E::Held(0) | E::Expired | E::Stopped) => Self::Revoking,
            (Self::Current { .. }, E::Held(holds)) => Self::Current { holds },
            (Self::Current { holds }, E::Rotated) | (Self::Superseded { .. }, E::Held(holds)) => {
                Self::superseded(holds)
            }
            (Self::Current { holds }, E::Expired) | (Self::Ended { .. }, E::Held(holds)) => {
                Self::Ended { holds }
            }
            (Self::Superseded { holds }, E::Expired) => Self::Ended { holds: holds.get() },
            (Self::Revoking, E::Revoked) => Self::Ended { holds: 0 },
            (Self::Ended { .. }, E::Rotated | E::Expired | E::Revoked | E::Stopped) => self,
            _ => return Err(invalid),
        })
    }

    /// How many sessions hold it.
    pub(super) fn holds(self) -> usize {
        match self {
            Self::Candidate | Self::Revoking => 0,
            Self::Current { holds } | Self::Ended { holds } => holds,
            Self::Superseded { holds } => holds.get(),
        }
    }

    /// All words that [`as_str`](Self::as_str) has.
    pub(super) const WORDS: [&'static str; 5] = ["candidate", "current", "superseded", "revoking", "ended"];

    /// The word in `/status` and in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Current { .. } => "current",
            Self::Superseded { .. } => "superseded",
            Self::Revoking => "revoking",
            Self::Ended { .. } => "ended",
        }
    }

    /// Whether it is kept alive.
    pub(super) fn is_kept(self) -> bool {
        match self {
            Self::Candidate | Self::Current { .. } | Self::Superseded { .. } => true,
            Self::Revoking | Self::Ended { .. } => false,
        }
    }

    fn superseded(holds: usize) -> Self {
        NonZeroUsize::new(holds).map_or(Self::Revoking, |holds| Self::Superseded { holds })
    }
}

#[cfg(test)]
mod tests {
    use LeaseEvent as E;

    use super::*;

    const fn superseded(holds: usize) -> LeaseState {
        LeaseState::Superseded { holds: NonZeroUsize::new(holds).unwrap() }
    }

    /// Every state and every event; `None` is an order that cannot be.
    #[test]
    fn every_state_answers_every_event() {
        use LeaseState::{Candidate, Current, Ended, Revoking};
        let current = |holds| Some(Current { holds });
        let ended = |holds| Some(Ended { holds });
        let revoking = Some(Revoking);
        let events = [
            E::Promoted,
            E::Discarded,
            E::Held(0),
            E::Held(2),
            E::Rotated,
            E::Expired,
            E::Revoked,
            E::Stopped,
        ];
        let table = [
            (Candidate, [current(0), revoking, None, None, None, revoking, None, revoking]),
            (Current { holds: 0 }, [None, None, current(0), current(2), revoking, ended(0), None, revoking]),
            (
                Current { holds: 3 },
                [None, None, current(0), current(2), Some(superseded(3)), ended(3), None, revoking],
            ),
            (superseded(3), [None, None, revoking, Some(superseded(2)), None, ended(3), None, revoking]),
            (Revoking, [None, None, revoking, None, None, revoking, ended(0), revoking]),
            (Ended { holds: 3 }, [None, None, ended(0), ended(2), ended(3), ended(3), ended(3), ended(3)]),
            (Ended { holds: 0 }, [None, None, ended(0), ended(2), ended(0), ended(0), ended(0), ended(0)]),
        ];
        for (state, row) in table {
            for (event, next) in events.into_iter().zip(row) {
                assert_eq!(state.on(event).ok(), next, "{event:?} in {state:?}");
            }
        }
    }

    #[test]
    fn only_what_may_serve_is_kept() {
        for (state, kept, holds) in [
            (LeaseState::Candidate, true, 0),
            (LeaseState::Current { holds: 1 }, true, 1),
            (superseded(2), true, 2),
            (LeaseState::Revoking, false, 0),
            (LeaseState::Ended { holds: 3 }, false, 3),
        ] {
            assert_eq!((state.is_kept(), state.holds()), (kept, holds));
        }
    }
}
