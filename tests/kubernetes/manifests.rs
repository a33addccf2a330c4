//! Every manifest that is handed out, tried on the API server by its strictest rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::sync::OnceCell;

use crate::control_plane::{ControlPlane, text};
use crate::patience::until;
use crate::site::path_in;

#[tokio::test]
async fn every_manifest_is_accepted() {
    let mut count = 0;
    for folder in ["deploy", "docs"] {
        for file in files_below(&root().join(folder)) {
            let name = file.strip_prefix(root()).unwrap().display().to_string();
            count += match file.extension().and_then(|extension| extension.to_str()) {
                _ if name.starts_with("deploy/helm/") => 0,
                Some("yaml") if file.ends_with("kustomization.yaml") => {
                    expect_accepted(&name, &kustomized(file.parent().unwrap()).await).await
                }
                Some("yaml") => expect_accepted(&name, &fs::read_to_string(&file).unwrap()).await,
                Some("md") => expect_accepted(&name, &blocks_of(&file)).await,
                _ => 0,
            };
        }
    }
    count += expect_accepted("README.md", &blocks_of(&root().join("README.md"))).await;
    assert!(count > 0, "no manifest is found");
}

#[tokio::test]
async fn every_shape_of_the_chart_is_accepted() {
    for values in [
        &[][..],
        &["certificate.source=cert-manager"],
        &[
            "certificate.source=existing",
            "certificate.existing.secretName=x",
            "certificate.existing.ca=-----BEGIN CERTIFICATE-----",
        ],
        &[
            "webhook.failurePolicy=Ignore",
            "sidecar.native=false",
            "sidecar.settings.listen\\.max_sessions=50",
        ],
        &[
            "serviceMonitor.enabled=true",
            "podMonitor.enabled=true",
            "prometheusRule.enabled=true",
            "replicas=1",
        ],
    ] {
        let mut arguments = vec!["template", "pglease", crate::chart::CHART, "--namespace", "pglease"];
        for value in values {
            arguments.extend(["--set", value]);
        }
        let output = ControlPlane::shared().await.helm(&arguments).await;
        crate::chart::succeed(&output);
        let manifests = String::from_utf8(output.stdout).unwrap();
        assert!(expect_accepted(&format!("{values:?}"), &manifests).await > 5, "{manifests}");
    }
}

#[tokio::test]
async fn manifest_of_an_operator_with_a_slip_is_refused() {
    define_kinds().await;
    let monitor = fs::read_to_string(root().join("deploy/examples/podmonitor.yaml")).unwrap();
    for (right, slip) in [("interval: 30s", "interval: 30 s"), ("interval: 30s", "intervall: 30s")] {
        let manifest = monitor.replace(right, slip);
        let output = ControlPlane::shared().await.kubectl(&APPLY, &manifest).await;
        assert!(!output.status.success(), "{}", text(&output));
    }
}

/// The number of manifests; fails the test where one is refused.
async fn expect_accepted(from: &str, manifests: &str) -> usize {
    let control_plane = ControlPlane::shared().await;
    define_kinds().await;
    let documents: Vec<_> = manifests.split("\n---").filter(|document| is_known(document)).collect();
    if documents.is_empty() {
        return 0;
    }
    for namespace in documents.iter().flat_map(|document| namespaces(document)).collect::<BTreeSet<_>>() {
        let object = json!({ "metadata": { "name": namespace } });
        let reply = control_plane.api().try_create("/api/v1/namespaces", &object).await;
        assert!(reply.is_ok() || reply.status == 409, "{}", reply.body);
    }
    for (namespace, account) in documents.iter().filter_map(|document| account(document)) {
        let object = json!({ "metadata": { "name": account } });
        let path = path_in(namespace, "serviceaccounts");
        let reply = control_plane.api().try_create(&path, &object).await;
        assert!(reply.is_ok() || reply.status == 409, "{}", reply.body);
    }
    let output = control_plane.kubectl(&APPLY, &documents.join("\n---\n")).await;
    assert!(output.status.success(), "{from}: {}", text(&output));
    let said = text(&output);
    assert!(!said.contains("Warning"), "{from}: {said}");
    documents.len()
}

/// Another test may have the same applied for good.
const APPLY: [&str; 6] =
    ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "--filename=-"];

/// Whether it is a manifest, of a kind that this API server has.
fn is_known(document: &str) -> bool {
    let value = |key: &str| document.lines().find_map(|line| line.strip_prefix(key));
    let Some(group) = value("apiVersion: ") else { return false };
    let is_of_operator =
        ["monitoring.coreos.com/", "cert-manager.io/"].iter().any(|it| group.starts_with(it));
    !is_of_operator || value("kind: ").is_some_and(|kind| OPERATORS.contains(&format!("{{kind: {kind},")))
}

/// The API server has the kinds of operators, too.
async fn define_kinds() {
    static DEFINED: OnceCell<()> = OnceCell::const_new();
    let define = async || {
        let control_plane = ControlPlane::shared().await;
        let output = control_plane.kubectl(&["apply", "--server-side", "--filename=-"], OPERATORS).await;
        assert!(output.status.success(), "{}", text(&output));
        for (group, plural) in [
            ("cert-manager.io", "certificates"),
            ("cert-manager.io", "issuers"),
            ("monitoring.coreos.com", "podmonitors"),
            ("monitoring.coreos.com", "servicemonitors"),
        ] {
            let path = format!("/apis/{group}/v1/namespaces/default/{plural}");
            until(async || control_plane.api().has(&path).await).await;
        }
    };
    DEFINED.get_or_init(define).await;
}

const OPERATORS: &str = include_str!("operators.yaml");

fn namespaces(document: &str) -> Vec<&str> {
    document.lines().filter_map(|line| line.strip_prefix("  namespace: ")).map(str::trim).collect()
}

/// Namespace and name of the account of a pod, which has to be there.
fn account(document: &str) -> Option<(&str, &str)> {
    let name = document.lines().find_map(|line| line.trim_start().strip_prefix("serviceAccountName: "))?;
    Some((namespaces(document).first().copied().unwrap_or("default"), name))
}

async fn kustomized(folder: &Path) -> String {
    let folder = folder.display().to_string();
    let output = ControlPlane::shared().await.kubectl(&["kustomize", &folder], "").await;
    assert!(output.status.success(), "{folder}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The manifests among the YAML of a page.
pub(crate) fn blocks_of(page: &Path) -> String {
    let page = fs::read_to_string(page).unwrap();
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    blocks.filter(|block| block.starts_with("apiVersion:")).collect::<Vec<_>>().join("\n---\n")
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
