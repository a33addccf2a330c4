//! TLS and SCRAM towards upstream.

use std::fs;

use tokio_postgres::error::SqlState;

use crate::support::world::{World, WorldOptions};
use crate::{pglease_with, start};

#[tokio::test]
async fn login_is_bound_to_the_tls_channel_where_that_is_required() {
    let world = World::shared(WorldOptions::default()).await;
    let route =
        world.route("db-app").replace("sslmode=verify-full", "sslmode=verify-full&channel_binding=require");
    assert_eq!(ssl_of_a_session(&world, &route).await, "true");
}

#[tokio::test]
async fn tls_without_verification_and_plain_tcp_are_used_where_they_are_asked_for() {
    let world = World::shared(WorldOptions::default()).await;
    let verified = world.route("db-app");
    let (address, _) = verified.split_once("?sslmode=").unwrap();
    for (ssl_mode, is_tls) in [("require", "true"), ("disable", "false")] {
        let vault_path = world.vault_path("db-app");
        let route = format!("{address}?sslmode={ssl_mode}\"\nvault_path = {vault_path:?}\n");
        assert_eq!(ssl_of_a_session(&world, &route).await, is_tls, "{ssl_mode}");
    }
}

#[tokio::test]
async fn server_that_no_ca_of_ours_vouches_for_gets_no_login_and_costs_one_credential() {
    let world = World::shared(WorldOptions::default()).await;
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = world.folder().join("other.pem");
    fs::write(&ca_file, other.cert.pem()).unwrap();
    let route = world
        .route("db-app")
        .replace(&world.servers.postgres.ca_file().display().to_string(), &ca_file.display().to_string());
    let settings =
        world.settings_with("debug", &world.servers.openbao.address(), "connect_wait = \"12s\"") + &route;
    let pglease = start(&settings).await;

    let refused = pglease.connect("app").await.err().unwrap();
    let code = refused.code().unwrap();
    assert!(
        [SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, SqlState::CANNOT_CONNECT_NOW].contains(code),
        "{refused:?}"
    );
    assert_eq!(world.leased_roles().await.len(), 1);
}

/// Whether PostgreSQL sees TLS, as a session through pglease finds it.
async fn ssl_of_a_session(world: &World<'_>, route: &str) -> String {
    let pglease = pglease_with(&(world.settings() + route)).await;
    let session = pglease.connect("app").await.unwrap();
    let sql = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    session.query_one(sql, &[]).await.unwrap().get(0)
}
