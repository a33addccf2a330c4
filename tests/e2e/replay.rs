//! HashiCorp Vault where it differs from OpenBao: recorded answers with its differences laid over them. `docs/vault.md`
//! tells which they are.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time;

use crate::support::env;
use crate::support::pglease::Pglease;
use crate::support::recorder::{Exchange, Recorder, shape};
use crate::support::replay::{Difference, Replay, Rules, VAULT};
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until, user_of};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded/openbao.json");

const DOCS: &str = include_str!("../../docs/vault.md");

/// With `PGLEASE_RECORD=1` it writes them anew.
#[tokio::test]
async fn openbao_answers_as_recorded_and_is_asked_as_documented() {
    let vault_role = VaultRole { default_ttl: "10s", ..VaultRole::default() };
    let options = WorldOptions { vault_roles: vec![vault_role], token_ttl: "10s", ..WorldOptions::default() };
    let world = World::shared(options).await;
    let recorder = Recorder::before(&world.servers.openbao.address()).await;
    let settings = world.settings_with("info", &recorder.url(), "");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    for event in ["lease.renewed", "token.renewed"] {
        pglease.wait_for_event(event, PATIENCE).await;
    }
    // What is in doubt is looked up, which a lease that ends meanwhile does not answer to.
    until(async || {
        let user = user_of(&pglease.connect("app").await.unwrap()).await;
        world.superuser.batch_execute(&format!("ALTER ROLE \"{user}\" NOLOGIN")).await.unwrap();
        pglease.connect("app").await.unwrap();
        let found = |exchange: &Exchange| exchange.operation() == "lookup" && exchange.status < 300;
        recorder.exchanges().iter().any(found)
    })
    .await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());

    let (mut answers, mut asked) = (BTreeMap::new(), Vec::new());
    for exchange in recorder.exchanges() {
        let operation = exchange.operation();
        let path = exchange.path.replace(&world.engine(), "database").replace(&world.auth(), "kubernetes");
        asked.push((operation, exchange.method, path));
        if exchange.status < 300 {
            let answer = json!({ "status": exchange.status, "answer": shape(&exchange.answer) });
            answers.entry(operation).or_insert(answer);
        }
    }
    let answers = json!(answers);
    if env("PGLEASE_RECORD").is_some() {
        fs::write(RECORDED, serde_json::to_string_pretty(&answers).unwrap() + "\n").unwrap();
    }
    let recorded: Value = serde_json::from_str(&fs::read_to_string(RECORDED).unwrap()).unwrap();
    for (operation, answer) in answers.as_object().unwrap() {
        assert!(
            fits(answer, &recorded[operation]),
            "{operation}: {answer}\nrecorded {}",
            recorded[operation]
        );
    }
    for operation in ["login", "lookup_self", "creds", "renew", "renew_self", "lookup", "revoke_self"] {
        assert!(answers.get(operation).is_some(), "no {operation} in {asked:?}");
    }
    for (operation, method, path) in asked {
        assert!(
            is_documented(operation, &method, &path),
            "{operation} {method} {path} is not in docs/vault.md"
        );
    }
}

/// Whether two answers have the same fields; what is null in one may be anything in the other.
fn fits(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => true,
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| fits(value, other)))
        }
        _ => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}

/// Whether the table of requests has this one.
fn is_documented(operation: &str, method: &Method, path: &str) -> bool {
    let path =
        path.replace("database/creds/db-app", "<vault_path>").replace("auth/kubernetes/", "auth/<mount>/");
    DOCS.contains(&format!("| `{operation}` | `{method} {path}` |"))
}

async fn pglease_at(replay: &Replay, world: &World<'_>) -> Pglease {
    let settings = world.settings_with("info", &replay.url(), "");
    pglease_with(&(settings + &world.route("db-app") + "at_lease_end = \"leave\"\n")).await
}

/// Among other things its tokens of 95 characters, `mount_type`, lookups of leases without `path`.
#[tokio::test]
async fn answers_of_vault_serve_as_those_of_openbao() {
    tokio::join!(serves(VAULT), serves(&[]));
}

