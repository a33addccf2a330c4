//! Descriptors that are kept back, so that an exhausted process can still renew leases and answer probes.

use std::fs::File;

/// Open files that are of no use but to be closed. Opened early, they have low numbers: they make room even where
/// the limit is lowered under a process.
#[derive(Debug)]
pub(super) struct Spare(Vec<File>);

impl Spare {
    pub(super) fn keep() -> Self {
        let mut spare = Self(Vec::new());
        // A process that is short of them at its start has all the more use for an empty one.
        spare.restore();
        spare
    }

    /// Gives them to whoever is in need.
    pub(super) fn release(&mut self) {
        self.0 = Vec::new();
    }

    /// Takes as many back, if there are as many. Returns whether there were.
    pub(super) fn restore(&mut self) -> bool {
        let files = (self.0.len()..SPARE_LEN).map(|_| File::open("/dev/null")).collect::<Result<Vec<_>, _>>();
        files.map(|files| self.0.extend(files)).is_ok()
    }
}

/// For a request to Vault with the look-up of its name, a probe login, a scrape and the probes of a kubelet.
const SPARE_LEN: usize = 16;
