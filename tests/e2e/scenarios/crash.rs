//! A process that ends without a chance to give anything back, and the one that comes after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tokio::time;

use super::{granted, of};
use crate::support::audit::Request;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_for, pglease_with, start, until, until_alive, user_of};

/// A `vault.state_dir` in the world's folder, and settings with it.
fn with_state_dir(world: &World<'_>) -> (PathBuf, String) {
    let dir = world.folder().join("state");
    fs::create_dir(&dir).unwrap();
    let path = dir.display().to_string();
    let settings = world.settings().replacen("[vault]\n", &format!("[vault]\nstate_dir = {path:?}\n"), 1);
    (dir, settings + &world.route("db-app"))
}

fn kept_tokens(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("token-")).count()
}

/// As if the last start had been just now: what comes next is soon after it, however slow the machine.
fn start_was_now(dir: &Path) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    fs::write(dir.join("last-start"), now.as_millis().to_string()).unwrap();
}

fn is_revocation(request: &Request) -> bool {
    request.path == "auth/token/revoke-self"
}

async fn killed(pglease: Pglease) {
    pglease.kill();
    pglease.wait_exit(PATIENCE).await;
}

#[tokio::test]
async fn scenario_13_token_that_a_crash_leaves_is_revoked_at_the_next_start() {
    let world = World::shared(WorldOptions::default()).await;
    let (dir, settings) = with_state_dir(&world);
    let pglease = pglease_with(&settings).await;
    assert_eq!(pglease.events("start.delayed").len(), 0);
    let first_user = user_of(&pglease.connect("app").await.unwrap()).await;
    assert_eq!(kept_tokens(&dir), 1);
    let token = fs::read_dir(&dir).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let token = token.max_by_key(String::len).unwrap();
    killed(pglease).await;

    start_was_now(&dir);
    let pglease = start(&settings).await;
    pglease.wait_for_event("token.leftover_revoked", PATIENCE).await;
    until(async || !world.living_roles().await.contains(&first_user)).await;
    let [login, ..] = &granted(&world, Request::is_login)[..] else { panic!("one has logged in") };
    let [revoked, ..] = &granted(&world, is_revocation)[..] else { panic!("its token is revoked") };
    assert_eq!(revoked.token, login.token);

    // It comes soon after the first: it listens and answers, and fetches its credential a little later.
    let delayed = pglease.wait_for_event("start.delayed", PATIENCE).await;
    assert!(delayed["seconds"].as_f64().unwrap() <= 10.0, "{delayed}");
    let started = pglease.get("/startup").await.0;
    assert!(started == 503 || !pglease.logged("lease.issued").await.is_empty(), "{started}");
    until_alive(&pglease).await;
    assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, first_user);
    // The token that was left waits for no start.
    let [_, login, ..] = &granted(&world, Request::is_login)[..] else { panic!("two have logged in") };
    assert!(revoked.at < login.at, "{revoked:?} {login:?}");
    let creds = granted(&world, Request::is_creds);
    let apart = creds[1].at.saturating_sub(creds[0].at);
    assert!(apart > Duration::from_secs(9), "{apart:?}");

    assert!(!pglease.lines().all().iter().any(|line| line.contains(&token)));
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert_eq!(kept_tokens(&dir), 0);
}

#[tokio::test]
async fn scenario_13_without_a_state_dir_what_a_crash_leaves_ends_with_its_ttl() {
    let world = World::shared(of(VaultRole { default_ttl: "10s", ..VaultRole::default() })).await;
    let pglease = pglease_for(&world).await;
    let first_user = user_of(&pglease.connect("app").await.unwrap()).await;
    killed(pglease).await;

    let pglease = pglease_for(&world).await;
    assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, first_user);
    until(async || !world.living_roles().await.contains(&first_user)).await;
    assert_eq!(granted(&world, is_revocation).len(), 0);
    assert_eq!(world.living_roles().await.len(), 1);
}

#[tokio::test]
async fn scenario_13_crash_loop_makes_one_role_in_ten_seconds_and_leaves_none_but_the_last() {
    let world = World::shared(WorldOptions::default()).await;
    let (dir, settings) = with_state_dir(&world);
    let began = time::Instant::now();
    killed(pglease_with(&settings).await).await;
    for _ in 0..4 {
        let pglease = start(&settings).await;
        time::sleep(Duration::from_millis(500)).await;
        killed(pglease).await;
    }
    let most = began.elapsed().as_secs() / 10 + 1;
    let creds = granted(&world, Request::is_creds).len();
    assert!((1..=most).contains(&(creds as u64)), "{creds} in {:?}", began.elapsed());
    let pglease = pglease_with(&settings).await;
    until(async || world.living_roles().await.len() == 1 && kept_tokens(&dir) == 1).await;
    user_of(&pglease.connect("app").await.unwrap()).await;
}

#[tokio::test]
async fn files_of_any_kind_hold_up_nobody_and_one_process_has_the_directory() {
    let world = World::shared(WorldOptions::default()).await;
    let (dir, settings) = with_state_dir(&world);
    killed(pglease_with(&settings).await).await;
    // Not so soon after the last start.
    fs::remove_file(dir.join("last-start")).unwrap();
    fs::write(dir.join("token-of-another"), "s.unknown").unwrap();
    fs::write(dir.join("token-broken"), "").unwrap();
    fs::write(dir.join("notes"), "mine").unwrap();

    let pglease = pglease_with(&settings).await;
    pglease.wait_for_event("token.leftover_gone", PATIENCE).await;
    pglease.wait_for_event("token.leftover_revoked", PATIENCE).await;
    assert_eq!(pglease.wait_for_event("state_dir.broken_files", PATIENCE).await["files"], 1);
    assert_eq!(pglease.wait_for_event("state_dir.foreign_files", PATIENCE).await["files"], 1);
    until(async || kept_tokens(&dir) == 1).await;
    assert_eq!(fs::read_to_string(dir.join("notes")).unwrap(), "mine");

    // One process at a time.
    let file = world.folder().join("second.toml");
    fs::write(&file, &settings).unwrap();
    let second = Command::new(BINARY).arg("proxy").arg("--config-file").arg(&file).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("vault.state_dir") && said.contains("another pglease"), "{said}");
    user_of(&pglease.connect("app").await.unwrap()).await;
}
