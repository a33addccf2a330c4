//! Connections of the API server: accepted, shown the certificate, served one request after the other.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::identity::Identity;
use super::{Injector, webhook};
use crate::drain::Phase;
use crate::telemetry::{InjectorMetrics, ResultLabels};

impl Injector {
    /// Serves until the drain lets nobody in any more, and then until what is being answered is.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let Self { identity, webhook, phase } = self;
        let router = webhook::router(Arc::clone(&webhook));
        let closing = CancellationToken::new();
        let mut connections = JoinSet::new();
        let mut open = Open::default();
        loop {
            tokio::select! {
                biased;
                () = ends(phase.clone(), Until::Accept) => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let used = open.make_room();
                        let connection = Connection {
                            identity: Arc::clone(&identity),
                            router: router.clone(),
                            metrics: Arc::clone(&webhook.metrics),
                            used: used.clone(),
                            closing: closing.clone(),
                        };
                        open.add(used, connections.spawn(connection.serve(stream)));
                    }
                    Err(error) => {
                        debug!(event = "injector.accept_failed", %error);
                        time::sleep(ACCEPT_DELAY).await;
                    }
                },
                () = time::sleep(LOOK_PERIOD) => drop(identity.current().await),
            }
        }
        drop(listener);
        closing.cancel();
        let all_ended = async { while connections.join_next().await.is_some() {} };
        tokio::select! {
            () = all_ended => {}
            () = ends(phase, Until::Cut) => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Until {
    Accept,
    Cut,
}

/// Resolves when the drain has come so far.
async fn ends(mut phase: watch::Receiver<Phase>, until: Until) {
    loop {
        let now = *phase.borrow_and_update();
        let at = match (now, until) {
            (Phase::Serving, _) => None,
            (Phase::Draining { accept_until, .. }, Until::Accept) => Some(accept_until),
            (Phase::Draining { cut_at, .. }, Until::Cut) => Some(cut_at),
            (Phase::Cut, _) => return,
        };
        let changed = phase.changed();
        let Some(at) = at else {
            // Nobody is left to begin a drain: neither does anybody wait for it.
            if changed.await.is_err() {
                return;
            }
            continue;
        };
        if time::timeout_at(at, changed).await.is_err() {
            return;
        }
    }
}

/// The connections there are, in the order of their coming.
#[derive(Default)]
struct Open {
    connections: VecDeque<(Used, AbortHandle)>,
    /// Reviews answered, to tell which connection was of use last.
    answered: Arc<AtomicU64>,
}

impl Open {
    /// Ends one where there is no room: first who has had nothing answered, then who has had it longest ago. So the
    /// API server keeps its own, whoever else connects.
    fn make_room(&mut self) -> Used {
        self.connections.retain(|(_, connection)| !connection.is_finished());
        if self.connections.len() >= MAX_CONNECTIONS {
            let last_used = |(_, (used, _)): &(usize, &(Used, AbortHandle))| used.at.load(Ordering::Relaxed);
            let least = self.connections.iter().enumerate().min_by_key(last_used).map(|(index, _)| index);
            if let Some((_, connection)) = least.and_then(|least| self.connections.remove(least)) {
                connection.abort();
            }
        }
        Used { at: Arc::default(), answered: Arc::clone(&self.answered) }
    }

    fn add(&mut self, used: Used, connection: AbortHandle) {
        self.connections.push_back((used, connection));
    }
}

/// When a connection was of use; 0 is never.
#[derive(Clone)]
struct Used {
    at: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
}

impl Used {
    fn note(&self) {
        self.at.store(self.answered.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

struct Connection {
    identity: Arc<Identity>,
    router: Router,
    metrics: Arc<InjectorMetrics>,
    used: Used,
    closing: CancellationToken,
}

impl Connection {
    /// The handshake, then requests until either side ends it.
    async fn serve(self, stream: TcpStream) {
        let Self { identity, router, metrics, used, closing } = self;
        // An answer is one write: nothing is to be waited for.
        let _ = stream.set_nodelay(true);
        let handshake =
            time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(identity.current().await).accept(stream))
                .await;
        let result = if matches!(handshake, Ok(Ok(_))) { "ok" } else { "failed" };
        metrics.tls_handshakes.get_or_create(&ResultLabels { result }).inc();
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(event = "injector.handshake_failed", %error),
            Err(_) => return debug!(event = "injector.handshake_timed_out"),
        };

        let router = TowerToHyperService::new(router);
        let service = service_fn(move |request| {
            let (answer, used) = (router.call(request), used.clone());
            async move {
                let answer = answer.await;
                if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                    used.note();
                }
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_BUF_LEN)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(event = "injector.connection_failed", %error);
        }
    }
}

/// Open at the same time. An API server makes one for each review that it waits for.
const MAX_CONNECTIONS: usize = 256;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between requests, and for the head of one. An API server keeps a connection for 90 s: the one that closes it is then
/// the API server, which so never has a review underway on it.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// Of a request's head, and of what is read of a body at once.
const MAX_BUF_LEN: usize = 64 * 1024;

/// Between looks at the certificate's files, where nobody connects.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// Between attempts to accept when the process is out of descriptors or memory.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);
