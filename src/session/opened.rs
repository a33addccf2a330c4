//! A session that has begun, from its first relayed byte to its close.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch as channel;
use tokio::time::Instant;

use super::admission::Admission;
use super::cancel::Registration;
use super::doubt::Doubts;
use super::ending::{self, Order};
use super::fault::{caught, tried};
use super::record::Record;
use super::relay::{Relay, RelayEnd, Tally};
use super::route::Removal;
use super::watch::{MaxAge, Watch};
use super::{Shared, close, error};
use crate::config::AtLeaseEnd;
use crate::credential::{CredentialSource, Hold};
use crate::drain::Phase;
use crate::ids::SessionId;
use crate::net::{Direct, Stream};
use crate::roster::{Listed, State};
use crate::wire::error::{ClientError, SqlState};
use crate::wire::status::Tracker;

/// A session that has begun.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) upstream: Stream,
    /// What upstream said behind BackendKeyData; the client has it.
    pub(super) after_key: BytesMut,
    /// What the client said before it could know that its session has begun; upstream does not have it.
    pub(super) early: BytesMut,
    /// Given back when upstream has ended.
    pub(super) hold: Hold,
    pub(super) registration: Option<Registration>,
    pub(super) at_lease_end: AtLeaseEnd,
    pub(super) removed: Removal,
    pub(super) max_age: Option<(Duration, CredentialSource)>,
    pub(super) listed: Listed,
}

impl Opened {
    /// Relays, and closes both sides. What it is made of is put in its place before it begins: an async fn would have
    /// room for each of its parts twice.
    pub(super) fn serve<C>(
        self: Box<Self>,
        client: C,
        admission: Admission,
        shared: Arc<Shared>,
        record: Record,
    ) -> impl Future<Output = ()> + Send
    where
        C: AsyncRead + AsyncWrite + Direct + Unpin + Send,
    {
        let Self { upstream, after_key, early, hold, registration, at_lease_end, removed, max_age, listed } =
            *self;
        let seed = fastrand::f64();
        let tally = Tally::new(shared.metrics.bytes.here(), &listed);
        let relay = Relay::new(client, upstream, Tracker::new(), tally);
        let mut relay = relay.gathering(Stream::set_low_mark).posting();
        let begun = tried(|| relay.begin(&after_key, &early));
        let mut watch = Watch {
            standing: hold.standing(),
            doubts: Doubts::new(hold, Arc::clone(&shared.metrics)),
            phase: shared.phase(),
            at_lease_end,
            removed,
            max_age: max_age.map(|(max_age, source)| {
                Box::new(MaxAge { aged_from: ending::aged_from(Instant::now(), max_age, seed), source })
            }),
            seed,
            cancellable: registration.as_ref().map(|registration| Arc::clone(registration.session())),
            is_cancelled: false,
        };

        async move {
            let end = match begun {
                Ok(()) => caught(pin!(relay.run(&mut watch))).await.unwrap_or_else(RelayEnd::Panicked),
                Err(panicked) => RelayEnd::Panicked(panicked),
            };
            // From here on a cancel of the client's would hit nobody, or a stranger.
            drop(registration);

            let error = client_error(&end, &relay, record.id());
            let cancel = watch
                .cancellable
                .as_deref()
                .filter(|_| relay.tracker.is_running() && ends_what_runs(&end, &watch.phase));
            listed.line().enter(State::Closing);
            if matches!(end, RelayEnd::Ordered(Order::Cut)) {
                shared.cut.fetch_add(1, Ordering::Relaxed);
            }
            record.closed(&end, &relay);
            drop(end);
            Box::pin(close::close(&mut relay, error.as_ref(), cancel)).await;
            // With the hold in it.
            drop(watch);
            drop(listed);
            // The client's connection before the seat: who finds one free finds a descriptor, too.
            drop(relay);
            drop(admission);
        }
    }
}

/// What the client is told at the end of `relay`; `None` where it has asked for the end, has been told by upstream,
/// or is not there.
fn client_error<C, U>(end: &RelayEnd, relay: &Relay<C, U>, session: SessionId) -> Option<ClientError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    match end {
        // Two reasons in one answer: the first that came is the one that counts.
        RelayEnd::Ordered(_) if relay.tracker.ends_by_upstream() => None,
        RelayEnd::Ordered(order) => Some(order.client_error(relay.tracker.is_running())),
        RelayEnd::Panicked(_) => Some(error::internal(session)),
        RelayEnd::ClientFailed(_) => None,
        RelayEnd::UpstreamClosed | RelayEnd::UpstreamFailed(_)
            if relay.client_hung_up() || relay.tracker.ends_with_error() =>
        {
            None
        }
        RelayEnd::UpstreamClosed | RelayEnd::UpstreamFailed(_) => {
            Some(ClientError::fatal(SqlState::CONNECTION_FAILURE, "connection to upstream server was lost"))
        }
    }
}

/// Whether a statement that runs is cancelled at the end. Without a drain, a client that vanishes leaves it running,
/// as it would in front of the server itself.
fn ends_what_runs(end: &RelayEnd, phase: &channel::Receiver<Phase>) -> bool {
    match end {
        RelayEnd::Ordered(_) | RelayEnd::Panicked(_) => true,
        RelayEnd::ClientFailed(_) => *phase.borrow() != Phase::Serving,
        RelayEnd::UpstreamClosed | RelayEnd::UpstreamFailed(_) => false,
    }
}
