//! A client for the Kubernetes API: objects are JSON, by their paths.

use std::time::Duration;

use reqwest::{Certificate, Method};
use serde_json::{Value, json};

use crate::support;

/// Somebody's way to the API. Belongs to the runtime that it is first used on.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// What the API server has answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// Its warnings, those of webhooks among them.
    pub(crate) warnings: Vec<String>,
}

impl Reply {
    pub(crate) fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Why it was refused.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// The object; fails the test where the call was refused.
    pub(crate) fn object(self) -> Value {
        assert!(self.is_ok(), "{} {}", self.status, self.body);
        self.body
    }
}

impl Api {
    pub(crate) fn new(port: u16, ca: &str, token: &str) -> Self {
        // Sets the process's TLS provider, which a client of our own needs as well.
        drop(support::http_client());
        let ca = Certificate::from_pem(ca.as_bytes()).unwrap();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
        Self { http, base: format!("https://127.0.0.1:{port}"), token: token.to_owned() }
    }

    /// The same way with another's token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Whether there is something at `path`; also false where nobody answers.
    pub(crate) async fn has(&self, path: &str) -> bool {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        request.send().await.is_ok_and(|response| response.status().is_success())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, JSON, None).await.object()
    }

    /// `None` where it is not there.
    pub(crate) async fn find(&self, path: &str) -> Option<Value> {
        let reply = self.call(Method::GET, path, JSON, None).await;
        (reply.status != 404).then(|| reply.object())
    }

    /// The objects of a collection.
    pub(crate) async fn list(&self, path: &str) -> Vec<Value> {
        let mut list = self.get(path).await;
        let Some(items) = list["items"].as_array_mut() else { panic!("{path} is no list: {list}") };
        std::mem::take(items)
    }

    /// Adds an object to a collection, by strict rules: an unknown field is an error.
    pub(crate) async fn try_create(&self, collection: &str, object: &Value) -> Reply {
        let path = format!("{collection}{}fieldValidation=Strict", query_mark(collection));
        self.call(Method::POST, &path, JSON, Some(object)).await
    }

    pub(crate) async fn create(&self, collection: &str, object: &Value) -> Value {
        self.try_create(collection, object).await.object()
    }

    /// A JSON merge patch.
    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> Reply {
        self.call(Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
    }

    /// A strategic merge patch, which adds to lists.
    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Reply {
        self.call(Method::PATCH, path, "application/strategic-merge-patch+json", Some(patch)).await
    }

    /// Says that it is to go; a pod does when its node says that it has.
    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.call(Method::DELETE, path, JSON, None).await
    }

    /// Removes a pod that has ended.
    pub(crate) async fn delete_now(&self, path: &str) -> Reply {
        self.call(Method::DELETE, path, JSON, Some(&json!({ "gracePeriodSeconds": 0 }))).await
    }

    async fn call(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Reply {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        request = request.bearer_auth(&self.token).timeout(PATIENCE);
        if let Some(body) = body {
            request = request.header("Content-Type", kind).body(body.to_string());
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        let status = response.status().as_u16();
        let warnings = response.headers().get_all("Warning").iter();
        let warnings = warnings.filter_map(|warning| unquoted(warning.to_str().ok()?)).collect();
        let body = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| {
            panic!("{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        });
        Reply { status, body, warnings }
    }
}

/// Of the API server's header: `299 - "the text"`.
fn unquoted(warning: &str) -> Option<String> {
    let (_, text) = warning.split_once('"')?;
    Some(text.trim_end_matches('"').replace("\\\"", "\""))
}

fn query_mark(path: &str) -> char {
    if path.contains('?') { '&' } else { '?' }
}

const JSON: &str = "application/json";

const PATIENCE: Duration = Duration::from_mins(1);
