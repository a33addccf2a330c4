//! Sessions opened and closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::accounting::Spent;
use super::database::{Database, Session};
use super::measure::output::percentiles;
use super::measure::results::Figures;
use super::programs::add;
use super::stage::Target;

/// By so many clients, each one after the other, for so long.
pub(crate) async fn steady(target: &Target, clients: usize, time: Duration) -> Figures {
    let database = Arc::new(Database::parse(&target.url).expect("a URL of our own"));
    let before = target.proxy.map(Spent::of);
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let database = Arc::clone(&database);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < time {
                let (session, took) = connect(&database).await;
                session.close().await;
                times.push(took);
            }
            times
        });
    }
    let times: Vec<_> = tasks.join_all().await.concat();
    figures(times, begun.elapsed(), target, before)
}

/// So many at the same moment, several times, with time in between for what a proxy does ahead. As a pool that fills
/// keeps its sessions, none ends before all have begun.
pub(crate) async fn bursts(target: &Target, sessions: usize, time: Duration) -> Figures {
    let database = Arc::new(Database::parse(&target.url).expect("a URL of our own"));
    // What it learns by, and what it has ready then.
    connect(&database).await.0.close().await;
    let before = target.proxy.map(Spent::of);
    let mut times = Vec::new();
    let mut spent = Duration::ZERO;
    while spent < time {
        time::sleep(REST).await;
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..sessions {
            let database = Arc::clone(&database);
            tasks.spawn(async move { connect(&database).await });
        }
        let opened = tasks.join_all().await;
        spent += begun.elapsed() + REST / 4;
        for (session, took) in opened {
            session.close().await;
            times.push(took);
        }
    }
    figures(times, spent, target, before)
}

/// A session, and the ms from its first byte to ReadyForQuery.
async fn connect(database: &Database) -> (Session, f64) {
    let begun = Instant::now();
    let session = database.open().await.expect("a session");
    (session, begun.elapsed().as_secs_f64() * 1000.0)
}

fn figures(mut times: Vec<f64>, took: Duration, target: &Target, before: Option<Spent>) -> Figures {
    times.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "sessions are fewer than 2^52")]
    let count = times.len() as f64;
    let mut figures = Figures::new();
    add(&mut figures, "tps", Some(count / took.as_secs_f64()));
    let [p50, p99, _] = percentiles(&times);
    add(&mut figures, "p50_ms", p50);
    add(&mut figures, "p99_ms", p99);
    let spent = target.proxy.zip(before).map(|(proxy, before)| Spent::of(proxy).micros_since(&before));
    add(&mut figures, "cpu_us", spent.map(|spent| spent / count));
    figures
}

/// Before each burst.
const REST: Duration = Duration::from_millis(500);
