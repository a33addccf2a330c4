//! What the database engine, its operator and the database's administrator do to a lease that is to live on.

use std::time::Duration;

use serde_json::json;

use super::{gaps, granted, of};
use crate::support::audit::Request;
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_with, until, until_served, user_of};

/// Settings with a route whose sessions have nothing to learn.
fn settings(world: &World<'_>) -> String {
    world.settings() + &world.route("db-app") + "at_lease_end = \"leave\"\n"
}

#[tokio::test]
async fn scenario_09_renewal_that_hangs_behind_a_lock_is_not_taken_for_death() {
    let vault_role = VaultRole { default_ttl: "40s", revocation: Revocation::Drop, ..VaultRole::default() };
    let world = World::shared(of(vault_role)).await;
    let other = world.lease("db-app").await;
    let pglease = pglease_with(&settings(&world)).await;

    let migration = world.servers.postgres.connect(&world.database()).await;
    migration.batch_execute("BEGIN; ALTER TABLE t ADD COLUMN added int").await.unwrap();
    world.write("sys/leases/revoke", json!({ "lease_id": other.lease_id, "sync": false })).await;
    let hangs = pglease.wait_for_event("lease.renew_failed", PATIENCE);
    let connects = async {
        while pglease.events("lease.renew_failed").is_empty() {
            pglease.connect("app").await.unwrap();
        }
    };
    tokio::join!(hangs, connects);
    migration.batch_execute("ROLLBACK").await.unwrap();

    let goes_on = async || {
        let done = pglease.events("rotation.done").len() + pglease.events("lease.renewed").len();
        pglease.connect("app").await.unwrap();
        done > 0
    };
    until(goes_on).await;
    assert!(pglease.events("rotation.done").len() <= 1);
    assert_eq!(pglease.events("lease.revoked_early").len(), 0);
    until(async || world.living_roles().await.len() == 1).await;
}

#[tokio::test]
async fn scenario_20_creation_that_is_broken_is_tried_with_pauses_until_it_is_repaired() {
    let short = VaultRole { default_ttl: "20s", max_ttl: "30s", ..VaultRole::default() };
    let world = World::shared(of(short.clone())).await;
    let pglease = pglease_with(&settings(&world)).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;
    world.write_vault_role(&VaultRole { prelude: "SELECT nothing_of_the_kind;", ..short.clone() }).await;

    let failed = pglease.wait_for_event("creds.failed", PATIENCE).await;
    assert_eq!(failed["code"], 500, "{failed}");
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    until(async || pglease.get("/readyz").await.0 == 503).await;
    let creds: Vec<_> = world.requests().into_iter().filter(Request::is_creds).collect();
    assert!(gaps(&creds).iter().all(|&gap| gap > Duration::from_millis(900)), "{creds:?}");

    world.write_vault_role(&short).await;
    let fresh = until_served(&pglease, "app").await;
    assert_ne!(user_of(&fresh).await, user);
}

#[tokio::test]
async fn scenario_25_password_that_an_administrator_changed_costs_one_credential() {
    let world = World::shared(of(VaultRole::default())).await;
    let pglease = pglease_with(&settings(&world)).await;
    let held = pglease.connect("app").await.unwrap();
    let user = user_of(&held).await;
    let sql = format!("ALTER ROLE \"{user}\" PASSWORD 'changed by hand'");
    world.superuser.batch_execute(&sql).await.unwrap();

    assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    let checked = pglease.wait_for_event("lease.checked", PATIENCE).await;
    assert_eq!(checked["verdict"], "login_rejected", "{checked}");
    assert_eq!(granted(&world, Request::is_creds).len(), 2);
    held.query("SELECT count(*) FROM t", &[]).await.unwrap();
}

#[tokio::test]
async fn scenario_26_maximum_that_is_raised_after_a_capped_renewal_costs_one_rotation_at_most() {
    let short = VaultRole { default_ttl: "20s", max_ttl: "30s", ..VaultRole::default() };
    let world = World::shared(of(short.clone())).await;
    let pglease = pglease_with(&settings(&world)).await;
    let capped = || pglease.events("lease.renewed").iter().any(|renewed| renewed["capped"] == true);
    until(async || capped()).await;
    world.write_vault_role(&VaultRole { max_ttl: "1h", ..short }).await;

    let renewals = pglease.events("lease.renewed").len();
    pglease.wait_for_events("lease.renewed", renewals + 2, PATIENCE).await;
    assert!(pglease.events("rotation.done").len() <= 1);
    assert!(granted(&world, Request::is_creds).len() <= 2);
    pglease.connect("app").await.unwrap();
}
