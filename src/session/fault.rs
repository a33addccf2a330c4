//! A panic is a bug of ours, and ends one session: its client is told, and the others do not notice. One beside the
//! sessions ends what is ready for clients that are to come.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

/// The future panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bug of pglease")]
pub(crate) struct Panicked;

/// Runs `step`, or to its panic. What `step` has changed by then its caller judges.
pub(crate) fn tried<T>(step: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|_| Panicked)
}

/// Runs `future` to its end, or to its panic. As cancel safe as `future` is.
///
/// What a panic breaks off is dropped with the future, or is state of this one session, which its caller judges. What
/// sessions share is under locks that are held for single steps.
pub(crate) async fn caught<F: Future>(mut future: Pin<&mut F>) -> Result<F::Output, Panicked> {
    poll_fn(|cx| match tried(|| future.as_mut().poll(cx)) {
        Ok(poll) => poll.map(Ok),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}
