//! The relay when one side is faster than the other, or gone: bytes right, memory bounded.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;
use ring::digest::{Context, SHA256};
use rustix::process::{Pid, Signal, kill_process};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;

use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::process::freeze;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_for, pglease_with, until};

#[tokio::test]
async fn copy_of_256_mib_each_way_brings_every_byte_in_bounded_memory() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut client = Client::connect(&pglease).await;
    let at_rest = pglease.memory_kib("VmRSS");

    client.query("CREATE TEMP TABLE big (line text); COPY big FROM STDIN").await;
    client.skip_to(COPY_IN_RESPONSE).await;
    client.send_lines(0..LINES_OF_256_MIB).await.unwrap();
    client.finish_copy().await;
    client.query(&sql_of_whole_lines("big")).await;
    assert_eq!(client.value().await, format!("{LINES_OF_256_MIB} true"));

    client.query(&sql_of_copy_out(LINES_OF_256_MIB)).await;
    client.skip_to(COPY_OUT_RESPONSE).await;
    assert_eq!(client.digest_of_copy().await, digest_of_lines(LINES_OF_256_MIB));

    let peak = pglease.memory_kib("VmHWM");
    assert!(peak < at_rest + ROOM_KIB, "{at_rest} KiB at rest, {peak} KiB at most");
}

#[tokio::test]
async fn client_that_stops_reading_holds_up_nobody_and_gets_every_byte_in_the_end() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let bystander = pglease.connect("app").await.unwrap();
    let mut client = Client::connect(&pglease).await;
    let at_rest = pglease.memory_kib("VmRSS");

    client.query(&sql_of_copy_out(LINES_OF_256_MIB)).await;
    until_nothing_moves(&pglease).await;
    // What is on its way lies in the buffers of the sockets.
    assert!(pglease.metric("pglease_bytes_total", "backend").await < 64.0 * MIB);
    bystander.query("SELECT count(*) FROM t", &[]).await.unwrap();
    let peak = pglease.memory_kib("VmHWM");
    assert!(peak < at_rest + ROOM_KIB, "{at_rest} KiB at rest, {peak} KiB at most");

    client.skip_to(COPY_OUT_RESPONSE).await;
    assert_eq!(client.digest_of_copy().await, digest_of_lines(LINES_OF_256_MIB));
}

#[tokio::test]
async fn upstream_that_stops_reading_holds_up_nobody_and_gets_every_byte_in_the_end() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let bystander = pglease.connect("app").await.unwrap();
    let mut client = Client::connect(&pglease).await;
    client.query("CREATE TEMP TABLE big (line text)").await;
    client.skip_to(READY_FOR_QUERY).await;
    let at_rest = pglease.memory_kib("VmRSS");

    let stopped = Stopped::backend(client.pid).await;
    client.query("COPY big FROM STDIN").await;
    {
        let sending = client.send_lines(0..LINES_OF_256_MIB);
        let watching = async {
            until_nothing_moves(&pglease).await;
            bystander.query("SELECT count(*) FROM t", &[]).await.unwrap();
            let peak = pglease.memory_kib("VmHWM");
            assert!(peak < at_rest + ROOM_KIB, "{at_rest} KiB at rest, {peak} KiB at most");
            assert!(pglease.metric("pglease_bytes_total", "frontend").await < 64.0 * MIB);
            drop(stopped);
        };
        let (sent, ()) = tokio::join!(sending, watching);
        sent.unwrap();
    }
    client.finish_copy().await;
    client.query(&sql_of_whole_lines("big")).await;
    assert_eq!(client.value().await, format!("{LINES_OF_256_MIB} true"));
}

#[tokio::test]
async fn client_that_vanishes_unread_ends_its_session_and_the_statement() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut client = Client::connect(&pglease).await;
    client.query(&sql_of_copy_out(LINES_OF_256_MIB)).await;
    until_nothing_moves(&pglease).await;

    let pid = client.pid;
    drop(client);
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "client_failed", "{end}");
    until(async || !is_backend(&world, pid).await).await;
}

