//! The two limits on connections: on those that are no session yet, and on sessions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::startup::StartupError;

/// What a connection takes up, given back on drop: a place from accept on, a seat once it has asked for a session and
/// proven that it may have one. Who cannot do that keeps no seat from those who can.
#[derive(Debug)]
pub(crate) enum Admission {
    Place(Place),
    Seat(#[expect(dead_code, reason = "held, not looked at")] Seat),
}

impl Admission {
    /// From here on no newer connection takes the place away, unless one has already, on whatever thread. For deliveries
    /// of cancels: only so many are under way at a time, and what has begun is brought to its end however many
    /// connections come.
    pub(crate) fn keep(&self) -> Result<(), StartupError> {
        match self {
            Self::Place(place) => place.keep(),
            Self::Seat(_) => Ok(()),
        }
    }

    /// Has a seat, if `admit` gives one, instead of the place, if that has not been lost: who has a seat loses nothing to
    /// newer connections. Nobody who takes a place meanwhile finds it counted as both, or as neither.
    pub(crate) fn sit<E>(&mut self, admit: impl FnOnce() -> Result<Seat, E>) -> Result<(), E>
    where
        E: From<StartupError>,
    {
        let seat = match self {
            Self::Place(place) => place.give_for(admit)?,
            Self::Seat(_) => admit()?,
        };
        *self = Self::Seat(seat);
        Ok(())
    }
}

/// Places of connections without a seat: those that have not said what they want or proven
/// who they are, bring a cancel, or are told no.
/// Where there is none left the oldest connection loses its own.
///
/// There are as many as seats are free, and some to spare: each connection has a descriptor, and with a seat two, so that
/// places and seats together have two for each seat that there may be and one for each place beyond that.
///
/// Age alone decides. Were those spared that have said something, one byte from each of many connections would
/// keep all places, and every newcomer would have to speak before the next one comes.
#[derive(Debug)]
pub(crate) struct Places {
    /// Beyond one for each seat that is free.
    spare: usize,
    /// That there may be; more may be taken still.
    max_seats: Arc<AtomicU32>,
    seats: Arc<watch::Sender<Seated>>,
    taken: Mutex<Taken>,
}

/// By age: the smallest id is the oldest.
#[derive(Debug, Default)]
struct Taken {
    next_id: u64,
    by_age: BTreeMap<u64, CancellationToken>,
    /// Those that no newer connection takes away, and that do not count.
    kept: BTreeMap<u64, CancellationToken>,
    /// It has been said that there are none left, and half of them have not been free since.
    is_short: bool,
}

impl Taken {
    /// Says whether it is kept: not where it has been lost.
    fn keep(&mut self, id: u64) -> bool {
        if let Some(evicted) = self.by_age.remove(&id) {
            self.kept.insert(id, evicted);
        }
        self.kept.contains_key(&id)
    }

    fn is_lost(&self, id: u64) -> bool {
        !self.by_age.contains_key(&id) && !self.kept.contains_key(&id)
    }

    fn give_back(&mut self, id: u64) {
        self.by_age.remove(&id);
        self.kept.remove(&id);
    }
}

impl Places {
    /// So many beyond one for each of `seats` that is free.
    pub(crate) fn new(spare: usize, seats: &Seats) -> Self {
        Self {
            spare,
            max_seats: Arc::clone(&seats.max),
            seats: Arc::clone(&seats.taken),
            taken: Mutex::default(),
        }
    }

    /// A place for a new connection.
    pub(crate) fn take(self: &Arc<Self>) -> Place {
        let mut taken = self.lock();
        // Under the lock: who has given a place for a seat by now has that seat.
        let free = self.max_seats.load(Ordering::Relaxed).saturating_sub(self.seats.borrow().sessions);
        let max = usize::try_from(free).unwrap_or(usize::MAX).saturating_add(self.spare);
        if taken.by_age.len() <= max / 2 {
            taken.is_short = false;
        }
        while taken.by_age.len() >= max
            && let Some((_, oldest)) = taken.by_age.pop_first()
        {
            oldest.cancel();
            if !std::mem::replace(&mut taken.is_short, true) {
                warn!(event = "places.short", max, "the oldest connections without a session are closed");
            }
        }
        let id = taken.next_id;
        taken.next_id += 1;
        let evicted = CancellationToken::new();
        taken.by_age.insert(id, evicted.clone());
        Place { id, evicted, places: Arc::clone(self) }
    }

    /// How many are taken.
    pub(crate) fn len(&self) -> usize {
        let taken = self.lock();
        taken.by_age.len() + taken.kept.len()
    }

