//! One direction of a relay.

use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::outbox::{self, Outbox, Posted};
use crate::session::turn;
use crate::telemetry::ByteCounter;

#[derive(Debug)]
pub(crate) struct Pump {
    /// What was read and not taken; from `stash_start` on it is still to be written.
    pub(super) stash: Vec<u8>,
    stash_start: usize,
    /// The socket that is written to, where that is all there is to writing.
    pub(super) outlet: Option<RawFd>,
    /// What was last left to the outbox, until it is known what came of it. Nothing is stashed then.
    posted: Option<Posted>,
    pub(super) state: PumpState,
    /// Half-close: the end of the reader is passed on. Else there are words of our own to be said first.
    closes_writer: bool,
    unflushed: bool,
    /// Since it was last looked at.
    pub(super) moved: bool,
    /// Bytes read.
    pub(crate) bytes: u64,
    counter: ByteCounter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PumpState {
    Open,
    /// The reader has ended: what is stashed goes out, and then the word that it has.
    Finishing,
    Finished,
    /// One of the two broke before the reader had ended.
    Failed,
}

/// How a pump stands when it returns; but for `Done` it will wake the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing to read, nothing to write.
    Quiet,
    /// The writer takes no more.
    Blocked,
    /// Others' turn: there may be more to read.
    Busy,
    Done,
}

#[derive(Debug)]
pub(super) enum PumpError {
    Read(io::Error),
    Write(io::Error),
}

impl Pump {
    pub(super) fn new(counter: ByteCounter, closes_writer: bool) -> Self {
        Self {
            stash: Vec::new(),
            stash_start: 0,
            outlet: None,
            posted: None,
            state: PumpState::Open,
            closes_writer,
            unflushed: false,
            moved: false,
            bytes: 0,
            counter,
        }
    }

    /// What was read and never written. An error where something is missing before what would be written next.
    pub(crate) fn take_stash(&mut self) -> io::Result<Vec<u8>> {
        outbox::with(|outbox| self.take_back(outbox))?;
        let mut stash = std::mem::take(&mut self.stash);
        stash.drain(..std::mem::take(&mut self.stash_start).min(stash.len()));
        Ok(stash)
    }

    pub(super) fn count(&mut self, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(len);
        self.counter.add(len);
    }

    /// Sees to it that what was posted is sent, and says whether some of it was not taken.
    pub(super) fn falls_short(&self) -> bool {
        self.posted.is_some_and(|posted| outbox::with(|outbox| outbox.falls_short(posted)))
    }

    /// Takes back what was posted and not taken.
    fn take_back(&mut self, outbox: &mut Outbox) -> io::Result<()> {
        if let Some(posted) = self.posted.take() {
            self.stash = outbox.take_back(posted)?;
        }
        Ok(())
    }

    /// Reads and writes until one of them is pending, at most [`MAX_READS`] times. An error leaves the pump
    /// finished. `seen` is shown the bytes before they are written.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        outbox: &mut Outbox,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<Progress, PumpError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let progress = self.poll_open(cx, reader, writer, outbox, &mut seen);
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
        outbox: &mut Outbox,
        seen: &mut impl FnMut(&[u8]),
    ) -> Result<Progress, PumpError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..MAX_READS {
            if self.posted.is_some_and(|posted| !outbox.has(posted)) {
                self.take_back(outbox).map_err(PumpError::Write)?;
            }
            if matches!(self.state, PumpState::Finished | PumpState::Failed) {
                return Ok(Progress::Done);
            }
            if self.poll_unstash(cx, writer).map_err(PumpError::Write)?.is_pending() {
                return Ok(Progress::Blocked);
            }
            if self.state == PumpState::Finishing {
                self.take_back(outbox).map_err(PumpError::Write)?;
                if !self.stash.is_empty() {
                    continue;
                }
                return self.poll_finish(cx, writer);
            }
            let mut buf = ReadBuf::new(outbox.room());
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
            let len = buf.filled().len();
            self.count(len);
            self.pass_on(cx, writer, outbox, len).map_err(PumpError::Write)?;
        }
        let _ = self.poll_flush(cx, writer)?;
        outbox.send();
        turn::ends();
        cx.waker().wake_by_ref();
        Ok(Progress::Busy)
    }

    /// Posts the `len` bytes that were read, or writes them.
    fn pass_on<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        outbox: &mut Outbox,
        len: usize,
    ) -> io::Result<()> {
        let read = outbox.read(len);
        self.take_back(outbox)?;
        if !self.stash.is_empty() {
            self.stash.extend_from_slice(outbox.bytes(&read));
            return Ok(());
        }
        if let Some(to) = self.outlet.filter(|_| outbox.takes(&read)) {
            self.posted = Some(outbox.post(to, read, cx));
            return Ok(());
        }
        // What others have to say is less, and would wait for it.
        outbox.send();
        self.poll_write(cx, writer, outbox.bytes(&read))
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

impl Drop for Pump {
    /// What was posted goes out while the socket is there.
    fn drop(&mut self) {
        if self.posted.is_some() {
            let _ = outbox::with(|outbox| self.take_back(outbox));
        }
    }
}

/// Reads of one direction in one poll, after which other sessions have their turn.
const MAX_READS: usize = 8;
