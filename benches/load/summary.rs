//! What the load came to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// Of one run.
pub(crate) struct Summary {
    sessions: usize,
    rate: Option<f64>,
    pub(crate) statements: Times,
    pub(crate) connects: Times,
    /// Of the generator itself, with a session free: what its own machine did to the figures.
    pub(crate) late: Times,
}

/// Of things of one kind, in microseconds, to three digits.
pub(crate) struct Times {
    histogram: Histogram<u64>,
    /// How many of each.
    errors: BTreeMap<String, u64>,
}

impl Summary {
    pub(crate) fn new(sessions: usize, rate: Option<f64>) -> Self {
        let times = Times::new;
        Self { sessions, rate, statements: times(), connects: times(), late: times() }
    }

    /// Whether something was done, and nothing failed.
    pub(crate) fn is_well(&self) -> bool {
        !self.statements.histogram.is_empty()
            && self.statements.errors.is_empty()
            && self.connects.errors.is_empty()
    }

    pub(crate) fn to_text(&self, took: Duration) -> String {
        let rate =
            self.rate.map_or("as fast as answered".to_owned(), |rate| format!("{rate} a second asked for"));
        let mut text =
            format!("{:.1} s, {} sessions, {rate}; times in ms\n\n", took.as_secs_f64(), self.sessions);
        let _ = writeln!(
            text,
            "{:16}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "number", "a second", "failed", "p50", "p90", "p99", "p99.9", "longest"
        );
        for (name, times) in [("statements", &self.statements), ("connects", &self.connects)] {
            let _ = write!(
                text,
                "{name:16}{:>10}{:>10.1}{:>10}",
                times.count(),
                times.rate(took),
                times.failed()
            );
            let _ = writeln!(text, "{}", times.shown());
        }
        if !self.late.histogram.is_empty() {
            let _ = writeln!(
                text,
                "{:16}{:>10}{:>10}{:>10}{}",
                "generator late",
                self.late.count(),
                "",
                "",
                self.late.shown()
            );
        }
        for (error, count) in self.statements.errors.iter().chain(&self.connects.errors) {
            let _ = writeln!(text, "\n{count} × {error}");
        }
        text
    }

    pub(crate) fn to_json(&self, took: Duration) -> Value {
        json!({
            "seconds": took.as_secs_f64(),
            "sessions": self.sessions,
            "rate": self.rate,
            "statements": self.statements.to_json(took),
            "connects": self.connects.to_json(took),
            "generator_late": self.late.to_json(took),
        })
    }
}

impl Times {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 3);
        Self {
            histogram: histogram.unwrap_or_else(|_| unreachable!("bounds of our own")),
            errors: BTreeMap::new(),
        }
    }

    /// One that failed has taken its time as well.
    pub(crate) fn add(&mut self, took: Duration, error: Option<String>) {
        self.histogram
            .saturating_record(u64::try_from(took.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST));
        if let Some(error) = error {
            *self.errors.entry(error).or_default() += 1;
        }
    }

    fn count(&self) -> u64 {
        self.histogram.len()
    }

    fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    fn rate(&self, took: Duration) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^52")]
        let count = self.count() as f64;
        count / took.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// In ms.
    fn quantile(&self, share: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of an hour")]
        let micros = self.histogram.value_at_quantile(share) as f64;
        micros / 1000.0
    }

    fn shown(&self) -> String {
        let quantiles = QUANTILES.iter().map(|(_, share)| format!("{:>10.2}", self.quantile(*share)));
        quantiles.collect()
    }

    fn to_json(&self, took: Duration) -> Value {
        let mut json: Map<String, Value> = QUANTILES
            .iter()
            .map(|(name, share)| ((*name).to_owned(), json!(self.quantile(*share))))
            .collect();
        json.insert("count".to_owned(), json!(self.count()));
        json.insert("per_second".to_owned(), json!(self.rate(took)));
        json.insert("failed".to_owned(), json!(self.failed()));
        json.insert("errors".to_owned(), json!(self.errors));
        json.into()
    }
}

const QUANTILES: &[(&str, f64)] =
    &[("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p999_ms", 0.999), ("longest_ms", 1.0)];

/// An hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;
