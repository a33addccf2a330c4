//! What a client is told when there is no session for it, or none any more: byte for byte, on the wire.

use std::net::SocketAddr;

use crate::raw::{Message, Raw, packet, startup};
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::process::freeze;
use crate::support::world::{World, WorldOptions};
use crate::support::{Servers, free_ports};
use crate::{PATIENCE, pglease_for, pglease_with, start, until};

/// Codes of first packets.
const PROTOCOL_3_0: u32 = 0x0003_0000;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;

/// The one message that a client which sends `packet` is told before the end.
async fn told(pglease: &Pglease, packet: &[u8]) -> Message {
    let mut raw = Raw::connect(pglease.addresses()[0]).await;
    raw.send(packet).await;
    only(&raw.rest().await)
}

fn only(messages: &[Message]) -> Message {
    let [message] = messages else { panic!("{messages:?}") };
    message.clone()
}

fn asking(user: &str, database: &str) -> Vec<u8> {
    startup(&[("user", user), ("database", database)])
}

async fn session(pglease: &Pglease) -> Raw {
    Raw::log_in(pglease.addresses()[0], &[("user", "app"), ("database", "app")], "").await.0
}

/// The same where it may be refused for a while, for want of a seat or of time.
async fn seated(pglease: &Pglease) -> Raw {
    let mut seated = None;
    until(async || {
        let mut raw = Raw::connect(pglease.addresses()[0]).await;
        raw.send(&asking("app", "app")).await;
        raw.authenticate("").await;
        if raw.peek().await[0] == b'E' {
            return false;
        }
        raw.up_to(b'Z').await;
        seated = Some(raw);
        true
    })
    .await;
    seated.unwrap()
}

/// Asks until it is told that there is no credential: a login may be under way when its time is up, on a busy machine.
async fn until_told_of_no_credential(pglease: &Pglease) {
    until(async || {
        let error = told(pglease, &asking("app", "app")).await;
        let is_late = error.fields().contains(&('C', "08001".to_owned()));
        if !is_late {
            assert_fatal(&error, "57P03", "no database credential is available yet", "DH");
        }
        !is_late
    })
    .await;
}

/// Holds that it is an error of ours: S and V FATAL, C, M, then D and H where there are any.
fn assert_fatal(error: &Message, code: &str, message: &str, further: &str) {
    assert_eq!(error.tag, b'E', "{error:?}");
    assert!(error.body.ends_with(b"\0\0"), "{error:?}");
    let fields = error.fields();
    let head = [('S', "FATAL"), ('V', "FATAL"), ('C', code), ('M', message)];
    assert_eq!(fields[..4], head.map(|(name, value)| (name, value.to_owned())), "{error:?}");
    let names: String = fields[4..].iter().map(|(name, _)| *name).collect();
    assert_eq!(names, further, "{error:?}");
    assert!(fields.iter().all(|(_, value)| !value.is_empty()), "{error:?}");
}

#[tokio::test]
async fn client_that_asks_for_what_there_is_not_is_told_what() {
    let world = World::shared(WorldOptions::default()).await;
    let listen = "max_sessions = 1";
    let settings = world.settings_with("debug", &world.servers.openbao.address(), listen)
        + &world.route("db-app")
        + "database = \"app\"\n";
    let pglease = pglease_with(&settings).await;

    let error = told(&pglease, &packet(PROTOCOL_3_0, b"user\0app")).await;
    assert_fatal(&error, "08P01", "invalid startup packet layout: expected terminator as last byte", "");
    let error = told(&pglease, &packet(0x0004_0000, b"user\0app\0\0")).await;
    assert_fatal(&error, "0A000", "unsupported frontend protocol 4.0: server supports 3.0 to 3.2", "");
    let error = told(&pglease, &packet(PROTOCOL_3_0, b"database\0app\0\0")).await;
    assert_fatal(&error, "28000", "no PostgreSQL user name specified in startup packet", "");
    let error = told(&pglease, &asking("app", "elsewhere")).await;
    assert_fatal(&error, "3D000", "database \"elsewhere\" has no route", "D");

    // Who was refused has left his seat soon.
    let mut holder = seated(&pglease).await;
    let error = told(&pglease, &asking("app", "app")).await;
    assert_fatal(&error, "53300", "sorry, too many sessions already", "D");
    // Behind SSLRequest, too, the error comes where every driver reads it.
    let mut raw = Raw::connect(pglease.addresses()[0]).await;
    raw.send(&packet(SSL_REQUEST, b"")).await;
    assert_eq!(raw.byte().await, Some(b'N'));
    raw.send(&asking("app", "app")).await;
    assert_fatal(&only(&raw.rest().await), "53300", "sorry, too many sessions already", "D");
    holder.query("SELECT 1").await;
    holder.up_to(b'Z').await;
}

