//! What pgbench, strace and the kernel say, read.

use super::spread::quantile;

/// The end of pgbench's report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) transactions: f64,
    pub(crate) tps: f64,
}

/// Nothing of a report that is not one.
pub(crate) fn pgbench(output: &str) -> Option<Report> {
    let number = |line: &str| line.split_whitespace().next()?.split('/').next()?.parse().ok();
    let behind = |start: &str| output.lines().find_map(|line| number(line.strip_prefix(start)?));
    Some(Report {
        transactions: behind("number of transactions actually processed:")?,
        tps: behind("tps =")?,
    })
}

/// Milliseconds of each transaction in logs of pgbench (`--log`), in order.
pub(crate) fn pgbench_log<'a>(logs: impl IntoIterator<Item = &'a str>) -> Vec<f64> {
    // client_id transaction_no time script_no time_epoch time_us
    let time = |line: &str| Some(line.split(' ').nth(2)?.parse::<f64>().ok()? / 1000.0);
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
