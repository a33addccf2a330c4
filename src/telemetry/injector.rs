//! Every metric of `pglease injector`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{ResultLabels, encode, ours, registry, request_seconds};

#[derive(Debug)]
pub(crate) struct InjectorMetrics {
    registry: Registry,
    pub(crate) reviews: Family<OutcomeLabels, Counter>,
    /// Head of the request to the answer's hand-over, whatever the outcome.
    pub(crate) review_seconds: Histogram,
    /// Unix time.
    pub(crate) certificate_expiry: Gauge,
    pub(crate) certificate_reloads: Family<ResultLabels, Counter>,
    pub(crate) tls_handshakes: Family<ResultLabels, Counter>,
}

impl InjectorMetrics {
    /// The metrics, all registered, from 0 where an alert waits for the first of its kind: of a series that begins at 1
    /// Prometheus sees no increase.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: registry(),
            reviews: Family::default(),
            review_seconds: request_seconds(),
            certificate_expiry: Gauge::default(),
            certificate_reloads: Family::default(),
            tls_handshakes: Family::default(),
        };
        metrics.register();
        for result in ["ok", "failed"] {
            let _ = metrics.certificate_reloads.get_or_create(&ResultLabels { result });
            let _ = metrics.tls_handshakes.get_or_create(&ResultLabels { result });
        }
        for outcome in ["injected", "refused", "bad_request", "failed"] {
            let _ = metrics.reviews.get_or_create(&OutcomeLabels { outcome });
        }
        metrics
    }

    /// All of them, in the OpenMetrics format.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        encode(&self.registry)
    }

    fn register(&mut self) {
        let registry = ours(&mut self.registry);
        registry.register(
            "injector_reviews",
            "Reviews by what became of the pod: injected, unchanged, skipped with a reason, refused; bad_request where it was no review that can be answered, failed where pglease has a bug",
            self.reviews.clone(),
        );
        registry.register_with_unit(
            "injector_review",
            "Time from the head of a review to its answer",
            Unit::Seconds,
            self.review_seconds.clone(),
        );
        registry.register_with_unit(
            "injector_certificate_expiry_timestamp",
            "Unix time at which the certificate ends that the API server is shown",
            Unit::Seconds,
            self.certificate_expiry.clone(),
        );
        registry.register(
            "injector_certificate_reloads",
            "Changes of the certificate's files: ok, or failed where they are of no use and what was read before stays",
            self.certificate_reloads.clone(),
        );
        registry.register(
            "injector_tls_handshakes",
            "TLS handshakes: ok, or failed, as where the API server does not believe the certificate",
            self.tls_handshakes.clone(),
        );
    }
}

/// What became of a review.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabels {
    pub(crate) outcome: &'static str,
}

#[cfg(test)]
mod tests {
    use super::super::tests::{docs_table, faults};
    use super::*;

    #[test]
    fn docs_list_every_metric() {
        let metrics = InjectorMetrics::new();
        let text = metrics.encode().unwrap();
        for line in [
            "pglease_injector_certificate_reloads_total{result=\"failed\"} 0\n",
            "pglease_injector_reviews_total{outcome=\"refused\"} 0\n",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert_eq!(faults(&text), Vec::<String>::new());
        let table = docs_table(&text);
        let docs = include_str!("../../docs/metrics.md");
        assert!(docs.contains(&table), "docs/metrics.md should have:\n\n{table}");
    }
}
