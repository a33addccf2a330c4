//! The end of the pod: sessions first, their credential after.

use std::time::UNIX_EPOCH;

use serde_json::json;

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

    let of_user = async |what: &str| {
        let found = |lines: &[String]| {
            let found = lines.iter().filter(|line| line.contains(what) && line.contains(&user));
            Some(found.cloned().collect::<Vec<_>>()).filter(|found| !found.is_empty())
        };
        let found = servers.postgres.process().lines().wait_for(PATIENCE, found).await;
        found.unwrap_or_else(|| panic!("no {what} of {user}"))
    };
    // More where Vault is slow to answer.
    let [revoked, ..] = &granted(&world, |request| request.path == "auth/token/revoke-self")[..] else {
        panic!("no revocation")
    };
    let gone = of_user("disconnection:").await;
    let last = gone.last().unwrap().split(" UTC").next().unwrap();
    let last = humantime::parse_rfc3339_weak(last).unwrap().duration_since(UNIX_EPOCH).unwrap();
    assert!(last <= revoked.at, "{gone:?} {revoked:?}");
    let dropped = of_user("DROP ROLE").await;
    assert_eq!(dropped.len(), 1, "{dropped:?}");

    let leases = format!("sys/leases/lookup/{}", world.vault_path("db-app"));
    until(async || servers.openbao.list(&leases).await.is_empty()).await;
    let irrevocable = servers.openbao.read("sys/leases?type=irrevocable").await;
    assert_eq!(irrevocable["lease_count"], 0, "{irrevocable}");
}

#[tokio::test]
async fn scenario_12_slow_revocation_does_not_hold_up_the_exit() {
    let world = World::shared(WorldOptions::default()).await;
    // It takes until the test lets it go on, which it does when pglease has ended.
    let slow = json!({
        "db_name": "pg",
        "creation_statements": ["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"],
        "revocation_statements": ["SELECT pg_advisory_xact_lock(12); DROP ROLE \"{{name}}\""],
    });
    world.superuser.rows("SELECT pg_advisory_lock(12)").await;
    world.servers.openbao.write(&format!("{}/roles/db-app", world.engine()), slow).await;
    let settings = world.settings() + "[drain]\ndeadline = \"2s\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("BEGIN").await.unwrap();
    assert_nothing_was_forbidden(&world, &pglease).await;

    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    assert_eq!(world.leased_roles().await.len(), 1);
    world.superuser.rows("SELECT pg_advisory_unlock(12)").await;
    until(async || world.leased_roles().await.is_empty()).await;
}
