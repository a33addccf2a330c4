//! The end of the pod: sessions first, their credential after.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use tokio::time::Instant;

use super::{assert_nothing_was_forbidden, granted, of};
use crate::support::Servers;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_for, pglease_with, until, user_of};

#[tokio::test]
async fn scenario_11_sessions_are_gone_from_the_server_before_their_role_is_revoked() {
    let settings = vec![("log_disconnections", "on".to_owned()), ("log_statement", "ddl".to_owned())];
    let servers = Servers::with(settings).await;
    let vault_role = VaultRole { revocation: Revocation::Drop, ..VaultRole::default() };
    let world = World::create(&servers, of(vault_role)).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    // While it is there, its owner cannot be dropped.
    session.batch_execute("CREATE TEMP TABLE mine (id int)").await.unwrap();
    let user = user_of(&session).await;
    assert_nothing_was_forbidden(&world, &pglease).await;

    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    until(async || world.leased_roles().await.is_empty()).await;

    let of_user = |what: &str| {
        let lines = servers.postgres.process().lines().all().into_iter();
        lines.filter(|line| line.contains(what) && line.contains(&user)).collect::<Vec<_>>()
    };
    let [revoked] = &granted(&world, |request| request.path == "auth/token/revoke-self")[..] else {
        panic!("one revocation")
    };
    let gone = of_user("disconnection:");
    let last = gone.last().unwrap().split(" UTC").next().unwrap();
    let last = humantime::parse_rfc3339_weak(last).unwrap().duration_since(UNIX_EPOCH).unwrap();
    assert!(last <= revoked.at, "{gone:?} {revoked:?}");
    assert_eq!(of_user("DROP ROLE").len(), 1, "{:?}", of_user("DROP ROLE"));

    let leases = format!("sys/leases/lookup/{}", world.vault_path("db-app"));
    until(async || servers.openbao.list(&leases).await.is_empty()).await;
    let irrevocable = servers.openbao.read("sys/leases?type=irrevocable").await;
    assert_eq!(irrevocable["lease_count"], 0, "{irrevocable}");
}

#[tokio::test]
async fn scenario_12_slow_revocation_does_not_hold_up_the_exit() {
    let world = World::shared(WorldOptions::default()).await;
    let slow = json!({
        "db_name": "pg",
        "creation_statements": ["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"],
        "revocation_statements": ["SELECT pg_sleep(3); DROP ROLE \"{{name}}\""],
    });
    world.servers.openbao.write(&format!("{}/roles/db-app", world.engine()), slow).await;
    let settings = world.settings() + "[drain]\ndeadline = \"2s\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("BEGIN").await.unwrap();
    assert_nothing_was_forbidden(&world, &pglease).await;

    let asked_at = Instant::now();
    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    let took = asked_at.elapsed();
    assert!(took < Duration::from_secs(2 + 5), "{took:?}");
    until(async || world.leased_roles().await.is_empty()).await;
}
