//! `/` and `/status` for people, and what they may ask for, on loopback only: the second endpoint, served like the first.
//!
//! Runs on the control thread until its future is dropped. Rotations and the drain are asked for where they are done,
//! at the chains and in `app`. A web page must not get here through a browser of this machine: see [`origin`].

pub(crate) mod client;
mod blame;
mod log;
mod origin;
mod page;
mod process;
mod status;
pub(crate) mod text;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::{AdminConfig, Config};
use crate::drain::Phase;
use crate::file::FileStatus;
use crate::http::{self, BindError};
use crate::lease::{ChainError, ChainHandle, NoAnswer, Rotated};
use crate::net::Absent;
use crate::reload;
use crate::roster::{Load, Roster};
use crate::telemetry::Metrics;

/// What the endpoint asks.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Settings in effect; `admin.control` of them is whether more is answered than `/status`.
    pub(crate) in_effect: watch::Receiver<Arc<Config>>,
    /// Those that are there, also those that end.
    pub(crate) chains: watch::Receiver<Vec<ChainHandle>>,
    pub(crate) config: watch::Receiver<reload::Status>,
    pub(crate) files: Vec<watch::Receiver<FileStatus>>,
    pub(crate) roster: Arc<Roster>,
    /// Of each data thread by its name.
    pub(crate) loads: Vec<(String, Load)>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// Asks for the drain.
    pub(crate) drain: mpsc::Sender<()>,
}

/// Binds `admin.address`, if there is one. Where nobody asked for it and the machine has no IPv4, its counterpart in
/// IPv6; where that cannot be had, there is none.
pub(crate) fn bind(config: AdminConfig) -> Result<(Option<TcpListener>, Option<Absent>), BindError> {
    let Some(address) = config.address else { return Ok((None, None)) };
    if config.explicit {
        let listener = http::listen(address);
        return listener.map(|bound| (Some(bound), None)).map_err(|source| BindError {
            key: "admin.address",
            address,
            source,
        });
    }
    match http::listen_by_default(address) {
        Ok((listener, absent)) => Ok((Some(listener), absent)),
        Err((address, error)) => {
            warn!(event = "admin.not_bound", %address, %error, "no /status: admin.address names another port");
            Ok((None, None))
        }
    }
}

/// GET of how things stand, POST of the rest; another path is 404, another method 405.
pub(crate) fn router(admin: Arc<Admin>) -> Router {
    let control = Router::new()
        .route("/rotate", post(rotate))
        .route("/drain", post(drain))
        .route("/quitquitquit", post(drain))
        .route("/log", post(log::set_level))
        .layer(middleware::from_fn_with_state(Arc::clone(&admin), only_with_control));
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .merge(control)
        .layer(middleware::from_fn(only_from_here))
        .with_state(admin)
}

/// Keeps web pages out, and what is answered in the hands of who asked.
async fn only_from_here(request: Request, next: Next) -> Response {
    let mut response = match origin::judge(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => (StatusCode::FORBIDDEN, refusal.as_str()).into_response(),
    };
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn only_with_control(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    if admin.in_effect.borrow().admin.control {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "not allowed: set admin.control = true to have it answered\n").into_response()
}

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    json(StatusCode::OK, &status::Status::of(&admin).await)
}

async fn page(State(admin): State<Arc<Admin>>) -> Response {
    page::answer(&status::Status::of(&admin).await)
}

/// The answer to `/rotate`.
#[derive(Debug, Serialize)]
struct RotateAnswer {
    chains: Vec<ChainRotated>,
}

/// What came of it in one chain.
#[derive(Debug, Serialize)]
struct ChainRotated {
    vault_path: String,
    /// `done`, `not_yet` or `ended`.
    result: &'static str,
    generation: Option<String>,
    db_role: Option<String>,
    /// Leases of older generations that could not be revoked and end by themselves.
    orphans: usize,
    /// Why it is not done, as far as is known.
    last_error: Option<ChainError>,
}

