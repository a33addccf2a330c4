//! Certificates of the webhook: made, and judged.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use zeroize::Zeroizing;

/// What a Secret has, as PEM.
pub(in crate::injector) struct Issued {
    pub(in crate::injector) certificate: String,
    pub(in crate::injector) key: Zeroizing<String>,
    pub(in crate::injector) ca: String,
}

/// Makes a CA, a certificate for `name`, and forgets the CA's key: each certificate has a CA of its own.
pub(in crate::injector) fn issue(name: &str, now: SystemTime) -> Result<Issued, rcgen::Error> {
    let with_validity = |mut params: CertificateParams, common_name: &str| {
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + LIFE).into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params
    };
    let mut ca = with_validity(CertificateParams::default(), "pglease injector CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut params = with_validity(CertificateParams::new(vec![name.to_owned()])?, "pglease injector");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &ca)?;
    Ok(Issued { certificate: certificate.pem(), key: Zeroizing::new(key.serialize_pem()), ca: ca.pem() })
}

/// What is to be done about a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good {
        /// It has been there for so long that nobody shows the one before it any more.
        is_settled: bool,
    },
    /// Why another is needed.
    Bad(&'static str),
}

/// Judges PEM files for a server called `name`.
pub(super) fn judge(certificate: &[u8], key: &[u8], ca: &[u8], name: &str, now: SystemTime) -> Verdict {
    let (chain, roots) = (parse(certificate), parse(ca));
    let Some((first, rest)) = chain.split_first() else { return Verdict::Bad("it holds no certificate") };
    if !is_key_of(&chain, key) {
        return Verdict::Bad("its key is not that of its certificate");
    }
    if !verifies(first, rest, &roots, name, now) {
        return Verdict::Bad("its certificate does not verify");
    }
    let Some((from, until)) = validity(first) else { return Verdict::Bad("it holds no certificate") };
    let now = since_epoch(now);
    if until.saturating_sub(now) < until.saturating_sub(from) / 3 {
        return Verdict::Bad("its certificate ends within a third of its life");
    }
    Verdict::Good { is_settled: now.saturating_sub(from) >= SETTLED }
}

fn is_key_of(chain: &[CertificateDer<'static>], key: &[u8]) -> bool {
    let provider = ring::default_provider().key_provider;
    let key = PrivateKeyDer::from_pem_slice(key).ok().and_then(|key| provider.load_private_key(key).ok());
    key.is_some_and(|key| CertifiedKey::new(chain.to_vec(), key).keys_match().is_ok())
}

fn verifies(
    certificate: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    name: &str,
    now: SystemTime,
) -> bool {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(store.into(), provider).build();
    let (Ok(verifier), Ok(name)) = (verifier, ServerName::try_from(name)) else { return false };
    let now = UnixTime::since_unix_epoch(since_epoch(now));
    verifier.verify_server_cert(certificate, rest, &name, &[], now).is_ok()
}

/// PEM of `ca`, and with `keeps_others` of all in `bundle` that have not ended: who is still shown a certificate of
/// theirs believes it.
pub(super) fn bundle(
    bundle: &[u8],
    ca: &[u8],
    keeps_others: bool,
    now: SystemTime,
) -> Vec<CertificateDer<'static>> {
    let now = since_epoch(now);
    let mut kept = parse(ca);
    if keeps_others {
        for other in parse(bundle) {
            let is_over = validity(&other).is_none_or(|(_, until)| until < now);
            if !is_over && !kept.contains(&other) && kept.len() < MAX_CAS {
                kept.push(other);
            }
        }
    }
    kept
}

/// The certificates of a PEM file, but for what is none.
pub(in crate::injector) fn parse(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).filter_map(Result::ok).collect()
}

/// Since 1970, both.
fn validity(certificate: &CertificateDer<'_>) -> Option<(Duration, Duration)> {
    let validity = Certificate::from_der(certificate).ok()?.tbs_certificate.validity;
    Some((validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration()))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The clocks of nodes differ.
const BACKDATE: Duration = Duration::from_mins(5);
const LIFE: Duration = Duration::from_hours(365 * 24);
/// A kubelet brings a changed Secret within two minutes.
const SETTLED: Duration = Duration::from_hours(1);
/// In a bundle.
const MAX_CAS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "injector.pglease.svc";

    fn verdict(issued: &Issued, name: &str, now: SystemTime) -> Verdict {
        judge(issued.certificate.as_bytes(), issued.key.as_bytes(), issued.ca.as_bytes(), name, now)
    }

    #[test]
    fn what_is_issued_is_good_until_the_last_third_of_its_life() {
        let now = SystemTime::now();
        let issued = issue(NAME, now).unwrap();
        let fresh = Verdict::Good { is_settled: false };
        let settled = Verdict::Good { is_settled: true };
        assert_eq!(verdict(&issued, NAME, now), fresh);
        assert_eq!(verdict(&issued, NAME, now - BACKDATE / 2), fresh);
        assert_eq!(verdict(&issued, NAME, now + SETTLED), settled);
        assert_eq!(verdict(&issued, NAME, now + LIFE * 66 / 100), settled);
        let ends = Verdict::Bad("its certificate ends within a third of its life");
        assert_eq!(verdict(&issued, NAME, now + LIFE * 67 / 100), ends);
        let does_not_verify = Verdict::Bad("its certificate does not verify");
        assert_eq!(verdict(&issued, NAME, now + LIFE + BACKDATE), does_not_verify);
        assert_eq!(verdict(&issued, "other.pglease.svc", now), does_not_verify);
    }

    #[test]
    fn parts_of_two_are_no_whole() {
        let now = SystemTime::now();
        let (one, other) = (issue(NAME, now).unwrap(), issue(NAME, now).unwrap());
        let judge = |certificate: &str, key: &str, ca: &str| {
            judge(certificate.as_bytes(), key.as_bytes(), ca.as_bytes(), NAME, now)
        };
        assert!(
            matches!(judge(&one.certificate, &other.key, &one.ca), Verdict::Bad(why) if why.contains("key"))
        );
        assert!(
            matches!(judge(&one.certificate, &one.key, &other.ca), Verdict::Bad(why) if why.contains("verify"))
        );
        for broken in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nMIIB"] {
            assert!(matches!(judge(broken, &one.key, &one.ca), Verdict::Bad(_)));
            assert!(matches!(judge(&one.certificate, broken, &one.ca), Verdict::Bad(_)));
            assert!(matches!(judge(&one.certificate, &one.key, broken), Verdict::Bad(_)));
        }
    }

    #[test]
    fn bundle_keeps_other_cas_only_where_it_is_to_and_they_are_good() {
        let now = SystemTime::now();
        let (one, other) = (issue(NAME, now).unwrap(), issue(NAME, now).unwrap());
        let before = format!("{}nonsense\n{}", other.ca, one.ca);
        let bundle = |keeps, now| bundle(before.as_bytes(), one.ca.as_bytes(), keeps, now);
        let own = parse(one.ca.as_bytes());
        assert_eq!(bundle(false, now), own);
        assert_eq!(bundle(true, now), [own.clone(), parse(other.ca.as_bytes())].concat());
        assert_eq!(bundle(true, now + LIFE + BACKDATE), own);
    }
}
