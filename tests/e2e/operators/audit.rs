//! From a statement in PostgreSQL's log to the pod, by the commands of docs/security.md and real logs of all three.

use std::fs;

use serde_json::{Value, json};
use tokio::process::Command;

use super::text;
use crate::support::Servers;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with};

/// The commands, as somebody would copy them.
fn commands() -> &'static str {
    let docs = include_str!("../../../docs/security.md");
    let (_, rest) = docs.split_once("## From a statement to the pod").unwrap();
    let (_, rest) = rest.split_once("```sh\n").unwrap();
    rest.split_once("```").unwrap().0
}

#[tokio::test]
async fn three_logs_lead_from_a_statement_to_the_pod_and_its_service_account() {
    let prefix = [("log_line_prefix", "%m [%p] %u@%d "), ("log_statement", "all")];
    let servers = Servers::with(prefix.map(|(name, value)| (name, value.to_owned())).to_vec()).await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let pod = "[pod]\nname = \"web-5d8f-x2x\"\nnamespace = \"shop\"\nuid = \"0d0f-11\"\n\n";
    let pglease = pglease_with(&(world.settings() + pod + &world.route("db-app"))).await;
    // Others, on the same lease.
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(pglease.connect("app").await.unwrap());
    }
    sessions[1].batch_execute("SELECT 'who deletes this?'").await.unwrap();
    let pid = sessions[1].rows("SELECT pg_backend_pid()").await[0][0].clone().unwrap();

    let folder = world.folder();
    let statements = servers.postgres.process();
    let logged = statements.lines().wait_for(PATIENCE, |lines| {
        lines.iter().any(|line| line.contains("who deletes")).then(|| lines.to_vec())
    });
    fs::write(folder.join("postgresql.log"), logged.await.unwrap().join("\n") + "\n").unwrap();
    pglease.wait_for_events("session.start", 3, PATIENCE).await;
    fs::write(folder.join("pglease.log"), pglease.lines().all().join("\n") + "\n").unwrap();
    fs::copy(servers.openbao.audit_log(), folder.join("audit.log")).unwrap();

    let mut bash = Command::new("bash");
    bash.args(["-c", commands()]).env("statement", "who deletes this").current_dir(folder);
    let output = bash.kill_on_drop(true).output().await.unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{said}{}", text(&output.stderr));
    for part in ["\"pod\":\"web-5d8f-x2x\"", "\"namespace\":\"shop\"", "\"pod_uid\":\"0d0f-11\""] {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
    let json = |line: &str| serde_json::from_str::<Value>(line).ok();
    let lines: Vec<Value> = said.lines().filter_map(json).collect();
    let [session, read] = &lines[..] else { panic!("{said}") };
    assert_eq!(session["pid"].to_string(), pid);
    assert_eq!(session["client_user"], "app");
    assert_eq!(read["request"]["path"].as_str().unwrap(), world.vault_path("db-app"));
    assert_eq!(read["auth"]["metadata"]["service_account_name"], "web");

    // The other way: Vault itself hashes what is looked for.
    let hashed = servers.openbao.write("sys/audit-hash/file", json!({ "input": session["db_role"] })).await;
    assert_eq!(hashed["hash"], read["response"]["data"]["username"], "{hashed}");
}
