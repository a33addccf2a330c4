//! Sessions that are logged in ahead of their clients.

use std::collections::BTreeSet;

use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::raw::{Message, Raw};
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, rotate, until, until_revoked, until_without_session, user_of};

async fn world_and_pglease() -> (World<'static>, Pglease) {
    let world = World::shared(WorldOptions::default()).await;
    let route = world.route("db-app") + "warm = 1\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    (world, pglease)
}

/// A session that was ready, by `begin`. One that was not, as it had become too old in the meantime, does not count.
pub(super) async fn that_was_ready<T>(pglease: &Pglease, mut begin: impl AsyncFnMut() -> T) -> T {
    loop {
        until(async || pglease.metric("pglease_warm_sessions", "").await > 0.0).await;
        let hits = pglease.metric("pglease_warm_total", "hit").await;
        let session = begin().await;
        if pglease.metric("pglease_warm_total", "hit").await > hits {
            return session;
        }
    }
}

/// All that a client can see of its session: the greeting, the settings of its packet and that they come back, what the
/// server says of it; without its pid, which comes beside it, once by the greeting and once by the server.
async fn seen(session: &mut Raw, mut greeting: Vec<Message>) -> (Vec<Message>, [String; 2]) {
    let key = greeting.iter().position(|message| message.tag == b'K').unwrap();
    let pid = i32::from_be_bytes(greeting[key].body[..4].try_into().unwrap()).to_string();
    greeting[key].body.drain(..);
    let mut own_pid = String::new();
    for sql in [
        "SHOW TimeZone; SHOW work_mem; SHOW application_name; SELECT session_user, current_user",
        "SET application_name = 'x'; SET TimeZone = 'UTC'; SET work_mem = '1MB'",
        "RESET ALL",
        "SHOW TimeZone; SHOW work_mem; SHOW application_name",
        "SET TimeZone = 'UTC'",
        "DISCARD ALL",
        "SHOW TimeZone",
        "SELECT client_addr, usename, application_name, state FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        "SELECT name, setting FROM pg_settings WHERE source IN ('client', 'session') ORDER BY name",
        "SELECT 1 / 0",
        "SELECT pg_backend_pid()",
    ] {
        session.query(sql).await;
        let told = session.up_to(b'Z').await;
        if sql.ends_with("pg_backend_pid()") {
            own_pid = String::from_utf8(told[1].body[6..].to_vec()).unwrap();
        } else {
            greeting.extend(told);
        }
    }
    session.send(b"X\0\0\0\x04").await;
    (greeting, [pid, own_pid])
}

#[tokio::test]
async fn session_that_was_ready_is_seen_as_one_that_has_logged_in_itself_and_is_nobody_elses() {
    let (world, pglease) = world_and_pglease().await;
    let (address, database) = (pglease.addresses()[0], world.database());
    let packet = [
        ("user", "app"),
        ("database", &database),
        ("application_name", "warm"),
        ("TimeZone", "Asia/Tokyo"),
        ("options", "-c work_mem=7MB"),
    ];
    let begin = async || {
        let (mut session, greeting) = Raw::log_in(address, &packet, "").await;
        seen(&mut session, greeting).await
    };
    let (fresh, _) = begin().await;
    // Nothing is made ready for what has come once.
    let (again, _) = begin().await;
    assert_eq!(fresh, again);
    assert!(pglease.metric("pglease_warm_total", "hit").await < 1.0);

    let mut pids = BTreeSet::new();
    for _ in 0..3 {
        let (warm, [pid, own_pid]) = that_was_ready(&pglease, begin).await;
        assert_eq!(warm, fresh);
        assert_eq!(pid, own_pid);
        assert!(pids.insert(pid), "one backend twice: {pids:?}");
    }
    let status = pglease.status().await;
    assert_eq!(status["routes"][0]["warm"], 1, "{status}");
}

#[tokio::test]
async fn what_is_ready_is_of_the_newest_credential_is_cancelled_as_any_and_leaves_nothing_behind() {
    let (world, pglease) = world_and_pglease().await;
    let database = world.database();
    let begin = async || pglease.connect(&database).await.unwrap();
    for _ in 0..2 {
        begin().await;
    }
    let session = that_was_ready(&pglease, begin).await;
    let first = user_of(&session).await;
    cancelled(&world, &session).await;

    // Upstream ends it, as when it starts anew.
    let others = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{first}'");
    drop(session);
    until(async || {
        world.superuser.rows(&others).await;
        pglease.metric("pglease_warm_total", "closed").await > 0.0
    })
    .await;
    // One that was ended just now may have been handed out before that was known, as to a client of the server's own.
    until(async || {
        let session = that_was_ready(&pglease, begin).await;
        session.query_one("SELECT 1", &[]).await.is_ok()
    })
    .await;

    until(async || pglease.metric("pglease_warm_sessions", "").await > 0.0).await;
    rotate(&pglease, &[]).await;
    // None that was ready is left.
    until_without_session(&world.superuser, &first).await;
    let second = user_of(&that_was_ready(&pglease, begin).await).await;
    assert_ne!(second, first);

    until(async || pglease.metric("pglease_warm_sessions", "").await > 0.0).await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_without_session(&world.superuser, &second).await;
    until_revoked(&world, &pglease).await;
}

/// A statement of its is, by its own key.
pub(super) async fn cancelled(world: &World<'_>, session: &Database) {
    let cancel = session.cancel_token();
    let statement = session.batch_execute("SELECT pg_sleep(600)");
    let cancelling = async {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)' AND state = 'active'";
        until(async || !world.superuser.rows(sql).await.is_empty()).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (statement, ()) = tokio::join!(statement, cancelling);
    assert_eq!(statement.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
}
