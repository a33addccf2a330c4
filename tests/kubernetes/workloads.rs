//! What a label and a few annotations make of the pods of every kind of workload.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::control_plane::text;
use crate::manifests::{blocks_of, root};
use crate::patience::until;
use crate::site::{Site, container, variable};
use crate::steps::user_of;

#[tokio::test]
async fn pods_of_a_deployment_have_the_sidecar_as_specified() {
    let site = Site::injected().await;
    site.create_deployment("web", 2, site.template("web")).await;
    for pod in site.pods_of("web", 2).await {
        assert_eq!(pod["metadata"]["annotations"]["pglease.dev/status"], "injected");
        expect_sidecar(&pod);
        let app = container(&pod, "app").unwrap();
        let url = format!("postgresql://app@localhost:5432/{}?sslmode=disable", site.world.database());
        assert_eq!(variable(app, "DATABASE_URL").unwrap()["value"], url);
        assert!(mounts_of(app).iter().all(|mount| !mount.contains("pglease")), "{app}");
    }
}

#[tokio::test]
async fn pods_of_the_readmes_deployment_have_it() {
    let site = Site::injected().await;
    let manifests = blocks_of(&root().join("README.md"));
    let manifests = manifests.replace("namespace: default", &format!("namespace: {}", site.namespace));
    let apply = ["apply", "--server-side", "--validate=strict", "--filename=-"];
    let applied = site.control_plane.kubectl(&apply, &manifests).await;
    assert!(applied.status.success(), "{}", text(&applied));
    for pod in site.pods_of("web", 2).await {
        expect_sidecar(&pod);
    }
}

#[tokio::test]
async fn pods_of_every_other_workload_have_it_too() {
    let site = Site::injected().await;
    let job = |app: &str| {
        let mut template = site.template(app);
        template["spec"]["restartPolicy"] = json!("Never");
        json!({ "template": template })
    };
    let of = |app: &str| {
        json!({
            "selector": { "matchLabels": { "app": app } }, "serviceName": app, "template": site.template(app),
        })
    };
    let mut daemon = of("daemon");
    daemon.as_object_mut().unwrap().remove("serviceName");
    // DaemonSets have a pod on each node: this makes one.
    let _node = site.node();
    for (collection, name, spec) in [
        ("apps/statefulsets", "stateful", of("stateful")),
        ("apps/daemonsets", "daemon", daemon),
        ("batch/jobs", "job", job("job")),
        (
            "batch/cronjobs",
            "cron",
            json!({ "schedule": "@every 1s", "concurrencyPolicy": "Forbid", "jobTemplate": { "spec": job("cron") } }),
        ),
    ] {
        site.create(collection, json!({ "metadata": { "name": name }, "spec": spec })).await;
        expect_sidecar(&site.pods_of(name, 1).await[0]);
    }
}

#[tokio::test]
async fn two_pods_have_two_users_and_the_one_that_ends_leaves_none() {
    let site = Site::injected().await;
    let node = site.node();
    site.create_deployment("web", 2, site.template("web")).await;
    let pods = site.pods_of("web", 2).await;
    let names: Vec<_> = pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();

    let mut users = Vec::new();
    let mut sessions = Vec::new();
    for (pod, name) in pods.iter().zip(&names) {
        node.ready(name).await;
        let sidecar = node.container(name, "pglease").await;
        // As the pod says, and as the kubelet tells.
        assert_eq!(sidecar.environment["PGLEASE_POD_NAME"], **name);
        assert_eq!(sidecar.environment["PGLEASE_POD_NAMESPACE"], *site.namespace);
        assert_eq!(sidecar.environment["PGLEASE_DRAIN_DEADLINE"], "2s");
        let url =
            variable(container(pod, "app").unwrap(), "DATABASE_URL").unwrap()["value"].as_str().unwrap();
        let session = sidecar.connect(url).await.unwrap();
        users.push(user_of(&session).await);
        sessions.push(session);
    }
    assert_ne!(users[0], users[1]);
    let mut living = site.world.living_roles().await;
    living.sort();
    users.sort();
    assert_eq!(living, users);

    drop(sessions);
    site.api.delete(&site.path("apps/deployments/web")).await.object();
    for name in names {
        assert_eq!(node.exit(name, "pglease").await, 0);
    }
    site.until_revoked().await;
}

