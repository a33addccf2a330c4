//! Case C22: no walsender is left behind, and nobody finds its slot in use.

use rustix::process::Signal;
use serde_json::json;

use crate::raw::Raw;
use crate::support::Servers;
use crate::support::openbao::OpenBao;
use crate::support::pglease::Pglease;
use crate::support::postgres::{Postgres, PostgresOptions};
use crate::support::process::{Process, Spawn};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

#[tokio::test]
async fn case_c22_walsender_is_gone_when_its_session_is() {
    // What is left behind stays for longer than is waited for.
    let settings = [("wal_level", "logical"), ("wal_sender_timeout", "30min")];
    let settings = settings.map(|(name, value)| (name, value.to_owned())).to_vec();
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    let (postgres, openbao) = tokio::join!(Postgres::start(options), OpenBao::start());
    let servers = Servers { postgres, openbao };
    let (by_signal, by_lease) = tokio::join!(world(&servers, "1h", "24h"), world(&servers, "20s", "30s"));
    tokio::join!(
        async {
            drain_ends_it(&by_signal).await;
            drain_ends_it_where_the_client_does_not_read(&by_signal).await;
            kill_ends_it(&by_signal).await;
        },
        end_of_the_lease_ends_it(&by_lease)
    );
}

/// One whose leased roles may replicate, with the slot `slot_<database>`.
async fn world<'a>(servers: &'a Servers, default_ttl: &str, max_ttl: &str) -> World<'a> {
    let world = World::create(servers, WorldOptions::default()).await;
    // Up to PostgreSQL 15 none but a superuser makes roles that replicate.
    let sql = format!("ALTER ROLE {} SUPERUSER", world.group("vault_admin"));
    world.superuser.batch_execute(&sql).await.unwrap();
    let creation = format!(
        "CREATE ROLE \"{{{{name}}}}\" LOGIN REPLICATION PASSWORD '{{{{password}}}}' \
         VALID UNTIL '{{{{expiration}}}}' IN ROLE {};",
        world.group("app_rw")
    );
    let definition = json!({
        "db_name": "pg",
        "default_ttl": default_ttl,
        "max_ttl": max_ttl,
        "creation_statements": [creation],
        "revocation_statements": [],
    });
    servers.openbao.write(&format!("{}/roles/db-app", world.engine()), definition).await;
    let sql = format!("SELECT pg_create_logical_replication_slot('{}', 'test_decoding')", slot(&world));
    world.superuser.rows(&sql).await;
    world
}

fn slot(world: &World<'_>) -> String {
    format!("slot_{}", world.database())
}

async fn is_active(world: &World<'_>) -> bool {
    let sql = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", slot(world));
    world.superuser.rows(&sql).await == [[Some("t".to_owned())]]
}

/// Waits for the end of a walsender that has been told of it. pglease waits for 2 s, which a busy machine may not meet.
async fn until_gone(world: &World<'_>) {
    until(async || !is_active(world).await).await;
}

async fn proxy(world: &World<'_>) -> Pglease {
    let route = world.route("db-app") + "at_lease_end = \"close\"\n";
    pglease_with(&(world.settings() + "[drain]\ndeadline = \"3s\"\n\n" + &route)).await
}

/// `pg_recvlogical` on the world's slot, streaming.
async fn receive(world: &World<'_>, pglease: &Pglease) -> Process {
    let arguments = [
        "--host=localhost",
        &format!("--port={}", pglease.port()),
        "--username=app",
        "--no-password",
        "--dbname=app",
        &format!("--slot={}", slot(world)),
        "--start",
        "--no-loop",
        "--status-interval=1",
        "--file=-",
    ];
    let receiver = Process::spawn(&Spawn {
        program: &world.servers.postgres.bin().join("pg_recvlogical"),
        arguments: &arguments.map(str::to_owned),
        environment: &[("LC_ALL", "C")],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    });
    until(async || is_active(world).await).await;
    receiver
}

/// Inserts a row, and waits until the receiver has it.
async fn insert(world: &World<'_>, receiver: &Process, id: u32) {
    world.superuser.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
    let change = format!("id[integer]:{id}");
    let has_it = |lines: &[String]| lines.iter().any(|line| line.ends_with(&change)).then_some(());
    let received = receiver.lines().wait_for(PATIENCE, has_it).await;
    assert!(received.is_some(), "no {change} in:\n{}", receiver.lines().tail());
}

async fn drain_ends_it(world: &World<'_>) {
    let mut next = 1000;
    for _ in 0..2 {
        let pglease = proxy(world).await;
        let receiver = receive(world, &pglease).await;
        insert(world, &receiver, next).await;
        pglease.sigterm();
        assert!(pglease.wait_exit(PATIENCE).await.success());
        until_gone(world).await;
        let ends = pglease.events("session.end");
        assert!(matches!(&ends[..], [end] if end["reason"] == "cut"), "{ends:?}");
        // What is written meanwhile is there for the next one, on the same slot.
        world.superuser.batch_execute(&format!("INSERT INTO t VALUES ({})", next + 1)).await.unwrap();
        let pglease = proxy(world).await;
        let receiver = receive(world, &pglease).await;
        insert(world, &receiver, next + 2).await;
        let lines = receiver.lines().all();
        assert!(lines.iter().any(|line| line.ends_with(&format!("id[integer]:{}", next + 1))), "{lines:?}");
        pglease.sigterm();
        assert!(pglease.wait_exit(PATIENCE).await.success());
        next += 3;
    }
}

async fn drain_ends_it_where_the_client_does_not_read(world: &World<'_>) {
    let pglease = proxy(world).await;
    let parameters = [("user", "app"), ("database", "app"), ("replication", "database")];
    let (mut raw, _) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    raw.query(&format!("START_REPLICATION SLOT {} LOGICAL 0/0", slot(world))).await;
    raw.up_to(b'W').await;
    // More than all sockets on the way take.
    let sql = "CREATE TABLE much (words text); INSERT INTO much SELECT repeat('x', 1000000) FROM generate_series(1, 60)";
    world.superuser.batch_execute(sql).await.unwrap();
    let is_blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'WalSenderWriteData'";
    until(async || !world.superuser.rows(is_blocked).await.is_empty()).await;

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_gone(world).await;
    drop(raw);
    world.superuser.batch_execute("DROP TABLE much").await.unwrap();
}

async fn kill_ends_it(world: &World<'_>) {
    let pglease = proxy(world).await;
    let _receiver = receive(world, &pglease).await;
    pglease.kill();
    until_gone(world).await;
}

async fn end_of_the_lease_ends_it(world: &World<'_>) {
    let pglease = proxy(world).await;
    let parameters = [("user", "app"), ("database", "app"), ("replication", "database")];
    let (mut raw, _) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    raw.query(&format!("START_REPLICATION SLOT {} LOGICAL 0/0", slot(world))).await;
    raw.up_to(b'W').await;
    // Never idle: not told before the lease is over.
    let told = raw.up_to(b'E').await.pop().unwrap();
    let fields = told.fields();
    assert!(fields.contains(&('C', "57P01".to_owned())), "{fields:?}");
    assert!(
        fields.iter().any(|(_, text)| text.contains("the lease of its database credential has ended")),
        "{fields:?}"
    );
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "lease_over", "{end}");
    until_gone(world).await;

    let receiver = receive(world, &pglease).await;
    insert(world, &receiver, 1000).await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_gone(world).await;
}
