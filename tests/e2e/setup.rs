//! What README.md and docs/setup.md tell an operator to do, done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::support::Servers;
use crate::support::tokenreview::TokenReview;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

const README: &str = include_str!("../../README.md");
const SETUP: &str = include_str!("../../docs/setup.md");

/// The blocks of code in this language, one after the other.
fn blocks(docs: &str, language: &str) -> String {
    let blocks = docs.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

/// `text` with each of these replaced, all of which it has.
fn adapted(text: &str, replacements: &[(&str, String)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no {from} in\n{text}");
        text.replace(from, to)
    })
}

#[tokio::test]
async fn documented_set_up_and_settings_serve_an_application() {
    let Servers { postgres, openbao } = &Servers::start().await;
    let token_review = TokenReview::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let ca_file = postgres.ca_file().display().to_string();

    postgres.query("postgres", "CREATE DATABASE wizard").await;
    let superuser = postgres.connect("wizard").await;
    superuser.batch_execute(&blocks(SETUP, "sql")).await.unwrap();

    let kubernetes = format!(
        "kubernetes_host={} kubernetes_ca_cert=@{ca_file} token_reviewer_jwt=reviewer disable_local_ca_jwt=true",
        token_review.url()
    );
    let issuer = rcgen::KeyPair::generate().unwrap();
    fs::write(path("issuer.pem"), issuer.public_key_pem()).unwrap();
    let commands = adapted(
        &blocks(SETUP, "sh"),
        &[
            ("@postgres:5432/", format!("@localhost:{}/", postgres.port())),
            ("sslmode=verify-full", format!("sslmode=verify-full&sslrootcert={ca_file}")),
            ("kubernetes_host=https://kubernetes.default.svc", kubernetes),
            ("@issuer.pem", format!("@{}", path("issuer.pem"))),
            ("@ca.pem", format!("@{ca_file}")),
        ],
    );
    fs::write(path("vault"), format!("#!/bin/sh\nexec '{}' \"$@\"\n", openbao.program().display())).unwrap();
    fs::set_permissions(path("vault"), fs::Permissions::from_mode(0o755)).unwrap();
    let done = Command::new("/bin/sh")
        .args(["-euc", &commands])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .envs([("HOME", path("")), ("VAULT_ADDR", openbao.address()), ("VAULT_TOKEN", "root".to_owned())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    fs::write(path("token"), TokenReview::jwt("default", "web", 3600)).unwrap();
    let upstream = format!("localhost:{}/wizard", postgres.port());
    let settings = adapted(
        &blocks(README, "toml"),
        &[
            ("https://vault.vault.svc:8200", openbao.address()),
            ("[vault.login]\n", format!("[vault.login]\njwt_file = {:?}\n", path("token"))),
            ("postgres:5432/wizard", upstream.clone()),
            ("/etc/pg/ca.pem", ca_file.clone()),
            ("[[route]]\n", "[[route]]\nuser = \"app\"\n".to_owned()),
        ],
    );
    let others = format!(
        "[[route]]\nuser = \"migration\"\nupstream = \"postgresql://{upstream}?sslrootcert={ca_file}\"\n\
         vault_path = \"database/creds/db-migrate\"\nstartup_role = \"app_owner\"\n\
         [[route]]\nupstream = \"postgresql://{upstream}?sslrootcert={ca_file}\"\n\
         vault_path = \"database/static-creds/report\"\n\
         [listen]\naddresses = [\"localhost:0\"]\n[http]\naddress = \"127.0.0.1:0\"\n"
    );
    let pglease = pglease_with(&(settings + &others)).await;

    let migration = pglease.connect_as("wizard", "migration").await.unwrap();
    migration
        .batch_execute("CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, spell text)")
        .await
        .unwrap();
    let application = pglease.connect_as("wizard", "app").await.unwrap();
    application.batch_execute("INSERT INTO t (spell) VALUES ('alohomora')").await.unwrap();
    let refused = application.batch_execute("CREATE TABLE u ()").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let report = pglease.connect_as("wizard", "report").await.unwrap();
    assert_eq!(report.rows("SELECT session_user").await, [[Some("report".to_owned())]]);

    pglease.sigterm();
    let status = pglease.wait_exit(PATIENCE).await;
    assert!(status.success(), "{status}");
    // NOLOGIN leaves the one, the other is gone.
    let leased = "SELECT count(*), bool_or(rolcanlogin) FROM pg_roles WHERE rolname LIKE 'v-%'";
    until(async || superuser.rows(leased).await == [[Some("1".to_owned()), Some("f".to_owned())]]).await;
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
