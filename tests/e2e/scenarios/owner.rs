//! What applications leave in a database belongs to a role that stays, or goes with the one that made it.

use tokio_postgres::error::SqlState;

use super::{assert_nothing_was_forbidden, of};
use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_with, until, user_of};

/// pglease whose sessions act as the world's owner.
async fn as_owner(world: &World<'_>) -> Pglease {
    let startup_role = format!("startup_role = {:?}\n", world.group("app_owner"));
    pglease_with(&(world.settings() + &world.route("db-app") + &startup_role)).await
}

async fn wait_until_dropped(world: &World<'_>, user: &str) {
    until(async || !world.leased_roles().await.iter().any(|(role, _)| role == user)).await;
}

/// What PostgreSQL has said of `user` that it could not be dropped for.
fn objections(world: &World<'_>, user: &str) -> Vec<String> {
    let lines = world.servers.postgres.process().lines().all().into_iter();
    lines.filter(|line| line.contains("cannot be dropped") && line.contains(user)).collect()
}

#[tokio::test]
async fn scenario_28_migration_outlives_the_drop_of_the_role_that_it_logged_in_with() {
    let world = World::short_lived(Revocation::Drop).await;
    let owner = world.group("app_owner");
    let pglease = as_owner(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;
    let migration = "
        CREATE SCHEMA s;
        CREATE TABLE s.spells (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, spell text);
        CREATE INDEX ON s.spells (spell);
        CREATE VIEW s.known AS SELECT spell FROM s.spells;
        CREATE TYPE s.mood AS ENUM ('calm');
        CREATE FUNCTION s.cast() RETURNS text LANGUAGE sql AS 'SELECT spell FROM s.spells LIMIT 1';
        CREATE TABLE made_here (id int)";
    world
        .superuser
        .batch_execute(&format!("GRANT CREATE ON DATABASE {} TO {owner}", world.database()))
        .await
        .unwrap();
    session.batch_execute(migration).await.unwrap();
    session.batch_execute("DISCARD ALL").await.unwrap();
    session.batch_execute("CREATE TABLE made_after_discard (id int)").await.unwrap();

    wait_until_dropped(&world, &user).await;
    for sql in [
        "INSERT INTO s.spells (spell) VALUES ('alohomora')",
        "INSERT INTO made_here VALUES (1)",
        "BEGIN; ALTER TABLE made_here ADD spell text DEFAULT s.cast(); COMMIT",
        "DISCARD ALL",
        "CREATE TABLE made_after_the_drop ()",
        "SELECT * FROM s.known, made_here, made_after_discard",
    ] {
        session.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let owned = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class
        WHERE relnamespace IN ('s'::regnamespace, 'public'::regnamespace) AND relname NOT IN ('t', 'visits', 't_pkey', 'visits_pkey')";
    assert_eq!(world.superuser.rows(owned).await, [[Some(owner)]]);
    assert_eq!(objections(&world, &user), [""; 0]);

    // The next generation goes on where this one stops.
    let next = pglease.connect("app").await.unwrap();
    assert_ne!(user_of(&next).await, user);
    next.batch_execute("DROP SCHEMA s CASCADE; DROP TABLE made_here, made_after_discard").await.unwrap();
    assert_nothing_was_forbidden(&world, &pglease).await;
}

/// A foreign table whose server is the world's own database, as its role `remote` sees it.
async fn set_up_foreign_table(world: &World<'_>) {
    let (owner, rw, remote) = (world.group("app_owner"), world.group("app_rw"), world.group("remote"));
    let port = world.servers.postgres.port();
    let sql = format!(
        "CREATE ROLE {remote} LOGIN PASSWORD 'remote-pw' IN ROLE {rw};
         CREATE EXTENSION postgres_fdw;
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '127.0.0.1', port '{port}', dbname '{database}');
         CREATE FOREIGN TABLE far_t (id int) SERVER far OPTIONS (schema_name 'public', table_name 't');
         GRANT USAGE ON FOREIGN SERVER far TO {owner}, {rw};
         GRANT SELECT ON far_t TO {owner}, {rw}",
        database = world.database()
    );
    world.superuser.batch_execute(&sql).await.unwrap();
}

fn user_mapping(world: &World<'_>) -> String {
    let remote = world.group("remote");
    format!("CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user '{remote}', password 'remote-pw')")
}

/// Waits for two successors of the generation that serves.
async fn wait_for_two_rotations(pglease: &Pglease) {
    let done = pglease.events("rotation.done").len();
    pglease.wait_for_events("rotation.done", done + 2, PATIENCE).await;
}

/// The owner's table `near`, fed by the superuser's of that name in another database.
async fn subscribe(world: &World<'_>, session: &Database) -> Database {
    let Servers { postgres, .. } = world.servers;
    let (owner, remote, database) = (world.group("app_owner"), world.group("remote"), world.database());
    postgres.query("postgres", "CREATE DATABASE publisher").await;
    let publisher = postgres.connect("publisher").await;
    let publishing = format!(
        "CREATE TABLE near (id int PRIMARY KEY);
         GRANT SELECT ON near TO {remote};
         ALTER ROLE {remote} REPLICATION;
         CREATE PUBLICATION near FOR TABLE near"
    );
    publisher.batch_execute(&publishing).await.unwrap();
    // A subscription to one's own cluster cannot make it.
    publisher.rows("SELECT pg_create_logical_replication_slot('near', 'pgoutput')").await;
    // What applies the changes logs in as the owner, inside the server; without a password nobody else can.
    let permitting = format!(
        "ALTER ROLE {owner} LOGIN;
         GRANT pg_create_subscription TO {owner};
         GRANT CREATE ON DATABASE {database} TO {owner}"
    );
    world.superuser.batch_execute(&permitting).await.unwrap();

    session.batch_execute("CREATE TABLE near (id int PRIMARY KEY)").await.unwrap();
    let subscribing = format!(
        "CREATE SUBSCRIPTION near
         CONNECTION 'host=127.0.0.1 port={port} dbname=publisher user={remote} password=remote-pw'
         PUBLICATION near WITH (create_slot = false, copy_data = false)",
        port = postgres.port()
    );
    session.batch_execute(&subscribing).await.unwrap();
    publisher
}

#[tokio::test]
async fn case_c17_what_runs_as_its_maker_belongs_to_the_owner() {
    let servers = Servers::with(vec![("wal_level", "logical".to_owned())]).await;
    let vault_role = VaultRole {
        default_ttl: "10s",
        max_ttl: "20s",
        revocation: Revocation::Drop,
        ..VaultRole::default()
    };
    let world = World::create(&servers, of(vault_role)).await;
    set_up_foreign_table(&world).await;
    let pglease = as_owner(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;
    session.batch_execute(&user_mapping(&world)).await.unwrap();
    let reading = format!("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}", world.group("app_ro"));
    session.batch_execute(&reading).await.unwrap();
    // Before 16 this is for superusers.
    let may_subscribe = servers.postgres.major() >= 16;
    let publisher = if may_subscribe { Some(subscribe(&world, &session).await) } else { None };
    drop(session);

    wait_for_two_rotations(&pglease).await;
    wait_until_dropped(&world, &user).await;
    let later = pglease.connect("app").await.unwrap();
    assert_eq!(later.rows("SELECT count(*) FROM far_t").await, [[Some("100".to_owned())]]);
    later.batch_execute("CREATE TABLE made_later ()").await.unwrap();
    let readable = format!("SELECT has_table_privilege('{}', 'made_later', 'SELECT')", world.group("app_ro"));
    assert_eq!(world.superuser.rows(&readable).await, [[Some("t".to_owned())]]);
    if let Some(publisher) = publisher {
        publisher.batch_execute("INSERT INTO near VALUES (7)").await.unwrap();
        until(async || later.rows("SELECT id FROM near").await == [[Some("7".to_owned())]]).await;
    }
    assert_eq!(objections(&world, &user), [""; 0]);
    assert_eq!(pglease.events("lease.revocation_blocked").len(), 0);
    assert_nothing_was_forbidden(&world, &pglease).await;
}

#[tokio::test]
async fn case_c17_without_an_owner_it_is_as_direct_and_the_blocked_revocation_is_seen() {
    let world = World::short_lived(Revocation::Drop).await;
    set_up_foreign_table(&world).await;
    let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;
    session.batch_execute(&user_mapping(&world)).await.unwrap();
    assert_eq!(session.rows("SELECT count(*) FROM far_t").await, [[Some("100".to_owned())]]);
    drop(session);

    // The mapping was its maker's: another user has none, and the maker cannot be dropped for it.
    pglease.wait_for_event("rotation.done", PATIENCE).await;
    let later = pglease.connect("app").await.unwrap();
    let error = later.batch_execute("SELECT count(*) FROM far_t").await.unwrap_err();
    let other = world.lease("db-app").await;
    let direct =
        world.servers.postgres.connect_as(&world.database(), &other.user, &other.password).await.unwrap();
    let error_of_direct = direct.batch_execute("SELECT count(*) FROM far_t").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_OBJECT));
    assert_eq!(error.code(), error_of_direct.code());
    until(async || !objections(&world, &user).is_empty()).await;
    // Others may take longer than 10 s for it, on a busy machine.
    let is_blocked = |blocked: &serde_json::Value| blocked["db_role"] == user.as_str();
    until(async || pglease.events("lease.revocation_blocked").iter().any(is_blocked)).await;
    assert!(pglease.metric("pglease_lease_revocations_blocked_total", "").await > 0.0);
    assert_nothing_was_forbidden(&world, &pglease).await;
}
