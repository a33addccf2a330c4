//! Gives memory that is not used any more back to the system: what a burst of sessions has taken would stay with the
//! process else, and its container has a limit.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time;

use crate::session::Shared;

/// Looks every [`PAUSE`], for ever, and does it where a connection has come or ended since, or had before: what ends last
/// may have been about to.
pub(super) async fn tidy(shared: &Shared) -> Infallible {
    let (mut before, mut had_come) = (None, true);
    loop {
        time::sleep(PAUSE).await;
        let now = Some(shared.traffic());
        let has_come = before != now;
        if has_come || had_come {
            give_back();
        }
        (before, had_come) = (now, has_come);
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

const PAUSE: Duration = Duration::from_secs(10);
