//! Stands for the Kubernetes API server: reviews the tokens of service accounts, and makes such tokens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the responder says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Yes to a token whose `exp` is to come, no to others.
    #[default]
    Honest,
    /// No, whatever the token.
    No,
    /// This HTTP status and no review.
    Status(u16),
}

/// A responder on a free port. Has a thread of its own, so that it serves every runtime of the process; ends on
/// drop.
pub(crate) struct TokenReview {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Shared {
    answer: Mutex<Answer>,
    reviews: AtomicUsize,
}

impl TokenReview {
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let stop = CancellationToken::new();

        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .with_state(Arc::clone(&shared));
        let stopped = stop.clone();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(stopped.run_until_cancelled(async {
                axum::serve(TcpListener::from_std(listener).unwrap(), router).await.unwrap();
            }));
        });
        Self { address, shared, _stop: stop.drop_guard() }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Says `answer` from here.
    pub(crate) fn set_answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// How many tokens it has been asked about.
    pub(crate) fn reviews(&self) -> usize {
        self.shared.reviews.load(Ordering::Relaxed)
    }

    /// A token of a service account, valid for `seconds` (for past ones, if negative). Nobody checks its
    /// signature.
    pub(crate) fn jwt(namespace: &str, service_account: &str, seconds: i64) -> String {
        Self::jwt_for("k8s", namespace, service_account, seconds)
    }

    /// The same for an audience.
    pub(crate) fn jwt_for(audience: &str, namespace: &str, service_account: &str, seconds: i64) -> String {
        let now = unix_now();
        let claims = json!({
            "aud": [audience],
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "iat": now,
            "nbf": now.min(now + seconds),
            "exp": now + seconds,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": { "name": service_account, "uid": "0d0f0f8e-1111-4222-8333-444455556666" },
            },
        });
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = encode(br#"{"alg":"RS256","typ":"JWT"}"#);
        format!("{header}.{}.{}", encode(claims.to_string().as_bytes()), encode(&[b'x'; 256]))
    }
}

async fn review(State(shared): State<Arc<Shared>>, request: Bytes) -> (StatusCode, String) {
    shared.reviews.fetch_add(1, Ordering::Relaxed);
    let answer = *shared.answer.lock().unwrap();
    if let Answer::Status(status) = answer {
        return (
            StatusCode::from_u16(status).unwrap(),
            json!({ "kind": "Status", "code": status }).to_string(),
        );
    }
    let request: Value = serde_json::from_slice(&request).unwrap();
    let claims = claims(request["spec"]["token"].as_str().unwrap()).unwrap_or_default();
    let is_valid = claims["exp"].as_i64().is_some_and(|end| end > unix_now())
        && is_for_one_of(&claims["aud"], &request["spec"]["audiences"]);
    let status = if is_valid && answer == Answer::Honest {
        json!({
            "authenticated": true,
            "audiences": claims["aud"],
            "user": { "username": claims["sub"], "uid": claims["kubernetes.io"]["serviceaccount"]["uid"] },
        })
    } else {
        json!({ "authenticated": false, "error": "token has expired or is not ours" })
    };
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status });
    (StatusCode::CREATED, review.to_string())
}

/// Whether the token is meant for one of these audiences; for anybody, where none is asked for.
fn is_for_one_of(audience: &Value, wanted: &Value) -> bool {
    let (Some(audience), Some(wanted)) = (audience.as_array(), wanted.as_array()) else { return true };
    wanted.is_empty() || wanted.iter().any(|wanted| audience.contains(wanted))
}

/// What the token says of itself.
pub(super) fn claims(jwt: &str) -> Option<Value> {
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok()
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs().try_into().unwrap()
}
