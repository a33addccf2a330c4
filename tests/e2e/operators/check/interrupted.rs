//! Checks that are broken off, or that something happens to on their way.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time;

use super::Patient;
use crate::check::{Checked, check};
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

    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
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
        let end = checked.step("check.end");
        assert_eq!((end["fault"].as_str(), checked.code), (Some("unfinished"), 1), "{:#}", checked.document);
        assert!(end["found"].as_str().unwrap().starts_with("stopped by SIG"), "{end:#}");
        assert_eq!(checked.step("vault.revoke")["outcome"], "passed", "{:#}", checked.document);
        until(async || world.living_roles().await.is_empty()).await;
    }

    let checked = check(&world, &settings, &["--max", "1ms"]).await;
    assert_eq!(checked.step("check.end")["found"], "not done within 1ms");
    assert_eq!(checked.code, 1);
    until(async || world.living_roles().await.is_empty()).await;
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
