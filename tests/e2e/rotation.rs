//! What an application sees of the life of a lease: nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time;
use tokio_postgres::error::SqlState;

use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_for, pglease_with, until, until_revoked, user_of};

#[tokio::test]
async fn two_rotations_pass_reconnecting_clients_a_held_session_and_an_open_transaction() {
    let world = World::short_lived(Revocation::NoLogin).await;
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;

    let held = pglease.connect("app").await.unwrap();
    let first_user = user_of(&held).await;
    let in_transaction = pglease.connect("app").await.unwrap();
    in_transaction.batch_execute("BEGIN; INSERT INTO t VALUES (1001)").await.unwrap();

    let rotated = AtomicBool::new(false);
    let reconnecting = async {
        let (mut users, began) = (BTreeSet::new(), time::Instant::now());
        // One connection may take as long as a rotation, on a busy machine.
        while !rotated.load(Ordering::Relaxed) || users.len() < 2 && began.elapsed() < PATIENCE {
            let session = pglease.connect("app").await.unwrap();
            users.insert(user_of(&session).await);
            assert_eq!(user_of(&held).await, first_user);
        }
        users
    };
    let rotations = async {
        pglease.wait_for_events("rotation.done", 2, PATIENCE).await;
        rotated.store(true, Ordering::Relaxed);
    };
    let (users, ()) = tokio::join!(reconnecting, rotations);

    assert!(users.len() >= 2, "{users:?}");
    in_transaction.batch_execute("INSERT INTO t VALUES (1002); COMMIT").await.unwrap();
    let committed = world.superuser.rows("SELECT count(*) FROM t WHERE id > 1000").await;
    assert_eq!(committed, [[Some("2".to_owned())]]);
    let done = async |result: &str| pglease.metric("pglease_rotations_total", result).await;
    assert!(done("result=\"ok\"").await + done("result=\"unproven\"").await >= 2.0);

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_revoked(&world, &pglease).await;
}

#[tokio::test]
async fn unused_credential_is_revoked_once_it_is_superseded_and_a_held_one_is_renewed() {
    let vault_roles = vec![VaultRole { default_ttl: "20s", max_ttl: "1h", ..VaultRole::default() }];
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let pglease = pglease_for(&world).await;
    let held = pglease.connect("app").await.unwrap();
    let first_user = user_of(&held).await;

    // By hand, so that the lease lives while the credential does not log in any more.
    world.superuser.batch_execute(&format!("ALTER ROLE \"{first_user}\" NOLOGIN")).await.unwrap();
    let second = pglease.connect("app").await.unwrap();
    assert_ne!(user_of(&second).await, first_user);
    pglease.wait_for_event("rotation.done", PATIENCE).await;

    // Two renewals, each at half of 20 s and more, are more than it would live without.
    let renewals_of_first = || {
        let renewed = pglease.events("lease.renewed");
        renewed.iter().filter(|event| event["db_role"] == first_user.as_str()).count()
    };
    let before = renewals_of_first();
    until(async || renewals_of_first() >= before + 2).await;
    assert_eq!(user_of(&held).await, first_user);

    drop(held);
    let revoked = pglease.wait_for_event("lease.revoked", PATIENCE).await;
    assert_eq!(revoked["db_role"], first_user.as_str());
    user_of(&second).await;
}

#[tokio::test]
async fn refused_credential_brings_one_new_one_for_all_who_wait() {
    let world = World::shared(WorldOptions::default()).await;
    // Enough for all of their logins on a machine that does much else.
    let settings = world.settings_with("debug", &world.servers.openbao.address(), "");
    let pglease = Arc::new(pglease_with(&(settings + &world.route("db-app"))).await);
    let [(refused, _)] = &world.leased_roles().await[..] else { panic!("one role") };
    let sql = format!("ALTER ROLE \"{refused}\" PASSWORD 'changed by hand'");
    world.superuser.batch_execute(&sql).await.unwrap();

    let mut clients = JoinSet::new();
    for _ in 0..30 {
        let pglease = Arc::clone(&pglease);
        clients.spawn(async move { user_of(&pglease.connect("app").await.unwrap()).await });
    }
    let users: BTreeSet<_> = clients.join_all().await.into_iter().collect();

    assert_eq!(users.len(), 1, "{users:?}");
    assert!(!users.contains(refused));
    assert_eq!(world.leased_roles().await.len(), 2);
    pglease.wait_for_event("rotation.done", PATIENCE).await;
    let rotations = pglease.logged("rotation.done").await;
    assert!(matches!(&rotations[..], [done] if done["trigger"] == "rejected"), "{rotations:?}");
}

#[tokio::test]
async fn session_is_told_before_its_role_is_dropped() {
    let world = World::short_lived(Revocation::Drop).await;
    let pglease = pglease_for(&world).await;
    let idle = pglease.connect("app").await.unwrap();
    let busy = pglease.connect("app").await.unwrap();

    // One asks again and again, the other says nothing; neither meets a role that is gone.
    let working = async {
        loop {
            // By one message: behind a prepared statement the driver says Close, and drops an answer to that.
            if let Err(error) = busy.batch_execute("SELECT count(*) FROM t").await {
                return error;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let error = time::timeout(PATIENCE, working).await.unwrap();
    // A goodbye that crosses a statement is that statement's error.
    let busy_told = match error.as_db_error() {
        Some(told) => told.clone(),
        None => busy.last_words().await.unwrap(),
    };
    for told in [busy_told, idle.last_words().await.unwrap()] {
        assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{told:?}");
        assert!(told.hint().is_some_and(|hint| hint.contains("at_lease_end")), "{told:?}");
    }

    pglease.wait_for_events("session.end", 2, PATIENCE).await;
    let ends = pglease.events("session.end");
    // Over, where a statement takes longer than 2.5 s on a busy machine.
    let by_the_lease = |reason: &serde_json::Value| reason == "lease_ends" || reason == "lease_over";
    assert!(ends.iter().all(|end| by_the_lease(&end["reason"])), "{ends:?}");
    pglease.connect("app").await.unwrap().query("SELECT count(*) FROM t", &[]).await.unwrap();
    // The role of the lease that ended is dropped, the one that serves is there.
    until(async || world.leased_roles().await.len() == 1).await;
}

#[tokio::test]
async fn session_ends_at_an_idle_point_once_it_is_as_old_as_its_route_lets_it_get() {
    let world = World::shared(WorldOptions::default()).await;
    let route = world.route("db-app") + "max_session_age = \"6s\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let began = time::Instant::now();
    let idle = pglease.connect("app").await.unwrap();
    let busy = pglease.connect("app").await.unwrap();
    busy.batch_execute("BEGIN").await.unwrap();

    let told = idle.last_words().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(5400), "{:?}", began.elapsed());
    assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{told:?}");
    assert!(told.detail().is_some_and(|detail| detail.contains("max_session_age")), "{told:?}");
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "max_session_age", "{end}");

    // Older than the oldest may get when idle, and in a transaction.
    time::sleep_until(began + Duration::from_secs(8)).await;
    busy.batch_execute("INSERT INTO t VALUES (3001); COMMIT").await.unwrap();
    busy.last_words().await.unwrap();
    let committed = world.superuser.rows("SELECT count(*) FROM t WHERE id = 3001").await;
    assert_eq!(committed, [[Some("1".to_owned())]]);
    // The lease lives on.
    assert_eq!(world.living_roles().await.len(), 1);
    assert_eq!(pglease.events("rotation.done").len(), 0);
}
