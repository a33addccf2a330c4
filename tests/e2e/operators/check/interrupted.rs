//! Checks that are broken off, or that something happens to on their way.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
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

/// A check that goes on beside the test.
fn begin(file: &Path) -> Child {
    let mut command = Command::new(BINARY);
    command.args(["check", "--json", "--config-file"]).arg(file).env_clear().kill_on_drop(true);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn send(check: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(check.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn end(check: Child) -> Checked {
    Checked::of(&time::timeout(PATIENCE, check.wait_with_output()).await.unwrap().unwrap())
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
        let child = begin(&file);
        until(async || asked(&world) > before).await;
        send(&child, signal);
        world.superuser.batch_execute("SELECT pg_advisory_unlock(41)").await.unwrap();
        let checked = end(child).await;
        let end = checked.only_trouble("check.end", "unfinished");
        assert!(end["found"].as_str().unwrap().starts_with("stopped by SIG"), "{end:#}");
        assert_eq!(checked.step("vault.revoke")["outcome"], "passed", "{:#}", checked.document);
        until(async || world.living_roles().await.is_empty()).await;
    }

    let checked = check(&world, &settings, &["--max", "1ms"]).await;
    let end = checked.only_trouble("check.end", "unfinished");
    assert_eq!(end["found"], "not done within 1ms");
    assert!(end["cure"].as_str().unwrap().starts_with("run it again"), "{end}");
    until(async || world.living_roles().await.is_empty()).await;
    check(&world, &settings, &["--max", "10m"]).await.cured("check.end", "unfinished");
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

/// Vault takes a renewal that may lengthen the lease and does not answer it, and is away from then on: until when the lease
/// is there is what is true of it at the latest.
#[tokio::test]
async fn lease_that_may_have_been_lengthened_is_said_to_end_with_its_token_at_the_latest() {
    let world = World::shared(WorldOptions { token_ttl: "2h", ..WorldOptions::default() }).await;
    let openbao = world.servers.openbao.address();
    let recorder = Recorder::before(&openbao).await;
    let settings = (world.settings() + &world.route("db-app")).replace(&openbao, &recorder.url());
    let file = world.folder().join("lengthening.toml");
    std::fs::write(&file, settings).unwrap();
    recorder.hold(Some("sys/leases/renew"));
    let (path, status, location) = ("auth/token/revoke-self".to_owned(), 503, String::new());
    recorder.answer(Some(Instead { path, status, location, body: Value::Null }));
    let begins_at = SystemTime::now();
    let child = begin(&file);
    recorder.has_held().await;
    send(&child, Signal::TERM);
    let checked = end(child).await;
    recorder.hold(None);
    let left = checked.trouble("vault.revoke", "revoke-failed")["found"].as_str().unwrap();
    let (_, left) = left.split_once(" ends at ").unwrap();
    let (until, rest) = left.split_once(' ').unwrap();
    assert!(rest.starts_with("at the latest"), "{left}");
    let until = humantime::parse_rfc3339(until).unwrap();
    // The lease's own hour is over before.
    let [first, last] = [begins_at, SystemTime::now()].map(|now| now + Duration::from_hours(2));
    assert!(until + Duration::from_secs(1) > first && until <= last, "{left}");
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
    assert_eq!(step["cure"], format!("vault read {}", patient.role()));
    assert_eq!(checked.step("vault.revoke")["outcome"], "passed", "{:#}", checked.document);
    patient
        .set_role(json!({
            "bound_service_account_names": "web",
            "bound_service_account_namespaces": "default",
            "token_policies": world.group("db-app"),
        }))
        .await;
    patient.cured("vault.token", "token-renewal-failed").await;
}

/// What a real Vault does not do at the moment that it is wanted, somebody in front of it does: refuse a revocation, send
/// elsewhere, have another clock, and make a password that PostgreSQL would not take.
#[tokio::test]
async fn vault_that_goes_away_sends_elsewhere_has_another_clock_or_makes_zero_bytes_is_told_of() {
    let mut patient = Patient::new().await;
    let openbao = &patient.world.servers.openbao;
    let recorder = Recorder::before(&openbao.address()).await;
    patient.settings = patient.settings.replace(&openbao.address(), &recorder.url());
    let health = crate::support::http_client().get(format!("{}/v1/sys/health", openbao.address()));
    let mut health: Value =
        serde_json::from_str(&health.send().await.unwrap().text().await.unwrap()).unwrap();
    let now = health["server_time_utc"].as_i64().unwrap();
    health["server_time_utc"] = (now - 3600).into();
    let instead = |path: &str, status, location: &str, body| {
        let (path, location) = (path.to_owned(), location.to_owned());
        recorder.answer(Some(Instead { path, status, location, body }));
    };

    // To the same Vault, by a name that the settings do not have.
    let leader = openbao.address().replace("127.0.0.1", "localhost");
    instead("sys/health", 307, &format!("{leader}/v1/sys/health"), Value::Null);
    let cure = patient.finds("vault.health", "vault-redirects").await;
    assert!(cure.starts_with("set vault.redirect_hosts to the host that it names"), "{cure}");
    let well = patient.settings.clone();
    patient.settings = well.replacen("\n\n", "\nredirect_hosts = [\"localhost\"]\n\n", 1);
    patient.cured("vault.health", "vault-redirects").await;
    patient.settings = well;

    let vault_path = patient.world.vault_path("db-app");
    let creds = json!({
        "lease_id": "other", "lease_duration": 60, "renewable": true,
        "data": { "username": "v-other", "password": "before\0behind" },
    });
    for (name, fault, path, status, body) in [
        ("vault.revoke", "revoke-failed", "auth/token/revoke-self", 503, Value::Null),
        ("vault.health", "vault-not-vault", "sys/health", 200, Value::Null),
        ("vault.clock", "vault-clock", "sys/health", 200, health),
        ("vault.creds", "zero-byte", &*vault_path, 200, creds),
    ] {
        instead(path, status, "", body);
        let cure = patient.finds(name, fault).await;
        recorder.answer(None);
        if fault == "revoke-failed" {
            patient.follow(&cure.replace("<vault_path>", &vault_path)).await;
            until(async || patient.world.living_roles().await.is_empty()).await;
        }
        if fault == "zero-byte" {
            let said = patient.follow(&cure.replace("<connection>", "pg")).await;
            assert!(said[0].contains("db_name") && said[1].contains("password_policy"), "{cure}: {said:?}");
        }
        patient.cured(name, fault).await;
    }
}
