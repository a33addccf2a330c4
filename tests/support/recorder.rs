//! Stands between pglease and its Vault and writes down what each says to the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A proxy on a free port. Belongs to the runtime that it is started on, and ends with it or on drop.
pub(crate) struct Recorder {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    vault: String,
    http: reqwest::Client,
    exchanges: Mutex<Vec<Exchange>>,
    instead: Mutex<Option<Instead>>,
    hold: watch::Sender<Hold>,
}

/// Requests for one path that wait.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    path: Option<&'static str>,
    /// So many have come.
    met: usize,
}

/// What is answered to requests for one path, which Vault does not see.
#[derive(Clone, Debug)]
pub(crate) struct Instead {
    pub(crate) path: String,
    pub(crate) status: u16,
    /// Of a redirect; else empty.
    pub(crate) location: String,
    pub(crate) body: Value,
}

/// One request and its answer, with bodies where they are JSON.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) method: Method,
    /// Without `/v1/`.
    pub(crate) path: String,
    pub(crate) body: Value,
    pub(crate) status: u16,
    pub(crate) answer: Value,
}

impl Recorder {
    /// One in front of this Vault (`http://…`).
    pub(crate) async fn before(vault: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            vault: vault.to_owned(),
            http: super::http_client(),
            exchanges: Mutex::default(),
            instead: Mutex::default(),
            hold: watch::Sender::default(),
        });
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, _server: server }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers this itself from here; with `None` it passes everything on.
    pub(crate) fn answer(&self, instead: Option<Instead>) {
        *self.shared.instead.lock().unwrap() = instead;
    }

    /// Keeps requests for this path from here on, and passes them on when it is told `None`.
    pub(crate) fn hold(&self, path: Option<&'static str>) {
        self.shared.hold.send_replace(Hold { path, met: 0 });
    }

    /// Returns when a request is held.
    pub(crate) async fn has_held(&self) {
        let mut hold = self.shared.hold.subscribe();
        let met = hold.wait_for(|hold| hold.met > 0);
        tokio::time::timeout(super::PATIENCE, met).await.expect("a request that is held").unwrap();
    }

    /// What was said so far.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.shared.exchanges.lock().unwrap().clone()
    }
}

impl Exchange {
    /// What pglease calls it, as the label `op` of its metrics.
    pub(crate) fn operation(&self) -> &'static str {
        operation(&self.path, &self.body)
    }
}

/// What pglease calls a request for this path.
pub(crate) fn operation(path: &str, body: &Value) -> &'static str {
    match path {
        "auth/token/lookup-self" => "lookup_self",
        "auth/token/renew-self" => "renew_self",
        "auth/token/revoke-self" => "revoke_self",
        "sys/leases/renew" if body["increment"] == 1 => "expire",
        "sys/leases/renew" => "renew",
        "sys/leases/lookup" => "lookup",
        "sys/wrapping/unwrap" => "unwrap",
        _ if path.starts_with("auth/") => "login",
        _ if path.contains("/static-creds/") => "static_creds",
        _ => "creds",
    }
}

/// The shape of an answer: every text is `"…"`, every number 0, every list empty; nothing of a secret is left.
pub(crate) fn shape(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(yes) => Value::Bool(*yes),
        Value::Number(_) => 0.into(),
        Value::String(_) => "…".into(),
        Value::Array(_) => Value::Array(Vec::new()),
        Value::Object(fields) => {
            let fields: BTreeMap<_, _> =
                fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect();
            Value::Object(Map::from_iter(fields))
        }
    }
}

async fn pass_on(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().trim_start_matches("/v1/");
    if shared.hold.borrow().path == Some(path) {
        shared.hold.send_modify(|hold| hold.met += 1);
        shared.hold.subscribe().wait_for(|hold| hold.path != Some(path)).await.unwrap();
    }
    let instead = shared.instead.lock().unwrap().clone();
    if let Some(Instead { status, location, body, .. }) = instead.filter(|instead| path == instead.path) {
        let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        return response.header("location", location).body(Body::from(body.to_string())).unwrap();
    }
    let request = shared.http.request(method.clone(), format!("{}{uri}", shared.vault));
    let request = headers
        .iter()
        .filter(|(name, _)| name.as_str() != "host")
        .fold(request, |request, (name, value)| request.header(name.as_str(), value.as_bytes()));
    let answer = request.body(body.clone()).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.bytes().await.unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_default();
    shared.exchanges.lock().unwrap().push(Exchange {
        method,
        path: path.to_owned(),
        body: json(&body),
        status,
        answer: json(&text),
    });
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    response.header("content-type", "application/json").body(Body::from(text)).unwrap()
}