#[tokio::test]
async fn job_is_complete_when_its_container_has_ended_and_nothing_is_left() {
    let site = Site::injected().await;
    let node = site.node();
    let mut template = site.template("job");
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({ "metadata": { "name": "job" }, "spec": { "template": template } });
    site.create("batch/jobs", job).await;
    let pod = &site.pods_of("job", 1).await[0];
    let name = pod["metadata"]["name"].as_str().unwrap();
    // Only a native sidecar does not keep its pod from ending.
    assert_eq!(container(pod, "pglease").unwrap()["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);

    node.ready(name).await;
    let sidecar = node.container(name, "pglease").await;
    let url = variable(container(pod, "app").unwrap(), "DATABASE_URL").unwrap()["value"].as_str().unwrap();
    user_of(&sidecar.connect(url).await.unwrap()).await;
    node.end(name, "app", 0);

    assert_eq!(node.exit(name, "pglease").await, 0);
    let path = site.path("batch/jobs/job");
    until(async || site.api.get(&path).await["status"]["succeeded"] == 1).await;
    site.until_revoked().await;
}

#[tokio::test]
async fn files_of_the_vault_agent_and_ours_are_there_with_the_application_and_gone_with_it() {
    let site = Site::injected().await;
    let node = site.node();
    let vault_path = site.world.vault_path("db-app");
    let example = "{{- with secret \"PATH\" -}}\n{\n  \"user\": {{ .Data.username | toJSON }},\n  \
                   \"password\": {{ .Data.password | toJSON }}\n}\n{{- end }}\n";
    let mut template = site.template("web");
    template["metadata"]["annotations"] = json!({
        "pglease.dev/from-vault-agent": "true",
        "pglease.dev/token-audience": "vault",
        "vault.hashicorp.com/agent-inject": "false",
        "vault.hashicorp.com/role": "web",
        "vault.hashicorp.com/auth-path": format!("auth/{}", site.world.auth()),
        "vault.hashicorp.com/agent-inject-secret-db.json": vault_path,
        "vault.hashicorp.com/agent-inject-template-db.json": example.replace("PATH", &vault_path),
        "pglease.dev/file-own": vault_path,
        "pglease.dev/file-template-own": "{{ with secret \"PATH\" }}{{ .Data.username }}{{ end }}".replace("PATH", &vault_path),
        "pglease.dev/file-path-own": "/srv/own/user",
        "pglease.dev/file-mode-own": "0444",
    });
    site.create_deployment("web", 1, template).await;
    let pod = &site.pods_of("web", 1).await[0];
    let name = pod["metadata"]["name"].as_str().unwrap();
    let app = container(pod, "app").unwrap();
    let mounts = app["volumeMounts"].as_array().unwrap();
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    for directory in ["/vault/secrets", "/srv/own"] {
        let mount = mounts.iter().find(|mount| mount["mountPath"] == directory).unwrap();
        assert_eq!(mount["readOnly"], true);
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        assert_eq!(volume["emptyDir"]["medium"], "Memory");
    }
    assert_eq!(variable(app, "DATABASE_URL"), None);

    // The application starts when the startup probe of the sidecar has succeeded.
    node.ready(name).await;
    let sidecar = node.container(name, "pglease").await;
    let file = sidecar.file("/vault/secrets/db.json");
    let credential: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let text = |key: &str| credential[key].as_str().unwrap();
    let own = sidecar.file("/srv/own/user");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), text("user"));
    assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o444);
    let world = &site.world;
    let session = world.servers.postgres.connect_as(&world.database(), text("user"), text("password")).await;
    assert_eq!(user_of(&session.unwrap()).await, text("user"));

    site.api.delete(&site.path("apps/deployments/web")).await.object();
    assert_eq!(node.exit(name, "pglease").await, 0);
    assert!(!file.exists() && !own.exists());
    site.until_revoked().await;
}

/// The shape that the README and `docs/kubernetes.md` tell of.
fn expect_sidecar(pod: &Value) {
    let sidecar = &pod["spec"]["initContainers"][0];
    let expected = json!({
        "name": "pglease",
        "image": "pglease:test",
        "args": ["proxy"],
        "restartPolicy": "Always",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(sidecar[field], *value, "{field} of {sidecar:#}");
    }
    for (probe, path) in [("startupProbe", "/startup"), ("livenessProbe", "/livez")] {
        assert_eq!(sidecar[probe]["httpGet"]["path"], path, "{sidecar:#}");
    }
    assert!(sidecar["readinessProbe"].is_null(), "{sidecar:#}");
    let resources = &sidecar["resources"];
    assert_eq!(resources["requests"], json!({ "cpu": "10m", "memory": "16Mi" }));
    assert!(resources["limits"]["memory"].is_string() && resources["limits"]["cpu"].is_null(), "{resources}");

    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let token = volumes.iter().find(|volume| volume["name"] == "pglease-token").unwrap();
    let token = &token["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(*token, json!({ "path": "token", "audience": "vault", "expirationSeconds": 86_400 }));
    assert!(mounts_of(sidecar).contains(&"pglease-token"), "{sidecar:#}");
}

fn mounts_of(container: &Value) -> Vec<&str> {
    let mounts = container["volumeMounts"].as_array().map_or(&[][..], Vec::as_slice);
    mounts.iter().map(|mount| mount["name"].as_str().unwrap()).collect()
}
