use std::time::Duration;

use crate::measure::output::*;

#[test]
fn log_of_pgbench_gives_the_times_of_a_window_in_order() {
    let logs = ["0 0 1500 0 1700000000 1\n0 1 500 0 1700000000 2\n", "1 0 2500 0 1700000000 3\nbroken\n"];
    let micros = |micros| Duration::from_secs(1_700_000_000) + Duration::from_micros(micros);
    assert_eq!(pgbench_log(logs, &(micros(0)..micros(9))), [0.5, 1.5, 2.5]);
    assert_eq!(pgbench_log(logs, &(micros(1)..micros(3))), [0.5, 1.5]);
    assert_eq!(percentiles(&[0.5, 1.5, 2.5]), [Some(1.5), Some(2.5), Some(2.5)]);
}

#[test]
fn summary_of_strace_gives_calls_whatever_columns_it_has() {
    let table = |total: &str| {
        format!(
            "% time     seconds  usecs/call     calls    errors syscall\n------\n 50.94 0.04 11 4290 sendto\n------\n{total}"
        )
    };
    for (total, calls) in [
        ("100.00    0.263883          16     15705         9 total\n", 15705.0),
        ("100.00    0.105559           5     18691 total\n", 18691.0),
        ("100.00    0.105559                 18691         7 total\n", 18691.0),
        ("100.00    0.105559                 18691 total\n", 18691.0),
    ] {
        assert_eq!(strace(&table(total)), Some(calls), "{total}");
    }
    assert_eq!(strace("strace: attach: ptrace(PTRACE_SEIZE, 7): Operation not permitted"), None);
}

#[test]
fn kernel_gives_time_and_memory() {
    assert_eq!(schedstat("18391021 3820 71\n"), Some(18_391_021.0));
    assert_eq!(status_kib("Name:\tx\nVmHWM:\t   10356 kB\nVmRSS:\t    9000 kB\n", "VmRSS"), Some(9000.0));
    assert_eq!(status_kib("Name:\tx\n", "VmRSS"), None);
}
