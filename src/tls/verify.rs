//! Which server's certificate is believed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tracing::warn;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{PemKind, TlsError, certificates};
use crate::config::Ca;

/// How far the other side's certificate is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Any certificate, of which the other side proves to hold the key.
    Nothing,
    /// A chain to one of our CAs, and the name we asked for.
    Full,
}
/// Reads what `ca` names; with [`Verify::Nothing`] nothing.
pub(super) fn verifier(
    verify: Verify,
    ca: &Ca,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    Ok(match (verify, ca) {
        (Verify::Nothing, _) => Arc::new(AnyCertificate { provider: Arc::clone(provider) }),
        (Verify::Full, Ca::System) => system_verifier(provider)?,
        (Verify::Full, Ca::File(path)) => Arc::new(file_verifier(path, provider)?),
        (Verify::Full, Ca::Dir(path)) => Arc::new(dir_verifier(path, provider)?),
    })
}

fn system_verifier(provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!(event = "tls.system_ca_unreadable", %error);
    }
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(found.certs) {
        (0, _) => Err(TlsError::NoSystemRoots),
        _ => Ok(WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider)).build()?),
    }
}

fn file_verifier(path: &Path, provider: &Arc<CryptoProvider>) -> Result<FileVerifier, TlsError> {
    verifier_of(certificates(PemKind::Ca, path)?, path, provider)
}

/// Of every file of the directory; one that is no PEM, and may be there for something else, is passed over.
pub(super) fn dir_verifier(dir: &Path, provider: &Arc<CryptoProvider>) -> Result<FileVerifier, TlsError> {
    let unreadable = |source| TlsError::Read { of: PemKind::Ca, path: dir.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() {
            match certificates(PemKind::Ca, &path) {
                Ok(certificates) => found.extend(certificates),
                Err(error) => warn!(event = "tls.ca_ignored", ?path, %error),
            }
        }
    }
    verifier_of(found, dir, provider)
}

fn verifier_of(
    certificates: Vec<CertificateDer<'static>>,
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<FileVerifier, TlsError> {
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates.iter().cloned()) {
        (0, _) => return Err(TlsError::NoCertificate { of: PemKind::Ca, path: path.into() }),
        (_, 0) => {}
        (_, ignored) => {
            warn!(event = "tls.ca_ignored", ?path, ignored, "CA file holds unusable certificates");
        }
    }
    let chain = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider)).build()?;
    Ok(FileVerifier { chain, certificates })
}
/// Believes a chain to a certificate of a file, and a self-signed certificate that is itself in the file.
///
/// `openssl req -x509`, with which most self-signed server certificates are made, marks them as a CA's, and
/// webpki takes no CA for a server. libpq and Go do: there such a file works.
#[derive(Debug)]
pub(super) struct FileVerifier {
    chain: Arc<WebPkiServerVerifier>,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

impl FileVerifier {
    /// For its name, in its time, issued by itself and listed. That the server holds its key is for the
    /// handshake's signature to show.
    fn is_listed(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        let Ok(Certificate { tbs_certificate: parsed, .. }) = Certificate::from_der(certificate) else {
            return false;
        };
        let (from, until) = (parsed.validity.not_before, parsed.validity.not_after);
        let valid = from.to_unix_duration().as_secs()..=until.to_unix_duration().as_secs();

        self.certificates.contains(certificate)
            && parsed.issuer == parsed.subject
            && valid.contains(&now.as_secs())
            && ParsedCertificate::try_from(certificate)
                .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
    }
}

impl ServerCertVerifier for FileVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // What webpki has no name for of its own, "a CA's certificate used by a server" among it.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.is_listed(end_entity, server_name, now) =>
            {
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Believes any certificate. The handshake's signature is checked all the same, so that the certificate is the
/// other side's and SCRAM can be bound to it.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