/// New credentials for all chains; with `?close=true` the sessions on older ones end. 200 when all is done, 202 where
/// something goes on without the caller.
async fn rotate(State(admin): State<Arc<Admin>>, uri: Uri) -> Response {
    let close = match uri.query() {
        None | Some("" | "close=false") => false,
        Some("close=true") => true,
        Some(_) => return (StatusCode::BAD_REQUEST, "the one parameter is close=true\n").into_response(),
    };
    if *admin.phase.borrow() != Phase::Serving {
        return (StatusCode::CONFLICT, "draining\n").into_response();
    }
    info!(event = "admin.rotate", close);
    let ask = move |chain: ChainHandle| async move {
        let result = chain.rotate(close).await;
        rotated(&chain, result).await
    };
    let chains = admin.chains.borrow().clone();
    let chains = ask_all(chains, ask).await;
    let all_done = chains.iter().all(|chain| chain.result == "done");
    let status = if all_done { StatusCode::OK } else { StatusCode::ACCEPTED };
    json(status, &RotateAnswer { chains })
}

async fn rotated(chain: &ChainHandle, result: Result<Rotated, NoAnswer>) -> ChainRotated {
    let vault_path = chain.vault_path().to_owned();
    let (result, rotated) = match result {
        Ok(rotated) => ("done", Some(rotated)),
        Err(NoAnswer::NotYet) => ("not_yet", None),
        Err(NoAnswer::Ended) => ("ended", None),
    };
    let last_error = match rotated {
        None => chain.status().await.ok().and_then(|status| status.last_error),
        Some(_) => None,
    };
    ChainRotated {
        vault_path,
        result,
        generation: rotated.as_ref().map(|rotated| rotated.generation.to_string()),
        orphans: rotated.as_ref().map_or(0, |rotated| rotated.orphans),
        db_role: rotated.map(|rotated| rotated.db_role),
        last_error,
    }
}

/// The answer to `/drain`.
#[derive(Debug, Serialize)]
struct DrainAnswer {
    phase: &'static str,
    /// When the sessions that are open by then are cut, counted from the beginning of the drain.
    deadline_seconds: u64,
}

/// Begins the drain, if it has not begun. Its end is the end of this endpoint.
async fn drain(State(admin): State<Arc<Admin>>) -> Response {
    // Where the queue is full, somebody has asked just now.
    let _ = admin.drain.try_send(());
    let mut phase = admin.phase.clone();
    let deadline_seconds = admin.in_effect.borrow().drain.deadline.as_secs();
    // An error is the end of the process.
    let phase = phase.wait_for(|phase| *phase != Phase::Serving).await.map_or("cut", |phase| phase.as_str());
    json(StatusCode::OK, &DrainAnswer { phase, deadline_seconds })
}

