//! What nobody sends who means well. PostgreSQL is asked the same, and its answer is the right one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time;

use crate::raw::{Message, Raw, packet, startup};
use crate::support::postgres::{Postgres, PostgresOptions};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_for, pglease_with, until};

/// What a client sends before its session: each part once the one byte that answers the part before it has come.
struct Case {
    name: &'static str,
    parts: Vec<Vec<u8>>,
}

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

fn startup_cases() -> Vec<Case> {
    let ssl = || packet(SSL_REQUEST, b"");
    let gssenc = || packet(GSSENC_REQUEST, b"");
    let hello = || startup(&[("user", "app"), ("database", "app")]);
    let one = |name, bytes: &[u8]| Case { name, parts: vec![bytes.to_vec()] };
    vec![
        one("nothing", b""),
        one("half a length", b"\0\0"),
        one("length 0", b"\0\0\0\0\0\x03\0\0"),
        one("length 3", b"\0\0\0\x03\0\x03\0\0"),
        one("length 7", b"\0\0\0\x07\0\x03\0"),
        one("only a header", &packet(0x0003_0000, b"")),
        one("half a StartupMessage", &hello()[..20]),
        one("10,005 bytes", &packet(0x0003_0000, &[b'x'; 9_997])),
        one("2 GiB", b"\x7f\xff\xff\xff\0\x03\0\0user\0"),
        one("4 GiB", b"\xff\xff\xff\xff\0\x03\0\0user\0"),
        one("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        one("SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
        one("no terminator", &packet(0x0003_0000, b"user\0app")),
        one("no value", &packet(0x0003_0000, b"user\0")),
        one("bytes behind the terminator", &packet(0x0003_0000, b"user\0app\0\0x\0")),
        one("no user", &packet(0x0003_0000, b"database\0app\0\0")),
        one("empty user", &packet(0x0003_0000, b"user\0\0database\0app\0\0")),
        one("no parameters", &packet(0x0003_0000, b"\0")),
        one("protocol 0.0", &packet(0, b"user\0app\0\0")),
        one("protocol 0.1", &packet(1, b"user\0app\0\0")),
        one("protocol 1.0", &packet(0x0001_0000, b"user\0app\0\0")),
        one("protocol 2.0", &packet(0x0002_0000, b"user\0app\0\0")),
        one("protocol 4.0", &packet(0x0004_0000, b"user\0app\0\0")),
        one("protocol 4.0 with an option", &packet(0x0004_0000, b"user\0app\0_pq_.x\x001\0\0")),
        one("protocol 65535.65535", &packet(0xffff_ffff, b"user\0app\0\0")),
        one("newer protocol without user", &packet(0x0003_270f, b"_pq_.x\x001\0\0")),
        one("newest protocol without user", &packet(0x0003_0002, b"database\0app\0\0")),
        one("option without user", &packet(0x0003_0000, b"_pq_.x\x001\0\0")),
        one("newer protocol cut short", &packet(0x0003_270f, b"user\0app\0_pq_.x\x001\0")),
        one("protocol 1234.5680", &packet(GSSENC_REQUEST + 1, b"")),
        one("unencrypted bytes behind SSLRequest", &[ssl(), hello()].concat()),
        one("unencrypted bytes behind GSSENCRequest", &[gssenc(), hello()].concat()),
        one("short SSLRequest", &packet(SSL_REQUEST, b"")[..7]),
        one("long SSLRequest", &packet(SSL_REQUEST, b"more")),
        one("cancel of nobody", &packet(CANCEL_REQUEST, b"\0\0\0\x01abcd")),
        one("cancel without a key", &packet(CANCEL_REQUEST, b"")),
        one("cancel with half a pid", &packet(CANCEL_REQUEST, b"\0\0")),
        one("cancel with half a key", &packet(CANCEL_REQUEST, b"\0\0\0\x01ab")),
        one("cancel with a key of 256 bytes", &packet(CANCEL_REQUEST, &[7; 260])),
        one("cancel with a key of 257 bytes", &packet(CANCEL_REQUEST, &[7; 261])),
        one("cancel with the longest key there can be", &packet(CANCEL_REQUEST, &[7; 9_996])),
        one("bytes behind a cancel", &[packet(CANCEL_REQUEST, b"\0\0\0\x01abcd"), hello()].concat()),
        Case { name: "SSLRequest twice", parts: vec![ssl(), ssl()] },
        Case { name: "GSSENCRequest twice", parts: vec![gssenc(), gssenc()] },
        Case { name: "both and again", parts: vec![ssl(), gssenc(), ssl()] },
        Case { name: "both the other way round", parts: vec![gssenc(), ssl(), gssenc()] },
        Case {
            name: "cancel after SSLRequest",
            parts: vec![ssl(), packet(CANCEL_REQUEST, b"\0\0\0\x01abcd")],
        },
        Case { name: "SSLRequest, then garbage", parts: vec![ssl(), b"\0\0\0\x01".to_vec()] },
    ]
}

/// All that is said to a client that sends `parts` and then closes its side.
async fn told(mut raw: Raw, parts: &[Vec<u8>]) -> Vec<u8> {
    let mut told = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        raw.send(part).await;
        if number + 1 < parts.len() {
            told.extend(raw.byte().await);
        }
    }
    raw.finish().await;
    told.extend(raw.bytes().await);
    told
}

