//! One request to Vault, before it is made.

use std::time::Duration;

use hyper::{Method, StatusCode};

use super::{Operation, Token, api};

pub(super) struct Call<'a, B> {
    pub(super) operation: Operation,
    pub(super) method: Method,
    /// Below `/v1/`, without a slash in front.
    pub(super) path: &'a str,
    pub(super) timeout: Duration,
    pub(super) expected: StatusCode,
    pub(super) token: Option<&'a Token>,
    pub(super) body: Option<B>,
    /// In the body, and never to be seen in an error's text.
    pub(super) secret: Option<&'a str>,
}

impl<'a> Call<'a, api::EmptyBody> {
    pub(super) fn new(operation: Operation, method: Method, path: &'a str, timeout: Duration) -> Self {
        let expected = StatusCode::OK;
        Self { operation, method, path, timeout, expected, token: None, body: None, secret: None }
    }
}

impl<'a, B> Call<'a, B> {
    pub(super) fn token(self, token: &'a Token) -> Self {
        Self { token: Some(token), ..self }
    }

    pub(super) fn secret(self, secret: &'a str) -> Self {
        Self { secret: Some(secret), ..self }
    }

    pub(super) fn body<T>(self, body: T) -> Call<'a, T> {
        let Self { operation, method, path, timeout, expected, token, body: _, secret } = self;
        Call { operation, method, path, timeout, expected, token, body: Some(body), secret }
    }
}
