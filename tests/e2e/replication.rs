//! Replication through pglease, with PostgreSQL's own tools and servers at its other end.

use std::fs;

use ring::digest::{SHA256, digest};
use rustix::process::Signal;

use crate::raw::{Message, Raw};
use crate::support::Servers;
use crate::support::openbao::OpenBao;
use crate::support::pglease::Pglease;
use crate::support::postgres::{Postgres, PostgresOptions};
use crate::support::process::{Process, Spawn};
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

#[tokio::test]
async fn replication_of_every_kind_passes_and_goes_on_behind_the_end_of_a_lease() {
    let replicating = |settings| PostgresOptions { settings, ..PostgresOptions::default() };
    let publisher = replicating(vec![("wal_level", "logical".to_owned())]);
    let subscriber = replicating(vec![("wal_retrieve_retry_interval", "200ms".to_owned())]);
    let (postgres, subscriber, openbao) =
        tokio::join!(Postgres::start(publisher), Postgres::start(subscriber), OpenBao::start());
    let servers = Servers { postgres, openbao };

    let lasting = world(&servers, VaultRole { default_ttl: "1h", max_ttl: "24h", ..VaultRole::default() });
    let short = VaultRole {
        default_ttl: "20s",
        max_ttl: "30s",
        revocation: Revocation::Drop,
        groups: &["app_rw"],
        ..VaultRole::default()
    };
    let (lasting, short_lived) = tokio::join!(lasting, world(&servers, short));
    let pglease = proxy(&lasting).await;
    tokio::join!(
        base_backup_is_whole(&lasting, &pglease),
        async {
            received_wal_is_the_servers_own(&lasting, &pglease).await;
            raw_stream_begins_and_ends_as_it_does_directly(&lasting, &pglease).await;
        },
        subscription_loses_nothing_at_the_end_of_a_lease(&short_lived, &subscriber),
    );

    // Behind a stream that both sides have ended a session is as idle as any.
    let (mut raw, _) = replicate(&pglease, "app", "database").await;
    ended_stream(&mut raw, &lasting).await;
    pglease.sigterm();
    let told = raw.up_to(b'E').await.pop().unwrap();
    assert!(told.fields().iter().any(|(_, text)| text.ends_with("the session was idle.")), "{told:?}");
    assert!(pglease.wait_exit(PATIENCE).await.success());
}

/// One whose leased roles may replicate.
async fn world(servers: &Servers, vault_role: VaultRole) -> World<'_> {
    let vault_role = VaultRole { attributes: "REPLICATION", ..vault_role };
    let options = WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() };
    let world = World::create(servers, options).await;
    let sql = format!("ALTER ROLE {} SUPERUSER", world.group("vault_admin"));
    world.superuser.batch_execute(&sql).await.unwrap();
    world
}

/// Sessions of the user `owner` have a `startup_role`, others none.
async fn proxy(world: &World<'_>) -> Pglease {
    let owner = format!("user = \"owner\"\nstartup_role = {:?}\n", world.group("app_owner"));
    let close = "at_lease_end = \"close\"\n";
    let routes = [world.route("db-app"), owner, world.route("db-app"), close.to_owned()].concat();
    pglease_with(&(world.settings() + &routes)).await
}

/// One of PostgreSQL's programs as `user` of pglease.
fn run(world: &World<'_>, pglease: &Pglease, program: &str, user: &str, arguments: &[&str]) -> Process {
    let connection =
        ["--host=localhost", &format!("--port={}", pglease.port()), "--username", user, "--no-password"];
    let arguments = connection.iter().chain(arguments).map(|argument| (*argument).to_owned());
    spawn(world, program, &arguments.collect::<Vec<_>>())
}

fn spawn(world: &World<'_>, program: &str, arguments: &[String]) -> Process {
    Process::spawn(&Spawn {
        program: &world.servers.postgres.bin().join(program),
        arguments,
        environment: &[("LC_ALL", "C"), ("PGSSLMODE", "disable")],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    })
}

