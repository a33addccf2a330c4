//! TLS towards the servers of a route, as libpq names it.

use std::path::PathBuf;

use super::ClientCert;

/// libpq's `sslmode`, as far as it promises anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SslMode {
    /// Plain TCP.
    Disable,
    /// TLS with anyone.
    Require,
    /// TLS with a server that a CA of ours vouches for, whatever its name.
    VerifyCa,
    /// TLS with a server that a CA of ours vouches for, under the name that we asked for.
    #[default]
    VerifyFull,
}

impl SslMode {
    /// As settings have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Whether a server is known to be one of ours.
    pub(crate) fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server offers it.
    #[default]
    Prefer,
    /// Nothing but SCRAM-SHA-256-PLUS counts as a login.
    Require,
}

/// How TLS is done, beyond which servers it believes. All files are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SslOptions {
    pub(crate) negotiation: SslNegotiation,
    /// Shown to a server that asks for one.
    pub(crate) client: Option<ClientCert>,
    /// Whether a server has to ask for it.
    pub(crate) must_ask: bool,
    /// PEM file of revoked certificates.
    pub(crate) crl_file: Option<PathBuf>,
    /// A directory of such files.
    pub(crate) crl_dir: Option<PathBuf>,
    /// Whether the server is told, in clear, which name we asked for.
    pub(crate) sni: bool,
    pub(crate) min_version: TlsVersion,
    pub(crate) max_version: TlsVersion,
}

impl Default for SslOptions {
    fn default() -> Self {
        Self {
            negotiation: SslNegotiation::default(),
            client: None,
            must_ask: false,
            crl_file: None,
            crl_dir: None,
            sni: true,
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
        }
    }
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SslNegotiation {
    /// With an SSLRequest, which every server understands.
    #[default]
    Postgres,
    /// With TLS at once, which saves a round trip, and which servers from PostgreSQL 17 on understand.
    Direct,
}

/// A version of TLS that pglease speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    V1_2,
    V1_3,
}

/// Whether more people may read a private key than libpq puts up with: its owner, and, where that is root, a group.
pub(crate) fn is_open_key(owner: u32, mode: u32) -> bool {
    let forbidden = if owner == 0 { 0o037 } else { 0o077 };
    mode & forbidden != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_may_be_read_by_its_owner_and_roots_by_a_group() {
        for (owner, mode, is_open) in [
            (1000, 0o600, false),
            (1000, 0o400, false),
            (1000, 0o700, false),
            (1000, 0o640, true),
            (1000, 0o604, true),
            (1000, 0o620, true),
            (0, 0o600, false),
            (0, 0o640, false),
            (0, 0o440, false),
            (0, 0o660, true),
            (0, 0o650, true),
            (0, 0o644, true),
            (0, 0o100_640, false),
        ] {
            assert_eq!(is_open_key(owner, mode), is_open, "{owner} {mode:o}");
        }
    }
}
