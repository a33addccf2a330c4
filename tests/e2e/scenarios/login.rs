//! The ways in to Vault, each on a real OpenBao.

use std::fs;
use std::path::PathBuf;

use rcgen::KeyPair;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::pglease::Pglease;
use crate::support::pki::{Authority, signed_jwt};
use crate::support::tokenreview::TokenReview;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, start, until, until_revoked, user_of};

/// The world's settings with this in place of its login, and a route.
fn settings(world: &World<'_>, login: &str) -> String {
    let settings = world.settings();
    let (before, rest) = settings.split_once("[vault.login]\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    format!("{before}[vault.login]\n{login}\n\n{after}{}", world.route("db-app"))
}

/// A file of the world's, with this in it.
fn file(world: &World<'_>, name: &str, text: &str) -> PathBuf {
    let path = world.folder().join(name);
    fs::write(&path, text).unwrap();
    path
}

/// What every auth role of these tests gives.
fn auth_role(world: &World<'_>, more: &Value) -> Value {
    let mut role = json!({ "token_policies": world.group("db-app"), "token_ttl": "1h" });
    role.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    role
}

/// That its credentials are good, and nothing is left of them.
async fn assert_serves_and_cleans_up(world: &World<'_>, pglease: &Pglease) {
    let session = pglease.connect("app").await.unwrap();
    assert!(user_of(&session).await.starts_with(&world.role_prefix()));
    drop(session);
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_revoked(world, pglease).await;
}

/// A `RoleID` of a new mount of approle, and that mount.
async fn approle(world: &World<'_>) -> (String, String) {
    let mount = world.group("approle");
    world.write(&format!("sys/auth/{mount}"), json!({ "type": "approle" })).await;
    world.write(&format!("auth/{mount}/role/web"), auth_role(world, &json!({}))).await;
    let role_id = world.servers.openbao.read(&format!("auth/{mount}/role/web/role-id")).await;
    (role_id["role_id"].as_str().unwrap().to_owned(), mount)
}

async fn secret_id(world: &World<'_>, mount: &str) -> String {
    let made = world.write(&format!("auth/{mount}/role/web/secret-id"), json!({})).await;
    made["secret_id"].as_str().unwrap().to_owned()
}

/// A token that a new `SecretID` is wrapped in.
async fn wrapped_secret_id(world: &World<'_>, mount: &str) -> String {
    let url = format!("{}/v1/auth/{mount}/role/web/secret-id", world.servers.openbao.address());
    let request = crate::support::http_client().post(url).header("X-Vault-Token", "root");
    let answer = request.header("X-Vault-Wrap-TTL", "10m").send().await.unwrap().text().await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["wrap_info"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn approle_logs_in_with_a_secret_id_and_is_sparing_with_a_wrong_one() {
    let world = World::shared(WorldOptions::default()).await;
    let (role_id, mount) = approle(&world).await;
    let path = file(&world, "secret-id", "not-the-secret-id\n");
    let login =
        format!("method = \"approle\"\nmount = {mount:?}\nrole_id = {role_id:?}\nsecret_id_file = {path:?}");
    let pglease = start(&settings(&world, &login).replace("\"debug\"", "\"trace\"")).await;

    let tried = format!("auth/{mount}/login");
    let held_back =
        |line: &Value| line["error"].as_str().is_some_and(|error| error.contains("not tried again for"));
    until(async || pglease.events("login.failed").iter().filter(|line| held_back(line)).count() >= 3).await;
    let requests = world.servers.openbao.requests();
    assert_eq!(requests.iter().filter(|request| request.path == tried).count(), 2);

    // Vault has not locked the RoleID out, and a file that changes is tried at once.
    let right = secret_id(&world, &mount).await;
    fs::write(&path, &right).unwrap();
    pglease.wait_ready().await;
    assert_serves_and_cleans_up(&world, &pglease).await;
    let told =
        pglease.lines().all().iter().any(|line| line.contains(&right) || line.contains("not-the-secret-id"));
    assert!(!told);
}

/// How many requests of this kind it has made.
async fn requests(pglease: &Pglease, labels: &str) -> String {
    let made = pglease.metric("pglease_vault_requests_total", labels).await;
    // The sum of no numbers is -0.
    (made + 0.0).to_string()
}

#[tokio::test]
async fn approle_unwraps_a_secret_id_once_and_says_so_where_somebody_else_has() {
    let names = ["db-app", "db-other"];
    let vault_roles = names.map(|name| VaultRole { name, ..VaultRole::default() }).to_vec();
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let (role_id, mount) = approle(&world).await;
    let path = file(&world, "secret-id", &wrapped_secret_id(&world, &mount).await);
    let login = format!(
        "method = \"approle\"\nmount = {mount:?}\nrole_id = {role_id:?}\nsecret_id_file = {path:?}\n\
         secret_id_wrapped = true"
    );
    // Two chains, so two logins with the one SecretID.
    let other = world.route("db-other");
    let routes = settings(&world, &login) + "database = \"app\"\n" + &other;
    let pglease = pglease_with(&routes).await;
    assert_eq!(requests(&pglease, "op=\"unwrap\"").await, "1");
    assert_eq!(requests(&pglease, "op=\"login\",code=\"200\"").await, "2");

    // The token is spent, be it by this pglease or by a thief.
    let late = start(&settings(&world, &login)).await;
    let spent = late.wait_for_event("login.secret_id_spent", PATIENCE).await;
    assert_eq!(spent["level"], "ERROR", "{spent}");
    let failed = late.wait_for_events("login.failed", 3, PATIENCE).await;
    assert!(failed["error"].as_str().unwrap().contains("somebody else may have"), "{failed}");
    assert_eq!(requests(&late, "op=\"unwrap\"").await, "1");
    assert_eq!(requests(&late, "op=\"login\"").await, "0");

    fs::write(&path, wrapped_secret_id(&world, &mount).await).unwrap();
    late.wait_ready().await;
    late.sigterm();
    assert!(late.wait_exit(PATIENCE).await.success());
    assert_serves_and_cleans_up(&world, &pglease).await;
}

#[tokio::test]
async fn jwt_that_vault_verifies_itself_logs_in() {
    let world = World::shared(WorldOptions::default()).await;
    let (mount, key) = (world.group("jwt"), KeyPair::generate().unwrap());
    world.write(&format!("sys/auth/{mount}"), json!({ "type": "jwt" })).await;
    let config = json!({ "jwt_validation_pubkeys": key.public_key_pem() });
    world.write(&format!("auth/{mount}/config"), config).await;
    let bound = json!({ "role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault" });
    world.write(&format!("auth/{mount}/role/web"), auth_role(&world, &bound)).await;
    let claims = json!({ "sub": "web", "aud": "vault", "exp": 4_000_000_000_u64, "nbf": 1 });
    let path = file(&world, "jwt", &signed_jwt(&key, &claims));

    let login = format!("method = \"jwt\"\nmount = {mount:?}\nrole = \"web\"\njwt_file = {path:?}");
    let pglease = pglease_with(&settings(&world, &login)).await;
    assert_serves_and_cleans_up(&world, &pglease).await;
}

#[tokio::test]
async fn client_certificate_logs_in() {
    let world = World::shared(WorldOptions::default()).await;
    let (mount, authority) = (world.group("cert"), Authority::create());
    world.write(&format!("sys/auth/{mount}"), json!({ "type": "cert" })).await;
    let trusted = auth_role(&world, &json!({ "certificate": authority.pem() }));
    world.write(&format!("auth/{mount}/certs/web"), trusted).await;
    let client = authority.issue(&["web.example.com"]);
    let (cert, key) =
        (file(&world, "client.pem", &client.certificate), file(&world, "client.key", &client.key));

    let openbao = &world.servers.openbao;
    for role in ["", "role = \"web\"\n"] {
        let login = format!("method = \"cert\"\nmount = {mount:?}\n{role}");
        let tls = format!(
            "address = {:?}\nca_file = {:?}\nclient_cert_file = {cert:?}\nclient_key_file = {key:?}",
            openbao.tls_address(),
            openbao.ca_file()
        );
        let settings = settings(&world, &login).replace(&format!("address = {:?}", openbao.address()), &tls);
        let pglease = pglease_with(&settings).await;
        assert_serves_and_cleans_up(&world, &pglease).await;
    }
}

/// A token such as an agent's.
async fn token(world: &World<'_>, more: &Value) -> String {
    let mut body = json!({ "policies": [world.group("db-app")], "ttl": "1h", "no_parent": true });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = world.write("auth/token/create", body).await;
    made["auth"]["client_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn token_of_a_file_is_used_and_left_alone() {
    let world = World::shared(WorldOptions::default()).await;
    let limited = token(&world, &json!({ "num_uses": 100 })).await;
    let path = file(&world, "sink", &limited);
    let login = format!("method = \"token_file\"\ntoken_file = {path:?}");
    let pglease = start(&settings(&world, &login)).await;
    let failed = pglease.wait_for_event("login.failed", PATIENCE).await;
    let error = failed["error"].as_str().unwrap();
    assert!(error.starts_with("vault.login.token_file ") && error.contains("num_uses 0"), "{failed}");

    let token = token(&world, &json!({})).await;
    fs::write(&path, &token).unwrap();
    pglease.wait_ready().await;
    assert_serves_and_cleans_up(&world, &pglease).await;
    let (status, answer) =
        world.servers.openbao.call(Method::GET, "auth/token/lookup-self", &token, None).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn scenario_17_login_of_the_next_generation_is_with_the_new_jwt() {
    let world = World::short_lived(Revocation::NoLogin).await;
    let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    // Another pod's from here: the old one is refused, the new one was before.
    fs::write(world.jwt_file(), TokenReview::jwt("default", "web-2", 3600)).unwrap();
    let role = format!("auth/{}/role/web", world.auth());
    world.write(&role, json!({ "bound_service_account_names": "web-2" })).await;
    pglease.wait_for_event("rotation.done", PATIENCE).await;
    let next = pglease.connect("app").await.unwrap();
    assert_ne!(user_of(&next).await, user);
}

#[tokio::test]
async fn password_of_any_characters_logs_in() {
    let world = World::shared(WorldOptions::default()).await;
    // All that a string of SQL can hold without being escaped, which the engine does not do.
    let policy = "length = 100\nrule \"charset\" { charset = \"\\\"\\\\$%{}<>&;:/?#@!`~ |äߧ€漢字🦀\" }";
    let name = world.group("odd");
    world.write(&format!("sys/policies/password/{name}"), json!({ "policy": policy })).await;
    let engine = json!({ "plugin_name": "postgresql-database-plugin", "password_policy": name });
    world.write(&format!("{}/config/pg", world.engine()), engine).await;
    let leased = world.lease("db-app").await;
    assert!(leased.password.contains(|character: char| !character.is_ascii()), "{}", leased.password);

    let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;
    let session = pglease.connect("app").await.unwrap();
    assert_ne!(user_of(&session).await, leased.user);
}
