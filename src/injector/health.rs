//! `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;

use crate::drain::Phase;
use crate::telemetry::{InjectorMetrics, scrape};

#[derive(Clone)]
struct Health {
    metrics: Arc<InjectorMetrics>,
    phase: watch::Receiver<Phase>,
}

/// GET and HEAD of what is here; another path is 404, another method 405.
pub(crate) fn router(metrics: Arc<InjectorMetrics>, phase: watch::Receiver<Phase>) -> Router {
    Router::new()
        .route("/livez", get(async || (StatusCode::OK, "ok\n")))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scraped))
        .with_state(Health { metrics, phase })
}

/// 200 until the process is told to stop.
async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    match *health.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ok\n"),
        Phase::Draining { .. } | Phase::Cut => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn scraped(State(health): State<Health>, headers: HeaderMap) -> Response {
    scrape::answer(&headers, health.metrics.encode())
}
