//! rustls configurations. Runs no task.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tracing::warn;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use crate::config::{Ca, ClientCert};

/// How far the other side's certificate is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Any certificate, of which the other side proves to hold the key.
    Nothing,
    /// A chain to one of our CAs, and the name we asked for.
    Full,
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("reading {of} {path:?}")]
    Read { of: PemKind, path: PathBuf, source: io::Error },
    #[error("{of} {path:?} is not PEM")]
    Pem { of: PemKind, path: PathBuf, source: pem::Error },
    #[error("{of} {path:?} holds no usable certificate")]
    NoCertificate { of: PemKind, path: PathBuf },
    #[error("the system has no CA certificates: name a CA file")]
    NoSystemRoots,
    #[error("{host:?} is neither a name nor an address that a certificate could be for")]
    ServerName { host: String },
    #[error("client certificate {path:?} with its key")]
    ClientCert { path: PathBuf, source: rustls::Error },
    #[error("TLS set-up")]
    Rustls(#[from] rustls::Error),
    #[error("TLS set-up")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// What a file is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PemKind {
    Ca,
    ClientCert,
    ClientKey,
}

impl fmt::Display for PemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ca => "CA file",
            Self::ClientCert => "client certificate",
            Self::ClientKey => "key of the client certificate",
        })
    }
}

/// A client's configuration, ring underneath, TLS 1.2 and 1.3. The system's CAs are read once, here; with
/// [`Verify::Nothing`] no CA is. `client` is shown to a server that asks for a certificate.
pub(crate) fn client_config(
    verify: Verify,
    ca: &Ca,
    client: Option<&ClientCert>,
) -> Result<rustls::ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match (verify, ca) {
        (Verify::Nothing, _) => Arc::new(AnyCertificate { provider: Arc::clone(&provider) }),
        (Verify::Full, Ca::System) => system_verifier(&provider)?,
        (Verify::Full, Ca::File(path)) => Arc::new(file_verifier(path, &provider)?),
        (Verify::Full, Ca::Dir(path)) => Arc::new(dir_verifier(path, &provider)?),
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some(ClientCert { cert_file, key_file }) = client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(PemKind::ClientCert, cert_file)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { of: PemKind::ClientCert, path: cert_file.clone() });
    }
    builder
        .with_client_auth_cert(chain, private_key(key_file)?)
        .map_err(|source| TlsError::ClientCert { path: cert_file.clone(), source })
}

/// What a server's certificate has to be for, from a host name or an IP address as settings spell it.
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::ServerName { host: host.to_owned() })
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
fn dir_verifier(dir: &Path, provider: &Arc<CryptoProvider>) -> Result<FileVerifier, TlsError> {
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

/// Every certificate of a PEM file.
fn certificates(of: PemKind, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Read { of, path: path.into(), source })?;
    CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(|source| TlsError::Pem {
        of,
        path: path.into(),
        source,
    })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let of = PemKind::ClientKey;
    let read = fs::read(path).map_err(|source| TlsError::Read { of, path: path.into(), source })?;
    PrivateKeyDer::from_pem_slice(&Zeroizing::new(read)).map_err(|source| TlsError::Pem {
        of,
        path: path.into(),
        source,
    })
}

/// Believes a chain to a certificate of a file, and a self-signed certificate that is itself in the file.
///
/// `openssl req -x509`, with which most self-signed server certificates are made, marks them as a CA's, and
/// webpki takes no CA for a server. libpq and Go do: there such a file works.
#[derive(Debug)]
struct FileVerifier {
    chain: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::{ClientConnection, ServerConfig, ServerConnection};
    use tempfile::NamedTempFile;

    use super::*;

    /// A certificate, its PEM and the key behind it.
    struct Made {
        der: CertificateDer<'static>,
        pem: String,
        key: KeyPair,
        params: CertificateParams,
    }

