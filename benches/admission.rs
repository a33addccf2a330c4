//! How long an API server waits for the injector: 100 reviews a second over HTTPS, by a clock and not by the answers,
//! of a pod that gets its sidecar. `make bench-admission`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a table for people; what fails here fails the bench"
)]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use other parts of it")]
mod support;

mod shipped;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{self, Instant, MissedTickBehavior};

use support::injector::{Injector, pod, review};
use support::process;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let settings = "settings = [\"vault.address=https://vault.vault.svc:8200\"]\n";
    let injector = Arc::new(Injector::start(&shipped::PROGRAM, settings).await);
    let body = review("705ab4f5-0001-4a4f-9a57-3b1f6a1e5c11", &pod()).to_string();
    println!(
        "{RATE} reviews a second of {} bytes for {} s, in ms from the time they are due:\n",
        body.len(),
        ROUND.as_secs()
    );
    println!("| round | answered | p50 | p99 | p99.9 | longest |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for number in 1..=ROUNDS {
        let round = round(&injector, &body).await;
        println!(
            "| {number} | {} | {:.2} | {:.2} | {:.2} | {:.2} |",
            round.len(),
            quantile(&round, 500),
            quantile(&round, 990),
            quantile(&round, 999),
            quantile(&round, 1000)
        );
    }
    println!(
        "\nmemory of the injector: {} KiB, at most {} KiB",
        memory(&injector, "VmRSS"),
        memory(&injector, "VmHWM")
    );
    drop(injector);
    process::finish();
    ExitCode::SUCCESS
}

/// Latencies, in order. Each counts from when its review was due: one that is sent late has waited, too.
async fn round(injector: &Arc<Injector>, body: &str) -> Vec<Duration> {
    let mut due = time::interval(Duration::from_secs(1) / RATE);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + ROUND;
    let mut reviews = JoinSet::new();
    loop {
        let began = due.tick().await;
        if began >= end {
            break;
        }
        let (injector, body) = (Arc::clone(injector), body.to_owned());
        reviews.spawn(async move {
            let (status, answer) = injector.post(body).await.expect("an answer");
            assert!(status == 200 && answer.contains("\"patch\""), "{status}: {answer}");
            began.elapsed()
        });
    }
    let mut latencies = reviews.join_all().await;
    latencies.sort();
    latencies
}

/// In ms, of so many thousandths.
fn quantile(latencies: &[Duration], thousandths: usize) -> f64 {
    let index = (latencies.len() * thousandths).div_ceil(1000).saturating_sub(1);
    latencies.get(index).unwrap().as_secs_f64() * 1000.0
}

fn memory(injector: &Injector, field: &str) -> u64 {
    injector.pglease.memory_kib(field)
}

const RATE: u32 = 100;
const ROUND: Duration = Duration::from_secs(30);
const ROUNDS: usize = 3;
