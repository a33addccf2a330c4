//! The HTTP client for Vault and OpenBao: login, creds, renewal, revocation. Called by the chains only; runs no
//! task of its own.
//!
//! Each call is one request: nothing is tried twice here, no redirect is followed, no proxy of the pod's environment
//! is used. A call that is dropped closes its connection, and Vault rolls back what it had not finished.

mod api;
mod error;
mod login;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, redirect, retry};
use rustls::RootCertStore;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

pub(crate) use api::Unusable;
pub(crate) use error::{Answer, Operation, VaultError, VaultSetupError};

use crate::config::VaultConfig;
use crate::ids::LeaseId;
use crate::telemetry::{Metrics, OperationLabels, VaultLabels};
use crate::tls::{self, TlsError, Verify};

/// Vault's own login of one generation.
#[derive(Clone, Debug)]
pub(crate) struct Token(SecretString);

/// What Vault granted, counted from when it granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// `None` where it does not end, which only a token can.
    pub(crate) ttl: Option<Duration>,
    pub(crate) renewable: bool,
}

/// What may be done with a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Ours alone: renewed, and revoked with all that was read with it.
    #[default]
    Service,
    /// A batch token: neither renewed nor revoked; its leases can be, one by one.
    Batch,
    /// Somebody else keeps and renews it: never revoked by us; leases read with it are ended one by one.
    #[expect(dead_code, reason = "the login method token_file is not built yet")]
    Foreign,
}

/// A successful login.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) token: Token,
    #[cfg_attr(not(test), expect(dead_code, reason = "a chain treats all tokens as its own yet"))]
    pub(crate) kind: TokenKind,
    pub(crate) grant: Grant,
    /// `exp` of the JWT that it was done with, as Unix time.
    pub(crate) jwt_expiry: Option<Duration>,
}

/// A credential as it was read.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    /// Its `ttl` is always given.
    pub(crate) grant: Grant,
    pub(crate) user: String,
    pub(crate) password: SecretString,
}

/// The credential of a static role. It has no lease: Vault changes the password when `ttl` is over.
#[cfg_attr(not(test), expect(dead_code, reason = "static roles are not served yet"))]
#[derive(Debug)]
pub(crate) struct StaticCredential {
    pub(crate) user: String,
    pub(crate) password: SecretString,
    /// Until the next change; zero while it is under way.
    pub(crate) ttl: Duration,
}

/// The calls of one generation's life. Each ends within its time, as given or as the constants below say.
pub(crate) trait VaultApi: Send + Sync + 'static {
    /// Logs in by the configured method.
    fn log_in(&self) -> impl Future<Output = Result<Login, VaultError>> + Send;

    /// `auth/token/lookup-self`: what is left of the token.
    fn look_up_self(&self, token: &Token) -> impl Future<Output = Result<Grant, VaultError>> + Send;

    /// GET of `vault_path`: makes a credential.
    fn read_creds(
        &self,
        token: &Token,
        vault_path: &str,
        timeout: Duration,
    ) -> impl Future<Output = Result<Lease, VaultError>> + Send;

    /// `sys/leases/renew` for what the `vault_role` grants by default.
    fn renew_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
        timeout: Duration,
    ) -> impl Future<Output = Result<Grant, VaultError>> + Send;

    /// `auth/token/renew-self`.
    fn renew_self(
        &self,
        token: &Token,
        timeout: Duration,
    ) -> impl Future<Output = Result<Grant, VaultError>> + Send;

    /// `sys/leases/lookup`: what is left of the lease. 400 where Vault does not know it (any more).
    fn look_up_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
    ) -> impl Future<Output = Result<Grant, VaultError>> + Send;

    /// Ends one lease and leaves its token alone, as far as the default policy allows: a renewal for one second.
    /// The credential is gone about a second later.
    #[expect(dead_code, reason = "every token is revoked with its leases yet")]
    fn expire_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
    ) -> impl Future<Output = Result<(), VaultError>> + Send;

    /// GET of a `vault_path` of a static role, which makes nothing.
    #[expect(dead_code, reason = "static roles are not served yet")]
    fn read_static_creds(
        &self,
        token: &Token,
        vault_path: &str,
    ) -> impl Future<Output = Result<StaticCredential, VaultError>> + Send;

    /// `auth/token/revoke-self`: the token, and every lease that was read with it.
    fn revoke_self(&self, token: &Token) -> impl Future<Output = Result<(), VaultError>> + Send;
}

/// One Vault, as `vault` in the settings names it.
#[derive(Debug)]
pub(crate) struct Vault {
    http: Client,
    config: VaultConfig,
    namespace: Option<HeaderValue>,
    metrics: Arc<Metrics>,
}

