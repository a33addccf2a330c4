//! Case C42: connections of a pool that end while they rest, in TLS. `SQLAlchemy`'s ping takes each such end for a
//! disconnect, through pglease as in front of PostgreSQL itself, and the application sees nothing of it.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::task;

use super::stage::{difference, install, session, spawn};
use super::{Played, assert_passed};
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::pki::Authority;
use crate::support::process::Process;
use crate::support::world::{World, WorldOptions};
use crate::support::{Servers, free_ports};
use crate::{PATIENCE, pglease_with, until};

/// How the connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As at the end of a lease under `close`; directly, by `pg_terminate_backend`.
    Closed,
    /// `kill -9` of a backend, whereupon the server ends all.
    BackendKilled,
    /// The server is shut down "fast", and started.
    Shutdown,
    /// The same "immediate".
    ImmediateShutdown,
    /// The network before the server is gone for a moment.
    Cut,
    /// pglease gets SIGTERM, and a new one is started.
    Drained,
    /// SIGKILL; directly, of the postmaster.
    Killed,
}

/// And what psycopg's ping shows of it, through pglease and directly; nothing where it has no words of the other side to
/// show. The words of the others are those of a connection that is closed.
const ENDS: &[(End, &str, &str)] = &[
    (End::Closed, "terminating connection because an operator has replaced", TOLD),
    (End::Cut, LOST, ""),
    (End::Shutdown, TOLD, TOLD),
    (End::BackendKilled, LOST, ""),
    (End::ImmediateShutdown, LOST, ""),
    (End::Drained, "terminating connection because pglease is shutting down", ""),
    (End::Killed, "", ""),
];

/// By the server.
const TOLD: &str = "terminating connection due to administrator command";

/// By pglease, where the server has said nothing that ends a session.
const LOST: &str = "connection to upstream server was lost";

#[tokio::test]
async fn case_c42_ping_knows_every_end_in_tls_and_the_work_is_done_on_a_fresh_connection() {
    let found = task::spawn_blocking(|| install("python")).await.unwrap();
    if let Some(missing) = found["missing"].as_str() {
        assert_passed(&Played::Missing(missing.to_owned()), "pre_ping");
        return;
    }
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let mut scene = Scene::set(&world, &found["programs"]["pre_ping"]).await;
    for (program, pings) in scene.use_all(1).await {
        assert_eq!(pings, Vec::<String>::new(), "{program}: nothing has ended");
    }
    for (number, &(end, through, direct)) in (2..).zip(ENDS) {
        scene.end(end).await;
        for (program, pings) in scene.use_all(number).await {
            let (is_through, has_words) = (program.starts_with("through"), program.ends_with("psycopg"));
            let words = if is_through { through } else { direct };
            if end == End::Drained && !is_through {
                assert_eq!(pings, Vec::<String>::new(), "{end:?}, {program}: nothing has ended");
                continue;
            }
            // The first ping that fails empties the pool.
            assert_eq!(pings.len(), 1, "{end:?}, {program}: {pings:?}");
            assert!(!has_words || pings[0].contains(words), "{end:?}, {program}: {pings:?}");
        }
    }
}

