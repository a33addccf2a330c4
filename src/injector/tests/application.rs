//! What the author's containers get.

use super::*;
use crate::config::Conflict;

#[test]
fn containers_that_another_webhook_adds_get_what_they_lack() {
    let first = Reviewed::of_default(&pod()).injected();
    let mut more = first.patched.clone();
    more["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "logs", "image": "logs" }));
    more["spec"]["initContainers"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({ "name": "first", "image": "first" }));
    more["spec"]["initContainers"].as_array_mut().unwrap().push(json!({ "name": "last", "image": "last" }));

    let second = Reviewed::of_default(&more).injected();
    assert_eq!(second.names("/spec/initContainers"), ["first", "pglease", "last"]);
    let urls = ["first", "last", "web", "logs"].map(|name| second.env(name, "DATABASE_URL"));
    assert_eq!(urls, [None, Some(URL), Some(URL), Some(URL)]);
    assert_eq!(operations(&second.response).as_array().unwrap().len(), 2);
}

#[test]
fn only_named_containers_get_anything_and_a_slip_is_told() {
    let pod = pod_with(&[
        (&annotation("containers"), json!("migrate, webb")),
        ("/spec/initContainers", json!([{ "name": "migrate" }, { "name": "other" }])),
    ]);
    let reviewed = Reviewed::of_default(&pod).injected();
    let urls = ["migrate", "other", "web"].map(|name| reviewed.env(name, "DATABASE_URL"));
    assert_eq!(urls, [Some(URL), None, None]);
    assert_eq!(
        reviewed.warnings(),
        ["pglease.dev/containers: the pod has no container webb; did you mean web?"]
    );
}

#[test]
fn fifty_containers_all_get_their_url() {
    let containers: Vec<Value> = (0..50).map(|index| json!({ "name": format!("c{index}") })).collect();
    let reviewed = Reviewed::of_default(&pod_with(&[("/spec/containers", json!(containers))])).injected();
    for index in 0..50 {
        assert_eq!(reviewed.env(&format!("c{index}"), "DATABASE_URL"), Some(URL));
    }
}

#[test]
fn what_the_author_set_stays_or_the_pod_is_refused() {
    let reject = SidecarConfig { conflict: Conflict::Reject, ..defaults() };
    for own in [
        json!({ "name": "DATABASE_URL", "value": "other" }),
        json!({ "name": "DATABASE_URL", "value": "" }),
        json!({ "name": "DATABASE_URL" }),
        json!({ "name": "DATABASE_URL", "valueFrom": { "secretKeyRef": { "name": "a", "key": "b" } } }),
    ] {
        let pod = pod_with(&[("/spec/containers/0/env", json!([own]))]);
        let kept = Reviewed::of_default(&pod).injected();
        assert_eq!(kept.patched["spec"]["containers"], pod["spec"]["containers"]);
        assert_eq!(kept.warnings(), ["container web sets DATABASE_URL itself, which stays as it is"]);
        assert!(Reviewed::of(&pod, &reject).refused().starts_with("container web sets DATABASE_URL itself"));
    }
    let same = pod_with(&[("/spec/containers/0/env", json!([{ "name": "DATABASE_URL", "value": URL }]))]);
    assert_eq!(Reviewed::of(&same, &reject).answer.outcome, Outcome::Injected);
}

#[test]
fn variables_may_name_one_another() {
    let others =
        json!([{ "name": "DB_PASSWORD", "value": "x" }, { "name": "SPRING", "value": "jdbc:$(PGHOST)" }]);
    let pod = pod_with(&[
        ("/spec/containers/0/env", others),
        (&annotation("pg-env"), json!("true")),
        (&annotation("database-url"), json!("postgresql://<user>:$(DB_PASSWORD)@<host>:<port>/<database>")),
        (&annotation("database"), json!("a$b/c")),
    ]);
    let reviewed = Reviewed::of_default(&pod).injected();
    let env = &reviewed.patched["spec"]["containers"][0]["env"];
    let names: Vec<&str> = env.as_array().unwrap().iter().map(crate::injector::pod::name).collect();
    let expected =
        ["PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSSLMODE", "DB_PASSWORD", "SPRING", "DATABASE_URL"];
    assert_eq!(names, expected);
    let url = "postgresql://app:$(DB_PASSWORD)@localhost:5432/a%24b%2Fc";
    assert_eq!(reviewed.env("web", "DATABASE_URL"), Some(url));
    assert_eq!(reviewed.env("web", "PGDATABASE"), Some("a$$b/c"));
}

#[test]
fn the_url_is_left_out_where_nobody_wants_it() {
    let pod = pod_with(&[(&annotation("database-url-env"), json!("none"))]);
    assert_eq!(Reviewed::of_default(&pod).injected().env("web", "DATABASE_URL"), None);
    let file = json!({ "pglease.dev/config": "secret/web-pglease/file.toml" });
    let reviewed = Reviewed::of_default(&pod_with(&[("/metadata/annotations", file)])).injected();
    assert_eq!(reviewed.env("web", "DATABASE_URL"), None);
    let items = json!([{ "key": "file.toml", "path": "pglease.toml" }]);
    assert_eq!(
        reviewed.patched["spec"]["volumes"][1]["secret"],
        json!({ "secretName": "web-pglease", "items": items })
    );
}

#[test]
fn a_mount_at_the_sockets_place_is_a_conflict() {
    let mounts = json!([{ "name": "own", "mountPath": "/var/run/pglease/" }]);
    let changes = [("/spec/containers/0/volumeMounts", mounts), (&annotation("unix-socket"), json!("true"))];
    let pod = pod_with(&changes);
    let reviewed = Reviewed::of_default(&pod).injected();
    let warning = "container web has a volume of its own at /var/run/pglease, which stays as it is";
    assert_eq!(reviewed.warnings(), [warning]);
    assert_eq!(
        reviewed.patched["spec"]["containers"][0]["volumeMounts"],
        pod["spec"]["containers"][0]["volumeMounts"]
    );
}
