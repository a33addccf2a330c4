//! The HTTP client for Vault and OpenBao: login, creds, renewal, revocation. Called by the chains only; runs no
//! task of its own.
//!
//! Each call is one request, but that a redirect is followed to where the settings allow it and a 412 is tried again;
//! no proxy of the pod's environment is used. A call that is dropped closes its connection, and Vault rolls back what
//! it had not finished.

mod api;
mod approle;
mod call;
mod connect;
mod elsewhere;
mod error;
mod http;
mod inspect;
mod leftovers;
mod login;
mod state_dir;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

pub(crate) use api::Unusable;
#[cfg(any(test, fuzzing))]
pub(crate) use api::fuzz_answer;
pub(crate) use error::{Answer, FileProblem, Operation, VaultError, VaultSetupError};
pub(crate) use inspect::{Claims, Health, Hop, Identity, ShownTls, TokenFacts};

use approle::SecretIds;
use call::Call;
use connect::Connection;
use elsewhere::Elsewhere;
use error::Scope;
use http::{BodyError, Failed, Outgoing};
use state_dir::StateDir;

use crate::config::VaultConfig;
use crate::ids::LeaseId;
use crate::telemetry::{Metrics, OperationLabels, VaultLabels};

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
    Foreign,
}

/// A successful login.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) token: Token,
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
    fn expire_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
    ) -> impl Future<Output = Result<(), VaultError>> + Send;

    /// GET of a `vault_path` of a static role, which makes nothing.
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
    config: VaultConfig,
    connection: Connection,
    secret_ids: SecretIds,
    namespaces: Namespaces,
    elsewhere: Elsewhere,
    state_dir: Option<StateDir>,
    metrics: Arc<Metrics>,
}

/// `X-Vault-Namespace`, which differs where the secrets are elsewhere than the login.
#[derive(Debug)]
struct Namespaces {
    secrets: Option<HeaderValue>,
    login: Option<HeaderValue>,
}

impl Namespaces {
    fn new(config: &VaultConfig) -> Result<Self, VaultSetupError> {
        let header = |setting, namespace: &Option<String>| {
            let header = namespace.as_deref().map(HeaderValue::from_str).transpose();
            header.map_err(|_| VaultSetupError::Namespace { setting })
        };
        let secrets = header(NAMESPACE, &config.namespace)?;
        Ok(Self { secrets, login: header(LOGIN_NAMESPACE, &config.login.namespace)? })
    }
}

impl Vault {
    /// Reads the files of TLS, and takes possession of `vault.state_dir`; connects to nothing.
    pub(crate) fn load(config: &VaultConfig, metrics: Arc<Metrics>) -> Result<Self, VaultSetupError> {
        Url::parse(&config.address).map_err(|_| VaultSetupError::Address)?;
        Ok(Self {
            config: config.clone(),
            connection: Connection::load(config)?,
            secret_ids: SecretIds::default(),
            namespaces: Namespaces::new(config)?,
            elsewhere: Elsewhere::default(),
            state_dir: config.state_dir.as_deref().map(open_state_dir).transpose()?,
            metrics,
        })
    }

    /// Makes the request and counts it.
    async fn call(&self, call: Call<'_, impl Serialize>) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let op = call.operation.as_str();
        let asked_at = Instant::now();
        // In a place of its own: each task that asks would be as large, and is moved over the stack when it is spawned.
        let result = Box::pin(self.exchange(&call)).await;

        let status = match &result {
            Ok((status, _)) => Some(status.as_u16()),
            Err(error) => error.status(),
        };
        let code = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        self.metrics.vault_requests.get_or_create(&VaultLabels { op, code }).inc();
        let seconds = self.metrics.vault_request_seconds.get_or_create(&OperationLabels { op });
        seconds.observe(asked_at.elapsed().as_secs_f64());
        let answers = &self.metrics.vault_answers;
        match &result {
            // That a lease is not known any more is what a lookup is to tell.
            Ok(_) | Err(VaultError::Refused { operation: Operation::LookUpLease, status: 400, .. }) => {
                answers.note_ok(asked_at.elapsed());
            }
            Err(error) => {
                answers.note_failure(op, error.kind(), status.map(|status| status.to_string()), error);
            }
        }
        result.map(|(_, body)| body)
    }

