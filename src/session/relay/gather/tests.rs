//! When the mark is set and lifted, of a socket that only takes note of it. `relay/tests/long.rs` has a real one.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use super::*;

/// Its marks, in their order.
type Socket = RefCell<Vec<usize>>;

const NOTE: SetMark<Socket> = |socket, len| {
    socket.borrow_mut().push(len);
    Ok(())
};

struct Scene {
    gather: Gather<Socket>,
    socket: Socket,
    bytes: u64,
}

impl Scene {
    fn new(set_mark: SetMark<Socket>) -> Self {
        Self { gather: Gather::new(Some(set_mark)), socket: Socket::default(), bytes: 0 }
    }

    fn poll(&mut self, cx: &mut Context<'_>, is_running: bool, client_spoke: bool, len: u64) {
        self.bytes += len;
        let seen = Seen { is_running, client_spoke, upstream_spoke: len > 0, bytes: self.bytes };
        self.gather.after(cx, &self.socket, seen);
    }

    /// So much more of an answer that goes on.
    fn more(&mut self, len: u64) {
        self.poll(&mut Context::from_waker(Waker::noop()), true, false, len);
    }

    fn end(&mut self) {
        self.poll(&mut Context::from_waker(Waker::noop()), false, false, 100);
    }

    fn query(&mut self) {
        self.poll(&mut Context::from_waker(Waker::noop()), true, true, 0);
    }

    /// Returns when the task has been woken and the mark has been lifted.
    async fn lull(&mut self) {
        poll_fn(|cx| {
            self.poll(cx, true, false, 0);
            if self.socket.borrow().last() == Some(&1) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn marks(&self) -> Vec<usize> {
        self.socket.take()
    }
}

#[tokio::test(start_paused = true)]
async fn mark_is_set_where_an_answer_is_long_and_lifted_at_its_end() {
    let mut scene = Scene::new(NOTE);
    for _ in 0..3 {
        scene.query();
        scene.more(BEGIN - 1);
        assert!(scene.marks().is_empty());
        scene.more(1);
        scene.more(BEGIN);
        assert_eq!(scene.marks(), [MARK]);
        scene.end();
        assert_eq!(scene.marks(), [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_long_only_together_have_no_mark() {
    let mut scene = Scene::new(NOTE);
    for end in [Scene::end as fn(&mut Scene), Scene::query, Scene::end] {
        scene.more(BEGIN - 1);
        end(&mut scene);
    }
    assert!(scene.marks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_stays_below_the_mark_is_had_after_a_lull() {
    let mut scene = Scene::new(NOTE);
    scene.more(BEGIN);
    for _ in 0..3 {
        assert_eq!(scene.marks(), [MARK]);
        // As long as more comes there is none.
        for _ in 0..10 {
            time::advance(LULL / 2).await;
            scene.more(u64::try_from(MARK).unwrap());
        }
        assert!(scene.marks().is_empty());
        let began = Instant::now();
        scene.lull().await;
        assert_eq!(scene.marks(), [1]);
        assert!(began.elapsed() <= 2 * LULL, "{:?}", began.elapsed());
        // What it was is read, and the answer goes on.
        scene.more(AGAIN - 1);
        assert!(scene.marks().is_empty());
        scene.more(1);
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_speaks_lifts_the_mark() {
    let mut scene = Scene::new(NOTE);
    scene.more(BEGIN);
    scene.query();
    scene.more(BEGIN - 1);
    assert_eq!(scene.marks(), [MARK, 1]);
}

#[tokio::test(start_paused = true)]
async fn socket_without_a_mark_is_asked_once() {
    let mut scene = Scene::new(|socket, len| {
        NOTE(socket, len)?;
        Err(io::ErrorKind::Unsupported.into())
    });
    for _ in 0..3 {
        scene.more(BEGIN);
        scene.end();
    }
    assert_eq!(scene.marks(), [MARK]);
    assert!(scene.gather.lull.is_none());
}