    /// Takes all places back.
    pub(crate) fn clear(&self) {
        let mut taken = self.lock();
        let (by_age, kept) = (std::mem::take(&mut taken.by_age), std::mem::take(&mut taken.kept));
        by_age.values().chain(kept.values()).for_each(CancellationToken::cancel);
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place of one connection, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    id: u64,
    evicted: CancellationToken,
    places: Arc<Places>,
}

impl Place {
    /// Cancelled when the place is lost to a newer connection, and never once it is [kept](Admission::keep) or has been
    /// given back, but at the end of a drain.
    pub(crate) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    fn keep(&self) -> Result<(), StartupError> {
        // Kept or lost is one decision, under the lock.
        if self.places.lock().keep(self.id) { Ok(()) } else { Err(StartupError::Evicted) }
    }

    /// Gives it back for the seat that `admit` has, if it has one.
    fn give_for<E>(&self, admit: impl FnOnce() -> Result<Seat, E>) -> Result<Seat, E>
    where
        E: From<StartupError>,
    {
        let mut taken = self.places.lock();
        if taken.is_lost(self.id) {
            return Err(StartupError::Evicted.into());
        }
        let seat = admit()?;
        taken.give_back(self.id);
        Ok(seat)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().give_back(self.id);
    }
}

/// Seats of sessions, from StartupMessage to close.
#[derive(Debug)]
pub(crate) struct Seats {
    max: Arc<AtomicU32>,
    taken: Arc<watch::Sender<Seated>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seated {
    sessions: u32,
    /// Nobody is let in any more.
    is_closed: bool,
}

impl Seated {
    fn is_free(self, max: u32) -> bool {
        !self.is_closed && self.sessions < max
    }
}

/// One session's, given back on drop.
#[derive(Debug)]
pub(crate) struct Seat(Arc<watch::Sender<Seated>>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.send_modify(|taken| taken.sessions = taken.sessions.saturating_sub(1));
    }
}

impl Seats {
    pub(crate) fn new(max: usize) -> Self {
        Self { max: Arc::new(AtomicU32::new(saturated(max))), taken: Arc::default() }
    }

    /// From now on there are so many. Who has one keeps it.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(saturated(max), Ordering::Relaxed);
    }

    /// How many there are.
    pub(crate) fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// Whether one is free now. Takes none: for a moment somebody else would find it taken.
    pub(crate) fn is_free(&self) -> bool {
        self.taken.borrow().is_free(self.max())
    }

    /// A seat, if one is free.
    pub(crate) fn take(&self) -> Option<Seat> {
        let max = self.max();
        let is_taken = self.taken.send_if_modified(|taken| {
            let is_free = taken.is_free(max);
            taken.sessions += u32::from(is_free);
            is_free
        });
        is_taken.then(|| Seat(Arc::clone(&self.taken)))
    }

