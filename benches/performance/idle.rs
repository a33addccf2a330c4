//! Thousands of sessions that do nothing, and some of them at work.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_rustls::TlsConnector;

use super::accounting::{GIVEN_BACK, Spent, memory_kib};
use super::measure::output::percentiles;
use super::measure::results::Figures;
use super::peers::{self, Absent};
use super::programs::add;
use super::scenarios::{Tls, Way};
use super::scripted::{Client, Scripted};
use super::stage::Stage;

/// Opens so many sessions, or as many as descriptors allow, looks what they take, has some of them ask for so long, and
/// closes all.
pub(crate) async fn idle(
    stage: &Stage,
    (way, tls): (Way, Tls),
    sessions: usize,
    active: usize,
    time: Duration,
) -> Result<Figures, Absent> {
    // Two for each session, of this process and of the proxy alike, and some for the rest.
    let sessions = sessions.min(descriptors().saturating_sub(1000) / 2);
    let upstream = Scripted::start(tls.of_upstream().then(|| stage.acceptor())).await;
    let connector = tls.of_client().then(|| stage.connector());
    if way == Way::Haproxy {
        let peer = peers::haproxy(upstream.port, sessions).await?;
        return Ok(measure(peer.process.pid(), (peer.port, connector), sessions, active, time).await);
    }
    let listen = format!("max_sessions = {}\n", sessions + 2 * AT_ONCE);
    let pglease = stage.before_scripted(upstream.port, tls, &listen).await;
    Ok(measure(pglease.process().pid(), (pglease.port(), connector), sessions, active, time).await)
}

async fn measure(
    proxy: Pid,
    (port, connector): (u16, Option<TlsConnector>),
    sessions: usize,
    active: usize,
    time: Duration,
) -> Figures {
    let open = async |count: usize| {
        let mut clients = Vec::with_capacity(count);
        while clients.len() < count {
            let mut opening = JoinSet::new();
            for _ in (clients.len()..count).take(AT_ONCE) {
                opening.spawn(Client::open(port, connector.clone()));
            }
            clients.extend(opening.join_all().await.into_iter().map(|client| client.expect("a session")));
        }
        clients
    };
    // What comes once is not of a session.
    drop(open(AT_ONCE).await);
    settle(proxy).await;
    let before = memory_kib(proxy, "VmRSS");
    let mut clients = open(sessions).await;
    settle(proxy).await;
    #[expect(clippy::cast_precision_loss, reason = "sessions are fewer than 2^52")]
    let count = sessions as f64;
    let each = (memory_kib(proxy, "VmRSS") - before) / count;
    let mut figures = Figures::from([("sessions".to_owned(), count), ("session_kib".to_owned(), each)]);

    let working = clients.split_off(sessions.saturating_sub(active));
    let (spent, begun) = (Spent::of(proxy), Instant::now());
    let mut asking = JoinSet::new();
    for mut client in working {
        asking.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < time {
                let asked = Instant::now();
                client.query().await.expect("an answer");
                times.push(asked.elapsed().as_secs_f64() * 1000.0);
            }
            (client, times)
        });
    }
    let (working, times): (Vec<_>, Vec<_>) = asking.join_all().await.into_iter().unzip();
    let took = begun.elapsed();
    let mut times = times.concat();
    times.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "queries are fewer than 2^52")]
    let queries = times.len() as f64;
    add(&mut figures, "tps", Some(queries / took.as_secs_f64()));
    add(&mut figures, "cpu_us", Some(Spent::of(proxy).micros_since(&spent) / queries));
    let [p50, p99, _] = percentiles(&times);
    add(&mut figures, "p50_ms", p50);
    add(&mut figures, "p99_ms", p99);
    add(&mut figures, "rss_mib", Some(memory_kib(proxy, "VmRSS") / 1024.0));
    add(&mut figures, "peak_mib", Some(memory_kib(proxy, "VmHWM") / 1024.0));

    drop((clients, working));
    settle(proxy).await;
    // The short run has no time for it.
    if time >= Duration::from_secs(1) {
        time::sleep(GIVEN_BACK).await;
    }
    add(&mut figures, "after_mib", Some(memory_kib(proxy, "VmRSS") / 1024.0));
    figures
}

/// Until the proxy has nothing to do, so far as its time on a CPU tells.
async fn settle(proxy: Pid) {
    for _ in 0..100 {
        let before = Spent::of(proxy);
        time::sleep(Duration::from_millis(200)).await;
        if Spent::of(proxy).micros_since(&before) < 4000.0 {
            return;
        }
    }
}

/// How many this process and its children may have, as many as it may allow itself: root more than others.
fn descriptors() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let is_enough = maximum.is_none_or(|maximum| maximum >= ENOUGH);
    let raised = if is_enough { maximum } else { Some(ENOUGH) };
    if setrlimit(Resource::Nofile, Rlimit { current: Some(ENOUGH), maximum: raised }).is_err() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(current).unwrap_or(usize::MAX)
}

/// Descriptors for all sessions of the scenario.
const ENOUGH: u64 = 20_000;
/// Sessions that are opened side by side: startups have a limit of their own.
const AT_ONCE: usize = 50;
