//! A day of a fleet that starts within one second, by the tables that pglease itself goes by: how evenly its requests
//! to Vault come, and how many they are. `make bench-fleet`.

#![expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "a table for people, of small numbers")]

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use pglease::simulation::{Request, Rules, live};

/// `default_ttl` of lease and token, `max_ttl` of the lease, life of the JWT, whether a token's renewal needs the JWT.
type Case = (Duration, Duration, Duration, bool);

const CASES: [Case; 6] = [
    (HOUR, DAY, DAY, true),
    (HOUR, DAY, HOUR, false),
    (MINUTE.saturating_mul(15), DAY, DAY, true),
    (MINUTE.saturating_mul(15), DAY, DAY, false),
    (HOUR, DAY, HOUR, true),
    (HOUR, HOUR.saturating_mul(8), HOUR, false),
];

fn main() -> ExitCode {
    println!(
        "{INSTANCES} instances that start within a second, for a day. Requests to Vault per minute, but for the"
    );
    println!("logins (each with its lookup-self) and the creds reads of the first minute:\n");
    println!(
        "| lease | JWT | renew-self as | requests per pod and hour | mean | peak | in minute | peak ÷ mean |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let ratios: Vec<_> = CASES.into_iter().map(row).collect();
    let is_even = ratios.iter().all(|&ratio| ratio <= MAX_RATIO);
    println!("\n{}", if is_even { "even" } else { "uneven: a peak is more than twice the mean" });
    if is_even { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the row of a case; gives peak ÷ mean.
fn row((ttl, max_ttl, jwt, renewal_needs_jwt): Case) -> f64 {
    let rules = Rules { lease: (ttl, max_ttl), token: (ttl, DAY * 32), jwt, renewal_needs_jwt };
    let minutes = fleet(rules);
    let total = minutes.iter().sum::<u64>() as f64;
    let mean = total / minutes.len() as f64;
    let (at, peak) = minutes.iter().enumerate().max_by_key(|(_, count)| **count).unwrap_or((0, &0));
    let ratio = *peak as f64 / mean;
    println!(
        "| {}/{} | {} | {} | {:.1} | {mean:.0} | {peak} | {at} | {ratio:.2} |",
        span(ttl),
        span(max_ttl),
        span(jwt),
        if renewal_needs_jwt { "OpenBao" } else { "Vault" },
        total / INSTANCES as f64 / 24.0,
    );
    ratio
}

fn span(span: Duration) -> String {
    let minutes = span.as_secs() / 60;
    if minutes < 60 { format!("{minutes} min") } else { format!("{} h", minutes / 60) }
}

/// Requests by minute.
fn fleet(rules: Rules) -> Vec<u64> {
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let mut sum = vec![0; MINUTES];
    thread::scope(|scope| {
        let shares: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || some(rules, first as u64, threads))).collect();
        for minutes in shares.into_iter().filter_map(|share| share.join().ok()) {
            sum.iter_mut().zip(minutes).for_each(|(sum, count)| *sum += count);
        }
    });
    sum
}

/// Every `step`th instance, from number `first` on.
fn some(rules: Rules, first: u64, step: usize) -> Vec<u64> {
    let mut minutes = vec![0; MINUTES];
    for number in (first..INSTANCES).step_by(step) {
        let start = Duration::from_secs(1).mul_f64(number as f64 / INSTANCES as f64);
        live(&rules, start, DAY, number, |request, at| {
            let minute = usize::try_from(at.as_secs() / 60).unwrap_or(usize::MAX);
            let starts = minute == 0 && matches!(request, Request::Login | Request::Creds);
            if let (Some(count), false) = (minutes.get_mut(minute), starts) {
                *count += if request == Request::Login { 2 } else { 1 };
            }
        });
    }
    minutes
}

const INSTANCES: u64 = 100_000;

const MINUTE: Duration = Duration::from_mins(1);

const HOUR: Duration = Duration::from_hours(1);

const DAY: Duration = Duration::from_hours(24);

const MINUTES: usize = 24 * 60;

const MAX_RATIO: f64 = 2.0;
