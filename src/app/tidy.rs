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
            pglease_heap::give_back();
        }
        (before, was_at_work) = (now, is_at_work);
    }
}

/// A thousand of them a day take no second of a processor.
const PAUSE: Duration = Duration::from_secs(10);
