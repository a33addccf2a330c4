//! A connection that is begun while it is not known yet whether there will be a login on it: a client's own proof and
//! the way to upstream take their time side by side. Nothing is said on it but TLS.
//!
//! Whoever reaches the listener has one begun, so there are few at a time, and none for long.

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{self, Instant};

use super::Upstream;
use super::address::Address;
use crate::config::LoadBalanceHosts;
use crate::net::Stream;

pub(crate) struct Ahead(State);

enum State {
    Begun(Pin<Box<dyn Future<Output = Option<Connected>> + Send>>),
    Made(Connected),
    Gone,
}

struct Connected {
    address: Address,
    stream: Stream,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Upstream {
    /// Begins a connection to where a login would be tried first, if that can be told; it keeps `place` until there is
    /// a login or none. Nothing happens but when it is polled.
    pub(crate) fn connect_ahead(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Option<Ahead> {
        if self.config.load_balance_hosts != LoadBalanceHosts::Disable {
            return None;
        }
        let upstream = Arc::clone(self);
        Some(Ahead(State::Begun(Box::pin(async move {
            let server = upstream.servers.first()?;
            let address = server.look_up().await.ok()?.into_iter().next()?;
            // A login that has to connect itself finds out why it cannot.
            let stream = upstream.connect(&address).await.ok()?;
            Some(Connected { address, stream, until: Instant::now() + MAX_AGE, _place: place })
        }))))
    }
}

impl Ahead {
    /// Connects, and gives up what nobody comes for. Never ends. Cancel safe.
    pub(crate) async fn go_on(&mut self) -> Infallible {
        self.settle().await;
        if let State::Made(Connected { until, .. }) = &self.0 {
            time::sleep_until(*until).await;
            self.0 = State::Gone;
        }
        pending().await
    }

    async fn settle(&mut self) {
        if let State::Begun(connecting) = &mut self.0 {
            let connected = connecting.await;
            self.0 = connected.map_or(State::Gone, State::Made);
        }
    }

    /// The connection, if it came about and leads to `address`.
    pub(super) async fn into_stream(mut self, address: &Address) -> Option<Stream> {
        self.settle().await;
        match mem::replace(&mut self.0, State::Gone) {
            State::Made(made) if made.until > Instant::now() && made.address.is(address) => Some(made.stream),
            State::Made(_) | State::Begun(_) | State::Gone => None,
        }
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

/// For the proof, from when the connection is there: upstream waits a minute for a login at most, and keeps a process
/// for it. A program has its answer ready; a person's has been asked for before.
const MAX_AGE: Duration = Duration::from_secs(5);
