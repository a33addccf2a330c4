//! What a thousand sessions cost while none of their clients reads.

use std::fmt::Write;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio::time;

use crate::raw::Raw;
use crate::report::report;
use crate::support::Servers;
use crate::support::openbao::OpenBao;
use crate::support::pglease::Pglease;
use crate::support::postgres::{Postgres, PostgresOptions};
use crate::support::world::{World, WorldOptions};
use crate::{large, pglease_with};

#[tokio::test]
async fn message_of_256_mib_passes_each_way_in_bounded_memory() {
    large::message_passes_each_way_in_bounded_memory(256 << 20).await;
}

#[tokio::test]
async fn thousand_sessions_whose_clients_do_not_read_cost_a_buffer_each() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let options = PostgresOptions { max_connections: SESSIONS + 100, ..PostgresOptions::default() };
    let (postgres, openbao) = tokio::join!(Postgres::start(options), OpenBao::start());
    let servers = Servers { postgres, openbao };
    let world = World::create(&servers, WorldOptions::default()).await;

    let mut figures = format!("{SESSIONS} sessions");
    for (upstream, most) in [("plain", 80), ("verified", 150)] {
        let pglease = proxy(&world, upstream == "verified").await;
        let first = stall(&pglease).await;
        let again = stall(&pglease).await;
        let each = |from: u64, to: u64| to.saturating_sub(from) / u64::from(SESSIONS);
        for Round { before, idle, stalled, after, moved } in [&first, &again] {
            write!(
                figures,
                "\nupstream {upstream}: {before} KiB without any, {idle} KiB idle ({} KiB each), {stalled} KiB \
                 stalled ({} KiB more each), {after} KiB afterwards; {:.0} MiB on their way",
                each(*before, *idle),
                each(*idle, *stalled),
                moved / 1024.0 / 1024.0
            )
            .unwrap();
        }
        report("stalled", &figures);
        assert!(each(first.idle, first.stalled) <= most, "{figures}");
        // What the allocator keeps is used again.
        assert!(again.stalled <= first.stalled + first.stalled / 5, "{figures}");
    }
}

/// In KiB, but for `moved`: bytes that have come from upstream.
struct Round {
    before: u64,
    idle: u64,
    stalled: u64,
    after: u64,
    moved: f64,
}

async fn stall(pglease: &Pglease) -> Round {
    let before = pglease.memory_kib("VmRSS");
    let mut clients = connect(pglease).await;
    let idle = pglease.memory_kib("VmRSS");

    for client in &mut clients {
        client.query("COPY (SELECT repeat('x', 8192) FROM generate_series(1, 1000)) TO STDOUT").await;
    }
    let moved = until_nothing_moves(pglease).await;
    let stalled = pglease.memory_kib("VmRSS");
    // Nobody else is held up, and the last byte is there when it is asked for.
    let bystander = pglease.connect("app").await.unwrap();
    bystander.simple_query("SELECT count(*) FROM t").await.unwrap();
    let answer = clients.pop().unwrap().up_to(b'Z').await;
    assert_eq!(answer.iter().filter(|message| message.tag == b'd').count(), 1000);

    drop((clients, bystander));
    let ended = async {
        while pglease.metric("pglease_sessions", "").await > 0.0 {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(PATIENCE, ended).await.unwrap();
    let after = pglease.memory_kib("VmRSS");
    Round { before, idle, stalled, after, moved }
}

async fn proxy(world: &World<'_>, tls: bool) -> Pglease {
    let verified = world.route("db-app");
    let (address, _) = verified.split_once("?sslmode=").unwrap();
    let plain = format!("{address}?sslmode=disable\"\nvault_path = {:?}\n", world.vault_path("db-app"));
    let listen = format!("connect_wait = \"5m\"\nmax_sessions = {}", SESSIONS + 10);
    let settings = world.settings_with("info", &world.servers.openbao.address(), &listen);
    pglease_with(&(settings + if tls { &verified } else { &plain })).await
}

/// A few at a time.
async fn connect(pglease: &Pglease) -> Vec<Raw> {
    let (mut clients, mut connecting) = (Vec::new(), JoinSet::new());
    for number in 0..SESSIONS {
        let address = pglease.addresses()[0];
        connecting
            .spawn(async move { Raw::log_in(address, &[("user", "app"), ("database", "app")], "").await.0 });
        if number >= 16 {
            clients.push(connecting.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(client) = connecting.join_next().await {
        clients.push(client.unwrap());
    }
    clients
}

/// Bytes that come from upstream until no more do.
async fn until_nothing_moves(pglease: &Pglease) -> f64 {
    let first = pglease.metric("pglease_bytes_total", "backend").await;
    let (mut before, mut looks) = (first, 0);
    let resting = async {
        while looks < 20 {
            time::sleep(Duration::from_millis(100)).await;
            let now = pglease.metric("pglease_bytes_total", "backend").await;
            looks = if now > before { 0 } else { looks + 1 };
            before = now;
        }
    };
    time::timeout(PATIENCE, resting).await.unwrap();
    before - first
}

const SESSIONS: u16 = 1000;

const PATIENCE: Duration = Duration::from_mins(5);
