//! A tenant of the control plane: a namespace, and a world whose OpenBao asks the API server about its tokens.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::api::Api;
use crate::chart;
use crate::control_plane::ControlPlane;
use crate::node::Node;
use crate::patience::until;
use crate::support::world::{World, WorldOptions};

/// A namespace with the ServiceAccount `web`, whose tokens for the audience `vault` may read the credentials `db-app` of
/// the world. What it made stays until the servers end.
pub(crate) struct Site {
    pub(crate) control_plane: &'static ControlPlane,
    pub(crate) api: Api,
    pub(crate) namespace: String,
    pub(crate) world: World<'static>,
}

impl Site {
    pub(crate) async fn open() -> Self {
        Self::with(WorldOptions::default()).await
    }

    pub(crate) async fn with(options: WorldOptions) -> Self {
        let (control_plane, world) = tokio::join!(ControlPlane::shared(), World::shared(options));
        let api = control_plane.api();
        let namespace = create_namespace(&api).await;
        let site = Self { control_plane, api, namespace, world };
        site.create_account("web").await;
        site.set_up_login().await;
        site.publish_authorities().await;
        site
    }

    /// Path of a collection of the namespace, of the core group (`pods`) or another (`apps/deployments`).
    pub(crate) fn path(&self, collection: &str) -> String {
        path_in(&self.namespace, collection)
    }

    pub(crate) async fn create(&self, collection: &str, object: Value) -> Value {
        self.api.create(&self.path(collection), &object).await
    }

    pub(crate) async fn create_account(&self, name: &str) {
        self.create("serviceaccounts", json!({ "metadata": { "name": name } })).await;
    }

    /// The namespace's pods that the label `app` says are of `app`, once there are `count`.
    pub(crate) async fn pods_of(&self, app: &str, count: usize) -> Vec<Value> {
        let path = format!("{}?labelSelector=app%3D{app}", self.path("pods"));
        let mut pods = Vec::new();
        until(async || {
            pods = self.api.list(&path).await;
            pods.len() == count
        })
        .await;
        pods
    }

    /// A node for the pods of the namespace.
    pub(crate) fn node(&self) -> Node {
        Node::of(self.control_plane, &self.namespace)
    }

    /// A token of a ServiceAccount of the namespace, bound to a pod where one is given.
    pub(crate) async fn token(&self, account: &str, audience: &str, pod: Option<&Value>) -> String {
        let spec = json!({ "audiences": [audience], "expirationSeconds": 600 });
        token(&self.api, &self.namespace, account, spec, pod).await
    }

    /// Status and answer of OpenBao to a login with this token.
    pub(crate) async fn login(&self, jwt: &str) -> (u16, Value) {
        let path = self.world.api(&format!("auth/{}/login", self.world.auth()));
        let body = json!({ "role": "web", "jwt": jwt });
        self.world.servers.openbao.call(Method::POST, &path, "", Some(body)).await
    }

    /// Waits until no credential of the world can log in: OpenBao accepts a revocation before it does it.
    pub(crate) async fn until_revoked(&self) {
        until(async || self.world.living_roles().await.is_empty()).await;
    }

    async fn set_up_login(&self) {
        let auth = self.world.auth();
        let config = json!({
            "kubernetes_host": self.control_plane.url(),
            "kubernetes_ca_cert": self.control_plane.ca(),
            "token_reviewer_jwt": reviewer(&self.api).await,
            "disable_local_ca_jwt": true,
        });
        self.world.write(&format!("auth/{auth}/config"), config).await;
        let role = format!("auth/{auth}/role/web");
        let mut web = self.world.servers.openbao.read(&self.world.api(&role)).await;
        web["bound_service_account_namespaces"] = json!([self.namespace]);
        web["audience"] = json!("vault");
        self.world.write(&role, web).await;
    }

    /// ConfigMap `postgres-ca` and ConfigMap `vault-ca`: who vouches for the servers.
    async fn publish_authorities(&self) {
        let servers = self.world.servers;
        self.publish("postgres-ca", &servers.postgres.ca_file()).await;
        self.publish("vault-ca", &servers.openbao.ca_file()).await;
    }

    async fn publish(&self, name: &str, file: &Path) {
        let data = json!({ "ca.crt": fs::read_to_string(file).unwrap() });
        self.create("configmaps", json!({ "metadata": { "name": name }, "data": data })).await;
    }
}

