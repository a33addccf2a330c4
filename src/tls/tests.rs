use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use tempfile::NamedTempFile;

use super::verify::dir_certificates;
use super::*;
use crate::config::{Ca, ClientCert};

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
    handshake_with(&ClientTls::new(verify, &Ca::File(ca.path().into())), server, key, host)
}

fn handshake_with(
    options: &ClientTls<'_>,
    server: &Made,
    key: &KeyPair,
    host: &str,
) -> Result<(), rustls::Error> {
    let config = client_config(options).unwrap();
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
    let with_ca =
        |path: &Path| client_config(&ClientTls::new(Verify::Full, &Ca::File(path.into()))).unwrap_err();
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
    let load = || client_config(&ClientTls::new(Verify::Full, &Ca::Dir(dir.path().into())));
    load().unwrap();
    fs::write(dir.path().join("other.pem"), &other.pem).unwrap();
    assert_eq!(dir_certificates(dir.path()).unwrap().len(), 2);

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
        let shown = ClientTls { client: Some(&client), ..ClientTls::new(Verify::Nothing, &Ca::System) };
        client_config(&shown).map(|config| config.client_auth_cert_resolver.has_certs())
    };
    assert!(load(&made.pem, &made.key.serialize_pem()).unwrap());
    assert!(matches!(load(&made.pem, &other.key.serialize_pem()), Err(TlsError::ClientCert { .. })));
    assert!(matches!(load("", &made.key.serialize_pem()), Err(TlsError::NoCertificate { .. })));
    let error = load(&made.pem, "no key").unwrap_err();
    assert!(error.to_string().starts_with("key of the client certificate"), "{error}");
}

#[test]
fn chain_takes_any_name_and_is_as_strict_otherwise() {
    let ca = self_signed(params(&[], true));
    let try_as =
        |server: &Made, ca: &Made, verify| handshake(verify, &ca.pem, server, &server.key, "other.example");
    let server = issued_by(&ca, params(&["db.example"], false));
    assert!(try_as(&server, &ca, Verify::Full).is_err());
    assert_eq!(try_as(&server, &ca, Verify::Chain), Ok(()));
    assert!(try_as(&server, &self_signed(params(&[], true)), Verify::Chain).is_err());

    let mut expired = params(&["db.example"], false);
    (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    assert!(try_as(&issued_by(&ca, expired), &ca, Verify::Chain).is_err());
    for is_ca in [false, true] {
        let server = self_signed(params(&["db.example"], is_ca));
        assert_eq!(try_as(&server, &server, Verify::Chain), Ok(()), "is_ca {is_ca}");
        assert!(try_as(&server, &self_signed(params(&["db.example"], is_ca)), Verify::Chain).is_err());
    }
    let thief = KeyPair::generate().unwrap();
    assert!(handshake(Verify::Chain, &ca.pem, &server, &thief, "db.example").is_err());
}

/// A list by `ca` of the certificates with these serial numbers.
fn revocation_list(ca: &Made, revoked: &[u64], until: i32) -> NamedTempFile {
    let revoked = revoked.iter().map(|&serial| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(until, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    file(&list.signed_by(&Issuer::from_params(&ca.params, &ca.key)).unwrap().pem().unwrap())
}

#[test]
fn revoked_certificate_is_refused_and_so_is_one_that_no_valid_list_speaks_of() {
    let numbered = |serial: u64| {
        let mut params = params(&["db.example"], false);
        params.serial_number = Some(SerialNumber::from(serial));
        params
    };
    let (ca, other) = (self_signed(params(&[], true)), {
        let mut other = params(&[], true);
        other.distinguished_name.push(rcgen::DnType::CommonName, "other CA");
        self_signed(other)
    });
    let (good, revoked) = (issued_by(&ca, numbered(1)), issued_by(&ca, numbered(2)));
    let ca_file = file(&ca.pem);
    let roots = Ca::File(ca_file.path().into());
    let try_with = |verify, list: &NamedTempFile, server: &Made, host| {
        let crls = [list.path().to_owned()];
        let options = ClientTls { crls: &crls, ..ClientTls::new(verify, &roots) };
        handshake_with(&options, server, &server.key, host).is_ok()
    };

    let list = revocation_list(&ca, &[2], 4000);
    assert!(try_with(Verify::Full, &list, &good, "db.example"));
    assert!(!try_with(Verify::Full, &list, &revoked, "db.example"));
    assert!(try_with(Verify::Chain, &list, &good, "other.example"));
    assert!(!try_with(Verify::Chain, &list, &revoked, "other.example"));
    assert!(!try_with(Verify::Full, &revocation_list(&ca, &[], 2025), &good, "db.example"), "an old list");
    assert!(
        !try_with(Verify::Full, &revocation_list(&other, &[], 4000), &good, "db.example"),
        "another's list"
    );
}

#[test]
fn unusable_lists_of_revoked_certificates_are_named() {
    let ca = file(&self_signed(params(&[], true)).pem);
    let roots = Ca::File(ca.path().into());
    let load = |path: &Path| {
        let crls = [path.to_owned()];
        client_config(&ClientTls { crls: &crls, ..ClientTls::new(Verify::Full, &roots) }).map(drop)
    };
    let empty = file("nothing\n");
    assert!(matches!(load(empty.path()), Err(TlsError::NoRevocationList { path }) if path == empty.path()));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(load(dir.path()), Err(TlsError::NoRevocationList { .. })));
    let missing = load(&dir.path().join("crl.pem")).unwrap_err();
    assert!(missing.to_string().starts_with("reading list of revoked certificates"), "{missing}");
    let broken = file("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    assert!(matches!(load(broken.path()), Err(TlsError::Verifier(_))));

    let list = revocation_list(&self_signed(params(&[], true)), &[], 4000);
    fs::write(dir.path().join("README"), "-----BEGIN X509 CRL-----\nMIIB").unwrap();
    fs::copy(list.path(), dir.path().join("list.pem")).unwrap();
    load(dir.path()).unwrap();
}
