//! What a thread's sessions have to say to sockets in one turn, which goes out together.
//!
//! A thread that is busy is told by the kernel of several sessions at once. What is small waits until all of them have had
//! their poll, and then goes out by one system call: [`batch`] says why. Who is alone for some time waits for nobody.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::RawFd;
use std::task::{Context, Poll, Waker};

use crate::net::batch::{self, Batch};

thread_local! {
    static OUTBOX: RefCell<Outbox> = const { RefCell::new(Outbox::new()) };
}

/// Borrows the outbox of the thread, for one poll and never across an await.
pub(super) fn with<T>(use_it: impl FnOnce(&mut Outbox) -> T) -> T {
    OUTBOX.with_borrow_mut(use_it)
}

/// The thread is about to do what may take long: what its sessions have to say goes out first.
pub(crate) fn send() {
    with(Outbox::send);
}

/// Sends what the thread's sessions have to say, each time after those that had something to read already. It runs in a
/// task of its own; without it nothing is kept back.
pub(crate) async fn carry() -> Infallible {
    let _carried = Carried;
    with(|outbox| outbox.batch = Batch::new().ok());
    poll_fn(|cx| {
        with(|outbox| {
            if outbox.carrier.as_ref().is_none_or(|carrier| !carrier.will_wake(cx.waker())) {
                outbox.carrier = Some(cx.waker().clone());
            }
            outbox.end_turn();
        });
        Poll::Pending
    })
    .await
}

struct Carried;

impl Drop for Carried {
    fn drop(&mut self) {
        with(|outbox| {
            outbox.carrier = None;
            outbox.send();
        });
    }
}

#[derive(Debug)]
pub(super) struct Outbox {
    /// What has been read and is to be sent, from [`Self::used`] on free.
    bytes: Vec<u8>,
    used: usize,
    letters: Vec<Letter>,
    /// The number of the letter that comes next.
    next: NonZeroU64,
    /// Letters that were not taken as a whole, and nobody has asked for yet.
    returned: Vec<(Posted, io::Result<Vec<u8>>)>,
    /// Woken when there is something to be sent.
    carrier: Option<Waker>,
    /// Turns in a row that had one letter each.
    lonely_turns: u32,
    /// Reads that are not taken before the next one is, to see whether it is still alone.
    refusals: u32,
    /// `None` where the system has none.
    batch: Option<Batch>,
}

#[derive(Debug)]
struct Letter {
    posted: Posted,
    to: RawFd,
    bytes: Range<usize>,
    sender: Waker,
}

/// The number of a letter, of one thread, which its session never leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posted(NonZeroU64);

/// What a read has brought: its place in the outbox.
#[derive(Debug)]
pub(super) struct Arrived(Range<usize>);

