//! What is asked of the injector, and what it is not asked.

use super::*;

#[test]
fn only_the_creation_of_pods_is_acted_on() {
    let changes = [
        ("/request/operation", json!("UPDATE")),
        ("/request/operation", json!("DELETE")),
        ("/request/operation", json!("CONNECT")),
        ("/request/subResource", json!("ephemeralcontainers")),
        ("/request/resource/resource", json!("deployments")),
        ("/request/resource/group", json!("apps")),
        ("/request/resource/version", json!("v2")),
    ];
    for (pointer, value) in changes {
        let mut review = review(&pod());
        put(&mut review, pointer, value);
        put(&mut review, "/request/object", Value::Null);
        let answer = answer(review.to_string().as_bytes(), &defaults()).unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let response = json!({ "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": true });
        assert_eq!(body["response"], response, "{pointer}");
        assert_eq!(answer.outcome, Outcome::Unchanged);
    }
}

#[test]
fn reviews_are_answered_in_their_version_and_others_not_at_all() {
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let mut review = review(&pod());
        put(&mut review, "/apiVersion", json!(version));
        let answer = answer(review.to_string().as_bytes(), &defaults()).unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((&body["apiVersion"], answer.outcome), (&json!(version), Outcome::Injected));
    }
    for (pointer, value) in [
        ("/apiVersion", json!("admission.k8s.io/v2")),
        ("/apiVersion", Value::Null),
        ("/kind", json!("Pod")),
        ("/request", Value::Null),
        ("/request/uid", json!("")),
        ("/request/uid", json!(7)),
    ] {
        let mut review = review(&pod());
        put(&mut review, pointer, value);
        let bad = answer(review.to_string().as_bytes(), &defaults());
        assert!(matches!(bad, Err(BadReview::NotAReview)), "{pointer}: {bad:?}");
    }
    for object in [Value::Null, json!([]), json!("pod")] {
        let bad = answer(review(&object).to_string().as_bytes(), &defaults());
        assert!(matches!(bad, Err(BadReview::NoObject)), "{bad:?}");
    }
    for body in ["", "{", "\u{0}", "null", "[]"] {
        assert!(answer(body.as_bytes(), &defaults()).is_err(), "{body}");
    }
}

#[test]
fn a_dry_run_is_answered_as_any() {
    let mut review = review(&pod());
    let real = answer(review.to_string().as_bytes(), &defaults()).unwrap();
    put(&mut review, "/request/dryRun", json!(true));
    assert_eq!(answer(review.to_string().as_bytes(), &defaults()).unwrap(), real);
}

#[test]
fn malformed_pods_are_refused_in_words() {
    for (pointer, value) in [
        ("/spec/initContainers", json!({})),
        ("/spec/volumes", json!("none")),
        ("/spec/containers/0/env", json!({ "DATABASE_URL": "x" })),
    ] {
        let reviewed = Reviewed::of_default(&pod_with(&[(pointer, value)]));
        assert_eq!(reviewed.refused(), format!("{pointer} of the pod is not what Kubernetes has there"));
    }
    let reviewed = Reviewed::of_default(&pod_with(&[("/spec", json!(7))]));
    assert!(reviewed.refused().starts_with("/spec/volumes of the pod"));
}

#[test]
fn nulls_are_as_good_as_nothing() {
    let pod = pod_with(&[
        ("/spec/initContainers", Value::Null),
        ("/spec/volumes", Value::Null),
        ("/spec/containers/0/env", Value::Null),
    ]);
    assert_eq!(Reviewed::of_default(&pod).injected().env("web", "DATABASE_URL"), Some(URL));
}

#[test]
fn pods_that_do_not_ask_are_left_as_they_are() {
    for label in [Value::Null, json!("false"), json!("True"), json!("")] {
        let pod = pod_with(&[("/metadata/labels/pglease.dev~1inject", label)]);
        let reviewed = Reviewed::of_default(&pod);
        assert_eq!((reviewed.answer.outcome, reviewed.patched), (Outcome::Unchanged, pod));
    }
}

#[test]
fn windows_pods_are_left_alone() {
    let reviewed = Reviewed::of_default(&pod_with(&[("/spec/os/name", json!("windows"))]));
    assert_eq!(reviewed.answer.outcome, Outcome::Skipped);
}
