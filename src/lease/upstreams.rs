//! Where a chain's credentials are tried: the upstreams of its routes, which a reload of the settings may change.

use std::sync::Arc;

use tokio::sync::watch;

use crate::upstream::Probe;

/// What a credential is for.
#[derive(Debug)]
pub(crate) struct Upstreams<P = Probe> {
    /// One for each route that a credential is proven for.
    pub(crate) provers: Vec<Arc<P>>,
    /// Where a revocation is watched, if the sessions of a route depend on what it does to them.
    pub(crate) learner: Option<Arc<P>>,
}

impl<P> Clone for Upstreams<P> {
    fn clone(&self) -> Self {
        Self { provers: self.provers.clone(), learner: self.learner.clone() }
    }
}

/// Those of now. Provers have numbers that no two of a chain's life share: what one says that is gone by then is taken
/// for no other's word.
#[derive(Debug)]
pub(super) struct Current<P> {
    changes: watch::Receiver<Upstreams<P>>,
    now: Upstreams<P>,
    /// Number of the first prover.
    first: usize,
}

impl<P> Current<P> {
    pub(super) fn new(mut changes: watch::Receiver<Upstreams<P>>) -> Self {
        let now = changes.borrow_and_update().clone();
        Self { changes, now, first: 0 }
    }

    /// Returns when there are others; never where there will be none. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Goes over to the others.
    pub(super) fn update(&mut self) {
        self.first += self.now.provers.len();
        self.now = self.changes.borrow_and_update().clone();
    }

    pub(super) fn provers(&self) -> &[Arc<P>] {
        &self.now.provers
    }

    pub(super) fn learner(&self) -> Option<&Arc<P>> {
        self.now.learner.as_ref()
    }

    /// The prover at `index`, and its number.
    pub(super) fn prover(&self, index: usize) -> Option<(usize, Arc<P>)> {
        Some((self.first + index, Arc::clone(self.now.provers.get(index)?)))
    }

    /// Where the prover of this number stands; `None` where it is gone.
    pub(super) fn index_of(&self, number: usize) -> Option<usize> {
        number.checked_sub(self.first)
    }
}
