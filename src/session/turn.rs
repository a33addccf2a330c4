//! The time, which a thread that is busy reads once for several sessions.
//!
//! Reading the clock takes a hundredth of what a round trip does, and between two waits of a thread little time passes.

use std::cell::Cell;

use tokio::time::Instant;

/// The thread is about to wait, or to do something long. Its runtime says so, and from then on [`now`] may be a little
/// old: where nobody ever does, it is not.
pub(crate) fn ends() {
    TURN.set(Turn::Fresh);
}

/// The time, or what it was for one of the last [`LOOKS`] who asked since the thread has last waited.
pub(crate) fn now() -> Instant {
    match TURN.get() {
        Turn::At(now, left @ 1..) => {
            TURN.set(Turn::At(now, left - 1));
            now
        }
        Turn::At(_, 0) | Turn::Fresh => {
            let now = Instant::now();
            TURN.set(Turn::At(now, LOOKS));
            now
        }
        Turn::Unmarked => Instant::now(),
    }
}

#[derive(Clone, Copy)]
enum Turn {
    Unmarked,
    Fresh,
    /// The time, and how often it will be good for.
    At(Instant, u8),
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::Unmarked) };
}

/// A thread that always has something to do, as with a thousand busy sessions, may not wait for long.
const LOOKS: u8 = 31;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_within_a_turn_of_a_thread_that_has_turns_and_not_for_long() {
        let tick = || advance(Duration::from_millis(1));
        let first = now();
        tick().await;
        assert!(now() > first, "nobody tells of turns");

        ends();
        let begun = now();
        for _ in 0..LOOKS {
            tick().await;
            assert_eq!(now(), begun);
        }
        tick().await;
        let later = now();
        assert_eq!(later, Instant::now());

        tick().await;
        assert_eq!(now(), later);
        ends();
        assert_eq!(now(), Instant::now());
        TURN.set(Turn::Unmarked);
    }
}
