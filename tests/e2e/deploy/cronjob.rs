//! `deploy/postgres/reaper-cronjob.yaml`, its two containers run as the manifest says.

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use super::{Deployment, jwt};
use crate::support::http_client;
use crate::support::process::{Process, Spawn};
use crate::{BINARY, PATIENCE, until};

const MANIFEST: &str = include_str!("../../../deploy/postgres/reaper-cronjob.yaml");

/// The text of a container of it.
fn container(name: &str) -> &'static str {
    let (_, text) = MANIFEST.split_once(&format!("            - name: {name}\n")).unwrap();
    text.split("\n          containers:").next().unwrap()
}

/// What its environment holds.
fn environment(container: &str) -> Vec<(String, String)> {
    let lines: Vec<_> = container.lines().map(str::trim).collect();
    let variable = |pair: &[&str]| {
        let (name, value) = (pair[0].strip_prefix("- name: ")?, pair[1].strip_prefix("value: ")?);
        Some((name.to_owned(), value.trim_matches('"').to_owned()))
    };
    lines.windows(2).filter_map(variable).collect()
}

/// A list that is written in one line.
fn list(container: &str, key: &str) -> Vec<String> {
    let line = container.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
    serde_json::from_str(line.unwrap()).unwrap()
}

/// Replaces the value of a variable that is there.
fn replace(environment: &mut [(String, String)], name: &str, right: &str, value: String) {
    let variable = environment.iter_mut().find(|(variable, _)| variable == name).expect(name);
    assert_eq!(variable.1, right, "{name}");
    variable.1 = value;
}

#[tokio::test]
async fn its_pod_drops_what_is_due_without_a_password_and_leaves_nothing_of_itself() {
    let deployment = Deployment::complete().await;
    let due = deployment.lease("").await;
    deployment.revoke(&due).await;
    let (postgres, openbao) = (&deployment.servers.postgres, &deployment.servers.openbao);

    let sidecar = container("pglease");
    let mut variables = environment(sidecar);
    let token = deployment.file("token", &jwt("default", "web-reaper"));
    let addresses = [
        ("PGLEASE_VAULT_ADDRESS", "https://vault.vault.svc:8200", openbao.tls_address()),
        ("PGLEASE_VAULT_CA_FILE", "/etc/pglease/vault-ca/ca.crt", openbao.ca_file().display().to_string()),
        ("PGLEASE_VAULT_LOGIN_JWT_FILE", "/var/run/secrets/pglease/token", token),
        ("PGLEASE_VAULT_PATH", "database/creds/db-app-reaper", deployment.creds("-reaper")),
        (
            "PGLEASE_UPSTREAM",
            "postgresql://postgres:5432/wizard?sslrootcert=/etc/pglease/upstream-ca/ca.crt",
            postgres.url(&deployment.database()),
        ),
    ];
    for (name, right, value) in addresses {
        replace(&mut variables, name, right, value);
    }
    // Of the tests: here are other servers and other proxies.
    let others = [
        ("PGLEASE_VAULT_LOGIN_MOUNT", deployment.named("kubernetes")),
        ("PGLEASE_LISTEN_ADDRESSES", "localhost:0".to_owned()),
        ("PGLEASE_HTTP_ADDRESS", "127.0.0.1:0".to_owned()),
        ("PGLEASE_ADMIN_ADDRESS", "127.0.0.1:0".to_owned()),
    ];
    variables.extend(others.map(|(name, value)| (name.to_owned(), value)));
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let pglease = Process::spawn(&Spawn {
        program: BINARY.as_ref(),
        arguments: &list(sidecar, "args"),
        environment: &variables,
        folder: &deployment.path(""),
        uid: None,
        stop: Signal::KILL,
    });
    let ready = |lines: &[String]| {
        let mut events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["event"] == "listen.ready")
    };
    let ready = pglease.lines().wait_for(PATIENCE, ready).await.expect("pglease listens");
    // As the startupProbe does.
    let startup = format!("http://{}/startup", ready["http"].as_str().unwrap());
    until(async || http_client().get(&startup).send().await.is_ok_and(|answer| answer.status() == 200)).await;

    let address = ready["addresses"].as_str().unwrap().split(',').next().unwrap();
    let port = address.trim().parse::<SocketAddr>().unwrap().port();
    let reaper = container("reaper");
    let mut variables = environment(reaper);
    replace(&mut variables, "PGPORT", "5432", port.to_string());
    replace(&mut variables, "PGDATABASE", "wizard", deployment.database());
    let command = list(reaper, "command");
    assert_eq!(command[0], "psql");
    let mut psql = Command::new(postgres.bin().join("psql"));
    psql.args(&command[1..]).env_clear().envs(variables).kill_on_drop(true);
    let done = tokio::time::timeout(PATIENCE, psql.output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{done:?}");
    let is_due = |line: &str| line.contains(&due.user) && line.contains("dropped");
    assert!(told.lines().any(is_due), "{told}");
    assert_eq!(deployment.can_log_in(&due.user).await, None);

    // As the kubelet does when the container has ended.
    pglease.signal(Signal::TERM);
    assert!(pglease.wait_exit(PATIENCE).await.success());
    let left = format!("SELECT FROM pg_roles WHERE starts_with(rolname, 'v-{}')", deployment.vault_role(""));
    until(async || deployment.superuser.rows(&left).await.is_empty()).await;
}
