//! TLS with the hosts of one upstream, by the files of now.

#[cfg(test)]
mod tests;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, fs};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{SignatureScheme, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};

use crate::config::{
    Ca, ClientCert, SslMode, SslNegotiation, SslOptions, TlsVersion, UpstreamConfig, is_open_key,
};
use crate::telemetry::Causes;
use crate::tls::{self, ALPN, ClientTls, PemKind, Reread, TlsError, Verify};

use super::connect::{self, NegotiationError};

/// TLS as the hosts of one upstream want it.
pub(super) struct Tls {
    ssl: SslOptions,
    client: Reread<Arc<rustls::ClientConfig>, TlsError>,
}

impl Tls {
    /// `None` for plain TCP. Reads the files.
    pub(super) fn load(config: &UpstreamConfig) -> Result<Option<Self>, TlsError> {
        if config.ssl_mode == SslMode::Disable {
            return Ok(None);
        }
        let (made_of, told_of) = (config.clone(), config.clone());
        let ca = config.ssl_root_cert.clone().map_or(Ca::System, Ca::File);
        let make = move || client_config(&made_of, &ca);
        let client = Reread::new(paths(config), make, move |made| tell(&told_of, made))?;
        Ok(Some(Self { ssl: config.ssl.clone(), client }))
    }

    /// Begins TLS with a server that has to be `server_name`, as `sslnegotiation` says.
    pub(super) async fn negotiate(
        &self,
        mut stream: TcpStream,
        server_name: &ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, NegotiationError> {
        let SslOptions { negotiation, must_ask, .. } = self.ssl;
        let mut client = self.client.get().await;
        let shown = Arc::new(AtomicBool::new(false));
        if must_ask {
            let client = Arc::make_mut(&mut client);
            let inner = Arc::clone(&client.client_auth_cert_resolver);
            client.client_auth_cert_resolver = Arc::new(Witness { inner, shown: Arc::clone(&shown) });
        }

        let is_direct = negotiation == SslNegotiation::Direct;
        if !is_direct {
            connect::request(&mut stream).await?;
        }
        let stream = TlsConnector::from(client)
            .connect(server_name.clone(), stream)
            .await
            .map_err(|source| NegotiationError::Handshake { source, is_direct })?;

        let (_, connection) = stream.get_ref();
        // Whoever is on the way may have led us to a server of another protocol with a certificate of that name.
        if is_direct && connection.alpn_protocol().is_none() {
            return Err(NegotiationError::NoAlpn);
        }
        if must_ask && !shown.load(Ordering::Relaxed) {
            return Err(NegotiationError::CertificateNotShown);
        }
        Ok(stream)
    }
}

fn tell(upstream: &UpstreamConfig, made: Result<&Arc<rustls::ClientConfig>, &TlsError>) {
    match made {
        Ok(_) => info!(event = "upstream.tls_reloaded", %upstream),
        Err(error) => warn!(
            event = "upstream.tls_reload_failed",
            %upstream,
            error = %Causes(error),
            "the certificates read before stay in use",
        ),
    }
}

/// What TLS is made of.
fn paths(config: &UpstreamConfig) -> Vec<PathBuf> {
    let UpstreamConfig { ssl_root_cert, ssl: SslOptions { client, crl_file, crl_dir, .. }, .. } = config;
    let client = client.iter().flat_map(|client| [&client.cert_file, &client.key_file]);
    ssl_root_cert.iter().chain(crl_file).chain(crl_dir).chain(client).cloned().collect()
}

fn client_config(config: &UpstreamConfig, ca: &Ca) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let ssl = &config.ssl;
    if let Some(ClientCert { key_file, .. }) = &ssl.client {
        refuse_open_key(key_file)?;
    }
    let verify = match config.ssl_mode {
        SslMode::Disable | SslMode::Require => Verify::Nothing,
        SslMode::VerifyCa => Verify::Chain,
        SslMode::VerifyFull => Verify::Full,
    };
    let versions: &[&SupportedProtocolVersion] = match (ssl.min_version, ssl.max_version) {
        (TlsVersion::V1_3, _) => &[&TLS13],
        (TlsVersion::V1_2, TlsVersion::V1_2) => &[&TLS12],
        (TlsVersion::V1_2, TlsVersion::V1_3) => rustls::ALL_VERSIONS,
    };
    let crls: Vec<_> = ssl.crl_file.iter().chain(&ssl.crl_dir).cloned().collect();
    let options =
        ClientTls { crls: &crls, client: ssl.client.as_ref(), versions, ..ClientTls::new(verify, ca) };
    let mut client = tls::client_config(&options)?;
    client.enable_sni = ssl.sni;
    // As libpq of PostgreSQL 17 and later, however TLS begins: no server of another protocol that heeds it can be put
    // in the place of ours.
    client.alpn_protocols = vec![ALPN.to_vec()];
    // PostgreSQL resumes no session, and each login is to be verified by the files of now, revocations included.
    client.resumption = Resumption::disabled();
    Ok(Arc::new(client))
}

/// By libpq's rule, which a file that has changed is held to as well.
fn refuse_open_key(path: &Path) -> Result<(), TlsError> {
    let unreadable = |source| TlsError::Read { of: PemKind::ClientKey, path: path.into(), source };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if is_open_key(metadata.uid(), metadata.mode()) {
        return Err(TlsError::OpenKey { path: path.into() });
    }
    Ok(())
}

/// Notes that a server has asked for a certificate and gets one.
struct Witness {
    inner: Arc<dyn ResolvesClientCert>,
    shown: Arc<AtomicBool>,
}

impl ResolvesClientCert for Witness {
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certificate = self.inner.resolve(issuers, schemes);
        // One that cannot sign as the server wants is not shown.
        let is_shown = certificate.as_ref().is_some_and(|shown| shown.key.choose_scheme(schemes).is_some());
        self.shown.store(is_shown, Ordering::Relaxed);
        certificate
    }

    fn has_certs(&self) -> bool {
        self.inner.has_certs()
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}
