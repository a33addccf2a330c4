//! What an operator asks of a running pglease, and is told.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time;
use tokio_postgres::error::SqlState;

use crate::support::http_client;
use crate::support::pglease::Pglease;
use crate::support::tokenreview::Answer;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_for, pglease_with, rotate, start, until, until_revoked, user_of};

#[tokio::test]
async fn rotate_leaves_the_sessions_and_new_ones_get_the_new_user() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let held = pglease.connect("app").await.unwrap();
    let first = user_of(&held).await;

    let one = two_at_once(&world, &pglease, &["rotate"], 2).await;
    let second = user_of(&pglease.connect("app").await.unwrap()).await;
    assert!(text(&one).contains(&second), "{one:?}");
    assert_eq!(user_of(&held).await, first);
    assert_eq!(world.living_roles().await, [first, second]);
    assert_eq!(pglease.logged("rotation.done").await.len(), 1);

    rotate(&pglease, &[]).await;
    let status = pglease.run_command(&["status"]).await;
    let lines = text(&status);
    assert!(status.status.success() && lines.contains("g1") && lines.contains("g3   current"), "{lines}");
}

#[tokio::test]
async fn rotate_close_ends_the_sessions_of_all_older_credentials_and_revokes_these() {
    for revocation in [Revocation::NoLogin, Revocation::Drop] {
        let vault_roles = vec![VaultRole { revocation, ..VaultRole::default() }];
        let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
        let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
        let pglease = pglease_with(&(world.settings() + &route)).await;
        let oldest = pglease.connect("app").await.unwrap();
        rotate(&pglease, &[]).await;
        let idle = pglease.connect("app").await.unwrap();
        let busy = pglease.connect("app").await.unwrap();
        let statement = busy.batch_execute("SELECT pg_sleep(600)");
        let in_transaction = pglease.connect("app").await.unwrap();
        in_transaction.batch_execute("BEGIN; INSERT INTO t VALUES (1001)").await.unwrap();

        let closing = async {
            let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)' AND state = 'active'";
            until(async || !world.superuser.rows(sql).await.is_empty()).await;
            two_at_once(&world, &pglease, &["rotate", "--close"], 3).await
        };
        let (cut, closed) = tokio::join!(statement, closing);

        // When the command returns, no older credential is left.
        let current = user_of(&pglease.connect("app").await.unwrap()).await;
        assert!(text(&closed).contains(&current), "{closed:?}");
        until(async || world.living_roles().await == [current.clone()]).await;
        let told = cut.unwrap_err();
        assert_eq!(told.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{told:?}");
        for session in [oldest, idle, in_transaction] {
            let told = session.last_words().await.unwrap();
            assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{told:?}");
            assert!(told.detail().is_some_and(|detail| detail.contains("rotate --close")), "{told:?}");
        }
        pglease.wait_for_events("session.end", 5, PATIENCE).await;
        assert_eq!(world.superuser.rows("SELECT 1 FROM t WHERE id = 1001").await.len(), 0);
    }
}

/// What a command prints that is run twice while the rotation is under way: the same. With it, so many were asked for.
async fn two_at_once(world: &World<'_>, pglease: &Pglease, command: &[&str], asked: usize) -> Output {
    world.token_review.set_answer(Answer::Status(500));
    let (one, other, ()) = tokio::join!(pglease.run_command(command), pglease.run_command(command), async {
        pglease.wait_for_events("admin.rotate", asked, PATIENCE).await;
        world.token_review.set_answer(Answer::Honest);
    });
    assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
    assert_eq!(text(&one), text(&other));
    one
}

#[tokio::test]
async fn rotate_while_vault_is_away_says_so_and_stays_wanted() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let held = pglease.connect("app").await.unwrap();
    world.token_review.set_answer(Answer::Status(500));
    let asked = pglease.run_command(&["rotate", "--close"]).await;
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(
        text(&asked).contains("not done yet") && text(&asked).contains("login denied (403)"),
        "{asked:?}"
    );
    assert!(!held.is_closed());

    world.token_review.set_answer(Answer::Honest);
    let told = time::timeout(PATIENCE, held.last_words()).await.unwrap().unwrap();
    assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN);
    pglease.connect("app").await.unwrap();
}

