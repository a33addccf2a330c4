//! `pg_dump` and `pg_restore`, which hold several sessions for as long as they take, beyond the lease of these.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::pglease::Pglease;
use crate::support::process::{Process, Spawn};
use crate::support::world::{Revocation, World};
use crate::{PATIENCE, pglease_with, until};

/// Each of them is held up, by a lock, until two rotations are over and its lease has ended.
#[tokio::test]
async fn dump_and_restore_outlive_their_lease_with_a_startup_role() {
    let world = World::short_lived(Revocation::Drop).await;
    for schema in ["dumped", "restored"] {
        let sql = format!(
            "CREATE SCHEMA {schema} AUTHORIZATION {owner};
             SET ROLE {owner};
             CREATE TABLE {schema}.a AS SELECT i AS id, md5(i::text) AS note FROM generate_series(1, 20000) AS i;
             CREATE TABLE {schema}.b (id int PRIMARY KEY, whole bytea);
             INSERT INTO {schema}.b SELECT i, sha256(i::text::bytea) FROM generate_series(1, 1000) AS i;
             RESET ROLE",
            owner = world.group("app_owner")
        );
        world.superuser.batch_execute(&sql).await.unwrap();
    }
    let sql = format!("GRANT CREATE ON DATABASE {} TO {}", world.database(), world.group("app_owner"));
    world.superuser.batch_execute(&sql).await.unwrap();
    let route = world.route("db-app") + &format!("startup_role = {:?}\n", world.group("app_owner"));
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let before = rows(&world, "restored").await;
    ended(&dump(&world, &pglease, "restored")).await;
    let sql = "INSERT INTO restored.a VALUES (0, 'not in the dump')";
    world.superuser.batch_execute(sql).await.unwrap();

    let locks = world.servers.postgres.connect(&world.database()).await;
    let sql =
        "BEGIN; LOCK TABLE dumped.b IN ACCESS EXCLUSIVE MODE; LOCK TABLE restored.b IN ACCESS SHARE MODE";
    locks.batch_execute(sql).await.unwrap();
    let file = file(&world, "restored");
    let restore = [
        "--clean",
        "--no-owner",
        "--jobs=2",
        "--exit-on-error",
        "--dbname",
        &pglease.database_url("app"),
        &file,
    ];
    let restoring = spawn(&world, "pg_restore", &restore);
    let dumping = dump(&world, &pglease, "dumped");
    until(async || waiting(&world).await == 2).await;
    // A chain that does something else answers later.
    let mut first = Value::Null;
    until(async || {
        first = pglease.status().await["chains"][0]["current"].clone();
        !first.is_null()
    })
    .await;

    pglease.wait_for_events("rotation.done", 2, PATIENCE).await;
    until(async || pglease.events("lease.ended").iter().any(|end| end["generation"] == first)).await;
    assert_eq!(waiting(&world).await, 2);
    locks.batch_execute("COMMIT").await.unwrap();
    ended(&restoring).await;
    ended(&dumping).await;

    assert_eq!(rows(&world, "restored").await, before);
    // What the other one dumped is whole as well.
    world.superuser.batch_execute("DROP SCHEMA dumped CASCADE").await.unwrap();
    let restore = [
        "--no-owner",
        "--exit-on-error",
        "--dbname",
        &pglease.database_url("app"),
        &self::file(&world, "dumped"),
    ];
    ended(&spawn(&world, "pg_restore", &restore)).await;
    assert_eq!(rows(&world, "dumped").await, before);
    assert!(pglease.events("session.refused").is_empty());
}

fn dump(world: &World<'_>, pglease: &Pglease, schema: &str) -> Process {
    let arguments = [
        "--format=directory",
        "--jobs=2",
        "--schema",
        schema,
        "--file",
        &file(world, schema),
        &pglease.database_url("app"),
    ];
    spawn(world, "pg_dump", &arguments)
}

fn file(world: &World<'_>, schema: &str) -> String {
    world.folder().join(schema).display().to_string()
}

fn spawn(world: &World<'_>, program: &str, arguments: &[&str]) -> Process {
    let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let program: &Path = &world.servers.postgres.bin().join(program);
    Process::spawn(&Spawn {
        program,
        arguments: &arguments,
        environment: &[],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    })
}

async fn ended(process: &Process) {
    let status = process.wait_exit(PATIENCE).await;
    assert!(status.success(), "{}", process.lines().tail());
}

/// A sum over everything in the schema.
async fn rows(world: &World<'_>, schema: &str) -> Vec<Vec<Option<String>>> {
    let sql = format!(
        "SELECT (SELECT md5(string_agg(a::text, ' ' ORDER BY id)) FROM {schema}.a a),
            (SELECT md5(string_agg(b::text, ' ' ORDER BY id)) FROM {schema}.b b)"
    );
    world.superuser.rows(&sql).await
}

/// How many sessions wait for a lock on the tables.
async fn waiting(world: &World<'_>) -> usize {
    let sql = "SELECT 1 FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name IN ('pg_dump', 'pg_restore')";
    world.superuser.rows(sql).await.len()
}
