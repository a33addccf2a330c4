//! The injector is not there, and comes back. Case C26.

use serde_json::{Value, json};

use crate::chart::{Release, is_injecting};
use crate::control_plane::text;
use crate::patience::until;
use crate::site::{Site, container};

#[tokio::test]
async fn without_an_injector_only_labelled_pods_are_refused() {
    let site = Site::open().await;
    let release = Release::install(&[VAULT]).await;
    release.adopt(&site.namespace).await;
    until(async || is_injecting(&site.api, &site.namespace).await).await;
    stop(&release).await;

    let reply = site.api.try_create(&site.path("pods"), &site.pod("labelled")).await;
    assert!(!reply.is_ok(), "{}", reply.body);
    assert!(reply.message().contains("failed calling webhook \"inject.pglease.dev\""), "{}", reply.message());

    let mut plain = site.pod("plain");
    plain["metadata"]["labels"].as_object_mut().unwrap().remove("pglease.dev/inject");
    let pod = site.create("pods", plain).await;
    assert!(container(&pod, "pglease").is_none(), "{pod}");
}

#[tokio::test]
async fn pod_let_through_without_its_sidecar_is_never_touched_afterwards_and_is_found() {
    let site = Site::open().await;
    let release = Release::install(&[VAULT, "webhook.failurePolicy=Ignore"]).await;
    release.adopt(&site.namespace).await;
    until(async || is_injecting(&site.api, &site.namespace).await).await;
    stop(&release).await;

    let mut pod = site.pod("bare");
    pod["metadata"]["finalizers"] = json!(["example.com/hold"]);
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "10m" } });
    let created = site.create("pods", pod).await;
    assert!(container(&created, "pglease").is_none(), "{created}");

    start(&release).await;
    until(async || is_injecting(&site.api, &site.namespace).await).await;
    let injected = site.create("pods", site.pod("injected")).await;
    assert!(container(&injected, "pglease").is_some(), "{injected}");
    expect_found(&site, "bare", "injected").await;

    let path = site.path("pods/bare");
    let spec = created["spec"].clone();
    let finalizers =
        json!({ "metadata": { "finalizers": null, "labels": { "a": "b" }, "annotations": { "c": "d" } } });
    let changed = site.api.merge(&path, &finalizers).await.object();
    assert_eq!(changed["spec"], spec);
    for verb in ["label", "annotate"] {
        let output = site
            .control_plane
            .kubectl(&[verb, "pod", "bare", "e=f", "--namespace", &site.namespace], "")
            .await;
        assert!(output.status.success(), "{}", text(&output));
    }
    let resized = json!({ "spec": { "containers": [{ "name": "app", "resources": { "requests": { "cpu": "20m" } } }] } });
    let resized = site.api.patch(&format!("{path}/resize"), &resized).await.object();
    assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "20m");
    let debugger = json!({ "name": "debugger", "image": "debug:1" });
    let ephemeral = json!({ "spec": { "ephemeralContainers": [debugger] } });
    let debugged = site.api.patch(&format!("{path}/ephemeralcontainers"), &ephemeral).await.object();
    assert_eq!(debugged["spec"]["ephemeralContainers"][0]["name"], "debugger");
    for pod in [resized, debugged] {
        assert!(container(&pod, "pglease").is_none() && pod["spec"]["volumes"] == spec["volumes"], "{pod}");
        assert_eq!(pod["metadata"]["annotations"]["pglease.dev/status"], Value::Null);
    }

    site.api.delete(&path).await.object();
    until(async || !site.api.has(&path).await).await;
}

/// The line of `docs/kubernetes.md` names the pods that lack their sidecar, and no other.
async fn expect_found(site: &Site, lacks: &str, has: &str) {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kubernetes.md");
    let page = std::fs::read_to_string(page).unwrap();
    let line = page.lines().find(|line| line.starts_with("kubectl get pods -A -l pglease.dev/inject=true"));
    let said = site.control_plane.shell(line.expect("the page has the line")).await;
    let of_site: Vec<_> =
        said.lines().filter(|line| line.starts_with(&format!("{} ", site.namespace))).collect();
    assert!(of_site.iter().any(|line| line.contains(lacks)), "{said}");
    assert!(!of_site.iter().any(|line| line.contains(has)), "{said}");
}

async fn stop(release: &Release) {
    scale(release, 0).await;
}

async fn start(release: &Release) {
    scale(release, 2).await;
}

/// As an operator does, and until it is so.
async fn scale(release: &Release, replicas: u32) {
    let path = release.deployment();
    release.api.merge(&path, &json!({ "spec": { "replicas": replicas } })).await.object();
    release.until_rolled_out(replicas).await;
}

const VAULT: &str = "vault.address=https://vault:8200";
