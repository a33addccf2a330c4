//! Against an API server that keeps two objects, over TLS.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::Ca;
use crate::telemetry::Causes;

/// What the API server keeps.
#[derive(Default)]
struct Objects {
    secret: Option<Value>,
    webhook: Option<Value>,
    version: u64,
    /// Writes that others come before.
    conflicts: usize,
    requests: Vec<String>,
}

type Shared = Arc<Mutex<Objects>>;

impl Objects {
    fn stamp(&mut self, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object
    }

    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> Response {
        self.requests.push(format!("{method} {path}"));
        let is_webhook = path == "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/pglease";
        let object = if is_webhook { &self.webhook } else { &self.secret }.clone();
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        if *method != Method::GET && self.conflicts > 0 {
            self.conflicts -= 1;
            return StatusCode::CONFLICT.into_response();
        }
        match (method.as_str(), object) {
            ("GET", Some(object)) => object.to_string().into_response(),
            ("POST", None) if path == "api/v1/namespaces/pglease/secrets" => {
                self.secret = Some(self.stamp(body));
                StatusCode::CREATED.into_response()
            }
            ("PUT", Some(object)) if object["metadata"] == body["metadata"] => {
                self.secret = Some(self.stamp(body));
                StatusCode::OK.into_response()
            }
            ("PATCH", Some(mut object)) => {
                let [version, operations @ ..] = &body.as_array().unwrap()[..] else { panic!("{body}") };
                if version["value"] != object["metadata"]["resourceVersion"] {
                    return StatusCode::CONFLICT.into_response();
                }
                for operation in operations {
                    let path = operation["path"].as_str().unwrap();
                    let (parent, leaf) = path.rsplit_once('/').unwrap();
                    object.pointer_mut(parent).unwrap()[leaf] = operation["value"].clone();
                }
                self.webhook = Some(self.stamp(object));
                StatusCode::OK.into_response()
            }
            ("POST" | "PUT", _) => StatusCode::CONFLICT.into_response(),
            _ => (StatusCode::NOT_FOUND, json!({ "kind": "Status" }).to_string()).into_response(),
        }
    }
}

struct World {
    objects: Shared,
    config: CertificateConfig,
    dir: TempDir,
    _server: JoinSet<()>,
}

/// With a webhook that has two entries.
async fn world() -> World {
    let webhook = json!({
        "metadata": { "name": "pglease", "resourceVersion": "0" },
        "webhooks": [
            { "name": "a", "clientConfig": { "service": {} } },
            { "name": "b", "clientConfig": { "service": {}, "caBundle": "" } },
        ],
    });
    let objects = Shared::default();
    objects.lock().unwrap().webhook = Some(webhook);
    let dir = tempfile::tempdir().unwrap();
    let issued = issue("localhost", SystemTime::now()).unwrap();
    std::fs::write(dir.path().join("ca.crt"), &issued.ca).unwrap();
    std::fs::write(dir.path().join("token"), "of-the-pod\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = CertificateConfig {
        namespace: "pglease".to_owned(),
        service: "injector".to_owned(),
        secret: "tls".to_owned(),
        webhook: "pglease".to_owned(),
        api_server: format!("https://localhost:{}", listener.local_addr().unwrap().port()),
        token_file: dir.path().join("token"),
        ca: Ca::File(dir.path().join("ca.crt")),
    };
    let mut server = JoinSet::new();
    server.spawn(serve(listener, issued, Arc::clone(&objects)));
    World { objects, config, dir, _server: server }
}

async fn serve(listener: TcpListener, issued: Issued, objects: Shared) {
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let router = Router::new().route("/{*path}", any(answer)).with_state(objects);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper_util::service::TowerToHyperService::new(router);
            let stream = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
        });
    }
}

async fn answer(
    State(objects): State<Shared>,
    Path(path): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    if headers.get("authorization").is_none_or(|token| token != "Bearer of-the-pod") {
        let status = json!({ "message": "secrets \"tls\" is forbidden:\nno token" });
        return (StatusCode::FORBIDDEN, status.to_string()).into_response();
    }
    let method = request.method().clone();
    let body: Bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    objects.lock().unwrap().answer(&method, &path, &body)
}

impl World {
    fn bundles(&self) -> Vec<Vec<CertificateDer<'static>>> {
        let objects = self.objects.lock().unwrap();
        let webhooks = objects.webhook.as_ref().unwrap()["webhooks"].as_array().unwrap();
        webhooks.iter().map(|webhook| of_base64(&webhook["clientConfig"]["caBundle"])).collect()
    }

    fn ca(&self) -> Vec<CertificateDer<'static>> {
        of_base64(&self.objects.lock().unwrap().secret.as_ref().unwrap()["data"]["ca.crt"])
    }

    /// As if what is there had been made so long ago.
    fn age(&self, age: Duration) {
        let issued = issue("injector.pglease.svc", SystemTime::now() - age).unwrap();
        let secret = secret_with(None, &self.config, &issued);
        let mut objects = self.objects.lock().unwrap();
        objects.secret = Some(objects.stamp(secret));
        let mut webhook = objects.webhook.take().unwrap();
        for entry in webhook["webhooks"].as_array_mut().unwrap() {
            entry["clientConfig"]["caBundle"] = BASE64.encode(&issued.ca).into();
        }
        objects.webhook = Some(objects.stamp(webhook));
    }
}