    /// Returns when no session is left, and lets none in from its call on. Cancel safe.
    pub(crate) async fn all_free(&self) {
        self.taken.send_modify(|taken| taken.is_closed = true);
        // Fails only without a sender, which is ours.
        let _ = self.taken.subscribe().wait_for(|taken| taken.sessions == 0).await;
    }
}

fn saturated(max: usize) -> u32 {
    u32::try_from(max).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// Takes a place on another thread, which has come to where it waits for one that is about to change something.
    fn newcomer(places: &Arc<Places>) -> JoinHandle<Place> {
        let (tell, told) = mpsc::channel();
        let places = Arc::clone(places);
        let newcomer = thread::spawn(move || {
            tell.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
            places.take()
        });
        let stat = Path::new("/proc").join(told.recv().unwrap()).join("stat");
        while !fs::read_to_string(&stat).unwrap().contains(") S ") {
            thread::yield_now();
        }
        newcomer
    }

    fn is_evicted(place: &Place) -> bool {
        place.evicted().is_cancelled()
    }

    #[test]
    fn oldest_connection_gives_its_place_and_no_other() {
        let places = Arc::new(Places::new(2, &Seats::new(0)));
        let held = [places.take(), places.take()];
        let third = places.take();
        assert_eq!([&held[0], &held[1], &third].map(is_evicted), [true, false, false]);
    }

    #[test]
    fn place_that_was_given_back_is_free() {
        let places = Arc::new(Places::new(1, &Seats::new(0)));
        let first = places.take();
        let lost = first.evicted();
        drop(first);
        let second = places.take();
        assert!(!lost.is_cancelled() && !second.evicted().is_cancelled());
        places.clear();
        assert!(!lost.is_cancelled() && second.evicted().is_cancelled());
    }

    #[test]
    fn place_that_is_kept_is_lost_to_no_newer_connection() {
        let places = Arc::new(Places::new(1, &Seats::new(0)));
        let admission = Admission::Place(places.take());
        let Admission::Place(kept) = &admission else { panic!("it is a place") };
        admission.keep().unwrap();
        let others = [places.take(), places.take()];
        assert!(!kept.evicted().is_cancelled());
        assert!(others[0].evicted().is_cancelled() && !others[1].evicted().is_cancelled());
        // A drain is over when it is.
        places.clear();
        assert!(kept.evicted().is_cancelled() && others[1].evicted().is_cancelled());
        drop((admission, others));
        assert!(places.lock().kept.is_empty());
    }

    #[test]
    fn place_that_is_lost_is_neither_kept_nor_made_a_seat() {
        let seats = Seats::new(1);
        let places = Arc::new(Places::new(0, &seats));
        let mut lost = Admission::Place(places.take());
        let _newer = places.take();
        // Its connection may be about to do either, on another thread.
        assert!(matches!(lost.keep(), Err(StartupError::Evicted)));
        let admit = || Ok(seats.take().unwrap());
        assert!(matches!(lost.sit(admit), Err(StartupError::Evicted)));
        assert!(matches!(lost, Admission::Place(_)) && seats.is_free());

        let mut kept = Admission::Place(places.take());
        kept.keep().unwrap();
        kept.keep().unwrap();
        let _newer = [places.take(), places.take()];
        kept.sit(admit).unwrap();
        assert!(!seats.is_free() && places.lock().kept.is_empty());
        assert!(kept.keep().is_ok());
    }

    #[test]
    fn place_counts_no_more_where_another_thread_has_given_it_for_a_seat() {
        let seats = Seats::new(1);
        let places = Arc::new(Places::new(1, &seats));
        let (oldest, given) = (places.take(), places.take());
        let mut taken = places.lock();
        let newcomer = newcomer(&places);
        let _seat = seats.take().unwrap();
        taken.give_back(given.id);
        drop(taken);
        let newcomer = newcomer.join().unwrap();
        // One seat and one place.
        assert_eq!([&oldest, &newcomer].map(is_evicted), [true, false]);
    }

    #[test]
    fn who_has_a_seat_loses_no_place_for_it_to_a_newcomer_on_another_thread() {
        let seats = Seats::new(1);
        let places = Arc::new(Places::new(1, &seats));
        let (oldest, mut admission) = (places.take(), Admission::Place(places.take()));
        let mut takes = None;
        let admit = || {
            let seat = seats.take().unwrap();
            takes = Some(newcomer(&places));
            Ok::<_, StartupError>(seat)
        };
        admission.sit(admit).unwrap();
        let newcomer = takes.unwrap().join().unwrap();
        assert_eq!([&oldest, &newcomer].map(is_evicted), [true, false]);
    }

    #[test]
    fn who_finds_no_seat_still_has_its_place() {
        let seats = Seats::new(0);
        let places = Arc::new(Places::new(1, &seats));
        let mut admission = Admission::Place(places.take());
        assert!(admission.sit(|| seats.take().ok_or(StartupError::Evicted)).is_err());
        let Admission::Place(place) = &admission else { panic!("it is a place") };
        assert!(!is_evicted(place) && places.len() == 1);
        let _newer = places.take();
        assert!(is_evicted(place));
    }

    #[test]
    fn places_are_what_seats_leave_and_some_to_spare_in_any_case() {
        let seats = Seats::new(3);
        let places = Arc::new(Places::new(1, &seats));
        let held: Vec<_> = (0..4).map(|_| places.take()).collect();
        let lost = |places: &[Place]| places.iter().filter(|place| place.evicted().is_cancelled()).count();
        assert_eq!(lost(&held), 0);
        // Who gets a seat gives back its place, and then there is one less.
        let mut held = held.into_iter();
        let mut seated: Vec<_> = (0..2).map(|_| (seats.take(), drop(held.next()))).collect();
        let mut held: Vec<_> = held.collect();
        held.push(places.take());
        assert_eq!(lost(&held), 1);
        seated.clear();
        held.extend([places.take(), places.take()]);
        assert_eq!(lost(&held), 1);
        seats.set_max(9);
        let _seated: Vec<_> = (0..9).map(|_| seats.take().unwrap()).collect();
        let last = places.take();
        assert_eq!((lost(&held), last.evicted().is_cancelled()), (held.len(), false));
    }

    #[test]
    fn fewer_seats_unseat_nobody() {
        let seats = Seats::new(3);
        let mut held: Vec<_> = (0..3).map(|_| seats.take().unwrap()).collect();
        seats.set_max(2);
        assert!(seats.take().is_none());
        held.pop();
        assert!(seats.take().is_none());
        held.pop();
        assert!(seats.take().is_some());
        seats.set_max(4);
        held.extend((0..3).map(|_| seats.take().unwrap()));
        assert!(seats.take().is_none());
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
