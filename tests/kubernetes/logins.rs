//! Tokens of real service accounts, reviewed by the real API server for a real OpenBao.

use serde_json::{Value, json};

use crate::patience::{PATIENCE, until};
use crate::site::Site;
use crate::steps::user_of;

#[tokio::test]
async fn token_of_a_pod_logs_in_for_its_account_and_its_audience_only() {
    let site = Site::open().await;
    site.create_account("other").await;
    let pod = site.create("pods", plain_pod("bound")).await;

    let (status, answer) = site.login(&site.token("web", "vault", Some(&pod)).await).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["auth"]["metadata"]["service_account_name"], "web");
    assert_eq!(answer["auth"]["metadata"]["service_account_namespace"], *site.namespace);

    // An account has no token of a pod that is another's.
    for (account, audience, pod) in [("other", "vault", None), ("web", "elsewhere", Some(&pod))] {
        let (status, answer) = site.login(&site.token(account, audience, pod).await).await;
        assert_eq!(status, 403, "{account} {audience}: {answer}");
    }
}

#[tokio::test]
async fn token_of_a_pod_that_has_gone_or_of_an_account_that_has_gone_logs_in_no_more() {
    let site = Site::open().await;
    let pod = site.create("pods", plain_pod("bound")).await;
    let of_pod = site.token("web", "vault", Some(&pod)).await;
    let of_account = site.token("web", "vault", None).await;

    // Not reviewed before: the API server keeps a yes for 10 s.
    site.api.delete_now(&site.path("pods/bound")).await.object();
    until(async || site.login(&of_pod).await.0 == 403).await;
    site.api.delete(&site.path("serviceaccounts/web")).await.object();
    until(async || site.login(&of_account).await.0 == 403).await;
}

#[tokio::test]
async fn proxy_in_a_pod_without_the_injector_serves_and_revokes_when_the_pod_is_deleted() {
    let site = Site::open().await;
    let node = site.node();
    site.create("pods", pod_with_sidecar(&site, "by-hand", "web", "vault")).await;
    node.ready("by-hand").await;

    let sidecar = node.container("by-hand", "pglease").await;
    let session = sidecar.connect("postgresql://app@localhost:5432/app").await.unwrap();
    let user = user_of(&session).await;
    assert_eq!(site.world.living_roles().await, [user]);

    site.api.delete(&site.path("pods/by-hand")).await.object();
    assert_eq!(node.exit("by-hand", "pglease").await, 0);
    site.until_revoked().await;
    until(async || site.api.list(&site.path("pods")).await.is_empty()).await;
}

fn plain_pod(name: &str) -> Value {
    let spec = json!({ "serviceAccountName": "web", "containers": [{ "name": "app", "image": "app:1" }] });
    json!({ "metadata": { "name": name }, "spec": spec })
}

#[tokio::test]
async fn account_or_audience_that_may_not_is_told_to_the_operator_in_plain_words() {
    let site = Site::open().await;
    site.create_account("other").await;
    let node = site.node();
    for (name, account, audience, words) in [
        ("account", "other", "vault", "service account name not authorized"),
        ("audience", "web", "elsewhere", "invalid audience (aud) claim"),
    ] {
        site.create("pods", pod_with_sidecar(&site, name, account, audience)).await;
        let sidecar = node.container(name, "pglease").await;
        let refused = |lines: &[String]| lines.iter().find(|line| line.contains("login.failed")).cloned();
        let line = sidecar.process.lines().wait_for(PATIENCE, refused).await.expect("a login that fails");
        assert!(line.contains(words), "{line}");
        site.api.delete(&site.path(&format!("pods/{name}"))).await.object();
        assert_eq!(node.exit(name, "pglease").await, 0);
        until(async || site.api.list(&site.path("pods")).await.is_empty()).await;
    }
}

/// As `docs/kubernetes.md` has it for those who want no webhook.
fn pod_with_sidecar(site: &Site, name: &str, account: &str, audience: &str) -> Value {
    let world = &site.world;
    let postgres = &world.servers.postgres;
    let upstream = format!(
        "postgresql://localhost:{}/{}?sslmode=verify-full&sslrootcert=/etc/pglease/upstream-ca/ca.crt",
        postgres.port(),
        world.database()
    );
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    let sidecar = json!({
        "name": "pglease",
        "image": "pglease:test",
        "args": ["proxy"],
        "restartPolicy": "Always",
        "env": [
            variable("PGLEASE_VAULT_ADDRESS", &world.servers.openbao.tls_address()),
            variable("PGLEASE_VAULT_CA_FILE", "/etc/pglease/vault-ca/ca.crt"),
            variable("PGLEASE_VAULT_LOGIN_MOUNT", &world.auth()),
            variable("PGLEASE_VAULT_LOGIN_ROLE", "web"),
            variable("PGLEASE_VAULT_LOGIN_JWT_FILE", "/var/run/secrets/pglease/token"),
            variable("PGLEASE_VAULT_PATH", &world.vault_path("db-app")),
            variable("PGLEASE_UPSTREAM", &upstream),
            variable("PGLEASE_DRAIN_DEADLINE", "2s"),
        ],
        "startupProbe": { "httpGet": { "path": "/startup", "port": 9632 } },
        "livenessProbe": { "httpGet": { "path": "/livez", "port": 9632 } },
        "volumeMounts": [
            { "name": "token", "mountPath": "/var/run/secrets/pglease", "readOnly": true },
            { "name": "postgres-ca", "mountPath": "/etc/pglease/upstream-ca", "readOnly": true },
            { "name": "vault-ca", "mountPath": "/etc/pglease/vault-ca", "readOnly": true },
        ],
    });
    let token = json!({ "path": "token", "audience": audience, "expirationSeconds": 3600 });
    json!({
        "metadata": { "name": name },
        "spec": {
            "serviceAccountName": account,
            "initContainers": [sidecar],
            "containers": [{ "name": "app", "image": "app:1" }],
            "volumes": [
                { "name": "token", "projected": { "sources": [{ "serviceAccountToken": token }] } },
                { "name": "postgres-ca", "configMap": { "name": "postgres-ca" } },
                { "name": "vault-ca", "configMap": { "name": "vault-ca" } },
            ],
        },
    })
}