impl Vault {
    /// Reads the CA file and makes the client; connects to nothing.
    pub(crate) fn load(config: &VaultConfig, metrics: Arc<Metrics>) -> Result<Self, VaultSetupError> {
        let namespace = config.namespace.as_deref().map(HeaderValue::from_str).transpose();
        let http = Client::builder()
            .tls_backend_preconfigured(tls_config(config)?)
            .https_only(config.address.starts_with("https://"))
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .user_agent(concat!("pglease/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build()
            .map_err(VaultSetupError::Client)?;
        Ok(Self {
            http,
            config: config.clone(),
            namespace: namespace.map_err(|_| VaultSetupError::Namespace)?,
            metrics,
        })
    }

    /// Makes the request and counts it.
    async fn call(&self, call: Call<'_, impl Serialize>) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let op = call.operation.as_str();
        let asked_at = Instant::now();
        let result = self.exchange(&call).await;

        let status = match &result {
            Ok((status, _)) => Some(status.as_u16()),
            Err(error) => error.status(),
        };
        let code = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        self.metrics.vault_requests.get_or_create(&VaultLabels { op, code }).inc();
        let seconds = self.metrics.vault_request_seconds.get_or_create(&OperationLabels { op });
        seconds.observe(asked_at.elapsed().as_secs_f64());
        result.map(|(_, body)| body)
    }

    async fn exchange(
        &self,
        call: &Call<'_, impl Serialize>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), VaultError> {
        let operation = call.operation;
        let unsent = |source: reqwest::Error| VaultError::NoConnection { operation, source: Some(source) };
        let mut request = self
            .http
            .request(call.method.clone(), format!("{}/v1/{}", self.config.address, call.path))
            .header(VAULT_REQUEST, "true")
            .timeout(call.timeout);
        if let Some(namespace) = &self.namespace {
            request = request.header(VAULT_NAMESPACE, namespace);
        }
        if let Some(token) = call.token {
            request = request.header(VAULT_TOKEN, token.header(operation)?);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let request = request.build().map_err(unsent)?;
        let response =
            self.http.execute(request).await.map_err(|source| {
                if source.is_connect() { unsent(source) } else { lost(operation, source) }
            })?;
        self.read(call, response).await
    }

    /// Reads the answer and judges its status.
    async fn read(
        &self,
        call: &Call<'_, impl Serialize>,
        response: Response,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), VaultError> {
        let operation = call.operation;
        let status = response.status();
        let retry_after = retry_after(&response);
        let body = read_bounded(response).await;
        if status.is_success() {
            let body = body.map_err(|error| error.of(operation))?;
            return if status == call.expected {
                Ok((status, body))
            } else {
                let source = Unusable::Status { status: status.as_u16() };
                Err(VaultError::Unusable { operation, source })
            };
        }
        // A refusal stands, whatever becomes of its text.
        let token = call.token.map(|token| token.0.expose_secret());
        let secrets: Vec<_> = token.into_iter().chain(call.secret).collect();
        let texts = body.map_or_else(|_| String::new(), |body| api::parse_errors(&body, &secrets));
        Err(VaultError::Refused { operation, status: status.as_u16(), texts, retry_after })
    }
}

impl VaultApi for Vault {
    async fn log_in(&self) -> Result<Login, VaultError> {
        let config = &self.config.login;
        let jwt = login::read_jwt(&config.jwt_file)?;
        let path = format!("auth/{}/login", config.mount);
        let body = api::LoginBody { role: &config.role, jwt: jwt.text.expose_secret() };
        let call =
            Call::new(Operation::Login, Method::POST, &path, LOGIN_TIMEOUT).secret(body.jwt).body(body);
        let answer = self.call(call).await?;
        let login = api::parse_login(&answer).map_err(unusable(Operation::Login))?;
        Ok(Login { jwt_expiry: jwt.expiry, ..login })
    }

    async fn look_up_self(&self, token: &Token) -> Result<Grant, VaultError> {
        let call = Call::new(Operation::LookUpSelf, Method::GET, "auth/token/lookup-self", LOOKUP_TIMEOUT)
            .token(token);
        let answer = self.call(call).await?;
        api::parse_lookup(&answer).map_err(unusable(Operation::LookUpSelf))
    }

    async fn read_creds(
        &self,
        token: &Token,
        vault_path: &str,
        timeout: Duration,
    ) -> Result<Lease, VaultError> {
        let call = Call::new(Operation::ReadCreds, Method::GET, vault_path, timeout).token(token);
        let answer = self.call(call).await?;
        api::parse_creds(&answer).map_err(unusable(Operation::ReadCreds))
    }

    async fn renew_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
        timeout: Duration,
    ) -> Result<Grant, VaultError> {
        let body = api::RenewBody { lease_id: lease.as_str(), increment: 0 };
        let call = Call::new(Operation::RenewLease, Method::PUT, "sys/leases/renew", timeout);
        let answer = self.call(call.token(token).secret(body.lease_id).body(body)).await?;
        api::parse_renewed_lease(&answer).map_err(unusable(Operation::RenewLease))
    }

    async fn renew_self(&self, token: &Token, timeout: Duration) -> Result<Grant, VaultError> {
        let call = Call::new(Operation::RenewSelf, Method::POST, "auth/token/renew-self", timeout);
        let answer = self.call(call.token(token).body(api::EmptyBody {})).await?;
        api::parse_renewed_token(&answer).map_err(unusable(Operation::RenewSelf))
    }

    async fn look_up_lease(&self, token: &Token, lease: &LeaseId) -> Result<Grant, VaultError> {
        let body = api::LeaseBody { lease_id: lease.as_str() };
        let call = Call::new(Operation::LookUpLease, Method::PUT, "sys/leases/lookup", LOOKUP_TIMEOUT);
        let answer = self.call(call.token(token).secret(body.lease_id).body(body)).await?;
        api::parse_lease_lookup(&answer).map_err(unusable(Operation::LookUpLease))
    }

    async fn expire_lease(&self, token: &Token, lease: &LeaseId) -> Result<(), VaultError> {
        let body = api::RenewBody { lease_id: lease.as_str(), increment: 1 };
        let call = Call::new(Operation::ExpireLease, Method::PUT, "sys/leases/renew", REVOKE_TIMEOUT);
        self.call(call.token(token).secret(body.lease_id).body(body)).await.map(drop)
    }

    async fn read_static_creds(
        &self,
        token: &Token,
        vault_path: &str,
    ) -> Result<StaticCredential, VaultError> {
        let call = Call::new(Operation::ReadStaticCreds, Method::GET, vault_path, STATIC_TIMEOUT);
        let answer = self.call(call.token(token)).await?;
        api::parse_static_creds(&answer).map_err(unusable(Operation::ReadStaticCreds))
    }

    async fn revoke_self(&self, token: &Token) -> Result<(), VaultError> {
        let call = Call::new(Operation::RevokeSelf, Method::POST, "auth/token/revoke-self", REVOKE_TIMEOUT);
        let call = Call { expected: StatusCode::NO_CONTENT, ..call };
        self.call(call.token(token)).await.map(drop)
    }
}

impl Token {
    fn header(&self, operation: Operation) -> Result<HeaderValue, VaultError> {
        let mut value = HeaderValue::from_str(self.0.expose_secret())
            .map_err(|_| VaultError::Unusable { operation, source: Unusable::NoToken })?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// A token for tests.
    #[cfg(test)]
    pub(crate) fn from_text(text: &str) -> Self {
        Self(SecretString::from(text))
    }

    /// What it says, for fakes.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        self.0.expose_secret()
    }
}

/// One request, before it is made.
struct Call<'a, B> {
    operation: Operation,
    method: Method,
    /// Below `/v1/`, without a slash in front.
    path: &'a str,
    timeout: Duration,
    expected: StatusCode,
    token: Option<&'a Token>,
    body: Option<B>,
    /// In the body, and never to be seen in an error's text.
    secret: Option<&'a str>,
}

impl<'a> Call<'a, api::EmptyBody> {
    fn new(operation: Operation, method: Method, path: &'a str, timeout: Duration) -> Self {
        let expected = StatusCode::OK;
        Self { operation, method, path, timeout, expected, token: None, body: None, secret: None }
    }
}

impl<'a, B> Call<'a, B> {
    fn token(self, token: &'a Token) -> Self {
        Self { token: Some(token), ..self }
    }

