//! Vault behind a path prefix, and mounts and roles with names that mislead.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::http_client;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until, user_of};

/// A reverse proxy that serves OpenBao below `/vault`, as one does that has other programs beside it.
struct Prefixing {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

struct Upstream {
    openbao: String,
    client: reqwest::Client,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Prefixing {
    async fn to(openbao: String) -> Self {
        let seen = Arc::new(Mutex::default());
        let upstream = Arc::new(Upstream { openbao, client: http_client(), seen: Arc::clone(&seen) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(pass).with_state(upstream);
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, seen, _task: task }
    }

    /// The paths that were asked for.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// The request on its way, and the answer back; 404 outside the prefix.
async fn pass(
    State(upstream): State<Arc<Upstream>>,
    method: Method,
    headers: HeaderMap,
    request: Request,
) -> (StatusCode, Bytes) {
    let path = request.uri().path().to_owned();
    upstream.seen.lock().unwrap().push(format!("{method} {path}"));
    let Some(path) = path.strip_prefix("/vault/") else { return (StatusCode::NOT_FOUND, Bytes::new()) };
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let mut request = upstream.client.request(method, format!("{}/{path}", upstream.openbao)).body(body);
    for name in ["x-vault-token", "x-vault-request", "content-type"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.bytes().await.unwrap())
}

#[tokio::test]
async fn case_c32_prefixes_slashes_and_names_that_mislead_are_taken_for_what_they_are() {
    let world = World::shared(WorldOptions::default()).await;
    let openbao = &world.servers.openbao;
    let admin = world.group("c32_admin");
    let (rw, st) = (world.group("app_rw"), world.group("st"));
    let sql = format!(
        "CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD 'c32';
         CREATE ROLE {st} LOGIN IN ROLE {rw};
         GRANT {rw}, {st} TO {admin} WITH ADMIN OPTION"
    );
    world.superuser.batch_execute(&sql).await.unwrap();

    // Mounts: deep; called as what comes behind mounts is. Roles likewise.
    let deep = format!("{}/shared/prod/x", world.group("deep"));
    let creds = [
        (deep.as_str(), "nymeria"),
        ("creds", "static-creds"),
        ("static-creds", "creds"),
        ("static-creds", "Db_App.v2"),
    ];
    let connection = json!({
        "plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": admin, "password": "c32",
        "connection_url": format!(
            "postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/{}?sslmode=disable",
            world.servers.postgres.port(),
            world.database()
        ),
        "username_template": format!("{}c32-{{{{random 20}}}}", world.role_prefix()),
    });
    for mount in [&deep, "creds", "static-creds"] {
        openbao.write(&format!("sys/mounts/{mount}"), json!({ "type": "database" })).await;
        openbao.write(&format!("{mount}/config/pg"), connection.clone()).await;
    }
    let role = json!({
        "db_name": "pg", "default_ttl": "1h", "max_ttl": "24h",
        "creation_statements": format!(
            "CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE {rw};"
        ),
        "revocation_statements": "ALTER ROLE \"{{name}}\" NOLOGIN;",
    });
    let mut paths = vec!["creds/static-creds/creds".to_owned()];
    for (mount, name) in creds {
        openbao.write(&format!("{mount}/roles/{name}"), role.clone()).await;
        paths.push(format!("{mount}/creds/{name}"));
    }
    let fixed = json!({ "db_name": "pg", "username": st, "rotation_period": "24h" });
    openbao.write("creds/static-roles/creds", fixed).await;
    let right = |path: &String| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n");
    let rights: String = paths.iter().map(right).collect();
    let policy = world.group("c32");
    openbao.write(&format!("sys/policies/acl/{policy}"), json!({ "policy": rights })).await;
    let auth = format!("{}/prod-1", world.group("k8s"));
    openbao.write(&format!("sys/auth/{auth}"), json!({ "type": "kubernetes" })).await;
    openbao.write(&format!("auth/{auth}/config"), world.api_server()).await;
    let login = json!({
        "bound_service_account_names": "web", "bound_service_account_namespaces": "default",
        "token_policies": policy, "token_ttl": "1h",
    });
    openbao.write(&format!("auth/{auth}/role/web"), login).await;

    let proxy = Prefixing::to(openbao.address()).await;
    let upstream = world.servers.postgres.url(&world.database());
    let settings = format!(
        "[vault]\naddress = \"http://{}/vault/v1/\"\n\
         [vault.login]\nrole = \"web\"\nmount = \"/{auth}/\"\njwt_file = {:?}\n\
         [listen]\naddresses = [\"localhost:0\"]\nconnect_wait = \"2m\"\n\
         [http]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n",
        proxy.address,
        world.jwt_file(),
    );
    let route = |(number, path): (usize, &String)| {
        format!("[[route]]\nuser = \"user{number}\"\nupstream = {upstream:?}\nvault_path = \"/{path}/\"\n")
    };
    let routes: String = paths.iter().enumerate().map(route).collect();
    let pglease = pglease_with(&(settings + &routes)).await;

    let database = world.database();
    for (number, path) in paths.iter().enumerate() {
        let session = pglease.connect_as(&database, &format!("user{number}")).await.unwrap();
        let user = user_of(&session).await;
        let is_right = if number == 0 { user == st } else { user.starts_with(&world.role_prefix()) };
        assert!(is_right, "{path}: {user}");
        session.rows("SELECT count(*) FROM t").await;
    }

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert_eq!(world.leased_roles().await.len(), creds.len());
    until(async || world.living_roles().await.is_empty()).await;
    let seen = proxy.seen();
    let is_odd =
        |path: &&String| path.contains("//") || !path.contains(" /vault/v1/") || path.contains("/v1/v1");
    assert_eq!(seen.iter().find(is_odd), None);
    for right in [
        format!("POST /vault/v1/auth/{auth}/login"),
        "GET /vault/v1/creds/creds/static-creds".to_owned(),
        "GET /vault/v1/creds/static-creds/creds".to_owned(),
        "POST /vault/v1/auth/token/revoke-self".to_owned(),
    ] {
        assert!(seen.contains(&right), "{right}: {seen:#?}");
    }
}
