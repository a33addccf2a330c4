//! Whose turn it is to deliver a cancel: each costs upstream a process, and us a connection.
//!
//! At one address only so many are under way at a time, so that an upstream that answers none keeps those of others
//! waiting for nothing; and only so many in all, as descriptors are counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::upstream::Address;

/// Turns of the process.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// Of addresses that sessions are on, and of some that sessions were on.
    by_address: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_DELIVERIES)), by_address: Mutex::default() }
    }
}

/// Turns at the address of one session.
#[derive(Debug)]
pub(super) struct TurnsAt {
    here: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Given back on drop.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _here: Option<SemaphorePermit<'a>>,
    _all: Option<SemaphorePermit<'a>>,
}

impl Turns {
    /// Those that all sessions at `address` have in common.
    pub(super) fn at(&self, address: &Address) -> TurnsAt {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let address = address.to_string();
        let here = by_address.get(&address).and_then(Weak::upgrade).unwrap_or_else(|| {
            // So there are never more than twice as many as sessions.
            by_address.retain(|_, turns| turns.strong_count() > 0);
            let turns = Arc::new(Semaphore::new(MAX_AT_ADDRESS));
            by_address.insert(address, Arc::downgrade(&turns));
            turns
        });
        TurnsAt { here, all: Arc::clone(&self.all) }
    }
}

impl TurnsAt {
    /// Waits for a turn, in the order in which they were asked for. Cancel safe.
    pub(super) async fn take(&self) -> Turn<'_> {
        // Who waits for others at its own address takes no turn from those at other addresses. Neither is ever closed.
        let here = self.here.acquire().await.ok();
        let all = self.all.acquire().await.ok();
        Turn { _here: here, _all: all }
    }
}

/// Deliveries under way at one address.
const MAX_AT_ADDRESS: usize = 8;
/// Deliveries under way in all. Each has two descriptors at most, which [`crate::app`] keeps in reserve.
const MAX_DELIVERIES: usize = 32;

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use zeroize::Zeroizing;

    use super::*;
    use crate::config::UpstreamConfig;
    use crate::upstream::Upstream;
    use crate::wire::startup::CancelKey;

    fn address(port: u16) -> Address {
        let key = CancelKey { pid: 1, secret: Zeroizing::new(Vec::new()) };
        Upstream::load(&UpstreamConfig::plain("127.0.0.1", port)).unwrap().cancel_target(key).address
    }

    /// A turn, if there is one now.
    fn now(turns: &TurnsAt) -> Option<Turn<'_>> {
        match pin!(turns.take()).poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(turn) => Some(turn),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn turns_are_those_of_one_address_and_few_in_all() {
        let turns = Turns::default();
        let places: Vec<_> = (1..=5).map(|port| turns.at(&address(port))).collect();
        let again = turns.at(&address(1));
        let taken: Vec<_> =
            places[..3].iter().map(|at| (0..8).map(|_| now(at).unwrap()).collect::<Vec<_>>()).collect();
        assert!(places[..3].iter().all(|at| now(at).is_none()) && now(&again).is_none());

        let rest: Vec<_> = (0..8).map(|_| now(&places[3]).unwrap()).collect();
        assert!(now(&places[4]).is_none(), "32 are under way");
        drop(rest);
        assert!(now(&places[4]).is_some() && now(&places[3]).is_some());
        drop(taken);
        assert!(now(&again).is_some());
    }

    #[test]
    fn addresses_that_no_session_is_on_are_forgotten() {
        let turns = Turns::default();
        for port in 1..100 {
            drop(turns.at(&address(port)));
        }
        assert_eq!(turns.by_address.lock().unwrap().len(), 1);
    }
}
