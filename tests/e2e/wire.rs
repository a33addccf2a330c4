//! What a client sees of the wire: as if it spoke to PostgreSQL.

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_for, pglease_with, until};

#[tokio::test]
async fn statement_is_cancelled_and_the_session_goes_on() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let cancel = session.cancel_token();

    let sleep = session.batch_execute("SELECT pg_sleep(600)");
    let cancelling = async {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep%' AND state = 'active'";
        until(async || !world.superuser.rows(sql).await.is_empty()).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleep, cancelling);

    assert_eq!(slept.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    session.batch_execute("SELECT 1").await.unwrap();
    // Upstream acts on it before pglease knows that it has.
    until(async || pglease.metric("pglease_cancel_requests_total", "result=\"delivered\"").await >= 1.0)
        .await;
}

#[tokio::test]
async fn client_gets_the_pid_of_its_own_backend_and_every_parameter_status() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut client = TcpStream::connect(pglease.addresses()[0]).await.unwrap();
    let mut out = BytesMut::new();
    let parameters =
        [("user", "app"), ("database", "app"), ("application_name", "by hand"), ("options", "-c geqo=off")];
    frontend::startup_message(parameters, &mut out).unwrap();
    client.write_all(&out).await.unwrap();

    let (mut parameters, mut pid, mut bytes, mut is_ready) = (Vec::new(), None, BytesMut::new(), false);
    while !is_ready {
        assert!(client.read_buf(&mut bytes).await.unwrap() > 0, "closed at once");
        while let Some(message) = Message::parse(&mut bytes).unwrap() {
            if let Message::ParameterStatus(status) = message {
                parameters.push(status.name().unwrap().to_owned());
            } else if let Message::BackendKeyData(key) = message {
                pid = Some(key.process_id());
            } else {
                is_ready |= matches!(message, Message::ReadyForQuery(_));
            }
        }
    }

    let sql = format!("SELECT application_name FROM pg_stat_activity WHERE pid = {}", pid.unwrap());
    assert_eq!(world.superuser.rows(&sql).await, [[Some("by hand".to_owned())]]);
    for name in ["server_version", "client_encoding", "TimeZone", "session_authorization"] {
        assert!(parameters.iter().any(|parameter| parameter == name), "no {name} in {parameters:?}");
    }
}

#[tokio::test]
async fn client_that_stops_sending_still_gets_its_answer() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut client = TcpStream::connect(pglease.addresses()[0]).await.unwrap();
    let mut out = BytesMut::new();
    frontend::startup_message([("user", "app"), ("database", "app")], &mut out).unwrap();
    frontend::query("SELECT 'answered' FROM pg_sleep(0.3)", &mut out).unwrap();
    client.write_all(&out).await.unwrap();
    client.shutdown().await.unwrap();

    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.windows(8).any(|part| part == b"answered"));
    assert!(answer.ends_with(b"Z\0\0\0\x05I"));
}

#[tokio::test]
async fn routes_are_chosen_by_database_and_user_each_on_its_own_credentials() {
    let vault_roles = vec![
        VaultRole { name: "db-app", groups: &["app_rw"], ..VaultRole::default() },
        VaultRole { name: "db-report", groups: &["app_ro"], ..VaultRole::default() },
    ];
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let reports = world.route("db-report") + "database = \"app\"\nuser = \"reports\"\n";
    let app = world.route("db-app") + "database = \"app\"\n";
    let settings =
        world.settings_with("debug", &world.servers.openbao.address(), "max_sessions = 2") + &reports + &app;
    let pglease = pglease_with(&settings).await;
    let reports = pglease.connect_as("app", "reports").await.unwrap();
    reports.batch_execute("SELECT count(*) FROM t").await.unwrap();
    let refused = reports.batch_execute("INSERT INTO t VALUES (2001)").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let app = pglease.connect("app").await.unwrap();
    app.batch_execute("INSERT INTO t VALUES (2001)").await.unwrap();

    let refused = pglease.connect("app").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    drop((reports, app));
    until(async || pglease.connect("app").await.is_ok()).await;
    // Those that are gone may have their places for a moment still.
    until(async || {
        let refused = pglease.connect("elsewhere").await.err().unwrap();
        let is_full = refused.code() == Some(&SqlState::TOO_MANY_CONNECTIONS);
        assert!(is_full || refused.code() == Some(&SqlState::INVALID_CATALOG_NAME), "{refused:?}");
        !is_full
    })
    .await;
}

#[tokio::test]
async fn upstreams_own_refusal_reaches_the_client_unchanged_and_costs_no_credential() {
    let world = World::shared(WorldOptions::default()).await;
    let anywhere = world.route("db-app").replace(&format!("/{}?", world.database()), "/?");
    let pglease = pglease_with(&(world.settings() + &anywhere)).await;

    let refused = pglease.connect("no_such_database").await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::INVALID_CATALOG_NAME));
    let message = refused.as_db_error().unwrap().message().to_owned();
    assert_eq!(message, "database \"no_such_database\" does not exist");
    pglease.connect(&world.database()).await.unwrap();
    assert_eq!(world.leased_roles().await.len(), 1);
}

#[tokio::test]
async fn upstream_that_goes_away_is_reported_as_such() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    // An administrator's own words are PostgreSQL's, and the only ones.
    world.superuser.rows(&format!("SELECT pg_terminate_backend({pid})")).await;
    until(async || session.is_closed()).await;
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "upstream_closed", "{end}");
}
