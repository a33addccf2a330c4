//! What `pglease check` looks at beside what a chain asks for: the way there, Vault's own state, what a token may do, how
//! long a lease can get. Runs no task.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{Method, Uri};
use hyper_rustls::MaybeHttpsStream;
use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tower_service::Service as _;
use url::Url;

use super::connect::Connector;
use super::login::{JWT_FILE, TOKEN_FILE, read_file};
use super::{
    Call, Grant, LOOKUP_TIMEOUT, Operation, Token, Vault, VaultError, api, approle, login, unusable,
};
use crate::config::LoginMethod;
use crate::ids::LeaseId;

/// Where connections to Vault are made to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `vault.proxy`, which goes on from there.
    pub(crate) is_proxy: bool,
}

/// What Vault has shown in a handshake of TLS.
#[derive(Debug)]
pub(crate) struct ShownTls {
    pub(crate) version: Option<ProtocolVersion>,
    /// Its own first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// What Vault says of itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) initialized: bool,
    pub(crate) sealed: bool,
    #[serde(default)]
    pub(crate) standby: bool,
    #[serde(default)]
    pub(crate) version: String,
    /// Its clock, in seconds since 1970.
    #[serde(default)]
    pub(crate) server_time_utc: Option<i64>,
}

/// What pglease logs in with, as far as it tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Jwt {
        path: PathBuf,
        claims: Option<Claims>,
    },
    SecretId {
        path: PathBuf,
    },
    TokenFile {
        path: PathBuf,
    },
    /// What TLS shows.
    Certificate {
        path: Option<PathBuf>,
    },
}

/// Claims of a JWT (RFC 7519 §4.1), unverified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) audience: Vec<String>,
    pub(crate) subject: Option<String>,
    pub(crate) issued_at: Option<Duration>,
    pub(crate) expires_at: Option<Duration>,
}

/// What lookup-self tells beside what is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenFacts {
    pub(crate) grant: Grant,
    /// As long as it can get, renewals included; `None`: not said.
    pub(crate) explicit_max_ttl: Option<Duration>,
    pub(crate) policies: Vec<String>,
}

#[derive(Serialize)]
struct CapabilitiesBody<'a> {
    paths: &'a [String],
}

#[derive(Deserialize)]
struct CapabilitiesAnswer {
    data: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct FactsAnswer {
    data: Facts,
}

#[derive(Deserialize)]
struct Facts {
    #[serde(default)]
    explicit_max_ttl: u64,
    #[serde(default)]
    policies: Vec<String>,
}

impl Vault {
    /// The first place on the way.
    pub(crate) fn hop(&self) -> Option<Hop> {
        let url = self.config.proxy.as_ref().unwrap_or(&self.config.address);
        let url = Url::parse(url).ok()?;
        // A URL has an IPv6 address in brackets, and a resolver does not.
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Hop { host, port: url.port_or_known_default()?, is_proxy: self.config.proxy.is_some() })
    }

    /// Connects as for a request, and begins TLS; `None` with plain HTTP.
    pub(crate) async fn shake_hands(&self) -> Result<Option<ShownTls>, Box<dyn Error + Send + Sync>> {
        let uri: Uri = self.config.address.parse()?;
        let stream = Connector::new(&self.config)?.call(uri).await?;
        Ok(match &stream {
            MaybeHttpsStream::Http(_) => None,
            MaybeHttpsStream::Https(stream) => {
                let (_, connection) = stream.inner().get_ref();
                let shown = connection.peer_certificates().unwrap_or_default();
                let certificates = shown.iter().map(|shown| shown.clone().into_owned()).collect();
                Some(ShownTls { version: connection.protocol_version(), certificates })
            }
        })
    }