/// Path of a collection of a namespace, or of something in it: `pods/web`, `apps/deployments`.
pub(crate) fn path_in(namespace: &str, path: &str) -> String {
    match path.split_once('/') {
        Some((group @ ("apps" | "batch"), path)) => format!("/apis/{group}/v1/namespaces/{namespace}/{path}"),
        _ => format!("/api/v1/namespaces/{namespace}/{path}"),
    }
}

/// A new one, in which pods can be made: its ServiceAccount and its CA are there.
pub(crate) async fn create_namespace(api: &Api) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let name = format!("site-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    api.create("/api/v1/namespaces", &json!({ "metadata": { "name": name } })).await;
    until(async || {
        api.has(&path_in(&name, "serviceaccounts/default")).await
            && api.has(&path_in(&name, "configmaps/kube-root-ca.crt")).await
    })
    .await;
    name
}

/// Asks the API server for a token of the account.
pub(crate) async fn token(
    api: &Api,
    namespace: &str,
    account: &str,
    mut spec: Value,
    pod: Option<&Value>,
) -> String {
    if let Some(pod) = pod {
        let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
        spec["boundObjectRef"] = json!({ "kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid });
    }
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let path = path_in(namespace, &format!("serviceaccounts/{account}/token"));
    let answer = api.create(&path, &request).await;
    answer["status"]["token"].as_str().unwrap().to_owned()
}

/// The token that OpenBao reviews others with: of an account that may do nothing else.
pub(crate) async fn reviewer(api: &Api) -> &'static str {
    static TOKEN: OnceCell<String> = OnceCell::const_new();
    TOKEN.get_or_init(|| create_reviewer(api)).await
}

async fn create_reviewer(api: &Api) -> String {
    let namespace = create_namespace(api).await;
    let account = json!({ "metadata": { "name": "openbao" } });
    api.create(&path_in(&namespace, "serviceaccounts"), &account).await;
    let binding = json!({
        "metadata": { "name": "openbao" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator" },
        "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": "openbao" }],
    });
    api.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await;

    let spec = json!({ "expirationSeconds": 86_400 });
    let token = token(api, &namespace, "openbao", spec, None).await;
    // The authorizer learns of the binding a moment later.
    let as_reviewer = api.with_token(&token);
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token },
    });
    until(async || {
        as_reviewer.try_create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.is_ok()
    })
    .await;
    token
}

impl Site {
    /// One whose pods the shared injector looks at.
    pub(crate) async fn injected() -> Self {
        let (site, injector) = tokio::join!(Self::open(), chart::shared());
        chart::adopt(&site.api, &site.namespace, injector).await;
        until(async || chart::is_injecting(&site.api, &site.namespace).await).await;
        site
    }

    /// The README's annotations, for the servers of this world.
    pub(crate) fn annotations(&self) -> Value {
        let world = &self.world;
        let port = world.servers.postgres.port();
        json!({
            "pglease.dev/vault-path": world.vault_path("db-app"),
            "pglease.dev/vault-login-role": "web",
            "pglease.dev/vault-login-mount": world.auth(),
            "pglease.dev/upstream": format!("postgresql://localhost:{port}/{}", world.database()),
            "pglease.dev/upstream-ca": "configmap/postgres-ca",
        })
    }

    /// A pod of `app` with label and annotations, as a Deployment's template has it.
    pub(crate) fn template(&self, app: &str) -> Value {
        json!({
            "metadata": {
                "labels": { "app": app, "pglease.dev/inject": "true" },
                "annotations": self.annotations(),
            },
            "spec": {
                "serviceAccountName": "web",
                "containers": [{ "name": "app", "image": "app:1" }],
            },
        })
    }

    /// The same as a pod of its own, of this name.
    pub(crate) fn pod(&self, name: &str) -> Value {
        let mut pod = self.template(name);
        pod["metadata"]["name"] = json!(name);
        pod
    }

    pub(crate) async fn create_deployment(&self, name: &str, replicas: u32, template: Value) {
        let spec = json!({
            "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": template,
        });
        self.create("apps/deployments", json!({ "metadata": { "name": name }, "spec": spec })).await;
    }
}

/// A container of a pod, by its name, in either list.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let lists = ["initContainers", "containers"].into_iter();
    lists
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .find(|each| each["name"] == name)
}

/// The value of a variable in a container.
pub(crate) fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a Value> {
    let variables = container["env"].as_array()?;
    variables.iter().find(|variable| variable["name"] == name)
}
