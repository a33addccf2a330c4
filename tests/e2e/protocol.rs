//! Which version of the protocol is spoken with a client, and what depends on it: the cancel key.

use std::net::SocketAddr;
use std::process::Command;

use tokio::task::spawn_blocking;

use crate::raw::{Message, Raw, packet};
use crate::support::world::{Leased, World, WorldOptions};
use crate::{pglease_for, until};

/// A version that a client may ask for, and the options that it names.
type Asked = (u32, &'static [&'static str]);

const ASKED: [Asked; 10] = [
    (0x0003_0000, &[]),
    (0x0003_0001, &[]),
    (0x0003_0002, &[]),
    (0x0003_0003, &[]),
    // libpq of PostgreSQL 19 probes with this one on purpose, and refuses a server that takes it in silence.
    (0x0003_270f, &["_pq_.test_protocol_negotiation"]),
    (0x0003_ffff, &[]),
    (0x0003_0000, &["_pq_.one"]),
    (0x0003_0001, &["_pq_.one", "_pq_.two"]),
    (0x0003_0002, &["_pq_.two", "_pq_.one", "_pq_.two"]),
    (0x0003_0003, &["_pq_."]),
];

/// A session that has begun.
struct Opened {
    raw: Raw,
    /// NegotiateProtocolVersion.
    negotiated: Option<Message>,
    /// The body of BackendKeyData.
    key: Vec<u8>,
}

async fn open(address: SocketAddr, asked: Asked, names: [&str; 2], password: &str) -> Opened {
    let (version, options) = asked;
    let [user, database] = names;
    let mut pairs = vec!["user", user, "database", database];
    pairs.extend(options.iter().flat_map(|option| [option, "1"]));
    let mut raw = Raw::connect(address).await;
    raw.send(&packet(version, (pairs.join("\0") + "\0\0").as_bytes())).await;

    let negotiated = if raw.peek().await[0] == b'v' { raw.message().await } else { None };
    raw.authenticate(password).await;
    let greeting = raw.up_to(b'Z').await;
    let mut keys = greeting.into_iter().filter(|message| message.tag == b'K');
    let key = keys.next().expect("a cancel key").body;
    assert!(keys.next().is_none());
    Opened { raw, negotiated, key }
}

/// Cancels a statement of `opened` that runs, with the key as it was received.
async fn cancel(world: &World<'_>, address: SocketAddr, opened: &mut Opened) {
    // The mark of this world: others sleep on the same server.
    let sleep = format!("SELECT pg_sleep(600) AS {}", world.database());
    opened.raw.query(&sleep).await;
    let sql = format!("SELECT 1 FROM pg_stat_activity WHERE query = '{sleep}' AND state = 'active'");
    until(async || !world.superuser.rows(&sql).await.is_empty()).await;

    let mut canceller = Raw::connect(address).await;
    canceller.send(&packet(80_877_102, &opened.key)).await;
    assert_eq!(canceller.bytes().await, b"");
    let answer = opened.raw.up_to(b'Z').await;
    let is_cancelled = |message: &Message| message.fields().contains(&('C', "57014".to_owned()));
    assert!(answer.iter().any(|message| message.tag == b'E' && is_cancelled(message)), "{answer:?}");
}

#[tokio::test]
async fn case_c02_every_version_is_negotiated_as_by_postgresql_18_and_cancels() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let Leased { user, password, .. } = world.lease("db-app").await;
    let server = SocketAddr::from(([127, 0, 0, 1], world.servers.postgres.port()));
    let database = world.database();

    for asked @ (version, options) in ASKED {
        let address = pglease.addresses()[0];
        let mut ours = open(address, asked, ["app", &database], "").await;
        let spoken = version.min(0x0003_0002);
        let negotiated = (spoken != version || !options.is_empty()).then(|| {
            let names = options.iter().flat_map(|option| [option.as_bytes(), b"\0"].concat());
            let count = u32::try_from(options.len()).unwrap();
            [spoken.to_be_bytes(), count.to_be_bytes()].concat().into_iter().chain(names).collect::<Vec<_>>()
        });
        assert_eq!(ours.negotiated.as_ref().map(|message| &message.body), negotiated.as_ref(), "{version:x}");
        assert_eq!(ours.key.len() - 4, if spoken == 0x0003_0002 { 32 } else { 4 }, "{version:x}");
        cancel(&world, address, &mut ours).await;

        let theirs = open(server, asked, [&user, &database], &password).await;
        assert!(theirs.key[4..] != ours.key[4..]);
        if world.servers.postgres.major() >= 18 {
            assert_eq!(theirs.negotiated, ours.negotiated, "{version:x}");
            assert_eq!(theirs.key.len(), ours.key.len(), "{version:x}");
        }
    }
}

#[tokio::test]
async fn libpq_speaks_its_newest_protocol_whatever_upstream_speaks() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let mut url = pglease.database_url(&world.database());
    if world.servers.postgres.major() >= 18 {
        // Insists on it: an older version would be an error.
        url += "&min_protocol_version=3.2&max_protocol_version=latest";
    }
    let psql = world.servers.postgres.bin().join("psql");
    let run = move || Command::new(psql).args(["-XAtc", "SELECT 'served'", &url]).output().unwrap();
    let output = spawn_blocking(run).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "served", "{output:?}");
}