#[tokio::test]
async fn client_that_vanishes_while_upstream_does_not_read_leaves_nothing_half_done() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut client = Client::connect(&pglease).await;
    client.query("COPY t FROM STDIN").await;
    client.skip_to(COPY_IN_RESPONSE).await;

    let pid = client.pid;
    let stopped = Stopped::backend(pid).await;
    {
        let mut number = 1_000_000;
        let sending = async {
            loop {
                let lines: Vec<_> = (number..number + 1000).map(|id| format!("{id}\n")).collect();
                number += 1000;
                client.send_copy_data(lines.concat().as_bytes()).await.unwrap();
            }
        };
        tokio::select! {
            never = sending => never,
            () = until_nothing_moves(&pglease) => {}
        }
    }
    client.reset();
    drop(stopped);
    pglease.wait_for_event("session.end", PATIENCE).await;
    until(async || !is_backend(&world, pid).await).await;
    assert_eq!(world.superuser.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
}

#[tokio::test]
async fn upstream_that_vanishes_costs_its_own_sessions_only_and_its_bytes_are_right_up_to_there() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.postgres.port()).await;
    let through = |port: u16| format!("localhost:{port}/");
    let route = world
        .route("db-app")
        .replace(&through(world.servers.postgres.port()), &through(gate.address().port()));
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let mut reading = Client::connect(&pglease).await;
    let mut unread = Client::connect(&pglease).await;
    let idle = pglease.connect("app").await.unwrap();

    unread.query(&sql_of_copy_out(LINES_OF_256_MIB)).await;
    until_nothing_moves(&pglease).await;
    reading.query(&sql_of_copy_out(LINES_OF_256_MIB)).await;
    reading.skip_to(COPY_OUT_RESPONSE).await;
    gate.close().await;

    reading.expect_lines_up_to_a_loss().await;
    // Who does not read is not told before what has been on its way.
    unread.skip_to(COPY_OUT_RESPONSE).await;
    unread.expect_lines_up_to_a_loss().await;
    let told = idle.last_words().await.unwrap();
    assert_eq!(told.code().code(), "08006");
    let end = pglease.wait_for_events("session.end", 3, PATIENCE).await;
    assert_eq!(end["blame"], "upstream", "{end}");

    gate.open().await;
    pglease.connect("app").await.unwrap().query("SELECT count(*) FROM t", &[]).await.unwrap();
}

#[tokio::test]
async fn client_that_stops_sending_gets_all_of_a_long_answer() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut client = Client::connect(&pglease).await;
    client.query(&sql_of_copy_out(LINES_OF_32_MIB)).await;
    until_nothing_moves(&pglease).await;
    client.stream.shutdown().await.unwrap();

    client.skip_to(COPY_OUT_RESPONSE).await;
    assert_eq!(client.digest_of_copy().await, digest_of_lines(LINES_OF_32_MIB));
    assert_eq!(client.message().await, None);
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "client_closed", "{end}");
}

/// A client without a library that would read for it.
struct Client {
    stream: TcpStream,
    read: BytesMut,
    /// Of its backend.
    pid: i32,
}

