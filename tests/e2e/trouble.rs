//! What Vault, the database, the API server and their operators may do to a lease.

use serde_json::json;
use tokio::time;
use tokio_postgres::error::SqlState;

use crate::support::Servers;
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{
    PATIENCE, pglease_for, pglease_with, start, until, until_alive, until_revoked, until_served, user_of,
};

/// Leases of this life that can be renewed for long.
fn leases_of(default_ttl: &'static str) -> WorldOptions {
    let vault_roles = vec![VaultRole { default_ttl, ..VaultRole::default() }];
    WorldOptions { vault_roles, ..WorldOptions::default() }
}

/// Waits for one more event of this name than there have been.
async fn wait_for_next(pglease: &Pglease, event: &str) -> serde_json::Value {
    let seen = pglease.events(event).len();
    pglease.wait_for_events(event, seen + 1, PATIENCE).await
}

/// Vault answers 400 to renewals meanwhile.
#[tokio::test]
async fn database_that_is_away_costs_no_new_role() {
    let world = World::shared(leases_of("40s")).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    let database = gate.address().to_string();
    let engine = format!("{}/config/pg", world.engine());
    let url = format!("postgresql://{{{{username}}}}:{{{{password}}}}@{database}/{}", world.database());
    let connection =
        json!({ "plugin_name": "postgresql-database-plugin", "connection_url": url + "?sslmode=disable" });
    world.servers.openbao.write(&engine, connection).await;
    let direct = format!("localhost:{}", world.servers.postgres.port());
    let pglease =
        pglease_with(&(world.settings() + &world.route("db-app").replace(&direct, &database))).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    gate.close().await;
    // Beside a Vault that is slow to answer on a busy machine.
    until(async || pglease.events("lease.renew_failed").iter().any(|failed| failed["code"] == 400)).await;
    let refused = pglease.connect("app").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION), "{refused:?}");

    gate.open().await;
    wait_for_next(&pglease, "lease.renewed").await;
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    assert_eq!(world.leased_roles().await.len(), 1);
}

#[tokio::test]
async fn vault_that_says_nothing_for_longer_than_the_lease_leaves_sessions_alone() {
    let servers = Servers::start().await;
    let world = World::create(&servers, leases_of("6s")).await;
    let settings = world.settings_with("debug", &servers.openbao.address(), "connect_wait = \"3s\"");
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(settings + &route)).await;
    let held = until_served(&pglease, "app").await;

    let begun = time::Instant::now();
    servers.openbao.pause().await;
    until(async || pglease.get("/readyz").await.0 == 503).await;
    let refused = pglease.connect("app").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
    until_alive(&pglease).await;
    held.query("SELECT count(*) FROM t", &[]).await.unwrap();

    servers.openbao.resume();
    let fresh = until_served(&pglease, "app").await;
    assert_ne!(user_of(&fresh).await, user_of(&held).await);
    held.query("SELECT count(*) FROM t", &[]).await.unwrap();
    let requests = pglease.metric("pglease_vault_requests_total", "").await;
    let most = 30.0 + begun.elapsed().as_secs_f64();
    assert!(requests < most, "{requests} of {most}");

    // Nor does it hold up the end.
    drop(held);
    servers.openbao.pause().await;
    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    assert_ne!(pglease.events("lease.orphaned").len(), 0);
}

#[tokio::test]
async fn upstream_that_refuses_every_new_role_does_not_have_them_made_in_a_loop() {
    let world = World::shared(WorldOptions::default()).await;
    let begun = time::Instant::now();
    // Nobody is served before the end, so each client waits for as long as it may.
    let settings = world.settings_with("debug", &world.servers.openbao.address(), "connect_wait = \"3s\"");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    let user = user_of(&until_served(&pglease, "app").await).await;

    // Refused with 28000, as by a pg_hba.conf that does not know them.
    let definition = json!({
        "db_name": "pg",
        "default_ttl": "1h",
        "creation_statements": ["CREATE ROLE \"{{name}}\" NOLOGIN"],
        "revocation_statements": ["ALTER ROLE \"{{name}}\" NOLOGIN"],
    });
    let vault_role = format!("{}/roles/db-app", world.engine());
    world.servers.openbao.write(&vault_role, definition).await;
    world.superuser.batch_execute(&format!("ALTER ROLE \"{user}\" NOLOGIN")).await.unwrap();
    while pglease.events("lease.revoked").len() < 2 {
        assert!(pglease.connect("app").await.is_err());
    }
    let made = u64::try_from(world.leased_roles().await.len()).unwrap();
    assert!(made <= 3 + begun.elapsed().as_secs() / 10, "{made} within {:?}", begun.elapsed());

    world.write_vault_role(&VaultRole::default()).await;
    until(async || pglease.connect("app").await.is_ok()).await;
}