/// One program behind pglease, and one that talks to PostgreSQL, each by a gate.
struct Scene<'a> {
    world: &'a World<'a>,
    gate: Gate,
    settings: String,
    pglease: Pglease,
    programs: [(&'static str, Process); 2],
}

impl<'a> Scene<'a> {
    async fn set(world: &'a World<'a>, program: &Value) -> Self {
        let postgres = &world.servers.postgres;
        let sql = format!("CREATE ROLE direct LOGIN PASSWORD 'direct' IN ROLE {}", world.group("app_rw"));
        world.superuser.batch_execute(&sql).await.unwrap();

        let authority = Authority::create();
        let certificate = authority.issue(&["localhost"]);
        let [ca_file, cert_file, key_file] = ["ca.pem", "pglease.crt", "pglease.key"]
            .map(|name| world.folder().join(name).display().to_string());
        fs::write(&ca_file, authority.pem()).unwrap();
        fs::write(&cert_file, certificate.certificate).unwrap();
        fs::write(&key_file, certificate.key).unwrap();

        let gate = Gate::to(postgres.port()).await;
        let port = free_ports(1);
        let listen = format!("tls_cert_file = {cert_file:?}\ntls_key_file = {key_file:?}");
        let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
        let settings = settings.replace("\"localhost:0\"", &format!("\"localhost:{port}\""));
        let gated = |text: String| {
            text.replace(&format!("localhost:{}", postgres.port()), &gate.address().to_string())
        };
        let settings = settings + &gated(world.route("db-app"));
        let pglease = pglease_with(&settings).await;

        let through =
            format!("postgresql://app@localhost:{port}/app?sslmode=verify-full&sslrootcert={ca_file}");
        let direct =
            gated(postgres.url(&world.database())).replace("postgresql://", "postgresql://direct:direct@");
        let start = |url: String| {
            let environment = [
                ("DATABASE_URL", url),
                ("PATH", crate::support::env("PATH").unwrap_or_default()),
                ("HOME", world.folder().display().to_string()),
            ];
            spawn(program, &environment, world.folder())
        };
        let programs = [("through", start(through)), ("direct", start(direct))];
        Self { world, gate, settings, pglease, programs }
    }

    /// Has every driver of both programs do its work, for the `number`th time; gives what the pings met.
    async fn use_all(&self, number: usize) -> Vec<(String, Vec<String>)> {
        for (_, process) in &self.programs {
            process.tell("use");
        }
        let mut met = Vec::new();
        for (way, process) in &self.programs {
            let nth = |lines: &[String]| {
                let mut used = lines.iter().filter_map(|line| line.strip_prefix("used "));
                used.nth(number - 1).map(str::to_owned)
            };
            let used = process.lines().wait_for(PATIENCE * 2, nth).await;
            let used = used.unwrap_or_else(|| panic!("{way}: no answer:\n{}", process.lines().tail()));
            let used: Value = serde_json::from_str(&used).unwrap();
            for (driver, outcome) in used.as_object().unwrap() {
                assert_eq!(outcome["error"], Value::Null, "{way}, {driver}, use {number}: {outcome}");
                let pings = outcome["pings"].as_array().unwrap().iter();
                met.push((
                    format!("{way} {driver}"),
                    pings.map(|ping| ping.as_str().unwrap().to_owned()).collect(),
                ));
            }
        }
        met
    }

    /// Ends all connections, and returns once they have ended and the way is open again.
    async fn end(&mut self, end: End) {
        let postgres = &self.world.servers.postgres;
        let open: BTreeSet<_> = difference(&self.pglease, "session.start", "session.end");
        assert!(!open.is_empty());
        match end {
            End::Closed => {
                self.pglease.run_command(&["rotate", "--close"]).await;
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'direct'";
                let superuser = postgres.connect("postgres").await;
                superuser.batch_execute(sql).await.unwrap();
                until(async || self.backends("direct").await.is_empty()).await;
            }
            End::BackendKilled => {
                let is_up = |line: &&String| line.contains("ready to accept connections");
                let process = postgres.process();
                let before = process.lines().all().iter().filter(is_up).count();
                let (through, direct) =
                    (self.backends(&self.world.role_prefix()).await, self.backends("direct").await);
                for pid in [through[0], direct[0]] {
                    // Where the other's end has ended it already it is gone.
                    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
                }
                let again = |lines: &[String]| (lines.iter().filter(is_up).count() > before).then_some(());
                process.lines().wait_for(PATIENCE, again).await.expect("PostgreSQL recovers");
            }
            End::Shutdown => postgres.restart().await,
            End::ImmediateShutdown => {
                postgres.stop_at_once().await;
                postgres.start_again().await;
            }
            End::Cut => {
                self.gate.close().await;
                self.wait_for_ends(&open).await;
                self.gate.open().await;
            }
            End::Drained => {
                self.pglease.sigterm();
                assert_eq!(self.pglease.wait_exit(PATIENCE).await.code(), Some(0));
                self.pglease = pglease_with(&self.settings).await;
            }
            End::Killed => {
                self.pglease.kill();
                self.pglease.wait_exit(PATIENCE).await;
                postgres.kill().await;
                postgres.start_again().await;
                self.pglease = pglease_with(&self.settings).await;
            }
        }
        if !matches!(end, End::Drained | End::Killed) {
            self.wait_for_ends(&open).await;
        }
    }

    async fn wait_for_ends(&self, open: &BTreeSet<String>) {
        until(async || {
            let ended: BTreeSet<_> = self.pglease.events("session.end").iter().map(session).collect();
            open.is_subset(&ended)
        })
        .await;
    }

    /// Of the users whose names begin so.
    async fn backends(&self, prefix: &str) -> Vec<i32> {
        let superuser = self.world.servers.postgres.connect("postgres").await;
        let sql = "SELECT pid FROM pg_stat_activity WHERE starts_with(usename, $1)";
        superuser.query(sql, &[&prefix]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}
