//! The metrics of credential files. Each has the path of its file, as settings name it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct FileMetrics {
    pub(crate) writes: Family<FileResultLabels, Counter>,
    /// 1 while the file has not the credential that serves.
    pub(crate) stale: Family<FileLabels, Gauge>,
    /// Tries to tell a reader.
    pub(crate) notices: Family<FileResultLabels, Counter>,
    /// 1 while the reader has not been told of what is in the file.
    pub(crate) untold: Family<FileLabels, Gauge>,
}

impl FileMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("file_writes", "Writes of a credential file: ok or failed", self.writes.clone());
        registry.register(
            "file_stale",
            "1 while a credential file has not the credential that serves, as it cannot be written",
            self.stale.clone(),
        );
        registry.register(
            "file_notices",
            "Tries to tell the reader of a credential file that it has changed: ok or failed",
            self.notices.clone(),
        );
        registry.register(
            "file_untold",
            "1 while the reader of a credential file could not be told that it has changed",
            self.untold.clone(),
        );
    }
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FileLabels {
    pub(crate) path: String,
}

/// The file, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FileResultLabels {
    pub(crate) path: String,
    pub(crate) result: &'static str,
}
