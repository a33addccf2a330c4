//! Bytes both ways, aware of frame boundaries.
//!
//! One future polls both directions. What was read goes out in the same poll, from a buffer that all sessions of
//! the thread share; only what the other side does not take is kept, and nothing more is read for that side until
//! it has. So an idle session owns no buffer, and a stalled one [`SCRATCH_LEN`] bytes each way at most. Messages
//! are never collected, and no timer is set unless the session is to end or an answer is long.

mod gather;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use self::gather::{Gather, Seen, SetMark};
use super::bell::Rarely;
use super::ending::{Doing, Order, Verdict};
use super::fault::Panicked;
use super::turn;
use super::watch::Watch;
use crate::roster::{Line, Listed, State};
use crate::telemetry::ByteCounter;
use crate::wire::status::Tracker;

/// Why a relay ended.
#[derive(Debug)]
pub(crate) enum RelayEnd {
    /// Upstream closed the connection and all that it sent has been passed on.
    UpstreamClosed,
    ClientFailed(io::Error),
    UpstreamFailed(io::Error),
    /// Told from outside. Nothing that was read from the client has gone unanswered, unless a statement runs.
    Ordered(Order),
    Panicked(Panicked),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Frontend,
    Backend,
}

/// Two connections and all that is known of what goes over them.
#[derive(Debug)]
pub(crate) struct Relay<C, U> {
    pub(crate) client: C,
    pub(crate) upstream: U,
    pub(crate) tracker: Tracker,
    /// Client to upstream.
    pub(crate) frontend: Pump,
    /// Upstream to client.
    pub(crate) backend: Pump,
    upstream_error: Option<io::Error>,
    /// The direction that is being polled. A panic leaves it so: bytes that the tracker has seen may not have been
    /// written, or it may not have seen them.
    polled: Cell<Option<Direction>>,
    /// Both sides have been read until there was nothing more, and all of it has gone out.
    quiet: bool,
    /// Something has happened since the session was last seen quiet.
    stirred: bool,
    /// [`Pump::bytes`] of the frontend direction when the session was last seen quiet.
    frontend_seen: u64,
    idle_since: Option<Instant>,
    line: Option<Arc<Line>>,
    gather: Gather<U>,
}

/// Where bytes are counted, and what the session does is told: both for whoever looks.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Of all sessions of the thread, client to upstream and upstream to client.
    bytes: [ByteCounter; 2],
    line: Option<Arc<Line>>,
}

impl Tally {
    pub(crate) fn new(bytes: [ByteCounter; 2], listed: &Listed) -> Self {
        Self { bytes, line: Some(Arc::clone(listed.line())) }
    }
}

