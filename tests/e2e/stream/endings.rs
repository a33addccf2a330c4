//! What the other side is told when a client or an upstream ends, is ended or vanishes, wherever it stands.

use rustix::process::{Pid, Signal, kill_process};

use super::{Pair, SYNC, TERMINATE, query, statement, tags};
use crate::raw::Message;
use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::world::{Leased, World, WorldOptions};
use crate::{pglease_for, pglease_with, until};

#[tokio::test]
async fn either_side_ends_for_the_other_as_it_does_directly() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let verified = world.route("db-app");
    let (address, _) = verified.split_once("?sslmode=").unwrap();
    let plain = format!("{address}?sslmode=disable\"\nvault_path = {:?}\n", world.vault_path("db-app"));
    let (pglease, plain) = (pglease_for(&world).await, pglease_with(&(world.settings() + &plain)).await);
    let leased = world.lease("db-app").await;

    for pglease in [&pglease, &plain] {
        clients_that_stop_sending(&world, pglease, &leased).await;
        backends_that_are_terminated(&world, pglease, &leased).await;
    }
    crash_and_immediate_stop(&world, [&pglease, &plain], &leased).await;
}

/// Half-close at every kind of place: what was sent is done and answered, what was half said is not, and upstream is
/// left by nobody.
async fn clients_that_stop_sending(world: &World<'_>, pglease: &Pglease, leased: &Leased) {
    let copy_data = b"d\0\0\0\x0b900001\n";
    let insert = "INSERT INTO t VALUES (900001)";
    let cases: [(&str, Vec<Vec<u8>>, &str); 13] = [
        ("idle", vec![], ""),
        ("a statement that takes a moment", vec![query("SELECT pg_sleep(0.2), 'answered'")], "TDCZ"),
        ("a long answer", vec![query("SELECT repeat('x', 3000000) FROM generate_series(1, 3)")], "TDDDCZ"),
        ("half a header", vec![b"Q\0\0".to_vec()], ""),
        ("half a message", vec![b"Q\0\0\0\x20SELECT".to_vec()], ""),
        (
            "a statement and half of another",
            vec![[&query("SELECT 1")[..], b"Q\0\0\0\x20SELECT"].concat()],
            "TDCZ",
        ),
        ("an open transaction", vec![query(&format!("BEGIN; {insert}"))], "CCZ"),
        ("a batch without its Sync", vec![statement(insert, 0)], ""),
        ("a batch with it", vec![[&statement("SELECT 1", 0)[..], SYNC].concat()], "12DCZ"),
        ("COPY IN between messages", vec![query("COPY t FROM STDIN"), copy_data.to_vec()], "GE"),
        ("COPY IN within a message", vec![query("COPY t FROM STDIN"), copy_data[..8].to_vec()], "GE"),
        ("COPY OUT", vec![query("COPY (SELECT generate_series(1, 100000)) TO STDOUT")], "Hddd"),
        ("a goodbye", vec![[&query("SELECT 1")[..], TERMINATE].concat()], "TDCZ"),
    ];
    for (case, sent, expected) in cases {
        let mut pair = Pair::open(world, pglease, leased).await;
        for bytes in sent {
            pair.send(&bytes).await;
        }
        pair.finish().await;
        let told = pair.rest().await;
        until(async || !is_backend(world, pair.pids[0]).await && !is_backend(world, pair.pids[1]).await)
            .await;
        assert!(tags(&told).starts_with(expected), "{case}: {told:?}");
        let rows = world.superuser.rows("SELECT 1 FROM t WHERE id = 900001").await;
        assert!(rows.is_empty(), "{case}: half said, and done");
    }
}

/// `pg_terminate_backend` in every state: PostgreSQL's words, and nothing but them.
async fn backends_that_are_terminated(world: &World<'_>, pglease: &Pglease, leased: &Leased) {
    for state in STATES {
        let mut pair = enter(world, &world.superuser, pglease, leased, state).await;
        for pid in pair.pids {
            world.superuser.rows(&format!("SELECT pg_terminate_backend({pid})")).await;
        }
        let told = pair.rest().await;
        let last = told.last().unwrap();
        assert!(last.fields().contains(&('C', "57P01".to_owned())), "{state}: {last:?}");
    }
}