    fn params(names: &[&str], is_ca: bool) -> CertificateParams {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    fn self_signed(params: CertificateParams) -> Made {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Made { der: certificate.der().clone(), pem: certificate.pem(), key, params }
    }

    fn issued_by(ca: &Made, params: CertificateParams) -> Made {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&ca.params, &ca.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Made { der: certificate.der().clone(), pem: certificate.pem(), key, params }
    }

    fn file(text: &str) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    /// A whole handshake in memory.
    fn handshake(
        verify: Verify,
        ca: &str,
        server: &Made,
        key: &KeyPair,
        host: &str,
    ) -> Result<(), rustls::Error> {
        let ca = file(ca);
        let config = client_config(verify, &Ca::File(ca.path().into()), None).unwrap();
        let mut client = ClientConnection::new(config.into(), server_name(host).unwrap()).unwrap();

        let provider = Arc::new(ring::default_provider());
        let signing = provider
            .key_provider
            .load_private_key(PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let certified = rustls::sign::CertifiedKey::new(vec![server.der.clone()], signing);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();

        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn full_takes_a_chain_to_the_file_and_the_right_name_only() {
        let ca = self_signed(params(&[], true));
        let server = issued_by(&ca, params(&["db.example", "127.0.0.1"], false));
        let try_with = |ca: &Made, host| handshake(Verify::Full, &ca.pem, &server, &server.key, host).is_ok();

        assert!(try_with(&ca, "db.example"));
        assert!(try_with(&ca, "127.0.0.1"));
        assert!(!try_with(&ca, "other.example"));
        assert!(!try_with(&self_signed(params(&[], true)), "db.example"));
    }

    #[test]
    fn full_takes_a_self_signed_certificate_that_the_file_lists() {
        for is_ca in [false, true] {
            let server = self_signed(params(&["db.example"], is_ca));
            let try_as = |host| handshake(Verify::Full, &server.pem, &server, &server.key, host);
            assert_eq!(try_as("db.example"), Ok(()), "is_ca {is_ca}");
            assert!(try_as("other.example").is_err(), "is_ca {is_ca}");

            let other = self_signed(params(&["db.example"], is_ca));
            assert!(handshake(Verify::Full, &other.pem, &server, &server.key, "db.example").is_err());
        }
        let mut expired = params(&["db.example"], true);
        (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        let server = self_signed(expired);
        assert!(handshake(Verify::Full, &server.pem, &server, &server.key, "db.example").is_err());
    }

    #[test]
    fn ca_that_is_listed_may_not_be_a_server_unless_self_signed() {
        let root = self_signed(params(&[], true));
        let mut intermediate = params(&["db.example"], true);
        intermediate.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        let server = issued_by(&root, intermediate);
        let both = root.pem + &server.pem;
        assert!(handshake(Verify::Full, &both, &server, &server.key, "db.example").is_err());
    }

    #[test]
    fn nothing_takes_any_certificate_but_not_one_whose_key_is_elsewhere() {
        let server = self_signed(params(&["db.example"], true));
        assert_eq!(handshake(Verify::Nothing, "", &server, &server.key, "other.example"), Ok(()));

        let thief = KeyPair::generate().unwrap();
        assert!(handshake(Verify::Nothing, "", &server, &thief, "db.example").is_err());
        assert!(handshake(Verify::Full, &server.pem, &server, &thief, "db.example").is_err());
    }

    #[test]
    fn unusable_ca_files_are_named() {
        let with_ca = |path: &Path| client_config(Verify::Full, &Ca::File(path.into()), None).unwrap_err();
        let missing = with_ca(Path::new("/nowhere/ca.pem"));
        assert_eq!(missing.to_string(), "reading CA file \"/nowhere/ca.pem\"");

        let empty = file("no certificate here\n");
        let error = with_ca(empty.path());
        assert!(matches!(error, TlsError::NoCertificate { path, .. } if path == empty.path()));

        let cut = file("-----BEGIN CERTIFICATE-----\nMIIB");
        let error = with_ca(cut.path());
        assert!(matches!(error, TlsError::Pem { path, .. } if path == cut.path()));

        assert!(matches!(server_name("a b"), Err(TlsError::ServerName { .. })));
    }

    #[test]
    fn directory_of_cas_is_all_of_its_certificates() {
        let (one, other) = (self_signed(params(&[], true)), self_signed(params(&[], true)));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one.pem"), &one.pem).unwrap();
        fs::write(dir.path().join("README"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let load = || client_config(Verify::Full, &Ca::Dir(dir.path().into()), None);
        load().unwrap();
        fs::write(dir.path().join("other.pem"), &other.pem).unwrap();
        let provider = Arc::new(ring::default_provider());
        assert_eq!(dir_verifier(dir.path(), &provider).unwrap().certificates.len(), 2);

        fs::remove_file(dir.path().join("one.pem")).unwrap();
        fs::remove_file(dir.path().join("other.pem")).unwrap();
        assert!(matches!(load(), Err(TlsError::NoCertificate { path, .. }) if path == dir.path()));
    }

    #[test]
    fn client_certificate_comes_with_its_own_key_or_not_at_all() {
        let (made, other) = (self_signed(params(&["app"], false)), self_signed(params(&["app"], false)));
        let load = |cert: &str, key: &str| {
            let (cert, key) = (file(cert), file(key));
            let client = ClientCert { cert_file: cert.path().into(), key_file: key.path().into() };
            client_config(Verify::Nothing, &Ca::System, Some(&client))
                .map(|config| config.client_auth_cert_resolver.has_certs())
        };
        assert!(load(&made.pem, &made.key.serialize_pem()).unwrap());
        assert!(matches!(load(&made.pem, &other.key.serialize_pem()), Err(TlsError::ClientCert { .. })));
        assert!(matches!(load("", &made.key.serialize_pem()), Err(TlsError::NoCertificate { .. })));
        let error = load(&made.pem, "no key").unwrap_err();
        assert!(error.to_string().starts_with("key of the client certificate"), "{error}");
    }
}
