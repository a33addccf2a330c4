//! What the sidecar gets, and what is refused.

use std::time::Duration;

use super::*;
use crate::config::{self, ObjectFile, ObjectKind, ProjectedToken};

#[test]
fn smallest_pod_gets_a_sidecar_and_its_url() {
    let reviewed = Reviewed::of_default(&pod()).injected();
    assert_eq!(reviewed.names("/spec/initContainers"), ["pglease"]);
    assert_eq!(reviewed.env("web", "DATABASE_URL"), Some(URL));
    assert_eq!(reviewed.env("pglease", "PGLEASE_DRAIN_DEADLINE"), Some("2s"));
    assert_eq!(reviewed.patched["metadata"]["annotations"]["pglease.dev/status"], "injected");
    assert!(reviewed.warnings().is_empty());
    assert_eq!((reviewed.answer.namespace.as_str(), reviewed.answer.pod.as_str()), ("shop", "web-0"));
}

#[test]
fn each_required_annotation_is_named_where_it_is_missing() {
    for name in ["vault-path", "vault-login-role", "upstream"] {
        for missing in [Value::Null, json!(""), json!("  ")] {
            let reviewed = Reviewed::of_default(&pod_with(&[(&annotation(name), missing)]));
            let expected = format!("annotation pglease.dev/{name} is missing; write it like ");
            assert!(reviewed.refused().starts_with(&expected), "{}", reviewed.refused());
            assert_eq!(reviewed.refused().lines().count(), 1, "{}", reviewed.refused());
        }
    }
    let without_vault = SidecarConfig { settings: vec![], ..defaults() };
    let reviewed = Reviewed::of(&pod(), &without_vault);
    assert!(reviewed.refused().contains("annotation pglease.dev/vault-address is missing"));
    let names_none = pod_with(&[(&annotation("upstream"), json!("postgresql://db"))]);
    let reviewed = Reviewed::of_default(&names_none);
    assert!(
        reviewed.refused().starts_with("annotation pglease.dev/database is missing, as pglease.dev/upstream")
    );
}

/// What a wrong value of an annotation is answered, by the beginning and a part of it.
const WRONG: &[(&str, &str, &str)] = &[
    ("upstream", "postgresql://app:canary@db/app", "holds a password; remove it"),
    ("upstream", "host=db password=canary", "holds a password; remove it"),
    ("upstream", "postgresql://db/app?sslmode=prefer", "promises nothing; use verify-full"),
    ("upstream", "mysql://db", "a URI of another kind"),
    ("vault-path", "secret/data/db", "not of the form"),
    ("at-lease-end", "kill", "no such choice; use \"auto\", \"leave\" or \"close\""),
    ("vault-address", "vault:8200", "not an address of Vault"),
    ("vault-login-mount", "auth/kubernetes", "leave that out"),
    ("upstream-ca", "configmap/", "KEY"),
    ("vault-ca", "vault-ca", "KEY"),
    ("config", "Not_A_Name", "KEY"),
    ("token-expiration", "5m", "shorter than 10m"),
    ("token-expiration", "soon", "not a duration"),
    ("database-url-env", "DATABASE-URL", "not the name of a variable"),
    ("database-url-env", "1ST", "not the name of a variable"),
    ("database-url", "postgresql://<hots>/canary", "knows no <hots>"),
    ("pg-env", "yes", "no such choice; use \"true\" or \"false\""),
    ("conflict", "fight", "no such choice; use \"keep\" or \"reject\""),
    ("unix-socket", "run/pglease", "absolute path"),
    ("unix-socket", "/", "absolute path"),
    ("unix-socket", "/run/../etc", "absolute path"),
    ("unix-socket", "/etc/pglease/vault-ca/", "name another"),
    ("unix-socket", "/var/run/secrets/pglease", "name another"),
    ("auth", "md5", "no such choice"),
    (
        "auth",
        "password",
        "annotation pglease.dev/auth-file is missing; write it like \"secret/app-verifiers\"",
    ),
    ("auth", "peer", "write pglease.dev/unix-socket"),
    ("port", "0", "not a port"),
    ("http-port", "http", "not a port"),
    ("port", "9632", "the port of"),
    ("max-sessions", "0", "not a whole number from 1 to 1000000"),
    ("drain-deadline", "2", "has no unit"),
    ("log-level", "loud", "no such choice"),
    ("image", "one two", "has a blank"),
    ("resources-cpu-request", "fast", "not a quantity of CPU"),
    ("resources-cpu-limit", "5m", "less than the request 10m"),
    ("resources-memory-request", "64MB", "not a quantity of memory"),
    ("resources-memory-limit", "100m", "not a quantity of memory"),
    ("resources-memory-limit", "8Mi", "less than the request 16Mi"),
    ("run-as-user", "0", "other than root"),
    ("run-as-user", "app", "write a number"),
    ("readiness-probe", "on", "no such choice"),
    ("host-network", "yes", "no such choice; use \"allow\""),
    ("from-vault-agent", "1", "no such choice"),
];