/// The answers of all chains, asked side by side, in their order.
async fn ask_all<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    chains: Vec<ChainHandle>,
    ask: impl Fn(ChainHandle) -> F,
) -> Vec<T> {
    let mut asked = JoinSet::new();
    for (index, chain) in chains.into_iter().enumerate() {
        let answer = ask(chain);
        asked.spawn(async move { (index, answer.await) });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Of one request: a rotation takes its time.
pub(crate) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::config::{self, DrainConfig};
    use crate::drain::Drain;

    /// An endpoint without chains, what asks it for the drain, and the drain.
    fn world(control: bool) -> (Router, mpsc::Receiver<()>, Drain) {
        let (drain, asked) = (Drain::default(), mpsc::channel(1));
        let mut config = config::tests::example();
        config.admin.control = control;
        let admin = Admin {
            in_effect: watch::channel(Arc::new(config)).1,
            chains: watch::channel(Vec::new()).1,
            config: watch::channel(reload::Status::default()).1,
            files: Vec::new(),
            roster: Arc::default(),
            loads: Vec::new(),
            metrics: Arc::new(Metrics::new()),
            phase: drain.subscribe(),
            drain: asked.0,
        };
        (router(Arc::new(admin)), asked.1, drain)
    }

    async fn ask(router: &Router, request: &str) -> String {
        http::tests::answer(router.clone(), request).await
    }

    #[tokio::test]
    async fn who_is_kept_out_is_so_on_every_path_and_all_answers_stay_with_who_asked() {
        let (router, ..) = world(true);
        for (method, path) in [("GET", "/"), ("GET", "/status"), ("POST", "/rotate"), ("GET", "/nothing")] {
            for (head, answered) in [("Host: localhost", true), ("Host: example.com", false)] {
                let answer = ask(&router, &format!("{method} {path} HTTP/1.1\r\n{head}\r\n\r\n")).await;
                assert_eq!(
                    !answer.starts_with("HTTP/1.1 403 "),
                    answered,
                    "{method} {path} {head}: {answer}"
                );
                for kept in [
                    "cache-control: no-store",
                    "x-content-type-options: nosniff",
                    "referrer-policy: no-referrer",
                ] {
                    assert!(answer.contains(kept), "{kept}: {answer}");
                }
            }
        }
        let page = ask(&router, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(
            page.contains("content-security-policy: default-src 'none'; ") && page.ends_with("</html>\n"),
            "{page}"
        );
    }

    #[tokio::test]
    async fn path_is_taken_as_it_is_written() {
        let (router, ..) = world(true);
        for path in [
            "//",
            "//status",
            "/./status",
            "/status/",
            "/status/..",
            "/status/../status",
            "/x/../status",
            "/%73tatus",
            "/status%00",
            "/%2e%2e/status",
            "/status%2f",
            "/STATUS",
            "/status;x",
            "/\\status",
            "/..;/status",
            "*",
        ] {
            let answer = ask(&router, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
            assert!(
                answer.starts_with("HTTP/1.1 404 ") || answer.starts_with("HTTP/1.1 400 "),
                "{path}: {answer}"
            );
        }
        for path in ["/status?", "/status?x=//..", "/?a=%00"] {
            let answer = ask(&router, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn log_level_is_one_of_the_five_and_needs_control() {
        for (control, path, status) in [
            (true, "/log?level=debug", 200),
            (true, "/log?level=error", 200),
            (false, "/log?level=debug", 403),
            (true, "/log", 400),
            (true, "/log?", 400),
            (true, "/log?level=", 400),
            (true, "/log?level=DEBUG", 400),
            (true, "/log?level=off", 400),
            (true, "/log?level=debug&level=info", 400),
            (true, "/log?level=%64ebug", 400),
            (true, "/log?x=1&level=debug", 400),
        ] {
            let (router, ..) = world(control);
            let answer = ask(&router, &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn method_is_the_one_of_its_path() {
        let (router, mut asked, _drain) = world(true);
        for (path, methods) in [
            ("/", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
            ("/status", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
            ("/rotate", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
            ("/rotate?close=true", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
            ("/drain", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
            ("/log", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
            ("/quitquitquit", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"]),
        ] {
            for method in methods {
                let answer =
                    ask(&router, &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
                let is_refused =
                    ["400", "403", "404", "405"].iter().any(|code| answer.split(' ').nth(1) == Some(code));
                assert!(is_refused, "{method} {path}: {answer}");
            }
        }
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn control_is_off_unless_it_is_allowed() {
        let (router, mut asked, _drain) = world(false);
        for path in ["/rotate", "/rotate?close=true", "/drain", "/quitquitquit"] {
            let answer = ask(&router, &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("admin.control"), "{answer}");
        }
        let answer = ask(&router, "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"phase\": \"serving\""), "{answer}");
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn drain_is_asked_for_once_and_rotations_end_with_it() {
        let (router, mut asked, drain) = world(true);
        let request = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for (path, status) in [("/rotate", 200), ("/rotate?close=false", 200), ("/rotate?close=yes", 400)] {
            assert!(ask(&router, &request(path)).await.starts_with(&format!("HTTP/1.1 {status} ")), "{path}");
        }
        assert!(ask(&router, &request("/drain").replace("POST", "GET")).await.starts_with("HTTP/1.1 405 "));

        let config = DrainConfig {
            accept_for: Duration::ZERO,
            grace: Duration::ZERO,
            deadline: Duration::from_secs(20),
            strict_exit: false,
        };
        let (drain_request, quit_request) = (request("/drain"), request("/quitquitquit"));
        let (one, other, ()) =
            tokio::join!(ask(&router, &drain_request), ask(&router, &quit_request), async {
                asked.recv().await.unwrap();
                drain.begin(config, Instant::now());
            });
        for answer in [one, other] {
            assert!(answer.contains("\"phase\": \"draining\"") && answer.contains(": 20"), "{answer}");
        }
        assert!(ask(&router, &request("/rotate")).await.starts_with("HTTP/1.1 409 "));
    }
}
