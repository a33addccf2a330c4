//! What the chart's accounts may do, and what is left when it is uninstalled.

use serde_json::{Value, json};

use crate::chart::{Release, succeed};
use crate::patience::until;
use crate::site::{container, create_namespace, path_in};

#[tokio::test]
async fn certificate_job_may_do_what_it_does_and_the_injector_nothing() {
    let release = Release::install(&[]).await;
    let (name, own) = (format!("{}-injector", release.full_name()), release.namespace.as_str());
    let secret = format!("{name}-tls");
    let core = ("", "secrets");
    let webhooks = ("admissionregistration.k8s.io", "mutatingwebhookconfigurations");
    // Each right that `docs/kubernetes.md` tells of, and its neighbours.
    for (is_right, verb, (group, resource), namespace, object) in [
        (true, "get", core, own, secret.as_str()),
        (true, "update", core, own, &secret),
        (true, "create", core, own, ""),
        (true, "get", webhooks, "", &name),
        (true, "patch", webhooks, "", &name),
        (false, "get", core, own, "another"),
        (false, "update", core, own, "another"),
        (false, "list", core, own, ""),
        (false, "watch", core, own, &secret),
        (false, "delete", core, own, &secret),
        (false, "get", core, "default", &secret),
        (false, "create", core, "default", ""),
        (false, "get", webhooks, "", "another"),
        (false, "patch", webhooks, "", "another"),
        (false, "delete", webhooks, "", &name),
        (false, "create", ("", "pods"), own, ""),
        (false, "create", ("", "serviceaccounts/token"), own, ""),
        (false, "*", ("*", "*"), "", ""),
    ] {
        let attributes = json!({
            "verb": verb, "group": group, "resource": resource, "namespace": namespace, "name": object,
        });
        let certificate = format!("{name}-certificate");
        assert_eq!(may(&release, &certificate, &attributes).await, is_right, "{attributes}");
        assert!(!may(&release, &name, &attributes).await, "{attributes}");
    }
}

/// Whether an account of the release has a right.
async fn may(release: &Release, account: &str, attributes: &Value) -> bool {
    let user = format!("system:serviceaccount:{}:{account}", release.namespace);
    let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{}", release.namespace)];
    let groups = [&groups[..], &["system:authenticated"]].concat();
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": { "user": user, "groups": groups, "resourceAttributes": attributes },
    });
    let reviewed = release.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
    reviewed["status"]["allowed"] == true
}

#[tokio::test]
async fn uninstalled_it_leaves_the_secret_and_holds_no_pod_up() {
    let release = Release::install(&[]).await;
    let pods = create_namespace(&release.api).await;
    release.adopt(&pods).await;
    let arguments = ["uninstall", "pglease", "--namespace", &release.namespace];
    succeed(&release.control_plane.helm(&arguments).await);

    assert!(!release.api.has(&release.webhook()).await);
    let secret = format!("secrets/{}-injector-tls", release.full_name());
    assert!(release.api.has(&path_in(&release.namespace, &secret)).await);
    // The API server hears of it a moment later.
    until(async || {
        let reply = release.api.try_create(&path_in(&pods, "pods"), &crate::chart::probe()).await;
        reply.is_ok() && container(&reply.body, "pglease").is_none()
    })
    .await;
}
