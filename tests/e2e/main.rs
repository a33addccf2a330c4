//! End to end: real servers, the real program, real client libraries.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches and the demo use other parts of it")]
mod support;

mod servers;
mod raw;
mod start;
mod wire;
mod pressure;
mod tls;
mod rotation;
mod scenarios;
mod trouble;
mod drain;
mod setup;
mod pgbench;
mod secrets;
mod errors;
mod hostile;

use std::path::Path;
use std::time::Duration;

use support::pglease::Pglease;
use support::postgres::Database;
use support::world::World;
use tokio::time;

/// pglease with one route, for every database and user, on the credentials of `db-app`; ready.
async fn pglease_for(world: &World<'_>) -> Pglease {
    pglease_with(&(world.settings() + &world.route("db-app"))).await
}

/// pglease with these settings, ready.
async fn pglease_with(settings: &str) -> Pglease {
    let pglease = start(settings).await;
    pglease.wait_ready().await;
    pglease
}

/// pglease with these settings, listening.
async fn start(settings: &str) -> Pglease {
    Pglease::start(Path::new(BINARY), settings).await
}

/// Who the session has logged in as.
async fn user_of(session: &Database) -> String {
    session.query_one("SELECT session_user::text", &[]).await.unwrap().get(0)
}

/// Waits for what no event tells.
async fn until(mut done: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !done().await {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let is_done = time::timeout(PATIENCE, polled).await.is_ok();
    assert!(is_done, "it does not come true within {PATIENCE:?}");
}

const BINARY: &str = env!("CARGO_BIN_EXE_pglease");

/// For what takes its time on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);