#[tokio::test]
async fn token_that_ends_before_the_lease_is_rotated_in_time() {
    let options = WorldOptions { token_ttl: "20s", token_max_ttl: "30s", ..WorldOptions::default() };
    let world = World::shared(options).await;
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let held = pglease.connect("app").await.unwrap();

    // Its lease ends with the token that it was read with.
    while pglease.events("lease.ended").is_empty() {
        pglease.connect("app").await.unwrap();
    }
    held.query("SELECT count(*) FROM t", &[]).await.unwrap();
    let rotated = pglease.wait_for_event("rotation.done", PATIENCE).await;
    assert_eq!(rotated["trigger"], "planned", "{rotated}");
}

#[tokio::test]
async fn vault_role_without_a_ttl_is_warned_of() {
    let world = World::shared(leases_of("0")).await;
    let role = VaultRole { default_ttl: "0", max_ttl: "0", ..VaultRole::default() };
    world.write_vault_role(&role).await;
    let pglease = pglease_for(&world).await;
    let warning = pglease.wait_for_event("lease.long_ttl", PATIENCE).await;
    assert_eq!(warning["ttl_seconds"], 32 * 24 * 3600, "{warning}");
    pglease.connect("app").await.unwrap();
}

/// Statements of the database engine that are slept through just now.
async fn creations_under_way(world: &World<'_>) -> usize {
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE usename = '{}' AND query LIKE '%pg_sleep%' AND state = 'active'",
        world.group("vault_admin")
    );
    world.superuser.rows(&sql).await.len()
}

fn slow() -> VaultRole {
    VaultRole { prelude: "SELECT pg_sleep(3);", ..VaultRole::default() }
}

/// Has it stop while a role is being made, and waits until nothing is left of that.
async fn stop_and_expect_nothing(pglease: &Pglease, world: &World<'_>) {
    until(async || creations_under_way(world).await > 0).await;
    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    until(async || creations_under_way(world).await == 0).await;
    until_revoked(world, pglease).await;
}

#[tokio::test]
async fn stop_while_the_first_role_is_made_leaves_none() {
    let world = World::shared(WorldOptions { vault_roles: vec![slow()], ..WorldOptions::default() }).await;
    let pglease = start(&(world.settings() + &world.route("db-app"))).await;
    stop_and_expect_nothing(&pglease, &world).await;
}

#[tokio::test]
async fn stop_during_a_rotation_leaves_neither_role() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let held = pglease.connect("app").await.unwrap();
    let user = user_of(&held).await;
    world.write_vault_role(&slow()).await;
    world
        .superuser
        .batch_execute(&format!("ALTER ROLE \"{user}\" PASSWORD 'changed by hand'"))
        .await
        .unwrap();

    let client = pglease.connect("app");
    let (refused, ()) = tokio::join!(client, stop_and_expect_nothing(&pglease, &world));
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
}

#[tokio::test]
async fn stop_before_there_is_anything_is_over_at_once() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    gate.close().await;
    let away = gate.address().to_string();
    let listen = "connect_wait = \"10m\"";
    let route = world.route("db-app");

    // Nobody at Vault's address, and a client that waits.
    let pglease = start(&(world.settings_with("debug", &format!("http://{away}"), listen) + &route)).await;
    let stopping = async {
        until(async || pglease.metric("pglease_clients_waiting", "").await > 0.0).await;
        pglease.sigterm();
        assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    };
    let (refused, ()) = tokio::join!(pglease.connect("app"), stopping);
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");

    // A credential that cannot be proven, as nobody is at the upstream's address.
    let direct = format!("localhost:{}", world.servers.postgres.port());
    let pglease = start(&(world.settings() + &route.replace(&direct, &away))).await;
    pglease.wait_for_event("proof.failed", PATIENCE).await;
    pglease.sigterm();
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    until_revoked(&world, &pglease).await;
}
