//! The two HTTP ports, asked by those who mean no good: bounded, and no session notices.

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::http_client;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_for, until};

#[tokio::test]
async fn flood_of_bad_requests_is_bounded_and_no_session_notices() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let before = pglease.status().await["process"]["descriptors"].as_u64().unwrap();
    let at_rest = pglease.memory_kib("VmRSS");

    let http = pglease.http_url("").trim_start_matches("http://").to_owned();
    let endless = [&b"GET /status HTTP/1.1\r\nx: "[..], &b"x".repeat(200_000)].concat();
    let bad: [&[u8]; 5] =
        [b"", b"G", b"GET /status HTTP/1.1\r\nhost: localhost\r\nx: y", b"\0\xff\r\n\r\n", &endless];
    let mut held = Vec::new();
    for number in 0..MANY {
        for address in [http.as_str(), pglease.admin()] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Who has lost its place already, or has said too much, is gone.
            let _ = stream.write_all(bad[number % bad.len()]).await;
            held.push(stream);
        }
        if number % 20 == 0 {
            session.batch_execute("SELECT 1").await.unwrap();
        }
    }
    // Nobody of them has let go, and both ports answer.
    until(async || pglease.get("/livez").await.0 == 200).await;
    pglease.connect("app").await.unwrap().batch_execute("SELECT 1").await.unwrap();
    until(async || {
        let Some(status) = asked(pglease.admin()).await else { return false };
        // 32 connections at each port, a session that has just ended, and what is asked here.
        status["process"]["descriptors"].as_u64().unwrap() <= before + 2 * 32 + 8
    })
    .await;
    session.batch_execute("SELECT 1").await.unwrap();
    let now = pglease.memory_kib("VmRSS");
    assert!(now < at_rest + 16 * 1024, "{at_rest} kB at rest, {now} kB with {} connections", held.len());
}

/// `/status`, where it answers.
async fn asked(admin: &str) -> Option<Value> {
    http_client().get(format!("http://{admin}/status")).send().await.ok()?.json().await.ok()
}

/// To each port.
const MANY: usize = 300;
