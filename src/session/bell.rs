//! A future that costs next to nothing while it has nothing to say, however often its task is polled for other
//! reasons.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls the future within only when that has asked for it, by a waker of its own. The relay is woken for each
/// packet, and polling `watch` receivers takes their locks each time.
#[derive(Debug)]
pub(crate) struct Rarely<F> {
    inner: F,
    bell: Option<Arc<Bell>>,
}

impl<F: Future + Unpin> Rarely<F> {
    pub(crate) fn new(inner: F) -> Self {
        Self { inner, bell: None }
    }

    fn bell(&mut self, task: &Waker) -> &Arc<Bell> {
        // A task may change its waker; then the future must be polled once for the new one.
        let current = self.bell.take().filter(|bell| bell.task.will_wake(task));
        self.bell.insert(current.unwrap_or_else(|| Arc::new(Bell::rung(task.clone()))))
    }
}

impl<F: Future + Unpin> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let bell = this.bell(cx.waker());
        if !bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Quiet before the poll, so that a ring during it is heard at the next one.
        bell.rung.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(bell));
        Pin::new(&mut this.inner).poll(&mut Context::from_waker(&waker))
    }
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: Waker,
}

impl Bell {
    fn rung(task: Waker) -> Self {
        Self { rung: AtomicBool::new(true), task }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn future_is_polled_when_it_rings_and_not_else() {
        let (polls, notify) = (Cell::new(0), Notify::new());
        let mut notified = pin!(notify.notified());
        let inner = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            notified.as_mut().poll(cx)
        });
        let mut rarely = Rarely::new(inner);
        for _ in 0..3 {
            poll_fn(|cx| {
                assert!(Pin::new(&mut rarely).poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert_eq!(polls.get(), 1);

        notify.notify_one();
        rarely.await;
        assert_eq!(polls.get(), 2);
    }
}
