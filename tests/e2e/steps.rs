//! What most tests begin with. `tests/long` includes this file as well.

use std::path::Path;
use std::time::Duration;

use tokio::time;

use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::World;

/// pglease with one route, for every database and user, on the credentials of `db-app`; ready.
pub(crate) async fn pglease_for(world: &World<'_>) -> Pglease {
    pglease_with(&(world.settings() + &world.route("db-app"))).await
}

/// pglease with these settings, ready.
pub(crate) async fn pglease_with(settings: &str) -> Pglease {
    let pglease = start(settings).await;
    pglease.wait_ready().await;
    pglease
}

/// pglease with these settings, listening.
pub(crate) async fn start(settings: &str) -> Pglease {
    Pglease::start(Path::new(BINARY), settings).await
}

/// Who the session has logged in as.
pub(crate) async fn user_of(session: &Database) -> String {
    session.query_one("SELECT session_user::text", &[]).await.unwrap().get(0)
}

/// With a session behind which nothing is left to do, it takes next to no time of a CPU.
pub(crate) async fn expect_rest(pglease: &Pglease) {
    let before = pglease.cpu_ticks();
    time::sleep(Duration::from_secs(1)).await;
    let used = pglease.cpu_ticks() - before;
    assert!(used < 30, "{used} ticks of 100");
}

/// Waits for what no event tells.
pub(crate) async fn until(mut done: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !done().await {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let is_done = time::timeout(PATIENCE, polled).await.is_ok();
    assert!(is_done, "it does not come true within {PATIENCE:?}");
}

/// Has it take new credentials, with these arguments to `pglease rotate`. The command waits for half a minute, which a
/// busy machine may need.
pub(crate) async fn rotate(pglease: &Pglease, arguments: &[&str]) {
    let mut said = None;
    for _ in 0..4 {
        let asked = pglease.run_command(&[&["rotate"], arguments].concat()).await;
        if asked.status.success() {
            return;
        }
        said = Some(asked);
    }
    panic!("{said:?}; the last lines:\n{}", pglease.lines().tail());
}

/// Waits until `/livez` says so, as a kubelet does: one answer that is late ends nobody.
pub(crate) async fn until_alive(pglease: &Pglease) {
    until(async || pglease.get("/livez").await.0 == 200).await;
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_pglease");

/// For what takes its time on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
