//! Messages of a size that nobody should hold in memory. `tests/long` includes this file as well.

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::steps::pglease_with;
use crate::support::world::{World, WorldOptions};

/// A parameter up and a row down of so many bytes, each in one message; pglease holds little of either at any time.
pub(crate) async fn message_passes_each_way_in_bounded_memory(len: u32) {
    let world = World::shared(WorldOptions::default()).await;
    let route = world.route("db-app");
    // TLS towards upstream is tried by COPY; here it would be most of the time.
    let (address, _) = route.split_once("?sslmode=").unwrap();
    let route = format!("{address}?sslmode=disable\"\nvault_path = {:?}\n", world.vault_path("db-app"));
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let mut client = Client::connect(pglease.port()).await;
    let at_rest = pglease.memory_kib("VmRSS");

    let mut out = BytesMut::new();
    let sql =
        format!("SELECT ($1::bytea = convert_to(repeat(repeat('x', 1024), {len} / 1024), 'UTF8'))::text");
    frontend::parse("", &sql, [], &mut out).unwrap();
    // Int16 counts: one format, binary; one parameter; no formats of results.
    let head = [&b"\0\0\0\x01\0\x01\0\x01"[..], &len.to_be_bytes()].concat();
    let tail = b"\0\0";
    let length = 4 + u32::try_from(head.len() + tail.len()).unwrap() + len;
    client.stream.write_all(&[&out, &b"B"[..], &length.to_be_bytes(), &head].concat()).await.unwrap();
    client.send_data(len).await;
    client.stream.write_all(&[&tail[..], b"E\0\0\0\x09\0\0\0\0\0", b"S\0\0\0\x04"].concat()).await.unwrap();
    assert_eq!(client.row().await, b"true");
    let peak = pglease.memory_kib("VmHWM");
    assert!(peak < at_rest + ROOM_KIB, "{at_rest} KiB at rest, {peak} KiB at most");

    out.clear();
    frontend::query(&format!("SELECT repeat(repeat('x', 1024), {len} / 1024)"), &mut out).unwrap();
    client.stream.write_all(&out).await.unwrap();
    client.expect_data(len).await;
    let peak = pglease.memory_kib("VmHWM");
    assert!(peak < at_rest + ROOM_KIB, "{at_rest} KiB at rest, {peak} KiB at most");
}

/// One that keeps nothing of large messages.
struct Client {
    stream: TcpStream,
}

impl Client {
    async fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let startup = crate::raw::startup(&[("user", "app"), ("database", "app")]);
        stream.write_all(&startup).await.unwrap();
        let mut client = Self { stream };
        client.skip_to(b'Z').await;
        client
    }

    async fn send_data(&mut self, len: u32) {
        let piece = vec![b'x'; 1 << 16];
        let mut left = usize::try_from(len).unwrap();
        while left > 0 {
            let now = left.min(piece.len());
            self.stream.write_all(&piece[..now]).await.unwrap();
            left -= now;
        }
    }

    /// Tag and length of the body of the next message.
    async fn header(&mut self) -> (u8, u32) {
        let tag = self.stream.read_u8().await.unwrap();
        (tag, self.stream.read_u32().await.unwrap() - 4)
    }

    /// The body of the next message of this kind.
    async fn skip_to(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            let (tag, len) = self.header().await;
            let mut body = vec![0; usize::try_from(len).unwrap()];
            self.stream.read_exact(&mut body).await.unwrap();
            assert_ne!(tag, b'E', "{}", body.escape_ascii());
            if tag == wanted {
                return body;
            }
        }
    }

    /// The one value of the one row of the answer.
    async fn row(&mut self) -> Vec<u8> {
        let row = self.skip_to(b'D').await;
        self.skip_to(b'Z').await;
        row[6..].to_vec()
    }

    /// A row of one value, which is so many `x`, as it comes.
    async fn expect_data(&mut self, len: u32) {
        self.skip_to(b'T').await;
        assert_eq!(self.header().await, (b'D', 6 + len));
        let mut count = [0; 6];
        self.stream.read_exact(&mut count).await.unwrap();
        assert_eq!(count[2..], len.to_be_bytes());
        let (mut piece, expected) = (vec![0; 1 << 18], vec![b'x'; 1 << 18]);
        let mut left = usize::try_from(len).unwrap();
        while left > 0 {
            let room = left.min(piece.len());
            let read = self.stream.read(&mut piece[..room]).await.unwrap();
            assert!(read > 0 && piece[..read] == expected[..read]);
            left -= read;
        }
        self.skip_to(b'Z').await;
    }
}

/// What one busy session may cost.
const ROOM_KIB: u64 = 1024;
