//! Sessions at the end of their lease, by what its revocation does to them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time;
use tokio_postgres::error::{DbError, SqlState};

use super::{assert_nothing_was_forbidden, granted, of};
use crate::support::audit::Request;
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_for, pglease_with, refused_revocations, until, user_of};

/// As short as leaves a busy machine the time to try a revocation out between the rotation, which is 12 s before the end
/// at least, and the first goodbyes, 5 s before it.
fn short_lived(revocation: Revocation) -> VaultRole {
    VaultRole { default_ttl: "40s", max_ttl: "55s", revocation, ..VaultRole::default() }
}

/// What it learns of a revocation: where this machine is too slow for that at the end of one lease, at that of the next
/// one that has sessions.
async fn learned(pglease: &Pglease) -> Value {
    let mut sessions = Vec::new();
    until(async || {
        sessions.push(pglease.connect("app").await.unwrap());
        let learned = |lines: &[String]| {
            lines.iter().any(|line| line.contains("lease.revocation_learned")).then_some(())
        };
        pglease.lines().wait_for(Duration::from_secs(5), learned).await.is_some()
    })
    .await;
    pglease.wait_for_event("lease.revocation_learned", PATIENCE).await
}

/// Credentials that were read for no session, but for those that nothing was learned by.
async fn throw_aways(world: &World<'_>, pglease: &Pglease) -> usize {
    // One that is just being read is none yet.
    loop {
        let read = granted(world, Request::is_creds).len();
        let issued = pglease.logged("lease.issued").await.len();
        if granted(world, Request::is_creds).len() == read {
            return read - issued - pglease.events("lease.revocation_unknown").len();
        }
    }
}

/// What a session is told that pglease ends.
async fn told(session: Database) -> DbError {
    let told = time::timeout(PATIENCE, session.last_words()).await.unwrap().unwrap();
    assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{told:?}");
    assert!(told.hint().is_some_and(|hint| hint.contains("at_lease_end")), "{told:?}");
    told
}

#[tokio::test]
async fn scenario_02_end_by_the_default_revocation_is_met_by_nobody() {
    let world =
        World::shared(of(VaultRole { default_ttl: "20s", max_ttl: "30s", ..short_lived(Revocation::Drop) }))
            .await;
    let pglease = pglease_for(&world).await;
    let is_done = AtomicBool::new(false);

    // Idle for longer than what makes a session one of the first to be told.
    let idle = async {
        let mut session = pglease.connect("app").await.unwrap();
        while !is_done.load(Ordering::Relaxed) {
            time::sleep(Duration::from_secs(3)).await;
            if let Err(error) = session.batch_execute("SELECT count(*) FROM t").await {
                // A goodbye that crosses a statement is that statement's error.
                match error.as_db_error() {
                    Some(told) => assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{told:?}"),
                    None => drop(told(session).await),
                }
                session = pglease.connect("app").await.unwrap();
            }
        }
    };
    let reconnecting = async {
        let mut users = BTreeSet::new();
        loop {
            let is_last = is_done.load(Ordering::Relaxed);
            users.insert(user_of(&pglease.connect("app").await.unwrap()).await);
            if is_last {
                return users;
            }
            time::sleep(Duration::from_millis(500)).await;
        }
    };
    let two_rotations = async {
        pglease.wait_for_events("rotation.done", 2, PATIENCE).await;
        pglease.wait_for_event("lease.revoked", PATIENCE).await;
        // At the second end, where the first came too soon for it.
        pglease.wait_for_event("lease.revocation_learned", PATIENCE).await;
        is_done.store(true, Ordering::Relaxed);
    };
    let ((), users, ()) = tokio::join!(idle, reconnecting, two_rotations);

    assert!(users.len() >= 3, "{users:?}");
    let learned = pglease.logged("lease.revocation_learned").await;
    assert!(matches!(&learned[..], [learned] if learned["harmless"] == false), "{learned:?}");
    assert_eq!(throw_aways(&world, &pglease).await, 1);
    assert_nothing_was_forbidden(&world, &pglease).await;
}

