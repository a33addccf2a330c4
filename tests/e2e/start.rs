//! From nothing to the first session, and what stands in its way.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tokio_postgres::error::SqlState;

use crate::support::gate::Gate;
use crate::support::postgres::Database;
use crate::support::process::{Process, Spawn};
use crate::support::world::{World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_for, start, until, until_alive, until_served};

#[tokio::test]
async fn client_waits_for_vault_no_longer_than_connect_wait_and_is_served_when_it_is_back() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.openbao.port()).await;
    gate.close().await;
    let vault = format!("http://{}", gate.address());
    let settings = world.settings_with("debug", &vault, "connect_wait = \"3s\"") + &world.route("db-app");
    let pglease = start(&settings).await;

    let refused = tokio::time::timeout(PATIENCE, pglease.connect("app")).await.unwrap();
    assert_eq!(refused.err().unwrap().code(), Some(&SqlState::CANNOT_CONNECT_NOW));
    for (endpoint, status) in [("/startup", 503), ("/readyz", 503), ("/metrics", 200)] {
        assert_eq!(pglease.get(endpoint).await.0, status, "{endpoint}");
    }
    until_alive(&pglease).await;

    gate.open().await;
    pglease.wait_ready().await;
    let session = until_served(&pglease, "app").await;
    assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
    for endpoint in ["/startup", "/readyz", "/readiness"] {
        assert_eq!(pglease.get(endpoint).await.0, 200, "{endpoint}");
    }
    until_alive(&pglease).await;
    until(async || pglease.get("/liveness").await.0 == 200).await;

    // Vault away again: what is leased serves on.
    gate.close().await;
    until_served(&pglease, "app").await;
    assert_eq!(pglease.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn login_is_tried_again_with_the_jwt_that_is_there_by_then() {
    let world = World::shared(WorldOptions::default()).await;
    world.write_jwt(-120);
    let pglease = start(&(world.settings() + &world.route("db-app"))).await;
    pglease.wait_for_events("login.failed", 2, PATIENCE).await;

    world.write_jwt(3600);
    pglease.wait_ready().await;
    pglease.connect("app").await.unwrap();
}

#[tokio::test]
async fn startup_waits_for_the_proof_and_clients_hear_of_the_upstream_meanwhile() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    gate.close().await;
    let pglease = start(&(world.settings() + &through(&gate, &world))).await;

    pglease.wait_for_event("lease.serving", PATIENCE).await;
    let refused = pglease.connect("app").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION));
    assert_eq!(pglease.get("/startup").await.0, 503);

    gate.open().await;
    pglease.wait_ready().await;
    pglease.connect("app").await.unwrap();
    assert_eq!(world.leased_roles().await.len(), 1);
}

#[tokio::test]
async fn upstream_of_an_optional_route_holds_nothing_up() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    gate.close().await;
    let away = through(&gate, &world) + "database = \"reports\"\noptional = true\n";
    let pglease = start(&(world.settings() + &away + &world.route("db-app"))).await;

    pglease.wait_ready().await;
    pglease.connect("app").await.unwrap();
    let serving = pglease.wait_for_event("lease.serving", PATIENCE).await;
    assert_eq!(serving["proven"], true);
    assert!(pglease.connect("reports").await.is_err());
}

/// The route of `db-app` by way of `gate`.
fn through(gate: &Gate, world: &World<'_>) -> String {
    let direct = format!("localhost:{}", world.servers.postgres.port());
    world.route("db-app").replace(&direct, &gate.address().to_string())
}

#[tokio::test]
async fn both_loopback_addresses_serve_one_port() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;

    let mut config = tokio_postgres::Config::new();
    config.user("app").dbname("app").port(pglease.port());
    for address in pglease.addresses() {
        assert_eq!(address.port(), pglease.port());
        let mut config = config.clone();
        config.host(address.ip().to_string());
        assert!(config.connect(tokio_postgres::NoTls).await.is_ok(), "{address}");
    }
}

#[test]
fn setting_that_cannot_be_is_named_before_anything_is_bound() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pglease.toml");
    fs::write(&file, "[listen]\nmax_sesions = 3\n[drain]\ngrace = \"9s\"\ndeadline = \"1s\"\n").unwrap();
    let output = Command::new(BINARY)
        .arg("proxy")
        .arg("--config-file")
        .arg(&file)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in ["listen.max_sesions", "max_sessions", "drain.grace", "vault.address", "upstream"] {
        assert!(stderr.contains(part), "no {part} in\n{stderr}");
    }
    assert!(!stderr.contains("listen.ready"));
}

#[tokio::test]
async fn ca_file_without_a_certificate_is_an_error_of_the_settings() {
    let world = World::shared(WorldOptions::default()).await;
    let ca_file = world.folder().join("empty.pem");
    fs::write(&ca_file, "no certificate\n").unwrap();
    let route = world
        .route("db-app")
        .replace(&world.servers.postgres.ca_file().display().to_string(), &ca_file.display().to_string());
    let file = world.folder().join("pglease.toml");
    fs::write(&file, world.settings() + &route).unwrap();
    let output = Command::new(BINARY).arg("proxy").arg("--config-file").arg(&file).output().unwrap();

    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("empty.pem"));
}

#[tokio::test]
async fn port_that_is_taken_is_named() {
    let world = World::shared(WorldOptions::default()).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let settings = world.settings().replace("localhost:0", &address.to_string()) + &world.route("db-app");
    let file = world.folder().join("pglease.toml");
    fs::write(&file, settings).unwrap();
    let output = Command::new(BINARY).arg("proxy").arg("--config-file").arg(&file).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("listen.addresses") && stderr.contains(&address.to_string()), "{stderr}");
    // Nothing was leased for a process that does not serve.
    until(async || world.living_roles().await.is_empty()).await;
}

#[tokio::test]
async fn log_that_nobody_reads_any_more_costs_nobody_a_session() {
    let world = World::shared(WorldOptions::default()).await;
    let [file, fifo] = ["pglease.toml", "log"].map(|name| world.folder().join(name));
    fs::write(&file, world.settings() + &world.route("db-app")).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = "exec \"$0\" proxy --config-file pglease.toml 2>log";
    let pglease = Process::spawn(&Spawn {
        program: Path::new("/bin/sh"),
        arguments: &["-c", script, BINARY].map(str::to_owned),
        environment: &[],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    });
    // Reads no further.
    let ready = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(fs::File::open(fifo).unwrap()).lines().map_while(Result::ok);
        lines.find(|line| line.contains("listen.ready")).unwrap()
    });
    let ready: Value = serde_json::from_str(&ready.await.unwrap()).unwrap();
    let address: SocketAddr =
        ready["addresses"].as_str().unwrap().split(',').next().unwrap().parse().unwrap();

    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("app").dbname("app");
    let session = Database::open(&config).await.unwrap();
    assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
    pglease.signal(Signal::TERM);
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    until(async || world.living_roles().await.is_empty()).await;
}
