//! Pods that lack most of what a patch could be put next to, and authors' values in its way.

use serde_json::{Value, json};

use crate::api::Reply;
use crate::patience::until;
use crate::site::{Site, container, variable};

/// Case C27.
#[tokio::test]
async fn smallest_pods_are_injected_whatever_they_lack() {
    let site = Site::injected().await;
    let app = || json!({ "name": "app", "image": "app:1" });
    let only_app = || json!({ "containers": [app()] });
    let mut without_token = only_app();
    without_token["automountServiceAccountToken"] = json!(false);
    let mut with_init = without_token.clone();
    with_init["initContainers"] = json!([{ "name": "migrate", "image": "app:1" }]);
    let mut unmounted = only_app();
    unmounted["serviceAccountName"] = json!("unmounted");
    let account = json!({ "metadata": { "name": "unmounted" }, "automountServiceAccountToken": false });
    site.create("serviceaccounts", account).await;

    for (what, spec) in [
        ("one container", only_app()),
        ("no volumes", without_token),
        ("an init container, no volumes", with_init),
        ("an account that mounts no token", unmounted),
    ] {
        let mut pod = site.pod("bare");
        pod["spec"] = spec;
        // The namespace is in the request only.
        pod["metadata"].as_object_mut().unwrap().remove("name");
        pod["metadata"]["generateName"] = json!("bare-");
        pod["metadata"]["annotations"]["example.com/a.b"] = json!("~1 / ~0");
        let pod = site.api.try_create(&site.path("pods"), &pod).await;
        assert!(pod.is_ok(), "{what}: {}", pod.message());
        let pod = pod.body;
        assert_eq!(pod["metadata"]["annotations"]["example.com/a.b"], "~1 / ~0");
        assert!(container(&pod, "pglease").is_some(), "{what}: {pod}");
        expect_token_in_the_sidecar_only(&pod);
        // Migrations need the sidecar: it is before them.
        assert_eq!(pod["spec"]["initContainers"][0]["name"], "pglease", "{what}");
    }
}

#[tokio::test]
async fn pod_without_what_is_required_is_refused_by_the_name_of_the_annotation() {
    let site = Site::injected().await;
    let kubectl = async |arguments: &[&str]| site.control_plane.kubectl(arguments, "").await;
    let output = kubectl(&[
        "run",
        "x",
        "--image=y",
        "--labels=pglease.dev/inject=true",
        "--namespace",
        &site.namespace,
    ])
    .await;
    let said = crate::control_plane::text(&output);
    assert!(!output.status.success() && said.contains("pglease.dev/vault-path"), "{said}");

    for missing in ["vault-path", "vault-login-role", "upstream"] {
        let name = format!("pglease.dev/{missing}");
        let mut pod = site.pod("lacking");
        pod["metadata"]["annotations"].as_object_mut().unwrap().remove(&name);
        expect_refusal(&site, &pod, &name).await;
    }
    for (name, value, said) in [
        ("resources-cpu-limit", "much", "much"),
        ("resources-memory-request", "16Mib", "16Mib"),
        ("token-expiration", "5s", "10m"),
        ("at-lease-end", "later", "later"),
    ] {
        let name = format!("pglease.dev/{name}");
        let mut pod = site.pod("wrong");
        pod["metadata"]["annotations"][&name] = json!(value);
        let reply = expect_refusal(&site, &pod, &name).await;
        assert!(reply.message().contains(said), "{}", reply.message());
    }
}

#[tokio::test]
async fn kubectl_shows_what_the_pages_have_people_look_at() {
    let site = Site::injected().await;
    let shell = async |command: &str| {
        site.control_plane.shell(&format!("{command} --namespace {}", site.namespace)).await
    };
    let wrong = "pglease.dev/at-lease-end";
    let mut template = site.template("web");
    template["metadata"]["annotations"][wrong] = json!("later");
    site.create_deployment("web", 1, template).await;
    for command in ["kubectl describe replicaset", "kubectl describe replicaset --selector app=web"] {
        until(async || shell(command).await.contains(wrong)).await;
    }

    site.create_deployment("well", 1, site.template("well")).await;
    site.pods_of("well", 1).await;
    for (command, part) in
        [("kubectl get pod", "well-"), ("kubectl describe pod", "Init Containers:\n  pglease:")]
    {
        let said = shell(command).await;
        assert!(said.contains(part), "{command}: {said}");
    }

    let mut pod = site.pod("bare");
    pod["kind"] = json!("Pod");
    pod["apiVersion"] = json!("v1");
    for (name, value) in [(wrong, "later"), ("pglease.dev/upstrem-ca", "configmap/postgres-ca")] {
        let mut pod = pod.clone();
        pod["metadata"]["annotations"][name] = json!(value);
        let apply = ["apply", "--dry-run=server", "--namespace", &site.namespace, "--filename=-"];
        let output = site.control_plane.kubectl(&apply, &pod.to_string()).await;
        let said = crate::control_plane::text(&output);
        assert!(said.contains(name) && output.status.success() == (name != wrong), "{said}");
    }
}