async fn expect_success(process: &Process) {
    let status = process.wait_exit(PATIENCE).await;
    assert!(status.success(), "{status}:\n{}", process.lines().tail());
}

/// By the word of the manifest's checksums, and with the WAL that it needs.
async fn base_backup_is_whole(world: &World<'_>, pglease: &Pglease) {
    for (user, wal_method) in [("app", "stream"), ("owner", "fetch")] {
        let folder = world.folder().join(format!("backup-{user}"));
        let folder = folder.to_str().unwrap();
        let wal_method = format!("--wal-method={wal_method}");
        let arguments = ["--pgdata", folder, &wal_method, "--checkpoint=fast", "--no-sync"];
        expect_success(&run(world, pglease, "pg_basebackup", user, &arguments)).await;
        expect_success(&spawn(world, "pg_verifybackup", &[folder.to_owned()])).await;
        fs::remove_dir_all(folder).unwrap();
    }
}

/// Up to the byte, and the receiver ends its stream as it should: COPY in both directions, ended by both.
async fn received_wal_is_the_servers_own(world: &World<'_>, pglease: &Pglease) {
    let folder = world.folder().join("wal");
    fs::create_dir(&folder).unwrap();
    let directory = ["--directory", folder.to_str().unwrap(), "--slot=received"];
    expect_success(&run(world, pglease, "pg_receivewal", "app", &["--slot=received", "--create-slot"])).await;
    let arguments = [&directory[..], &["--no-loop", "--no-sync", "--status-interval=1"]].concat();
    let receiver = run(world, pglease, "pg_receivewal", "app", &arguments);
    let streams = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'received' AND active";
    until(async || !world.superuser.rows(streams).await.is_empty()).await;

    world.superuser.batch_execute("CREATE TABLE logged AS SELECT generate_series(1, 20000)").await.unwrap();
    let sql = "SELECT pg_walfile_name(pg_switch_wal())";
    let name = world.superuser.rows(sql).await[0][0].clone().unwrap();
    let segment = folder.join(&name);
    until(async || segment.exists()).await;
    let sql = format!("SELECT sha256(pg_read_binary_file('pg_wal/{name}'))");
    let hash: Vec<u8> = world.superuser.query_one(&sql, &[]).await.unwrap().get(0);
    assert_eq!(hash, digest(&SHA256, &fs::read(segment).unwrap()).as_ref());

    receiver.signal(Signal::INT);
    expect_success(&receiver).await;
    until(async || world.superuser.rows(streams).await.is_empty()).await;
    world.superuser.rows("SELECT pg_drop_replication_slot('received')").await;
}

async fn replicate(pglease: &Pglease, user: &str, kind: &str) -> (Raw, Vec<Message>) {
    let parameters = [("user", user), ("database", "app"), ("replication", kind)];
    Raw::log_in(pglease.addresses()[0], &parameters, "").await
}

