//! What pgbench, strace and the kernel say, read.

use std::array;
use std::ops::Range;
use std::time::Duration;

use super::spread::quantile;

/// Milliseconds of each transaction that ended within `window`, counted from 1970, in logs of pgbench (`--log`); in
/// order.
pub(crate) fn pgbench_log<'a>(logs: impl IntoIterator<Item = &'a str>, window: &Range<Duration>) -> Vec<f64> {
    let time = |line: &str| {
        let mut columns = line.split(' ').map(str::parse::<u64>);
        let mut number = || columns.next()?.ok();
        let [_client, _transaction, micros, _script, epoch, epoch_micros] = array::from_fn(|_| number());
        let ended = Duration::from_secs(epoch?) + Duration::from_micros(epoch_micros?);
        window.contains(&ended).then_some(Duration::from_micros(micros?).as_secs_f64() * 1000.0)
    };
    let mut times: Vec<_> = logs.into_iter().flat_map(str::lines).filter_map(time).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// p50 and p99 of times in order.
pub(crate) fn percentiles(sorted: &[f64]) -> [Option<f64>; 3] {
    [0.5, 0.99, 0.999].map(|share| quantile(sorted, share))
}

/// All calls in a summary of `strace -c`, but those that only start and stop.
pub(crate) fn strace(summary: &str) -> Option<f64> {
    let total = summary.lines().rfind(|line| line.trim_end().ends_with(" total"))?;
    // % time, seconds, usecs/call, calls, errors where there are any; older ones leave usecs/call of the total empty.
    let columns: Vec<_> = total.split_whitespace().collect();
    let whole = columns.iter().skip(2).filter(|column| !column.contains('.'));
    let numbers: Vec<f64> = whole.filter_map(|column| column.parse().ok()).collect();
    match numbers[..] {
        [calls] => Some(calls),
        [.., calls, _] if numbers.len() == 3 => Some(calls),
        // usecs/call and calls, or calls and errors: there are never more errors than calls.
        [first, second] => Some(first.max(second)),
        _ => None,
    }
}

/// Nanoseconds on a CPU, of `/proc/PID/task/TID/schedstat`.
pub(crate) fn schedstat(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// A size in `/proc/PID/status`, in KiB.
pub(crate) fn status_kib(text: &str, field: &str) -> Option<f64> {
    let size = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    size.trim().trim_end_matches(" kB").parse().ok()
}
