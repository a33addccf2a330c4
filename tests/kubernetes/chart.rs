//! The chart, installed by Helm into a namespace of its own, where its pods run.

use std::process::Output;
use std::thread;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::api::Api;
use crate::control_plane::{ControlPlane, text};
use crate::node::Node;
use crate::patience::until;
use crate::site::{create_namespace, path_in};

/// A release of the chart. Its webhook is for the namespaces whose label `injector` is the name of the release's
/// namespace.
pub(crate) struct Release {
    pub(crate) control_plane: &'static ControlPlane,
    pub(crate) api: Api,
    pub(crate) namespace: String,
    pub(crate) node: Node,
}

impl Release {
    /// Installs it with these further values, and waits until it injects.
    pub(crate) async fn install(values: &[&str]) -> Self {
        let release = Self::prepare().await;
        release.helm("install", values).await;
        release.until_it_injects().await;
        release
    }

    /// A namespace and its node; nothing is installed.
    pub(crate) async fn prepare() -> Self {
        let control_plane = ControlPlane::shared().await;
        let api = control_plane.api();
        let namespace = create_namespace(&api).await;
        let node = Node::of(control_plane, &namespace);
        Self { control_plane, api, namespace, node }
    }

    /// `install` or `upgrade` with these values and those that every test needs.
    pub(crate) async fn helm(&self, verb: &str, values: &[&str]) {
        let mut arguments = vec![verb, NAME, CHART, "--namespace", &self.namespace];
        let selector = format!("webhook.namespaceSelector.matchLabels.injector={}", self.namespace);
        let fixed = [
            selector.as_str(),
            // Two releases may not share the names of what belongs to no namespace.
            &format!("fullnameOverride={}", self.full_name()),
            "image.repository=pglease",
            "image.tag=test",
            "service.port=8443",
            // The longest that may be: what is tested is whether the injector answers, not how fast this machine is.
            "webhook.timeoutSeconds=30",
        ];
        for value in fixed.iter().chain(values) {
            arguments.extend(["--set", value]);
        }
        succeed(&self.control_plane.helm(&arguments).await);
    }

    pub(crate) fn full_name(&self) -> String {
        format!("pglease-{}", self.namespace)
    }

    /// Path of the injector's Deployment.
    pub(crate) fn deployment(&self) -> String {
        path_in(&self.namespace, &format!("apps/deployments/{}-injector", self.full_name()))
    }

    /// Waits until a roll-out is done, as `kubectl rollout status` does, and the pods before it are gone.
    pub(crate) async fn until_rolled_out(&self, replicas: u32) {
        until(async || {
            let deployment = self.api.get(&self.deployment()).await;
            let status = &deployment["status"];
            let is_seen = status["observedGeneration"] == deployment["metadata"]["generation"];
            let counts = ["replicas", "updatedReplicas", "readyReplicas"];
            is_seen && counts.iter().all(|count| status[count].as_u64().unwrap_or(0) == u64::from(replicas))
        })
        .await;
        self.until_pods(replicas).await;
    }

    /// Names of the injector's pods.
    pub(crate) async fn injectors(&self) -> Vec<String> {
        let owner = format!("{}-injector-", self.full_name());
        let pods = self.api.list(&path_in(&self.namespace, "pods")).await;
        let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with(&owner) && !name.contains("certificate")).collect()
    }

    /// Waits until that many pods of the Deployment are there, those that are ending included.
    pub(crate) async fn until_pods(&self, count: u32) {
        until(async || self.injectors().await.len() == count as usize).await;
    }

    pub(crate) fn webhook(&self) -> String {
        format!(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}-injector",
            self.full_name()
        )
    }

    /// The release's injector looks at the pods of this namespace from now on.
    pub(crate) async fn adopt(&self, namespace: &str) {
        adopt(&self.api, namespace, &self.namespace).await;
    }

    /// Waits until a labelled pod would get its sidecar.
    pub(crate) async fn until_it_injects(&self) {
        let namespace = create_namespace(&self.api).await;
        self.adopt(&namespace).await;
        until(async || is_injecting(&self.api, &namespace).await).await;
    }
}

/// Installed once for all tests that do it no harm; a thread of its own runs its pods.
pub(crate) async fn shared() -> &'static str {
    static NAMESPACE: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    NAMESPACE.get_or_init(start_shared).await
}

async fn start_shared() -> String {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let servers = crate::support::Servers::shared().await;
            let address = format!("vault.address={}", servers.openbao.tls_address());
            let release = Release::install(&[&address, "vault.ca=configmap/vault-ca"]).await;
            sender.send(release.namespace.clone()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    receiver.await.expect("the chart is installed")
}

/// The injector of the release in `by` looks at the pods of `namespace` from now on.
pub(crate) async fn adopt(api: &Api, namespace: &str, by: &str) {
    let label = json!({ "metadata": { "labels": { "injector": by } } });
    api.merge(&format!("/api/v1/namespaces/{namespace}"), &label).await.object();
}

/// Whether a labelled pod in the namespace would get its sidecar now.
pub(crate) async fn is_injecting(api: &Api, namespace: &str) -> bool {
    let reply = api.try_create(&format!("{}?dryRun=All", path_in(namespace, "pods")), &probe()).await;
    reply.is_ok() && reply.body["metadata"]["annotations"]["pglease.dev/status"] == "injected"
}

/// A labelled pod that an injector takes without settings of its own.
pub(crate) fn probe() -> Value {
    json!({
        "metadata": {
            "generateName": "probe-",
            "labels": { "pglease.dev/inject": "true" },
            "annotations": {
                "pglease.dev/vault-path": "database/creds/db-app",
                "pglease.dev/vault-login-role": "web",
                "pglease.dev/vault-address": "https://vault:8200",
                "pglease.dev/upstream": "postgresql://postgres/app",
            },
        },
        "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
    })
}

/// Fails the test with what the program says, where it has failed.
pub(crate) fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

const NAME: &str = "pglease";

pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/pglease");
