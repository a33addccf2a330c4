//! The threads that carry sessions, and which of them gets the next connection.
//!
//! One thread accepts for all: the kernel, asked to spread connections over several sockets, does so by a hash, and
//! few connections come out uneven. A connection goes to the thread that has the fewest, and stays there; on the
//! thread that accepts it is at once what it is where there is no other. A thread has a runtime of its own, so that
//! nothing moves from one to another while a session lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::net::{ClientSocket, ClientStream, Peer};
use crate::roster::Load;
use crate::session::{self, Shared};

/// All of them.
#[derive(Debug)]
pub(crate) struct Threads {
    /// Connections of the thread that accepts.
    own: TaskTracker,
    others: Vec<Other>,
}

/// One beside the thread that accepts.
#[derive(Debug)]
struct Other {
    connections: TaskTracker,
    runtime: Handle,
    /// For connections that are on their way to it.
    room: Arc<Semaphore>,
}

impl Threads {
    /// The one that calls [`serve`](super::serve), and those that run these, which must go on until that returns.
    pub(crate) fn new(others: Vec<Handle>) -> Self {
        let room = (MAX_ON_THE_WAY / others.len().max(1)).max(1);
        let other = |runtime| Other {
            connections: TaskTracker::new(),
            runtime,
            room: Arc::new(Semaphore::new(room)),
        };
        Self { own: TaskTracker::new(), others: others.into_iter().map(other).collect() }
    }

    /// Of each, the one that accepts first.
    pub(crate) fn loads(&self) -> Vec<Load> {
        self.trackers().map(Load::of).collect()
    }

    /// Gives a connection that this thread has accepted to the one with the fewest. Nobody else gives any, so that
    /// those that stay open are spread evenly to one.
    pub(super) async fn carry(&self, stream: ClientSocket, peer: Peer, shared: &Arc<Shared>) {
        let least_of_others = self.others.iter().min_by_key(|other| other.connections.len());
        let has_fewer = |other: &&Other| other.connections.len() < self.own.len();
        let at_other = match least_of_others.filter(has_fewer) {
            Some(other) => other.room().await.map(|on_the_way| (other, on_the_way)),
            None => None,
        };
        if let Some((other, on_the_way)) = at_other {
            other.carry(stream, peer, shared, on_the_way);
        } else {
            let place = shared.places().take();
            self.own.spawn(session::run(ClientStream::Plain(stream), peer, place, Arc::clone(shared)));
        }
        // Its turn comes before the next connection: a burst does not take the places of those that have spoken
        // already, and who has lost a place is gone.
        yield_now().await;
    }

    /// Returns when no thread has any connection; none must come any more. Cancel safe.
    pub(super) async fn all_free(&self) {
        for connections in self.trackers() {
            connections.close();
            connections.wait().await;
        }
    }

    fn trackers(&self) -> impl Iterator<Item = &TaskTracker> {
        [&self.own].into_iter().chain(self.others.iter().map(|other| &other.connections))
    }
}

impl Other {
    /// Waits where as many are on their way to it as may be: those that have been accepted have their turn there before
    /// many more are. `None` where the thread does not come to them: what hangs there holds up nobody elsewhere.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(on_the_way) = Arc::clone(&self.room).try_acquire_owned() {
            return Some(on_the_way);
        }
        time::timeout(MAX_DELAY, Arc::clone(&self.room).acquire_owned()).await.ok()?.ok()
    }

    fn carry(
        &self,
        stream: ClientSocket,
        peer: Peer,
        shared: &Arc<Shared>,
        on_the_way: OwnedSemaphorePermit,
    ) {
        let (place, shared) = (shared.places().take(), Arc::clone(shared));
        let carried = async move {
            let stream = match stream.come_here() {
                Ok(stream) => stream,
                Err(error) => return debug!(event = "accept.failed", %error),
            };
            // What it has said already is known behind this.
            yield_now().await;
            drop(on_the_way);
            session::run(ClientStream::Plain(stream), peer, place, shared).await;
        };
        self.connections.spawn_on(carried, &self.runtime);
    }
}

/// Connections that have been given to a thread, and that it has not begun with. Each has a place, and the oldest would
/// lose it to new ones; so they are a small part of the places that there are beyond one for each seat.
const MAX_ON_THE_WAY: usize = 16;
/// Of a connection, until the thread that accepts carries it itself.
const MAX_DELAY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
