//! Namespaces with rules of their own: quotas, Pod Security, ranges of user ids, the node's own network.

use serde_json::{Value, json};

use crate::patience::until;
use crate::site::{Site, container};

/// Case C28.
#[tokio::test]
async fn quota_on_limits_is_met_by_a_limit_range_or_by_an_annotation_and_its_refusal_says_what_to_do() {
    let site = Site::injected().await;
    let quota = json!({
        "metadata": { "name": "quota" },
        "spec": { "hard": {
            "requests.cpu": "4", "requests.memory": "4Gi", "limits.cpu": "4", "limits.memory": "4Gi",
        } },
    });
    site.create("resourcequotas", quota).await;
    until(async || site.api.get(&site.path("resourcequotas/quota")).await["status"]["hard"].is_object())
        .await;

    // The sidecar has no CPU limit of its own.
    site.create_deployment("refused", 1, bounded(&site, "refused")).await;
    let message = refusal_of(&site, "refused").await;
    assert!(message.contains("must specify limits.cpu for: pglease"), "{message}");

    let mut annotated = bounded(&site, "annotated");
    annotated["metadata"]["annotations"]["pglease.dev/resources-cpu-limit"] = json!("100m");
    annotated["metadata"]["annotations"]["pglease.dev/resources-memory-limit"] = json!("64Mi");
    site.create_deployment("annotated", 1, annotated).await;
    let pod = &site.pods_of("annotated", 1).await[0];
    let limits = &container(pod, "pglease").unwrap()["resources"]["limits"];
    assert_eq!(*limits, json!({ "cpu": "100m", "memory": "64Mi" }));

    let default = json!({ "cpu": "200m", "memory": "128Mi" });
    let limit = json!({ "type": "Container", "default": default });
    let range = json!({ "metadata": { "name": "range" }, "spec": { "limits": [limit] } });
    site.create("limitranges", range).await;
    let mut job = bounded(&site, "job");
    job["spec"]["restartPolicy"] = json!("Never");
    let job = json!({ "metadata": { "name": "job" }, "spec": { "template": job } });
    site.create("batch/jobs", job).await;
    let pod = &site.pods_of("job", 1).await[0];
    assert_eq!(container(pod, "pglease").unwrap()["resources"]["limits"]["cpu"], "200m");
}

/// The template with an application that names its resources.
fn bounded(site: &Site, app: &str) -> Value {
    let mut template = site.template(app);
    let resources = json!({ "cpu": "100m", "memory": "64Mi" });
    template["spec"]["containers"][0]["resources"] = json!({ "requests": resources, "limits": resources });
    template
}

/// Why the Deployment gets no pod.
async fn refusal_of(site: &Site, deployment: &str) -> String {
    let mut message = None;
    let path = site.path(&format!("apps/deployments/{deployment}"));
    until(async || {
        let found = site.api.get(&path).await;
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let failure = conditions.iter().find(|condition| condition["type"] == "ReplicaFailure");
        message = failure.map(|condition| condition["message"].as_str().unwrap().to_owned());
        message.is_some()
    })
    .await;
    message.unwrap()
}

