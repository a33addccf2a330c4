//! An empty POST to a program on this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time;
use url::{Host, Url};

/// Why the program may not know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("nobody listens there")]
    Connect(#[source] io::Error),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("no answer of HTTP")]
    Exchange(#[source] hyper::Error),
    #[error("cannot be asked for")]
    Request(#[source] hyper::http::Error),
    #[error("answered with {0}")]
    Refused(StatusCode),
}

/// Any answer from 200 to 299 will do. Redirects are not followed: they could lead off this machine.
pub(super) async fn post(url: &Url, limit: Duration) -> Result<(), HttpError> {
    let status = time::timeout(limit, exchange(url)).await.map_err(|_| HttpError::TimedOut(limit))??;
    if status.is_success() { Ok(()) } else { Err(HttpError::Refused(status)) }
}

async fn exchange(url: &Url) -> Result<StatusCode, HttpError> {
    let stream = TcpStream::connect(addresses(url).as_slice()).await.map_err(HttpError::Connect)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(HttpError::Exchange)?;
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let request = Request::post(path).header(header::HOST, host).header(header::CONTENT_LENGTH, 0);
    let request = request.body(Empty::<Bytes>::new()).map_err(HttpError::Request)?;
    let answer = sender.send_request(request);
    // The connection moves the answer, and is not waited for once its head is there.
    tokio::select! {
        answer = answer => answer.map(|answer| answer.status()).map_err(HttpError::Exchange),
        Err(error) = connection => Err(HttpError::Exchange(error)),
    }
}

/// `localhost` without a resolver, which could say otherwise.
fn addresses(url: &Url) -> Vec<SocketAddr> {
    let port = url.port_or_known_default().unwrap_or_default();
    let ips: Vec<IpAddr> = match url.host() {
        Some(Host::Ipv4(ip)) => vec![ip.into()],
        Some(Host::Ipv6(ip)) => vec![ip.into()],
        Some(Host::Domain(_)) | None => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    };
    ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What one who is asked hears, and what comes of its answer.
    async fn asked(answer: &'static str) -> (String, Result<(), HttpError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/-/reload?now", listener.local_addr().unwrap().port());
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 4096];
            let mut len = 0;
            while !heard[..len].ends_with(b"\r\n\r\n") {
                len += stream.read(&mut heard[len..]).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(heard[..len].to_vec()).unwrap()
        };
        let url = Url::parse(&url).unwrap();
        tokio::join!(served, post(&url, Duration::from_mins(5)))
    }

    #[tokio::test]
    async fn reader_is_asked_and_its_answer_counts() {
        let (heard, told) = asked("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(heard.starts_with("POST /-/reload?now HTTP/1.1\r\n"), "{heard}");
        assert!(heard.contains("content-length: 0\r\n"), "{heard}");
        assert!(told.is_ok(), "{told:?}");

        for (answer, expected) in [
            ("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "answered with 500 Internal Server Error"),
            ("HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\n\r\n", "answered with 302 Found"),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "no answer of HTTP"),
        ] {
            assert_eq!(asked(answer).await.1.unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn localhost_is_never_looked_up() {
        let to = |url| addresses(&Url::parse(url).unwrap());
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(to("http://localhost/x"), [socket("127.0.0.1:80"), socket("[::1]:80")]);
        assert_eq!(to("http://127.0.0.2:8080/"), [socket("127.0.0.2:8080")]);
        assert_eq!(to("http://[::1]:81"), [socket("[::1]:81")]);
    }
}
