//! The two limits on connections: on those that have not said what they want, and on sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Places of connections in startup. Where there are none left, the oldest connection that has said nothing
/// loses its own, or the oldest of all: who is quick always gets through.
#[derive(Debug)]
pub(crate) struct StartupPlaces {
    max: usize,
    taken: Mutex<Taken>,
}

/// By age: the smallest id is the oldest.
#[derive(Debug, Default)]
struct Taken {
    next_id: u64,
    silent: BTreeMap<u64, CancellationToken>,
    speaking: BTreeMap<u64, CancellationToken>,
}

impl StartupPlaces {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: Mutex::default() }
    }

    /// A place for a new connection.
    pub(crate) fn take(self: &Arc<Self>) -> StartupPlace {
        let mut taken = self.lock();
        if taken.silent.len() + taken.speaking.len() >= self.max
            && let Some((_, oldest)) = taken.silent.pop_first().or_else(|| taken.speaking.pop_first())
        {
            oldest.cancel();
        }
        let id = taken.next_id;
        taken.next_id += 1;
        let evicted = CancellationToken::new();
        taken.silent.insert(id, evicted.clone());
        StartupPlace { id, evicted, places: Arc::clone(self) }
    }

    /// Takes all places back.
    pub(crate) fn clear(&self) {
        let Taken { silent, speaking, .. } = &mut *self.lock();
        silent.values().chain(speaking.values()).for_each(CancellationToken::cancel);
        silent.clear();
        speaking.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place of one connection, given back on drop.
#[derive(Debug)]
pub(crate) struct StartupPlace {
    id: u64,
    evicted: CancellationToken,
    places: Arc<StartupPlaces>,
}

impl StartupPlace {
    /// Its connection has said something.
    pub(crate) fn spoke(&self) {
        let mut taken = self.places.lock();
        if let Some(evicted) = taken.silent.remove(&self.id) {
            taken.speaking.insert(self.id, evicted);
        }
    }

    /// Returns when the place is lost to a newer connection. Cancel safe.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for StartupPlace {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.silent.remove(&self.id);
        taken.speaking.remove(&self.id);
    }
}

/// Seats of sessions, from StartupMessage to close.
#[derive(Debug)]
pub(crate) struct Seats {
    max: u32,
    free: Arc<Semaphore>,
}

/// One session's, given back on drop.
#[derive(Debug)]
pub(crate) struct Seat {
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    pub(crate) fn new(max: usize) -> Self {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let permits = usize::try_from(max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { max, free: Arc::new(Semaphore::new(permits)) }
    }

    /// How many there are.
    pub(crate) fn max(&self) -> u32 {
        self.max
    }

    /// A seat, if one is free.
    pub(crate) fn take(&self) -> Option<Seat> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| Seat { _permit: permit })
    }

    /// Returns when no session is left, and lets none in from its call on. Cancel safe.
    pub(crate) async fn all_free(&self) {
        // Never closed, so this cannot fail.
        let _ = self.free.acquire_many(self.max).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_silent_connection_gives_its_place() {
        let places = Arc::new(StartupPlaces::new(3));
        let held = [places.take(), places.take(), places.take()];
        held[0].spoke();

        let fourth = places.take();
        let evicted = |place: &StartupPlace| place.evicted.is_cancelled();
        assert_eq!([evicted(&held[0]), evicted(&held[1]), evicted(&held[2])], [false, true, false]);

        held[2].spoke();
        fourth.spoke();
        let _fifth = places.take();
        assert!(evicted(&held[0]), "with nobody silent the oldest goes");
        assert!(!evicted(&fourth));
    }

    #[test]
    fn place_that_was_given_back_is_free() {
        let places = Arc::new(StartupPlaces::new(1));
        drop(places.take());
        let second = places.take();
        assert!(!second.evicted.is_cancelled());
        places.clear();
        assert!(second.evicted.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn seats_are_counted_and_awaited() {
        let seats = Seats::new(1);
        let seat = seats.take().unwrap();
        assert!(seats.take().is_none());

        let (waited, ()) = tokio::join!(
            async {
                seats.all_free().await;
                tokio::time::Instant::now()
            },
            async {
                tokio::time::sleep(std::time::Duration::from_secs(3)).await;
                drop(seat);
            }
        );
        assert_eq!(waited, tokio::time::Instant::now());
    }
}
