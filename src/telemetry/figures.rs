//! What `/status` says of counts and times: read back from what is scraped, so that there is one place where they are
//! counted.

use std::collections::BTreeMap;

use super::Metrics;

/// Things that were done, and how long they took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) count: u64,
    /// Of these.
    pub(crate) failures: u64,
    /// In seconds, estimated within the histogram's buckets as Prometheus does; `None` where nothing was measured.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
}

impl Metrics {
    /// Requests to Vault by what was asked, in the order of the alphabet.
    pub(crate) fn vault_figures(&self) -> BTreeMap<String, Figures> {
        self.encode().map(|text| of_operations(&text)).unwrap_or_default()
    }

    /// Logins of sessions at upstreams.
    pub(crate) fn login_figures(&self) -> Figures {
        self.encode().map(|text| of_logins(&text)).unwrap_or_default()
    }
}

fn of_operations(text: &str) -> BTreeMap<String, Figures> {
    let mut figures = BTreeMap::<String, Figures>::new();
    for sample in samples(text, "pglease_vault_requests_total") {
        let (Some(op), Some(code)) = (sample.label("op"), sample.label("code")) else { continue };
        let figures = figures.entry(op.to_owned()).or_default();
        let count = whole(sample.value);
        figures.count += count;
        if !code.starts_with('2') {
            figures.failures += count;
        }
    }
    for (op, figures) in &mut figures {
        let of_op = samples(text, "pglease_vault_request_seconds_bucket")
            .filter(|sample| sample.label("op") == Some(op.as_str()));
        figures.measure(&buckets(of_op));
    }
    figures
}

fn of_logins(text: &str) -> Figures {
    let failures =
        samples(text, "pglease_upstream_connect_failures_total").map(|sample| whole(sample.value)).sum();
    let buckets = buckets(samples(text, "pglease_upstream_connect_seconds_bucket"));
    let succeeded = buckets.last().map_or(0.0, |(_, count)| *count);
    let mut figures = Figures { count: whole(succeeded) + failures, failures, ..Figures::default() };
    figures.measure(&buckets);
    figures
}

impl Figures {
    fn measure(&mut self, buckets: &[(f64, f64)]) {
        (self.p50, self.p99) = (quantile(buckets, 0.5), quantile(buckets, 0.99));
    }
}

struct Sample<'a> {
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    /// Of words and numbers: no label that is asked for here holds anything else.
    fn label(&self, name: &str) -> Option<&'a str> {
        let mut labels = self.labels.split(',').filter_map(|label| label.split_once("=\""));
        labels.find(|(label, _)| *label == name).map(|(_, value)| value.trim_end_matches('"'))
    }
}

fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = Sample<'a>> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest),
        };
        let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
        Some(Sample { labels, value })
    })
}

/// Upper bounds and how many are at or below them.
fn buckets<'a>(samples: impl Iterator<Item = Sample<'a>>) -> Vec<(f64, f64)> {
    let mut buckets: Vec<_> =
        samples.filter_map(|sample| Some((sample.label("le")?.parse().ok()?, sample.value))).collect();
    buckets.sort_by(|(one, _): &(f64, f64), (other, _)| one.total_cmp(other));
    buckets
}

/// As `histogram_quantile` has it: linear within a bucket, and the last bound for what is above all of them.
fn quantile(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = all * quantile;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (from, below) = at.checked_sub(1).and_then(|before| buckets.get(before)).copied().unwrap_or_default();
    let (to, up_to) = buckets.get(at).copied()?;
    Some(if to.is_infinite() { from } else { from + (to - from) * (rank - below) / (up_to - below).max(1.0) })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, which are whole")]
fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{ConnectFailureLabels, OperationLabels, VaultLabels};

    #[test]
    fn figures_are_those_of_the_scrape() {
        let metrics = Metrics::new();
        assert_eq!(metrics.login_figures(), Figures::default());
        assert!(metrics.vault_figures().is_empty());

        for (code, times) in [("200", 97), ("503", 2), ("none", 1)] {
            metrics
                .vault_requests
                .get_or_create(&VaultLabels { op: "renew", code: code.to_owned() })
                .inc_by(times);
        }
        let seconds = metrics.vault_request_seconds.get_or_create(&OperationLabels { op: "renew" });
        (0..98).for_each(|_| seconds.observe(0.02));
        seconds.observe(20.0);
        seconds.observe(100.0);
        metrics.vault_requests.get_or_create(&VaultLabels { op: "creds", code: "403".to_owned() }).inc();

        let figures = metrics.vault_figures();
        let renew = &figures["renew"];
        assert_eq!((renew.count, renew.failures), (100, 3));
        assert!(renew.p50.is_some_and(|p50| (0.01..=0.025).contains(&p50)), "{renew:?}");
        assert!(renew.p99.is_some_and(|p99| (10.0..=30.0).contains(&p99)), "{renew:?}");
        assert_eq!((figures["creds"].failures, figures["creds"].p50), (1, None));

        metrics.upstream_connect_seconds.observe(0.003);
        let failure = ConnectFailureLabels { reason: "refused", sqlstate: "53300".to_owned() };
        metrics.upstream_connect_failures.get_or_create(&failure).inc();
        let logins = metrics.login_figures();
        assert_eq!((logins.count, logins.failures), (2, 1));
    }

    #[test]
    fn quantile_lies_in_its_bucket() {
        let buckets = [(1.0, 0.0), (2.0, 10.0), (f64::INFINITY, 12.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(1.6));
        assert_eq!(quantile(&buckets, 0.99), Some(2.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
    }
}
