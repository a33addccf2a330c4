//! What most tests begin with. `tests/long` includes this file as well.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time;

pub(crate) use crate::support::PATIENCE;
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

/// With a session behind which nothing is left to do, it comes to rest: a second in which it takes next to no time of a
/// CPU. What turns in circles never does.
pub(crate) async fn expect_rest(pglease: &Pglease) {
    until(async || {
        let before = pglease.cpu_ticks();
        time::sleep(Duration::from_secs(1)).await;
        pglease.cpu_ticks() - before < 30
    })
    .await;
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

/// Waits until no session is this role's any more, and what its sessions had for themselves is gone with them: a client
/// that has gone is not yet a session that has ended.
pub(crate) async fn until_without_session(superuser: &Database, db_role: &str) {
    let sql = "SELECT FROM pg_stat_activity WHERE usename = $1";
    until(async || superuser.query(sql, &[&db_role]).await.unwrap().is_empty()).await;
}

/// Has it take new credentials once, with these arguments to `pglease rotate`. The command waits for half a minute, after
/// which what it asked for stays wanted: a busy machine may need longer.
pub(crate) async fn rotate(pglease: &Pglease, arguments: &[&str]) {
    let done = pglease.events("rotation.done").len();
    let asked = pglease.run_command(&[&["rotate"], arguments].concat()).await;
    if !asked.status.success() {
        let said = String::from_utf8_lossy(&asked.stdout);
        let is_late = said.contains("not done yet") || said.contains("could not be revoked");
        assert!(is_late, "{asked:?}; the last lines:\n{}", pglease.lines().tail());
        pglease.wait_for_events("rotation.done", done + 1, PATIENCE).await;
    }
}

/// A session, however often it has to be asked for: where clients are not to wait for long, a busy machine may need
/// longer for a login.
pub(crate) async fn until_served(pglease: &Pglease, database: &str) -> Database {
    let served = async {
        loop {
            if let Ok(session) = pglease.connect(database).await {
                return session;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let served = time::timeout(PATIENCE, served).await;
    served.unwrap_or_else(|_| panic!("nobody is served; the last lines:\n{}", pglease.lines().tail()))
}

/// Waits until no credential of the world can log in any more, which `pglease`, at its end, has had revoked. It has 5 s
/// for that: what nobody has answered by then, on a machine that stands still, is revoked here, as by an operator.
pub(crate) async fn until_revoked(world: &World<'_>, pglease: &Pglease) {
    let orphans = ["lease.orphaned", "token.orphaned"].map(|event| pglease.events(event)).concat();
    if orphans.iter().any(|orphan| orphan["code"].is_null()) {
        let path = format!("sys/leases/revoke-prefix/{}/creds", world.engine());
        world.write(&path, json!({ "sync": true })).await;
    }
    until(async || world.living_roles().await.is_empty()).await;
}

/// Leases and tokens that Vault has refused to end.
pub(crate) fn refused_revocations(pglease: &Pglease) -> usize {
    let orphans = ["lease.orphaned", "token.orphaned"].map(|event| pglease.events(event)).concat();
    orphans.iter().filter(|orphan| !orphan["code"].is_null()).count()
}

/// Waits until `/livez` says so, as a kubelet does: one answer that is late ends nobody.
pub(crate) async fn until_alive(pglease: &Pglease) {
    until(async || pglease.get("/livez").await.0 == 200).await;
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_pglease");