    /// Makes the request and judges the answer's status.
    async fn exchange(
        &self,
        call: &Call<'_, impl Serialize>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), VaultError> {
        let operation = call.operation;
        let outgoing = self.outgoing(call)?;
        let answered = http::exchange(&self.config, &self.connection, outgoing, call.timeout).await;
        let answered = answered.map_err(|failed| match failed {
            Failed::Unsent(source) => VaultError::NoConnection { operation, source: Some(source) },
            Failed::Lost(source) => VaultError::NoAnswer { operation, source: Some(source) },
        })?;
        let status = answered.status;
        if status.is_success() {
            let body = answered.body.map_err(|error| body_error(operation, error))?;
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
        let texts = answered.body.map_or_else(|_| String::new(), |body| api::parse_errors(&body, &secrets));
        let texts = [Some(texts), answered.not_followed, self.namespace_in_question(operation, status)];
        let texts: Vec<_> = texts.into_iter().flatten().filter(|text| !text.is_empty()).collect();
        let (status, texts) = (status.as_u16(), texts.join("; "));
        Err(VaultError::Refused { operation, status, texts, retry_after: answered.retry_after })
    }

    fn outgoing(&self, call: &Call<'_, impl Serialize>) -> Result<Outgoing, VaultError> {
        let operation = call.operation;
        let unsent = |_| VaultError::NoConnection { operation, source: None };
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("pglease/", env!("CARGO_PKG_VERSION"))));
        headers.insert(VAULT_REQUEST, HeaderValue::from_static("true"));
        let Namespaces { secrets, login } = &self.namespaces;
        let namespace = match operation.scope() {
            Scope::Login => login,
            Scope::Secrets => secrets,
            Scope::Server => &None,
        };
        if let Some(namespace) = namespace {
            headers.insert(VAULT_NAMESPACE, namespace.clone());
        }
        if let Some(token) = call.token {
            headers.insert(VAULT_TOKEN, token.header(operation)?);
        }
        let mut bytes = Bytes::new();
        if let Some(body) = &call.body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            // No type of ours fails to become JSON.
            bytes = serde_json::to_vec(body).unwrap_or_default().into();
        }
        let url = format!("{}/v1/{}", self.config.address, call.path);
        let url = Url::parse(&url).map_err(unsent)?;
        Ok(Outgoing { method: call.method.clone(), url, headers, body: bytes })
    }

    /// What Vault answers 404 to, and to some 403, where the namespace is wrong; nothing of what is asked in none.
    fn namespace_in_question(&self, operation: Operation, status: StatusCode) -> Option<String> {
        let VaultConfig { namespace, login, .. } = &self.config;
        let (setting, namespace) = match operation.scope() {
            Scope::Server => return None,
            Scope::Login if login.namespace != *namespace => (LOGIN_NAMESPACE, &login.namespace),
            Scope::Login | Scope::Secrets => (NAMESPACE, namespace),
        };
        let is_in_question = matches!(status, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN);
        namespace.as_ref().filter(|_| is_in_question).map(|namespace| format!("in {setting} {namespace:?}"))
    }
}

impl VaultApi for Vault {
    async fn log_in(&self) -> Result<Login, VaultError> {
        let login = self.log_in_by(&self.config.login.method).await?;
        if let Some(state_dir) = self.state_dir.as_ref().filter(|_| login.kind == TokenKind::Service) {
            state_dir.keep(&login.token, login.grant.ttl);
        }
        Ok(login)
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
        let lease = api::parse_creds(&answer).map_err(unusable(Operation::ReadCreds))?;
        if self.config.namespace != self.config.login.namespace {
            self.elsewhere.add(token, &lease.id);
        }
        Ok(lease)
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
        let grant = api::parse_renewed_token(&answer).map_err(unusable(Operation::RenewSelf))?;
        if let Some(state_dir) = &self.state_dir {
            state_dir.renewed(token, grant.ttl);
        }
        Ok(grant)
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
        let ended = elsewhere::end_leases(self, &self.elsewhere, token).await?;
        let call = Call::new(Operation::RevokeSelf, Method::POST, "auth/token/revoke-self", REVOKE_TIMEOUT);
        let call = Call { expected: StatusCode::NO_CONTENT, ..call };
        let revoked = self.call(call.token(token)).await.map(drop);
        if let Some(state_dir) = self.state_dir.as_ref().filter(|_| is_last_word(&revoked)) {
            state_dir.forget(token);
        }
        revoked.and(ended)
    }
}

/// Whether revoke-self would fare no better at another time: it was done, there is no such token, or it may not.
fn is_last_word(revoked: &Result<(), VaultError>) -> bool {
    revoked.as_ref().map_err(VaultError::answer).err().is_none_or(|answer| match answer {
        Answer::Malformed | Answer::BadRequest | Answer::Denied | Answer::NotFound | Answer::Unexpected => {
            true
        }
        Answer::NotSent | Answer::Lost | Answer::Redirect | Answer::TryLater { .. } | Answer::Unavailable => {
            false
        }
    })
}

fn open_state_dir(path: &Path) -> Result<StateDir, VaultSetupError> {
    StateDir::open(path).map_err(|source| VaultSetupError::StateDir { path: path.to_owned(), source })
}

impl StaticCredential {
    /// Whether it is this one.
    pub(crate) fn is(&self, user: &str, password: &SecretString) -> bool {
        let (own, other) = (self.password.expose_secret(), password.expose_secret());
        self.user == user && bool::from(own.as_bytes().ct_eq(other.as_bytes()))
    }
}

impl Token {
    fn header(&self, operation: Operation) -> Result<HeaderValue, VaultError> {
        let mut value = HeaderValue::from_str(self.0.expose_secret())
            .map_err(|_| VaultError::Unusable { operation, source: Unusable::NoToken })?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Whether it is the same one. Takes as long wherever they differ.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.0.expose_secret().as_bytes().ct_eq(other.0.expose_secret().as_bytes()).into()
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

fn body_error(operation: Operation, error: BodyError) -> VaultError {
    match error {
        BodyError::TooLong => VaultError::Unusable { operation, source: Unusable::TooLong },
        BodyError::Broken(source) => VaultError::NoAnswer { operation, source: Some(source) },
    }
}

fn unusable(operation: Operation) -> impl Fn(Unusable) -> VaultError {
    move |source| VaultError::Unusable { operation, source }
}

const VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");

const NAMESPACE: &str = "vault.namespace";
const LOGIN_NAMESPACE: &str = "vault.login.namespace";

const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const REVOKE_TIMEOUT: Duration = Duration::from_secs(2);
const STATIC_TIMEOUT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests;