/// Case C29.
#[tokio::test]
async fn what_pod_security_lets_in_before_injection_it_lets_in_after() {
    let site = Site::injected().await;
    restrict(&site).await;
    let of_pod =
        json!({ "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } });
    let of_container = json!({
        "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" },
    });
    let mut plain = of_container.clone();
    plain.as_object_mut().unwrap().remove("runAsNonRoot");
    let mut as_root = of_container.clone();
    as_root["runAsUser"] = json!(0);

    for (name, pod_level, container_level, is_valid) in [
        ("both", of_pod, plain, true),
        ("container", Value::Null, of_container.clone(), true),
        ("none", Value::Null, Value::Null, false),
        ("range", json!({ "runAsUser": 1_000_650_000, "fsGroup": 1_000_650_000 }), of_container, true),
        ("root", Value::Null, as_root, false),
    ] {
        for is_injected in [false, true] {
            let mut pod = site.pod(&format!("{name}-{is_injected}"));
            pod["metadata"]["labels"]["pglease.dev/inject"] = json!(is_injected.to_string());
            pod["spec"]["securityContext"] = pod_level.clone();
            pod["spec"]["containers"][0]["securityContext"] = container_level.clone();
            let reply = site.api.try_create(&site.path("pods"), &pod).await;
            assert_eq!(reply.is_ok(), is_valid, "{name} {is_injected}: {}", reply.body);
            if is_valid && is_injected {
                let sidecar = container(&reply.body, "pglease").unwrap();
                let uid = pod_level["runAsUser"].as_u64();
                let own = sidecar["securityContext"]["runAsUser"].as_u64();
                assert_eq!(own.or(uid), uid.or(Some(65532)), "{name}: {sidecar}");
            }
            if !is_valid {
                // The application's own fault, not the sidecar's.
                assert!(!reply.message().contains("\"pglease\""), "{name}: {}", reply.message());
            }
        }
    }
}

/// Case C29, a range of user ids.
#[tokio::test]
async fn pod_in_a_range_of_user_ids_stays_in_it() {
    let site = Site::injected().await;
    demand_range(&site).await;
    let refused = async |pod: &Value| {
        let reply = site.api.try_create(&format!("{}?dryRun=All", site.path("pods")), pod).await;
        !reply.is_ok() && reply.message().contains("user id")
    };
    // In force a moment later.
    until(async || refused(&site.pod("outside")).await).await;

    let mut with_uid = site.pod("with-uid");
    with_uid["spec"]["securityContext"] = json!({ "runAsUser": 1_000_650_000, "fsGroup": 1_000_650_000 });
    let pod = site.create("pods", with_uid).await;
    assert!(container(&pod, "pglease").is_some());

    let mut left_out = site.pod("left-out");
    left_out["metadata"]["annotations"]["pglease.dev/run-as-user"] = json!("none");
    let pod = site.create("pods", left_out).await;
    let context = &container(&pod, "pglease").unwrap()["securityContext"];
    assert!(context["runAsUser"].is_null(), "{context}");
}

/// Case C48.
#[tokio::test]
async fn pod_in_the_nodes_network_is_left_alone_with_a_reason_unless_its_clients_must_prove_themselves() {
    let site = Site::injected().await;
    for field in ["shareProcessNamespace", "hostPID"] {
        let mut pod = site.pod(&field.to_lowercase());
        pod["spec"][field] = json!(true);
        let pod = site.create("pods", pod).await;
        assert!(container(&pod, "pglease").is_some(), "{field}");
    }

    let mut pod = site.pod("hostnetwork");
    pod["spec"]["hostNetwork"] = json!(true);
    expect_left_alone(&site, &pod, "hostNetwork").await;
    let mut template = site.template("daemon");
    template["spec"]["hostNetwork"] = json!(true);
    let spec = json!({ "selector": { "matchLabels": { "app": "daemon" } }, "template": template });
    let _node = site.node();
    site.create("apps/daemonsets", json!({ "metadata": { "name": "daemon" }, "spec": spec })).await;
    for pod in site.pods_of("daemon", 1).await {
        assert!(container(&pod, "pglease").is_none(), "{pod}");
    }

    pod["metadata"]["name"] = json!("allowed");
    pod["metadata"]["annotations"]["pglease.dev/host-network"] = json!("allow");
    let reply = site.api.try_create(&site.path("pods"), &pod).await;
    assert!(!reply.is_ok() && reply.message().contains("pglease.dev/auth"), "{}", reply.body);
    pod["metadata"]["annotations"]["pglease.dev/auth"] = json!("password");
    pod["metadata"]["annotations"]["pglease.dev/auth-file"] = json!("secret/clients");
    let pod = site.create("pods", pod).await;
    assert!(container(&pod, "pglease").is_some(), "{pod}");
}

async fn expect_left_alone(site: &Site, pod: &Value, reason: &str) {
    let reply = site.api.try_create(&site.path("pods"), pod).await;
    assert!(reply.is_ok(), "{}", reply.message());
    assert!(container(&reply.body, "pglease").is_none(), "{}", reply.body);
    let warned = reply.warnings.join("\n");
    assert!(warned.contains(reason), "{warned}");
}

/// Pod Security's strictest level.
async fn restrict(site: &Site) {
    let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    let path = format!("/api/v1/namespaces/{}", site.namespace);
    site.api.merge(&path, &json!({ "metadata": { "labels": labels } })).await.object();
}

/// As some clusters have it: where a pod or a container names a user id, it is of the range.
async fn demand_range(site: &Site) {
    let is_in_range = |context: &str| {
        format!(
            "(!has({context}.runAsUser) || ({context}.runAsUser >= 1000650000 && {context}.runAsUser <= 1000659999))"
        )
    };
    let of_pod =
        format!("!has(object.spec.securityContext) || {}", is_in_range("object.spec.securityContext"));
    let of_each = |list: &str| {
        format!(
            "!has(object.spec.{list}) || object.spec.{list}.all(c, !has(c.securityContext) || {})",
            is_in_range("c.securityContext")
        )
    };
    let rules = [of_pod, of_each("containers"), of_each("initContainers")];
    let rules = rules.map(|rule| json!({ "expression": rule, "message": "user id out of the range" }));
    let name = format!("range-{}", site.namespace);
    let selector = json!({ "matchLabels": { "kubernetes.io/metadata.name": site.namespace } });
    let rule =
        json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] });
    let policy = json!({
        "metadata": { "name": name },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": { "namespaceSelector": selector, "resourceRules": [rule] },
            "validations": rules,
        },
    });
    let binding = json!({
        "metadata": { "name": name }, "spec": { "policyName": name, "validationActions": ["Deny"] },
    });
    let group = "/apis/admissionregistration.k8s.io/v1";
    site.api.create(&format!("{group}/validatingadmissionpolicies"), &policy).await;
    site.api.create(&format!("{group}/validatingadmissionpolicybindings"), &binding).await;
}
