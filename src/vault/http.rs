//! One HTTP exchange with Vault, bounded in time and size: redirects followed as far as that is allowed, 412 tried
//! again at once. Runs no task of its own.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy;
use tokio::time::{self, Instant};
use url::Url;
use zeroize::Zeroizing;

use super::api::MAX_BODY_LEN;
use super::connect::Connection;
use crate::config::VaultConfig;

/// A request, which may be made several times.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What Vault answered in the end.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// Where a redirect leads that was not followed.
    pub(super) not_followed: Option<String>,
    pub(super) body: Result<Zeroizing<Vec<u8>>, BodyError>,
}

/// Why a body could not be read to its end.
pub(super) enum BodyError {
    TooLong,
    Broken(ExchangeError),
}

/// Why there was no answer from an address.
#[derive(Debug, thiserror::Error)]
#[error("{origin}")]
pub(crate) struct ExchangeError {
    /// Scheme, host and port.
    origin: String,
    source: Box<dyn Error + Send + Sync>,
}

/// Whether the request went out.
pub(super) enum Failed {
    Unsent(ExchangeError),
    Lost(ExchangeError),
}

/// Makes a request within `timeout`, all redirects and tries included.
pub(super) async fn exchange(
    config: &VaultConfig,
    connection: &Connection,
    mut outgoing: Outgoing,
    timeout: Duration,
) -> Result<Answered, Failed> {
    let deadline = Instant::now() + timeout;
    let (mut hops, mut tries) = (0, 0);
    loop {
        let response = send(connection, &outgoing, deadline).await?;
        let mut not_followed = None;
        match response.status() {
            StatusCode::PRECONDITION_FAILED if tries < MAX_TRIES_AGAIN => {
                tries += 1;
                continue;
            }
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
                match target(config, &outgoing.url, &response) {
                    Ok(url) if hops < MAX_HOPS => {
                        hops += 1;
                        outgoing.url = url;
                        continue;
                    }
                    Ok(url) => not_followed = Some(format!("one redirect too many, to {}", origin(&url))),
                    Err(why) => not_followed = Some(why),
                }
            }
            _ => {}
        }
        return Ok(Answered {
            status: response.status(),
            retry_after: retry_after(&response),
            not_followed,
            body: read_bounded(response, &outgoing.url, deadline).await,
        });
    }
}

async fn send(
    connection: &Connection,
    outgoing: &Outgoing,
    deadline: Instant,
) -> Result<Response<Incoming>, Failed> {
    let failed = |source| ExchangeError { origin: origin(&outgoing.url), source };
    let mut request = Request::builder()
        .method(&outgoing.method)
        .uri(outgoing.url.as_str())
        .body(Full::new(outgoing.body.clone()))
        .map_err(|error| Failed::Unsent(failed(error.into())))?;
    request.headers_mut().clone_from(&outgoing.headers);
    let answering = async { connection.client().await.request(request).await };
    match time::timeout_at(deadline, answering).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if error.is_connect() => Err(Failed::Unsent(failed(error.into()))),
        Ok(Err(error)) => Err(Failed::Lost(failed(error.into()))),
        Err(elapsed) => Err(Failed::Lost(failed(elapsed.into()))),
    }
}

/// Where a redirect leads: with the address's scheme, and to its own host or one that the settings name, on whatever
/// port. Else why it is not followed: the token must not be sent there.
fn target(config: &VaultConfig, from: &Url, response: &Response<Incoming>) -> Result<Url, String> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let Some(to) = location.and_then(|location| from.join(location).ok()).filter(Url::has_host) else {
        return Err("a redirect that names no address".to_owned());
    };
    follow(config, &to).map(|()| to)
}

fn follow(config: &VaultConfig, to: &Url) -> Result<(), String> {
    let home = Url::parse(&config.address).ok();
    let is_of_home = home.as_ref().is_some_and(|home| home.host_str() == to.host_str());
    let is_listed = config.redirect_hosts.iter().any(|host| Some(host.as_str()) == to.host_str());
    if home.is_none_or(|home| home.scheme() != to.scheme()) {
        Err(format!("a redirect to {}, which is another scheme than that of vault.address", origin(to)))
    } else if !is_of_home && !is_listed {
        Err(format!("a redirect to {}, a host that vault.redirect_hosts does not name", origin(to)))
    } else if !to.username().is_empty() || to.password().is_some() {
        Err(format!("a redirect to {} as some user", origin(to)))
    } else {
        Ok(())
    }
}

/// Scheme, host and port, cut to what is fit for a line of the log.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization().chars().take(MAX_ORIGIN_LEN).collect()
}

async fn read_bounded(
    response: Response<Incoming>,
    url: &Url,
    deadline: Instant,
) -> Result<Zeroizing<Vec<u8>>, BodyError> {
    let broken = |source| BodyError::Broken(ExchangeError { origin: origin(url), source });
    let mut incoming = response.into_body();
    let mut body = Zeroizing::new(Vec::with_capacity(BODY_CAPACITY));
    loop {
        let frame = time::timeout_at(deadline, incoming.frame()).await.map_err(|late| broken(late.into()))?;
        let Some(frame) = frame else { return Ok(body) };
        let frame = frame.map_err(|error| broken(error.into()))?;
        // Trailers are of no use here.
        let Some(chunk) = frame.data_ref() else { continue };
        if body.len() + chunk.len() > MAX_BODY_LEN {
            return Err(BodyError::TooLong);
        }
        body.extend_from_slice(chunk);
    }
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3); its form as a date, which Vault does not send, is ignored.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// The client that connections are kept in.
pub(super) type Client<C> = legacy::Client<C, Full<Bytes>>;

const MAX_HOPS: u32 = 2;

/// Of 412, with which a standby says that it does not know yet what its leader does.
const MAX_TRIES_AGAIN: u32 = 3;

/// Nobody is made to wait longer by a header.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// What common answers fit in, so that no copy of a secret is left behind by growing.
const BODY_CAPACITY: usize = 8 * 1024;

const MAX_ORIGIN_LEN: usize = 200;
