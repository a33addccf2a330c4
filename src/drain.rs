//! The phases of a stopping process, published to everybody who takes part.
//!
//! `app` owns the [`Drain`] and moves it on; listener, sessions, chains and `/readyz` watch it.

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::DrainConfig;

/// Where the process stands between its start and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Serving,
    /// New sessions are refused from `accept_until`, idle ones end from `idle_from`, the rest at `cut_at`.
    Draining { accept_until: Instant, idle_from: Instant, cut_at: Instant },
    /// Whatever is open ends at once.
    Cut,
}

impl Phase {
    /// The word in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining { .. } => "draining",
            Self::Cut => "cut",
        }
    }
}

/// Moves the process from phase to phase.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
}

impl Drain {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Begins the drain; does nothing where it has begun.
    pub(crate) fn begin(&self, config: DrainConfig, now: Instant) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Serving;
            if begins {
                *phase = Phase::Draining {
                    accept_until: now + config.accept_for,
                    idle_from: now + config.grace,
                    cut_at: now + config.deadline,
                };
            }
            begins
        });
    }

    /// Has all who watch look again, as something beside the phase has changed.
    pub(crate) fn remind(&self) {
        self.phase.send_modify(|_| {});
    }

    /// Cuts what is still open.
    pub(crate) fn cut(&self) {
        self.phase.send_replace(Phase::Cut);
    }
}
