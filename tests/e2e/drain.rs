//! SIGTERM: sessions first, credentials after.

use tokio_postgres::error::SqlState;

use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until, until_revoked};

#[tokio::test]
async fn drain_ends_idle_sessions_lets_statements_finish_and_revokes() {
    // With a temporary table open, the engine's own revocation would fail: the session must end first.
    let vault_roles = vec![VaultRole { revocation: Revocation::Drop, ..VaultRole::default() }];
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let settings = world.settings() + "[drain]\ndeadline = \"10m\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let idle = pglease.connect("app").await.unwrap();
    idle.batch_execute("CREATE TEMP TABLE mine (id int)").await.unwrap();
    let busy = pglease.connect("app").await.unwrap();

    // Until all else has been looked at.
    world.superuser.rows("SELECT pg_advisory_lock(1)").await;
    let statement = busy.query_one("SELECT 'finished' FROM pg_advisory_lock(1)", &[]);
    let draining = async {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%finished%' AND wait_event = 'advisory'";
        until(async || !world.superuser.rows(sql).await.is_empty()).await;
        pglease.sigterm();
        until(async || idle.is_closed()).await;
        assert_eq!(pglease.get("/readyz").await.0, 503);
        let refused = pglease.connect("app").await.err().unwrap();
        assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
        world.superuser.rows("SELECT pg_advisory_unlock(1)").await;
    };
    let (finished, ()) = tokio::join!(statement, draining);
    assert_eq!(finished.unwrap().get::<_, String>(0), "finished");

    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    until(async || world.leased_roles().await.is_empty()).await;
}

#[tokio::test]
async fn second_signal_cuts_what_the_first_would_wait_for() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + "[drain]\ndeadline = \"10m\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let session = pglease.connect("app").await.unwrap();
    let statement = session.batch_execute("SELECT pg_sleep(600)");

    let cutting = async {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)' AND state = 'active'";
        until(async || !world.superuser.rows(sql).await.is_empty()).await;
        pglease.sigterm();
        pglease.wait_for_event("drain.start", PATIENCE).await;
        pglease.sigterm();
        assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    };
    let (cut, ()) = tokio::join!(statement, cutting);
    assert!(cut.is_err());
    until_revoked(&world, &pglease).await;
    // No statement runs on for a client that is gone.
    let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)' AND state = 'active'";
    until(async || world.superuser.rows(sql).await.is_empty()).await;
}

#[tokio::test]
async fn sessions_still_open_at_the_deadline_are_told() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + "[drain]\ndeadline = \"1s\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("BEGIN").await.unwrap();

    pglease.sigterm();
    until(async || session.is_closed()).await;
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    let ends = pglease.events("session.end");
    assert_eq!(ends[0]["reason"], "cut", "{ends:?}");
}
