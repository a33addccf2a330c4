//! `sslmode` and what goes with it.

use super::{Meaning, UpstreamError};
use crate::config::{ChannelBinding, SslMode};

pub(super) fn ssl_mode(meaning: &Meaning<'_>) -> Result<SslMode, UpstreamError> {
    match meaning.value("sslmode") {
        None => Ok(SslMode::default()),
        Some("disable") => Ok(SslMode::Disable),
        Some("require") => Ok(SslMode::Require),
        Some("verify-full") => Ok(SslMode::VerifyFull),
        Some("verify-ca") => Err(UpstreamError::VerifyCa),
        Some("prefer") => Err(UpstreamError::WeakSslMode { mode: "prefer" }),
        Some("allow") => Err(UpstreamError::WeakSslMode { mode: "allow" }),
        Some(_) => {
            Err(UpstreamError::Choice { keyword: "sslmode", choices: "disable, require or verify-full" })
        }
    }
}

pub(super) fn channel_binding(meaning: &Meaning<'_>) -> Result<ChannelBinding, UpstreamError> {
    match meaning.value("channel_binding") {
        None => Ok(ChannelBinding::default()),
        Some("disable") => Ok(ChannelBinding::Disable),
        Some("prefer") => Ok(ChannelBinding::Prefer),
        Some("require") => Ok(ChannelBinding::Require),
        Some(_) => {
            Err(UpstreamError::Choice { keyword: "channel_binding", choices: "disable, prefer or require" })
        }
    }
}

/// Keywords of TLS that do not go together.
pub(super) fn contradictions(
    mode: SslMode,
    root_cert: Option<&str>,
    binding: ChannelBinding,
) -> Vec<UpstreamError> {
    let mode_name = match mode {
        SslMode::VerifyFull => return Vec::new(),
        SslMode::Disable => "disable",
        SslMode::Require => "require",
    };
    let unused = root_cert.map(|_| UpstreamError::RootCertUnused { mode: mode_name });
    let unbound = (mode == SslMode::Disable && binding == ChannelBinding::Require)
        .then_some(UpstreamError::BindingWithoutTls);
    unused.into_iter().chain(unbound).collect()
}

/// `sslrootcert` of libpq 16 and later: the system's CAs.
pub(super) const SYSTEM_ROOTS: &str = "system";
