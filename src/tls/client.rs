//! What pglease shows and believes as a client.

use std::sync::Arc;

use rustls::crypto::ring;

use super::verify::{Verify, verifier};
use super::{PemKind, TlsError, certificates, private_key};
use crate::config::{Ca, ClientCert};

/// A client's configuration, ring underneath, TLS 1.2 and 1.3. The system's CAs are read once, here; with
/// [`Verify::Nothing`] no CA is. `client` is shown to a server that asks for a certificate.
pub(crate) fn client_config(
    verify: Verify,
    ca: &Ca,
    client: Option<&ClientCert>,
) -> Result<rustls::ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(verify, ca, &provider)?;
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
        .with_client_auth_cert(chain, private_key(PemKind::ClientKey, key_file)?)
        .map_err(|source| TlsError::ClientCert { path: cert_file.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConnection, ServerConfig, ServerConnection};
    use tempfile::NamedTempFile;

    use super::super::server_name;
    use super::super::verify::dir_verifier;
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