impl<C, U> Relay<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    pub(crate) fn new(client: C, upstream: U, tracker: Tracker, tally: Tally) -> Self {
        let Tally { bytes: [frontend_bytes, backend_bytes], line } = tally;
        Self {
            client,
            upstream,
            tracker,
            frontend: Pump { closes_writer: true, ..Pump::new(frontend_bytes) },
            backend: Pump::new(backend_bytes),
            upstream_error: None,
            polled: Cell::default(),
            quiet: false,
            stirred: true,
            frontend_seen: 0,
            idle_since: None,
            line,
            gather: Gather::new(None),
        }
    }

    /// Takes what has come before the relay: `greeted` of upstream's, which the client has, and `early` of the client's,
    /// which goes upstream first.
    pub(crate) fn begin(&mut self, greeted: &[u8], early: &[u8]) {
        self.polled.set(Some(Direction::Backend));
        self.tracker.backend(greeted);
        self.polled.set(Some(Direction::Frontend));
        self.tracker.frontend(early);
        self.polled.set(None);
        self.frontend.count(early.len());
        self.frontend.stash = early.to_vec();
    }

    /// Has upstream's socket hold back where an answer is long, so that the relay is woken less often.
    pub(crate) fn gathering(self, set_mark: SetMark<U>) -> Self {
        Self { gather: Gather::new(Some(set_mark)), ..self }
    }

    /// Relays until one side ends or `watch` says so. Not cancel safe.
    ///
    /// Client EOF closes upstream's write side, and upstream goes on answering; upstream EOF ends the relay.
    pub(crate) async fn run(&mut self, watch: &mut Watch) -> RelayEnd {
        loop {
            // Nothing is awaited between the poll that found both sides quiet and this verdict on it.
            let look = match watch.judge(self.doing()) {
                Verdict::End(order) => return RelayEnd::Ordered(order),
                Verdict::Stay(look) => look,
            };
            let ended = {
                let changed = pin!(watch.changed(look.at));
                let mut outside = Rarely::new(changed);
                let ended = poll_fn(|cx| {
                    if let Some(end) = self.poll_bytes(cx) {
                        return Poll::Ready(Some(end));
                    }
                    if self.settle() && look.closely || self.tracker.has_signs() {
                        return Poll::Ready(None);
                    }
                    Pin::new(&mut outside).poll(cx).map(|()| None)
                });
                ended.await
            };
            watch.heed(self.tracker.take_signs());
            if let Some(end) = ended {
                return end;
            }
        }
    }

    /// Whether a message of our own to the client would be whole: all before it has been passed on up to the end
    /// of a frame, or can be.
    pub(crate) fn can_speak_to_client(&self) -> bool {
        self.tracker.is_backend_at_boundary() && self.polled.get() != Some(Direction::Backend)
    }

    /// The same towards upstream, which must not have been told that nothing more comes.
    pub(crate) fn can_speak_to_upstream(&self) -> bool {
        self.tracker.is_frontend_at_boundary()
            && self.polled.get() != Some(Direction::Frontend)
            && self.frontend.state == PumpState::Open
    }

    /// Whether upstream has said all that it will say.
    pub(crate) fn upstream_ended(&self) -> bool {
        self.backend.state != PumpState::Open
    }

    /// Whether the client will send nothing more.
    pub(crate) fn client_hung_up(&self) -> bool {
        let ended = matches!(self.frontend.state, PumpState::Finishing | PumpState::Finished);
        ended || self.tracker.is_terminated()
    }

    fn doing(&self) -> Doing {
        let between = self.quiet && self.tracker.is_backend_at_boundary();
        Doing {
            idle_since: self.idle_since.filter(|_| self.quiet),
            is_running: self.tracker.is_running() || !between,
            hung_up: self.client_hung_up(),
        }
    }

    /// Moves what can be moved.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Option<RelayEnd> {
        let Self { client, upstream, tracker, frontend, backend, polled, .. } = self;
        let (sent, received) = SCRATCH.with_borrow_mut(|scratch| {
            polled.set(Some(Direction::Frontend));
            let sent = frontend.poll(cx, client, upstream, scratch, |bytes| tracker.frontend(bytes));
            polled.set(Some(Direction::Backend));
            let received = backend.poll(cx, upstream, client, scratch, |bytes| tracker.backend(bytes));
            polled.set(None);
            (sent, received)
        });
        let client_spoke = std::mem::take(&mut self.frontend.moved);
        let upstream_spoke = std::mem::take(&mut self.backend.moved);
        if client_spoke | upstream_spoke {
            self.stirred = true;
            self.tell();
        }
        let (is_running, bytes) = (self.tracker.is_running(), self.backend.bytes);
        self.gather.after(cx, &self.upstream, Seen { is_running, client_spoke, upstream_spoke, bytes });

        self.quiet =
            matches!(sent, Ok(Progress::Quiet | Progress::Done)) && matches!(received, Ok(Progress::Quiet));
        match sent {
            Err(PumpError::Read(error)) => return Some(RelayEnd::ClientFailed(error)),
            // What upstream said before it went is still to be read.
            Err(PumpError::Write(error)) => self.upstream_error = Some(error),
            Ok(_) => {}
        }
        match received {
            // What it said before that is still to be written.
            Err(PumpError::Read(error)) => {
                self.upstream_error = Some(error);
                self.backend.state = PumpState::Finishing;
                cx.waker().wake_by_ref();
            }
            Err(PumpError::Write(error)) => return Some(RelayEnd::ClientFailed(error)),
            Ok(Progress::Done) => {
                let error = self.upstream_error.take();
                return Some(error.map_or(RelayEnd::UpstreamClosed, RelayEnd::UpstreamFailed));
            }
            Ok(Progress::Quiet | Progress::Blocked | Progress::Busy) => {}
        }
        None
    }

    /// For whoever looks: a few plain stores.
    fn tell(&self) {
        let Some(line) = &self.line else { return };
        let state = if self.tracker.is_idle() {
            State::Idle
        } else if self.tracker.is_in_transaction() {
            State::InTransaction
        } else {
            State::Active
        };
        line.relayed([self.frontend.bytes, self.backend.bytes], state);
    }

    /// Takes note of what the session does, once it is quiet after something has happened; says whether it is.
    fn settle(&mut self) -> bool {
        if !self.quiet || !std::mem::take(&mut self.stirred) {
            return false;
        }
        let client_spoke =
            std::mem::replace(&mut self.frontend_seen, self.frontend.bytes) != self.frontend.bytes;
        if !self.tracker.is_idle() {
            self.idle_since = None;
        } else if client_spoke || self.idle_since.is_none() {
            // What upstream says unasked, a notification, is no use of the session.
            self.idle_since = Some(turn::now());
        }
        true
    }
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Pump {
    /// What was read and not taken; from `stash_start` on it is still to be written.
    stash: Vec<u8>,
    stash_start: usize,
    state: PumpState,
    /// Half-close: the end of the reader is passed on. Else there are words of our own to be said first.
    closes_writer: bool,
    unflushed: bool,
    /// Since it was last looked at.
    moved: bool,
    /// Bytes read.
    pub(crate) bytes: u64,
    counter: ByteCounter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PumpState {
    Open,
    /// The reader has ended: what is stashed goes out, and then the word that it has.
    Finishing,
    Finished,
    /// One of the two broke before the reader had ended.
    Failed,
}

/// How a pump stands when it returns; but for `Done` it will wake the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing to read, nothing to write.
    Quiet,
    /// The writer takes no more.
    Blocked,
    /// Others' turn: there may be more to read.
    Busy,
    Done,
}

