//! Bytes both ways, aware of frame boundaries.
//!
//! One future polls both directions. What was read goes out in the same poll, or behind those of the other sessions that
//! have something to read at this moment, from a buffer that all sessions of the thread share; only what the other side
//! does not take is kept, and nothing more is read for that side until it has. So an idle session owns no buffer, and a
//! stalled one little more than [`outbox::READ_LEN`] bytes each way. Messages are never collected, and no timer is set
//! unless the session is to end or an answer is long.

mod gather;
pub(crate) mod outbox;
mod pump;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use self::gather::{Gather, Seen, SetMark};
use self::pump::{Progress, Pump, PumpError, PumpState};
use super::bell::Rarely;
use super::ending::{Doing, Order, Verdict};
use super::fault::Panicked;
use super::turn;
use super::watch::Watch;
use crate::net::Direct;
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
    // Dropped before the sockets that they have posted something to.
    /// Client to upstream.
    pub(crate) frontend: Pump,
    /// Upstream to client.
    pub(crate) backend: Pump,
    pub(crate) client: C,
    pub(crate) upstream: U,
    pub(crate) tracker: Tracker,
    upstream_error: Option<io::Error>,
    /// The direction that is being polled. A panic leaves it so: bytes that the tracker has seen may not have been
    /// written, or it may not have seen them.
    polled: Cell<Option<Direction>>,
    /// Both sides have been read until there was nothing more, and all of it has gone out or been posted.
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

impl<C: Direct, U: Direct> Relay<C, U> {
    /// Has what is small go out together with what else the thread has to send, where it has [`outbox::carry`].
    pub(crate) fn posting(mut self) -> Self {
        (self.frontend.outlet, self.backend.outlet) = (self.upstream.direct(), self.client.direct());
        self
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
            frontend: Pump::new(frontend_bytes, true),
            backend: Pump::new(backend_bytes, false),
            client,
            upstream,
            tracker,
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
            let mut verdict = watch.judge(self.doing());
            if matches!(verdict, Verdict::End(_))
                && (self.frontend.falls_short() || self.backend.falls_short())
            {
                self.quiet = false;
                verdict = watch.judge(self.doing());
            }
            let look = match verdict {
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
        let (sent, received) = outbox::with(|outbox| {
            polled.set(Some(Direction::Frontend));
            let sent = frontend.poll(cx, client, upstream, outbox, |bytes| tracker.frontend(bytes));
            polled.set(Some(Direction::Backend));
            let received = backend.poll(cx, upstream, client, outbox, |bytes| tracker.backend(bytes));
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
            // Its client has yet to take what it asked for, although that was posted.
            Ok(Progress::Blocked) => self.idle_since = None,
            Ok(Progress::Quiet | Progress::Busy) => {}
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

#[cfg(test)]
mod tests;
