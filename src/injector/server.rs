//! Connections of the API server: accepted, shown the certificate, served one request after the other.

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::identity::Identity;
use super::{Injector, webhook};
use crate::drain::Phase;
use crate::net::{Seat, Seats};
use crate::telemetry::{InjectorMetrics, ResultLabels};

impl Injector {
    /// Serves until the drain lets nobody in any more, and then until what is being answered is.
    pub(crate) async fn serve(self, listener: TcpListener) {
        self.seat(Seats::new(MAX_CONNECTIONS, PATIENCE), listener).await;
    }

    async fn seat(self, mut seats: Seats, listener: TcpListener) {
        let Self { identity, webhook, phase, timeouts } = self;
        let router = webhook::router(Arc::clone(&webhook));
        let closing = CancellationToken::new();
        let mut connections = JoinSet::new();
        loop {
            let have_room = seats.have_room(Instant::now());
            let look_again = if have_room { LOOK_PERIOD } else { ROOM_PERIOD };
            tokio::select! {
                biased;
                () = ends(phase.clone(), Until::Accept) => break,
                Some(_) = connections.join_next() => {}
                // The kernel keeps the others meanwhile.
                accepted = listener.accept(), if have_room => match accepted {
                    Ok((stream, _)) => {
                        let seat = Seat::new(Instant::now());
                        let connection = Connection {
                            identity: Arc::clone(&identity),
                            router: router.clone(),
                            metrics: Arc::clone(&webhook.metrics),
                            seat: seat.clone(),
                            closing: closing.clone(),
                            handshake_timeout: timeouts.handshake,
                        };
                        seats.take(seat, connections.spawn(connection.serve(stream)));
                    }
                    Err(error) => {
                        debug!(event = "injector.accept_failed", %error);
                        time::sleep(ACCEPT_DELAY).await;
                    }
                },
                () = time::sleep(look_again) => drop(identity.current().await),
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

struct Connection {
    identity: Arc<Identity>,
    router: Router,
    metrics: Arc<InjectorMetrics>,
    seat: Seat,
    closing: CancellationToken,
    handshake_timeout: Duration,
}

impl Connection {
    /// The handshake, then requests until either side ends it.
    async fn serve(self, stream: TcpStream) {
        let Self { identity, router, metrics, seat, closing, handshake_timeout } = self;
        // An answer is one write: nothing is to be waited for.
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(identity.current().await);
        let handshake = time::timeout(handshake_timeout, acceptor.accept(stream)).await;
        let result = if matches!(handshake, Ok(Ok(_))) { "ok" } else { "failed" };
        metrics.tls_handshakes.get_or_create(&ResultLabels { result }).inc();
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(event = "injector.handshake_failed", %error),
            Err(_) => return debug!(event = "injector.handshake_timed_out"),
        };

        let router = TowerToHyperService::new(router);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let seat = seat.clone();
            seat.ask(Instant::now());
            request.extensions_mut().insert(seat.clone());
            let answer = router.call(request);
            async move {
                let answer = answer.await;
                let is_review = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
                seat.end(is_review, Instant::now());
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

/// Between requests, and for the head of one. An API server keeps a connection for 90 s: the one that closes it is then
/// the API server, which so never has a review underway on it.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

/// Of a request's head, and of what is read of a body at once.
const MAX_BUF_LEN: usize = 64 * 1024;

/// Between looks at the certificate's files, where nobody connects.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// Between looks for a seat, where all are taken.
const ROOM_PERIOD: Duration = Duration::from_millis(50);

/// Between attempts to accept when the process is out of descriptors or memory.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// An API server makes one for each review that it waits for.
const MAX_CONNECTIONS: usize = 256;

/// For handshake and request, on a machine that is busy. What comes behind as many as there are seats waits so long,
/// and an API server waits for 5 s by our own configuration.
const PATIENCE: Duration = Duration::from_secs(2);