impl Outbox {
    const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            used: 0,
            letters: Vec::new(),
            next: NonZeroU64::MIN,
            returned: Vec::new(),
            carrier: None,
            lonely_turns: 0,
            refusals: 0,
            batch: None,
        }
    }

    /// Room for one read of [`READ_LEN`] bytes.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; LETTERS_LEN + READ_LEN];
        }
        self.bytes.get_mut(self.used..self.used + READ_LEN).unwrap_or_default()
    }

    /// The first `len` bytes of the room, where they lie until the next read.
    pub(super) fn read(&self, len: usize) -> Arrived {
        Arrived(self.used..self.used + len)
    }

    pub(super) fn bytes(&self, read: &Arrived) -> &[u8] {
        self.bytes.get(read.0.clone()).unwrap_or_default()
    }

    /// Whether `read` is to be posted.
    pub(super) fn takes(&mut self, read: &Arrived) -> bool {
        if self.carrier.is_none() || read.0.len() > LETTER_LEN {
            return false;
        }
        let refused = self.refusals > 0;
        self.refusals = self.refusals.saturating_sub(1);
        !refused
    }

    /// Has `read` sent to `to` at the end of the turn, a socket that never waits and stays open until then. Where not all
    /// of it is taken the task is woken and finds the rest by [`Self::take_back`].
    pub(super) fn post(&mut self, to: RawFd, read: Arrived, cx: &Context<'_>) -> Posted {
        let posted = Posted(self.next);
        self.next = self.next.saturating_add(1);
        self.used = read.0.end;
        if let (true, Some(carrier)) = (self.letters.is_empty(), &self.carrier) {
            carrier.wake_by_ref();
        }
        self.letters.push(Letter { posted, to, bytes: read.0, sender: cx.waker().clone() });
        if self.letters.len() == batch::MAX || self.used > LETTERS_LEN {
            self.send();
        }
        posted
    }

    /// Whether `posted` has not been sent yet.
    pub(super) fn has(&self, posted: Posted) -> bool {
        self.letters.first().is_some_and(|first| first.posted <= posted)
    }

    /// Sees to it that `posted` is sent, and says whether some of it was not taken.
    pub(super) fn falls_short(&mut self, posted: Posted) -> bool {
        self.send_posted(posted);
        self.returned.iter().any(|(returned, _)| *returned == posted)
    }

    /// Sees to it that `posted` is sent, and gives back what of it was not taken.
    pub(super) fn take_back(&mut self, posted: Posted) -> io::Result<Vec<u8>> {
        self.send_posted(posted);
        let found = self.returned.iter().position(|(returned, _)| *returned == posted);
        found.map_or_else(|| Ok(Vec::new()), |found| self.returned.swap_remove(found).1)
    }

    fn send_posted(&mut self, posted: Posted) {
        if self.has(posted) {
            self.send();
        }
    }

    /// Sends what was posted in the turn, and sees whether letters are worth their while.
    fn end_turn(&mut self) {
        self.lonely_turns = if self.letters.len() == 1 { self.lonely_turns.saturating_add(1) } else { 0 };
        if self.lonely_turns >= LONELY_TURNS {
            self.refusals = REFUSALS;
        }
        self.send();
    }

    /// Sends what was posted.
    pub(super) fn send(&mut self) {
        let Self { bytes, letters, returned, batch, .. } = self;
        let text = |letter: &Letter| bytes.get(letter.bytes.clone()).unwrap_or_default();
        let mut done = |number: usize, written: io::Result<usize>| {
            let Some(letter) = letters.get(number) else { return };
            let rest = match written {
                Ok(len) if len >= letter.bytes.len() => return,
                Ok(len) => Ok(text(letter).get(len..).unwrap_or_default().to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(text(letter).to_vec()),
                Err(error) => Err(error),
            };
            returned.push((letter.posted, rest));
            letter.sender.wake_by_ref();
        };
        let writes = letters.iter().map(|letter| (letter.to, text(letter)));
        let together = match letters.len() {
            0 => return,
            1 => None,
            _ => batch.as_mut(),
        };
        match together {
            Some(together) => {
                if together.write(writes, done).is_err() {
                    *batch = None;
                }
            }
            None => writes.enumerate().for_each(|(number, (to, text))| done(number, batch::write(to, text))),
        }
        self.letters.clear();
        self.used = 0;
    }
}

/// What one read takes at most, in bytes: enough for COPY to spend its time in the kernel.
pub(super) const READ_LEN: usize = 64 * 1024;
/// Longer reads are passed on at once: to gather them would save little.
pub(super) const LETTER_LEN: usize = 4 * 1024;
/// Behind so many turns that had one letter each the next ones are expected to have no more. They are rare in a row where
/// several sessions are at work.
const LONELY_TURNS: u32 = 8;
/// What is posted costs a little more than what is sent at once, where nothing goes with it.
const REFUSALS: u32 = 32;
/// What letters may have in all but the last one.
const LETTERS_LEN: usize = 8 * 1024;

#[cfg(test)]
mod tests;
