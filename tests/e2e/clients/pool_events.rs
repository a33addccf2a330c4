//! Case C40: what the sockets of Node's pools see of each way to end their sessions. A process dies of an event that
//! nobody listens to, and pools tell a goodbye from a failure by what comes when.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task;
use tokio::time::Instant;

use super::stage::{difference, install, spawn};
use super::{Played, assert_passed};
use crate::support::free_ports;
use crate::support::pglease::Pglease;
use crate::support::pki::Authority;
use crate::support::process::Process;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

#[tokio::test]
async fn case_c40_each_socket_of_a_pool_sees_57p01_and_a_clean_end_and_the_pool_goes_on() {
    let found = task::spawn_blocking(|| install("node")).await.unwrap();
    if let Some(missing) = found["missing"].as_str() {
        assert_passed(&Played::Missing(missing.to_owned()), "pool_events");
        return;
    }
    let options = WorldOptions { vault_roles: vec![vault_role("1h")], ..WorldOptions::default() };
    let world = World::shared(options).await;
    let authority = Authority::create();
    let certificate = authority.issue(&["localhost"]);
    let folder = world.folder().display().to_string();
    let [cert_file, key_file] = ["pglease.crt", "pglease.key"].map(|name| format!("{folder}/{name}"));
    fs::write(&cert_file, certificate.certificate).unwrap();
    fs::write(&key_file, certificate.key).unwrap();
    let port = free_ports(1);
    let listen =
        format!("tls_cert_file = {cert_file:?}\ntls_key_file = {key_file:?}\nunix_socket = {folder:?}");
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
    let settings = settings.replace("\"localhost:0\"", &format!("\"localhost:{port}\""))
        + &world.route("db-app")
        + "at_lease_end = \"close\"\n";
    let began = Instant::now();
    let mut pglease = pglease_with(&settings).await;

    let url = format!("postgresql://app@localhost:{port}/app");
    let urls = json!({
        "tcp": { "connectionString": url },
        "tls": { "connectionString": url, "ssl": { "ca": authority.pem() } },
        "unix": { "host": folder, "port": port, "user": "app", "database": "app" },
    });
    let environment = [
        ("URLS", urls.to_string()),
        ("PATH", crate::support::env("PATH").unwrap_or_default()),
        ("HOME", folder.clone()),
    ];
    let program = spawn(&found["programs"]["pool_events"], &environment, world.folder());

    say(&program, "use", 1).await;
    pglease.run_command(&["rotate", "--close"]).await;
    assert_ends(&program, 1).await;

    say(&program, "use", 2).await;
    let open = difference(&pglease, "session.start", "session.end");
    let max_ttl = began.elapsed() + D + D / 2;
    world.write_vault_role(&vault_role(format!("{}s", max_ttl.as_secs()).leak())).await;
    assert_ends(&program, 2).await;
    until(async || open.is_subset(&told_of_the_lease(&pglease))).await;

    say(&program, "use", 3).await;
    pglease.sigterm();
    assert_ends(&program, 3).await;
    assert!(pglease.wait_exit(PATIENCE).await.success());

    world.write_vault_role(&vault_role("1h")).await;
    pglease = pglease_with(&settings).await;
    say(&program, "use", 4).await;
    drop(pglease);
}

/// Sessions that were ended by reason of their lease.
fn told_of_the_lease(pglease: &Pglease) -> BTreeSet<String> {
    let ends = pglease.events("session.end");
    let told = ends.iter().filter(|end| end["reason"].as_str().unwrap().starts_with("lease"));
    told.map(super::stage::session).collect()
}

/// Every socket saw one message, the end of the stream and no failure.
async fn assert_ends(program: &Process, number: usize) {
    let ended = say(program, "ended", number).await;
    let ended: Value = serde_json::from_str(ended.strip_prefix("ended ").unwrap()).unwrap();
    let clean = json!({ "E 57P01, end, close": 13 });
    assert_eq!(ended, json!({ "tcp": clean, "tls": clean, "unix": clean }), "end number {number}");
}

/// The line that answers the command, for the `number`th time.
async fn say(program: &Process, command: &str, number: usize) -> String {
    program.tell(command);
    let answer =
        |lines: &[String]| lines.iter().filter(|line| line.starts_with(command)).nth(number - 1).cloned();
    let answer = program.lines().wait_for(PATIENCE * 2, answer).await;
    answer.unwrap_or_else(|| panic!("no answer to {command}:\n{}", program.lines().tail()))
}

/// Its leases are renewed each few seconds, so that a new `max_ttl` is heeded soon.
fn vault_role(max_ttl: &'static str) -> VaultRole {
    VaultRole { default_ttl: "20s", max_ttl, ..VaultRole::default() }
}

/// `default_ttl` of the role.
const D: Duration = Duration::from_secs(20);
