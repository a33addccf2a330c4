//! Asks a running pglease, for the commands that do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use axum::body::{self, Body};
use axum::http::{Method, Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time;

use crate::net;
use crate::telemetry::Causes;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(
        "nobody listens on admin.address {address} ({error}): pglease does not run here, or it has another address, which \
         --admin-address, PGLEASE_ADMIN_ADDRESS or --config-file would say"
    )]
    Connect { address: SocketAddr, error: io::Error },
    #[error("no answer from admin.address {address} within {limit:?}")]
    TimedOut { address: SocketAddr, limit: Duration },
    #[error(
        "{address} has closed the connection without an answer ({}): unless pglease was just ending, that is not its \
         admin.address but another port, as PostgreSQL's; --admin-address, PGLEASE_ADMIN_ADDRESS or --config-file would \
         name the right one",
        Causes(error)
    )]
    Gone { address: SocketAddr, error: hyper::Error },
    #[error(
        "what {address} answers is not what pglease answers at admin.address: is it http.address, or another program's?"
    )]
    Foreign { address: SocketAddr },
    #[error("refused with {status}: {said}")]
    Refused { status: StatusCode, said: String },
}

/// Status and body of the answer, which is a success, within `limit`.
pub(crate) async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    limit: Duration,
) -> Result<(StatusCode, String), AskError> {
    let answered = time::timeout(limit, exchange(address, method, path)).await;
    let (status, said) = answered.unwrap_or(Err(AskError::TimedOut { address, limit }))?;
    if status.is_success() {
        return Ok((status, said));
    }
    // Whoever it is that answers. pglease knows what is asked for, and says why it refuses.
    let said: String = said.lines().next().unwrap_or_default().chars().take(MAX_REFUSAL_LEN).collect();
    if status == StatusCode::NOT_FOUND || said.is_empty() {
        return Err(AskError::Foreign { address });
    }
    Err(AskError::Refused { status, said })
}

/// Where the running one is asked that listens there: on loopback where it listens on all addresses, and where nobody
/// asked for the address, on one that the machine has.
pub(crate) fn address(address: SocketAddr, explicit: bool) -> SocketAddr {
    let loopback = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    let address = SocketAddr::new(loopback, address.port());
    let is_absent = || StdListener::bind((loopback, 0)).is_err_and(|error| net::is_absent(&error));
    if !explicit && is_absent() { net::counterpart(address) } else { address }
}

async fn exchange(address: SocketAddr, method: Method, path: &str) -> Result<(StatusCode, String), AskError> {
    let foreign = || AskError::Foreign { address };
    let broken = |error: hyper::Error| {
        if error.is_parse() { foreign() } else { AskError::Gone { address, error } }
    };
    let stream = TcpStream::connect(address).await.map_err(|error| AskError::Connect { address, error })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, address.to_string())
        .body(Body::empty())
        .map_err(|_| foreign())?;
    let answer = async move {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let said = body::to_bytes(Body::new(answer.into_body()), MAX_ANSWER_LEN).await;
        let said = said.ok().and_then(|said| String::from_utf8(said.to_vec()).ok());
        Ok((status, said.ok_or_else(foreign)?))
    };
    // The connection moves the answer, and says itself what goes wrong with it.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// Of the text of a refusal.
const MAX_REFUSAL_LEN: usize = 200;

/// Of `/status` with every generation there can be.
const MAX_ANSWER_LEN: usize = 16 << 20;
