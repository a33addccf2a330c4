//! Thirty processes that are killed one after the other.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{self, Instant};

use crate::pglease_with;
use crate::report::report;
use crate::steps::{PATIENCE, start, until};
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};

async fn killed(pglease: Pglease) {
    pglease.kill();
    pglease.wait_exit(PATIENCE).await;
}

/// When credentials were read, oldest first, as Unix time.
fn reads(world: &World<'_>) -> Vec<Duration> {
    let requests = world.requests().into_iter();
    requests.filter(|request| request.is_creds() && request.was_granted()).map(|request| request.at).collect()
}

#[tokio::test]
async fn scenario_13_thirty_crashes_leave_no_more_roles_than_fit_into_a_ttl() {
    let vault_role = VaultRole { default_ttl: "20s", ..VaultRole::default() };
    let world =
        World::shared(WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() }).await;
    let settings = world.settings() + &world.route("db-app");
    let mut most = 0;
    for _ in 0..CRASHES {
        killed(pglease_with(&settings).await).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let living = world.living_roles().await.len();
        // Vault takes a moment to revoke what has ended.
        let young = reads(&world).into_iter().filter(|&at| at + TTL + LAG >= now).count();
        assert!(living <= young, "{living} roles of {young} that are young enough");
        most = most.max(living);
    }
    report("crashes without state_dir", &format!("{most} roles at most"));
    until(async || world.living_roles().await.is_empty()).await;
}

#[tokio::test]
async fn scenario_13_thirty_crashes_with_a_state_dir_leave_one_role() {
    let world = World::shared(WorldOptions::default()).await;
    let dir = world.folder().join("state");
    fs::create_dir(&dir).unwrap();
    let path = dir.display().to_string();
    let settings = world.settings().replacen("[vault]\n", &format!("[vault]\nstate_dir = {path:?}\n"), 1);
    let settings = settings + &world.route("db-app");
    let began = Instant::now();
    for _ in 0..CRASHES {
        let pglease = start(&settings).await;
        time::sleep(Duration::from_secs(1)).await;
        killed(pglease).await;
    }
    let (made, took) = (reads(&world).len(), began.elapsed());
    assert!(made as u64 <= took.as_secs() / 10 + 1, "{made} in {took:?}");
    let _last = pglease_with(&settings).await;
    until(async || world.living_roles().await.len() == 1).await;
    report("crashes with state_dir", &format!("{made} credentials in {took:?}"));
}

const CRASHES: usize = 30;
const TTL: Duration = Duration::from_secs(20);
const LAG: Duration = Duration::from_secs(5);