/// `told` without what may differ:
///
/// - Fields F, L and R of an error are places in PostgreSQL's source.
/// - The newest minor version is 2 in PostgreSQL 18 and in pglease, and 0 in a server `before_18`.
fn comparable(told: &[u8], before_18: bool) -> Vec<String> {
    let same_version = |text: String| {
        if before_18 {
            text.replace("server supports 3.0 to 3.0", "server supports 3.0 to 3.2")
        } else {
            text
        }
    };
    let declined = told.iter().take_while(|byte| **byte == b'N').count();
    let mut lines = vec!["N".to_owned(); declined];
    let mut rest = &told[declined..];
    // Protocols before 3 have no length word: their error is one string.
    if rest.starts_with(b"EFATAL:") {
        lines.push(same_version(rest.escape_ascii().to_string()));
        return lines;
    }
    while let Some((&[tag, l3, l2, l1, l0], after)) = rest.split_first_chunk() {
        let body_len = u32::from_be_bytes([l3, l2, l1, l0]) as usize - 4;
        let (body, after) = after.split_at(body_len);
        rest = after;
        let message = Message { tag, body: body.to_vec() };
        lines.push(match tag {
            b'E' => {
                let mut fields = message.fields();
                fields.retain(|(name, _)| !"FLR".contains(*name));
                same_version(format!("E {fields:?}"))
            }
            b'v' if before_18 => format!("v {}", body[4..].escape_ascii()),
            _ => format!("{message:?}"),
        });
    }
    assert_eq!(rest, b"", "cut within a message");
    lines
}

#[tokio::test]
async fn malformed_startup_is_answered_as_postgresql_answers_it() {
    // Over its Unix socket PostgreSQL, too, declines both kinds of encryption.
    let settings = vec![("unix_socket_directories", ".".to_owned())];
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await;
    let socket = postgres.ca_file().with_file_name(format!("data/.s.PGSQL.{}", postgres.port()));
    let before_18 = postgres.major() < 18;
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;

    for Case { name, parts } in startup_cases() {
        let theirs = comparable(&told(Raw::connect_unix(&socket).await, &parts).await, before_18);
        let mut ours = comparable(&told(Raw::connect(pglease.addresses()[0]).await, &parts).await, before_18);
        if before_18 && name.starts_with("newest protocol") {
            // It is a newer one to them.
            ours.insert(0, "v \\x00\\x00\\x00\\x00".to_owned());
        }
        assert_eq!(ours, theirs, "{name}");
    }

    // The same server without authentication, so that a client may go on at once as it may with pglease.
    postgres.write_hba("local all all trust").await;
    let hello = |database: &str| startup(&[("user", "postgres"), ("database", database)]);
    let login = [[hello("postgres"), b"X\0\0\0\x04".to_vec()].concat()];
    until(async || {
        let told = told(Raw::connect_unix(&socket).await, &login).await;
        told.starts_with(b"R\0\0\0\x08\0\0\0\0")
    })
    .await;
    for (name, sent) in session_cases() {
        // Who is gone before its session has begun gets none; PostgreSQL finds that out afterwards.
        if sent.is_empty() {
            continue;
        }
        let mut heard = Vec::with_capacity(2);
        let servers = [Raw::connect_unix(&socket).await, Raw::connect(pglease.addresses()[0]).await];
        for (mut raw, database) in servers.into_iter().zip(["postgres", "app"]) {
            raw.send(&[hello(database), sent.clone()].concat()).await;
            raw.finish().await;
            let greeting = raw.up_to(b'Z').await;
            assert!(greeting.iter().all(|message| b"RSNKZ".contains(&message.tag)), "{name}: {greeting:?}");
            heard.push(raw.rest().await);
        }
        let [theirs, ours] = heard.try_into().unwrap();
        assert_eq!(without_loss(ours), theirs, "{name}, said before the session has begun");
    }
}

/// Where upstream closes without a word, a client that still listens is told that it has.
fn without_loss(mut told: Vec<Message>) -> Vec<Message> {
    told.pop_if(|last| last.tag == b'E' && last.fields().contains(&('C', "08006".to_owned())));
    told
}

