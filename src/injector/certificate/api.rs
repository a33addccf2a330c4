//! Requests to Kubernetes' API server, each bounded in time and size.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time;
use zeroize::Zeroizing;

use crate::config::CertificateConfig;
use crate::tls::{self, ClientTls, TlsError, Verify};

/// Why the API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("TLS towards the API server")]
    Tls(#[from] TlsError),
    #[error("reading the token of --token-file {path:?}")]
    Token { path: PathBuf, source: io::Error },
    #[error("the token of --token-file {path:?} is none")]
    NoToken { path: PathBuf },
    #[error("{request}")]
    Lost { request: String, source: Box<dyn Error + Send + Sync> },
    #[error("{request}: the API server answers {status}: {message}")]
    Refused { request: String, status: StatusCode, message: String },
    #[error("{request}: the answer is no JSON")]
    NotJson { request: String, source: serde_json::Error },
}

/// How an object is written.
pub(super) enum Write<'a> {
    Create(&'a Value),
    Replace(&'a Value),
    /// RFC 6902.
    Patch(&'a Value),
}

impl Write<'_> {
    fn parts(&self) -> (Method, &'static str, &Value) {
        match self {
            Self::Create(body) => (Method::POST, JSON, body),
            Self::Replace(body) => (Method::PUT, JSON, body),
            Self::Patch(body) => (Method::PATCH, JSON_PATCH, body),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// Somebody else wrote it meanwhile.
    Conflict,
}

/// The way to the API server, as a ServiceAccount.
pub(super) struct ApiServer {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: String,
    authorization: HeaderValue,
}

impl ApiServer {
    /// Reads the files; connects to nothing.
    pub(super) fn load(config: &CertificateConfig) -> Result<Self, ApiError> {
        let path = &config.token_file;
        let token =
            fs::read_to_string(path).map_err(|source| ApiError::Token { path: path.clone(), source })?;
        let bearer = Zeroizing::new(format!("Bearer {}", Zeroizing::new(token).trim()));
        let mut authorization =
            HeaderValue::from_str(&bearer).map_err(|_| ApiError::NoToken { path: path.clone() })?;
        authorization.set_sensitive(true);

        let tls = tls::client_config(&ClientTls::new(Verify::Full, &config.ca))?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, address: config.api_server.clone(), authorization })
    }

    /// `None` where there is no such object.
    pub(super) async fn read(&self, path: &str) -> Result<Option<Value>, ApiError> {
        let (request, status, body) = self.exchange(Method::GET, path, None).await?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|source| ApiError::NotJson { request, source }),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refused(request, status, &body)),
        }
    }

    pub(super) async fn write(&self, path: &str, write: Write<'_>) -> Result<Written, ApiError> {
        let (method, kind, body) = write.parts();
        let (request, status, body) = self.exchange(method, path, Some((kind, body))).await?;
        match status {
            StatusCode::OK | StatusCode::CREATED => Ok(Written::Yes),
            StatusCode::CONFLICT => Ok(Written::Conflict),
            _ => Err(refused(request, status, &body)),
        }
    }

    /// The request in words, and what is answered.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, &Value)>,
    ) -> Result<(String, StatusCode, Bytes), ApiError> {
        let uri = format!("{}{path}", self.address);
        let words = format!("{method} {uri}");
        let lost = |source: Box<dyn Error + Send + Sync>| ApiError::Lost { request: words.clone(), source };
        let mut request = Request::builder().method(method).uri(&uri).header(ACCEPT, JSON);
        if let Some((kind, _)) = body {
            request = request.header(CONTENT_TYPE, kind);
        }
        let body = body.map_or_else(Bytes::new, |(_, body)| body.to_string().into());
        let request = request.header(AUTHORIZATION, self.authorization.clone()).body(Full::new(body));
        let request = request.map_err(|error| lost(error.into()))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| lost(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY_LEN).collect().await.map_err(lost)?;
            Ok((status, body.to_bytes()))
        };
        let (status, body) =
            time::timeout(TIMEOUT, exchange).await.map_err(|late| lost(late.into())).flatten()?;
        Ok((words, status, body))
    }
}

/// The `message` of a `Status` of Kubernetes says what is missing.
fn refused(request: String, status: StatusCode, body: &[u8]) -> ApiError {
    let answer = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let message = answer.get("message").and_then(Value::as_str).unwrap_or("nothing more");
    let message =
        message.chars().take(MAX_SHOWN).map(|letter| if letter.is_control() { ' ' } else { letter });
    ApiError::Refused { request, status, message: message.collect() }
}

const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
/// Of a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY_LEN: usize = 4 * 1024 * 1024;
const MAX_SHOWN: usize = 1000;
