//! What a round trip costs, in counts, which come out the same however busy the machine is.

use std::convert::Infallible;
use std::process::Command;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet};

use super::*;

/// A client and an upstream over loopback, all on one thread.
struct Bench {
    runtime: Runtime,
    /// Runs the relay.
    tasks: LocalSet,
    _carrier: JoinSet<Infallible>,
    client: TcpStream,
    upstream: TcpStream,
}

impl Bench {
    /// With a relay at work between them.
    fn relayed() -> Self {
        Self::set_up(async {
            let (client, far_client) = connection().await;
            let (upstream, far_upstream) = connection().await;
            let Scene { relay, mut watch, far } = scene(1).await;
            let mut relay = Relay::new(client, upstream, relay.tracker, Tally::default()).posting();
            tokio::task::spawn_local(async move {
                // The credential is held for as long as the relay runs.
                let _far = far;
                relay.run(&mut watch).await
            });
            (far_client, far_upstream)
        })
    }

    /// With what tokio has to copy both ways between them: the measure of the relay, as all that is not its own is in
    /// both.
    fn copied() -> Self {
        Self::set_up(async {
            let (mut client, far_client) = connection().await;
            let (mut upstream, far_upstream) = connection().await;
            tokio::task::spawn_local(async move { copy_bidirectional(&mut client, &mut upstream).await });
            (far_client, far_upstream)
        })
    }

    fn set_up(connected: impl Future<Output = (TcpStream, TcpStream)>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = LocalSet::new();
        let mut carrier = JoinSet::new();
        carrier.spawn_on(outbox::carry(), runtime.handle());
        let (client, upstream) = tasks.block_on(&runtime, connected);
        Self { runtime, tasks, _carrier: carrier, client, upstream }
    }

    fn round_trips(&mut self, count: usize) {
        self.tasks.block_on(&self.runtime, exchange(&mut self.client, &mut self.upstream, count));
    }
}

async fn exchange(client: &mut TcpStream, upstream: &mut TcpStream, count: usize) {
    let mut buf = [0; 128];
    for _ in 0..count {
        client.write_all(QUERY).await.unwrap();
        upstream.read_exact(&mut buf[..QUERY.len()]).await.unwrap();
        upstream.write_all(ANSWER).await.unwrap();
        client.read_exact(&mut buf[..ANSWER.len()]).await.unwrap();
    }
}

pub(super) async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    near.set_nodelay(true).unwrap();
    (near, far)
}

/// Of `SELECT 1`.
const ANSWER: &[u8] = b"T\0\0\0\x21\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
    D\0\0\0\x0b\0\x01\0\0\0\x011C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

#[test]
fn round_trip_allocates_nothing() {
    allocates_nothing(Bench::relayed());
}

/// For the count below.
#[test]
fn copied_round_trip_allocates_nothing() {
    allocates_nothing(Bench::copied());
}

fn allocates_nothing(mut bench: Bench) {
    bench.round_trips(WARM_UP);
    let counts = allocation_counter::measure(|| bench.round_trips(ROUND_TRIPS));
    // Polling the bench itself takes one or two, however many the round trips are.
    assert!(counts.count_total < 10, "{ROUND_TRIPS} round trips: {counts:?}");
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn instructions_of_a_round_trip_stay_within_bounds() {
    let counted = ["round_trip_allocates_nothing", "copied_round_trip_allocates_nothing"];
    let [Some(relayed), Some(copied)] = counted.map(instructions) else {
        return eprintln!("skipped: instructions of a round trip: valgrind is not installed");
    };
    let percent = relayed * 100 / copied;
    assert!(
        (MAX_PERCENT / 4..=MAX_PERCENT).contains(&percent),
        "{relayed} instructions a round trip, {copied} copied: {percent} %"
    );
}

/// Of each round trip of a test, without its set-up.
fn instructions(test: &str) -> Option<usize> {
    let outcome = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*Bench*round_trips*"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("session::relay::tests::counts::{test}"), "--test-threads=1"])
        .output();
    let said = String::from_utf8_lossy(&outcome.ok()?.stderr).into_owned();
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let collected: usize = collected.unwrap_or_else(|| panic!("{said}")).1.trim().parse().unwrap();
    Some(collected / (WARM_UP + ROUND_TRIPS))
}

const WARM_UP: usize = 100;
const ROUND_TRIPS: usize = 1000;
/// Instructions of a round trip through the relay, unoptimised and with both far ends, in percent of those of one that
/// tokio copies, where 109 are taken. Both are of one build: a compiler that makes more or fewer of all code changes
/// little.
const MAX_PERCENT: usize = 116;