/// Another backend dies, or the server is stopped at once: sessions get PostgreSQL's warning, which is no error, and
/// pglease's word that upstream is gone. Who dies without a word gets that word only: so does who has not said its
/// warning within 5 s, after which the server kills it.
async fn crash_and_immediate_stop(world: &World<'_>, both: [&Pglease; 2], leased: &Leased) {
    let victim = Pair::open(world, both[0], leased).await;
    let mut pairs = Vec::new();
    for (state, pglease) in STATES.into_iter().flat_map(|state| both.map(|pglease| (state, pglease))) {
        pairs.push(enter(world, &world.superuser, pglease, leased, state).await);
    }
    kill_process(Pid::from_raw(victim.pids[1]).unwrap(), Signal::KILL).unwrap();
    let Pair { mut direct, mut through, .. } = victim;
    assert_lost(&through.rest().await, &[]);
    // A bystander as the others.
    let mut warned = usize::from(is_warned(&direct.rest().await, "57P02"));
    for pair in pairs {
        warned += warnings_before_a_loss(pair, "57P02").await;
    }
    assert!(warned > 0);

    // The server recovers by itself, and so do clients.
    for pglease in both {
        until(async || match pglease.connect("app").await {
            Ok(session) => session.simple_query("SELECT 1").await.is_ok(),
            Err(_) => false,
        })
        .await;
    }
    let superuser = world.servers.postgres.connect("postgres").await;
    let mut pairs = Vec::new();
    for (state, pglease) in STATES.into_iter().flat_map(|state| both.map(|pglease| (state, pglease))) {
        pairs.push(enter(world, &superuser, pglease, leased, state).await);
    }
    world.servers.postgres.process().signal(Signal::QUIT);
    let mut warned = 0;
    for pair in pairs {
        warned += warnings_before_a_loss(pair, "57P01").await;
    }
    assert!(warned > 0);
}

/// How many of the two were warned with this code, the same. What the one that pglease is in front of was told is
/// passed on, and then that it is lost.
async fn warnings_before_a_loss(mut pair: Pair, code: &str) -> usize {
    let (direct, mut through) = (pair.direct.rest().await, pair.through.rest().await);
    let loss = through.split_off(through.len().saturating_sub(1));
    assert_lost(&loss, &[]);
    let warned = [&direct, &through].map(|told| is_warned(told, code));
    assert!(warned != [true, true] || direct == through, "{direct:?} {through:?}");
    warned.into_iter().filter(|warned| *warned).count()
}

/// Whether the last word, where there is one, is a NoticeResponse with this code: it can be nothing else.
fn is_warned(told: &[Message], code: &str) -> bool {
    let Some(warning) = told.last() else { return false };
    assert!(warning.tag == b'N' && warning.fields().contains(&('C', code.to_owned())), "{warning:?}");
    true
}

/// What was said directly, and then that upstream is lost.
fn assert_lost(told: &[Message], directly: &[Message]) {
    let (last, before) = told.split_last().unwrap();
    assert_eq!(before, directly);
    assert_eq!(last.tag, b'E');
    assert!(last.fields().contains(&('C', "08006".to_owned())), "{last:?}");
}

const STATES: [&str; 5] = ["", "BEGIN", "SELECT pg_sleep(600)", "COPY t FROM STDIN", "BEGIN; SELECT 1 / 0"];

/// A pair that has sent this and heard all that is said to it before the end.
async fn enter(
    world: &World<'_>,
    superuser: &Database,
    pglease: &Pglease,
    leased: &Leased,
    state: &str,
) -> Pair {
    let mut pair = Pair::open(world, pglease, leased).await;
    if !state.is_empty() {
        pair.query(state).await;
    }
    let (told, waits_for) = match state {
        "" => (None, "ClientRead"),
        "COPY t FROM STDIN" => (Some(b'G'), "ClientRead"),
        "SELECT pg_sleep(600)" => (None, "PgSleep"),
        _ => (Some(b'Z'), "ClientRead"),
    };
    if let Some(tag) = told {
        pair.up_to(tag).await;
    }
    let [direct, through] = pair.pids;
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE pid IN ({direct}, {through}) AND wait_event = '{waits_for}'"
    );
    until(async || superuser.rows(&sql).await.len() == 2).await;
    pair
}

async fn is_backend(world: &World<'_>, pid: i32) -> bool {
    let sql = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}");
    !world.superuser.rows(&sql).await.is_empty()
}
