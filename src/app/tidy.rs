//! Gives memory that is not used any more back to the system: what a burst of sessions has taken would stay with the
//! process else, whose container is accounted for it.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time;

use crate::session::Shared;

/// Looks every [`PAUSE`], for ever, and does it where sessions have been at work since, or were before: what ends last
/// may have been about to.
pub(super) async fn tidy(shared: &Shared) -> Infallible {
    let (mut before, mut was_at_work) = (None, true);
    loop {
        time::sleep(PAUSE).await;
        let now = Some(shared.work());
        let is_at_work = before != now;
        if is_at_work || was_at_work {
            give_back();
        }
        (before, was_at_work) = (now, is_at_work);
    }
}

/// Gives back every page that nothing is allocated in, of all threads. Whoever allocates meanwhile waits for it.
///
/// Left to itself glibc gives back only what is behind the last allocation of a thread's heap: one long-lived object
/// that was made in a burst keeps all that the burst has taken.
fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe crate has it")]
    // SAFETY: it takes no pointer, and has a lock of each heap while it is at work there, as malloc and free do.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// A thousand of them a day take no second of a processor.
const PAUSE: Duration = Duration::from_secs(10);
