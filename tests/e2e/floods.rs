//! More connections, or longer messages, than anybody needs: nobody else notices, and memory is bounded.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use crate::raw::{Raw, packet, startup};
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_with, start, until, until_alive};

/// Raises this process's own limit as far as it goes; how many connections it may then have at a time.
fn connections_at_a_time() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum.unwrap_or(1 << 20);
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
    // Other tests of this process need some, too.
    usize::try_from(current).unwrap().saturating_sub(2000).clamp(500, CONNECTIONS)
}

/// pglease that may open no more than `descriptors`.
async fn pglease_limited(descriptors: u32, settings: &str) -> Pglease {
    let limit = format!("ulimit -n {descriptors}");
    let pglease = Pglease::start_after(&limit, Path::new(BINARY), settings).await;
    pglease.wait_ready().await;
    pglease
}

/// Sends `sent` over so many connections, as many at a time as can be, and leaves each to `leave`, while a session asks
/// on and new ones come. Holds that nobody notices and that memory is bounded and comes back.
async fn flood(connections: usize, listen: &str, sent: &[u8], leave: impl Fn(TcpStream)) {
    let _turn = FLOODS.lock().await;

    let world = World::shared(WorldOptions::default()).await;
    let settings =
        world.settings_with("info", &world.servers.openbao.address(), listen) + &world.route("db-app");
    let pglease = pglease_limited(1024, &settings).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("SELECT 1").await.unwrap();
    let (at_rest, allocated) = (pglease.memory_kib("VmRSS"), pglease.memory_kib("RssAnon"));
    let at_a_time = connections_at_a_time();

    let is_over = AtomicBool::new(false);
    let (mut peak, mut queries) = (at_rest, 0);
    let working = async {
        while !is_over.load(Ordering::Relaxed) {
            session.batch_execute("SELECT 1").await.unwrap();
            pglease.connect("app").await.unwrap().batch_execute("SELECT 1").await.unwrap();
            peak = peak.max(pglease.memory_kib("VmRSS"));
            queries += 2;
        }
    };
    let flooding = async {
        let mut done = 0;
        while done < connections {
            let mut open = Vec::new();
            for _ in 0..at_a_time.min(connections - done) {
                let mut stream =
                    TcpStream::connect(pglease.addresses()[done % pglease.addresses().len()]).await.unwrap();
                // Whoever has lost its place already is gone.
                let _ = stream.write_all(sent).await;
                open.push(stream);
                done += 1;
            }
            open.into_iter().for_each(&leave);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(working, flooding);

    assert!(queries > 0);
    assert!(pglease.events("accept.exhausted").is_empty(), "a flood takes no descriptor that others need");
    assert!(peak < at_rest + 16 * 1024, "{at_rest} kB at rest, {peak} kB in the flood");
    // Beside the program itself, more of which is in memory now.
    until(async || pglease.memory_kib("RssAnon") < allocated + 2 * 1024).await;
}

#[tokio::test]
async fn ten_thousand_connections_that_say_nothing_are_borne() {
    flood(CONNECTIONS, "", b"", drop).await;
}

#[tokio::test]
async fn two_threads_bear_a_flood_as_one_does() {
    flood(CONNECTIONS / 5, "threads = 2", b"", drop).await;
}

#[tokio::test]
async fn ten_thousand_connections_that_vanish_half_way_are_borne() {
    let half = startup(&[("user", "app"), ("database", "app")]);
    let vanish = |stream: TcpStream| {
        // A reset, as from a process that was killed.
        stream.set_zero_linger().unwrap();
    };
    flood(CONNECTIONS, "", &half[..half.len() / 2], vanish).await;
}

const CONNECTIONS: usize = 10_000;

/// One at a time: this process has but so many descriptors.
static FLOODS: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn five_thousand_connections_that_say_a_byte_at_a_time_keep_nobody_out() {
    let _turn = FLOODS.lock().await;
    let world = World::shared(WorldOptions::default()).await;
    // So many places that all of them keep theirs.
    let settings = world.settings_with("info", &world.servers.openbao.address(), "max_sessions = 5000")
        + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let session = pglease.connect("app").await.unwrap();
    session.batch_execute("SELECT 1").await.unwrap();
    let at_rest = pglease.memory_kib("VmRSS");

    let hello = startup(&[("user", "app"), ("database", "app")]);
    let count = connections_at_a_time().min(5000);
    let mut peaks = Vec::with_capacity(2);
    for _ in 0..2 {
        let mut slow = Vec::new();
        for number in 0..count {
            let address = pglease.addresses()[number % pglease.addresses().len()];
            slow.push(TcpStream::connect(address).await.unwrap());
        }
        let mut peak = at_rest;
        for byte in &hello[..5] {
            // Every other one says nothing at all.
            for stream in slow.iter_mut().step_by(2) {
                // Whose time is up is gone.
                let _ = stream.write_all(&[*byte]).await;
            }
            pglease.connect("app").await.unwrap().batch_execute("SELECT 1").await.unwrap();
            session.batch_execute("SELECT 1").await.unwrap();
            peak = peak.max(pglease.memory_kib("VmRSS"));
        }
        // Where this machine allows so many descriptors. Those of the second time may meet some of the first.
        if peaks.is_empty() && pglease.events("listen.max_sessions_lowered").is_empty() {
            assert!(pglease.events("places.short").is_empty(), "somebody has lost a place");
        }
        peaks.push(peak);
    }
    assert!(pglease.events("accept.exhausted").is_empty());
    let bound = at_rest + 48 * 1024;
    assert!(
        peaks.iter().all(|peak| *peak < bound),
        "{at_rest} kB at rest, {peaks:?} kB with {count} connections"
    );
}

#[tokio::test]
async fn startups_of_many_parameters_take_no_more_than_they_are_long() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.openbao.port()).await;
    gate.close().await;
    let vault = format!("http://{}", gate.address());
    let pglease =
        start(&(world.settings_with("info", &vault, "connect_wait = \"10m\"") + &world.route("db-app")))
            .await;
    let at_rest = pglease.memory_kib("VmRSS");

    // As many as the length allows, from clients that wait for a credential.
    let parameters = [&b"user\0app\0"[..], &b"a\0\0".repeat(3_328), b"\0"].concat();
    let message = packet(0x0003_0000, &parameters);
    assert!((10_000..=10_004).contains(&message.len()));
    let mut waiting = Vec::new();
    for _ in 0..300 {
        let mut raw = Raw::connect(pglease.addresses()[0]).await;
        raw.send(&message).await;
        waiting.push(raw);
    }
    until(async || pglease.metric("pglease_clients_waiting", "").await >= 300.0).await;
    let waited = pglease.memory_kib("VmRSS");
    assert!(waited < at_rest + 32 * 1024, "{at_rest} kB at rest, {waited} kB with 300 clients");
}

