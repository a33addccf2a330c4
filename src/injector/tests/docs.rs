//! `docs/annotations.md` and `docs/migrate.md` hold what the code holds.

use std::fmt::Write as _;

use super::*;
use crate::injector::annotations::ANNOTATIONS;

const PAGE: &str = include_str!("../../../docs/annotations.md");
const MIGRATE: &str = include_str!("../../../docs/migrate.md");

#[test]
fn table_of_annotations_is_that_of_the_code() {
    let mut table =
        "| annotation | value | default | example | what it sets |\n| --- | --- | --- | --- | --- |"
            .to_owned();
    for known in ANNOTATIONS {
        let _ = write!(
            table,
            "\n| `{}` | {} | {} | `{}` | {} |",
            known.name, known.value, known.default, known.example, known.about
        );
    }
    let (_, rest) = PAGE.split_once("<!-- annotations -->\n").unwrap();
    let (written, _) = rest.split_once("<!-- end of annotations -->").unwrap();
    assert!(written.trim() == table, "docs/annotations.md should have:\n\n{table}\n");
}

/// The pods of the page's manifests, as their controllers make them.
fn pods(page: &str) -> Vec<Value> {
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    blocks
        .map(|block| {
            let object: Value = serde_saphyr::from_str(block).unwrap();
            let template = &object["spec"]["template"];
            json!({ "metadata": template["metadata"], "spec": template["spec"] })
        })
        .collect()
}

#[test]
fn the_pages_example_gets_what_the_page_says() {
    let [pod] = &pods(PAGE)[..] else { panic!("one manifest") };
    let reviewed = Reviewed::of_default(pod).injected();
    let url = reviewed.env("web", "DATABASE_URL").unwrap();
    assert!(PAGE.contains(&format!("`DATABASE_URL={url}`")), "{url}");
    assert!(reviewed.warnings().is_empty());
}

#[test]
fn examples_of_annotations_are_taken() {
    for known in ANNOTATIONS.iter().filter(|known| !["vault-ca", "unix-socket"].contains(&known.name)) {
        let needed: &[(&str, &str)] = match known.name {
            "auth" => &[("auth-file", "secret/a")],
            "auth-file" => &[("auth", "password")],
            "peer-uids" => &[("auth", "peer"), ("unix-socket", "true")],
            "resources-memory-request" => &[("resources-memory-limit", "none")],
            _ => &[],
        };
        let mut pod = pod();
        for (name, value) in needed.iter().chain([&(known.name, known.example)]) {
            put(&mut pod, &annotation(name), json!(value));
        }
        let reviewed = Reviewed::of_default(&pod);
        assert_eq!(reviewed.answer.outcome, Outcome::Injected, "{}: {:#}", known.name, reviewed.response);
    }
}

#[test]
fn moving_from_the_vault_agent_is_one_step() {
    let [before, after] = &pods(MIGRATE)[..] else { panic!("two manifests") };
    assert_eq!(Reviewed::of_default(before).answer.outcome, Outcome::Unchanged);

    let reviewed = Reviewed::of_default(after).injected();
    for (variable, value) in [
        ("PGLEASE_VAULT_PATH", "database/creds/db-app"),
        ("PGLEASE_VAULT_LOGIN_ROLE", "web"),
        ("PGLEASE_UPSTREAM", "postgresql://db.example.com:5432/app"),
    ] {
        assert_eq!(reviewed.env("pglease", variable), Some(value));
    }
    let source = &reviewed.patched["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(source.get("audience"), None);
    let [warning] = reviewed.warnings()[..] else { panic!("{:?}", reviewed.warnings()) };
    assert!(warning.contains("pglease.dev/token-audience"), "{warning}");
}

#[test]
fn what_the_page_says_is_taken_is_taken() {
    let agents = |more: &[(&str, &str)]| {
        let mut annotations = json!({
            "pglease.dev/from-vault-agent": "true",
            "pglease.dev/upstream": "postgresql://db/app",
            "vault.hashicorp.com/role": "web",
            "vault.hashicorp.com/agent-inject-secret-a": "/database/static-creds/app",
            "vault.hashicorp.com/agent-inject-secret-b": "secret/data/web",
            "vault.hashicorp.com/namespace": "team",
            "vault.hashicorp.com/auth-path": "/auth/kubernetes/prod/",
            "vault.hashicorp.com/service": "https://vault.example.com",
        });
        for (name, value) in more {
            annotations[*name] = json!(value);
        }
        Reviewed::of_default(&pod_with(&[("/metadata/annotations", annotations)]))
    };
    let reviewed = agents(&[]);
    for (variable, value) in [
        ("PGLEASE_VAULT_PATH", "database/static-creds/app"),
        ("PGLEASE_VAULT_NAMESPACE", "team"),
        ("PGLEASE_VAULT_LOGIN_MOUNT", "kubernetes/prod"),
        ("PGLEASE_VAULT_ADDRESS", "https://vault.example.com"),
    ] {
        assert_eq!(reviewed.env("pglease", variable), Some(value));
    }
    let own =
        agents(&[("pglease.dev/vault-path", "database/creds/own"), ("pglease.dev/token-audience", "vault")]);
    assert_eq!(own.env("pglease", "PGLEASE_VAULT_PATH"), Some("database/creds/own"));
    assert!(own.warnings().is_empty(), "{:?}", own.warnings());

    let ca = [("vault.hashicorp.com/ca-cert", "/vault/tls/ca.pem")];
    let elsewhere = agents(&ca);
    assert!(
        elsewhere.warnings()[0].starts_with("vault.hashicorp.com/ca-cert is a file"),
        "{:?}",
        elsewhere.warnings()
    );
    let mounted = agents(&[ca[0], ("vault.hashicorp.com/tls-secret", "vault-tls")]);
    let items = json!([{ "key": "ca.pem", "path": "ca.crt" }]);
    assert_eq!(
        mounted.patched["spec"]["volumes"][1]["secret"],
        json!({ "secretName": "vault-tls", "items": items })
    );
    let wrong = agents(&[("vault.hashicorp.com/service", "vault:8200")]);
    assert!(wrong.refused().starts_with("vault.hashicorp.com/service: "), "{}", wrong.refused());
    let off = agents(&[("pglease.dev/from-vault-agent", "false")]);
    assert!(off.refused().contains("annotation pglease.dev/vault-path is missing"), "{}", off.refused());
}