    fn secret(self, secret: &'a str) -> Self {
        Self { secret: Some(secret), ..self }
    }

    fn body<T>(self, body: T) -> Call<'a, T> {
        let Self { operation, method, path, timeout, expected, token, body: _, secret } = self;
        Call { operation, method, path, timeout, expected, token, body: Some(body), secret }
    }
}

/// Why an answer's body could not be read to its end.
enum BodyError {
    TooLong,
    Broken(reqwest::Error),
}

impl BodyError {
    fn of(self, operation: Operation) -> VaultError {
        match self {
            Self::TooLong => VaultError::Unusable { operation, source: Unusable::TooLong },
            Self::Broken(source) => lost(operation, source),
        }
    }
}

fn lost(operation: Operation, source: reqwest::Error) -> VaultError {
    VaultError::NoAnswer { operation, source: Some(source) }
}

fn unusable(operation: Operation) -> impl Fn(Unusable) -> VaultError {
    move |source| VaultError::Unusable { operation, source }
}

async fn read_bounded(mut response: Response) -> Result<Zeroizing<Vec<u8>>, BodyError> {
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_CAPACITY));
    while let Some(chunk) = response.chunk().await.map_err(BodyError::Broken)? {
        if body.len() + chunk.len() > api::MAX_BODY_LEN {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3); its form as a date, which Vault does not send, is ignored.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn tls_config(config: &VaultConfig) -> Result<rustls::ClientConfig, VaultSetupError> {
    if config.address.starts_with("https://") {
        return Ok(tls::client_config(Verify::Full, config.ca_file.as_deref())?);
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

const VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");

/// Of every request; none of it is time in which Vault works.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Above the longest pause of a chain in trouble, below the idle limits of common load balancers.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(45);

const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const REVOKE_TIMEOUT: Duration = Duration::from_secs(2);
const STATIC_TIMEOUT: Duration = Duration::from_secs(15);

/// Nobody is made to wait longer by a header.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What common answers fit in, so that no copy of a secret is left behind by growing.
const BODY_CAPACITY: usize = 8 * 1024;

#[cfg(test)]
mod tests;
