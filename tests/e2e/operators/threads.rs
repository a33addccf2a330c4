//! Sessions on several threads: spread evenly, and none the worse for it.

use std::fs;
use std::path::Path;

use tokio::task::JoinSet;
use tokio_postgres::Config;
use tokio_postgres::error::SqlState;

use super::calls::compile;
use super::warm::{cancelled, that_was_ready};
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_with, rotate, until, until_revoked, user_of};

/// pglease with three threads, for nine sessions, and with a Unix socket in its world's folder; ready.
async fn pglease_of(world: &World<'_>, of_route: &str) -> Pglease {
    let listen = format!("threads = 3\nmax_sessions = 9\nunix_socket = \"{}\"\n", world.folder().display());
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
    pglease_with(&(settings + &world.route("db-app") + of_route)).await
}

/// A client's way to the first of its addresses, or by the socket.
fn way(pglease: &Pglease, world: &World<'_>, by_socket: Option<&Path>) -> Config {
    let mut config = Config::new();
    config.port(pglease.port()).dbname(world.database()).user("app");
    match by_socket {
        Some(folder) => config.host_path(folder),
        None => config.host(pglease.addresses()[0].ip().to_string()),
    };
    config
}

/// Waits until all have so many connections.
async fn until_spread(pglease: &Pglease, expected: [u64; 3]) {
    let mut last = Vec::new();
    until(async || {
        let status = pglease.status().await;
        let threads = status["sessions"]["threads"].as_array().unwrap().iter();
        last = threads.map(|thread| thread["connections"].as_u64().unwrap()).collect();
        last == expected
    })
    .await;
}

/// Nine sessions, the first three of them by the Unix socket: three on each thread.
async fn nine(pglease: &Pglease, world: &World<'_>) -> Vec<Database> {
    until_spread(pglease, [0; 3]).await;
    let mut sessions = Vec::new();
    for number in 0..9 {
        let way = way(pglease, world, (number < 3).then_some(world.folder()));
        sessions.push(Database::open(&way).await.unwrap());
    }
    until_spread(pglease, [3; 3]).await;
    sessions
}

#[tokio::test]
async fn sessions_of_each_thread_are_cancelled_counted_replaced_and_drained_as_those_of_one() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_of(&world, "").await;
    let sessions = nine(&pglease, &world).await;
    // One of each thread, by connections that are on one of them.
    for session in sessions.iter().step_by(4) {
        cancelled(&world, session).await;
    }
    // Each is counted behind its end.
    until(async || pglease.metric("pglease_cancel_requests_total", "delivered").await > 2.0).await;
    rotate(&pglease, &["--close"]).await;
    for session in sessions {
        assert_eq!(session.last_words().await.unwrap().code(), &SqlState::ADMIN_SHUTDOWN);
    }
    pglease.wait_for_events("session.end", 9, PATIENCE).await;

    // Of many that come at once as many are let in as there are seats.
    until_spread(&pglease, [0; 3]).await;
    let mut storm = JoinSet::new();
    for _ in 0..40 {
        let way = way(&pglease, &world, None);
        storm.spawn(async move { Database::open(&way).await });
    }
    let (sessions, refused): (Vec<_>, Vec<_>) = storm.join_all().await.into_iter().partition(Result::is_ok);
    let codes: Vec<_> =
        refused.into_iter().filter_map(Result::err).map(|refused| refused.code().cloned()).collect();
    assert!(codes.iter().all(|code| *code == Some(SqlState::TOO_MANY_CONNECTIONS)), "{codes:?}");
    assert_eq!(sessions.len(), 9);
    drop(sessions);

    let sessions = nine(&pglease, &world).await;
    pglease.sigterm();
    for session in sessions {
        assert_eq!(session.last_words().await.unwrap().code(), &SqlState::ADMIN_SHUTDOWN);
    }
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert_eq!(pglease.events("process.end")[0]["sessions_cut"], 0);
    until_revoked(&world, &pglease).await;
}

#[tokio::test]
async fn session_that_was_made_ready_on_one_thread_is_had_by_a_client_on_another() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_of(&world, "warm = 1\n").await;
    let begin = async || pglease.connect(&world.database()).await.unwrap();
    // The first of all is on the first thread, and so is what makes others ready; one stays there.
    let first = begin().await;
    // Nothing is made ready for what has come once.
    begin().await;
    let session = loop {
        let session = that_was_ready(&pglease, begin).await;
        let mut connections = 0;
        until(async || {
            let status = pglease.status().await;
            let threads = status["sessions"]["threads"].as_array().unwrap().clone();
            connections = threads[0]["connections"].as_u64().unwrap();
            threads.iter().map(|thread| thread["connections"].as_u64().unwrap()).sum::<u64>() == 2
        })
        .await;
        if connections == 1 {
            break session;
        }
    };
    assert_eq!(user_of(&session).await, user_of(&first).await);
    cancelled(&world, &session).await;
    // What upstream says unasked is heard on its new thread.
    let pid = session.rows("SELECT pg_backend_pid()").await[0][0].clone().unwrap();
    world.superuser.rows(&format!("SELECT pg_terminate_backend({pid})")).await;
    assert_eq!(session.last_words().await.unwrap().code(), &SqlState::ADMIN_SHUTDOWN);
}

/// tokio gives a thread up that cannot wait for its sockets. No kernel does that to one at will: `threads/fail.c` stands
/// in front of it.
#[tokio::test]
async fn thread_that_dies_ends_all_sessions_and_the_process_which_gives_back_what_it_has() {
    for (threads, dying) in [(1, "data"), (2, "data-1"), (2, "data-2")] {
        let world = World::shared(WorldOptions::default()).await;
        let [library, file] = ["fail.so", "fail"].map(|name| world.folder().join(name));
        compile("threads/fail.c", &library);
        let listen = format!("threads = {threads}\n");
        let settings = world.settings_with("info", &world.servers.openbao.address(), &listen);
        let load = format!(
            "export LD_PRELOAD='{}' FAIL_FILE='{}' FAIL_THREAD={dying}",
            library.display(),
            file.display()
        );
        let settings = settings + &world.route("db-app");
        let pglease = Pglease::start_after(&load, Path::new(BINARY), &settings).await;
        pglease.wait_ready().await;
        let mut sessions = Vec::new();
        for _ in 0..2 {
            sessions.push(pglease.connect(&world.database()).await.unwrap());
        }
        fs::write(&file, "").unwrap();
        for session in &sessions {
            // One that is on the other thread may be answered still.
            let _ = session.batch_execute("SELECT 1").await;
        }

        assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(1), "{dying}");
        for session in sessions {
            assert!(session.batch_execute("SELECT 1").await.is_err(), "{dying}");
        }
        let told = ["process.fault", "process.end"].map(|event| pglease.events(event).len());
        assert_eq!(told, [1, 0], "{dying}: {}", pglease.lines().tail());
        until_revoked(&world, &pglease).await;
    }
}
