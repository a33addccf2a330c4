//! The connections that are open at an HTTP port, and which of them makes room for another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// As many connections as may be open.
#[derive(Debug)]
pub(crate) struct Seats {
    count: usize,
    patience: Duration,
    taken: Vec<(Seat, AbortHandle)>,
}

/// How a connection is used, kept up by itself.
#[derive(Clone, Debug)]
pub(crate) struct Seat(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug)]
struct State {
    /// What it asked was answered as it should be: it is one that the port is there for.
    has_answered: bool,
    /// A whole request is there.
    is_answering: bool,
    /// It came then, or its last request, or was answered.
    since: Instant,
}

impl Seats {
    /// `patience` is for a whole request to come, whatever waits for the seat.
    pub(crate) fn new(count: usize, patience: Duration) -> Self {
        Self { count, patience, taken: Vec::new() }
    }

    /// Whether [`have_room`](Self::have_room) would say so, which ends nobody.
    pub(crate) fn could_have_room(&mut self, now: Instant) -> bool {
        self.taken.retain(|(_, connection)| !connection.is_finished());
        self.taken.len() < self.count || self.dispensable(now).is_some()
    }

    /// Whether there is room for another, after one that is of no use has been ended where there was none.
    pub(crate) fn have_room(&mut self, now: Instant) -> bool {
        self.taken.retain(|(_, connection)| !connection.is_finished());
        if self.taken.len() < self.count {
            return true;
        }
        let Some(index) = self.dispensable(now) else { return false };
        let (_, connection) = self.taken.swap_remove(index);
        connection.abort();
        true
    }

    pub(crate) fn take(&mut self, seat: Seat, connection: AbortHandle) {
        self.taken.push((seat, connection));
    }

    /// The connection that goes first: of those that have had nothing answered, the one that has taken longest to ask;
    /// of the others only where they have more than half of the seats. So those that come back keep half of them, whoever
    /// else connects. None that is being answered, nor one that has not had the time to ask: a burst of requests waits
    /// rather than ends its own.
    ///
    /// A stranger's time counts from its coming to its whole request, whatever it says meanwhile: those who say
    /// little by little hold a seat no longer than those who say nothing.
    fn dispensable(&self, now: Instant) -> Option<usize> {
        let states: Vec<State> = self.taken.iter().map(|(seat, _)| *seat.lock()).collect();
        let oldest = |has_answered: bool| {
            let is_late = |state: &State| {
                state.has_answered == has_answered
                    && !state.is_answering
                    && now.duration_since(state.since) >= self.patience
            };
            let late = states.iter().enumerate().filter(|(_, state)| is_late(state));
            late.min_by_key(|(_, state)| state.since).map(|(index, _)| index)
        };
        let known = states.iter().filter(|state| state.has_answered).count();
        oldest(false).or_else(|| oldest(true).filter(|_| known > self.count / 2))
    }
}

impl Seat {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { has_answered: false, is_answering: false, since: now })))
    }

    /// The head of a request is there. A stranger's first is what it has had its time for.
    pub(crate) fn ask(&self, now: Instant) {
        let mut state = self.lock();
        if state.has_answered {
            state.since = now;
        }
    }

    /// All of the request is there.
    pub(crate) fn answer(&self) {
        self.lock().is_answering = true;
    }

    /// The answer is there; `is_known`: to what the port is there for.
    pub(crate) fn end(&self, is_known: bool, now: Instant) {
        let mut state = self.lock();
        state.is_answering = false;
        if is_known {
            state.has_answered = true;
            state.since = now;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four seats, taken by these.
    struct Room {
        start: Instant,
        seats: Seats,
        tasks: tokio::task::JoinSet<()>,
    }

    impl Room {
        fn new() -> Self {
            let start = Instant::now();
            Self { start, seats: Seats::new(4, Duration::from_secs(2)), tasks: tokio::task::JoinSet::new() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// One that came then.
        fn stranger(&mut self, seconds: u64) -> Seat {
            let seat = Seat::new(self.at(seconds));
            self.seats.take(seat.clone(), self.tasks.spawn(std::future::pending()));
            seat
        }

        /// One that was answered then.
        fn known(&mut self, seconds: u64) -> Seat {
            let seat = self.stranger(seconds);
            seat.end(true, self.at(seconds));
            seat
        }

        fn dispensable(&self, seconds: u64) -> Option<usize> {
            self.seats.dispensable(self.at(seconds))
        }
    }

    #[tokio::test]
    async fn stranger_that_has_taken_longest_to_ask_goes_first() {
        let mut room = Room::new();
        room.known(0);
        room.known(0);
        room.stranger(2);
        let earlier = room.stranger(1);
        assert_eq!(room.dispensable(2), None);
        assert_eq!(room.dispensable(3), Some(3));
        // Its head, and half of its body, change nothing.
        earlier.ask(room.at(3));
        assert_eq!(room.dispensable(3), Some(3));
        earlier.answer();
        assert_eq!(room.dispensable(3), None);
        assert_eq!(room.dispensable(100), Some(2));
        // What it asked was no review.
        earlier.end(false, room.at(100));
        assert_eq!(room.dispensable(100), Some(3));
    }

    #[tokio::test]
    async fn api_server_keeps_half_of_the_seats() {
        let mut room = Room::new();
        let first = room.known(0);
        room.known(1);
        let stranger = room.stranger(0);
        stranger.answer();
        room.stranger(99);
        assert_eq!(room.dispensable(100), None);
        stranger.end(true, room.at(2));
        assert_eq!(room.dispensable(100), Some(0));
        first.ask(room.at(100));
        assert_eq!(room.dispensable(100), Some(1));
        // Strangers first.
        assert_eq!(room.dispensable(101), Some(3));
        assert_eq!(room.dispensable(2), None);
    }

    #[tokio::test]
    async fn one_is_ended_where_all_are_taken_and_none_otherwise() {
        let mut room = Room::new();
        for _ in 0..3 {
            room.stranger(0);
        }
        assert!(room.seats.have_room(room.at(100)));
        room.stranger(0);
        assert!(!room.seats.have_room(room.at(1)));
        assert!(room.seats.have_room(room.at(2)));
        assert_eq!(room.seats.taken.len(), 3);
        assert!(room.tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
    }
}
