//! When the certificates end that pglease shows, for `/metrics` and `/status`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// A certificate: there are as many as settings name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(crate) struct CertificateLabels {
    /// The one that names it.
    pub(crate) setting: &'static str,
    /// As settings have it.
    pub(crate) file: String,
}

/// The ends of certificates in Unix time, as they were last read.
#[derive(Debug, Default)]
pub(crate) struct CertificateEnds {
    gauges: Family<CertificateLabels, Gauge>,
    known: Mutex<BTreeMap<CertificateLabels, u64>>,
}

impl CertificateEnds {
    /// Has these told, and of others nothing any more.
    pub(crate) fn set(&self, ends: BTreeMap<CertificateLabels, u64>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.keys().filter(|labels| !ends.contains_key(labels)) {
            self.gauges.remove(gone);
        }
        for (labels, ends_at) in &ends {
            self.gauges.get_or_create(labels).set(i64::try_from(*ends_at).unwrap_or(i64::MAX));
        }
        *known = ends;
    }

    pub(crate) fn known(&self) -> BTreeMap<CertificateLabels, u64> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "Unix time at which the certificate in this file ends, which this setting names and pglease shows, as it was \
             last read",
            Unit::Seconds,
            self.gauges.clone(),
        );
    }
}