#[tokio::test]
async fn unknown_annotation_is_warned_of_with_the_nearest_name() {
    let site = Site::injected().await;
    let mut pod = site.pod("typo");
    pod["metadata"]["annotations"]["pglease.dev/upstrem-ca"] = json!("configmap/postgres-ca");
    let reply = site.api.try_create(&site.path("pods"), &pod).await;
    assert!(reply.is_ok(), "{}", reply.message());
    let warned = reply.warnings.join("\n");
    assert!(
        warned.contains("pglease.dev/upstrem-ca") && warned.contains("pglease.dev/upstream-ca"),
        "{warned}"
    );
}

#[tokio::test]
async fn what_an_author_has_set_stays_or_is_refused_and_nothing_comes_twice() {
    let site = Site::injected().await;
    let mut pod = site.pod("author");
    let from = json!({ "secretKeyRef": { "name": "theirs", "key": "url" } });
    pod["spec"]["containers"] = json!([
        { "name": "value", "image": "a:1", "env": [{ "name": "DATABASE_URL", "value": "postgresql://elsewhere" }] },
        { "name": "from", "image": "a:1", "env": [{ "name": "DATABASE_URL", "valueFrom": from }] },
        { "name": "all", "image": "a:1", "envFrom": [{ "configMapRef": { "name": "theirs" } }] },
        { "name": "none", "image": "a:1" },
    ]);
    let reply = site.api.try_create(&site.path("pods"), &pod).await;
    assert!(reply.is_ok(), "{}", reply.message());
    let warned = reply.warnings.join("\n");
    assert!(warned.contains("DATABASE_URL"), "{warned}");
    let injected = reply.body;
    let url = |name: &str| variable(container(&injected, name).unwrap(), "DATABASE_URL").cloned();
    assert_eq!(url("value").unwrap()["value"], "postgresql://elsewhere");
    assert_eq!(url("from").unwrap()["valueFrom"], from);
    assert!(url("none").unwrap()["value"].as_str().unwrap().contains("localhost:5432"));
    for each in injected["spec"]["containers"].as_array().unwrap() {
        let variables = each["env"]
            .as_array()
            .map_or(0, |all| all.iter().filter(|variable| variable["name"] == "DATABASE_URL").count());
        assert!(variables <= 1, "{each}");
    }

    // What has been injected is left as it is.
    let again = as_new(&injected, "again");
    let reply = site.api.try_create(&site.path("pods"), &again).await;
    assert!(reply.is_ok(), "{}", reply.message());
    assert_eq!(reply.body["spec"]["initContainers"], injected["spec"]["initContainers"]);
    assert_eq!(reply.body["spec"]["containers"], injected["spec"]["containers"]);
    let volumes = |pod: &Value| pod["spec"]["volumes"].as_array().unwrap().len();
    assert_eq!(volumes(&reply.body), volumes(&injected));

    pod["metadata"]["name"] = json!("refused");
    pod["metadata"]["annotations"]["pglease.dev/conflict"] = json!("reject");
    expect_refusal(&site, &pod, "DATABASE_URL").await;
}

async fn expect_refusal(site: &Site, pod: &Value, named: &str) -> Reply {
    let reply = site.api.try_create(&site.path("pods"), pod).await;
    assert!(!reply.is_ok(), "{named}: {}", reply.body);
    // The webhook has said so, not the API server of what the webhook has made.
    assert!(reply.message().contains("denied the request"), "{}", reply.message());
    assert!(reply.message().contains(named), "{named}: {}", reply.message());
    reply
}

/// The pod as one that was not made yet.
fn as_new(pod: &Value, name: &str) -> Value {
    let metadata = &pod["metadata"];
    json!({
        "metadata": { "name": name, "labels": metadata["labels"], "annotations": metadata["annotations"] },
        "spec": pod["spec"],
    })
}

fn expect_token_in_the_sidecar_only(pod: &Value) {
    for list in ["initContainers", "containers"] {
        for each in pod["spec"][list].as_array().into_iter().flatten() {
            let mounts = each["volumeMounts"].as_array().map_or(&[][..], Vec::as_slice);
            let has_token = mounts.iter().any(|mount| mount["name"] == "pglease-token");
            assert_eq!(has_token, each["name"] == "pglease", "{each}");
        }
    }
}
