//! Names of things that appear in logs and maps: opaque, cheap to copy or clone, and never a secret in print.

use std::fmt;
use std::sync::Arc;

use ring::digest;

/// One client and its upstream, accept to close. Counts up from 1 in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// One credential of a chain: counts up from 1 for each credential that the chain read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GenerationId(pub(crate) u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// Vault's `lease_id`. Opaque.
///
/// Whoever knows it can expire the lease with any token of the default policy, so it is printed as a hash: the
/// first 12 hexadecimal digits of its SHA-256, the same for the same lease everywhere.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(Arc<str>);

impl LeaseId {
    /// The id itself, for requests to Vault only.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for LeaseId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = digest::digest(&digest::SHA256, self.0.as_bytes());
        hash.as_ref().iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_id_is_printed_as_a_stable_hash_of_itself() {
        let lease = LeaseId::from("database/creds/db-app/sEcReT");

        assert_eq!(lease.to_string(), LeaseId::from("database/creds/db-app/sEcReT").to_string());
        assert_ne!(lease.to_string(), LeaseId::from("database/creds/db-app/other").to_string());
        assert_eq!(lease.to_string().len(), 12);
        assert!(!format!("{lease:?}").contains("sEcReT"));
    }
}