async fn serves(differences: &'static [Difference]) {
    let world = World::shared(WorldOptions::default()).await;
    let rules = Rules { differences, lease: (20, 3600), token: (20, 3600) };
    let replay = Replay::start(&world, rules).await;
    let pglease = pglease_at(&replay, &world).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;
    pglease.wait_for_events("lease.renewed", 2, PATIENCE).await;
    pglease.wait_for_events("token.renewed", 2, PATIENCE).await;

    // Looked into, and replaced.
    world.superuser.batch_execute(&format!("ALTER ROLE \"{user}\" NOLOGIN")).await.unwrap();
    assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    until(async || replay.count("lookup") > 0).await;
    assert_eq!(user_of(&session).await, user);

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    // One for each token, and more where an answer takes longer than 2 s.
    assert!(replay.count("revoke_self") >= 2);
    until(async || world.living_roles().await.is_empty()).await;
    assert_eq!(replay.count("expire"), 0);
}

/// OpenBao has the JWT reviewed again at each renewal, so there a successor comes in time.
#[tokio::test]
async fn token_that_outlives_its_jwt_is_kept_where_vault_renews_it() {
    tokio::join!(keeps_or_replaces(VAULT), keeps_or_replaces(&[]));
}

async fn keeps_or_replaces(differences: &'static [Difference]) {
    let world = World::shared(WorldOptions::default()).await;
    let replay = Replay::start(&world, Rules { differences, lease: (3600, 86_400), token: (20, 3600) }).await;
    world.write_jwt(20);
    let pglease = pglease_at(&replay, &world).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;
    world.write_jwt(3600);
    if differences.is_empty() {
        pglease.wait_for_event("rotation.done", PATIENCE).await;
        assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    } else {
        // The third is behind the end of the JWT.
        pglease.wait_for_events("token.renewed", 4, PATIENCE).await;
        assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
        assert_eq!((replay.count("login"), pglease.events("token.renew_failed").len()), (1, 0));
    }
}

#[tokio::test]
async fn namespace_that_vault_ignores_is_no_trouble_and_one_that_openbao_does_not_know_is_named() {
    let world = World::shared(WorldOptions::default()).await;
    let rules = |differences| Rules { differences, lease: (3600, 86_400), token: (3600, 86_400) };
    let settings = |replay: &Replay| {
        let settings = world.settings_with("info", &replay.url(), "");
        settings.replace("namespace = \"\"", "namespace = \"team\"") + &world.route("db-app")
    };
    let replay = Replay::start(&world, rules(VAULT)).await;
    let pglease = pglease_with(&settings(&replay)).await;
    pglease.connect("app").await.unwrap();

    let replay = Replay::start(&world, rules(&[])).await;
    let pglease = crate::start(&settings(&replay)).await;
    let failed = pglease.wait_for_event("login.failed", PATIENCE).await;
    assert_eq!(failed["code"], 404, "{failed}");
}

/// Vault's has nothing to say itself; OpenBao's still answers lookup-self.
#[tokio::test]
async fn standby_with_a_dead_leader_costs_nobody_anything() {
    tokio::join!(loses_its_leader(VAULT), loses_its_leader(&[]));
}

async fn loses_its_leader(differences: &'static [Difference]) {
    let world = World::shared(WorldOptions::default()).await;
    let replay = Replay::start(&world, Rules { differences, lease: (40, 3600), token: (40, 3600) }).await;
    let pglease = pglease_at(&replay, &world).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    replay.lose_leader(true);
    pglease.wait_for_event("lease.renew_failed", PATIENCE).await;
    pglease.wait_for_event("token.renew_failed", PATIENCE).await;
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    assert_eq!(pglease.get("/readyz").await.0, 200);

    replay.lose_leader(false);
    let renewed = pglease.events("token.renewed").len();
    pglease.wait_for_events("token.renewed", renewed + 1, PATIENCE).await;
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    assert_eq!(replay.count("creds"), 1);
}

#[tokio::test]
async fn token_near_its_maximum_has_a_successor_before_vault_answers_500() {
    let world = World::shared(WorldOptions::default()).await;
    let replay =
        Replay::start(&world, Rules { differences: VAULT, lease: (3600, 86_400), token: (16, 32) }).await;
    let pglease = pglease_at(&replay, &world).await;
    let held = pglease.connect("app").await.unwrap();
    while pglease.events("lease.ended").is_empty() {
        pglease.connect("app").await.unwrap();
        time::sleep(Duration::from_millis(100)).await;
    }
    user_of(&held).await;
    let rotated = pglease.events("rotation.done");
    assert!(rotated.iter().all(|event| event["trigger"] == "planned"), "{rotated:?}");
}
