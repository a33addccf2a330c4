//! Which server's certificate is believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tracing::warn;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{PemKind, TlsError, certificates, pem_items};
use crate::config::Ca;

/// How far the other side's certificate is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Any certificate, of which the other side proves to hold the key.
    Nothing,
    /// A chain to one of our CAs, whomever it is for.
    Chain,
    /// A chain to one of our CAs, and the name we asked for.
    Full,
}

/// Where revoked certificates are listed: PEM files, and directories of such.
pub(crate) type Crls<'a> = &'a [PathBuf];

/// Reads what `ca` and `crls` name; with [`Verify::Nothing`] nothing.
pub(super) fn verifier(
    verify: Verify,
    ca: &Ca,
    crls: Crls<'_>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let believes = match verify {
        Verify::Nothing => Believes::Anything,
        Verify::Chain | Verify::Full => Believes::Ours(ours(verify == Verify::Full, ca, crls, provider)?),
    };
    Ok(Arc::new(Verifier { believes, algorithms: provider.signature_verification_algorithms }))
}

fn ours(
    checks_name: bool,
    ca: &Ca,
    crls: Crls<'_>,
    provider: &Arc<CryptoProvider>,
) -> Result<Ours, TlsError> {
    let (roots, certificates) = match ca {
        Ca::System => (system_roots()?, Vec::new()),
        Ca::File(path) => roots_of(certificates(PemKind::Ca, path)?, path)?,
        Ca::Dir(path) => roots_of(dir_certificates(path)?, path)?,
    };
    let revoked = crls.iter().map(|path| revocation_lists(path)).collect::<Result<Vec<_>, _>>()?.concat();
    let has_crls = !revoked.is_empty();
    // As OpenSSL has it where a list is given: each certificate of the chain must be looked up in one that is valid.
    let chain = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
        .with_crls(revoked)
        .enforce_revocation_expiration()
        .build()?;
    Ok(Ours { chain, certificates, checks_name, has_crls })
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!(event = "tls.system_ca_unreadable", %error);
    }
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(found.certs) {
        (0, _) => Err(TlsError::NoSystemRoots),
        _ => Ok(roots),
    }
}

/// Of every file of the directory; one that is no PEM, and may be there for something else, is passed over.
pub(super) fn dir_certificates(dir: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let mut found = Vec::new();
    for path in files(PemKind::Ca, dir)? {
        match certificates(PemKind::Ca, &path) {
            Ok(certificates) => found.extend(certificates),
            Err(error) => warn!(event = "tls.ca_ignored", ?path, %error),
        }
    }
    Ok(found)
}

fn roots_of(
    certificates: Vec<CertificateDer<'static>>,
    path: &Path,
) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates.iter().cloned()) {
        (0, _) => return Err(TlsError::NoCertificate { of: PemKind::Ca, path: path.into() }),
        (_, 0) => {}
        (_, ignored) => {
            warn!(event = "tls.ca_ignored", ?path, ignored, "CA file holds unusable certificates");
        }
    }
    Ok((roots, certificates))
}

/// Of a file, or of every file of a directory, as with CAs.
fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let of = PemKind::Crl;
    let mut found = Vec::new();
    if path.is_dir() {
        for path in files(of, path)? {
            match pem_items(of, &path) {
                Ok(lists) => found.extend(lists),
                Err(error) => warn!(event = "tls.crl_ignored", ?path, %error),
            }
        }
    } else {
        found = pem_items(of, path)?;
    }
    if found.is_empty() { Err(TlsError::NoRevocationList { path: path.into() }) } else { Ok(found) }
}

/// What is in a directory and is a file.
fn files(of: PemKind, dir: &Path) -> Result<Vec<PathBuf>, TlsError> {
    let unreadable = |source| TlsError::Read { of, path: dir.into(), source };
    let entries =
        fs::read_dir(dir).map_err(unreadable)?.collect::<io::Result<Vec<_>>>().map_err(unreadable)?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
}

/// Believes what it is to believe of a certificate. The handshake's signature is checked whatever that is, so that the
/// certificate is the other side's and SCRAM can be bound to it.
#[derive(Debug)]
struct Verifier {
    believes: Believes,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Believes {
    Anything,
    Ours(Ours),
}

/// A chain to one of our CAs, and a self-signed certificate that is itself in their file.
///
/// `openssl req -x509`, with which most self-signed server certificates are made, marks them as a CA's, and
/// webpki takes no CA for a server. libpq and Go do: there such a file works.
#[derive(Debug)]
struct Ours {
    chain: Arc<WebPkiServerVerifier>,
    /// What the file lists; empty for the system's.
    certificates: Vec<CertificateDer<'static>>,
    checks_name: bool,
    has_crls: bool,
}

impl Ours {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match &verdict {
            Err(rustls::Error::InvalidCertificate(fault)) if !self.checks_name && is_of_name(fault) => {
                Ok(ServerCertVerified::assertion())
            }
            Err(rustls::Error::InvalidCertificate(fault))
                if !self.has_crls && is_of_issuer(fault) && self.is_listed(end_entity, server_name, now) =>
            {
                Ok(ServerCertVerified::assertion())
            }
            _ => verdict,
        }
    }

    /// For its name, in its time, issued by itself and listed. That the server holds its key is for the
    /// handshake's signature to show; who has signed it shows nothing that the list does not.
    fn is_listed(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        let Ok(Certificate { tbs_certificate: parsed, .. }) = Certificate::from_der(certificate) else {
            return false;
        };
        let (from, until) = (parsed.validity.not_before, parsed.validity.not_after);
        let valid = from.to_unix_duration().as_secs()..=until.to_unix_duration().as_secs();
        let has_name = || {
            ParsedCertificate::try_from(certificate)
                .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
        };

        self.certificates.contains(certificate)
            && parsed.issuer == parsed.subject
            && valid.contains(&now.as_secs())
            && (!self.checks_name || has_name())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.believes {
            Believes::Anything => Ok(ServerCertVerified::assertion()),
            Believes::Ours(ours) => ours.verify(end_entity, intermediates, server_name, ocsp_response, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether all is right but the name, at which webpki looks last.
fn is_of_name(fault: &CertificateError) -> bool {
    matches!(fault, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
}

/// Whether all may be right but for who has issued it: "a CA's certificate used by a server", which is among what rustls
/// has no name for, and a signature of a kind that is not known.
fn is_of_issuer(fault: &CertificateError) -> bool {
    matches!(
        fault,
        CertificateError::Other(_)
            | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
    )
}