    /// `sys/health`, with 200 for every state that Vault may be in.
    pub(crate) async fn look_at_health(&self) -> Result<Health, VaultError> {
        let call = Call::new(Operation::Health, Method::GET, HEALTH, LOOKUP_TIMEOUT);
        let answer = self.call(call).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| unusable(Operation::Health)(api::Unusable::Shape { at: error.column() }))
    }

    /// Reads anew what is logged in with. Opens no wrapping token.
    pub(crate) fn read_identity(&self) -> Result<Identity, VaultError> {
        let read = |setting, path: &Path| read_file(setting, path).map(|text| (path.to_owned(), text));
        Ok(match &self.config.login.method {
            LoginMethod::Kubernetes { jwt_file, .. } | LoginMethod::Jwt { jwt_file, .. } => {
                let (path, jwt) = read(JWT_FILE, jwt_file)?;
                Identity::Jwt { path, claims: login::claims(jwt.expose_secret()) }
            }
            LoginMethod::AppRole { secret_id_file, .. } => {
                let (path, _) = read(approle::SECRET_ID_FILE, secret_id_file)?;
                Identity::SecretId { path }
            }
            LoginMethod::TokenFile { token_file } => {
                let (path, _) = read(TOKEN_FILE, token_file)?;
                Identity::TokenFile { path }
            }
            LoginMethod::Cert { .. } => {
                let client = self.config.tls.client.as_ref();
                Identity::Certificate { path: client.map(|client| client.cert_file.clone()) }
            }
        })
    }

    /// `auth/token/lookup-self`, with all of it that matters.
    pub(crate) async fn look_at_self(&self, token: &Token) -> Result<TokenFacts, VaultError> {
        let operation = Operation::LookUpSelf;
        let call = Call::new(operation, Method::GET, "auth/token/lookup-self", LOOKUP_TIMEOUT);
        let answer = self.call(call.token(token)).await?;
        let grant = api::parse_lookup(&answer).map_err(unusable(operation))?;
        let FactsAnswer { data } = serde_json::from_slice(&answer)
            .map_err(|error| unusable(operation)(api::Unusable::Shape { at: error.column() }))?;
        let some = |seconds: u64| (seconds > 0).then(|| Duration::from_secs(seconds).min(api::MAX_TTL));
        let Facts { explicit_max_ttl, policies } = data;
        Ok(TokenFacts { grant, explicit_max_ttl: some(explicit_max_ttl), policies })
    }

    /// `sys/capabilities-self`: what the token may do at each path.
    pub(crate) async fn list_capabilities(
        &self,
        token: &Token,
        paths: &[String],
    ) -> Result<BTreeMap<String, Vec<String>>, VaultError> {
        let operation = Operation::Capabilities;
        let call = Call::new(operation, Method::POST, "sys/capabilities-self", LOOKUP_TIMEOUT);
        let answer = self.call(call.token(token).body(CapabilitiesBody { paths })).await?;
        let CapabilitiesAnswer { data } = serde_json::from_slice(&answer)
            .map_err(|error| unusable(operation)(api::Unusable::Shape { at: error.column() }))?;
        let words = |value: serde_json::Value| serde_json::from_value(value).ok();
        Ok(data.into_iter().filter_map(|(path, value)| Some((path, words(value)?))).collect())
    }

    /// How long the lease can get from now on: a renewal that asks for more than there is. Leaves it so.
    pub(crate) async fn stretch_lease(&self, token: &Token, lease: &LeaseId) -> Result<Grant, VaultError> {
        let operation = Operation::StretchLease;
        let body = api::RenewBody { lease_id: lease.as_str(), increment: TOO_LONG };
        let call = Call::new(operation, Method::PUT, "sys/leases/renew", LOOKUP_TIMEOUT);
        let answer = self.call(call.token(token).secret(body.lease_id).body(body)).await?;
        api::parse_renewed_lease(&answer).map_err(unusable(operation))
    }
}

const HEALTH: &str = "sys/health?standbyok=true&perfstandbyok=true&sealedcode=200&uninitcode=200&drsecondarycode=200\
                      &haunhealthycode=200";

/// Ten years, in seconds.
const TOO_LONG: u32 = 315_360_000;
