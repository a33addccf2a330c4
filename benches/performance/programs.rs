//! PostgreSQL's own clients, and strace, run and read.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{self, Instant};

use super::accounting::{Spent, memory_kib};
use super::measure::output;
use super::measure::results::Figures;
use super::peers::{Absent, find};
use super::stage::{Stage, Target};
use super::support::PATIENCE;
use super::support::process::Folder;

/// pgbench for so long: throughput, latencies, and what the proxy spent on each transaction. What comes before that,
/// its sessions and the first look of each server process at its tables, does not count.
pub(crate) async fn pgbench(
    stage: &Stage,
    target: &Target,
    clients: u32,
    arguments: &[&str],
    time: Duration,
) -> Figures {
    let (clients, threads) = (clients.to_string(), if clients == 1 { "1" } else { "2" });
    let mut warm = time.min(Duration::from_secs(1));
    // On a busy machine that may be over before all clients are connected: then there is nothing to report.
    let (times, took, spent) = loop {
        let logs = Folder::create(None);
        let prefix = logs.path().join("log").display().to_string();
        // pgbench knows whole seconds.
        let span = (warm + time).as_secs_f64().ceil().to_string();
        let common = ["-n", "-c", &clients, "-j", threads, "-T", &span, "--log", "--log-prefix", &prefix];
        let arguments = [&common[..], arguments, &[&target.url]].concat();
        let measured = async {
            time::sleep(warm).await;
            let (begin, before) = (since_1970(), target.proxy.map(Spent::of));
            time::sleep(time).await;
            let after = target.proxy.map(Spent::of);
            let spent = after.zip(before).map(|(after, before)| after.micros_since(&before));
            (begin..since_1970(), spent)
        };
        let (output, (window, spent)) = tokio::join!(run(stage, "pgbench", &arguments), measured);
        assert!(output.status.success(), "{output:?}");
        let logs =
            fs::read_dir(logs.path()).unwrap().map(|log| fs::read_to_string(log.unwrap().path()).unwrap());
        let times = output::pgbench_log(logs.collect::<Vec<_>>().iter().map(String::as_str), &window);
        if !times.is_empty() {
            break (times, window.end.saturating_sub(window.start), spent);
        }
        assert!(warm < PATIENCE, "no transaction: {output:?}");
        warm *= 2;
    };

    let count = f64::from(u32::try_from(times.len()).unwrap());
    let mut figures = Figures::from([("tps".to_owned(), count / took.as_secs_f64())]);
    add(&mut figures, "cpu_us", spent.map(|spent| spent / count));
    let [p50, p99, _] = output::percentiles(&times);
    add(&mut figures, "p50_ms", p50);
    add(&mut figures, "p99_ms", p99);
    add(&mut figures, "rss_mib", target.proxy.map(|proxy| memory_kib(proxy, "VmRSS") / 1024.0));
    figures
}

fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

/// The same with a script.
pub(crate) async fn script(
    stage: &Stage,
    target: &Target,
    clients: u32,
    lines: &str,
    time: Duration,
) -> Figures {
    let file = stage.world.folder().join("script.sql");
    fs::write(&file, lines).unwrap();
    let arguments = ["-M", "prepared", "-f", &file.display().to_string()];
    let mut figures = pgbench(stage, target, clients, &arguments, time).await;
    // Where an answer comes in many reads, pgbench logs times of 0: it looks at the clock once for all of them.
    figures.retain(|name, _| !["p50_ms", "p99_ms"].contains(&name.as_str()));
    figures
}

/// COPY of the wide table, so many times, from the server to nowhere.
pub(crate) async fn copy_out(stage: &Stage, target: &Target, times: u32) -> Figures {
    let sql = format!("COPY (SELECT body FROM wide, generate_series(1, {times})) TO STDOUT");
    copy(stage, target, &sql, None, times).await
}

/// COPY of the same from a file to a server that keeps nothing of it.
pub(crate) async fn copy_in(stage: &Stage, target: &Target, times: u32) -> Figures {
    let file = stage.world.folder().join(format!("copy-{times}"));
    if !file.exists() {
        let row = "x".repeat(1023) + "\n";
        fs::write(&file, row.repeat(usize::try_from(WIDE_ROWS * times).unwrap())).unwrap();
    }
    copy(stage, target, "COPY sink FROM STDIN WHERE false", Some(file), times).await
}

async fn copy(stage: &Stage, target: &Target, sql: &str, from: Option<PathBuf>, times: u32) -> Figures {
    let before = target.proxy.map(Spent::of);
    let mut command = command(stage, "psql");
    command.args(["-Xqc", sql, &target.url]).stdout(Stdio::null());
    command.stdin(from.map_or_else(Stdio::null, |file| File::open(file).unwrap().into()));
    let begun = Instant::now();
    let output = time::timeout(PATIENCE, command.output()).await.expect("psql ends").unwrap();
    let took = begun.elapsed();
    assert!(output.status.success(), "{output:?}");
    let mib = f64::from(WIDE_ROWS * times) / 1024.0;
    let mut figures = Figures::from([("mib_s".to_owned(), mib / took.as_secs_f64())]);
    let spent = target.proxy.zip(before).map(|(proxy, before)| Spent::of(proxy).micros_since(&before));
    add(&mut figures, "cpu_us", spent.map(|spent| spent / mib));
    add(&mut figures, "rss_mib", target.proxy.map(|proxy| memory_kib(proxy, "VmRSS") / 1024.0));
    figures
}

/// System calls of the proxy for each of some thousand round trips.
pub(crate) async fn calls(stage: &Stage, target: &Target) -> Result<Figures, Absent> {
    let strace = find("strace")?;
    let Some(proxy) = target.proxy else { return Ok(Figures::new()) };
    let mut traced = Command::new(strace);
    traced.args(["-c", "-f", "-p", &proxy.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut traced = traced.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut said = BufReader::new(traced.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).await.unwrap();
    if !line.contains("attached") {
        return Err(format!("strace may not look at it ({})", line.trim()));
    }
    let count = TRACED.to_string();
    let arguments = ["-n", "-S", "-M", "prepared", "-c", "1", "-t", &count, &target.url];
    let output = run(stage, "pgbench", &arguments).await;
    assert!(output.status.success(), "{output:?}");
    let pid = traced.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("strace runs");
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let mut summary = String::new();
    said.read_to_string(&mut summary).await.unwrap();
    let calls = output::strace(&summary).unwrap_or_else(|| panic!("{summary}"));
    Ok(Figures::from([("calls".to_owned(), calls / f64::from(TRACED))]))
}

async fn run(stage: &Stage, program: &str, arguments: &[&str]) -> Output {
    let mut command = command(stage, program);
    command.args(arguments).stdin(Stdio::null());
    time::timeout(PATIENCE * 3, command.output()).await.expect("it ends").unwrap()
}

fn command(stage: &Stage, program: &str) -> Command {
    // In a session of its own, as the proxies and each server process are.
    let mut command = Command::new("setsid");
    command.arg(stage.world.servers.postgres.bin().join(program));
    command.env_clear().current_dir(stage.world.folder()).kill_on_drop(true);
    command
}

/// Adds a figure that there is.
pub(crate) fn add(figures: &mut Figures, name: &str, value: Option<f64>) {
    figures.extend(value.map(|value| (name.to_owned(), value)));
}

/// Of 1 KiB each.
const WIDE_ROWS: u32 = 65_536;
/// Round trips under strace.
const TRACED: u32 = 2000;
