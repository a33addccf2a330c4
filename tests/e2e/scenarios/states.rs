//! The end of a lease as 200 sessions meet it, whatever they do just then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;
use tokio_postgres::Error;

use super::of;
use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_with, until_served};

/// What a session does all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Idle for long, then a statement.
    Idle,
    InTransaction,
    InCopy,
    /// One long statement after another.
    Running,
    /// In a transaction, with a portal that is not read to its end.
    InPortal,
    Listening,
}

const STATES: [State; 6] =
    [State::Idle, State::InTransaction, State::InCopy, State::Running, State::InPortal, State::Listening];

#[tokio::test]
async fn end_by_the_default_revocation_is_met_by_none_of_200_sessions_in_all_states() {
    let servers = Servers::start().await;
    let (world, pglease) = set_up(&servers, Revocation::Drop, false).await;
    let ends = play(Arc::clone(&pglease), Arc::default()).await;

    // The driver does not show what comes in the middle of a COPY.
    for (state, end) in ends.iter().flat_map(|(state, ends)| ends.iter().map(move |end| (state, end))) {
        let is_told = end.as_deref() == Some("57P01");
        assert!(is_told || *state == State::InCopy && end.as_deref() == Some("closed"), "{state:?} {end:?}");
    }
    pglease.wait_for_events("session.end", SESSIONS, PATIENCE).await;
    let by_the_lease =
        |end: &serde_json::Value| end["reason"] == "lease_ends" || end["reason"] == "lease_over";
    let ends = pglease.events("session.end");
    assert!(ends.iter().all(by_the_lease), "{ends:?}");
    assert!(!world.living_roles().await.is_empty());
}

#[tokio::test]
async fn end_by_nologin_closes_none_of_200_sessions_in_all_states() {
    assert_outlived(Revocation::NoLogin, false).await;
}

#[tokio::test]
async fn end_by_the_default_revocation_closes_none_of_200_sessions_with_a_startup_role() {
    assert_outlived(Revocation::Drop, true).await;
}

async fn assert_outlived(revocation: Revocation, with_startup_role: bool) {
    let servers = Servers::start().await;
    let (world, pglease) = set_up(&servers, revocation, with_startup_role).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let until_all_are_outlived = async {
        let mut outlived = 0;
        for count in 1.. {
            let ended = pglease.wait_for_events("lease.ended", count, PATIENCE).await;
            outlived += ended["outlived_sessions"].as_u64().unwrap();
            if outlived == SESSIONS as u64 {
                break;
            }
        }
        is_done.store(true, Ordering::Relaxed);
    };
    let (ends, ()) = tokio::join!(play(Arc::clone(&pglease), Arc::clone(&is_done)), until_all_are_outlived);

    assert!(ends.values().flatten().all(Option::is_none), "{ends:?}");
    assert!(!world.living_roles().await.is_empty());
}

async fn set_up(
    servers: &Servers,
    revocation: Revocation,
    with_startup_role: bool,
) -> (World<'_>, Arc<Pglease>) {
    let vault_role = VaultRole { default_ttl: "40s", max_ttl: "60s", revocation, ..VaultRole::default() };
    let world = World::create(servers, of(vault_role)).await;
    let owner = world.group("app_owner");
    let grant = format!("GRANT SELECT, INSERT ON t, visits TO {owner}");
    world.superuser.batch_execute(&grant).await.unwrap();
    let startup_role = if with_startup_role { owner.as_str() } else { "" };
    let route = world.route("db-app") + &format!("startup_role = {startup_role:?}\n");
    let pglease = pglease_with(&(world.settings() + &route)).await;
    (world, Arc::new(pglease))
}

/// Every session to its end, or to its first safe point once `is_done`.
async fn play(pglease: Arc<Pglease>, is_done: Arc<AtomicBool>) -> BTreeMap<State, Vec<Option<String>>> {
    // More at once would only wait for each other, until the last have waited for too long.
    let turns = Arc::new(Semaphore::new(16));
    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        let (pglease, is_done, turns) = (Arc::clone(&pglease), Arc::clone(&is_done), Arc::clone(&turns));
        let state = STATES[number % STATES.len()];
        sessions.spawn(async move {
            let turn = turns.acquire().await.unwrap();
            let session = until_served(&pglease, "app").await;
            drop(turn);
            let Err(error) = live(&session, state, &is_done).await else { return (state, None) };
            // A goodbye that no statement waits for is heard by the connection.
            let code = match error.code() {
                Some(code) => Some(code.clone()),
                None => time::timeout(PATIENCE, session.last_words())
                    .await
                    .unwrap()
                    .map(|told| told.code().clone()),
            };
            (state, Some(code.map_or_else(|| "closed".to_owned(), |code| code.code().to_owned())))
        });
    }
    let mut ends = BTreeMap::<_, Vec<_>>::new();
    for (state, end) in sessions.join_all().await {
        ends.entry(state).or_default().push(end);
    }
    ends
}

/// Does what `state` says. Every statement but COPY and LISTEN reads a table that only the role's group may read.
async fn live(session: &Database, state: State, is_done: &AtomicBool) -> Result<(), Error> {
    let begin = match state {
        State::Idle | State::Running => "",
        State::InTransaction => "BEGIN; INSERT INTO visits (visitor) VALUES ('in transaction')",
        State::InPortal => "BEGIN; DECLARE c CURSOR FOR SELECT * FROM t, generate_series(1, 1000)",
        State::Listening => "LISTEN somebody",
        State::InCopy => {
            let copy = "COPY visits (visitor) FROM STDIN";
            let mut sink = Box::pin(session.copy_in::<_, Bytes>(copy).await?);
            while !is_done.load(Ordering::Relaxed) && !session.is_closed() {
                time::sleep(Duration::from_millis(500)).await;
            }
            return sink.as_mut().finish().await.map(drop);
        }
    };
    session.batch_execute(begin).await?;
    while !is_done.load(Ordering::Relaxed) {
        let (pause, statement) = match state {
            State::Idle => (3_000, "SELECT count(*) FROM t"),
            State::InTransaction => (500, "SELECT count(*) FROM t"),
            State::InPortal => (500, "FETCH 1 FROM c"),
            State::Running => (10, "SELECT pg_sleep(4) FROM t WHERE id = 1"),
            // Only asks whether the connection is there.
            State::Listening | State::InCopy => (500, ""),
        };
        time::sleep(Duration::from_millis(pause)).await;
        session.batch_execute(statement).await?;
    }
    session.batch_execute("COMMIT").await?;
    session.batch_execute("SELECT count(*) FROM t").await
}

const SESSIONS: usize = 200;
