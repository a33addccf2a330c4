//! Canaries: what is secret is seen on the wires where it belongs, and nowhere else.

mod shown;
mod tap;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use ring::{digest, hmac, pbkdf2};
use rustix::process::{Pid, Signal, geteuid};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use shown::Shown;
use tap::Tap;

use crate::raw::{Raw, startup};
use crate::support::process::{Folder, Process, Spawn, copy_program};
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_with, start, until};

#[tokio::test]
async fn sessions_renewals_a_cancel_a_refused_credential_and_a_drain_show_no_secret() {
    let vault_roles = vec![VaultRole { default_ttl: "20s", max_ttl: "1h", ..VaultRole::default() }];
    let options = WorldOptions { vault_roles, token_ttl: "20s", ..WorldOptions::default() };
    let world = World::shared(options).await;
    let vault = Tap::to(world.servers.openbao.port()).await;
    let upstream = Tap::to(world.servers.postgres.port()).await;
    // In clear, so that the tap understands it.
    let route = format!(
        "[[route]]\nupstream = \"postgresql://127.0.0.1:{}/{}?sslmode=disable\"\nvault_path = {:?}\n",
        upstream.port,
        world.database(),
        world.vault_path("db-app")
    );
    let settings = world.settings_with("trace", &format!("http://127.0.0.1:{}", vault.port), "");
    let pglease = pglease_with(&(settings + &route)).await;
    let client = Tap::to(pglease.port()).await;
    let mut shown = Shown::default();

    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(client.port).dbname("app").user("app");
    let (session, connection) = config.connect(NoTls).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    shown.error(&session.batch_execute("SELECT * FROM no_such_table").await.unwrap_err());
    let cancel = session.cancel_token();
    let sleep = session.batch_execute("SELECT pg_sleep(600)");
    let cancelling = async {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)' AND state = 'active'";
        until(async || !world.superuser.rows(sql).await.is_empty()).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleep, cancelling);
    shown.error(&slept.unwrap_err());
    pglease.wait_for_event("lease.renewed", PATIENCE).await;
    pglease.wait_for_event("token.renewed", PATIENCE).await;

    let scram_of_first = world.scram_keys().await;
    let [(refused, _)] = &world.leased_roles().await[..] else { unreachable!("one role") };
    let sql = format!("ALTER ROLE \"{refused}\" PASSWORD 'changed by hand'");
    world.superuser.batch_execute(&sql).await.unwrap();
    drop(config.connect(NoTls).await.unwrap());
    pglease.wait_for_event("upstream.credential_rejected", PATIENCE).await;
    pglease.wait_for_event("rotation.done", PATIENCE).await;
    let scram_of_both = world.scram_keys().await;

    shown.process(&pglease).await;
    pglease.sigterm();
    shown.error(&driver.join_next().await.unwrap().unwrap().unwrap_err());
    assert!(pglease.wait_exit(PATIENCE).await.success());
    shown.log(&pglease).await;

    let answers = vault.text();
    let tokens = values_of(&answers, "client_token");
    let passwords = values_of(&answers, "password");
    let leases = values_of(&answers, "lease_id");
    assert!(tokens.len() >= 2 && passwords.len() == 2 && leases.len() >= 2, "{tokens:?} {leases:?}");
    let keys = [upstream.cancel_secrets(), client.cancel_secrets()];
    assert!(keys.iter().all(|keys| keys.len() >= 2), "{keys:?}");
    let verifiers: Vec<_> = scram_of_first.into_iter().chain(scram_of_both).collect();
    let scram: Vec<_> = passwords.iter().flat_map(|password| scram_secrets(password, &verifiers)).collect();
    // Two passwords, four keys of each.
    assert_eq!(scram.len(), 8);

    // In front of the last part of a lease id is the path that it was read from.
    let leases: Vec<_> = leases.iter().map(|lease| lease.rsplit('/').next().unwrap().to_owned()).collect();
    let accessors = values_of(&answers, "accessor");
    shown.assert_without("the JWT", fs::read(world.jwt_file()).unwrap());
    for (name, secrets) in
        [("token", tokens), ("accessor", accessors), ("password", passwords), ("lease id", leases)]
    {
        for secret in secrets {
            shown.assert_without(name, secret);
        }
    }
    for (name, secrets) in [("cancel key", keys.concat()), ("SCRAM key", scram)] {
        for secret in secrets {
            shown.assert_without(name, secret);
        }
    }
}

