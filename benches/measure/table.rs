//! Results as a table for people, in Markdown.

use std::fmt::Write;

use super::results::Results;
use super::spread::Spread;

/// What a figure is called, and which way is better.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
}

/// Every figure there is, in the order of the columns.
pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "tps", title: "a second" },
    Figure { name: "mib_s", title: "MiB a second" },
    Figure { name: "p50_ms", title: "p50, ms" },
    Figure { name: "p99_ms", title: "p99, ms" },
    Figure { name: "p999_ms", title: "p99.9, ms" },
    Figure { name: "before_p50_ms", title: "p50 before, ms" },
    Figure { name: "before_p99_ms", title: "p99 before, ms" },
    Figure { name: "before_p999_ms", title: "p99.9 before, ms" },
    Figure { name: "in_p50_ms", title: "p50 in it, ms" },
    Figure { name: "in_p99_ms", title: "p99 in it, ms" },
    Figure { name: "in_p999_ms", title: "p99.9 in it, ms" },
    Figure { name: "after_p50_ms", title: "p50 after, ms" },
    Figure { name: "after_p99_ms", title: "p99 after, ms" },
    Figure { name: "after_p999_ms", title: "p99.9 after, ms" },
    Figure { name: "errors", title: "errors" },
    Figure { name: "rotations", title: "rotations" },
    Figure { name: "cpu_us", title: "CPU of the proxy each, µs" },
    Figure { name: "calls", title: "system calls each" },
    Figure { name: "ready_ms", title: "start to ready, ms" },
    Figure { name: "floor_ms", title: "login, creds and probe alone, ms" },
    Figure { name: "over_ms", title: "more than these, ms" },
    Figure { name: "sessions", title: "sessions" },
    Figure { name: "session_kib", title: "RSS of an idle session, KiB" },
    Figure { name: "rss_mib", title: "RSS, MiB" },
    Figure { name: "rest_mib", title: "RSS at rest, MiB" },
    Figure { name: "peak_mib", title: "peak RSS, MiB" },
    Figure { name: "after_mib", title: "RSS when they have gone, MiB" },
    Figure { name: "binary_mib", title: "binary, MiB" },
];

/// A table of one scenario: a row for each way, median and both ends of each figure, throughput ÷ direct.
pub(crate) fn table(results: &Results) -> String {
    let there = results.figures();
    let figures: Vec<_> =
        FIGURES.iter().filter(|figure| there.iter().any(|name| name == figure.name)).collect();
    let to_direct = figures.iter().find(|figure| ["tps", "mib_s"].contains(&figure.name));
    let to_direct = to_direct.filter(|_| results.ways.iter().any(|way| way == DIRECT));

    let mut text = format!("### {}\n\n{}; {}.\n\n| |", results.name, results.what, results.under);
    for title in figures.iter().map(|figure| figure.title).chain(to_direct.map(|_| "÷ direct")) {
        let _ = write!(text, " {title} |");
    }
    let columns = 1 + figures.len() + usize::from(to_direct.is_some());
    let _ = writeln!(text, "\n|{}", " --- |".repeat(columns));
    for way in results.ways.iter().filter(|way| !results.absent.contains_key(*way)) {
        let _ = write!(text, "| {way} |");
        for figure in &figures {
            let _ = write!(text, " {} |", cell(results.spread(way, figure.name)));
        }
        if let Some(figure) = to_direct {
            let ratio = results.ratio(way, DIRECT, figure.name).filter(|_| way != DIRECT);
            let _ = write!(text, " {} |", cell(ratio));
        }
        text.push('\n');
    }
    for (way, why) in &results.absent {
        let _ = writeln!(text, "\n{way}: not measured, {why}.");
    }
    text
}

pub(crate) fn cell(spread: Option<Spread>) -> String {
    spread.map_or("–".to_owned(), |spread| spread.to_string())
}

pub(crate) const DIRECT: &str = "direct";
