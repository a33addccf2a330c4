//! When a certificate ends.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{PemKind, certificates, private_key};

/// Since 1970; `None` where it cannot be read.
pub(super) fn ends_at(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let parsed = Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.validity.not_after.to_unix_duration())
}

/// When the first certificate of a file ends, since 1970; `None` where it and its key are no pair as they are now: such
/// files are not taken, and who needs them says why.
pub(crate) fn end_of_pair(cert_file: &Path, key_file: &Path) -> Option<Duration> {
    let chain = certificates(PemKind::ClientCert, cert_file).ok()?;
    let key = private_key(PemKind::ClientKey, key_file).ok()?;
    let pair = CertifiedKey::from_der(chain, key, &ring::default_provider()).ok()?;
    ends_at(pair.cert.first()?)
}
