//! TLS and SCRAM towards upstream.

use std::fs;

use tokio_postgres::error::SqlState;

use crate::raw::{Message, Raw};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, expect_rest, pglease_for, pglease_with, start, until};

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

    // Unproven, as nobody can be logged in to.
    pglease.wait_for_event("lease.serving", PATIENCE).await;
    let refused = pglease.connect("app").await.err().unwrap();
    let code = refused.code().unwrap();
    assert!(
        [SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, SqlState::CANNOT_CONNECT_NOW].contains(code),
        "{refused:?}"
    );
    assert_eq!(world.leased_roles().await.len(), 1);
}

/// Around whole numbers of TLS records, of the relay's buffer, and of what it reads in one turn: an answer must not
/// wait inside a layer until something else happens.
fn sizes() -> impl Iterator<Item = usize> {
    let around = |size: usize| (size - 100..size + 20).step_by(3);
    [16_384, 2 * 16_384, 65_536, 2 * 65_536, 131_072 + 16_384, 524_288].into_iter().flat_map(around)
}

#[tokio::test]
async fn answer_of_every_size_comes_whole_and_without_a_nudge() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let parameters = [("user", "app"), ("database", "app")];
    let (mut raw, _) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    for size in sizes() {
        raw.query(&format!("SELECT repeat('x', {size})")).await;
        let answer = raw.up_to(b'Z').await;
        let [_, Message { tag: b'D', body }, _, _] = &answer[..] else { panic!("{size}") };
        assert_eq!(body.len(), 6 + size);
        assert!(body[6..].iter().all(|&byte| byte == b'x'), "{size}");
    }

    // A client that stops reading until upstream is held up by it.
    raw.query("SELECT repeat('x', 30000000) || pg_backend_pid() AS held_up").await;
    let sql = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%held_up' AND wait_event = 'ClientWrite'";
    until(async || !world.superuser.rows(sql).await.is_empty()).await;
    let answer = raw.up_to(b'Z').await;
    assert!(answer[1].body.len() > 30_000_000);
    expect_rest(&pglease).await;
}

#[tokio::test]
async fn copy_of_every_size_arrives_whole_and_without_a_nudge() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let parameters = [("user", "app"), ("database", "app")];
    let (mut raw, _) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    raw.query("CREATE TEMP TABLE copied (line text)").await;
    raw.up_to(b'Z').await;
    for size in sizes() {
        raw.query("TRUNCATE copied; COPY copied FROM STDIN").await;
        raw.up_to(b'G').await;
        let line = [&vec![b'x'; size][..], b"\n"].concat();
        let len = u32::try_from(line.len() + 4).unwrap().to_be_bytes();
        raw.send(&[b"d", &len[..], &line, b"c\0\0\0\x04"].concat()).await;
        let answer = raw.up_to(b'Z').await;
        assert_eq!(answer[0].body, b"COPY 1\0", "{size}: {answer:?}");

        raw.query("COPY copied TO STDOUT").await;
        let answer = raw.up_to(b'Z').await;
        assert!(answer.iter().any(|message| message.tag == b'd' && message.body == line), "{size}");
    }
    expect_rest(&pglease).await;
}

/// Whether PostgreSQL sees TLS, as a session through pglease finds it.
async fn ssl_of_a_session(world: &World<'_>, route: &str) -> String {
    let pglease = pglease_with(&(world.settings() + route)).await;
    let session = pglease.connect("app").await.unwrap();
    let sql = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    session.query_one(sql, &[]).await.unwrap().get(0)
}
