//! Settings that change while pglease runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::text;
use crate::support::injector::Injector;
use crate::support::pglease::Pglease;
use crate::support::tokenreview::Answer;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_with, rotate, start, until, until_served, user_of};

impl Pglease {
    fn sighup(&self) {
        self.process().signal(Signal::HUP);
    }

    fn settings_file(&self) -> PathBuf {
        self.folder().join("pglease.toml")
    }

    /// Writes the file anew, as an editor does: another file takes its name.
    pub(crate) fn write_settings(&self, settings: &str) {
        let new = self.folder().join("new.toml");
        fs::write(&new, settings).unwrap();
        fs::rename(&new, self.settings_file()).unwrap();
    }

    /// The file as the kubelet has it: a link to `..data`, which is a link to a folder that changes with each version.
    fn mount_settings(&self, version: u32, settings: &str) {
        let folder = self.folder().join(format!("..v{version}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("pglease.toml"), settings).unwrap();
        replace_link(&self.folder().join("..data"), &folder);
        if !self.settings_file().is_symlink() {
            replace_link(&self.settings_file(), Path::new("..data/pglease.toml"));
        }
    }

    async fn config_status(&self) -> Value {
        self.status().await["config"].clone()
    }
}

fn replace_link(link: &Path, target: &Path) {
    let new = link.with_file_name("new-link");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// One route, and this level of the log.
fn settings(world: &World<'_>, level: &str) -> String {
    let listen = "connect_wait = \"5m\"";
    world.settings_with(level, &world.servers.openbao.address(), listen) + &world.route("db-app")
}

#[tokio::test]
async fn log_level_follows_the_file_by_signal_by_change_and_by_the_kubelets_links() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = start(&settings(&world, "info")).await;
    assert!(pglease.config_status().await["last_error"].is_null());
    let first = pglease.config_status().await["sha256"].clone();
    let sum = Command::new("sha256sum").arg(pglease.settings_file()).output().unwrap();
    assert_eq!(text(&sum.stdout).split(' ').next(), first.as_str());

    // Before it has a credential, and with the same file.
    pglease.sighup();
    let line = pglease.wait_for_event("config.unchanged", PATIENCE).await;
    assert_eq!(line["file"], json!(pglease.settings_file()));
    pglease.wait_ready().await;

    pglease.write_settings(&settings(&world, "debug"));
    let line = pglease.wait_for_event("config.reloaded", PATIENCE).await;
    assert_eq!(line["changed"], json!("log.level"));
    // It waits for a line that there is at `debug` only.
    assert_eq!(pglease.logged("config.reloaded").await.len(), 1);
    assert_eq!(pglease.config_status().await["sha256"], line["sha256"]);
    assert_ne!(first, line["sha256"]);

    pglease.mount_settings(1, &settings(&world, "warn"));
    until(async || pglease.metric("pglease_config_reloads_total", "ok").await >= 2.0).await;
    pglease.mount_settings(2, &settings(&world, "debug"));
    until(async || pglease.metric("pglease_config_reloads_total", "ok").await >= 3.0).await;
    // At `warn` it was silent on its own reload.
    pglease.wait_for_events("config.reloaded", 2, PATIENCE).await;
    assert_eq!(pglease.logged("config.reloaded").await.len(), 2);
    let loaded_at = pglease.metric("pglease_config_loaded_timestamp_seconds", "").await;
    assert_eq!(pglease.config_status().await["loaded_at"].as_f64(), Some(loaded_at));
}

#[tokio::test]
async fn bad_file_changes_nothing_and_says_all_that_is_wrong() {
    let world = World::shared(WorldOptions::default()).await;
    let good = settings(&world, "debug");
    let pglease = pglease_with(&good).await;
    let file = pglease.settings_file();
    let held = pglease.connect("app").await.unwrap();

    let other = good.replace("[listen]", "[listen]\nmax_sesions = 3\n").replace("\"debug\"", "\"loud\"");
    let whole = good.len();
    let ca = pglease.folder().join("ca.pem");
    let mut rejected = 0;
    for (name, bad, says) in [
        ("unknown", other.as_str(), &["listen.max_sesions: unknown key", "log.level = \"loud\""][..]),
        ("half", &good[..whole - 5], &["not TOML"]),
        ("empty", "", &["empty"]),
        ("CA", &good.replace("[vault]", &format!("[vault]\nca_file = {ca:?}")), &["vault.ca_file"]),
    ] {
        pglease.write_settings(bad);
        rejected += 1;
        let line = pglease.wait_for_events("config.rejected", rejected, PATIENCE).await;
        let error = line["error"].as_str().unwrap();
        assert!(says.iter().all(|part| error.contains(part)), "{name}: {error}");
        assert_eq!(line["level"], "ERROR", "{name}");
        assert_eq!(pglease.config_status().await["last_error"]["error"], error, "{name}");
        assert!(pglease.metric("pglease_config_rejected", "").await > 0.5, "{name}");
    }
    // What it names comes later than the file itself.
    fs::copy(world.servers.postgres.ca_file(), &ca).unwrap();
    let line = pglease.wait_for_event("config.needs_restart", PATIENCE).await;
    assert_eq!(line["keys"], "vault.ca_file");
    assert_eq!(pglease.config_status().await["needs_restart"], json!(["vault.ca_file"]));

    fs::remove_file(&file).unwrap();
    rejected += 1;
    let line = pglease.wait_for_events("config.rejected", rejected, PATIENCE).await;
    assert!(line["error"].as_str().unwrap().contains("config_file"), "{line}");
    fs::create_dir(&file).unwrap();
    pglease.sighup();
    rejected += 1;
    pglease.wait_for_events("config.rejected", rejected, PATIENCE).await;
    fs::remove_dir(&file).unwrap();

    let reloaded = pglease.logged("config.reloaded").await.len();
    pglease.write_settings(&good);
    pglease.wait_for_events("config.reloaded", reloaded + 1, PATIENCE).await;
    let config = pglease.config_status().await;
    assert!(config["last_error"].is_null() && config["needs_restart"] == json!([]), "{config}");
    assert!(pglease.metric("pglease_config_rejected", "").await < 0.5);
    held.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(pglease.logged("lease.issued").await.len(), 1);
}

#[tokio::test]
async fn drain_ignores_a_reload() {
    let world = World::shared(WorldOptions::default()).await;
    let drain = "[drain]\ngrace = \"10m\"\ndeadline = \"10m\"\n";
    let pglease = pglease_with(&(settings(&world, "debug") + drain)).await;
    let held = pglease.connect("app").await.unwrap();
    pglease.sigterm();
    pglease.wait_for_event("drain.start", PATIENCE).await;
    pglease.write_settings(&settings(&world, "info"));
    pglease.sighup();
    pglease.wait_for_event("config.reload_ignored", PATIENCE).await;
    assert!(pglease.metric("pglease_config_reloads_total", "").await < 0.5);
    drop(held);
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn injector_reloads_the_level_of_its_log_and_outlives_the_signal() {
    let injector = Injector::start(Path::new(BINARY), "").await;
    let pglease = &injector.pglease;
    pglease.sighup();
    pglease.wait_for_event("config.reloaded", PATIENCE).await;
    pglease.write_settings("[log]\nlevel = \"loud\"\n");
    let line = pglease.wait_for_event("config.rejected", PATIENCE).await;
    assert!(line["error"].as_str().unwrap().contains("log.level"), "{line}");
    until(async || pglease.get("/livez").await.0 == 200).await;
}

/// Without routes, for those of a test.
fn base(world: &World<'_>) -> String {
    world.settings_with("debug", &world.servers.openbao.address(), "connect_wait = \"5m\"")
}

/// A route of clients that ask for `database` on the credentials of `vault_role`.
fn route_of(world: &World<'_>, database: &str, vault_role: &str) -> String {
    format!("{}database = {database:?}\n", world.route(vault_role))
}

async fn two_roles() -> World<'static> {
    let other = VaultRole { name: "other", ..VaultRole::default() };
    let vault_roles = vec![VaultRole::default(), other];
    World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await
}

#[tokio::test]
async fn routes_come_change_and_go_under_load_and_nobody_is_hurt() {
    let world = two_roles().await;
    let lasting = base(&world) + &route_of(&world, "lasting", "db-app");
    let pglease = pglease_with(&lasting).await;
    let stop = CancellationToken::new();
    let held = pglease.connect("lasting").await.unwrap();
    let load = async {
        let mut served = 0;
        while !stop.is_cancelled() {
            let session = pglease.connect("lasting").await.unwrap();
            session.batch_execute("SELECT 1").await.unwrap();
            held.batch_execute("BEGIN; INSERT INTO visits (visitor) VALUES ('x'); COMMIT").await.unwrap();
            served += 1;
        }
        served
    };
    let changes = async {
        // Not there yet; then added, with a client that does not wait for its credential to be there.
        let refused = pglease.connect("passing").await.err().unwrap();
        assert_eq!(refused.code(), Some(&SqlState::INVALID_CATALOG_NAME), "{refused:?}");
        pglease.write_settings(&(lasting.clone() + &route_of(&world, "passing", "other")));
        pglease.wait_for_event("route.added", PATIENCE).await;
        let idle = pglease.connect("passing").await.unwrap();
        let in_transaction = pglease.connect("passing").await.unwrap();
        in_transaction.batch_execute("BEGIN").await.unwrap();
        let busy = pglease.connect("passing").await.unwrap();
        assert_eq!((pglease.get("/startup").await.0, pglease.get("/readyz").await.0), (200, 200));

        // Changed: who is there stays on what it has.
        let (old, kept) = (user_of(&idle).await, user_of(&held).await);
        assert_ne!(old, kept);
        pglease.write_settings(&(lasting.clone() + &route_of(&world, "passing", "db-app")));
        pglease.wait_for_event("route.changed", PATIENCE).await;
        pglease.wait_for_event("chain.retired", PATIENCE).await;
        assert_eq!(user_of(&pglease.connect("passing").await.unwrap()).await, kept);
        assert_eq!(user_of(&idle).await, old);
        assert!(world.living_roles().await.contains(&old));

        // Removed: new ones have no route, those that are there end, and then their lease. A statement that waits for
        // what the test holds has its time.
        world.superuser.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
        let statement = busy.query_one("SELECT 42 FROM pg_advisory_lock(42)", &[]);
        let removal = async {
            let sql = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            until(async || !world.superuser.rows(sql).await.is_empty()).await;
            pglease.write_settings(&lasting);
            pglease.wait_for_event("route.removed", PATIENCE).await;
            let refused = pglease.connect("passing").await.err().unwrap();
            assert_eq!(refused.code(), Some(&SqlState::INVALID_CATALOG_NAME), "{refused:?}");
            world.superuser.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
        };
        let (answer, ()) = tokio::join!(statement, removal);
        assert_eq!(answer.unwrap().get::<_, i32>(0), 42);
        for session in [idle, in_transaction, busy] {
            let told = session.last_words().await.unwrap();
            assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{told:?}");
            assert!(told.message().contains("route was removed"), "{told:?}");
        }
        pglease.wait_for_event("lease.chain_ended", PATIENCE).await;
        if !pglease.events("lease.orphaned").is_empty() {
            // It had five seconds for that: on a machine that stands still the test does it.
            let path = format!("sys/leases/revoke-prefix/{}", world.vault_path("other"));
            world.write(&path, json!({ "sync": true })).await;
        }
        until(async || world.living_roles().await == [kept.clone()]).await;
        until(async || pglease.status().await["chains"].as_array().unwrap().len() == 1).await;
        stop.cancel();
    };
    let (served, ()) = tokio::join!(load, changes);
    assert!(served > 0);
    held.batch_execute("SELECT 1").await.unwrap();
    // One credential for each path, whatever was reloaded.
    assert_eq!(pglease.logged("lease.issued").await.len(), 2);
    let ends = pglease.logged("session.end").await;
    let hurt = ends
        .iter()
        .filter(|end| !["client_closed", "route_removed"].contains(&end["reason"].as_str().unwrap()));
    assert_eq!(hurt.count(), 0, "{ends:?}");
}

#[tokio::test]
async fn wrong_upstream_is_put_right_by_a_reload_and_the_start_goes_on() {
    let world = World::shared(WorldOptions::default()).await;
    let right = base(&world) + &world.route("db-app");
    let port = world.servers.postgres.port();
    let wrong = right.replace(&format!(":{port}/"), ":1/");
    assert_ne!(right, wrong);
    let pglease = start(&wrong).await;
    pglease.wait_for_event("proof.failed", PATIENCE).await;
    assert_eq!(pglease.get("/startup").await.0, 503);
    pglease.write_settings(&right);
    pglease.wait_ready().await;
    until_served(&pglease, "app").await;
    assert_eq!(pglease.logged("lease.issued").await.len(), 1);
}

#[tokio::test]
async fn fewer_sessions_than_are_open_hurt_nobody() {
    let world = World::shared(WorldOptions::default()).await;
    let of = |max: u32| {
        let listen = format!("connect_wait = \"5m\"\nmax_sessions = {max}");
        world.settings_with("debug", &world.servers.openbao.address(), &listen) + &world.route("db-app")
    };
    let pglease = pglease_with(&of(3)).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(until_served(&pglease, "app").await);
    }
    pglease.write_settings(&of(2));
    // Two at once are one, or one after the other.
    pglease.sighup();
    pglease.sighup();
    let line = pglease.wait_for_event("config.reloaded", PATIENCE).await;
    assert_eq!(line["changed"], "listen.max_sessions");
    let refused = pglease.connect("app").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{refused:?}");
    for session in &open {
        session.batch_execute("SELECT 1").await.unwrap();
    }
    open.truncate(1);
    let mut another = None;
    until(async || {
        another = pglease.connect("app").await.ok();
        another.is_some()
    })
    .await;
    let refused = pglease.connect("app").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{refused:?}");
}

#[tokio::test]
async fn reload_during_a_rotation_leaves_it_alone() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = base(&world) + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let held = pglease.connect("app").await.unwrap();
    world.token_review.set_answer(Answer::Status(500));
    let rotation = rotate(&pglease, &[]);
    let reload = async {
        pglease.wait_for_event("rotation.start", PATIENCE).await;
        pglease
            .write_settings(&(settings.clone() + "startup_role = \"" + &world.group("app_owner") + "\"\n"));
        pglease.wait_for_event("route.changed", PATIENCE).await;
        world.token_review.set_answer(Answer::Honest);
    };
    tokio::join!(rotation, reload);
    pglease.wait_for_event("rotation.done", PATIENCE).await;
    let session = until_served(&pglease, "app").await;
    let owner = session.query_one("SELECT current_user::text", &[]).await.unwrap();
    assert_eq!(owner.get::<_, String>(0), world.group("app_owner"));
    held.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(pglease.logged("lease.issued").await.len(), 2);
}
