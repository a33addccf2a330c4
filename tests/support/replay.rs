//! A Vault that gives OpenBao's recorded answers, with HashiCorp Vault's differences laid over them. The credentials
//! that it gives are real: it makes and ends the roles in a world's database.
//!
//! The answers are `tests/recorded/openbao.json`; `tests/e2e/vault.rs` holds them against a live OpenBao.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::postgres::Database;
use super::recorder::operation;
use super::tokenreview::claims;
use super::world::World;

/// Where Vault 1.21 (Community) answers otherwise than OpenBao 2.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Every 200 names the type of the mount that gave it.
    MountType,
    /// The lookup of a lease does not say the path that it was read from.
    LookupWithoutPath,
    /// A token has 95 characters: `hvs.` and a protobuf in base64.
    LongTokens,
    /// renew-self does not have the login's JWT reviewed again: a token may outlive it.
    JwtNotReviewed,
    /// The Community edition has no namespaces, and ignores the header.
    NamespaceIgnored,
    /// In the last second before its maximum a token's renew-self is 500, while everything else still works.
    RenewalPastMaximum,
    /// A body that is not JSON is 500, not 400.
    MalformedBody,
    /// A standby whose leader is dead has nothing to say itself: lookup-self is 307 as everything else.
    LookupRedirected,
}

/// All of them: Vault.
pub(crate) const VAULT: &[Difference] = &[
    Difference::MountType,
    Difference::LookupWithoutPath,
    Difference::LongTokens,
    Difference::JwtNotReviewed,
    Difference::NamespaceIgnored,
    Difference::RenewalPastMaximum,
    Difference::MalformedBody,
    Difference::LookupRedirected,
];

/// What the replayed Vault was set up for; durations in seconds.
pub(crate) struct Rules {
    pub(crate) differences: &'static [Difference],
    /// `default_ttl` and `max_ttl`.
    pub(crate) lease: (u64, u64),
    pub(crate) token: (u64, u64),
}

/// The server, on a free port. Belongs to the runtime that it is started on, and ends with it or on drop.
pub(crate) struct Replay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    rules: Rules,
    recorded: Value,
    leader_is_dead: AtomicBool,
    /// Nobody is there.
    dead_leader: SocketAddr,
    database: Database,
    role_prefix: String,
    groups: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requests: Vec<&'static str>,
    tokens: HashMap<String, Issued>,
    leases: HashMap<String, Lease>,
}

struct Lease {
    issued: Issued,
    token: String,
    role: String,
}

/// A token or a lease.
#[derive(Clone, Copy)]
struct Issued {
    at: Instant,
    /// `exp` of the JWT, of a token.
    jwt_expiry: u64,
}

impl Replay {
    /// One for pods of `world`, which it takes the place of the OpenBao for.
    pub(crate) async fn start(world: &World<'_>, rules: Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            rules,
            recorded: serde_json::from_str(RECORDED).unwrap(),
            leader_is_dead: AtomicBool::new(false),
            dead_leader: ([127, 0, 0, 1], super::free_ports(1)).into(),
            database: world.servers.postgres.connect(&world.database()).await,
            role_prefix: world.role_prefix(),
            groups: format!("{}, {}", world.group("app_rw"), world.group("app_owner")),
            state: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, _server: server }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From here it is a standby that names a leader who does not answer, or the leader again.
    pub(crate) fn lose_leader(&self, is_dead: bool) {
        self.shared.leader_is_dead.store(is_dead, Ordering::Relaxed);
    }

    /// How many requests of this operation have come.
    pub(crate) fn count(&self, operation: &str) -> usize {
        self.shared.count(operation)
    }
}