#[tokio::test]
async fn rotate_reads_the_password_of_a_static_role_and_close_ends_the_sessions_on_the_old_one() {
    let world = World::shared(WorldOptions::default()).await;
    let (db_role, vault_path) = world.add_static_role(86_400).await;
    let pglease = pglease_with(&(world.settings() + &world.route_on(&vault_path))).await;
    let held = pglease.connect("app").await.unwrap();
    world.servers.openbao.write(&format!("{}/rotate-role/st", world.engine()), json!({})).await;

    let asked = pglease.run_command(&["rotate", "--close"]).await;
    assert!(asked.status.success() && text(&asked).contains(&format!("{db_role} serves, g2")), "{asked:?}");
    assert_eq!(held.last_words().await.unwrap().code(), &SqlState::ADMIN_SHUTDOWN);
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, db_role);
    assert_eq!(pglease.logged("rotation.done").await[0]["trigger"], "asked");
    let status = pglease.run_command(&["status"]).await;
    assert!(text(&status).contains("(static): serving"), "{status:?}");
    // Until Vault changes it, of a day.
    let generations = pglease.status().await["chains"][0]["generations"].clone();
    let current = generations.as_array().unwrap().last().unwrap();
    let seconds = |name: &str| current[name].as_u64().unwrap();
    let (left, whole) = (seconds("password_seconds"), seconds("password_ttl_seconds"));
    assert!(0 < left && left <= whole && whole <= 86_400, "{current}");
    assert!(text(&status).contains(", password ("), "{status:?}");
    let page = pglease.admin_page().await;
    assert!(page.contains("Password"), "{page}");
}

#[tokio::test]
async fn drain_by_command_is_sigterms_and_returns_at_the_end() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let idle = pglease.connect("app").await.unwrap();
    let drained = pglease.run_command(&["drain"]).await;
    assert!(drained.status.success() && text(&drained) == "drained\n", "{drained:?}");
    assert!(idle.last_words().await.is_some_and(|told| told.code() == &SqlState::ADMIN_SHUTDOWN));
    assert_eq!(pglease.wait_exit(PATIENCE).await.code(), Some(0));
    until_revoked(&world, &pglease).await;

    let nobody = pglease.run_command(&["status"]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&nobody.stderr).contains("nobody listens on admin.address"),
        "{nobody:?}"
    );
}

#[tokio::test]
async fn sigterm_after_a_drain_by_command_does_not_cut_it_short() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + "[drain]\ndeadline = \"1m\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("BEGIN").await.unwrap();

    let asked = async {
        pglease.wait_for_event("drain.start", PATIENCE).await;
        pglease.sigterm();
        for _ in 0..20 {
            session.batch_execute("SELECT 1").await.unwrap();
        }
        session.batch_execute("COMMIT").await.unwrap();
    };
    let (drained, ()) = tokio::join!(pglease.run_command(&["drain"]), asked);
    assert!(drained.status.success(), "{drained:?}");
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert!(pglease.events("drain.cut").is_empty());
}

#[tokio::test]
async fn status_is_as_documented() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("SET application_name = 'set later'; BEGIN").await.unwrap();
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    rotate(&pglease, &[]).await;
    // What its client has read is told a moment later.
    until(async || pglease.status().await["sessions"]["states"]["in_transaction"] == 1).await;

    let printed: Value =
        serde_json::from_slice(&pglease.run_command(&["status", "--json"]).await.stdout).unwrap();
    for status in [printed, pglease.status().await] {
        let docs = include_str!("../../docs/status.md").split("<!-- status -->\n```json").nth(1).unwrap();
        assert_shape("status", &serde_json::from_str(docs.split("```").next().unwrap()).unwrap(), &status);
        let chain = &status["chains"][0];
        assert_eq!((&chain["current"], &chain["clients_waiting"]), (&"g2".into(), &0.into()));
        assert_eq!(chain["vault_path"], world.vault_path("db-app"));
        let [held, current] = &chain["generations"].as_array().unwrap()[..] else { panic!("{chain}") };
        assert_eq!((&held["state"], &held["holders"]), (&"superseded".into(), &1.into()));
        assert_eq!(held["db_role"], user_of(&session).await);
        assert_eq!((&current["state"], &current["holders"]), (&"current".into(), &0.into()));

        let [listed] = &status["sessions"]["list"].as_array().unwrap()[..] else { panic!("{status}") };
        assert_eq!((&listed["database"], &listed["generation"]), (&"app".into(), &"g1".into()));
        assert_eq!((&listed["pid"], &listed["state"]), (&pid.into(), &"in_transaction".into()));
        assert!(listed["frontend_bytes"].as_u64() > Some(50), "{listed}");
        let host = &status["upstreams"]["hosts"][0];
        assert!(host["logins"].as_u64() >= Some(3) && host["last_ok_at"].is_u64(), "{host}");
        let creds =
            |requests: &&Value| requests["operation"] == "creds" && requests["count"].as_u64() >= Some(2);
        assert!(status["vault"]["requests"].as_array().unwrap().iter().any(|of| creds(&of)), "{status}");
        assert_eq!(status["verdict"][0]["fault"], "none", "{status}");
    }
}

