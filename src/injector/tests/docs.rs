//! The docs and manifests hold what the code holds.

use std::fmt::Write as _;

use super::*;
use crate::config::{ObjectFile, ObjectKind};
use crate::injector::annotations::{ANNOTATIONS, Annotation, FILE_ANNOTATIONS};

const PAGE: &str = include_str!("../../../docs/annotations.md");
const MIGRATE: &str = include_str!("../../../docs/migrate.md");
const KUBERNETES: &str = include_str!("../../../docs/kubernetes.md");
const README: &str = include_str!("../../../README.md");
const EXAMPLE: &str = include_str!("../../../deploy/examples/web.yaml");
const WRITTEN_OUT: &str = include_str!("../../../deploy/sidecar/web.yaml");
const REAPER: &str = include_str!("../../../deploy/postgres/reaper-cronjob.yaml");

#[test]
fn tables_of_annotations_are_those_of_the_code() {
    is_table("annotations", ANNOTATIONS);
    is_table("annotations of files", FILE_ANNOTATIONS);
}

fn is_table(marker: &str, annotations: &[Annotation]) {
    let mut table =
        "| annotation | value | default | example | what it sets |\n| --- | --- | --- | --- | --- |"
            .to_owned();
    for known in annotations {
        let _ = write!(
            table,
            "\n| `{}` | {} | {} | `{}` | {} |",
            known.name, known.value, known.default, known.example, known.about
        );
    }
    let (_, rest) = PAGE.split_once(&format!("<!-- {marker} -->\n")).unwrap();
    let (written, _) = rest.split_once(&format!("<!-- end of {marker} -->")).unwrap();
    assert!(written.trim() == table, "docs/annotations.md should have:\n\n{table}\n");
}

/// The pods of a page's manifests, as their controllers make them.
fn pods(page: &str) -> Vec<Value> {
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    blocks.flat_map(pods_of_manifests).collect()
}

/// Objects that are and make none are left out.
fn pods_of_manifests(text: &str) -> Vec<Value> {
    let objects = text.split("\n---\n").filter(|object| object.lines().any(|line| !line.starts_with('#')));
    let objects = objects.map(|object| serde_saphyr::from_str::<Value>(object).unwrap());
    objects.filter_map(|object| pod_of(&object)).collect()
}

fn pod_of(object: &Value) -> Option<Value> {
    match object["kind"].as_str()? {
        "Pod" => Some(object.clone()),
        "CronJob" => pod_of(&json!({ "kind": "Job", "spec": object["spec"]["jobTemplate"]["spec"] })),
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => {
            let template = &object["spec"]["template"];
            Some(json!({ "metadata": template["metadata"], "spec": template["spec"] }))
        }
        _ => None,
    }
}

/// What the pages have an operator set.
fn operators() -> SidecarConfig {
    let vault_ca =
        ObjectFile { kind: ObjectKind::ConfigMap, name: "ca".to_owned(), key: "vault.pem".to_owned() };
    SidecarConfig { image: "pglease:0.1.0".to_owned(), vault_ca: Some(vault_ca), ..defaults() }
}

#[test]
fn every_pod_of_the_docs_that_asks_gets_its_sidecar() {
    let pages = [README, KUBERNETES, PAGE, MIGRATE].into_iter().flat_map(pods);
    let pods: Vec<Value> = pages.chain(pods_of_manifests(EXAMPLE)).collect();
    let asking: Vec<&Value> =
        pods.iter().filter(|pod| pod["metadata"]["labels"]["pglease.dev/inject"] == "true").collect();
    assert!(asking.len() >= 8, "{} pods", asking.len());
    for pod in asking {
        let reviewed = Reviewed::of(pod, &operators());
        assert_eq!(reviewed.answer.outcome, Outcome::Injected, "{pod:#} {:#}", reviewed.response);
        let migrates = pod["metadata"]["annotations"]["pglease.dev/from-vault-agent"] == "true";
        assert_eq!(reviewed.warnings().len(), usize::from(migrates), "{pod:#} {:?}", reviewed.warnings());
    }
}