fn of_base64(text: &Value) -> Vec<CertificateDer<'static>> {
    parse(&BASE64.decode(text.as_str().unwrap()).unwrap())
}

const DAY: Duration = Duration::from_hours(24);

#[tokio::test]
async fn made_once_and_then_left_alone() {
    let world = world().await;
    let done = ensure(&world.config).await.unwrap();
    assert_eq!(done, Done { secret: Secret::Created, bundles: 2 });
    assert_eq!(world.bundles(), [world.ca(), world.ca()]);
    let secret = world.objects.lock().unwrap().secret.clone().unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert_eq!(secret["data"].as_object().unwrap().len(), 3);

    let version = world.objects.lock().unwrap().version;
    assert_eq!(ensure(&world.config).await.unwrap(), Done { secret: Secret::Kept, bundles: 0 });
    assert_eq!(world.objects.lock().unwrap().version, version);
}

#[tokio::test]
async fn renewal_keeps_the_old_ca_until_nobody_is_shown_its_certificate() {
    let world = world().await;
    world.age(DAY * 300);
    let old = world.ca();
    let reason = "its certificate ends within a third of its life";
    let done = ensure(&world.config).await.unwrap();
    assert_eq!(done, Done { secret: Secret::Renewed(reason), bundles: 2 });
    let both = [world.ca(), old].concat();
    assert_eq!(world.bundles(), [both.clone(), both.clone()]);
    // In the order of the writes, the CA is believed before its certificate is shown.
    let requests = world.objects.lock().unwrap().requests.join("\n");
    assert!(requests.find("PATCH") < requests.find("PUT"), "{requests}");

    assert_eq!(ensure(&world.config).await.unwrap(), Done { secret: Secret::Kept, bundles: 0 });
    assert_eq!(world.bundles(), [both.clone(), both.clone()]);

    // Later, nobody has the certificate before it.
    world.age(DAY);
    world.objects.lock().unwrap().webhook.as_mut().unwrap()["webhooks"][1]["clientConfig"]["caBundle"] =
        BASE64.encode(pem(&both)).into();
    assert_eq!(ensure(&world.config).await.unwrap(), Done { secret: Secret::Kept, bundles: 1 });
    assert_eq!(world.bundles(), [world.ca(), world.ca()]);
}

#[tokio::test]
async fn what_does_not_verify_is_replaced_with_its_metadata_kept() {
    let world = world().await;
    let secret = json!({
        "type": "kubernetes.io/tls",
        "metadata": { "name": "tls", "labels": { "of": "helm" }, "resourceVersion": "7" },
        "data": { "tls.crt": "bm9uc2Vuc2U=", "tls.key": 1 },
    });
    world.objects.lock().unwrap().secret = Some(secret);
    let done = ensure(&world.config).await.unwrap();
    assert_eq!(done.secret, Secret::Renewed("it holds no certificate"));
    let secret = world.objects.lock().unwrap().secret.clone().unwrap();
    assert_eq!(secret["metadata"]["labels"]["of"], "helm");
}

#[tokio::test]
async fn two_at_the_same_time_agree_on_one() {
    for conflicts in [0, 1, 2] {
        let world = world().await;
        world.objects.lock().unwrap().conflicts = conflicts;
        let (one, other) = tokio::join!(ensure(&world.config), ensure(&world.config));
        one.unwrap();
        other.unwrap();
        for bundle in world.bundles() {
            assert!(bundle.contains(&world.ca()[0]));
        }
        assert_eq!(ensure(&world.config).await.unwrap().secret, Secret::Kept);
    }
}

#[tokio::test]
async fn what_is_missing_or_refused_is_named() {
    let world = world().await;
    let said = async |config: &CertificateConfig| {
        let error = ensure(config).await.unwrap_err();
        Causes(&error).to_string()
    };
    let other = CertificateConfig { webhook: "other".to_owned(), ..world.config.clone() };
    assert_eq!(
        said(&other).await,
        "there is no MutatingWebhookConfiguration \"other\"; create it first, or name another"
    );

    std::fs::write(&world.config.token_file, "of-another").unwrap();
    let error = said(&world.config).await;
    assert!(error.ends_with("403 Forbidden: secrets \"tls\" is forbidden: no token"), "{error}");
    assert!(
        error.contains("/api/v1/namespaces/pglease/secrets/tls") && !error.contains("of-another"),
        "{error}"
    );
    std::fs::write(&world.config.token_file, "a\nb").unwrap();
    assert!(said(&world.config).await.contains("--token-file"));

    let strangers = issue("localhost", SystemTime::now()).unwrap();
    std::fs::write(world.dir.path().join("ca.crt"), &strangers.ca).unwrap();
    std::fs::write(&world.config.token_file, "of-the-pod").unwrap();
    let error = said(&world.config).await;
    assert!(error.contains("GET https://localhost:") && error.contains("certificate"), "{error}");

    world.objects.lock().unwrap().conflicts = 100;
    std::fs::remove_file(&world.config.token_file).unwrap();
    assert!(said(&world.config).await.contains("reading the token of --token-file"));
}

#[tokio::test]
async fn conflicts_without_end_end() {
    let world = world().await;
    world.objects.lock().unwrap().conflicts = 100;
    let error = ensure(&world.config).await.unwrap_err();
    assert!(matches!(error, CertificateError::Conflicts));
}
