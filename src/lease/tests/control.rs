//! What an operator asks of a chain.

use serde_json::Value;

use super::fakes::Mood;
use super::*;
use crate::credential::Revocation;

const ASKED: &str = r#"pglease_rotations_total{trigger="asked",result="ok"}"#;

/// Every key of an object and of what is in it.
fn keys(of: &Value) -> Vec<String> {
    match of {
        Value::Object(fields) => {
            let nested = |(key, value): (&String, &Value)| {
                let inner = keys(value).into_iter().map(move |inner| format!("{key}.{inner}"));
                [key.clone()].into_iter().chain(inner.collect::<Vec<_>>())
            };
            fields.iter().flat_map(nested).collect()
        }
        Value::Array(items) => items.first().map(keys).unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn rotated(result: Result<Rotated, NoAnswer>) -> (String, usize) {
    let rotated = result.unwrap();
    (rotated.db_role, rotated.orphans)
}

#[tokio::test(start_paused = true)]
async fn rotation_that_is_asked_for_leaves_the_sessions_and_is_one_for_all_who_ask() {
    let rig = Rig::serving(|_, _| {}).await;
    let held = rig.hold().await;
    let (one, other) = tokio::join!(rig.rotate(false), rig.rotate(false));
    assert_eq!((rotated(one), rotated(other)), (("v-2".to_owned(), 0), ("v-2".to_owned(), 0)));

    assert_eq!(rig.user().await, "v-2");
    time::sleep(secs(60)).await;
    assert_eq!((*held.standing().borrow(), rig.vault.living_leases()), (Standing::Kept, 2));
    assert_eq!((rig.metric(ASKED), rig.vault.count(Operation::ReadCreds)), (1, 2));
    assert_eq!(rotated(rig.rotate(false).await).0, "v-3");
}

#[tokio::test(start_paused = true)]
async fn with_close_the_sessions_of_all_older_generations_end_and_their_leases_are_revoked() {
    let rig = Rig::serving(|_, _| {}).await;
    let oldest = rig.hold().await;
    rig.rotate(false).await.unwrap();
    let older = rig.hold().await;

    let sessions = async {
        for hold in [oldest, older] {
            let revoked = Standing::Revoked(Revocation::ByOperator);
            hold.standing().wait_for(|standing| *standing == revoked).await.unwrap();
            // An end that is told later does not take the order back.
            time::sleep(secs(3)).await;
            assert_eq!(*hold.standing().borrow(), revoked);
        }
    };
    let began = Instant::now();
    // The second joins the first, and wants no more than the new credential.
    let (closed, plain, ()) =
        tokio::join!(rig.rotate(true), async { (rig.rotate(false).await, began.elapsed()) }, sessions);
    assert_eq!((rotated(closed), rotated(plain.0).0.as_str()), (("v-3".to_owned(), 0), "v-3"));
    assert!(plain.1 < secs(1) && began.elapsed() > secs(6));
    assert_eq!((rig.vault.living_leases(), rig.user().await.as_str()), (1, "v-3"));
    assert_eq!(*rig.hold().await.standing().borrow(), Standing::Kept);
}

#[tokio::test(start_paused = true)]
async fn close_tells_of_what_could_not_be_revoked() {
    let rig = Rig::serving(|_, _| {}).await;
    rig.vault.fail(Operation::RevokeSelf, Fault::Status(500));
    assert_eq!(rotated(rig.rotate(true).await), ("v-2".to_owned(), 1));
}

#[tokio::test(start_paused = true)]
async fn what_vault_cannot_do_now_stays_wanted() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    let held = rig.hold().await;
    rig.vault.fail(Operation::Login, Fault::Status(503));
    let began = Instant::now();
    assert_eq!(rig.rotate(true).await, Err(NoAnswer::NotYet));
    assert!(began.elapsed() >= secs(25) && began.elapsed() < secs(26));

    let status = rig.status().await;
    let error = status.last_error.clone().unwrap();
    assert_eq!((error.operation, error.kind, error.code.as_deref()), ("login", "unavailable", Some("503")));
    assert!(
        status.rotation.as_ref().is_some_and(|rotation| rotation.close && rotation.trigger == Some("asked"))
    );
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    let documented =
        include_str!("../../../docs/status.md").split("<!-- status -->\n```json").nth(1).unwrap();
    let documented: Value = serde_json::from_str(documented.split("```").next().unwrap()).unwrap();
    assert_eq!(keys(&documented["chains"][0]), keys(&serde_json::to_value(&status).unwrap()));

    rig.vault.recover();
    time::sleep(secs(31)).await;
    assert_eq!(*held.standing().borrow(), Standing::Revoked(Revocation::ByOperator));
    assert_eq!(rig.user().await, "v-2");
}

#[tokio::test(start_paused = true)]
async fn successor_that_upstream_rejects_is_not_taken_for_the_asking() {
    let rig = Rig::serving(|_, _| {}).await;
    rig.upstream.set(Mood::Rejects);
    let (answer, ()) = tokio::join!(rig.rotate(false), async {
        for _ in 0..15 {
            time::sleep(secs(1)).await;
            assert_eq!(rig.user().await, "v-1");
        }
        rig.upstream.set(Mood::Accepts);
    });
    let made = rig.vault.count(Operation::ReadCreds);
    assert!(made > 2 && rotated(answer).0 == format!("v-{made}"), "{made}");
}

#[tokio::test(start_paused = true)]
async fn status_tells_of_each_generation_and_of_the_end() {
    let rig = Rig::serving(|_, _| {}).await;
    let held = rig.hold().await;
    rig.rotate(false).await.unwrap();
    time::sleep(secs(2)).await;

    let ChainStatus { state, kind, current, rotation, last_error, revocations, generations, .. } =
        rig.status().await;
    assert_eq!((kind, current.as_deref(), revocations), ("leased", Some("g2"), 0));
    assert!(["serving", "renewing"].contains(&state) && rotation.is_none() && last_error.is_none());
    let told: Vec<_> = generations
        .iter()
        .map(|of| (of.generation.as_str(), of.state, of.holders, of.standing, of.proven, of.end_is_final))
        .collect();
    assert_eq!(
        told,
        [("g1", "superseded", 1, "kept", true, false), ("g2", "current", 0, "kept", true, false)]
    );
    assert!(generations.iter().all(|of| of.lease_seconds <= Some(10) && of.token_seconds > Some(3_590)));

    drop(held);
    let handle = rig.handle.clone().unwrap();
    rig.end().await;
    assert_eq!(handle.status().await.err(), Some(NoAnswer::Ended));
    assert_eq!(handle.rotate(false).await, Err(NoAnswer::Ended));
}

#[tokio::test(start_paused = true)]
async fn figures_tell_of_what_is_there_and_no_more() {
    let rig = Rig::serving(|_, _| {}).await;
    let _held = rig.hold().await;
    rig.rotate(false).await.unwrap();
    let of_state = |state| {
        rig.metric(&format!("pglease_generations{{vault_path=\"database/creds/db-app\",state=\"{state}\"}}"))
    };
    let ends = || rig.metrics.encode().unwrap().matches("_expiry_timestamp_seconds{").count();
    let granted =
        |of| rig.metric(&format!("pglease_{of}_duration_seconds{{vault_path=\"database/creds/db-app\"}}"));
    time::sleep(secs(20)).await;
    assert_eq!((of_state("current"), of_state("superseded"), of_state("ended"), ends()), (1, 1, 0, 2));
    assert_eq!((granted("lease"), granted("token")), (10, 3600));
    assert!(rig.metric(r#"pglease_lease_renewals_total{result="ok"}"#) > 2);

    rig.vault.fail_all(Fault::Unreachable);
    time::sleep(secs(60)).await;
    assert_eq!((of_state("current"), of_state("superseded"), of_state("ended"), ends()), (0, 0, 1, 0));
}
