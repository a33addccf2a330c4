//! A client whose path dies without a word, which its keepalives find.

use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::startup;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_with, until};

#[tokio::test]
async fn client_that_vanishes_in_a_transaction_is_found_and_its_locks_are_let_go() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;
    let mut client = TcpStream::connect(pglease.addresses()[0]).await.unwrap();
    client.write_all(&startup(&[("user", "app"), ("database", "app")])).await.unwrap();
    client.write_all(b"Q\0\0\0\x22BEGIN; LOCK TABLE t; SELECT 1\0").await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"Z\0\0\0\x05T") {
        assert!(client.read_buf(&mut heard).await.unwrap() > 0, "{}", heard.escape_ascii());
    }

    // What comes is dropped by the kernel, unacknowledged: `BPF_RET | BPF_K` with 0.
    SockRef::from(&client).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    let end = pglease.wait_for_event("session.end", FOUR_MINUTES).await;
    assert_eq!((&end["reason"], &end["blame"]), (&"client_failed".into(), &"client".into()), "{end}");
    let sql = "SELECT 1 FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock'";
    until(async || world.superuser.rows(sql).await.is_empty()).await;
}

/// Keepalives take two.
const FOUR_MINUTES: Duration = Duration::from_mins(4);
