//! What the log has, and what of it is only counted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::net::TcpListener;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::{task, time};

use super::{run, text};
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_with, until};

/// Renewals and logins that nobody has answered.
async fn unanswered(pglease: &Pglease) -> f64 {
    let of = async |op: &str| {
        pglease.metric("pglease_vault_requests_total", &format!("op={op:?},code=\"none\"")).await
    };
    of("renew").await + of("login").await
}

/// Lines of these by all that they say, and how often it is said that one came again.
fn troubles(pglease: &Pglease) -> (BTreeMap<String, u32>, u32) {
    let lines: Vec<Value> =
        pglease.lines().all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (mut written, mut repeated) = (BTreeMap::new(), 0);
    for mut line in lines {
        let is_of_them =
            |name: &str| ["lease.renew_failed", "login.failed"].contains(&line[name].as_str().unwrap_or(""));
        if is_of_them("of") {
            repeated += u32::try_from(line["repeated"].as_u64().unwrap()).unwrap();
        }
        if !is_of_them("event") {
            continue;
        }
        for varying in ["timestamp", "ttl_seconds", "token_ttl_seconds"] {
            line.as_object_mut().unwrap().remove(varying);
        }
        *written.entry(line.to_string()).or_default() += 1;
    }
    (written, repeated)
}

#[tokio::test]
async fn what_fails_again_and_again_is_written_once_and_counted() {
    let vault_roles = vec![VaultRole { default_ttl: "8s", ..VaultRole::default() }];
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let vault = Gate::to(world.servers.openbao.port()).await;
    let settings = world.settings_with("info", &format!("http://{}", vault.address()), "");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    // Its lines are there whatever is counted.
    let _session = pglease.connect("app").await.unwrap();

    vault.close().await;
    until(async || unanswered(&pglease).await >= 5.0).await;
    let failed = unanswered(&pglease).await;
    pglease.sigterm();
    pglease.wait_exit(PATIENCE).await;

    let (written, repeated) = troubles(&pglease);
    assert!(repeated > 0, "{written:?}");
    let all = written.values().sum::<u32>() + repeated;
    assert!(f64::from(all) >= failed, "{failed} failed: {repeated} and {written:?}");
    assert_eq!((pglease.events("session.start").len(), pglease.events("session.end").len()), (1, 1));
    let last = pglease.lines().all().iter().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    assert_eq!(last.unwrap()["event"], "process.end");
}

#[tokio::test]
async fn level_is_set_by_command_and_stays_until_the_file_says_another() {
    let world = World::shared(WorldOptions::default()).await;
    let of = |level: &str, listen: &str| {
        world.settings_with(level, &world.servers.openbao.address(), listen) + &world.route("db-app")
    };
    let pglease = pglease_with(&of("info", "")).await;
    let levels = async || pglease.status().await["log"].clone();
    assert_eq!(levels().await, json!({ "level": "info", "configured": "info" }));

    let set = pglease.run_command(&["log-level", "debug"]).await;
    assert!(set.status.success(), "{set:?}");
    assert_eq!(text(&set.stdout), "the log has debug and above, it was info\n");
    let line = pglease.wait_for_event("admin.log_level", PATIENCE).await;
    assert_eq!((&line["from"], &line["to"]), (&json!("info"), &json!("debug")));
    // It waits for a line that there is at `debug` only.
    assert_eq!(pglease.logged("admin.log_level").await.len(), 1);
    assert_eq!(levels().await, json!({ "level": "debug", "configured": "info" }));
    assert!(text(&pglease.run_command(&["status"]).await.stdout).contains(", log at debug\n"));

    pglease.write_settings(&of("info", "max_sessions = 9"));
    pglease.wait_for_event("config.reloaded", PATIENCE).await;
    assert_eq!(levels().await["level"], "debug");
    pglease.write_settings(&of("warn", "max_sessions = 9"));
    until(async || levels().await == json!({ "level": "warn", "configured": "warn" })).await;

    let wrong = pglease.run_command(&["log-level", "loud"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(text(&wrong.stderr).contains("[possible values: error, warn, info, debug, trace]"), "{wrong:?}");
}

#[tokio::test]
async fn level_needs_control() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings().replace("control = true", "control = false");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    let refused = pglease.run_command(&["log-level", "error"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("admin.control = true"), "{refused:?}");
    assert_eq!(pglease.status().await["log"]["level"], "debug");
}

/// Arguments of a pglease that listens, on a Vault that is not there; with a warning.
fn arguments(folder: &TempDir) -> Vec<String> {
    let jwt = folder.path().join("token");
    fs::write(&jwt, "not used").unwrap();
    [
        "proxy",
        "--vault-address=http://127.0.0.1:1",
        "--vault-login-role=web",
        "--upstream=postgresql://127.0.0.1:1/app?sslmode=disable",
        "--vault-path=database/creds/db-app",
        "--listen-addresses=localhost:0",
        "--http-address=127.0.0.1:0",
        "--admin-address=",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("--vault-login-jwt-file={}", jwt.display())])
    .collect()
}

#[tokio::test]
async fn text_is_lines_for_people_without_colour_where_no_terminal_is() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = TempDir::new().unwrap();
    let mut arguments = arguments(&folder);
    arguments.retain(|argument| !argument.starts_with("--listen"));
    arguments.extend([format!("--listen-addresses={}", taken.local_addr().unwrap())]);
    arguments.extend(["--log-format=text".to_owned()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run(&arguments).await;
    let said = text(&output.stderr);
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let warning = said.lines().next().unwrap();
    let (time, rest) = warning.split_once(' ').unwrap();
    assert!(time.len() == 24 && time.ends_with('Z'), "{said}");
    assert!(rest.starts_with("WARN  config.warning         "), "{said}");
}

/// A pipe into which no more can be written until somebody reads.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    for piece in [&[b'\n'; 4096][..], b"\n"] {
        while writer.write(piece).is_ok() {}
    }
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

/// Whether SIGHUP does not end it.
fn takes_hangup(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 == 1
}

#[tokio::test]
async fn hangup_that_comes_before_pglease_listens_does_not_end_it() {
    let folder = TempDir::new().unwrap();
    // With a log that nobody reads it stands still at its first line, before it has done anything else.
    let (reader, writer) = full_pipe();
    let mut child = {
        let mut command = Command::new(BINARY);
        command.args(arguments(&folder)).env_clear().stderr(writer).kill_on_drop(true);
        command.spawn().unwrap()
    };
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    until(async || takes_hangup(pid)).await;
    kill_process(pid, Signal::HUP).unwrap();

    let listens = task::spawn_blocking(move || {
        let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
        let listens = lines.any(|line| line.contains("listen.ready"));
        (listens, lines)
    });
    let (listens, lines) = time::timeout(PATIENCE, listens).await.unwrap().unwrap();
    assert!(listens);
    kill_process(pid, Signal::TERM).unwrap();
    let rest = task::spawn_blocking(move || lines.count());
    let exit = time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(exit.code(), Some(0));
    rest.await.unwrap();
}