#[tokio::test]
async fn silence_is_kept_where_it_is_due() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let address = pglease.addresses()[0];
    let (mut session, greeting) = Raw::log_in(address, &[("user", "app"), ("database", "app")], "").await;
    let key = &greeting.iter().find(|message| message.tag == b'K').unwrap().body;
    let mut guess = key.clone();
    guess[7] ^= 1;

    for silent in [
        Vec::new(),
        asking("app", "app")[..9].to_vec(),
        packet(CANCEL_REQUEST, &guess),
        packet(CANCEL_REQUEST, key),
        // A TLS handshake that nobody asked us about.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
    ] {
        let mut raw = Raw::connect(address).await;
        raw.send(&silent).await;
        raw.finish().await;
        assert_eq!(raw.bytes().await, b"", "{}", silent.escape_ascii());
    }
    let result = |result| pglease.metric("pglease_cancel_requests_total", result);
    assert_eq!((result("result=\"miss\"").await, result("result=\"delivered\"").await), (1.0, 1.0));
    session.query("SELECT 1").await;
    session.up_to(b'Z').await;
}

#[tokio::test]
async fn client_is_told_that_there_is_no_credential_and_that_one_is_being_replaced() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.openbao.port()).await;
    gate.close().await;
    let vault = format!("http://{}", gate.address());
    let settings = world.settings_with("debug", &vault, "connect_wait = \"3s\"") + &world.route("db-app");
    let pglease = start(&settings).await;
    let error = told(&pglease, &asking("app", "app")).await;
    assert_fatal(&error, "57P03", "no database credential is available yet", "DH");

    gate.open().await;
    pglease.wait_ready().await;
    // Upstream rejects the credential, and Vault gives no other.
    gate.close().await;
    let [(role, _)] = &world.leased_roles().await[..] else { panic!("one role") };
    world.superuser.batch_execute(&format!("ALTER ROLE \"{role}\" NOLOGIN")).await.unwrap();
    until_told_of_no_credential(&pglease).await;
}

#[tokio::test]
async fn upstreams_own_refusals_are_those_of_a_login_without_pglease() {
    let world = World::shared(WorldOptions::default()).await;
    let anywhere = world.route("db-app").replace(&format!("/{}?", world.database()), "/?");
    let pglease = pglease_with(&(world.settings() + &anywhere)).await;
    let [(leased, _)] = &world.leased_roles().await[..] else { panic!("one role") };
    let leased = leased.clone();
    let direct = SocketAddr::from(([127, 0, 0, 1], world.servers.postgres.port()));
    let by_hand = world.lease("db-app").await;
    let database = world.database();
    let (full, closed) = (format!("full_{database}"), format!("closed_{database}"));
    for sql in [
        format!("CREATE DATABASE {full} CONNECTION LIMIT 0"),
        format!("CREATE DATABASE {closed}"),
        format!("REVOKE CONNECT ON DATABASE {closed} FROM PUBLIC"),
    ] {
        world.superuser.batch_execute(&sql).await.unwrap();
    }

    for (code, parameters) in [
        ("3D000", vec![("database", "no_such_database")]),
        ("53300", vec![("database", full.as_str())]),
        ("42501", vec![("database", closed.as_str())]),
        ("42501", vec![("database", database.as_str()), ("role", "postgres")]),
        ("22023", vec![("database", database.as_str()), ("role", "no_such_role")]),
        ("22023", vec![("database", database.as_str()), ("DateStyle", "sundial")]),
        ("42704", vec![("database", database.as_str()), ("no_such_setting", "on")]),
        ("42501", vec![("database", database.as_str()), ("replication", "true")]),
    ] {
        let mut answers = Vec::with_capacity(2);
        for (address, user) in [(direct, by_hand.user.as_str()), (pglease.addresses()[0], "app")] {
            let mut raw = Raw::connect(address).await;
            raw.send(&startup(&[&[("user", user)], &parameters[..]].concat())).await;
            raw.authenticate(&by_hand.password).await;
            let mut answer = raw.rest().await;
            // A server tells some of it before it says no.
            answer.retain(|message| !matches!(message.tag, b'S' | b'K'));
            answers.push(only(&answer));
        }
        assert!(answers[0].fields().contains(&('C', code.to_owned())), "{parameters:?}: {:?}", answers[0]);
        assert_eq!(answers[1], answers[0], "{parameters:?}");
    }
    // None of these was about our credential.
    assert_eq!(
        world.living_roles().await.iter().filter(|role| **role != by_hand.user).collect::<Vec<_>>(),
        [&leased]
    );
}

