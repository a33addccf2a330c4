//! Certificates of pglease's own that have ended, or will soon.

use super::{CLOSE_SECONDS, Fault, Finding, Severity};
use crate::admin::status::{CertificateStatus, Status};
use crate::admin::text::end_in_words;

pub(super) fn findings(status: &Status) -> impl Iterator<Item = Finding> {
    status.certificates.iter().filter_map(|certificate| finding(certificate, status.now))
}

fn finding(certificate: &CertificateStatus, now: u64) -> Option<Finding> {
    let CertificateStatus { setting, file, ends_at } = certificate;
    let left = ends_at.saturating_sub(now);
    if left >= SOON_SECONDS {
        return None;
    }
    let is_over = *ends_at <= now;
    let end = end_in_words(now, *ends_at);
    let then = match (*setting, is_over) {
        ("listen.tls_cert_file", true) => "clients that verify it get no session",
        ("listen.tls_cert_file", false) => "from then on clients that verify it get no session",
        ("vault.client_cert_file", true) => "a Vault that asks for one refuses us",
        ("vault.client_cert_file", false) => "from then on a Vault that asks for one refuses us",
        (_, true) => "a PostgreSQL that asks for one refuses new sessions",
        (_, false) => "from then on a PostgreSQL that asks for one refuses new sessions",
    };
    // Of what Vault and PostgreSQL refuse, chain and host tell as soon as they do.
    let hurts_clients = *setting == "listen.tls_cert_file" && left <= CLOSE_SECONDS;
    Some(Finding {
        fault: Fault::Settings,
        severity: if hurts_clients { Severity::Error } else { Severity::Warning },
        says: format!("The certificate in {file} ({setting}) {end}: {then}. Sessions that are open go on."),
        cure: "Renew it, or ask whoever owns it why nobody has: with cert-manager kubectl describe certificate says. It \
               is read again by itself; where it is of no use, a line …tls_reload_failed of the log says why."
            .to_owned(),
    })
}

/// As of the alert `PgleaseCertificateEnding`.
pub(super) const SOON_SECONDS: u64 = 24 * 60 * 60;