/// What a client sends into its session, and then closes its side.
fn session_cases() -> Vec<(&'static str, Vec<u8>)> {
    let query = || b"Q\0\0\0\x0dSELECT 1\0".to_vec();
    let copy = || {
        let sql = b"CREATE TEMP TABLE c (line text); COPY c FROM STDIN\0";
        [b"Q", &u32::try_from(sql.len() + 4).unwrap().to_be_bytes()[..], sql].concat()
    };
    vec![
        ("nothing", Vec::new()),
        ("tag 0", b"\0\0\0\0\x04".to_vec()),
        ("unknown tag", b"z\0\0\0\x04".to_vec()),
        ("tag 255", b"\xff\0\0\0\x04".to_vec()),
        ("length 0", b"Q\0\0\0\0".to_vec()),
        ("length 3", b"Q\0\0\0\x03".to_vec()),
        ("length 3 behind an answer", [query(), b"S\0\0\0\x03".to_vec()].concat()),
        ("length -1", b"Q\xff\xff\xff\xff".to_vec()),
        ("2 GiB of a Query", b"Q\x7f\xff\xff\xffSELECT".to_vec()),
        ("1 GiB of a Sync", b"S\x40\0\0\0".to_vec()),
        ("half a header", b"Q\0\0".to_vec()),
        ("half a Query", b"Q\0\0\0\x0dSELE".to_vec()),
        ("Query without its end", [b"Q\0\0\0\x08abcd".to_vec(), query()].concat()),
        ("empty Query", [b"Q\0\0\0\x04".to_vec(), query()].concat()),
        ("second StartupMessage", startup(&[("user", "app"), ("database", "app")])),
        ("SSLRequest", packet(SSL_REQUEST, b"")),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("password nobody asked for", [b"p\0\0\0\x0bsecret\0".to_vec(), query()].concat()),
        ("CopyData without COPY", [b"d\0\0\0\x08abcdc\0\0\0\x04".to_vec(), query()].concat()),
        ("short Bind", [b"B\0\0\0\x05\0S\0\0\0\x04".to_vec(), query()].concat()),
        ("short Execute", [b"E\0\0\0\x04S\0\0\0\x04".to_vec(), query()].concat()),
        ("short FunctionCall", [b"F\0\0\0\x05\0".to_vec(), query()].concat()),
        ("Describe of an unknown kind", [b"D\0\0\0\x06?\0S\0\0\0\x04".to_vec(), query()].concat()),
        ("Execute of nothing", [b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04".to_vec(), query()].concat()),
        ("Bind of nothing", [b"B\0\0\0\x10no\0no\0\0\0\0\0\0\0S\0\0\0\x04".to_vec(), query()].concat()),
        ("Describe of nothing", [b"D\0\0\0\x06S\0H\0\0\0\x04S\0\0\0\x04".to_vec(), query()].concat()),
        ("Parse that does not end", [b"P\0\0\0\x08abcdS\0\0\0\x04".to_vec(), query()].concat()),
        ("Parse without Sync", b"P\0\0\0\x10\0SELECT 1\0\0\0".to_vec()),
        ("Flush and nothing", b"H\0\0\0\x04".to_vec()),
        ("many a Sync", b"S\0\0\0\x04".repeat(500)),
        ("Sync with a body", [b"S\0\0\0\x08abcd".to_vec(), query()].concat()),
        ("CopyDone and CopyFail without COPY", [b"c\0\0\0\x04f\0\0\0\x05\0".to_vec(), query()].concat()),
        ("message of the backend", [b"Z\0\0\0\x05I".to_vec(), query()].concat()),
        ("Query of no text", [b"Q\0\0\0\x06\xff\0".to_vec(), query()].concat()),
        ("Query in a COPY", [copy(), query()].concat()),
        ("garbage in a COPY", [copy(), b"z\0\0\0\x04".to_vec(), query()].concat()),
        ("end in a COPY", [copy(), b"d\0\0\0\x06x\n".to_vec()].concat()),
        ("half a message in a COPY", [copy(), b"d\0\0\0\x40half".to_vec()].concat()),
        ("COPY of what is no row", [copy(), b"d\0\0\0\x07x\ty\nc\0\0\0\x04".to_vec(), query()].concat()),
        ("Terminate with a body", b"X\0\0\0\x08abcd".to_vec()),
        ("bytes behind Terminate", [b"X\0\0\0\x04".to_vec(), query()].concat()),
    ]
}

#[tokio::test]
async fn garbage_in_a_session_is_for_upstream_to_judge() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let leased = world.lease("db-app").await;
    let direct = SocketAddr::from(([127, 0, 0, 1], world.servers.postgres.port()));
    let database = world.database();
    let bystander = pglease.connect("app").await.unwrap();

    for (name, sent) in session_cases() {
        let told = async |address, user, at_a_time| {
            let parameters = [("user", user), ("database", database.as_str())];
            let (mut raw, _) = Raw::log_in(address, &parameters, &leased.password).await;
            for part in sent.chunks(at_a_time) {
                raw.send(part).await;
            }
            raw.finish().await;
            raw.rest().await
        };
        let theirs = told(direct, leased.user.as_str(), usize::MAX).await;
        for at_a_time in [usize::MAX, 1] {
            let ours = told(pglease.addresses()[0], "app", at_a_time).await;
            assert_eq!(without_loss(ours), theirs, "{name}, {at_a_time} bytes at a time");
        }
        bystander.batch_execute("SELECT 1").await.unwrap();
    }
}

#[tokio::test]
async fn guessed_cancels_reach_nobody_and_keep_neither_right_ones_nor_new_sessions_away() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings_with("info", &world.servers.openbao.address(), "") + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let address = pglease.addresses()[0];
    let (mut session, greeting) = Raw::log_in(address, &[("user", "app"), ("database", "app")], "").await;
    let key = greeting.iter().find(|message| message.tag == b'K').unwrap().body.clone();
    // The mark of this world: others sleep on the same server.
    let sleep = format!("SELECT pg_sleep(600) AS {}", world.database());
    let sql = format!("SELECT 1 FROM pg_stat_activity WHERE query = '{sleep}' AND state = 'active'");
    let sleeps = async || !world.superuser.rows(&sql).await.is_empty();

    session.query(&sleep).await;
    until(sleeps).await;
    // All that follows is to come and go while guesses come in: many at once, and then a thousand a second.
    let is_over = AtomicBool::new(false);
    let guess = async |number: u32| {
        let mut guess = key.clone();
        for (byte, change) in guess[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= change;
        }
        let mut raw = Raw::connect(address).await;
        raw.send(&packet(CANCEL_REQUEST, &guess)).await;
        raw
    };
    let guessing = async {
        let mut told_nothing = Vec::new();
        // With 0 the key would be right.
        for number in 1..=500 {
            told_nothing.push(guess(number).await);
        }
        let mut pace = time::interval(Duration::from_millis(1));
        let mut number = 501;
        while !is_over.load(Ordering::Relaxed) || number < 1500 {
            pace.tick().await;
            told_nothing.push(guess(number).await);
            number += 1;
            if told_nothing.len() == 1000 {
                told_nothing.drain(..500);
            }
        }
        for raw in &mut told_nothing {
            assert_eq!(raw.bytes().await, b"");
        }
        number - 1
    };
    let working = async {
        pglease.wait_for_event("cancel.flood", PATIENCE).await;
        assert!(sleeps().await, "a guess has cancelled it");
        for _ in 0..5 {
            pglease.connect("app").await.unwrap().batch_execute("SELECT 1").await.unwrap();
            let mut right = Raw::connect(address).await;
            right.send(&packet(CANCEL_REQUEST, &key)).await;
            assert_eq!(right.bytes().await, b"");
            expect_cancelled(&mut session).await;
            session.query(&sleep).await;
            until(sleeps).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (guesses, ()) = tokio::join!(guessing, working);
    assert!(sleeps().await, "a guess has cancelled it");
    // Once, unless this machine has stood still for so long that there was calm between.
    assert!(pglease.events("cancel.flood").len() < 4);
    let results = async || {
        let count = async |result: &str| pglease.metric("pglease_cancel_requests_total", result).await;
        [count("delivered").await, count("").await].map(|count| count.to_string())
    };
    // Upstream acts on one before pglease knows that it has.
    let all = ["5".to_owned(), (guesses + 5).to_string()];
    until(async || results().await == all).await;

    // Right ones, all at once: each has its answer, which is the end.
    let mut asking = Vec::new();
    for _ in 0..200 {
        let mut raw = Raw::connect(address).await;
        raw.send(&packet(CANCEL_REQUEST, &key)).await;
        asking.push(raw);
    }
    for mut raw in asking {
        assert_eq!(raw.bytes().await, b"");
    }
    expect_cancelled(&mut session).await;
    session.query("SELECT 1").await;
    session.up_to(b'Z').await;
    assert_eq!(results().await, ["205".to_owned(), (guesses + 205).to_string()]);
}

/// The answer to a statement that was cancelled.
async fn expect_cancelled(session: &mut Raw) {
    let answer = session.up_to(b'Z').await;
    let is_cancelled = |message: &Message| message.fields().contains(&('C', "57014".to_owned()));
    assert!(answer.iter().any(|message| message.tag == b'E' && is_cancelled(message)), "{answer:?}");
}
