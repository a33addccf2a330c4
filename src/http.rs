//! `/livez`, `/readyz`, `/startup` and `/metrics` for the kubelet and Prometheus, on any address.
//!
//! Runs on the control thread until its future is dropped. Nothing here asks a database or Vault.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time;
use tracing::warn;

use crate::config::HttpConfig;
use crate::credential::CredentialSource;
use crate::drain::Phase;
use crate::telemetry::Metrics;

/// What the endpoints look at.
#[derive(Debug)]
pub(crate) struct Health {
    metrics: Arc<Metrics>,
    /// The credentials that `/startup` and `/readyz` wait for: of every route that is not optional.
    sources: Vec<CredentialSource>,
    phase: watch::Receiver<Phase>,
    data_thread: Pinger,
}

impl Health {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        sources: Vec<CredentialSource>,
        phase: watch::Receiver<Phase>,
        data_thread: Pinger,
    ) -> Self {
        Self { metrics, sources, phase, data_thread }
    }
}

/// Why the endpoints cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("http.address = \"{address}\" cannot be bound")]
pub(crate) struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Binds `http.address`; where nobody asked for it, and the machine has no IPv6, its counterpart in IPv4.
pub(crate) fn bind(config: HttpConfig) -> Result<TcpListener, BindError> {
    let address = config.address;
    match listen(address) {
        Err(error) if !config.explicit && address.is_ipv6() => {
            let fallback = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            let listener = listen(fallback).map_err(|source| BindError { address: fallback, source })?;
            warn!(event = "http.without_ipv6", bound = %fallback, %error);
            Ok(listener)
        }
        bound => bound.map_err(|source| BindError { address, source }),
    }
}

/// An IPv6 wildcard takes IPv4 as well, whatever the machine's default is: probes come to the pod's only address.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until it fails, which it does only if the listener does.
pub(crate) async fn serve(listener: TcpListener, health: Arc<Health>) -> io::Result<Infallible> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/liveness", get(livez))
        .route("/readyz", get(readyz))
        .route("/readiness", get(readyz))
        .route("/startup", get(startup))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router).await?;
    Err(io::ErrorKind::BrokenPipe.into())
}

/// 200 while the data thread answers.
async fn livez(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.data_thread.ping().await {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the data thread does not answer\n")
    }
}

/// 200 while a client that connects now is served.
async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if *health.phase.borrow() != Phase::Serving {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if health.sources.iter().all(CredentialSource::is_ready) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no credential\n")
    }
}

/// 200 from the first moment at which every route that counts has had a proven credential.
async fn startup(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.sources.iter().all(CredentialSource::was_proven) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no proven credential yet\n")
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    match health.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Asks a thread whether it still turns its loop.
#[derive(Clone, Debug)]
pub(crate) struct Pinger(mpsc::Sender<oneshot::Sender<()>>);

impl Pinger {
    async fn ping(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(reply).is_ok() && matches!(time::timeout(PING_TIMEOUT, answer).await, Ok(Ok(())))
    }
}

/// The two ends of a ping: the second is a future for the thread in question, which ends with the last pinger.
pub(crate) fn pings() -> (Pinger, impl Future<Output = ()>) {
    let (pings, mut asked) = mpsc::channel::<oneshot::Sender<()>>(PINGS);
    (Pinger(pings), async move {
        while let Some(reply) = asked.recv().await {
            // A kubelet that has given up waits for no answer.
            let _ = reply.send(());
        }
    })
}

/// Shorter than a kubelet's `timeoutSeconds` of 1 would make the answer come too late to be one.
const PING_TIMEOUT: Duration = Duration::from_millis(900);

/// Pings that may wait; a thread that has not answered so many does not answer.
const PINGS: usize = 16;

/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 128;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
