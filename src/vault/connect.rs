//! Connections to Vault: TLS by the settings, straight or through a proxy, and the files behind it read again when
//! they change. Runs no task of its own.

use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, fs};

use hyper::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::time;
use tower_service::Service;
use tracing::{info, warn};

use super::VaultSetupError;
use super::http::Client;
use crate::config::{Ca, ClientCert, VaultConfig, VaultTls};
use crate::telemetry::Causes;
use crate::tls::{self, TlsError, Verify};

/// The way to Vault as its files say now.
pub(super) struct Connection {
    config: VaultConfig,
    current: Mutex<Current>,
}

struct Current {
    client: Client<Connector>,
    stamps: Vec<Stamp>,
}

impl Connection {
    /// Reads the files; connects to nothing.
    pub(super) fn load(config: &VaultConfig) -> Result<Self, VaultSetupError> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(&config.tls);
        let current = Mutex::new(Current { client: client(config)?, stamps });
        Ok(Self { config: config.clone(), current })
    }

    /// The client to make the next request with: a new one, without old connections, where the files have changed.
    /// Files that are of no use are said so once, and what was read before them stays.
    pub(super) fn client(&self) -> Client<Connector> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.config.tls);
        if stamps != current.stamps {
            current.stamps = stamps;
            match client(&self.config) {
                Ok(client) => {
                    info!(event = "vault.tls_reloaded");
                    current.client = client;
                }
                Err(error) => warn!(
                    event = "vault.tls_reload_failed",
                    error = %Causes(&error),
                    "the certificates read before stay in use",
                ),
            }
        }
        current.client.clone()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What tells a file from the one that was there before: a renamed or replaced one has another inode, a rewritten one
/// another time or length. `None` where there is none.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamps(tls: &VaultTls) -> Vec<Stamp> {
    let mut paths: Vec<PathBuf> = Vec::new();
    match &tls.ca {
        Ca::System => {}
        Ca::File(path) => paths.push(path.clone()),
        Ca::Dir(path) => {
            let entries = fs::read_dir(path).into_iter().flatten();
            paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            paths.sort();
        }
    }
    if let Some(ClientCert { cert_file, key_file }) = &tls.client {
        paths.extend([cert_file.clone(), key_file.clone()]);
    }
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

fn client(config: &VaultConfig) -> Result<Client<Connector>, VaultSetupError> {
    let connector = Connector::new(config)?;
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .build(connector))
}

/// Connects within [`CONNECT_TIMEOUT`], TLS included.
#[derive(Clone)]
pub(super) enum Connector {
    Straight(HttpsConnector<HttpConnector>),
    /// By CONNECT.
    Proxied(HttpsConnector<Tunnel<HttpConnector>>),
}

impl Connector {
    fn new(config: &VaultConfig) -> Result<Self, VaultSetupError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let proxy = config.proxy.as_ref().map(|proxy| proxy.parse::<Uri>());
        Ok(match proxy {
            Some(proxy) => {
                let proxy = proxy.map_err(|_| VaultSetupError::Proxy)?;
                Self::Proxied(with_tls(config, Tunnel::new(proxy, tcp))?)
            }
            None => Self::Straight(with_tls(config, tcp)?),
        })
    }
}

fn with_tls<T>(config: &VaultConfig, inner: T) -> Result<HttpsConnector<T>, VaultSetupError> {
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls_config(config)?);
    let builder =
        if config.address.starts_with(HTTPS) { builder.https_only() } else { builder.https_or_http() };
    Ok(match &config.tls.server_name {
        Some(name) => {
            let name = tls::server_name(name)?;
            builder
                .with_server_name_resolver(FixedServerNameResolver::new(name))
                .enable_http1()
                .wrap_connector(inner)
        }
        None => builder.enable_http1().wrap_connector(inner),
    })
}

fn tls_config(config: &VaultConfig) -> Result<rustls::ClientConfig, VaultSetupError> {
    if config.address.starts_with(HTTPS) {
        let VaultTls { ca, client, skip_verify, .. } = &config.tls;
        let verify = if *skip_verify { Verify::Nothing } else { Verify::Full };
        return Ok(tls::client_config(verify, ca, client.as_ref())?);
    }
    // Plain HTTP needs no CA, and a machine without any must be able to speak it.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::from)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Ok(config)
}

type BoxError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Straight(connector) => connector.poll_ready(cx),
            Self::Proxied(connector) => connector.poll_ready(cx),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = match self {
            Self::Straight(connector) => connector.call(uri),
            Self::Proxied(connector) => connector.call(uri),
        };
        Box::pin(async move { time::timeout(CONNECT_TIMEOUT, connecting).await? })
    }
}

const HTTPS: &str = "https://";

/// Of every request; none of it is time in which Vault works.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Above the longest pause of a chain in trouble, below the idle limits of common load balancers.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(45);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_of_any_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (cert_file, key_file) = (path("cert"), path("key"));
        let tls = VaultTls {
            ca: Ca::Dir(dir.path().into()),
            client: Some(ClientCert { cert_file: cert_file.clone(), key_file: key_file.clone() }),
            ..VaultTls::default()
        };
        let mut seen = stamps(&tls);
        let mut is_new = || {
            let now = stamps(&tls);
            std::mem::replace(&mut seen, now.clone()) != now
        };
        assert!(!is_new());
        for name in ["cert", "key", "ca.pem"] {
            fs::write(path(name), "a").unwrap();
            assert!(is_new(), "{name} is there");
            fs::write(path("next"), "b").unwrap();
            fs::rename(path("next"), path(name)).unwrap();
            assert!(is_new(), "{name} is replaced");
            fs::write(path(name), "longer").unwrap();
            assert!(is_new(), "{name} is rewritten");
        }
        fs::remove_file(path("ca.pem")).unwrap();
        assert!(is_new());
    }
}
