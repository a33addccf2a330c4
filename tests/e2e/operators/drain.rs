//! The drain, as its settings and its commands have it.

use serde_json::Value;

use crate::raw::Raw;
use crate::support::gate::Gate;
use crate::support::http_client;
use crate::support::pglease::Pglease;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until, until_revoked};

/// Waits until this statement runs, or runs no more.
async fn until_running(world: &World<'_>, statement: &str, is_running: bool) {
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = '{statement}' AND state = 'active'"
    );
    until(async || world.superuser.rows(&sql).await.is_empty() != is_running).await;
}

/// pglease in a drain that lets new sessions in, and leaves all of them alone, for ten minutes.
async fn slow_drain(world: &World<'_>) -> Pglease {
    let drain = "[drain]\naccept_for = \"10m\"\ngrace = \"10m\"\ndeadline = \"10m\"\n\n";
    pglease_with(&(world.settings() + drain + &world.route("db-app"))).await
}

#[tokio::test]
async fn clients_are_let_in_served_and_cancelled_while_a_drain_accepts() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = slow_drain(&world).await;
    let early = pglease.connect("app").await.unwrap();
    pglease.sigterm();
    until(async || pglease.get("/readyz").await.0 == 503).await;

    let late = pglease.connect("app").await.unwrap();
    for session in [&early, &late] {
        assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
    }
    // A cancel is delivered, and a hang-up is one.
    let sleeping = early.batch_execute("SELECT pg_sleep(611)");
    let cancelling = async {
        until_running(&world, "SELECT pg_sleep(611)", true).await;
        early.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (cancelled, ()) = tokio::join!(sleeping, cancelling);
    let cancelled = cancelled.unwrap_err();
    assert_eq!(cancelled.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED), "{cancelled:?}");
    drop(late);
    let (mut leaving, _) =
        Raw::log_in(pglease.addresses()[0], &[("user", "app"), ("database", "app")], "").await;
    leaving.query("SELECT pg_sleep(612)").await;
    until_running(&world, "SELECT pg_sleep(612)", true).await;
    drop(leaving);
    until_running(&world, "SELECT pg_sleep(612)", false).await;
    // At pglease as well, so that one is left to be cut.
    pglease.wait_for_events("session.end", 2, PATIENCE).await;

    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    let ends = pglease.events("session.end");
    let reasons: Vec<_> = ends.iter().map(|end| end["reason"].as_str().unwrap()).collect();
    assert!(reasons.contains(&"hung_up") && reasons.contains(&"cut"), "{reasons:?}");
    assert_eq!(pglease.events("process.end")[0]["sessions_cut"], 1);
    until_revoked(&world, &pglease).await;
}

#[tokio::test]
async fn quitquitquit_is_answered_at_once_and_drains() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = slow_drain(&world).await;
    let session = pglease.connect("app").await.unwrap();

    let url = format!("http://{}/quitquitquit", pglease.admin());
    let answer = http_client().post(url).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(
        (answer["phase"].as_str(), answer["deadline_seconds"].as_u64()),
        (Some("draining"), Some(600))
    );
    // It has not waited for the session.
    assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
    assert_eq!(pglease.status().await["phase"], "draining");

    // The first signal, which Kubernetes sends behind a preStop command, changes nothing; another one cuts. Two that
    // come at once are one.
    until(async || {
        pglease.sigterm();
        session.is_closed()
    })
    .await;
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn strict_exit_tells_of_what_a_drain_has_lost() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.openbao.port()).await;
    let vault = format!("http://{}", gate.address());
    let settings = world.settings_with("debug", &vault, "connect_wait = \"1m\"")
        + "[drain]\ndeadline = \"10m\"\nstrict_exit = true\n\n"
        + &world.route("db-app");
    let (no_loss, cut, no_vault) = ((false, true, 0), (true, true, 3), (false, false, 3));
    let mut cases = vec![no_vault, cut, no_loss];
    while let Some((is_busy, has_vault, code)) = cases.pop() {
        let pglease = pglease_with(&settings).await;
        let session = pglease.connect("app").await.unwrap();
        if is_busy {
            session.batch_execute("BEGIN").await.unwrap();
        }
        if !has_vault {
            gate.close().await;
        }
        pglease.sigterm();
        if is_busy {
            pglease.wait_for_event("drain.start", PATIENCE).await;
            pglease.sigterm();
        }
        let exit = pglease.wait_exit(PATIENCE).await.code();
        let end = &pglease.events("process.end")[0];
        // A Vault that has not answered within the 5 s of an end says nothing of the code: once more.
        let unanswered = pglease.events("lease.orphaned").iter().any(|orphan| orphan["code"].is_null());
        if has_vault && unanswered {
            assert_eq!(exit, Some(3), "{end}");
            cases.push((is_busy, has_vault, code));
            continue;
        }
        assert_eq!(exit, Some(code), "busy: {is_busy}, Vault: {has_vault}, {end}");
        assert_eq!(end["sessions_cut"], u64::from(is_busy), "{end}");
        assert_eq!(end["not_revoked"], u64::from(!has_vault), "{end}");
    }
}