#[test]
fn wrong_values_are_refused_by_the_annotations_name() {
    for (name, value, part) in WRONG {
        let reviewed = Reviewed::of_default(&pod_with(&[(&annotation(name), json!(value))]));
        let message = reviewed.refused();
        assert!(message.contains(&format!("pglease.dev/{name}")), "{name}: {message}");
        assert!(message.contains(part), "{name}: {message}");
        assert!(!message.contains("canary"), "{name}: {message}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let pod = pod_with(&[
        (&annotation("vault-path"), json!("x")),
        (&annotation("port"), json!("x")),
        (&annotation("pg-env"), json!("x")),
        (&annotation("run-as-user"), json!("x")),
        (&annotation("vault-pat"), json!("x")),
    ]);
    let reviewed = Reviewed::of_default(&pod);
    assert_eq!(reviewed.refused().lines().count(), 4, "{}", reviewed.refused());
    assert_eq!(
        reviewed.warnings(),
        ["pglease.dev/vault-pat: unknown annotation; did you mean pglease.dev/vault-path?"]
    );
}

#[test]
fn unknown_annotations_warn_with_the_nearest_name() {
    for (written, meant) in [
        ("startup-rol", Some("startup-role")),
        ("vault-role", Some("vault-login-role")),
        ("database-url-name", Some("database-url-env")),
        ("zebra", None),
    ] {
        let pod = pod_with(&[(&annotation(written), json!("x"))]);
        let reviewed = Reviewed::of_default(&pod).injected();
        let [warning] = reviewed.warnings()[..] else { panic!("{:?}", reviewed.warnings()) };
        let cure = meant.map_or("remove it".to_owned(), |meant| format!("did you mean pglease.dev/{meant}?"));
        assert_eq!(warning, format!("pglease.dev/{written}: unknown annotation; {cure}"));
    }
    let others = pod_with(&[("/metadata/annotations/example.com~1pglease.dev", json!("x"))]);
    assert!(Reviewed::of_default(&others).injected().warnings().is_empty());
}

#[test]
fn annotations_win_over_the_injectors_settings() {
    let settings = vec![
        setting("PGLEASE_VAULT_ADDRESS", "https://one:8200"),
        setting("PGLEASE_LISTEN_MAX_SESSIONS", "100"),
        setting("PGLEASE_DRAIN_DEADLINE", "4s"),
        setting("PGLEASE_HTTP_ADDRESS", "0.0.0.0:9700"),
        setting("PGLEASE_LISTEN_ADDRESSES", "localhost:6000"),
    ];
    let sidecar = SidecarConfig { settings, ..defaults() };
    let reviewed = Reviewed::of(&pod(), &sidecar);
    for (variable, value) in [
        ("PGLEASE_VAULT_ADDRESS", "https://one:8200"),
        ("PGLEASE_LISTEN_MAX_SESSIONS", "100"),
        ("PGLEASE_DRAIN_DEADLINE", "4s"),
    ] {
        assert_eq!(reviewed.env("pglease", variable), Some(value));
    }
    assert_eq!(reviewed.sidecar()["livenessProbe"]["httpGet"]["port"], 9700);
    assert_eq!(reviewed.sidecar()["resources"]["limits"]["memory"], "45Mi");
    assert_eq!(
        reviewed.env("web", "DATABASE_URL"),
        Some("postgresql://app@localhost:6000/app?sslmode=disable")
    );

    let changes =
        [("vault-address", "https://two"), ("max-sessions", "200"), ("http-port", "9800"), ("port", "7000")];
    let changes = changes.map(|(name, value)| (annotation(name), json!(value)));
    let changes: Vec<(&str, Value)> =
        changes.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let reviewed = Reviewed::of(&pod_with(&changes), &sidecar);
    for (variable, value) in [
        ("PGLEASE_VAULT_ADDRESS", "https://two"),
        ("PGLEASE_LISTEN_MAX_SESSIONS", "200"),
        // The operator's choice of the address stays.
        ("PGLEASE_HTTP_ADDRESS", "0.0.0.0:9800"),
        ("PGLEASE_LISTEN_ADDRESSES", "localhost:7000"),
    ] {
        assert_eq!(reviewed.env("pglease", variable), Some(value));
    }
    assert_eq!(reviewed.sidecar()["startupProbe"]["httpGet"]["port"], 9800);
}