/// Whether `real` has the fields of `documented`, each of its kind. `null` stands for anything.
fn assert_shape(place: &str, documented: &Value, real: &Value) {
    match (documented, real) {
        (Value::Object(documented), Value::Object(real)) => {
            let names = |fields: &serde_json::Map<String, Value>| fields.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(documented), names(real), "{place}");
            for (name, value) in documented {
                assert_shape(&format!("{place}.{name}"), value, &real[name]);
            }
        }
        (Value::Array(documented), Value::Array(real)) => {
            for value in real {
                assert_shape(place, &documented[0], value);
            }
        }
        (Value::Null, _)
        | (_, Value::Null)
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_)) => {}
        (documented, real) => panic!("{place}: {real} where {documented} is documented"),
    }
}

#[tokio::test]
async fn without_control_only_the_status_is_answered() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings().replace("control = true", "control = false") + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    for command in [&["rotate"][..], &["rotate", "--close"], &["drain"]] {
        let refused = pglease.run_command(command).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains("admin.control = true"), "{refused:?}");
    }
    assert!(pglease.run_command(&["status"]).await.status.success());
    assert_eq!(pglease.status().await["phase"], "serving");
}

#[tokio::test]
async fn no_web_page_gets_anything_although_control_is_on() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let port = pglease.admin().rsplit_once(':').unwrap().1;
    // A page of the attacker's own name, which was made to point here.
    let rebound = format!("pglease.example.com:{port}");
    for (name, value) in [
        ("origin", "http://localhost:3000"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("content-type", "text/plain"),
        ("host", &rebound),
        ("host", "localhost.example.com"),
    ] {
        for path in ["/drain", "/quitquitquit", "/rotate?close=true", "/log?level=error"] {
            let url = format!("http://{}{path}", pglease.admin());
            let asked = http_client().post(url).header(name, value).send().await.unwrap();
            assert_eq!(asked.status(), 403, "{path} {name}: {value}");
        }
    }
    for path in ["/", "/status"] {
        let url = format!("http://{}{path}", pglease.admin());
        let asked = http_client().get(url).header("host", &rebound).send().await.unwrap();
        let status = asked.status();
        let said = asked.text().await.unwrap();
        assert!(status == 403 && !said.contains("vault"), "{path}: {said}");
    }
    // Who may ask does so after them, and is the first that anything was done for.
    rotate(&pglease, &[]).await;
    assert_eq!(pglease.logged("rotation.done").await.len(), 1);
    assert!(pglease.events("drain.start").is_empty() && pglease.events("admin.log_level").is_empty());
    assert_eq!(pglease.status().await["phase"], "serving");
    pglease.connect("app").await.unwrap();
}

#[tokio::test]
async fn default_address_is_done_without_where_it_is_taken_and_a_written_one_must_be_had() {
    let world = World::shared(WorldOptions::default()).await;
    // Whoever has it, it is taken.
    let _taken = TcpListener::bind("127.0.0.1:9633").await;
    let settings = world.settings() + &world.route("db-app");
    let (before, rest) = settings.split_once("[admin]\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    let without = start(&[before, after].concat()).await;
    without.wait_for_event("admin.not_bound", PATIENCE).await;
    without.wait_ready().await;

    let file = world.folder().join("pglease.toml");
    fs::write(&file, format!("{before}[admin]\naddress = \"127.0.0.1:9633\"\n\n{after}")).unwrap();
    let proxy = Command::new(BINARY).arg("proxy").arg("--config-file").arg(file).kill_on_drop(true).output();
    let refused = time::timeout(PATIENCE, proxy).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("admin.address = \"127.0.0.1:9633\""),
        "{refused:?}"
    );
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
