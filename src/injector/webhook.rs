//! `POST /mutate`: a request in, bounded in time and size, an answer out. Nothing that is posted ends the process.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tracing::{error, info, warn};

use super::review::{self, Answer, BadReview, Outcome};
use crate::config::SidecarConfig;
use crate::drain::Phase;
use crate::net::Seat;
use crate::telemetry::{InjectorMetrics, OutcomeLabels};

/// What answers reviews.
#[derive(Debug)]
pub(super) struct Webhook {
    sidecar: Arc<SidecarConfig>,
    pub(super) metrics: Arc<InjectorMetrics>,
    phase: watch::Receiver<Phase>,
    /// Bytes of bodies that may be held at the same time.
    room: Semaphore,
    body_timeout: Duration,
}

impl Webhook {
    pub(super) fn new(
        sidecar: SidecarConfig,
        metrics: Arc<InjectorMetrics>,
        phase: watch::Receiver<Phase>,
        body_timeout: Duration,
    ) -> Self {
        let room = Semaphore::new(MAX_BODIES_LEN);
        Self { sidecar: Arc::new(sidecar), metrics, phase, room, body_timeout }
    }
}

/// Why a request has no review for an answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("Content-Type is not application/json")]
    MediaType,
    #[error("body is longer than {MAX_BODY_LEN} bytes")]
    TooLong,
    #[error("body did not arrive within {0:?}")]
    TooSlow(Duration),
    #[error("body broke off")]
    Broken,
    #[error("too much is being answered; try again")]
    NoRoom,
    #[error(transparent)]
    Bad(BadReview),
    #[error("internal error")]
    Fault,
}

impl Unanswered {
    fn status(&self) -> StatusCode {
        match self {
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
            Self::Fault => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word in logs and metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Fault | Self::NoRoom => "failed",
            Self::MediaType | Self::TooLong | Self::TooSlow(_) | Self::Broken | Self::Bad(_) => "bad_request",
        }
    }
}

/// POST of `/mutate`; another path is 404, another method 405.
pub(super) fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/mutate", post(mutate))
        .fallback(async || (StatusCode::NOT_FOUND, "reviews are posted to /mutate\n"))
        .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "reviews are posted\n"))
        .with_state(webhook)
}

async fn mutate(
    State(webhook): State<Arc<Webhook>>,
    Extension(seat): Extension<Seat>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let began = Instant::now();
    let answered = answer(&webhook, &seat, &headers, body).await;
    let took = began.elapsed();
    let outcome = match &answered {
        Ok(answer) => answer.outcome.as_str(),
        Err(unanswered) => unanswered.outcome(),
    };
    webhook.metrics.reviews.get_or_create(&OutcomeLabels { outcome }).inc();
    webhook.metrics.review_seconds.observe(took.as_secs_f64());
    let mut response = match answered {
        Ok(answer) => {
            tell(&answer, took);
            ([(header::CONTENT_TYPE, JSON)], answer.body).into_response()
        }
        Err(unanswered) => {
            warn!(event = "injector.bad_review", status = unanswered.status().as_u16(), reason = %unanswered);
            (unanswered.status(), format!("{unanswered}\n")).into_response()
        }
    };
    // So that the API server takes its next one to a replica that stays.
    if *webhook.phase.borrow() != Phase::Serving {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(
    webhook: &Webhook,
    seat: &Seat,
    headers: &HeaderMap,
    body: Body,
) -> Result<Answer, Unanswered> {
    if !is_json(headers) {
        return Err(Unanswered::MediaType);
    }
    let read = time::timeout(webhook.body_timeout, read(webhook, headers, body)).await;
    let (body, _room) = read.map_err(|_| Unanswered::TooSlow(webhook.body_timeout))??;
    seat.answer();
    let sidecar = Arc::clone(&webhook.sidecar);
    guarded(move || review::answer(&body, &sidecar)).await?.map_err(Unanswered::Bad)
}

/// Runs `work` beside the connections, and survives its panic.
async fn guarded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unanswered> {
    let mut tasks = JoinSet::new();
    tasks.spawn_blocking(work);
    match tasks.join_next().await {
        Some(Ok(done)) => Ok(done),
        Some(Err(fault)) => {
            error!(event = "injector.fault", error = %fault, "a bug of pglease: the review is not answered");
            Err(Unanswered::Fault)
        }
        None => Err(Unanswered::Fault),
    }
}

/// The whole body, and the room that it takes.
async fn read<'a>(
    webhook: &'a Webhook,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<(Vec<u8>, Option<SemaphorePermit<'a>>), Unanswered> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    if announced.is_some_and(|len: usize| len > MAX_BODY_LEN) {
        return Err(Unanswered::TooLong);
    }
    let (mut whole, mut room) = (Vec::new(), None::<SemaphorePermit<'a>>);
    while let Some(frame) = body.frame().await {
        // Trailers are of no use here.
        let Some(chunk): Option<Bytes> = frame.map_err(|_| Unanswered::Broken)?.into_data().ok() else {
            continue;
        };
        if whole.len() + chunk.len() > MAX_BODY_LEN {
            return Err(Unanswered::TooLong);
        }
        // By what has arrived: whoever only announces takes no room.
        let len = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let more = webhook.room.try_acquire_many(len).map_err(|_| Unanswered::NoRoom)?;
        match &mut room {
            Some(room) => room.merge(more),
            None => room = Some(more),
        }
        whole.extend_from_slice(&chunk);
    }
    Ok((whole, room))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON)
}

fn tell(answer: &Answer, took: Duration) {
    let (namespace, pod) = (shown(&answer.namespace), shown(&answer.pod));
    let reason = answer.reason.as_deref().map(shown);
    info!(
        event = "injector.review",
        outcome = answer.outcome.as_str(),
        namespace,
        pod,
        reason,
        seconds = took.as_secs_f64()
    );
}

/// What others wrote, cut to what is fit for a line of the log.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

impl Outcome {
    /// The word in logs and metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
        }
    }
}

const JSON: &str = "application/json";

/// etcd takes objects of 1.5 MiB, and a review holds one of them.
pub(super) const MAX_BODY_LEN: usize = 3 * 1024 * 1024;

/// Of all bodies at the same time.
pub(super) const MAX_BODIES_LEN: usize = 32 * 1024 * 1024;

/// Of a name or a reason.
const MAX_SHOWN: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_is_one_answer() {
        let panics = guarded(|| panic!("on purpose")).await;
        assert!(matches!(panics, Err(Unanswered::Fault)));
        assert_eq!(Unanswered::Fault.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(matches!(guarded(|| 1).await, Ok(1)));
    }
}
