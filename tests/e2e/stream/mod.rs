//! The relayed stream: what a client does through pglease comes to the same as directly, message for message.

mod pipelines;
mod unasked;
mod large;
mod layers;
mod endings;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

use crate::raw::{Message, Raw};
use crate::support::pglease::Pglease;
use crate::support::world::{Leased, World};

/// `tests/long` has one of 256 MiB.
#[tokio::test]
async fn message_of_64_mib_passes_each_way_in_bounded_memory() {
    large::message_passes_each_way_in_bounded_memory(64 << 20).await;
}

/// The same client twice: before PostgreSQL, and before pglease.
struct Pair {
    direct: Raw,
    through: Raw,
    /// Of their backends.
    pids: [i32; 2],
}

impl Pair {
    /// `leased` is who logs in directly.
    async fn open(world: &World<'_>, pglease: &Pglease, leased: &Leased) -> Self {
        let address = ([127, 0, 0, 1], world.servers.postgres.port()).into();
        let database = world.database();
        let direct = [("user", leased.user.as_str()), ("database", &database)];
        let through = [("user", "app"), ("database", "app")];
        let ((direct, greeting), (through, greeted)) = tokio::join!(
            Raw::log_in(address, &direct, &leased.password),
            Raw::log_in(pglease.addresses()[0], &through, "")
        );
        Self { direct, through, pids: [pid(&greeting), pid(&greeted)] }
    }

    async fn send(&mut self, bytes: &[u8]) {
        tokio::join!(self.direct.send(bytes), self.through.send(bytes));
    }

    async fn query(&mut self, sql: &str) {
        self.send(&query(sql)).await;
    }

    async fn finish(&mut self) {
        tokio::join!(self.direct.finish(), self.through.finish());
    }

    /// What both are told, up to the first message of this kind.
    async fn up_to(&mut self, tag: u8) -> Vec<Message> {
        let (direct, through) = tokio::join!(self.direct.up_to(tag), self.through.up_to(tag));
        assert_eq!(through, direct);
        direct
    }

    /// What both are told up to the end.
    async fn rest(&mut self) -> Vec<Message> {
        let (direct, through) = tokio::join!(self.direct.rest(), self.through.rest());
        assert!(through == direct, "through:\n{through:#?}\ndirectly:\n{direct:#?}");
        direct
    }
}

/// Of BackendKeyData.
fn pid(greeting: &[Message]) -> i32 {
    let key = greeting.iter().find(|message| message.tag == b'K').unwrap();
    i32::from_be_bytes(key.body[..4].try_into().unwrap())
}

fn query(sql: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::query(sql, &mut out).unwrap();
    out.to_vec()
}

/// Parse, Bind and Execute of the unnamed statement and portal.
fn statement(sql: &str, max_rows: i32) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::parse("", sql, [], &mut out).unwrap();
    let bound = frontend::bind("", "", [], [], |(), _| Ok(IsNull::No), [], &mut out);
    assert!(bound.is_ok());
    frontend::execute("", max_rows, &mut out).unwrap();
    out.to_vec()
}

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

const SYNC: &[u8] = b"S\0\0\0\x04";
const FLUSH: &[u8] = b"H\0\0\0\x04";
const TERMINATE: &[u8] = b"X\0\0\0\x04";
