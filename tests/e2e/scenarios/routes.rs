//! Several roles in one pod: a chain for each `vault_path`, which knows nothing of the others.

use std::collections::BTreeSet;

use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;

use super::{assert_nothing_was_forbidden, granted};
use crate::support::audit::Request;
use crate::support::postgres::Database;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, start, until, until_alive, until_revoked, until_served, user_of};

fn reading() -> VaultRole {
    VaultRole { name: "db-read", groups: &["app_ro"], ..VaultRole::default() }
}

/// A world with a role that writes, `db-app`, and one that reads, `db-read`.
async fn of_two_roles() -> World<'static> {
    let vault_roles = vec![VaultRole { groups: &["app_rw"], ..VaultRole::default() }, reading()];
    World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await
}

/// What upstream says to it, if it refuses.
async fn refusal(session: &Database, sql: &str) -> Option<SqlState> {
    Some(session.batch_execute(sql).await.err()?.code().unwrap().clone())
}

#[tokio::test]
async fn each_route_may_do_what_its_role_may_and_no_more() {
    let (world, other) = tokio::join!(of_two_roles(), World::shared(WorldOptions::default()));
    world.permit(&other.vault_path("db-app")).await;
    let strays = world.route("db-app").replace(&world.vault_path("db-app"), &other.vault_path("db-app"));
    let routes = [
        world.route("db-app") + "user = \"writer\"\ndatabase = \"app\"\n",
        world.route("db-read") + "user = \"reader\"\ndatabase = \"app\"\n",
        world.route("db-read") + "database = \"reports\"\n",
        other.route("db-app") + "database = \"other\"\n",
        // Another database's role at this one.
        strays + "user = \"stray\"\ndatabase = \"app\"\n",
    ];
    let pglease = pglease_with(&(world.settings() + &routes.concat())).await;
    let connect = async |user: &str, database: &str| pglease.connect_as(database, user).await.unwrap();

    let denied = Some(SqlState::INSUFFICIENT_PRIVILEGE);
    let writer = connect("writer", "app").await;
    assert_eq!(refusal(&writer, "INSERT INTO t VALUES (1001)").await, None);
    assert_eq!(refusal(&writer, "CREATE TABLE u ()").await, denied);
    let reader = connect("reader", "app").await;
    assert_eq!(reader.rows("SELECT max(id) FROM t").await, [[Some("1001".to_owned())]]);
    assert_eq!(refusal(&reader, "INSERT INTO t VALUES (1002)").await, denied);
    let owner = connect("app", "other").await;
    assert_eq!(owner.rows("SELECT max(id) FROM t").await, [[Some("100".to_owned())]]);
    assert_eq!(refusal(&owner, "CREATE TABLE u ()").await, None);
    let stray = connect("stray", "app").await;
    assert_eq!(stray.rows("SELECT current_database()").await, [[Some(world.database())]]);
    assert_eq!(refusal(&stray, "SELECT FROM t").await, denied);

    // Who shares a path shares a lease.
    let reports = connect("anyone", "reports").await;
    assert_eq!(user_of(&reports).await, user_of(&reader).await);
    assert_eq!(refusal(&reports, "DELETE FROM t").await, denied);
    assert_eq!(user_of(&stray).await, user_of(&owner).await);
    let users = [user_of(&writer).await, user_of(&reader).await, user_of(&owner).await];
    assert_eq!(BTreeSet::from(users).len(), 3);
    assert_eq!(granted(&world, Request::is_login).len(), 3);
    let stranger = pglease.connect_as("app", "nobody").await.err().unwrap();
    assert_eq!(stranger.code(), Some(&SqlState::INVALID_CATALOG_NAME));

    assert_nothing_was_forbidden(&world, &pglease).await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until(async || world.living_roles().await.is_empty() && other.living_roles().await.is_empty()).await;
}

#[tokio::test]
async fn chain_that_fails_fails_its_own_routes_only() {
    let world = of_two_roles().await;
    let missing = world.route("db-missing") + "database = \"missing\"\n";
    let settings = world.settings_with("debug", &world.servers.openbao.address(), "connect_wait = \"3s\"");
    let routes = [
        world.route("db-app") + "database = \"app\"\n",
        world.route("db-read") + "database = \"reports\"\n",
        missing.clone() + "optional = true\n",
    ];
    let pglease = pglease_with(&(settings.clone() + &routes.concat())).await;
    let awaits_all = start(&(settings + &routes[..2].concat() + &missing)).await;
    let is_ready = async || (pglease.get("/startup").await.0, pglease.get("/readyz").await.0);
    // A busy machine may need longer than 3 s to find out.
    let refused = async |database: &str| {
        until(async || {
            let refused = pglease.connect(database).await.err().unwrap();
            let is_late = refused.code() == Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
            assert!(is_late || refused.code() == Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
            !is_late
        })
        .await;
    };

    // From the start: Vault refuses to read the one path.
    refused("missing").await;
    assert_eq!(is_ready().await, (200, 200));
    awaits_all.wait_for_event("creds.failed", PATIENCE).await;
    assert_eq!(awaits_all.get("/startup").await.0, 503);
    until_alive(&awaits_all).await;
    user_of(&until_served(&awaits_all, "app").await).await;

    // Later on: one role is dropped, and no other can be made in its place.
    let reports = until_served(&pglease, "reports").await;
    let user = user_of(&until_served(&pglease, "app").await).await;
    let broken = VaultRole { groups: &["app_rw"], prelude: "SELECT nonsense;", ..VaultRole::default() };
    world.write_vault_role(&broken).await;
    world.superuser.batch_execute(&format!("ALTER ROLE \"{user}\" NOLOGIN")).await.unwrap();
    refused("app").await;
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        let client = until_served(&pglease, "reports").await;
        clients.spawn(async move { user_of(&client).await });
    }
    let users: BTreeSet<_> = clients.join_all().await.into_iter().collect();
    assert_eq!(users, BTreeSet::from([user_of(&reports).await]));

    // Each recovers by itself.
    world.permit(&world.vault_path("db-missing")).await;
    let found = VaultRole { name: "db-missing", groups: &["app_ro"], ..VaultRole::default() };
    world.write_vault_role(&found).await;
    world.write_vault_role(&VaultRole { groups: &["app_rw"], ..VaultRole::default() }).await;
    for database in ["app", "missing"] {
        until(async || pglease.connect(database).await.is_ok()).await;
    }
    awaits_all.wait_ready().await;
    assert_eq!(is_ready().await, (200, 200));
    assert_eq!(user_of(&until_served(&pglease, "reports").await).await, user_of(&reports).await);
}

#[tokio::test]
async fn twelve_routes_on_six_paths_hold_six_leases() {
    const NAMES: [&str; 6] = ["db-1", "db-2", "db-3", "db-4", "db-5", "db-6"];
    let vault_roles = NAMES.map(|name| VaultRole { name, ..reading() }).to_vec();
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let route = |index: usize| world.route(NAMES[index % 6]) + &format!("database = \"d{index}\"\n");
    let routes: String = (0..12).map(route).collect();
    let pglease = pglease_with(&(world.settings() + &routes)).await;

    let mut users = Vec::new();
    for index in 0..12 {
        users.push(user_of(&pglease.connect(&format!("d{index}")).await.unwrap()).await);
    }
    assert_eq!(users[..6], users[6..]);
    assert_eq!(world.living_roles().await.len(), 6);
    assert_eq!(granted(&world, Request::is_login).len(), 6);

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_revoked(&world, &pglease).await;
}