impl Client {
    async fn connect(pglease: &Pglease) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", pglease.port())).await.unwrap();
        let mut client = Self { stream, read: BytesMut::new(), pid: 0 };
        let mut startup = BytesMut::new();
        frontend::startup_message([("user", "app"), ("database", "app")], &mut startup).unwrap();
        client.stream.write_all(&startup).await.unwrap();
        client.pid = client.skip_to(BACKEND_KEY_DATA).await.get_i32();
        client.skip_to(READY_FOR_QUERY).await;
        client
    }

    async fn query(&mut self, sql: &str) {
        let mut query = BytesMut::new();
        frontend::query(sql, &mut query).unwrap();
        self.stream.write_all(&query).await.unwrap();
    }

    async fn send_lines(&mut self, numbers: std::ops::Range<u32>) -> std::io::Result<()> {
        for number in numbers {
            self.send_copy_data(line(number).as_bytes()).await?;
        }
        Ok(())
    }

    async fn send_copy_data(&mut self, data: &[u8]) -> std::io::Result<()> {
        let mut message = BytesMut::new();
        frontend::CopyData::new(data)?.write(&mut message);
        self.stream.write_all(&message).await
    }

    async fn finish_copy(&mut self) {
        let mut done = BytesMut::new();
        frontend::copy_done(&mut done);
        self.stream.write_all(&done).await.unwrap();
        self.skip_to(READY_FOR_QUERY).await;
    }

    /// Tag and body of the next message; `None` where the stream ends, in a message or between two.
    async fn message(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some((&[tag, l3, l2, l1, l0], _)) = self.read.split_first_chunk() {
                let len = usize::try_from(u32::from_be_bytes([l3, l2, l1, l0])).unwrap();
                if self.read.len() > len {
                    let mut message = self.read.split_to(1 + len);
                    message.advance(5);
                    return Some((tag, message));
                }
            }
            self.read.reserve(64 * 1024);
            match self.stream.read_buf(&mut self.read).await {
                Ok(len) if len > 0 => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    /// The body of the next message of this kind; no error may come before.
    async fn skip_to(&mut self, wanted: u8) -> BytesMut {
        loop {
            let (tag, body) = self.message().await.unwrap();
            assert_ne!(tag, ERROR_RESPONSE, "{}", body.escape_ascii());
            if tag == wanted {
                return body;
            }
        }
    }

    /// Whole lines in order, then the end: with a word where one may be said.
    async fn expect_lines_up_to_a_loss(&mut self) {
        for number in 0.. {
            let Some((tag, body)) = self.message().await else {
                return;
            };
            if tag == ERROR_RESPONSE {
                assert!(body.windows(6).any(|part| part == b"C08006"), "{}", body.escape_ascii());
                assert_eq!(self.message().await, None);
                return;
            }
            assert_eq!(tag, COPY_DATA, "{}", body.escape_ascii());
            assert_eq!(body, line(number).as_bytes());
        }
    }

    /// Of the data up to CopyDone, as they come; ReadyForQuery is read, too.
    async fn digest_of_copy(&mut self) -> Vec<u8> {
        let mut digest = Context::new(&SHA256);
        loop {
            let (tag, body) = self.message().await.unwrap();
            if tag == COPY_DONE {
                break;
            }
            assert_eq!(tag, COPY_DATA, "{}", body.escape_ascii());
            digest.update(&body);
        }
        self.skip_to(READY_FOR_QUERY).await;
        digest.finish().as_ref().to_vec()
    }

    /// The one value of the one row of the answer, as text.
    async fn value(&mut self) -> String {
        // Int16 number of columns, Int32 length.
        let row = self.skip_to(DATA_ROW).await;
        self.skip_to(READY_FOR_QUERY).await;
        String::from_utf8(row.get(6..).unwrap().to_vec()).unwrap()
    }

    /// Goes away without a word to the other side's kernel but RST.
    fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A backend that does nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    async fn backend(pid: i32) -> Self {
        let pid = Pid::from_raw(pid).unwrap();
        freeze(pid).await;
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

/// Of 8 KiB and the line feed, no two alike.
fn line(number: u32) -> String {
    let mut line = format!("{number:08}").repeat(1024);
    line.push('\n');
    line
}

fn digest_of_lines(count: u32) -> Vec<u8> {
    let mut digest = Context::new(&SHA256);
    for number in 0..count {
        digest.update(line(number).as_bytes());
    }
    digest.finish().as_ref().to_vec()
}

fn sql_of_copy_out(lines: u32) -> String {
    format!(
        "COPY (SELECT repeat(lpad(n::text, 8, '0'), 1024) FROM generate_series(0, {lines} - 1) n) TO STDOUT"
    )
}

/// How many different lines there are, and whether each is as it was sent.
fn sql_of_whole_lines(table: &str) -> String {
    format!(
        "SELECT concat(count(DISTINCT left(line, 8)), ' ', bool_and(line = repeat(left(line, 8), 1024))::text)
         FROM {table}"
    )
}

/// Waits until pglease has read nothing for a while: both sides are as far as they get.
async fn until_nothing_moves(pglease: &Pglease) {
    let (mut before, mut looks) = (0.0, 0);
    until(async || {
        time::sleep(Duration::from_millis(10)).await;
        let now = pglease.metric("pglease_bytes_total", "").await;
        looks = if now > before { 0 } else { looks + 1 };
        before = now;
        now > MIB && looks >= 10
    })
    .await;
}

async fn is_backend(world: &World<'_>, pid: i32) -> bool {
    let sql = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}");
    !world.superuser.rows(&sql).await.is_empty()
}

const BACKEND_KEY_DATA: u8 = b'K';
const COPY_DATA: u8 = b'd';
const COPY_DONE: u8 = b'c';
const COPY_IN_RESPONSE: u8 = b'G';
const COPY_OUT_RESPONSE: u8 = b'H';
const DATA_ROW: u8 = b'D';
const ERROR_RESPONSE: u8 = b'E';
const READY_FOR_QUERY: u8 = b'Z';

const MIB: f64 = 1024.0 * 1024.0;
const LINES_OF_256_MIB: u32 = 32 * 1024;
const LINES_OF_32_MIB: u32 = 4 * 1024;

/// What sessions under pressure may cost, with all that the allocator and TLS keep: 64 KiB each way.
const ROOM_KIB: u64 = 1024;
