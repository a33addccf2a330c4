//! Checks that are broken off, or that something happens to on their way.

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time;

use super::Patient;
use crate::check::{Checked, check};
use crate::support::process::{Process, Spawn};
use crate::support::recorder::{Instead, Recorder};
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, until};

/// Its roles are not made before the test allows it.
async fn slow_world(lock: &'static str) -> World<'static> {
    let slow = VaultRole { prelude: lock, ..VaultRole::default() };
    World::shared(WorldOptions { vault_roles: vec![slow], ..WorldOptions::default() }).await
}

/// How many credentials have been asked for.
fn asked(world: &World<'_>) -> usize {
    world.requests().iter().filter(|request| request.path == world.vault_path("db-app")).count()
}

#[tokio::test]
async fn check_that_is_cut_short_gives_back_what_it_has_begun() {
    let world = slow_world("SELECT pg_advisory_xact_lock(41);").await;
    let settings = world.settings() + &world.route("db-app");
    let file = world.folder().join("stopped.toml");
    std::fs::write(&file, &settings).unwrap();

    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let before = asked(&world);
        world.superuser.batch_execute("SELECT pg_advisory_lock(41)").await.unwrap();
        let mut command = Command::new(BINARY);
        command.args(["check", "--json", "--config-file"]).arg(&file).env_clear().kill_on_drop(true);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        until(async || asked(&world) > before).await;
        let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        world.superuser.batch_execute("SELECT pg_advisory_unlock(41)").await.unwrap();
        let output = time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checked = Checked { code: output.status.code().unwrap(), document };
        let end = checked.only_trouble("check.end", "unfinished");
        assert!(end["found"].as_str().unwrap().starts_with("stopped by SIG"), "{end:#}");
        assert_eq!(checked.step("vault.revoke")["outcome"], "passed", "{:#}", checked.document);
        until(async || world.living_roles().await.is_empty()).await;
    }

    let checked = check(&world, &settings, &["--max", "1ms"]).await;
    assert_eq!(checked.step("check.end")["found"], "not done within 1ms");
    assert_eq!(checked.code, 1);
    until(async || world.living_roles().await.is_empty()).await;
}

/// Asks for an end while Vault keeps the revocation: it is gone to its end, and told of.
#[tokio::test]
async fn revocation_that_a_signal_meets_is_gone_to_its_end() {
    let world = World::shared(WorldOptions::default()).await;
    let openbao = world.servers.openbao.address();
    let recorder = Recorder::before(&openbao).await;
    let settings = (world.settings() + &world.route("db-app")).replace(&openbao, &recorder.url());
    let file = world.folder().join("revoking.toml");
    std::fs::write(&file, settings).unwrap();
    let arguments = ["check".to_owned(), "--config-file".to_owned(), file.display().to_string()];
    let db_role = loop {
        recorder.hold(Some("auth/token/revoke-self"));
        let check = Process::spawn(&Spawn {
            program: Path::new(BINARY),
            arguments: &arguments,
            environment: &[],
            folder: world.folder(),
            uid: None,
            stop: Signal::KILL,
        });
        recorder.has_held().await;
        check.signal(Signal::TERM);
        let end = |lines: &[String]| lines.iter().find(|line| line.contains("check.end")).cloned();
        let end = check.lines().wait_for(PATIENCE, end).await;
        recorder.hold(None);
        let code = check.wait_exit(PATIENCE).await.code();
        let whole = |_: &[String]| check.lines().have_ended().then_some(());
        check.lines().wait_for(PATIENCE, whole).await;
        let said = check.lines().all().join("\n");
        // On a machine that stands still for so long, Vault has been asked three times in vain before the signal came,
        // or after.
        let Some(end) = end else { continue };
        assert!(end.contains("stopped by SIGTERM") && code == Some(1), "{said}");
        assert!(!said.contains("nothing was made"), "{said}");
        assert_eq!(said.matches("vault.revoke ").count(), 1, "{said}");
        if said.contains("✓ vault.revoke ") {
            let (_, lease) =
                said.split_once("the token, and the lease of ").unwrap_or_else(|| panic!("{said}"));
            break lease.split(' ').next().unwrap().to_owned();
        }
        assert!(said.contains("not revoked: the login of "), "{said}");
    };
    until(async || !world.living_roles().await.contains(&db_role)).await;
}

#[tokio::test]
async fn auth_role_that_is_gone_ends_the_renewals_of_its_tokens() {
    let patient = Patient::of(slow_world("SELECT pg_advisory_xact_lock(42);").await);
    let world = &patient.world;
    world.superuser.batch_execute("SELECT pg_advisory_lock(42)").await.unwrap();
    let before = asked(world);
    let removing = async {
        // It has logged in.
        until(async || asked(world) > before).await;
        world.servers.openbao.delete(&patient.role()).await;
        world.superuser.batch_execute("SELECT pg_advisory_unlock(42)").await.unwrap();
    };
    let (checked, ()) = tokio::join!(patient.check(), removing);
    let step = checked.trouble("vault.token", "token-renewal-failed");
    assert!(step["cure"].as_str().unwrap().contains(&patient.role()), "{step}");
    assert_eq!(checked.step("vault.revoke")["outcome"], "passed", "{:#}", checked.document);
    patient
        .set_role(json!({
            "bound_service_account_names": "web",
            "bound_service_account_namespaces": "default",
            "token_policies": world.group("db-app"),
        }))
        .await;
    patient.is_well("vault.token").await;
}

/// What a real Vault does not do at the moment that it is wanted, somebody in front of it does: refuse a revocation, send
/// elsewhere, and have another clock.
#[tokio::test]
async fn vault_that_goes_away_sends_elsewhere_or_has_another_clock_is_told_of() {
    let mut patient = Patient::new().await;
    let openbao = &patient.world.servers.openbao;
    let recorder = Recorder::before(&openbao.address()).await;
    patient.settings = patient.settings.replace(&openbao.address(), &recorder.url());
    let health = crate::support::http_client().get(format!("{}/v1/sys/health", openbao.address()));
    let mut health: Value =
        serde_json::from_str(&health.send().await.unwrap().text().await.unwrap()).unwrap();
    let now = health["server_time_utc"].as_i64().unwrap();
    health["server_time_utc"] = (now - 3600).into();
    let nothing = Value::Null;
    for (name, fault, instead) in [
        ("vault.revoke", "revoke-failed", ("auth/token/revoke-self", 503, "", nothing.clone())),
        (
            "vault.health",
            "vault-redirects",
            ("sys/health", 307, "http://leader.invalid:8200/v1/sys/health", nothing.clone()),
        ),
        ("vault.health", "vault-not-vault", ("sys/health", 200, "", nothing)),
        ("vault.clock", "vault-clock", ("sys/health", 200, "", health)),
    ] {
        let (path, status, location, body) = instead;
        recorder.answer(Some(Instead { path, status, location, body }));
        let cure = patient.finds(name, fault).await;
        recorder.answer(None);
        if fault == "revoke-failed" {
            let path = patient.world.vault_path("db-app");
            patient.follow(&cure.replace("<vault_path>", &path)).await;
            until(async || patient.world.living_roles().await.is_empty()).await;
        }
        patient.is_well(name).await;
    }
}