#[tokio::test]
async fn scenario_21_a_secret_id_and_what_an_operator_asks_show_no_secret() {
    let world = World::shared(WorldOptions::default()).await;
    let vault = Tap::to(world.servers.openbao.port()).await;
    let mount = world.group("approle");
    world.write(&format!("sys/auth/{mount}"), json!({ "type": "approle" })).await;
    let role = json!({ "token_policies": world.group("db-app"), "token_ttl": "1h" });
    world.write(&format!("auth/{mount}/role/web"), role).await;
    let role_id =
        world.servers.openbao.read(&format!("auth/{mount}/role/web/role-id")).await["role_id"].clone();
    let made = world.write(&format!("auth/{mount}/role/web/secret-id"), json!({})).await;
    let secret_id = made["secret_id"].as_str().unwrap();

    let file = world.folder().join("secret-id");
    fs::write(&file, WRONG_SECRET_ID).unwrap();
    let settings = world.settings_with("trace", &format!("http://127.0.0.1:{}", vault.port), "");
    let (before, rest) = settings.split_once("[vault.login]\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    let login =
        format!("method = \"approle\"\nmount = {mount:?}\nrole_id = {role_id}\nsecret_id_file = {file:?}");
    let route = world.route("db-app");
    let pglease = start(&format!("{before}[vault.login]\n{login}\n\n{after}{route}")).await;
    pglease.wait_for_events("login.failed", 3, PATIENCE).await;
    let mut shown = Shown::default();
    shown.command(&pglease, &["status"]).await;
    fs::write(&file, secret_id).unwrap();
    pglease.wait_ready().await;

    let session = pglease.connect("app").await.unwrap();
    for command in [&["rotate"][..], &["status"], &["status", "--json"], &["rotate", "--close"]] {
        shown.command(&pglease, command).await;
    }
    shown.0 += session.last_words().await.unwrap().to_string().as_str();
    shown.process(&pglease).await;
    shown.command(&pglease, &["drain"]).await;
    assert!(pglease.wait_exit(PATIENCE).await.success());
    shown.log(&pglease).await;
    assert!(shown.0.contains("admin.rotate") && shown.0.contains("end_is_final"), "{}", shown.0);

    let answers = vault.text();
    let leases = values_of(&answers, "lease_id");
    let leases: Vec<_> = leases.iter().map(|lease| lease.rsplit('/').next().unwrap().to_owned()).collect();
    let names = ["client_token", "accessor", "password"];
    let secrets = names.map(|name| (name, values_of(&answers, name)));
    let secret_ids = vec![secret_id.to_owned(), WRONG_SECRET_ID.to_owned()];
    for (name, secrets) in secrets.into_iter().chain([("lease id", leases), ("secret_id", secret_ids)]) {
        assert!(secrets.len() >= 2, "{name}");
        for secret in secrets {
            shown.assert_without(name, secret);
        }
    }
}

/// One operation of Vault goes wrong, with the secrets that it knows of in the answer.
struct Fault {
    path: &'static str,
    status: u16,
    body: String,
    /// What the log says of it.
    event: &'static str,
}

#[tokio::test]
async fn vault_that_fails_with_secrets_in_its_answers_makes_nobody_else_tell_them() {
    let world = World::shared(WorldOptions::default()).await;
    // The credential that the scripted Vault hands out.
    let sql = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}' IN ROLE {}", world.group("app_rw"));
    world.superuser.batch_execute(&sql).await.unwrap();
    let world = Arc::new(world);
    let jwt = fs::read_to_string(world.jwt_file()).unwrap();

    let refusal = |secrets: &[&str]| json!({ "errors": secrets }).to_string();
    let token_twice = format!(r#"{{"auth":{{"client_token":"{TOKEN}","lease_duration":"{TOKEN}"}}}}"#);
    let password_for_seconds = format!(r#"{{"lease_id":"{LEASE}","lease_duration":"{PASSWORD}"}}"#);
    let password_for_data = format!(r#"{{"lease_id":"{LEASE}","lease_duration":60,"data":"{PASSWORD}"}}"#);
    let fault = |path, status, body: String, event| Fault { path, status, body, event };
    let mut cases = JoinSet::new();
    for fault in [
        fault("login", 403, refusal(&["1 error occurred:\n", &jwt]), "login.failed"),
        fault("login", 500, refusal(&[&jwt]), "login.failed"),
        fault("login", 200, format!(r#"{{"auth":{{"client_token":["{TOKEN}"]}}}}"#), "login.failed"),
        fault("login", 200, token_twice, "login.failed"),
        fault("login", 200, format!("{TOKEN} {jwt}"), "login.failed"),
        fault("creds", 403, refusal(&[TOKEN]), "creds.failed"),
        fault("creds", 500, refusal(&["x", TOKEN, "y"]), "creds.failed"),
        fault("creds", 200, password_for_seconds, "creds.failed"),
        fault("creds", 200, password_for_data, "creds.failed"),
        fault("lookup-self", 403, refusal(&[TOKEN]), "lease.issued"),
        fault("leases/renew", 400, refusal(&["lease not found:", LEASE, TOKEN]), "lease.renew_failed"),
        fault("leases/renew", 500, refusal(&[LEASE]), "lease.renew_failed"),
        fault("leases/renew", 200, format!(r#"{{"lease_duration":"{LEASE}"}}"#), "lease.renew_failed"),
        fault("renew-self", 403, refusal(&[TOKEN]), "token.renew_failed"),
        fault("renew-self", 200, format!(r#"{{"auth":"{TOKEN}"}}"#), "token.renew_failed"),
        fault("revoke-self", 500, refusal(&[TOKEN]), "lease.orphaned"),
        // Nothing goes wrong in Vault, but upstream knows another password.
        fault("creds", 200, creds(LEASE, "postgres"), "lease.issued"),
    ] {
        cases.spawn(run_fault(Arc::clone(&world), fault));
    }
    cases.join_all().await;
}

async fn run_fault(world: Arc<World<'static>>, fault: Fault) {
    let name = format!("{} {} {}", fault.path, fault.status, fault.event);
    let comes_to_serve = !["login", "creds"].contains(&fault.path);
    let (port, _vault) = scripted_vault(fault.path, fault.status, fault.body).await;
    let settings = world.settings_with("trace", &format!("http://127.0.0.1:{port}"), "connect_wait = \"2s\"");
    let pglease = start(&(settings + &world.route("db-app"))).await;
    let mut shown = Shown::default();

    if comes_to_serve {
        pglease.wait_ready().await;
        // On such a Vault's credential it may be ended at any time.
        let asked = async { pglease.connect("app").await?.batch_execute("SELECT count(*) FROM t").await };
        asked.await.unwrap_or_else(|error| shown.error(&error));
    } else {
        let refused = pglease.connect("app").await.err().unwrap();
        assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{name}: {refused:?}");
        shown.error(&refused);
    }
    if fault.event != "lease.orphaned" {
        pglease.wait_for_event(fault.event, PATIENCE).await;
    }
    shown.process(&pglease).await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    shown.log(&pglease).await;

    assert!(!pglease.events(fault.event).is_empty(), "{name}");
    shown.assert_without(&format!("{name}: the JWT"), fs::read(world.jwt_file()).unwrap());
    shown.assert_without(&format!("{name}: the token"), TOKEN);
    shown.assert_without(&format!("{name}: the password"), PASSWORD);
    shown.assert_without(&format!("{name}: the lease id"), LEASE.rsplit('/').next().unwrap());
}

/// An ordinary user cannot look into a process that is not dumpable, even if it is his own.
#[tokio::test]
async fn memory_and_environment_of_the_process_are_closed_to_its_own_user() {
    let world = World::shared(WorldOptions::default()).await;
    let uid = geteuid().is_root().then_some(NOBODY);
    let folder = Folder::create(uid);
    let [binary, file, jwt_file] = ["pglease", "pglease.toml", "token"].map(|name| folder.path().join(name));
    copy_program(Path::new(BINARY), &binary);
    fs::copy(world.jwt_file(), &jwt_file).unwrap();
    let jwt_file_of_world = world.jwt_file().display().to_string();
    let settings = world.settings().replace(&jwt_file_of_world, &jwt_file.display().to_string());
    fs::write(&file, settings + &world.route("db-app")).unwrap();
    for (path, mode) in [(&binary, 0o755), (&file, 0o644), (&jwt_file, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let pglease = Process::spawn(&Spawn {
        program: &binary,
        arguments: &["proxy".to_owned(), "--config-file".to_owned(), file.display().to_string()],
        environment: &[("CANARY", "in the environment")],
        folder: Path::new("/"),
        uid,
        stop: Signal::KILL,
    });
    let listens = |lines: &[String]| lines.iter().any(|line| line.contains("listen.ready")).then_some(());
    let is_listening = pglease.lines().wait_for(PATIENCE, listens).await.is_some();
    assert!(is_listening, "{}", pglease.lines().tail());

    let read = |pid: Pid, file: &str, bytes: &str| -> Output {
        let mut head = Command::new("head");
        head.args(["-c", bytes]).arg(format!("/proc/{pid}/{file}")).env("LC_ALL", "C");
        if let Some(uid) = uid {
            head.uid(uid).gid(uid);
        }
        head.output().unwrap()
    };
    for file in ["environ", "maps", "mem", "auxv"] {
        let denied = read(pglease.pid(), file, "1");
        let stderr = String::from_utf8(denied.stderr).unwrap();
        assert!(stderr.contains("Permission denied"), "{file}: {stderr}");
        assert!(denied.stdout.is_empty(), "{file}");
    }
    // Not for want of rights: another process of the same user is open, and so are the harmless files of this one.
    let postgres = world.servers.postgres.process().pid();
    let open = read(postgres, "environ", "1000");
    assert!(!open.stdout.is_empty(), "{open:?}");
    assert!(read(pglease.pid(), "status", "1000").stdout.starts_with(b"Name:\tpglease"));
}

/// What a client proves itself with, and what it is checked against.
#[tokio::test]
async fn verifiers_and_proofs_of_clients_are_not_shown() {
    let world = World::shared(WorldOptions::default()).await;
    let user = world.group("client");
    world.superuser.batch_execute(&format!("CREATE ROLE {user} PASSWORD '{PASSWORD}'")).await.unwrap();
    let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'");
    let verifier = world.superuser.rows(&sql).await.concat().into_iter().flatten().next().unwrap();
    let file = world.folder().join("users").display().to_string();
    fs::write(&file, format!("\"{user}\" \"{verifier}\"\n")).unwrap();
    let listen = format!("auth = \"password\"\nauth_file = {file:?}");
    let settings = world.settings_with("trace", &world.servers.openbao.address(), &listen);
    let pglease = pglease_with(&(settings.clone() + &world.route("db-app"))).await;
    let mut shown = Shown::default();

    let mut proofs = Vec::new();
    for (user, password, code) in [
        (user.as_str(), PASSWORD, None),
        (&user, WRONG_PASSWORD, Some("28P01")),
        ("nobody", PASSWORD, Some("28P01")),
    ] {
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let mut raw = Raw::connect(pglease.addresses()[0]).await;
        raw.send(&startup(&[("user", user), ("database", "app")])).await;
        raw.up_to(b'R').await;
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).unwrap();
        raw.send(&out).await;
        scram.update(&raw.message().await.unwrap().body[4..]).unwrap();
        let last = String::from_utf8(scram.message().to_vec()).unwrap();
        proofs.push(STANDARD.decode(last.split_once(",p=").unwrap().1).unwrap());
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).unwrap();
        raw.send(&out).await;
        let answer = raw.message().await.unwrap();
        let given = answer.fields().into_iter().find(|(name, _)| *name == 'C').map(|(_, code)| code);
        assert_eq!(given.as_deref(), code.filter(|_| answer.tag == b'E'), "{answer:?}");
    }
    for broken in [format!("\"{user}\" \"{WRONG_PASSWORD}\""), format!("\"{user}\" \"{verifier}x\"")] {
        fs::write(format!("{file}.next"), &broken).unwrap();
        fs::rename(format!("{file}.next"), &file).unwrap();
        let failures = pglease.events("auth_file.reload_failed").len();
        // Whoever is asked has the file looked at, once a second.
        until(async || {
            let mut raw = Raw::connect(pglease.addresses()[0]).await;
            raw.send(&startup(&[("user", "nobody"), ("database", "app")])).await;
            raw.up_to(b'R').await;
            pglease.events("auth_file.reload_failed").len() > failures
        })
        .await;

        // A start on such a file fails.
        let folder = Folder::create(None);
        let settings_file = folder.path().join("pglease.toml");
        fs::write(&settings_file, settings.clone() + &world.route("db-app")).unwrap();
        let mut start = Command::new(BINARY);
        start.args(["proxy", "--config-file"]).arg(&settings_file).env_clear();
        let failed = spawn_blocking(move || start.output().unwrap()).await.unwrap();
        let said = String::from_utf8(failed.stderr).unwrap();
        assert_eq!(failed.status.code(), Some(2), "{said}");
        assert!(said.contains("listen.auth_file") && said.contains("line 1"), "{said}");
        shown.0 += &said;
    }
    shown.process(&pglease).await;
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    shown.log(&pglease).await;
    assert!(shown.0.contains("wrong password of user"), "{}", shown.0);

    shown.assert_without("the password", PASSWORD);
    shown.assert_without("the wrong password", WRONG_PASSWORD);
    shown.assert_without("the verifier", verifier.strip_prefix("SCRAM-SHA-256$4096:").unwrap());
    let keys = scram_secrets(PASSWORD, &[verifier]);
    assert_eq!(keys.len(), 4);
    for secret in keys.into_iter().chain(proofs) {
        shown.assert_without("a key or a proof", secret);
    }
}

/// Every value that is not empty of the fields of this name, each once.
fn values_of(json: &str, name: &str) -> Vec<String> {
    let field = format!("\"{name}\":\"");
    let values = json.split(&field).skip(1).filter_map(|rest| rest.split('"').next());
    let mut values: Vec<_> = values.filter(|value| !value.is_empty()).map(str::to_owned).collect();
    values.sort();
    values.dedup();
    values
}

/// The four keys of SCRAM (RFC 5802, section 3) by that of the `verifiers` which is this password's.
fn scram_secrets(password: &str, verifiers: &[String]) -> Vec<Vec<u8>> {
    for verifier in verifiers {
        // SCRAM-SHA-256$4096:SALT$STORED:SERVER
        let mut parts = verifier.split(['$', ':']).skip(1);
        let iterations = parts.next().unwrap().parse().unwrap();
        let salt = STANDARD.decode(parts.next().unwrap()).unwrap();
        let stored = STANDARD.decode(parts.next().unwrap()).unwrap();

        let mut salted = vec![0; digest::SHA256_OUTPUT_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        let client = hmac::sign(&key, b"Client Key").as_ref().to_vec();
        if digest::digest(&digest::SHA256, &client).as_ref() == stored {
            let server = hmac::sign(&key, b"Server Key").as_ref().to_vec();
            return vec![salted, client, stored, server];
        }
    }
    Vec::new()
}

impl World<'_> {
    /// What PostgreSQL keeps of the passwords of the leased roles.
    async fn scram_keys(&self) -> Vec<String> {
        let sql =
            format!("SELECT rolpassword FROM pg_authid WHERE starts_with(rolname, '{}')", self.role_prefix());
        self.superuser.rows(&sql).await.into_iter().flatten().flatten().collect()
    }
}

/// A Vault on a free port that has one credential for everybody, and answers requests that end in `path` with
/// `status` and `body`.
async fn scripted_vault(path: &'static str, status: u16, body: String) -> (u16, JoinSet<()>) {
    let auth = format!(
        r#"{{"auth":{{"client_token":"{TOKEN}","lease_duration":10,"renewable":true,"num_uses":0}}}}"#
    );
    let answer = move |uri: Uri| {
        let is = |end: &str| uri.path().contains(end);
        let (status, body) = if is(path) {
            (status, body.clone())
        } else if is("login") || is("renew-self") {
            (200, auth.clone())
        } else if is("lookup-self") {
            (200, r#"{"data":{"ttl":10,"renewable":true,"num_uses":0}}"#.to_owned())
        } else if is("creds") {
            (200, creds(LEASE, ROLE))
        } else if is("leases/renew") {
            (200, format!(r#"{{"lease_id":"{LEASE}","lease_duration":10,"renewable":true}}"#))
        } else {
            (204, String::new())
        };
        async move { (StatusCode::from_u16(status).unwrap(), body) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        axum::serve(listener, Router::new().fallback(answer)).await.unwrap();
    });
    (port, tasks)
}

fn creds(lease: &str, user: &str) -> String {
    json!({
        "lease_id": lease, "lease_duration": 10, "renewable": true,
        "data": { "username": user, "password": PASSWORD },
    })
    .to_string()
}

const ROLE: &str = "leased_by_script";
const TOKEN: &str = "s.canaryTOKENcanaryTOKEN01";
const PASSWORD: &str = "canaryPASSWORD-canaryPASSWORD-01";
const WRONG_PASSWORD: &str = "canaryWRONG-canaryWRONG-canary-02";
const WRONG_SECRET_ID: &str = "canarySECRETID-canarySECRETID-01";
const LEASE: &str = "database/creds/db-app/canaryLEASEcanaryLEASE01";

const NOBODY: u32 = 65534;
