//! Pods of many kinds, each with the answer that it gets.
//!
//! `golden/<name>.yaml` is the pod; `golden/<name>.json` the answer, which `PGLEASE_TEST_GOLDEN=write` writes anew, for
//! `git diff` to show what changes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

#[test]
fn every_golden_pod_gets_its_golden_answer() {
    let pods = golden_pods();
    assert!(pods.len() >= 15, "{} pods", pods.len());
    let mut wrong = Vec::new();
    for path in pods {
        let text = fs::read_to_string(&path).unwrap();
        let pod: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let native = !text.contains("# injector.native_sidecar = false");
        let reviewed = Reviewed::of(&pod, &SidecarConfig { native, ..defaults() });
        let mut golden = String::new();
        write_json(&shown(&reviewed), 0, &mut golden);
        golden.push('\n');
        let file = path.with_extension("json");
        if is_written() {
            fs::write(&file, golden).unwrap();
        } else if fs::read_to_string(&file).unwrap_or_default() != golden {
            wrong.push(format!("{} should read:\n{golden}", file.display()));
        }
        for warning in reviewed.warnings() {
            assert!(warning.len() <= 120, "too long for kubectl: {warning}");
        }
        let again = Reviewed::of(&reviewed.patched, &SidecarConfig { native, ..defaults() });
        assert_eq!(operations(&again.response), json!([]), "{} is patched twice", path.display());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn golden_pods() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/injector/tests/golden");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut pods: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    pods.sort();
    pods
}

fn shown(reviewed: &Reviewed) -> Value {
    json!({
        "outcome": format!("{:?}", reviewed.answer.outcome),
        "reason": reviewed.answer.reason,
        "warnings": reviewed.warnings(),
        "patch": operations(&reviewed.response),
    })
}

/// JSON with what is short on one line.
fn write_json(value: &Value, depth: usize, out: &mut String) {
    let short = value.to_string();
    let items: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (format!("{key:?}: "), value)).collect(),
        Value::Array(list) => list.iter().map(|item| (String::new(), item)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    if short.len() + depth * 2 <= 100 || items.is_empty() {
        out.push_str(&short);
        return;
    }
    let (open, close) = if value.is_object() { ("{", "}") } else { ("[", "]") };
    out.push_str(open);
    for (index, (key, item)) in items.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}\n{}{key}", "  ".repeat(depth + 1));
        write_json(item, depth + 1, out);
    }
    let _ = write!(out, "\n{}{close}", "  ".repeat(depth));
}

fn is_written() -> bool {
    #[expect(clippy::disallowed_methods, reason = "a switch of the tests, no setting")]
    let switch = std::env::var_os("PGLEASE_TEST_GOLDEN");
    switch.is_some()
}
