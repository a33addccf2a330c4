//! The figures of a chain that go up and down, as of its last step.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::state::LeaseState;
use super::term::Term;
use super::{Chain, Prove};
use crate::telemetry::{ChainLabels, GenerationLabels, Metrics, StateLabels};
use crate::vault::VaultApi;

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// Brings the figures up to date.
    pub(super) fn update_gauges(&mut self) {
        let (mut current, mut superseded, mut outlived) = (0, 0, 0);
        for generation in self.generations.values_mut() {
            generation.count_holds();
            let holds = generation.sessions();
            *(if generation.is_current() { &mut current } else { &mut superseded }) += holds;
            if matches!(generation.state(), LeaseState::Ended { .. }) {
                outlived += holds;
            }
        }
        for (generation, holds) in [("current", current), ("superseded", superseded)] {
            let labels = GenerationLabels { vault_path: self.vault_path.to_string(), generation };
            self.metrics.sessions.get_or_create(&labels).set(figure(holds));
        }
        for state in LeaseState::WORDS {
            let is_so = |generation: &&super::Generation| generation.state().as_str() == state;
            let labels = StateLabels { vault_path: self.vault_path.to_string(), state };
            let generations = self.generations.values().filter(is_so).count();
            self.metrics.generations.get_or_create(&labels).set(figure(generations));
        }
        let labels = ChainLabels { vault_path: self.vault_path.to_string() };
        self.metrics.sessions_outlived_lease.get_or_create(&labels).set(figure(outlived));
        let (lease, token) = match self.current().map(|current| current.keeper.lease_and_token()) {
            Some((lease, token)) => (Some(lease), token),
            None => (None, None),
        };
        set_term((&self.metrics.lease_expiry, &self.metrics.lease_duration), &labels, lease);
        set_term((&self.metrics.token_expiry, &self.metrics.token_duration), &labels, token);
    }
}

/// Removes the figures of a chain that has ended.
pub(super) fn forget(metrics: &Metrics, vault_path: &str) {
    let chain = ChainLabels { vault_path: vault_path.to_owned() };
    for generation in ["current", "superseded"] {
        metrics.sessions.remove(&GenerationLabels { vault_path: vault_path.to_owned(), generation });
    }
    for state in LeaseState::WORDS {
        metrics.generations.remove(&StateLabels { vault_path: vault_path.to_owned(), state });
    }
    let Metrics {
        sessions_outlived_lease, lease_expiry, lease_duration, token_expiry, token_duration, ..
    } = metrics;
    for figures in [sessions_outlived_lease, lease_expiry, lease_duration, token_expiry, token_duration] {
        figures.remove(&chain);
    }
}

/// Tells when something ends, as Unix time, and what it was granted; nothing rather than old figures where there is
/// nothing.
pub(super) fn set_term(
    (ends, durations): (&Family<ChainLabels, Gauge>, &Family<ChainLabels, Gauge>),
    chain: &ChainLabels,
    term: Option<&Term>,
) {
    set_seconds(ends, chain, term.map(|term| term.end().wall));
    set_seconds(durations, chain, term.map(Term::whole));
}

fn set_seconds(gauges: &Family<ChainLabels, Gauge>, chain: &ChainLabels, time: Option<Duration>) {
    match time {
        Some(time) => {
            gauges.get_or_create(chain).set(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        }
        None => {
            gauges.remove(chain);
        }
    }
}

fn figure(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