/// Begins a logical stream and ends it; gives the kinds of messages from then on that do not depend on time.
async fn ended_stream(raw: &mut Raw, world: &World<'_>) -> String {
    let slot = format!("ended_{}", world.database());
    raw.query(&format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput")).await;
    raw.up_to(b'Z').await;
    let options = "(proto_version '1', publication_names 'none')";
    raw.query(&format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 {options}")).await;
    raw.up_to(b'W').await;
    // A status update that asks for an answer, then the end: from then on the client sends nothing, the server what it
    // was about to.
    let status = [&b"d\0\0\0\x26r"[..], &[0; 32], &[1]].concat();
    raw.send(&status).await;
    raw.send(b"c\0\0\0\x04").await;
    let answer = raw.up_to(b'Z').await;
    raw.query(&format!("DROP_REPLICATION_SLOT {slot}")).await;
    let dropped = raw.up_to(b'Z').await;
    [answer, dropped]
        .concat()
        .iter()
        .filter(|message| message.tag != b'd')
        .map(|m| char::from(m.tag))
        .collect()
}

async fn raw_stream_begins_and_ends_as_it_does_directly(world: &World<'_>, pglease: &Pglease) {
    let postgres = &world.servers.postgres;
    for kind in ["database", "true", "on", "1"] {
        let database = world.database();
        let parameters = [("user", "postgres"), ("database", &database), ("replication", kind)];
        let address = ([127, 0, 0, 1], postgres.port()).into();
        for user in ["app", "owner"] {
            let (mut direct, greeting) = Raw::log_in(address, &parameters, "postgres").await;
            let (mut through, greeted) = replicate(pglease, user, kind).await;
            assert_eq!(names_of(&greeted), names_of(&greeting), "{kind}");
            for sql in ["SHOW wal_level", "TIMELINE_HISTORY 99", "NO SUCH COMMAND", "SELECT 1"] {
                direct.query(sql).await;
                through.query(sql).await;
                assert_eq!(through.up_to(b'Z').await, direct.up_to(b'Z').await, "{kind}: {sql}");
            }
            // Nothing but simple queries is spoken here.
            let parse = b"P\0\0\0\x10\0SELECT 1\0\0\0S\0\0\0\x04";
            direct.send(parse).await;
            through.send(parse).await;
            assert_eq!(through.up_to(b'Z').await, direct.up_to(b'Z').await, "{kind}");
            if kind == "database" {
                let told = ended_stream(&mut through, world).await;
                assert_eq!(told, ended_stream(&mut direct, world).await);
            }
        }
    }
}

/// The kinds of messages, and the names of parameters: their values differ by who has logged in.
fn names_of(greeting: &[Message]) -> Vec<String> {
    let name = |message: &Message| match message.tag {
        b'S' => message.fields().first().map(|(c, rest)| format!("{c}{rest}")).unwrap_or_default(),
        tag => char::from(tag).to_string(),
    };
    let behind_login = greeting.iter().filter(|message| message.tag != b'R');
    behind_login.map(name).collect()
}

/// The stream never rests, so its session is cut when the lease is over; the subscriber comes back by itself, on the
/// next credential.
async fn subscription_loses_nothing_at_the_end_of_a_lease(world: &World<'_>, subscriber: &Postgres) {
    let pglease = proxy(world).await;
    world.superuser.batch_execute("CREATE PUBLICATION published FOR TABLE t").await.unwrap();
    let far = subscriber.connect("postgres").await;
    far.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let sql = format!(
        "CREATE SUBSCRIPTION subscribed CONNECTION 'host=localhost port={} user=app dbname=app sslmode=disable'
         PUBLICATION published WITH (slot_name = 'slot_{}')",
        pglease.port(),
        world.database()
    );
    far.batch_execute(&sql).await.unwrap();
    let rows = async |database: &crate::support::postgres::Database| {
        database.rows("SELECT count(*), sum(id) FROM t").await
    };
    until(async || rows(&far).await == rows(&world.superuser).await).await;

    let mut next = 1000;
    until(async || {
        let sql = format!("INSERT INTO t VALUES ({next}); DELETE FROM t WHERE id = {}", next - 3);
        world.superuser.batch_execute(&sql).await.unwrap();
        next += 1;
        pglease.events("session.end").iter().any(|end| end["reason"] == "lease_over")
    })
    .await;
    world.superuser.batch_execute("INSERT INTO t SELECT generate_series(100001, 110000)").await.unwrap();
    until(async || rows(&far).await == rows(&world.superuser).await).await;

    let mut roles: Vec<_> =
        pglease.logged("session.start").await.iter().map(|start| start["db_role"].clone()).collect();
    roles.dedup();
    assert!(roles.len() > 1, "{roles:?}");
    far.batch_execute("ALTER SUBSCRIPTION subscribed DISABLE").await.unwrap();
    // With the slot, by a session that may meet the end of a lease.
    until(async || far.batch_execute("DROP SUBSCRIPTION subscribed").await.is_ok()).await;
    let slots = "SELECT 1 FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary";
    assert!(world.superuser.rows(slots).await.is_empty());
}