#[tokio::test]
async fn connections_that_say_one_byte_keep_nobody_out() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings_with("info", &world.servers.openbao.address(), "max_sessions = 8")
        + &world.route("db-app");
    let pglease = Arc::new(pglease_with(&settings).await);
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(pglease.addresses()[0]).await.unwrap();
        stream.write_all(b"\0").await.unwrap();
        idle.push(stream);
    }
    for round in 1..=3 {
        // Together: none of them speaks before the next one comes.
        let mut pool = JoinSet::new();
        for _ in 0..8 {
            let pglease = Arc::clone(&pglease);
            pool.spawn(async move { pglease.connect("app").await });
        }
        for session in pool.join_all().await {
            session.unwrap().batch_execute("SELECT 1").await.unwrap();
        }
        let all = f64::from(8 * round);
        until(async || pglease.metric("pglease_session_seconds_count", "client_closed").await >= all).await;
    }
}

#[tokio::test]
async fn clients_beyond_what_descriptors_allow_are_told_so() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_limited(400, &(world.settings() + &world.route("db-app"))).await;
    let lowered = pglease.wait_for_event("listen.max_sessions_lowered", PATIENCE).await;
    let max_sessions = usize::try_from(lowered["to"].as_u64().unwrap()).unwrap();
    assert_eq!(max_sessions, 50);

    let mut sessions = Vec::new();
    for _ in 0..max_sessions {
        sessions.push(pglease.connect("app").await.unwrap());
    }
    for _ in max_sessions..300 {
        let refused = pglease.connect("app").await.err().unwrap();
        assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{refused:?}");
    }
    for session in &sessions {
        session.batch_execute("SELECT 1").await.unwrap();
    }
    assert!(pglease.events("accept.exhausted").is_empty());
}

#[tokio::test]
async fn limit_of_descriptors_is_raised_as_far_as_the_sessions_need() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + &world.route("db-app");
    let limits = "ulimit -Sn 64 && ulimit -Hn 4096";
    let pglease = Pglease::start_after(limits, Path::new(BINARY), &settings).await;
    pglease.wait_ready().await;
    // Two descriptors each.
    let mut sessions = Vec::new();
    for _ in 0..40 {
        sessions.push(pglease.connect("app").await.unwrap());
    }
    for session in &sessions {
        session.batch_execute("SELECT 1").await.unwrap();
    }
    let lowered = pglease.events("listen.max_sessions_lowered");
    assert_eq!(lowered.len(), 0, "{lowered:?}");
    assert_eq!(pglease.logged("accept.exhausted").await.len(), 0);
}

#[tokio::test]
async fn lease_is_renewed_and_rotated_while_no_descriptor_is_left_for_clients() {
    let vault_roles = vec![VaultRole { default_ttl: "20s", max_ttl: "30s", ..VaultRole::default() }];
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let mut sessions = Vec::new();
    for _ in 0..60 {
        sessions.push(pglease.connect("app").await.unwrap());
    }

    let pid = pglease.process().pid();
    let before = limit_descriptors(pid, Some(90));
    let late = pglease.connect("app");
    let meanwhile = async {
        pglease.wait_for_event("accept.exhausted", PATIENCE).await;
        let so_far = |event| pglease.events(event).len();
        let (renewals, rotations) = (so_far("lease.renewed"), so_far("rotation.done"));
        let (began, ticks) = (Instant::now(), pglease.cpu_ticks());
        pglease.wait_for_events("lease.renewed", renewals + 2, PATIENCE).await;
        pglease.wait_for_events("rotation.done", rotations + 1, PATIENCE).await;
        // Between the two events it has looked now and then whether there is room, and has not spun.
        let (used, elapsed) = (pglease.cpu_ticks() - ticks, began.elapsed());
        assert!(u128::from(used) * 200 < elapsed.as_millis(), "{used} hundredths of a second in {elapsed:?}");
        for endpoint in ["/readyz", "/metrics"] {
            until(async || pglease.get(endpoint).await.0 == 200).await;
        }
        until_alive(&pglease).await;
        for session in &sessions {
            session.batch_execute("SELECT 1").await.unwrap();
        }
        assert!(pglease.events("accept.resumed").is_empty());
        limit_descriptors(pid, before);
    };
    let (served, ()) = tokio::join!(late, meanwhile);
    served.unwrap().batch_execute("SELECT 1").await.unwrap();
}

/// Sets what a child of ours may open, and gives what it might before.
fn limit_descriptors(child: Pid, current: Option<u64>) -> Option<u64> {
    let limit = Rlimit { current, maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(child), Resource::Nofile, limit).unwrap().current
}
