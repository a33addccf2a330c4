//! rustls configurations, and the files that they are made of. Runs no task.

mod client;
mod end;
mod server;
mod reread;
mod verify;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use zeroize::Zeroizing;

pub(crate) use client::{ClientTls, client_config};
pub(crate) use end::end_of_pair;
pub(crate) use reread::Reread;
pub(crate) use server::{ALPN, ServerIdentity, ShownTo, server_identity};
pub(crate) use verify::Verify;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("reading {of} {path:?}")]
    Read { of: PemKind, path: PathBuf, source: io::Error },
    #[error("{of} {path:?} is not PEM")]
    Pem { of: PemKind, path: PathBuf, source: pem::Error },
    #[error("{of} {path:?} holds no usable certificate")]
    NoCertificate { of: PemKind, path: PathBuf },
    #[error("{path:?} holds no list of revoked certificates")]
    NoRevocationList { path: PathBuf },
    #[error("the system has no CA certificates: name a CA file")]
    NoSystemRoots,
    #[error("{host:?} is neither a name nor an address that a certificate could be for")]
    ServerName { host: String },
    #[error("{of} {path:?} holds no private key that is not encrypted")]
    NoKey { of: PemKind, path: PathBuf },
    #[error(
        "{of} {path:?} is no key that pglease can sign with: RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, \
         or Ed25519"
    )]
    KeyAlgorithm { of: PemKind, path: PathBuf },
    #[error("{of} {path:?} with the key of {of_key}")]
    ServerCert { of: PemKind, of_key: PemKind, path: PathBuf, source: rustls::Error },
    #[error(
        "others may read the key {path:?}; give it the mode 0600, or 0640 where it is root's, as they could use it"
    )]
    OpenKey { path: PathBuf },
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
    ServerCert,
    ServerKey,
    WebhookCert,
    WebhookKey,
    Crl,
}

impl fmt::Display for PemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ca => "CA file",
            Self::ClientCert => "client certificate",
            Self::ClientKey => "key of the client certificate",
            Self::ServerCert => "listen.tls_cert_file",
            Self::ServerKey => "listen.tls_key_file",
            Self::WebhookCert => "injector.tls_cert_file",
            Self::WebhookKey => "injector.tls_key_file",
            Self::Crl => "list of revoked certificates",
        })
    }
}
/// What a server's certificate has to be for, from a host name or an IP address as settings spell it.
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::ServerName { host: host.to_owned() })
}
/// Every certificate of a PEM file.
fn certificates(of: PemKind, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem_items(of, path)
}

/// Everything of one kind in a PEM file.
fn pem_items<T: PemObject>(of: PemKind, path: &Path) -> Result<Vec<T>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Read { of, path: path.into(), source })?;
    T::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(|source| TlsError::Pem {
        of,
        path: path.into(),
        source,
    })
}

fn private_key(of: PemKind, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let read = fs::read(path).map_err(|source| TlsError::Read { of, path: path.into(), source })?;
    PrivateKeyDer::from_pem_slice(&Zeroizing::new(read)).map_err(|source| {
        let path = path.into();
        if matches!(source, pem::Error::NoItemsFound) {
            TlsError::NoKey { of, path }
        } else {
            TlsError::Pem { of, path, source }
        }
    })
}