#[tokio::test]
async fn upstream_that_is_not_there_and_one_that_vanishes_are_told_apart() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    let through = world.route("db-app").replace(
        &format!("localhost:{}", world.servers.postgres.port()),
        &format!("localhost:{}", gate.address().port()),
    );
    let nowhere = through.replace(&gate.address().port().to_string(), &free_ports(1).to_string());
    let settings = world.settings() + &nowhere + "user = \"nobody\"\noptional = true\n" + &through;
    let pglease = pglease_with(&settings).await;
    let error = told(&pglease, &asking("nobody", "app")).await;
    assert_fatal(&error, "08001", "upstream server is not reachable", "D");

    let mut idle = session(&pglease).await;
    let mut within = session(&pglease).await;
    within.query("DO $$ BEGIN RAISE NOTICE 'begun'; PERFORM pg_sleep(600); END $$").await;
    within.up_to(b'N').await;
    gate.close().await;
    assert_fatal(&only(&idle.rest().await), "08006", "connection to upstream server was lost", "");
    let last = within.rest().await.pop().unwrap();
    assert_fatal(&last, "08006", "connection to upstream server was lost", "");
    let error = told(&pglease, &asking("app", "app")).await;
    assert_fatal(&error, "08001", "upstream server is not reachable", "D");
}

#[tokio::test]
async fn server_that_hangs_and_one_that_has_crashed_are_told_apart() {
    let servers = Servers::start().await;
    let world_options = WorldOptions { is_alone: true, ..WorldOptions::default() };
    let (mut idle, pglease) = {
        let world = World::create(&servers, world_options).await;
        let settings =
            world.settings_with("debug", &world.servers.openbao.address(), "connect_wait = \"4s\"")
                + &world.route("db-app");
        let pglease = pglease_with(&settings).await;
        (seated(&pglease).await, pglease)
    };
    freeze(servers.postgres.process().pid()).await;
    let error = told(&pglease, &asking("app", "app")).await;
    assert_fatal(&error, "08001", "upstream server did not answer in time", "D");
    servers.postgres.kill().await;
    let error = only(&idle.rest().await);
    let code = error.fields().into_iter().find(|(name, _)| *name == 'C').unwrap().1;
    assert!(["08006", "57P01"].contains(&code.as_str()), "{error:?}");
    let error = told(&pglease, &asking("app", "app")).await;
    assert_fatal(&error, "08001", "upstream server is not reachable", "D");
}

#[tokio::test]
async fn drain_is_told_to_those_who_come_those_who_idle_and_those_who_work() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + "[drain]\ndeadline = \"10m\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let mut idle = session(&pglease).await;
    let [mut open, mut busy] = open_and_busy(&world, &pglease).await;

    pglease.sigterm();
    assert_fatal(&only(&idle.rest().await), "57P01", SHUTTING_DOWN, "DH");
    let error = told(&pglease, &asking("app", "app")).await;
    assert_fatal(&error, "57P03", "pglease is shutting down", "");
    // The second signal is the deadline.
    pglease.sigterm();
    for session in [&mut open, &mut busy] {
        assert_fatal(&only(&session.rest().await), "57P01", SHUTTING_DOWN, "DH");
    }
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn deadline_of_a_drain_is_told_to_those_who_work() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + "[drain]\ndeadline = \"1s\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let [mut open, mut busy] = open_and_busy(&world, &pglease).await;
    pglease.sigterm();
    for session in [&mut open, &mut busy] {
        assert_fatal(&only(&session.rest().await), "57P01", SHUTTING_DOWN, "DH");
    }
}

/// A session within a transaction, and one within a statement.
async fn open_and_busy(world: &World<'_>, pglease: &Pglease) -> [Raw; 2] {
    let (mut open, mut busy) = (session(pglease).await, session(pglease).await);
    open.query("BEGIN").await;
    open.up_to(b'Z').await;
    // The mark of this world: others sleep on the same server.
    let sleep = format!("SELECT pg_sleep(600) AS {}", world.database());
    busy.query(&sleep).await;
    let sql = format!("SELECT 1 FROM pg_stat_activity WHERE query = '{sleep}' AND state = 'active'");
    until(async || !world.superuser.rows(&sql).await.is_empty()).await;
    [open, busy]
}

const SHUTTING_DOWN: &str = "terminating connection because pglease is shutting down";
