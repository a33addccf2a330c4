//! Connections to Vault: TLS by the settings, straight or through a proxy, and the files behind it read again when
//! they change. Runs no task of its own.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

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
use crate::config::{Ca, VaultConfig, VaultTls};
use crate::telemetry::Causes;
use crate::tls::{self, ClientTls, Reread, TlsError, Verify};

/// The way to Vault as its files say now.
pub(super) struct Connection {
    config: VaultConfig,
    client: Reread<Client<Connector>, VaultSetupError>,
}

impl Connection {
    /// Reads the files; connects to nothing.
    pub(super) fn load(config: &VaultConfig) -> Result<Self, VaultSetupError> {
        let made_of = config.clone();
        let client = Reread::new(paths(&config.tls), move || client(&made_of), tell)?;
        Ok(Self { config: config.clone(), client })
    }

    /// The client to make the next request with: a new one, without old connections, where the files have changed.
    pub(super) async fn client(&self) -> Client<Connector> {
        self.client.get().await
    }
}

fn tell(made: Result<&Client<Connector>, &VaultSetupError>) {
    match made {
        Ok(_) => info!(event = "vault.tls_reloaded"),
        Err(error) => warn!(
            event = "vault.tls_reload_failed",
            error = %Causes(error),
            "the certificates read before stay in use",
        ),
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What TLS is made of.
fn paths(tls: &VaultTls) -> Vec<PathBuf> {
    let ca = match &tls.ca {
        Ca::System => None,
        Ca::File(path) | Ca::Dir(path) => Some(path),
    };
    let client = tls.client.iter().flat_map(|client| [&client.cert_file, &client.key_file]);
    ca.into_iter().chain(client).cloned().collect()
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
    pub(super) fn new(config: &VaultConfig) -> Result<Self, VaultSetupError> {
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
        let shown = ClientTls { client: client.as_ref(), ..ClientTls::new(verify, ca) };
        return Ok(tls::client_config(&shown)?);
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
