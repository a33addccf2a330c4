//! What pglease shows as a server.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use tracing::warn;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{PemKind, TlsError, certificates, end, private_key};
use crate::config::ServerCert;

/// A certificate with its key, ready to be shown.
#[derive(Debug)]
pub(crate) struct ServerIdentity {
    pub(crate) config: Arc<ServerConfig>,
    /// The first of the chain.
    pub(crate) certificate: CertificateDer<'static>,
}

impl ServerIdentity {
    /// When its certificate ends, since 1970; `None` where that cannot be read.
    pub(crate) fn ends_at(&self) -> Option<Duration> {
        end::ends_at(&self.certificate)
    }
}

/// ALPN's names (IANA, "TLS ALPN Protocol IDs").
pub(crate) const ALPN: &[u8] = b"postgresql";
const ALPN_HTTP: &[u8] = b"http/1.1";

/// Whom the certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownTo {
    /// Of `listen.addresses`.
    Clients,
    /// Of `injector.address`.
    ApiServer,
}

impl ShownTo {
    fn certificate(self) -> PemKind {
        match self {
            Self::Clients => PemKind::ServerCert,
            Self::ApiServer => PemKind::WebhookCert,
        }
    }

    fn key(self) -> PemKind {
        match self {
            Self::Clients => PemKind::ServerKey,
            Self::ApiServer => PemKind::WebhookKey,
        }
    }

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Clients => ALPN,
            Self::ApiServer => ALPN_HTTP,
        }
    }
}

/// Reads both files. ring underneath, TLS 1.2 and 1.3. No session is kept or resumed, as in PostgreSQL: no driver
/// asks for it, and it would be memory for each of them.
pub(crate) fn server_identity(files: &ServerCert, to: ShownTo) -> Result<ServerIdentity, TlsError> {
    let (of, of_key, path) = (to.certificate(), to.key(), &files.cert_file);
    let chain = certificates(of, path)?;
    let Some(certificate) = chain.first().cloned() else {
        return Err(TlsError::NoCertificate { of, path: path.clone() });
    };
    let key = private_key(of_key, &files.key_file)?;

    let provider = Arc::new(ring::default_provider());
    let signing = provider
        .key_provider
        .load_private_key(key)
        .map_err(|_| TlsError::KeyAlgorithm { of: of_key, path: files.key_file.clone() })?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // Unknown where the key does not tell its public half, which those of ring do.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(source) => {
            return Err(TlsError::ServerCert { of, of_key, path: path.clone(), source });
        }
    }
    if to == ShownTo::Clients {
        tell_validity(&certificate, files);
    }

    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![to.alpn().to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(ServerIdentity { config: Arc::new(config), certificate })
}

/// Whether a client believes a certificate is its own to say, and one that does not look serves on.
fn tell_validity(certificate: &CertificateDer<'_>, files: &ServerCert) {
    let Ok(Certificate { tbs_certificate: parsed, .. }) = Certificate::from_der(certificate) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (from, until) = (parsed.validity.not_before, parsed.validity.not_after);
    let path = &files.cert_file;
    if now > until.to_unix_duration() {
        warn!(event = "listen.tls_expired", ?path, until = %until, "clients that verify it will refuse the certificate");
    } else if now < from.to_unix_duration() {
        warn!(event = "listen.tls_not_yet_valid", ?path, from = %from, "clients that verify it will refuse the certificate");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/server").join(name)
    }

    fn load(cert: &str, key: &str) -> Result<(), String> {
        let files = ServerCert { cert_file: fixture(cert), key_file: fixture(key) };
        let identity = server_identity(&files, ShownTo::Clients).map_err(|error| error.to_string())?;
        assert_eq!(identity.config.send_tls13_tickets, 0);
        assert!(!identity.config.session_storage.can_cache());
        Ok(())
    }

    #[test]
    fn every_kind_of_key_that_ring_signs_with_is_taken() {
        for name in ["rsa", "rsa_pss", "p384", "ed25519"] {
            assert_eq!(load(&format!("{name}.pem"), &format!("{name}.key")), Ok(()), "{name}");
        }
    }

    #[test]
    fn other_keys_and_files_are_named_with_what_is_wrong() {
        for (cert, key, said) in [
            (
                "p521.pem",
                "p521.key",
                "is no key that pglease can sign with: RSA of 2048 to 8192 bits, ECDSA on",
            ),
            ("pss_key.pem", "pss_key.key", "is no key that pglease can sign with"),
            ("rsa1024.pem", "rsa1024.key", "is no key that pglease can sign with"),
            ("rsa.pem", "encrypted.key", "holds no private key that is not encrypted"),
            ("rsa.pem", "rsa.pem", "holds no private key that is not encrypted"),
            ("rsa.pem", "gone", "reading listen.tls_key_file"),
            ("gone", "rsa.key", "reading listen.tls_cert_file"),
            ("rsa.key", "rsa.key", "holds no usable certificate"),
            ("rsa.pem", "rsa_pss.key", "with the key of listen.tls_key_file"),
            ("rsa.pem", "p384.key", "with the key of listen.tls_key_file"),
        ] {
            let error = load(cert, key).unwrap_err();
            assert!(error.contains(said), "{cert}, {key}: {error}");
            assert!(error.contains("listen.tls_"), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let cert_file = dir.path().join("cut.pem");
        fs::write(&cert_file, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
        let error =
            server_identity(&ServerCert { cert_file, key_file: fixture("rsa.key") }, ShownTo::Clients)
                .unwrap_err();
        assert!(error.to_string().contains("is not PEM"), "{error}");
    }
}