#[tokio::test]
async fn scenario_03_end_by_nologin_is_outlived_by_a_transaction_and_an_idle_session() {
    let world = World::shared(of(short_lived(Revocation::NoLogin))).await;
    let pglease =
        pglease_with(&(world.settings() + &world.route("db-app") + "at_lease_end = \"auto\"\n")).await;
    let mut pair = two_on_one_lease(&pglease).await;

    let learned = pglease.wait_for_event("lease.revocation_learned", PATIENCE).await;
    assert_eq!((&learned["harmless"], &learned["saw"]), (&json!(true), &json!("nologin")), "{learned}");
    // Where this machine was too slow for that, they have been told before it was known, and others are not.
    if pglease.logged("session.end").await.iter().any(|end| end["reason"] == "lease_ends") {
        pair = two_on_one_lease(&pglease).await;
    }
    let (first, idle, in_transaction) = pair;
    let mut ended = None;
    until(async || {
        ended = pglease.events("lease.ended").into_iter().find(|ended| ended["db_role"] == first.as_str());
        ended.is_some()
    })
    .await;
    assert_eq!(ended.unwrap()["outlived_sessions"], 2);
    until(async || pglease.metric("pglease_sessions_outlived_lease", "").await > 1.0).await;
    until(async || !world.living_roles().await.contains(&first)).await;
    in_transaction.batch_execute("INSERT INTO t VALUES (1002); COMMIT").await.unwrap();
    let committed = world.superuser.rows("SELECT count(*) FROM t WHERE id > 1000").await;
    assert_eq!(committed, [[Some("2".to_owned())]]);
    idle.batch_execute("SELECT * FROM t").await.unwrap();
    drop((idle, in_transaction));
    until(async || pglease.metric("pglease_sessions_outlived_lease", "").await < 1.0).await;
    assert_eq!(throw_aways(&world, &pglease).await, 1);
    assert!(pglease.metric("pglease_orphans_total", "").await < 1.0);
    assert_nothing_was_forbidden(&world, &pglease).await;
}

/// A session that is idle and one in a transaction, on the credential of this user.
async fn two_on_one_lease(pglease: &Pglease) -> (String, Database, Database) {
    let mut pair = None;
    until(async || {
        let (idle, in_transaction) =
            (pglease.connect("app").await.unwrap(), pglease.connect("app").await.unwrap());
        let first = user_of(&idle).await;
        let is_one = user_of(&in_transaction).await == first;
        pair = Some((first, idle, in_transaction));
        is_one
    })
    .await;
    let (first, idle, in_transaction) = pair.unwrap();
    in_transaction.batch_execute("BEGIN; INSERT INTO t VALUES (1001)").await.unwrap();
    (first, idle, in_transaction)
}

#[tokio::test]
async fn statements_that_do_more_than_nologin_are_learned_to_be_harmful() {
    let terminates: &[&str] = &[
        "ALTER ROLE \"{{name}}\" NOLOGIN;",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}';",
    ];
    let strips: &[&str] = &["REVOKE <app_rw> FROM \"{{name}}\";", "ALTER ROLE \"{{name}}\" NOLOGIN;"];
    tokio::join!(
        play_harmful(Revocation::Statements(terminates), "terminated"),
        play_harmful(Revocation::Statements(strips), "stripped"),
    );
}

/// Sessions end by pglease's word, before the revocation is felt.
async fn play_harmful(revocation: Revocation, saw: &str) {
    let world = World::shared(of(short_lived(revocation))).await;
    let admin = world.group("vault_admin");
    world.superuser.batch_execute(&format!("GRANT pg_signal_backend TO {admin}")).await.unwrap();
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    told(session).await;

    let learned = learned(&pglease).await;
    assert_eq!((&learned["harmless"], &learned["saw"]), (&json!(false), &json!(saw)), "{learned}");
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "lease_ends", "{end}");
    assert_eq!(throw_aways(&world, &pglease).await, 1);
    user_of(&pglease.connect("app").await.unwrap()).await;
}

#[tokio::test]
async fn database_that_is_away_while_it_is_learned_costs_the_sessions_and_leaves_nothing() {
    // So slow that the database goes before it is done.
    let slow: &[&str] = &["SELECT pg_sleep(5);", "ALTER ROLE \"{{name}}\" NOLOGIN;"];
    let world = World::shared(of(short_lived(Revocation::Statements(slow)))).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    let away =
        format!("postgresql://{{{{username}}}}:{{{{password}}}}@{}/{}", gate.address(), world.database());
    let connection = json!({
        "plugin_name": "postgresql-database-plugin",
        "connection_url": away + "?sslmode=disable",
    });
    world.servers.openbao.write(&format!("{}/config/pg", world.engine()), connection).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();

    pglease.wait_for_event("lease.revocation_tried", PATIENCE).await;
    until(async || pglease.metric("pglease_vault_requests_total", "op=\"revoke_self\"").await > 0.0).await;
    gate.close().await;
    told(session).await;
    assert_eq!(pglease.events("lease.revocation_learned").len(), 0);

    gate.open().await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert_eq!(refused_revocations(&pglease), 0);
    // Vault comes back to what it could not do, each time after twice as long: 10 s, 20 s, 40 s, 80 s.
    let gone = async {
        while !world.living_roles().await.is_empty() {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(PATIENCE * 3, gone).await.unwrap();
}
