//! What is promised of the figures, and whether they keep it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::results::Results;
use super::spread::Spread;
use super::table::cell;

/// What was measured, by scenario.
pub(crate) type All = BTreeMap<String, Results>;

/// One promise.
pub(crate) struct Budget {
    pub(crate) what: &'static str,
    pub(crate) bound: Bound,
    pub(crate) measured: fn(&All) -> Option<Spread>,
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64, &'static str),
    AtLeast(f64, &'static str),
}

impl Bound {
    fn text(self) -> String {
        match self {
            Self::AtMost(bound, unit) => format!("≤ {bound}{unit}"),
            Self::AtLeast(bound, unit) => format!("≥ {bound}{unit}"),
        }
    }

    /// The median decides.
    pub(crate) fn holds(self, spread: Spread) -> bool {
        match self {
            Self::AtMost(bound, _) => spread.median <= bound,
            Self::AtLeast(bound, _) => spread.median >= bound,
        }
    }
}

/// Those of the design, as far as a bench can tell.
pub(crate) const BUDGETS: &[Budget] = &[
    Budget {
        what: "CPU of `pgbench -S` each ÷ the better of HAProxy and PgBouncer, c = 1",
        bound: CPU,
        measured: |all| cpu(all, "select-c1-simple"),
    },
    Budget { what: "the same, c = 1, prepared", bound: CPU, measured: |all| cpu(all, "select-c1-prepared") },
    Budget { what: "the same, c = 8", bound: CPU, measured: |all| cpu(all, "select-c8-simple") },
    Budget { what: "the same, c = 8, prepared", bound: CPU, measured: |all| cpu(all, "select-c8-prepared") },
    Budget { what: "the same, c = 32", bound: CPU, measured: |all| cpu(all, "select-c32-simple") },
    Budget {
        what: "the same, c = 32, prepared",
        bound: CPU,
        measured: |all| cpu(all, "select-c32-prepared"),
    },
    Budget {
        what: "throughput ÷ the better of the two, c = 1",
        bound: SAME,
        measured: |all| tps(all, "select-c1-simple"),
    },
    Budget { what: "the same, c = 1, prepared", bound: SAME, measured: |all| tps(all, "select-c1-prepared") },
    Budget { what: "the same, c = 8", bound: SAME, measured: |all| tps(all, "select-c8-simple") },
    Budget { what: "the same, c = 8, prepared", bound: SAME, measured: |all| tps(all, "select-c8-prepared") },
    Budget { what: "the same, c = 32", bound: SAME, measured: |all| tps(all, "select-c32-simple") },
    Budget {
        what: "the same, c = 32, prepared",
        bound: SAME,
        measured: |all| tps(all, "select-c32-prepared"),
    },
    Budget {
        what: "COPY out ÷ direct",
        bound: Bound::AtLeast(0.95, ""),
        measured: |all| all.get("copy-out")?.ratio("pglease", "direct", "mib_s"),
    },
    Budget {
        what: "COPY in ÷ direct",
        bound: Bound::AtLeast(0.95, ""),
        measured: |all| all.get("copy-in")?.ratio("pglease", "direct", "mib_s"),
    },
    Budget {
        what: "system calls of a round trip",
        bound: Bound::AtMost(6.1, ""),
        measured: |all| all.get("calls")?.spread("pglease", "calls"),
    },
    Budget {
        what: "RSS of an idle session",
        bound: Bound::AtMost(3.0, " KiB"),
        measured: |all| all.get("idle")?.spread("pglease", "session_kib"),
    },
    Budget {
        what: "idle sessions on one thread",
        bound: Bound::AtLeast(9000.0, ""),
        measured: |all| all.get("idle")?.spread("pglease", "sessions"),
    },
    Budget {
        what: "RSS at rest",
        bound: Bound::AtMost(8.0, " MiB"),
        measured: |all| all.get("start")?.spread("pglease", "rest_mib"),
    },
    Budget {
        what: "binary",
        bound: Bound::AtMost(12.0, " MiB"),
        measured: |all| all.get("start")?.spread("pglease", "binary_mib"),
    },
    Budget {
        what: "start to ready, above login, creds and probe alone",
        bound: Bound::AtMost(20.0, " ms"),
        measured: |all| all.get("start")?.spread("pglease", "over_ms"),
    },
    Budget {
        what: "session set-up added to a direct login, p50",
        bound: Bound::AtMost(0.3, " ms"),
        measured: added,
    },
    Budget {
        what: "p50 of a connect with a warm session ÷ direct (TLS, SCRAM)",
        bound: Bound::AtMost(0.1, ""),
        measured: |all| all.get("connect-burst")?.ratio("pglease warm", "direct", "p50_ms"),
    },
    Budget {
        what: "errors in rotations under load",
        bound: Bound::AtMost(0.0, ""),
        measured: |all| all.get("rotation")?.spread("pglease", "errors"),
    },
];

const CPU: Bound = Bound::AtMost(0.9, "");
const SAME: Bound = Bound::AtLeast(1.0, "");
const OTHERS: [&str; 2] = ["haproxy", "pgbouncer"];

fn cpu(all: &All, scenario: &str) -> Option<Spread> {
    all.get(scenario)?.ratio_to_best("pglease", &OTHERS, "cpu_us", true)
}

fn tps(all: &All, scenario: &str) -> Option<Spread> {
    all.get(scenario)?.ratio_to_best("pglease", &OTHERS, "tps", false)
}

fn added(all: &All) -> Option<Spread> {
    let p50 =
        |round: &BTreeMap<String, BTreeMap<String, f64>>, way: &str| round.get(way)?.get("p50_ms").copied();
    let rounds = &all.get("connect-tls")?.rounds;
    Spread::of(rounds.iter().filter_map(|round| Some(p50(round, "pglease")? - p50(round, "direct")?)))
}

/// Bound, figure and verdict of each promise, in Markdown.
pub(crate) fn table(all: &All) -> String {
    let mut text = "| what | bound | measured | |\n| --- | --- | --- | --- |\n".to_owned();
    for Budget { what, bound, measured } in BUDGETS {
        let spread = measured(all);
        let verdict =
            spread.map_or("not measured", |spread| if bound.holds(spread) { "held" } else { "**missed**" });
        let _ = writeln!(text, "| {what} | {} | {} | {verdict} |", bound.text(), cell(spread));
    }
    text
}