#[test]
fn the_operators_cas_token_and_policy_are_every_sidecars() {
    let sidecar = SidecarConfig {
        image_pull_policy: Some("Always"),
        vault_ca: Some(ObjectFile {
            kind: ObjectKind::ConfigMap,
            name: "ca".to_owned(),
            key: "vault.pem".to_owned(),
        }),
        token: ProjectedToken { audience: "openbao".to_owned(), expiration: Duration::from_mins(15) },
        ..defaults()
    };
    let reviewed = Reviewed::of(&pod(), &sidecar);
    assert_eq!(reviewed.sidecar()["imagePullPolicy"], "Always");
    assert_eq!(reviewed.env("pglease", "PGLEASE_VAULT_CA_FILE"), Some("/etc/pglease/vault-ca/ca.crt"));
    let volumes = &reviewed.patched["spec"]["volumes"];
    let token = &volumes[0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!((&token["audience"], &token["expirationSeconds"]), (&json!("openbao"), &json!(900)));
    assert_eq!(
        volumes[1]["configMap"],
        json!({ "name": "ca", "items": [{ "key": "vault.pem", "path": "ca.crt" }] })
    );
}

#[test]
fn a_method_without_a_service_account_has_no_token() {
    let settings = [
        ("PGLEASE_VAULT_ADDRESS", "https://vault:8200"),
        ("PGLEASE_VAULT_LOGIN_METHOD", "token_file"),
        ("PGLEASE_VAULT_LOGIN_TOKEN_FILE", "/vault/token"),
    ];
    let settings = settings.map(|(variable, value)| setting(variable, value)).to_vec();
    let sidecar = SidecarConfig { settings, ..defaults() };
    let reviewed = Reviewed::of(&pod_with(&[(&annotation("vault-login-role"), json!(""))]), &sidecar);
    assert_eq!(reviewed.answer.outcome, Outcome::Injected, "{:#}", reviewed.response);
    assert_eq!(reviewed.env("pglease", "PGLEASE_VAULT_LOGIN_JWT_FILE"), None);
    assert_eq!(reviewed.patched["spec"].get("volumes"), None);
}

#[test]
fn the_user_is_the_pods_the_annotations_or_our_own() {
    let user = |changes: &[(&str, Value)]| {
        let reviewed = Reviewed::of_default(&pod_with(changes)).injected();
        reviewed.sidecar()["securityContext"].get("runAsUser").and_then(Value::as_i64)
    };
    let of_pod = "/spec/securityContext/runAsUser";
    let own = annotation("run-as-user");
    assert_eq!(user(&[]), Some(65532));
    assert_eq!(user(&[(of_pod, json!(1_000_650_000))]), Some(1_000_650_000));
    // Root is not to be had.
    assert_eq!(user(&[(of_pod, json!(0))]), Some(65532));
    assert_eq!(
        user(&[("/spec/securityContext", json!({})), ("/spec/securityContext/fsGroup", json!(7))]),
        Some(65532)
    );
    assert_eq!(user(&[("/spec/containers/0/securityContext/runAsUser", json!(7))]), Some(65532));
    assert_eq!(user(&[(of_pod, json!(7)), (&own, json!("8"))]), Some(8));
    assert_eq!(user(&[(&own, json!("none"))]), None);
}

#[test]
fn resources_are_the_defaults_or_the_annotations() {
    let resources = |changes: &[(&str, &str)]| {
        let changes: Vec<_> = changes
            .iter()
            .map(|(name, value)| (annotation(&format!("resources-{name}")), json!(value)))
            .collect();
        let changes: Vec<_> = changes.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        Reviewed::of_default(&pod_with(&changes)).injected().sidecar()["resources"].clone()
    };
    let requests = json!({ "cpu": "10m", "memory": "16Mi" });
    assert_eq!(resources(&[]), json!({ "requests": requests, "limits": { "memory": "157Mi" } }));
    assert_eq!(resources(&[("memory-limit", "none")]), json!({ "requests": requests, "limits": {} }));
    let limits = json!({ "cpu": "1", "memory": "1Gi" });
    let all = [("cpu-limit", "1"), ("memory-limit", "1Gi"), ("cpu-request", "1"), ("memory-request", "1Gi")];
    assert_eq!(resources(&all), json!({ "requests": limits, "limits": limits }));
    // A derived limit is never less than what is asked for.
    let more = json!({ "requests": { "cpu": "10m", "memory": "1Gi" }, "limits": { "memory": "1Gi" } });
    assert_eq!(resources(&[("memory-request", "1Gi")]), more);
}

#[test]
fn a_status_without_a_sidecar_is_no_sidecar() {
    let pod = pod_with(&[(&annotation("status"), json!("injected"))]);
    assert_eq!(Reviewed::of_default(&pod).injected().names("/spec/initContainers"), ["pglease"]);
}

#[test]
fn ports_of_the_authors_are_a_reason_to_refuse_unless_another_is_chosen() {
    let pod = |port: Value, changes: &[(&str, Value)]| {
        pod_with(&[&[("/spec/containers/0/ports", json!([port]))], changes].concat())
    };
    let taken = Reviewed::of_default(&pod(json!({ "containerPort": 5432 }), &[]));
    assert!(taken.refused().ends_with("choose another with pglease.dev/port"), "{}", taken.refused());
    let taken = Reviewed::of_default(&pod(json!({ "containerPort": 9632, "protocol": "TCP" }), &[]));
    assert!(taken.refused().ends_with("choose another with pglease.dev/http-port"), "{}", taken.refused());
    for free in [
        pod(json!({ "containerPort": 5432 }), &[(&annotation("port"), json!("6432"))]),
        pod(json!({ "containerPort": 9632, "protocol": "UDP" }), &[]),
        pod(json!({ "containerPort": "5432" }), &[]),
    ] {
        Reviewed::of_default(&free).injected();
    }
}

#[test]
fn the_hosts_network_is_for_those_who_prove_who_they_are() {
    let host = ("/spec/hostNetwork", json!(true));
    let reviewed = Reviewed::of_default(&pod_with(std::slice::from_ref(&host)));
    assert_eq!(reviewed.answer.outcome, Outcome::Skipped);
    assert!(reviewed.warnings()[0].starts_with("pglease: not injected: with hostNetwork"));
    for (pointer, value) in [("/spec/shareProcessNamespace", json!(true)), ("/spec/hostPID", json!(true))] {
        assert_eq!(
            Reviewed::of_default(&pod_with(&[(pointer, value.clone())])).injected().warnings().len(),
            0
        );
        let both = pod_with(&[host.clone(), (pointer, value)]);
        assert_eq!(Reviewed::of_default(&both).answer.outcome, Outcome::Skipped);
    }

    let allow = annotation("host-network");
    let allowed = |more: &[(&str, &str)]| {
        let more: Vec<_> = more.iter().map(|(name, value)| (annotation(name), json!(value))).collect();
        let more: Vec<_> = more.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let pod = pod_with(&[&[host.clone(), (allow.as_str(), json!("allow"))], more.as_slice()].concat());
        Reviewed::of_default(&pod)
    };
    assert!(allowed(&[]).refused().starts_with("pglease.dev/host-network: every process on the node"));
    assert!(allowed(&[("unix-socket", "true")]).refused().starts_with("pglease.dev/host-network"));
    allowed(&[("auth", "password"), ("auth-file", "secret/a")]).injected();
    allowed(&[("auth", "peer"), ("peer-uids", "7"), ("unix-socket", "/run/db")]).injected();
}

#[test]
fn the_proxy_takes_every_variable_that_it_is_given() {
    let grace = "/spec/terminationGracePeriodSeconds";
    for pod in [pod(), pod_with(&[(grace, json!(0))]), pod_with(&[(grace, json!(u64::MAX))])] {
        let reviewed = Reviewed::of_default(&pod).injected();
        let env = reviewed.sidecar()["env"].as_array().unwrap();
        let given = env.iter().map(|variable| {
            let key = config::key_of_variable(variable["name"].as_str().unwrap()).expect("a setting");
            // What the downward API brings: a limit in bytes, else a name.
            let brought = if key == "pod.memory_limit" { "164626432" } else { "web-0" };
            let value = variable["value"].as_str().unwrap_or(brought).to_owned();
            config::Given { key, value, by: key.to_owned() }
        });
        let judged = config::judge(&given.collect::<Vec<_>>(), &[], false);
        assert!(judged.is_ok(), "{judged:?}");
    }
}
