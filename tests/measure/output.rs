use crate::measure::output::*;

#[test]
fn pgbench_has_said_how_many_and_how_fast() {
    let output = "transaction type: <builtin: select only>\nscaling factor: 5\nduration: 4 s\n\
        number of transactions actually processed: 12497\nnumber of failed transactions: 0 (0.000%)\n\
        latency average = 0.322 ms\ninitial connection time = 3.456 ms\n\
        tps = 3109.201234 (without initial connection time)\n";
    assert_eq!(pgbench(output), Some(Report { transactions: 12497.0, tps: 3_109.201_234 }));
    let counted = output.replace("processed: 12497", "processed: 10/10");
    assert_eq!(pgbench(&counted).unwrap().transactions, 10.0);
    assert_eq!(pgbench("pgbench: error: connection to server failed"), None);
}

#[test]
fn log_of_pgbench_gives_times_in_order() {
    let logs = ["0 0 1500 0 1700000000 1\n0 1 500 0 1700000000 2\n", "1 0 2500 0 1700000000 3\nbroken\n"];
    assert_eq!(pgbench_log(logs), [0.5, 1.5, 2.5]);
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
