//! What pglease shows and believes as a client.

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::ring;

use super::verify::{Crls, Verify, verifier};
use super::{PemKind, TlsError, certificates, private_key};
use crate::config::{Ca, ClientCert};

/// What a client believes and shows.
#[derive(Clone, Debug)]
pub(crate) struct ClientTls<'a> {
    pub(crate) verify: Verify,
    /// With [`Verify::Nothing`] not read.
    pub(crate) ca: &'a Ca,
    pub(crate) crls: Crls<'a>,
    /// Shown to a server that asks for a certificate.
    pub(crate) client: Option<&'a ClientCert>,
    pub(crate) versions: &'a [&'static SupportedProtocolVersion],
}

impl<'a> ClientTls<'a> {
    /// Shows nothing, and speaks TLS 1.2 and 1.3.
    pub(crate) fn new(verify: Verify, ca: &'a Ca) -> Self {
        Self { verify, ca, crls: &[], client: None, versions: rustls::ALL_VERSIONS }
    }
}

/// A client's configuration, ring underneath. Reads the files that it names, and the system's CAs where it names none.
pub(crate) fn client_config(options: &ClientTls<'_>) -> Result<rustls::ClientConfig, TlsError> {
    let ClientTls { verify, ca, crls, client, versions } = options;
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(*verify, ca, crls, &provider)?;
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
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
