//! What must hold for every pod and every body.

use proptest::prelude::*;

use super::*;

/// JSON of any shape, more often than not with the names that pods have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "(true|false|pglease|Always|database/creds/a|postgresql://db/a|[a-z<>$(/~]{0,8}|.{0,5})"
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(member(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn member() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "metadata",
            "spec",
            "name",
            "annotations",
            "labels",
            "containers",
            "initContainers",
            "env",
            "value",
            "volumes",
            "volumeMounts",
            "mountPath",
            "ports",
            "containerPort",
            "securityContext",
            "runAsUser",
            "restartPolicy",
            "hostNetwork",
            "pglease.dev/inject",
            "pglease.dev/status",
        ])
        .prop_map(str::to_owned),
        ".{0,6}",
    ]
}

/// Values for any of our annotations.
fn any_annotations() -> impl Strategy<Value = Vec<(String, String)>> {
    let names: Vec<&str> = super::super::annotations::ANNOTATIONS
        .iter()
        .map(|known| known.name)
        .chain(["status", "typo", "file-a", "file-b", "file-template-a", "file-format-a", "file-path-b"])
        .chain(["file-mode-a", "file-upstream-a", "file-on-change-a", "file-", "file-template-"])
        .collect();
    let examples: Vec<&str> =
        super::super::annotations::ANNOTATIONS.iter().map(|known| known.example).collect();
    let value = prop_oneof![
        prop::sample::select(examples).prop_map(str::to_owned),
        "(database/creds/a|json|uri|env|/a|b/c|SIGHUP a|\\{\\{ with secret \"database/creds/a\" \\}\\}x\\{\\{ end \\}\\})",
        "(true|false|none|allow|password|peer|trust|reject|[0-9]{1,6}|[0-9]{1,3}(Mi|m|s)|.{0,12})",
    ];
    prop::collection::vec((prop::sample::select(names).prop_map(str::to_owned), value), 0..6)
}

fn reviewed_twice(pod: &Value, sidecar: &SidecarConfig) {
    let reviewed = Reviewed::of(pod, sidecar);
    let again = Reviewed::of(&reviewed.patched, sidecar);
    assert_eq!(operations(&again.response), json!([]), "{pod:#}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_pod_panics_and_what_is_there_stays(spec in any_json(), metadata in any_json(), native in any::<bool>()) {
        let mut pod = pod();
        for (own, more) in [("spec", spec), ("metadata", metadata)] {
            if let (Some(own), Value::Object(more)) = (pod[own].as_object_mut(), more) {
                more.into_iter().for_each(|(key, value)| { own.entry(key).or_insert(value); });
            }
        }
        reviewed_twice(&pod, &SidecarConfig { native, ..defaults() });
    }

    #[test]
    fn no_object_panics(object in any_json()) {
        let body = review(&object).to_string();
        let _ = answer(body.as_bytes(), &defaults());
    }

    #[test]
    fn no_annotation_panics(values in any_annotations(), native in any::<bool>(), containers in any_json()) {
        let mut pod = pod();
        for (name, value) in values {
            put(&mut pod, &annotation(&name), json!(value));
        }
        reviewed_twice(&pod, &SidecarConfig { native, ..defaults() });
        put(&mut pod, "/spec/initContainers", containers.clone());
        put(&mut pod, "/spec/containers/0/env", containers);
        reviewed_twice(&pod, &SidecarConfig { native, ..defaults() });
    }

    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..256), cut in any::<prop::sample::Index>()) {
        let _ = answer(&body, &defaults());
        let whole = review(&pod()).to_string();
        prop_assert!(answer(&whole.as_bytes()[..cut.index(whole.len())], &defaults()).is_err());
    }
}

#[test]
fn deep_and_huge_bodies_are_answered() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(answer(deep.as_bytes(), &defaults()), Err(BadReview::Json(_))));
    let huge = pod_with(&[(&annotation("typo"), json!("x".repeat(1 << 20)))]);
    Reviewed::of_default(&huge).injected();
}
