//! What README.md and docs/setup.md tell an operator to do, done.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::operators::runbook::run_what_the_text_says;
use crate::support::Servers;
use crate::support::pages::{self, adapted, blocks, blocks_in};
use crate::support::tokenreview::TokenReview;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

const README: &str = include_str!("../../README.md");
const SETUP: &str = include_str!("../../docs/setup.md");

/// Does what the page says, from its beginning to its end, in `folder`.
async fn set_up(docs: &str, folder: &Path, servers: &Servers) {
    let Servers { postgres, openbao } = servers;
    symlink(openbao.program(), folder.join("vault")).unwrap();
    symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy"), folder.join("deploy")).unwrap();
    let variables = pages::variables(folder, servers);
    let superuser = postgres.connect("wizard").await;
    for (language, text) in blocks(docs) {
        if language == "sql" {
            superuser.batch_execute(text).await.unwrap();
            continue;
        }
        let mut shell = Command::new("/bin/sh");
        shell.args(["-euc", text]).current_dir(folder).env_clear().envs(variables.clone());
        let done = shell.stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{text}\n{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Where things are on this machine, with this responder for an API server.
fn addresses(servers: &Servers, token_review: &TokenReview) -> String {
    pages::addresses(servers, &token_review.url(), &servers.postgres.ca_file())
}

#[tokio::test]
async fn commands_of_the_readme_let_its_application_in() {
    let servers = &Servers::start().await;
    let token_review = TokenReview::start();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("reviewer"), "reviewer").unwrap();
    servers.postgres.query("postgres", "CREATE DATABASE wizard").await;

    let commands = blocks(README).into_iter().find(|(_, text)| text.contains("helm install")).unwrap().1;
    let (of_servers, of_cluster) = commands.split_once("# The injector.\n").unwrap();
    let count = |text: &str| text.lines().filter(|line| !line.starts_with(['#', ' '])).count();
    assert_eq!((count(of_servers), count(of_cluster)), (3, 2), "five commands");
    let of_servers = adapted(of_servers, &[("DB_HOST=postgres ", addresses(servers, &token_review))]);
    set_up(&format!("```sh\n{of_servers}```"), folder.path(), servers).await;

    // As the application's pods are told.
    let jwt = TokenReview::jwt_for("vault", "default", "web", 3600);
    let login = json!({ "role": "web", "jwt": jwt });
    let openbao = &servers.openbao;
    let (status, answer) = openbao.call(Method::POST, "auth/kubernetes/login", "", Some(login)).await;
    assert_eq!(status, 200, "{answer}");
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let (status, answer) = openbao.call(Method::GET, "database/creds/db-app", token, None).await;
    assert_eq!(status, 200, "{answer}");
    for told in
        ["vault-path: database/creds/db-app\n", "vault-login-role: web\n", "serviceAccountName: web\n"]
    {
        assert!(README.contains(told), "{told}");
    }
}

#[tokio::test]
async fn documented_set_up_and_settings_serve_an_application() {
    let servers = &Servers::start().await;
    let Servers { postgres, openbao } = servers;
    let token_review = TokenReview::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let ca_file = postgres.ca_file().display().to_string();
    postgres.query("postgres", "CREATE DATABASE wizard").await;
    let issuer = rcgen::KeyPair::generate().unwrap();
    fs::write(path("issuer.pem"), issuer.public_key_pem()).unwrap();
    fs::write(path("reviewer"), "reviewer").unwrap();

    let docs = adapted(
        SETUP,
        &[
            ("DB_HOST=postgres ", addresses(servers, &token_review)),
            ("@issuer.pem", format!("@{}", path("issuer.pem"))),
            ("@ca.pem", format!("@{ca_file}")),
        ],
    );
    set_up(&docs, folder.path(), servers).await;
    assert!(!folder.path().join("password").exists());
    expect_vault_roles_of(&docs, servers).await;

    let upstream = format!("localhost:{}/wizard", postgres.port());
    let start = async |role: &str, settings: &str| {
        let token = path(&format!("token-{role}"));
        fs::write(&token, TokenReview::jwt_for("vault", "default", role, 3600)).unwrap();
        let settings = adapted(
            settings,
            &[
                ("https://vault.vault.svc:8200", openbao.address()),
                ("[vault.login]\n", format!("[vault.login]\njwt_file = {token:?}\n")),
                ("postgres:5432/wizard", upstream.clone()),
                ("/etc/pg/ca.pem", ca_file.clone()),
            ],
        );
        let listen = "[listen]\naddresses = [\"localhost:0\"]\n[http]\naddress = \"127.0.0.1:0\"\n\
                      [admin]\naddress = \"127.0.0.1:0\"\n";
        pglease_with(&(settings + listen)).await
    };
    let settings = blocks_in(README, "toml");
    let of_owner = [
        ("role = \"web\"", "role = \"web-owner\"".to_owned()),
        (
            "\"database/creds/db-app\"\n",
            "\"database/creds/db-app-owner\"\nstartup_role = \"app_owner\"\n".to_owned(),
        ),
    ];
    let of_report = [
        ("role = \"web\"", "role = \"web-report\"".to_owned()),
        ("database/creds/db-app", "database/static-creds/db-app-report".to_owned()),
    ];
    let application = start("web", &settings).await;
    let migration = start("web-owner", &adapted(&settings, &of_owner)).await;
    let report = start("web-report", &adapted(&settings, &of_report)).await;

    let session = migration.connect("wizard").await.unwrap();
    let table = "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, spell text)";
    session.batch_execute(table).await.unwrap();
    let session = application.connect("wizard").await.unwrap();
    session.batch_execute("INSERT INTO t (spell) VALUES ('alohomora')").await.unwrap();
    let refused = session.batch_execute("CREATE TABLE u ()").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let session = report.connect("wizard").await.unwrap();
    let right = [[Some("report".to_owned()), Some("alohomora".to_owned())]];
    assert_eq!(session.rows("SELECT session_user, spell FROM t").await, right);

    for pglease in [&application, &migration, &report] {
        pglease.sigterm();
        let status = pglease.wait_exit(PATIENCE).await;
        assert!(status.success(), "{status}");
    }
    // NOLOGIN leaves both, and the reaper neither.
    let superuser = postgres.connect("wizard").await;
    let leased = "SELECT count(*), bool_or(rolcanlogin) FROM pg_roles WHERE rolname LIKE 'v-%'";
    let right = [[Some("2".to_owned()), Some("f".to_owned())]];
    until(async || superuser.rows(leased).await == right).await;
    until(async || {
        superuser.rows("SELECT * FROM pglease.reap()").await;
        superuser.rows(leased).await[0][0].as_deref() == Some("0")
    })
    .await;
    run_what_the_text_says(folder.path(), servers).await;
}

/// The table of the page says what Vault has.
async fn expect_vault_roles_of(docs: &str, servers: &Servers) {
    let rows = docs.lines().filter(|line| line.starts_with("| `db-app"));
    let rows: Vec<Vec<_>> =
        rows.map(|row| row.split('|').map(|cell| cell.trim().replace('`', "")).collect()).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let [_, name, group, login, _, revocation, _] = &row[..] else { panic!("{row:?}") };
        let role = servers.openbao.read(&format!("database/roles/{name}")).await;
        let creation = role["creation_statements"][0].as_str().unwrap();
        assert!(creation.ends_with(&format!("IN ROLE \"{group}\";")), "{name}: {creation}");
        assert_eq!(role["revocation_statements"], json!([revocation]), "{name}");
        let role = servers.openbao.read(&format!("auth/kubernetes/role/{login}")).await;
        assert_eq!(role["bound_service_account_names"], json!([login]));
        assert!(role["token_policies"].as_array().unwrap().contains(&json!(name)), "{role}");
    }
}

#[tokio::test]
async fn engines_own_revocation_fails_at_a_sequence_that_its_user_has_no_right_on() {
    let vault_role = VaultRole { revocation: Revocation::Drop, groups: &["app_rw"], ..VaultRole::default() };
    let world =
        World::shared(WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() }).await;
    world.superuser.batch_execute("CREATE SEQUENCE s").await.unwrap();
    let leased = world.lease("db-app").await;
    let revoke = async || {
        let body = json!({ "lease_id": leased.lease_id, "sync": true });
        world.servers.openbao.call(Method::POST, "sys/leases/revoke", "root", Some(body)).await
    };

    let (status, answer) = revoke().await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("42501"), "{answer}");
    assert_eq!(world.living_roles().await, std::slice::from_ref(&leased.user));

    let grant = format!("GRANT USAGE, SELECT ON SEQUENCE s TO {}", world.group("app_rw"));
    world.superuser.batch_execute(&grant).await.unwrap();
    let (status, answer) = revoke().await;
    assert_eq!(status, 204, "{answer}");
    assert!(world.leased_roles().await.is_empty());
}
