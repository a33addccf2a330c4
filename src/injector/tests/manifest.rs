//! Manifests of `deploy/` and YAML of the docs that the injector is for, or that do without it.

use super::*;
use crate::config::ObjectFile;

const SIDECAR: &str = include_str!("../../../deploy/sidecar/web.yaml");
const APPLICATION: &str = include_str!("../../../deploy/examples/web.yaml");
const PAGE: &str = include_str!("../../../docs/kubernetes.md");

/// What the chart gives every sidecar by the values that README.md has.
fn documented() -> SidecarConfig {
    SidecarConfig {
        image: "pglease:0.1.0".to_owned(),
        vault_ca: Some(ObjectFile::parse("configmap/ca/vault.pem").unwrap()),
        ..defaults()
    }
}

/// The YAML of a page.
fn blocks(page: &str) -> impl Iterator<Item = &str> {
    page.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0)
}

fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("---\n").filter(|document| document.contains("apiVersion: "));
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The pods of what makes pods.
fn pods_of(objects: Vec<Value>) -> Vec<Value> {
    let template = |object: Value| {
        let paths = ["/spec/template", "/spec/jobTemplate/spec/template"];
        let template = paths.iter().find_map(|path| object.pointer(path)).cloned();
        template.or_else(|| (object["kind"] == "Pod").then_some(object))
    };
    objects.into_iter().filter_map(template).collect()
}

#[test]
fn sidecar_that_is_written_out_is_the_one_that_is_injected() {
    let written = pods_of(documents(SIDECAR)).remove(0)["spec"].clone();

    let (lines, _) = SIDECAR.split_once("apiVersion: ").unwrap();
    let annotations =
        lines.lines().filter_map(|line| line.strip_prefix("#   pglease.dev/")?.split_once(": "));
    let annotations: Vec<_> = annotations.map(|(name, value)| (annotation(name), json!(value))).collect();
    assert_eq!(annotations.len(), 4);
    let mut pod = pod();
    pod["spec"] = written.clone();
    pod["spec"].as_object_mut().unwrap().remove("initContainers");
    pod["spec"].as_object_mut().unwrap().remove("volumes");
    pod["spec"]["containers"][0].as_object_mut().unwrap().remove("env");
    for (pointer, value) in annotations {
        put(&mut pod, &pointer, value);
    }
    let injected = Reviewed::of(&pod, &documented());
    assert_eq!(injected.answer.outcome, Outcome::Injected, "{:#}", injected.response);
    let injected = &injected.patched["spec"];
    assert!(
        *injected == written,
        "deploy/sidecar/web.yaml should have:\n{injected:#}\n\nand has:\n{written:#}"
    );
}

#[test]
fn pods_of_the_docs_are_injected_without_a_warning() {
    let objects = blocks(PAGE).chain([APPLICATION]).flat_map(documents).collect();
    let pods = pods_of(objects);
    assert_eq!(pods.len(), 5);
    for pod in pods {
        let reviewed = Reviewed::of(&pod, &documented());
        assert_eq!(reviewed.answer.outcome, Outcome::Injected, "{:#}\n{pod:#}", reviewed.response);
        assert_eq!(reviewed.warnings(), [""; 0], "{pod:#}");
        let url = "postgresql://app@localhost:5432/wizard?sslmode=disable";
        assert_eq!(
            reviewed.patched["spec"]["containers"][0]["env"][0],
            json!({ "name": "DATABASE_URL", "value": url })
        );
    }
}

#[test]
fn files_of_settings_of_the_docs_are_taken() {
    let objects = blocks(PAGE).flat_map(documents);
    let files: Vec<_> = objects.filter_map(|object| object.pointer("/data/pglease.toml").cloned()).collect();
    assert_eq!(files.len(), 1);
    for file in files {
        assert!(toml::de::DeTable::parse(file.as_str().unwrap()).is_ok(), "{file}");
    }
}
