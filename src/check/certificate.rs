//! How long a certificate goes on being good. Pure.

use std::time::Duration;

use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// What a handshake came to.
pub(super) struct Handshake {
    pub(super) version: &'static str,
    /// A clause on how long the first certificate to end goes on; empty where none can be read.
    pub(super) lasts: String,
    pub(super) ends_soon: bool,
}

impl Handshake {
    /// Of the chain that was shown, at a time since 1970.
    pub(super) fn of(
        version: Option<ProtocolVersion>,
        chain: &[CertificateDer<'static>],
        now: Duration,
    ) -> Self {
        let version = match version {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS",
        };
        let soonest = chain.iter().filter_map(Validity::of).min_by_key(|validity| validity.until);
        let left = soonest.map(|validity| validity.until.saturating_sub(now));
        let lasts = left.map_or_else(String::new, |left| format!(", certificate for another {}", span(left)));
        Self { version, lasts, ends_soon: soonest.is_some_and(|validity| validity.ends_soon(now)) }
    }
}

/// When a certificate is good, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: Duration,
    pub(super) until: Duration,
}

impl Validity {
    pub(super) fn of(certificate: &CertificateDer<'static>) -> Option<Self> {
        let validity = Certificate::from_der(certificate).ok()?.tbs_certificate.validity;
        let (from, until) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
        Some(Self { from, until })
    }

    /// Whether it should have been replaced by now: in its last fifth, or its last two weeks where that is less.
    pub(super) fn ends_soon(self, now: Duration) -> bool {
        let fifth = self.until.saturating_sub(self.from) / 5;
        self.until.saturating_sub(now) < fifth.min(SOON)
    }
}

/// For people, in the largest unit that fits.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} h", seconds / 3_600),
        120.. => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

const SOON: Duration = Duration::from_hours(14 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn certificate_ends_soon_in_its_last_fifth_or_its_last_two_weeks() {
        for (life, left, soon) in [
            (365, 15, false),
            (365, 13, true),
            (90, 30, false),
            (90, 13, true),
            (30, 7, false),
            (30, 5, true),
            (5, 2, false),
            (1, 0, true),
        ] {
            let from = 1000 * DAY;
            let validity = Validity { from, until: from + life * DAY };
            assert_eq!(validity.ends_soon(from + (life - left) * DAY), soon, "{left} of {life} days");
        }
        let over = Validity { from: DAY, until: 2 * DAY };
        assert!(over.ends_soon(3 * DAY));
    }

    #[test]
    fn span_is_said_in_the_unit_that_fits() {
        let said =
            [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(said, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
