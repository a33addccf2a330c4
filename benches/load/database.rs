//! A database to open sessions of, from its URL.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinSet;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

/// Where sessions go, and how.
pub(crate) struct Database {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

/// A connection, and what drives it. Both end with it.
pub(crate) struct Session {
    pub(crate) client: Client,
    driver: JoinSet<Result<(), Error>>,
}

impl Session {
    /// Says goodbye, and waits until that is said.
    pub(crate) async fn close(self) {
        let Self { client, mut driver } = self;
        drop(client);
        while driver.join_next().await.is_some() {}
    }
}

impl Database {
    /// Of a `DATABASE_URL`. TLS is verified wherever there is any, against `sslrootcert` or the system's certificates.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let (url, root) = without_root(url)?;
        let config: Config =
            url.parse().map_err(|error| format!("the URL is not one of PostgreSQL: {error}"))?;
        let tls = if config.get_ssl_mode() == SslMode::Disable {
            None
        } else {
            Some(MakeRustlsConnect::new(client_config(root.as_deref())?))
        };
        Ok(Self { config, tls })
    }

    pub(crate) async fn open(&self) -> Result<Session, Error> {
        let mut driver = JoinSet::new();
        let client = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                driver.spawn(connection);
                client
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                driver.spawn(connection);
                client
            }
        };
        Ok(Session { client, driver })
    }
}

/// The URL without what tokio-postgres does not know, and its `sslrootcert`.
fn without_root(text: &str) -> Result<(String, Option<String>), String> {
    let mut url = Url::parse(text).map_err(|error| format!("the URL is none: {error}"))?;
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let root = pairs.iter().find(|(name, _)| name == "sslrootcert").map(|(_, value)| value.clone());
    let rest = pairs.iter().filter(|(name, _)| name != "sslrootcert");
    // Of the modes of libpq that verify, tokio-postgres knows none; here each does.
    let rest: Vec<_> = rest
        .map(|(name, value)| match (name.as_str(), value.as_str()) {
            ("sslmode", "verify-full" | "verify-ca") => (name.as_str(), "require"),
            pair => pair,
        })
        .collect();
    if rest.is_empty() {
        url.set_query(None);
    } else {
        url.query_pairs_mut().clear().extend_pairs(rest);
    }
    Ok((url.into(), root))
}

fn client_config(root: Option<&str>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match root {
        Some(file) => {
            let failed = |error: &dyn std::fmt::Display| format!("sslrootcert {file}: {error}");
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))? {
                let certificate = certificate.map_err(|error| failed(&error))?;
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("TLS: {error}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