#[derive(Debug)]
enum PumpError {
    Read(io::Error),
    Write(io::Error),
}

impl Pump {
    fn new(counter: ByteCounter) -> Self {
        Self {
            stash: Vec::new(),
            stash_start: 0,
            state: PumpState::Open,
            closes_writer: false,
            unflushed: false,
            moved: false,
            bytes: 0,
            counter,
        }
    }

    /// What was read and never written.
    pub(crate) fn take_stash(&mut self) -> Vec<u8> {
        let mut stash = std::mem::take(&mut self.stash);
        stash.drain(..std::mem::take(&mut self.stash_start).min(stash.len()));
        stash
    }

    fn count(&mut self, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(len);
        self.counter.add(len);
    }

    /// Reads and writes until one of them is pending, at most [`MAX_READS`] times. An error leaves the pump
    /// finished. `seen` is shown the bytes before they are written.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
        mut seen: impl FnMut(&[u8]),
    ) -> Result<Progress, PumpError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let progress = self.poll_open(cx, reader, writer, scratch, &mut seen);
        if progress.is_err() {
            let was_open = self.state == PumpState::Open;
            self.state = if was_open { PumpState::Failed } else { PumpState::Finished };
            self.moved = true;
        }
        progress
    }

    fn poll_open<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
        seen: &mut impl FnMut(&[u8]),
    ) -> Result<Progress, PumpError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..MAX_READS {
            if matches!(self.state, PumpState::Finished | PumpState::Failed) {
                return Ok(Progress::Done);
            }
            if self.poll_unstash(cx, writer).map_err(PumpError::Write)?.is_pending() {
                return Ok(Progress::Blocked);
            }
            if self.state == PumpState::Finishing {
                return self.poll_finish(cx, writer);
            }
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(&mut *reader).poll_read(cx, &mut buf) {
                Poll::Pending => return self.poll_flush(cx, writer),
                Poll::Ready(read) => read.map_err(PumpError::Read)?,
            }
            self.moved = true;
            if buf.filled().is_empty() {
                self.state = PumpState::Finishing;
                continue;
            }
            seen(buf.filled());
            self.count(buf.filled().len());
            self.poll_write(cx, writer, buf.filled()).map_err(PumpError::Write)?;
        }
        let _ = self.poll_flush(cx, writer)?;
        turn::ends();
        cx.waker().wake_by_ref();
        Ok(Progress::Busy)
    }

    /// Writes what the writer takes, and stashes the rest.
    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        self.unflushed = true;
        while !bytes.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Err(ErrorKind::WriteZero.into()),
                Poll::Ready(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Poll::Pending => {
                    self.stash = bytes.to_vec();
                    self.stash_start = 0;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the stash; once it is empty its memory is given back.
    fn poll_unstash<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> io::Result<Poll<()>> {
        while let Some(bytes) = self.stash.get(self.stash_start..).filter(|bytes| !bytes.is_empty()) {
            self.unflushed = true;
            match Pin::new(&mut *writer).poll_write(cx, bytes)? {
                Poll::Ready(0) => return Err(ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.stash_start += written,
                Poll::Pending => return Ok(Poll::Pending),
            }
            self.moved = true;
        }
        if self.stash_start > 0 {
            self.stash = Vec::new();
            self.stash_start = 0;
        }
        Ok(Poll::Ready(()))
    }

    /// TLS keeps back what the socket did not take.
    fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Result<Progress, PumpError> {
        if self.unflushed {
            match Pin::new(writer).poll_flush(cx) {
                Poll::Ready(flushed) => flushed.map_err(PumpError::Write)?,
                Poll::Pending => return Ok(Progress::Blocked),
            }
            self.unflushed = false;
        }
        Ok(Progress::Quiet)
    }

    /// Says to the writer that nothing more comes, or at least that this was all for now.
    fn poll_finish<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Result<Progress, PumpError> {
        let writer = Pin::new(writer);
        let finished = if self.closes_writer { writer.poll_shutdown(cx) } else { writer.poll_flush(cx) };
        let Poll::Ready(finished) = finished else {
            return Ok(Progress::Blocked);
        };
        self.state = PumpState::Finished;
        self.moved = true;
        finished.map(|()| Progress::Done).map_err(PumpError::Write)
    }
}

thread_local! {
    /// Borrowed for one poll at a time, never across an await.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_LEN].into_boxed_slice());
}

/// What one read takes at most, in bytes: enough for COPY to spend its time in the kernel.
const SCRATCH_LEN: usize = 64 * 1024;
/// Reads of one direction in one poll, after which other sessions have their turn.
const MAX_READS: usize = 8;

#[cfg(test)]
mod tests;
