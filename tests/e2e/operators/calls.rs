//! What a round trip and a session's set-up cost in system calls. Counts come out the same however busy the machine is,
//! so that they hold the line where a time could not.
//!
//! `calls/count.c` counts them, which takes neither a right nor a tool that a machine may lack: Rust links with a C
//! compiler.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BINARY;
use crate::support::pglease::Pglease;
use crate::support::world::{World, WorldOptions};

#[tokio::test]
async fn round_trip_takes_six_system_calls_with_tls_as_without() {
    for ssl_mode in ["disable", "verify-full"] {
        let counted = Counted::start(ssl_mode).await;
        let session = counted.pglease.connect(&counted.world.database()).await.unwrap();
        session.batch_execute("SELECT 1").await.unwrap();
        let before = counted.calls();
        for _ in 0..ROUND_TRIPS {
            session.batch_execute("SELECT 1").await.unwrap();
        }
        let calls = since(&counted.calls(), &before);
        let all = calls.values().sum::<u64>();
        // Nothing that was counted would be nothing at all.
        assert!(all >= 4 * ROUND_TRIPS, "sslmode={ssl_mode}: {calls:?}");
        assert!(all <= 6 * ROUND_TRIPS + SLACK, "sslmode={ssl_mode}: {calls:?}");
    }
}

#[tokio::test]
async fn system_calls_of_a_session_do_not_grow() {
    for (ssl_mode, most_steady) in [("disable", 26), ("verify-full", 30)] {
        let counted = Counted::start(ssl_mode).await;
        let connect = async || {
            let session = counted.pglease.connect(&counted.world.database()).await.unwrap();
            session.batch_execute("SELECT 1").await.unwrap();
        };
        connect().await;
        let before = counted.calls();
        for _ in 0..SESSIONS {
            connect().await;
        }
        let calls = since(&counted.calls(), &before);
        let all = calls.values().sum::<u64>();
        let steady: u64 = calls
            .iter()
            .filter(|(name, _)| !BY_ARRIVAL.contains(&name.as_str()))
            .map(|(_, count)| count)
            .sum();
        assert!(steady <= most_steady * SESSIONS, "sslmode={ssl_mode}: {calls:?}");
        assert!((10 * SESSIONS..100 * SESSIONS).contains(&all), "sslmode={ssl_mode}: {calls:?}");
    }
}

/// pglease in a world of its own, with the calls of its data thread counted.
struct Counted {
    world: World<'static>,
    pglease: Pglease,
    counts: PathBuf,
}

impl Counted {
    async fn start(ssl_mode: &str) -> Self {
        let world = World::shared(WorldOptions::default()).await;
        let (library, counts) = (world.folder().join("count.so"), world.folder().join("counts"));
        compile("calls/count.c", &library);
        let mut route = world.route("db-app");
        if ssl_mode == "disable" {
            // A CA would promise what is not looked at.
            let ca = format!("&sslrootcert={}", world.servers.postgres.ca_file().display());
            route = route.replacen("sslmode=verify-full", "sslmode=disable", 1).replacen(&ca, "", 1);
        }
        let settings = world.settings_with("info", &world.servers.openbao.address(), "") + &route;
        let load = format!(
            "export LD_PRELOAD='{}' COUNT_FILE='{}' COUNT_THREAD=data",
            library.display(),
            counts.display()
        );
        let pglease = Pglease::start_after(&load, Path::new(BINARY), &settings).await;
        pglease.wait_ready().await;
        Self { world, pglease, counts }
    }

    /// So far, by name.
    fn calls(&self) -> BTreeMap<String, u64> {
        let file = fs::read(&self.counts).unwrap();
        let entries = file.as_chunks::<ENTRY_LEN>().0.iter();
        let entry = |entry: &[u8; ENTRY_LEN]| {
            let (name, count) = entry.split_at(NAME_LEN);
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            (name, u64::from_ne_bytes(count.try_into().unwrap()))
        };
        entries.map(entry).collect()
    }
}

/// Makes a library of a source beside this file.
pub(super) fn compile(source: &str, library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/operators").join(source);
    let mut command = Command::new("cc");
    command.args(["-O1", "-shared", "-fPIC", "-o"]).args([library, &source]).arg("-ldl");
    let output = command.output().expect("cc, which Rust links with");
    assert!(output.status.success(), "{output:?}");
}

/// Those that were made between two looks.
fn since(after: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let made = after.iter().map(|(name, count)| (name.clone(), count - before[name]));
    made.filter(|(_, count)| *count > 0).collect()
}

const ROUND_TRIPS: u64 = 500;
/// For what else wakes the thread now and then.
const SLACK: u64 = 100;
const SESSIONS: u64 = 20;
/// What there is more of where bytes arrive in more pieces, and where another thread has something to say.
const BY_ARRIVAL: [&str; 4] = ["epoll_wait", "recv", "read", "write"];

/// `struct count` of `count.c`.
const NAME_LEN: usize = 24;
const ENTRY_LEN: usize = NAME_LEN + 8;