#[test]
fn sidecars_written_out_are_what_the_injector_makes() {
    for manifests in [WRITTEN_OUT, REAPER] {
        let [written] = &pods_of_manifests(manifests)[..] else { panic!("one pod") };
        let mut asking = written.clone();
        let spec = asking["spec"].as_object_mut().unwrap();
        spec.remove("initContainers");
        spec.remove("volumes");
        let author = spec["containers"][0].as_object_mut().unwrap();
        if author["env"][0]["name"] == "DATABASE_URL" {
            author.remove("env");
        }
        asking["metadata"]["labels"]["pglease.dev/inject"] = json!("true");
        // Stand in a comment of the file.
        let commented = manifests.lines().filter_map(|line| line.strip_prefix("#   ")?.split_once(": "));
        asking["metadata"]["annotations"] = commented.map(|(name, value)| (name, value.to_owned())).collect();
        let reviewed = Reviewed::of(&asking, &operators());
        assert_eq!(reviewed.patched["spec"], written["spec"], "{:#}", reviewed.patched["spec"]);
    }
}

#[test]
fn files_of_settings_in_the_docs_are_files_of_settings() {
    let blocks = KUBERNETES.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let objects = blocks.flat_map(|block| block.split("\n---\n"));
    let objects = objects.map(|object| serde_saphyr::from_str::<Value>(object).unwrap());
    let files: Vec<_> = objects.filter_map(|object| object.pointer("/data/pglease.toml").cloned()).collect();
    assert_eq!(files.len(), 1);
    for file in files {
        assert!(DeTable::parse(file.as_str().unwrap()).is_ok(), "{file}");
    }
}

#[test]
fn the_pages_example_gets_what_the_page_says() {
    let [pod, backup] = &pods(PAGE)[..] else { panic!("two manifests") };
    let reviewed = Reviewed::of_default(pod).injected();
    let url = reviewed.env("web", "DATABASE_URL").unwrap();
    assert!(PAGE.contains(&format!("`DATABASE_URL={url}`")), "{url}");
    assert!(reviewed.warnings().is_empty());

    let reviewed = Reviewed::of_default(backup).injected();
    assert_eq!(reviewed.env("backup", "DATABASE_URL"), None);
    assert!(reviewed.env("pglease", "PGLEASE_FILES").unwrap().contains("path = \"/vault/secrets/db\""));
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
fn examples_of_annotations_of_files_are_taken() {
    for known in FILE_ANNOTATIONS {
        let mut pod = pod_with(&[("/spec/shareProcessNamespace", json!(true))]);
        put(&mut pod, &annotation("file-db"), json!("database/creds/db-app"));
        put(&mut pod, &annotation(&known.name.replace("<name>", "db")), json!(known.example));
        let reviewed = Reviewed::of_default(&pod);
        assert_eq!(reviewed.answer.outcome, Outcome::Injected, "{}: {:#}", known.name, reviewed.response);
    }
}

#[test]
fn moving_from_the_vault_agent_is_two_steps() {
    let [before, files, after] = &pods(MIGRATE)[..] else { panic!("three manifests") };
    assert_eq!(Reviewed::of_default(before).answer.outcome, Outcome::Unchanged);
    assert_eq!(files["spec"], before["spec"]);
    let reviewed = Reviewed::of_default(files).injected();
    let template = &before["metadata"]["annotations"]["vault.hashicorp.com/agent-inject-template-db"];
    let [file] = &reviewed.files()[..] else { panic!("one file") };
    assert_eq!(file["template"], template.as_str().unwrap());
    assert_eq!(file["path"], "/vault/secrets/db");
    let web = &reviewed.patched["spec"]["containers"][0];
    assert_eq!(
        web["volumeMounts"],
        json!([{ "name": "pglease-files", "mountPath": "/vault/secrets", "readOnly": true }])
    );
    assert_eq!(web.get("env"), None);

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
    let [of_static, warning] = own.warnings()[..] else { panic!("{:?}", own.warnings()) };
    let said = "vault.hashicorp.com/agent-inject-secret-a: of a static role the Agent writes more than username and password";
    assert_eq!(of_static, said);
    assert!(
        warning.starts_with("vault.hashicorp.com/agent-inject-secret-b is none of a database's"),
        "{warning}"
    );

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
