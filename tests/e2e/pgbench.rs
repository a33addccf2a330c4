//! PostgreSQL's own load generator, which knows nothing of leases, across rotations.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;

use crate::support::pglease::Pglease;
use crate::support::process::{Process, Spawn};
use crate::support::world::{Revocation, World};
use crate::{PATIENCE, pglease_with, until};

#[tokio::test]
async fn rotations_under_nologin_cost_no_client_of_any_protocol_an_error() {
    let world = pgbench_world(Revocation::NoLogin).await;
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;

    let [simple, extended, prepared] =
        PROTOCOLS.map(|protocol| pgbench(&world, &pglease, &["-c8", "-R150", "-M", protocol]));
    // A new connection for each transaction.
    let reconnecting = pgbench(&world, &pglease, &["-c2", "-R40", "-S", "-C"]);
    until(async || backends(&world).await >= 24).await;
    let users_before = users_of(&pglease).len();
    rotate_twice(&pglease).await;
    // The second successor serves as well.
    until(async || users_of(&pglease).len() >= users_before + 2).await;

    for run in [simple, extended, prepared, reconnecting] {
        let (is_success, output) = end(&run).await;
        assert!(is_success && output.contains("number of transactions actually processed"), "{output}");
        assert!(!output.contains("actually processed: 0"), "{output}");
        assert_no_error(&output);
    }
    let ends = pglease.logged("session.end").await;
    assert!(ends.iter().all(|end| end["reason"] == "client_closed"), "{ends:?}");
    assert!(pglease.events("session.refused").is_empty());
    assert_balanced(&world).await;
}

#[tokio::test]
async fn clients_that_connect_again_on_57p01_see_no_other_error_under_default_revocation() {
    let world = pgbench_world(Revocation::Drop).await;
    let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;

    let (is_over, told) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = async |number: usize| {
        let protocol = PROTOCOLS.get(number % PROTOCOLS.len()).unwrap();
        loop {
            let run = pgbench(&world, &pglease, &["-c1", "-R50", "-M", protocol]);
            let (is_success, output) = tokio::select! {
                biased;
                ended = ended(&run) => ended,
                () = until(async || is_over.load(Ordering::Relaxed)) => end(&run).await,
            };
            assert_no_error(&output.replace(TOLD, ""));
            if is_success {
                assert!(is_over.load(Ordering::Relaxed), "{output}");
                return;
            }
            assert!(output.contains(TOLD), "{output}");
            told.fetch_add(1, Ordering::Relaxed);
        }
    };
    let rotations = async {
        until(async || backends(&world).await >= 8).await;
        rotate_twice(&pglease).await;
        until(async || told.load(Ordering::Relaxed) >= 8).await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(
        client(0),
        client(1),
        client(2),
        client(3),
        client(4),
        client(5),
        client(6),
        client(7),
        rotations
    );

    // Who was done at that moment did not need to be told.
    let ends = pglease.logged("session.end").await;
    let of_lease =
        ends.iter().filter(|end| end["reason"] == "lease_ends" || end["reason"] == "lease_over").count();
    assert!(of_lease >= told.load(Ordering::Relaxed), "{ends:?}");
    let others = ends.iter().filter(|end| end["reason"] == "client_closed").count();
    assert_eq!(of_lease + others, ends.len(), "{ends:?}");
    assert!(pglease.events("session.refused").is_empty());
    assert_balanced(&world).await;
}

/// A world whose leases live for seconds, with pgbench's tables.
async fn pgbench_world(revocation: Revocation) -> World<'static> {
    let world = World::short_lived(revocation).await;
    let postgres = &world.servers.postgres;
    let arguments = ["-i", "-q", "-I", "dtGp", "-h", "127.0.0.1", "-U", "postgres", "-p"].map(str::to_owned);
    let made = Process::spawn(&Spawn {
        program: &postgres.bin().join("pgbench"),
        arguments: &[&arguments[..], &[postgres.port().to_string(), world.database()]].concat(),
        environment: &[("PGPASSWORD", "postgres")],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    });
    let (is_success, output) = ended(&made).await;
    assert!(is_success, "{output}");
    let sql = format!(
        "GRANT SELECT, INSERT, UPDATE ON pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history TO {}",
        world.group("app_rw")
    );
    world.superuser.batch_execute(&sql).await.unwrap();
    world
}

/// Runs until it is ended, or sees an error.
fn pgbench(world: &World<'_>, pglease: &Pglease, arguments: &[&str]) -> Process {
    let port = pglease.port().to_string();
    let common = ["-n", "-T", "3600", "-h", "localhost", "-p", &port, "-U", "app", "app"];
    let arguments: Vec<_> = arguments.iter().chain(&common).map(|&argument| argument.to_owned()).collect();
    Process::spawn(&Spawn {
        program: &world.servers.postgres.bin().join("pgbench"),
        arguments: &arguments,
        environment: &[],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    })
}

/// Makes believe that its time is up; as [`ended`].
async fn end(pgbench: &Process) -> (bool, String) {
    // Before it has a handler the signal would kill it.
    let catches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", pgbench.pid())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
        // A bit for each signal, from 1.
        u64::from_str_radix(caught, 16).unwrap() >> (Signal::ALARM.as_raw() - 1) & 1 == 1
    };
    tokio::select! {
        ended = ended(pgbench) => ended,
        () = until(async || catches()) => {
            pgbench.signal(Signal::ALARM);
            ended(pgbench).await
        }
    }
}

/// Whether it succeeded and all that it said, once it has ended.
async fn ended(process: &Process) -> (bool, String) {
    let status = process.wait_exit(PATIENCE * 3).await;
    process.lines().wait_for(PATIENCE, |_| None::<()>).await;
    (status.success(), process.lines().all().join("\n"))
}

fn assert_no_error(output: &str) {
    for word in ["ERROR:", "FATAL:", "PANIC:"] {
        assert!(!output.contains(word), "{output}");
    }
}

async fn rotate_twice(pglease: &Pglease) {
    let before = pglease.events("rotation.done").len();
    pglease.wait_for_events("rotation.done", before + 2, PATIENCE).await;
}

/// Of pgbench, to be found by the name of its application.
async fn backends(world: &World<'_>) -> usize {
    let sql =
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbench' AND datname = current_database()";
    world.superuser.rows(sql).await.len()
}

/// Leased roles that have served sessions.
fn users_of(pglease: &Pglease) -> BTreeSet<String> {
    pglease.events("session.start").iter().map(|start| start["db_role"].to_string()).collect()
}

/// Every transaction has moved the same amount in all four tables, or nothing.
async fn assert_balanced(world: &World<'_>) {
    let sql = "SELECT a = b AND b = t AND t = h AND n > 0
        FROM (SELECT sum(abalance) a FROM pgbench_accounts) _a, (SELECT sum(bbalance) b FROM pgbench_branches) _b,
            (SELECT sum(tbalance) t FROM pgbench_tellers) _t,
            (SELECT sum(delta) h, count(*) n FROM pgbench_history) _h";
    assert_eq!(world.superuser.rows(sql).await, [[Some("t".to_owned())]]);
}

const PROTOCOLS: [&str; 3] = ["simple", "extended", "prepared"];

/// How libpq shows a 57P01 for reason of the lease, which ends or, at the latest, has ended.
const TOLD: &str = "FATAL:  terminating connection because the lease of its database credential";