impl Shared {
    fn count(&self, operation: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|&&request| request == operation).count()
    }

    fn differs(&self, difference: Difference) -> bool {
        self.rules.differences.contains(&difference)
    }

    /// The recorded answer to `operation` with these values in it.
    fn replay(&self, operation: &str, values: &[(&str, Value)]) -> (u16, Value) {
        let recorded = &self.recorded[operation];
        let (status, mut answer) = (recorded["status"].as_u64().unwrap(), recorded["answer"].clone());
        for (pointer, value) in values {
            *answer.pointer_mut(pointer).unwrap_or_else(|| panic!("{operation} has no {pointer}")) =
                value.clone();
        }
        if operation == "lookup" && self.differs(Difference::LookupWithoutPath) {
            answer["data"].as_object_mut().unwrap().remove("path").unwrap();
        }
        if status == 200 && self.differs(Difference::MountType) {
            answer["mount_type"] = json!("database");
        }
        (status.try_into().unwrap(), answer)
    }

    /// What is granted now, and what is left until the maximum.
    fn granted(issued: Issued, (ttl, max_ttl): (u64, u64)) -> (u64, Duration) {
        let left = Duration::from_secs(max_ttl).saturating_sub(issued.at.elapsed());
        (ttl.min(left.as_secs()), left)
    }

    fn log_in(&self, body: &Value) -> (u16, Value) {
        let Some(claims) = body["jwt"].as_str().and_then(claims) else { return refused(403) };
        let letters = if self.differs(Difference::LongTokens) { 91 } else { 24 };
        let rest: String = std::iter::repeat_with(fastrand::alphanumeric).take(letters).collect();
        let token = if letters == 91 { format!("hvs.{rest}") } else { format!("s.{rest}") };
        let jwt_expiry = claims["exp"].as_u64().unwrap();
        self.state.lock().unwrap().tokens.insert(token.clone(), Issued { at: Instant::now(), jwt_expiry });
        let values = [
            ("/auth/client_token", json!(token)),
            ("/auth/lease_duration", json!(self.rules.token.0)),
            ("/auth/token_type", json!("service")),
        ];
        self.replay("login", &values)
    }

    async fn read_creds(&self, token: &str, path: &str) -> (u16, Value) {
        let number = self.count("creds");
        let role = format!("{}replayed-{number}", self.role_prefix);
        let sql = format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'replayed' IN ROLE {}", self.groups);
        self.database.batch_execute(&sql).await.unwrap();
        let lease = format!("{path}/{number}");
        let issued = Issued { at: Instant::now(), jwt_expiry: 0 };
        let made = Lease { issued, token: token.to_owned(), role: role.clone() };
        self.state.lock().unwrap().leases.insert(lease.clone(), made);
        let values = [
            ("/lease_id", json!(lease)),
            ("/lease_duration", json!(self.rules.lease.0)),
            ("/data/username", json!(role)),
            ("/data/password", json!("replayed")),
        ];
        self.replay("creds", &values)
    }

    /// The lease of this id.
    fn issued(&self, lease: &str) -> Option<Issued> {
        self.state.lock().unwrap().leases.get(lease).map(|lease| lease.issued)
    }

    fn renew_lease(&self, lease: &str) -> (u16, Value) {
        let Some(issued) = self.issued(lease) else { return refused(400) };
        let (ttl, _) = Self::granted(issued, self.rules.lease);
        if ttl == 0 {
            return refused(400);
        }
        self.replay("renew", &[("/lease_id", json!(lease)), ("/lease_duration", json!(ttl))])
    }

    fn look_up_lease(&self, lease: &str) -> (u16, Value) {
        let Some(issued) = self.issued(lease) else { return refused(400) };
        let (ttl, _) = Self::granted(issued, self.rules.lease);
        self.replay("lookup", &[("/data/id", json!(lease)), ("/data/ttl", json!(ttl))])
    }

    fn renew_self(&self, token: Issued) -> (u16, Value) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        if now > token.jwt_expiry && !self.differs(Difference::JwtNotReviewed) {
            return refused(403);
        }
        let (ttl, left) = Self::granted(token, self.rules.token);
        if left < Duration::from_secs(1) {
            return refused(if self.differs(Difference::RenewalPastMaximum) { 500 } else { 403 });
        }
        self.replay(
            "renew_self",
            &[("/auth/lease_duration", json!(ttl)), ("/auth/token_type", json!("service"))],
        )
    }

    /// What was read with the token ends with it.
    async fn revoke_self(&self, token: &str) -> (u16, Value) {
        let ended: Vec<_> = {
            let mut state = self.state.lock().unwrap();
            state.tokens.remove(token);
            state.leases.extract_if(|_, lease| lease.token == token).map(|(_, lease)| lease.role).collect()
        };
        for role in ended {
            self.database.batch_execute(&format!("ALTER ROLE \"{role}\" NOLOGIN")).await.unwrap();
        }
        self.replay("revoke_self", &[])
    }

    async fn answer(&self, path: &str, headers: &HeaderMap, body: &[u8]) -> (u16, Value) {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (token, namespace) = (header("x-vault-token"), header("x-vault-namespace"));
        let Ok(body) = serde_json::from_slice::<Value>(if body.is_empty() { b"{}" } else { body }) else {
            return refused(if self.differs(Difference::MalformedBody) { 500 } else { 400 });
        };
        let operation = operation(path, &body);
        self.state.lock().unwrap().requests.push(operation);
        if !namespace.is_empty() && !self.differs(Difference::NamespaceIgnored) {
            return refused(404);
        }
        let is_local = operation == "lookup_self" && !self.differs(Difference::LookupRedirected);
        if self.leader_is_dead.load(Ordering::Relaxed) && !is_local {
            return (307, Value::Null);
        }
        let known = self.state.lock().unwrap().tokens.get(token).copied();
        let lease = body["lease_id"].as_str().unwrap_or_default();
        match (operation, known) {
            ("login", _) => self.log_in(&body),
            (_, None) => refused(403),
            ("lookup_self", Some(issued)) => {
                let (ttl, _) = Self::granted(issued, self.rules.token);
                self.replay("lookup_self", &[("/data/id", json!(token)), ("/data/ttl", json!(ttl))])
            }
            ("creds", _) => self.read_creds(token, path).await,
            ("renew", _) => self.renew_lease(lease),
            ("lookup", _) => self.look_up_lease(lease),
            ("renew_self", Some(issued)) => self.renew_self(issued),
            ("revoke_self", _) => self.revoke_self(token).await,
            (other, _) => panic!("{other} is not replayed"),
        }
    }
}

async fn answer(
    extract::State(shared): extract::State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().trim_start_matches("/v1/");
    let (status, answer) = shared.answer(path, &headers, &body).await;
    let response = Response::builder().status(status).header("content-type", "application/json");
    let (response, text) = match status {
        307 => (response.header("location", format!("http://{}{uri}", shared.dead_leader)), String::new()),
        204 => (response, String::new()),
        _ => (response, answer.to_string()),
    };
    response.body(Body::from(text)).unwrap()
}

fn refused(status: u16) -> (u16, Value) {
    (status, json!({ "errors": ["as recorded"] }))
}

const RECORDED: &str = include_str!("../recorded/openbao.json");
