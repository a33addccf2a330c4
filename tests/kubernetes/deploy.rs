//! The chart and what stands beside it, without a cluster: what Helm refuses, and that the manifests which are written
//! out are what it renders.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::chart::{CHART, Release, adopt, succeed};
use crate::control_plane::{ControlPlane, text};
use crate::support::env;

/// Renders the chart with these values.
async fn render(values: &[&str]) -> Output {
    let mut arguments =
        vec!["template", "pglease", CHART, "--namespace", "pglease", "--kube-version", "1.34"];
    arguments.push("--no-hooks");
    for value in values {
        arguments.extend(["--set", value]);
    }
    ControlPlane::shared().await.helm(&arguments).await
}

#[tokio::test]
async fn chart_is_well_formed() {
    succeed(&ControlPlane::shared().await.helm(&["lint", "--strict", "--kube-version", "1.34", CHART]).await);
}

#[tokio::test]
async fn value_that_cannot_be_is_refused_by_its_name() {
    for (value, words) in [
        ("replica=3", &["replica"][..]),
        ("replicas=0", &["replicas", "1"]),
        ("sidecar.setting.x=1", &["sidecar", "setting"]),
        ("sidecar.settings.max_sessions=1", &["settings", "max_sessions"]),
        ("sidecar.conflict=warn", &["conflict", "keep", "reject"]),
        ("sidecar.tokenExpiration=1 day", &["tokenExpiration"]),
        ("sidecar.resources.cpuLimit=half", &["cpuLimit", "half"]),
        ("webhook.failurePolicy=ignore", &["failurePolicy", "Fail", "Ignore"]),
        ("certificate.source=vault", &["certificate", "source", "job", "cert-manager", "existing"]),
        ("certificate.source=existing", &["certificate.existing.secretName"]),
        (
            "certificate.source=existing,certificate.existing.secretName=x",
            &["certificate.existing.ca", "PEM"],
        ),
        ("vault.address=vault.vault.svc", &["vault", "address", "https"]),
        ("vault.ca=vault.pem", &["vault", "ca", "configmap"]),
        ("image.repository=pglease:1", &["image", "repository"]),
    ] {
        let refused = render(&[value]).await;
        assert!(!refused.status.success(), "{value} is taken");
        for word in words {
            assert!(text(&refused).contains(word), "{value}: no {word} in {}", text(&refused));
        }
    }
}

#[tokio::test]
async fn native_sidecars_are_refused_where_the_cluster_has_none() {
    let old = ["template", "pglease", CHART, "--kube-version", "1.28"];
    let control_plane = ControlPlane::shared().await;
    let refused = control_plane.helm(&old).await;
    assert!(!refused.status.success());
    assert!(text(&refused).contains("sidecar.native=false"), "{}", text(&refused));
    succeed(&control_plane.helm(&[&old[..], &["--set", "sidecar.native=false"]].concat()).await);
}

#[tokio::test]
async fn kustomize_base_is_what_the_chart_renders_by_default() {
    let rendered = render(&[]).await;
    succeed(&rendered);
    let rendered = String::from_utf8(rendered.stdout).unwrap();
    // What tells of Helm, and the blank lines that one version of it adds.
    let of_helm = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
    let is_ours = |line: &&str| {
        !line.trim().is_empty() && !of_helm.iter().any(|start| line.trim_start().starts_with(start))
    };
    let expected = rendered.lines().filter(is_ours).collect::<Vec<_>>().join("\n") + "\n";

    let file = root().join("deploy/kustomize/base/injector.yaml");
    if env("PGLEASE_TEST_GOLDEN").is_some() {
        fs::write(&file, &expected).unwrap();
    }
    let base = fs::read_to_string(&file).unwrap();
    assert!(base == expected, "{} is not what the chart renders:\n{expected}", file.display());
}

#[tokio::test]
async fn overlay_changes_the_image_of_both_and_the_settings() {
    let example = root().join("deploy/kustomize/example");
    let arguments = ["kustomize", example.to_str().unwrap()];
    let output = ControlPlane::shared().await.kubectl(&arguments, "").await;
    succeed(&output);
    let manifests = String::from_utf8(output.stdout).unwrap();
    assert!(!manifests.contains("image: pglease:"), "{manifests}");
    let variable = "PGLEASE_INJECTOR_IMAGE\n          value: registry.example.com/pglease:0.1.0\n";
    assert!(manifests.contains(variable), "{manifests}");
    // Named by its content, where it is made and where it is mounted.
    let named = manifests.lines().filter(|line| line.trim_start().starts_with("name: injector-settings-"));
    assert_eq!(named.count(), 2, "{manifests}");
}

#[tokio::test]
async fn helm_test_finds_out_whether_pods_get_their_sidecar() {
    let release = Release::install(&["vault.ca=configmap/of-the-applications/ca.crt"]).await;
    // Its own namespace is one of those that the injector looks at, unless somebody says otherwise, as tests do.
    release.adopt(&release.namespace).await;
    let arguments = ["test", "pglease", "--namespace", &release.namespace, "--timeout", "60s"];
    succeed(&release.control_plane.helm(&arguments).await);

    // Nobody gets one any more.
    adopt(&release.api, &release.namespace, "nobody").await;
    let failed = release.control_plane.helm(&arguments).await;
    assert!(!failed.status.success(), "{}", text(&failed));
}

#[test]
fn readme_shows_the_application_that_it_applies() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let page = fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
    let example = fs::read_to_string(root().join("deploy/examples/web.yaml")).unwrap();
    assert!(readme.contains(&format!("```yaml\n{example}```")));
    assert!(readme.contains("kubectl apply -f deploy/examples/web.yaml"));
    let (_, deployment) = example.split_once("---\n").unwrap();
    assert!(page.contains(&format!("```yaml\n{deployment}```")));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
