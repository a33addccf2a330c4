//! `/livez`, `/readyz`, `/startup` and `/metrics` for the kubelet and Prometheus, on any address.
//!
//! Runs on the control thread until its future is dropped. Nothing here asks a database or Vault. One connection
//! carries one request: neither their number nor what they say, or do not say, costs the sessions anything.

mod ping;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tracing::debug;

use crate::backoff::Backoff;
use crate::config::HttpConfig;
use crate::credential::CredentialSource;
use crate::drain::Phase;
use crate::net::{self, Absent, Seat, Seats};
use crate::telemetry::{Metrics, scrape};

pub(crate) use ping::{Pinger, pings};

/// What the endpoints look at.
#[derive(Debug)]
pub(crate) struct Health {
    metrics: Arc<Metrics>,
    /// The credentials that `/startup` and `/readyz` wait for: of every route that is not optional.
    sources: watch::Receiver<Vec<CredentialSource>>,
    /// Whether the credential files are there that are not optional.
    files: Vec<watch::Receiver<bool>>,
    /// `/startup` has been 200 once.
    has_started: AtomicBool,
    phase: watch::Receiver<Phase>,
    data_threads: Pinger,
}

impl Health {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        sources: watch::Receiver<Vec<CredentialSource>>,
        files: Vec<watch::Receiver<bool>>,
        phase: watch::Receiver<Phase>,
        data_threads: Pinger,
    ) -> Self {
        Self { metrics, sources, files, has_started: AtomicBool::new(false), phase, data_threads }
    }

    /// Whether every route that counts has had a proven credential, and every such file a credential, at one moment. Routes that come later do not change
    /// that; those that come before are waited for.
    pub(crate) fn has_started(&self) -> bool {
        if !self.has_started.load(Ordering::Relaxed) {
            let all = self.sources.borrow().iter().all(CredentialSource::was_proven)
                && self.files.iter().all(|there| *there.borrow());
            self.has_started.store(all, Ordering::Relaxed);
        }
        self.has_started.load(Ordering::Relaxed)
    }

    /// Whether a client that connects now is served. A route that was added to a process at work counts from its first
    /// credential on: the others' clients are served all the time.
    fn is_ready(&self) -> bool {
        let has_started = self.has_started();
        let is_ready =
            |source: &CredentialSource| source.is_usable() || (has_started && !source.was_proven());
        self.sources.borrow().iter().all(is_ready) && self.files.iter().all(|there| *there.borrow())
    }
}

/// Why the endpoints cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{key} = \"{address}\" cannot be bound")]
pub(crate) struct BindError {
    pub(crate) key: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) source: io::Error,
}

/// Binds `http.address`.
pub(crate) fn bind(config: HttpConfig) -> Result<(TcpListener, Option<Absent>), BindError> {
    bind_to("http.address", config.address, config.explicit)
}

/// Binds the address of `key`; where nobody asked for it, and the machine has no IPv6, its counterpart in IPv4.
pub(crate) fn bind_to(
    key: &'static str,
    address: SocketAddr,
    explicit: bool,
) -> Result<(TcpListener, Option<Absent>), BindError> {
    if explicit {
        return listen(address).map(|bound| (bound, None)).map_err(|source| BindError {
            key,
            address,
            source,
        });
    }
    listen_by_default(address).map_err(|(address, source)| BindError { key, address, source })
}

/// Listens there or, where the machine has no such address, at its counterpart. An error comes with whose it is.
pub(crate) fn listen_by_default(
    address: SocketAddr,
) -> Result<(TcpListener, Option<Absent>), (SocketAddr, io::Error)> {
    let absent = match listen(address) {
        Ok(listener) => return Ok((listener, None)),
        Err(source) => Absent::or_error(address, source).map_err(|source| (address, source))?,
    };
    let counterpart = net::counterpart(address);
    let listener = listen(counterpart).map_err(|source| (counterpart, source))?;
    Ok((listener, Some(absent)))
}

/// An IPv6 wildcard takes IPv4 as well, whatever the machine's default is: probes come to the pod's only address.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until the future is dropped; each request and its answer within `limit`.
///
/// Above [`MAX_CONNECTIONS`] the oldest goes that has not asked yet, or does not take its answer: a probe takes a
/// millisecond, so who is quick always gets through. None that is being answered goes, as a rotation that is waited for;
/// where all are, the kernel keeps the next.
pub(crate) async fn serve(listener: TcpListener, router: Router, limit: Duration) -> Infallible {
    let mut connections = JoinSet::new();
    let mut seats = Seats::new(MAX_CONNECTIONS, Duration::ZERO);
    let mut backoff = Backoff::default();
    loop {
        let could_have_room = seats.could_have_room(Instant::now());
        tokio::select! {
            accepted = listener.accept(), if could_have_room => match accepted {
                Ok((stream, _)) => {
                    backoff.reset();
                    let now = Instant::now();
                    // Nobody but us takes one meanwhile.
                    seats.have_room(now);
                    let seat = Seat::new(now);
                    let exchange = exchange(stream, router.clone(), seat.clone(), limit);
                    seats.take(seat, connections.spawn(exchange));
                }
                Err(error) => {
                    debug!(event = "http.accept_failed", %error);
                    time::sleep(backoff.next(MAX_ACCEPT_DELAY, fastrand::f64())).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = time::sleep(ROOM_PERIOD), if !could_have_room => {}
        }
    }
}

/// GET and HEAD of what is here; another path is 404, another method 405.
pub(crate) fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/liveness", get(livez))
        .route("/readyz", get(readyz))
        .route("/readiness", get(readyz))
        .route("/startup", get(startup))
        .route("/metrics", get(metrics))
        .with_state(health)
}

/// One request and its answer.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    seat: Seat,
    limit: Duration,
) {
    let router = TowerToHyperService::new(router);
    // Nothing here reads a body: with its head a request is whole.
    let service = service_fn(move |request: Request<Incoming>| {
        let seat = seat.clone();
        seat.answer();
        let answer = router.call(request);
        async move {
            let answer = answer.await;
            seat.end(false, Instant::now());
            answer
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_BUF_LEN)
        .serve_connection(TokioIo::new(stream), service);
    match time::timeout(limit, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(event = "http.connection_failed", %error),
        Err(_) => debug!(event = "http.connection_timed_out"),
    }
}

/// 200 while each data thread answers.
async fn livez(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.data_threads.ping().await {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "a data thread does not answer\n")
    }
}

/// 200 while a client that connects now is served.
async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if *health.phase.borrow() != Phase::Serving {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if health.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no credential\n")
    }
}

/// 200 from the first moment at which every route that counts has had a proven credential.
async fn startup(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.has_started() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no proven credential yet\n")
    }
}

async fn metrics(State(health): State<Arc<Health>>, headers: HeaderMap) -> Response {
    scrape::answer(&headers, health.metrics.encode())
}

/// Accept to the last byte of the answer.
pub(crate) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Open at the same time: part of the descriptors that `app` keeps free of sessions.
const MAX_CONNECTIONS: usize = 32;

/// Where all are being answered, how long until it is looked whether one only has to take its answer.
const ROOM_PERIOD: Duration = Duration::from_millis(100);

/// Of a request's head; the endpoints need a hundred bytes.
const MAX_BUF_LEN: usize = 16 * 1024;

/// Between attempts to accept when the process is out of descriptors or memory.
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 128;

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc as std_mpsc;
    use std::thread;

    use super::*;
    use crate::credential::{self, Credential, DerivedKeys, Issued, Publisher};
    use crate::drain::Drain;
    use crate::ids::GenerationId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// What the endpoints look at, and the means to change it.
    struct World {
        health: Arc<Health>,
        drain: Drain,
        publisher: Publisher,
        sources: watch::Sender<Vec<CredentialSource>>,
        file: watch::Sender<bool>,
    }

    /// With data threads that are `pinger`'s.
    fn world(data_threads: Pinger) -> World {
        let (publisher, source) = credential::channel();
        let drain = Drain::default();
        let metrics = Arc::new(Metrics::new());
        let (sources, counted) = watch::channel(vec![source]);
        let (file, there) = watch::channel(true);
        let health = Arc::new(Health::new(metrics, counted, vec![there], drain.subscribe(), data_threads));
        World { health, drain, publisher, sources, file }
    }

    fn promote(publisher: &Publisher) -> Issued {
        publisher.promote(Credential {
            user: "v-app".to_owned(),
            password: "secret".into(),
            lease: Some("database/creds/db-app/1".into()),
            generation: GenerationId(1),
            keys: DerivedKeys::default(),
            granted: credential::Granted::default(),
        })
    }

    /// What `router` answers to `request`, head and body.
    pub(crate) async fn answer(router: Router, request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let answer = async {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::join!(exchange(server, router, Seat::new(Instant::now()), EXCHANGE_TIMEOUT), answer).1
    }

    async fn ask(health: &Arc<Health>, request: &str) -> String {
        answer(router(Arc::clone(health)), request).await
    }

    async fn status(health: &Arc<Health>, path: &str) -> String {
        let answer = ask(health, &format!("GET {path} HTTP/1.1\r\nhost: pod\r\n\r\n")).await;
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn get_and_head_are_answered_and_nothing_else() {
        let World { health, .. } = world(pings(1).0);
        for (request, first, last) in [
            ("GET /readyz HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 503 ", "no credential\n"),
            ("HEAD /readyz HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 503 ", "\r\n\r\n"),
            ("GET /readyz HTTP/1.0\r\n\r\n", "HTTP/1.0 503 ", "no credential\n"),
            (
                "GET /metrics HTTP/1.1\r\nhost: pod\r\naccept: application/openmetrics-text\r\n\r\n",
                "HTTP/1.1 200 ",
                "# EOF\n",
            ),
            ("POST /readyz HTTP/1.1\r\nhost: pod\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 405 ", "\r\n\r\n"),
            ("GET /status HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 404 ", "\r\n\r\n"),
            ("GET //metrics HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 404 ", "\r\n\r\n"),
            ("GET /x/../metrics HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 404 ", "\r\n\r\n"),
            ("GET /%6detrics HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 404 ", "\r\n\r\n"),
            ("TRACE /metrics HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 405 ", "\r\n\r\n"),
            ("GET /readyz/ HTTP/1.1\r\nhost: pod\r\n\r\n", "HTTP/1.1 404 ", "\r\n\r\n"),
            ("\x16\x03\x01\0\r\n\r\n", "HTTP/1.1 400 ", "\r\n\r\n"),
        ] {
            let answer = ask(&health, request).await;
            assert!(answer.starts_with(first) && answer.ends_with(last), "{request:?}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn readyz_follows_credential_and_drain() {
        let World { health, drain, publisher, .. } = world(pings(1).0);
        assert_eq!(status(&health, "/readyz").await, "503");
        let _issued = promote(&publisher);
        assert_eq!(status(&health, "/readyz").await, "200");
        publisher.withdraw();
        assert_eq!(status(&health, "/readyz").await, "503");
        let _issued = promote(&publisher);
        assert_eq!(status(&health, "/readyz").await, "200");
        drain.cut();
        assert_eq!(status(&health, "/readyz").await, "503");
    }

    #[tokio::test]
    async fn route_that_is_added_takes_nothing_away_and_counts_from_its_first_credential_on() {
        let World { health, publisher, sources, .. } = world(pings(1).0);
        let both = async || (status(&health, "/startup").await, status(&health, "/readyz").await);
        let words = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        let (added_publisher, added) = credential::channel();
        // Before the start is over it is waited for.
        let _issued = promote(&publisher);
        publisher.note_proof();
        let first = sources.send_replace(vec![added.clone()]);
        assert_eq!(both().await, words("503", "503"));
        sources.send_replace(first.clone());
        assert_eq!(both().await, words("200", "200"));
        sources.send_replace(first.into_iter().chain([added]).collect());
        assert_eq!(both().await, words("200", "200"));
        let _issued = promote(&added_publisher);
        added_publisher.note_proof();
        added_publisher.withdraw();
        assert_eq!(both().await, words("200", "503"));
    }

    #[tokio::test]
    async fn credential_file_is_waited_for() {
        let World { health, publisher, file, .. } = world(pings(1).0);
        file.send_replace(false);
        let _issued = promote(&publisher);
        publisher.note_proof();
        assert_eq!(status(&health, "/startup").await, "503");
        assert_eq!(status(&health, "/readyz").await, "503");
        file.send_replace(true);
        assert_eq!(status(&health, "/startup").await, "200");
        assert_eq!(status(&health, "/readyz").await, "200");
    }

    #[tokio::test]
    async fn livez_is_503_while_a_data_thread_hangs() {
        let (pinger, pings) = pings(2);
        let (release, released) = std_mpsc::channel();
        let mut hanging = Some(released);
        let data_threads = pings.into_iter().map(|pings| {
            let hanging = hanging.take();
            thread::spawn(move || {
                if let Some(released) = hanging {
                    released.recv().unwrap();
                }
                tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(pings);
            })
        });
        let data_threads: Vec<_> = data_threads.collect();
        let World { health, .. } = world(pinger);

        assert_eq!(status(&health, "/livez").await, "503");
        release.send(()).unwrap();
        // On a machine that does much else it may be late.
        while status(&health, "/livez").await != "200" {}
        drop(health);
        for thread in data_threads {
            thread.join().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn request_that_is_never_finished_ends() {
        let World { health, .. } = world(pings(1).0);
        let began = Instant::now();
        assert_eq!(ask(&health, "GET /readyz HTT").await, "");
        assert_eq!(began.elapsed(), EXCHANGE_TIMEOUT);
    }

    #[tokio::test]
    async fn head_of_a_request_is_bounded() {
        let World { health, .. } = world(pings(1).0);
        let answer = ask(&health, &format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_BUF_LEN))).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }

    #[tokio::test]
    async fn silent_connections_make_room_for_those_that_speak() {
        let World { health, .. } = world(pings(1).0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let talk = async {
            let mut silent = Vec::new();
            for _ in 0..2 * MAX_CONNECTIONS {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /readyz HTT").await.unwrap();
                silent.push(stream);
            }
            let mut speaking = TcpStream::connect(address).await.unwrap();
            speaking.write_all(b"GET /readyz HTTP/1.1\r\nhost: pod\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            speaking.read_to_end(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 503 "), "{answer:?}");
            for oldest in silent.iter_mut().take(MAX_CONNECTIONS + 1) {
                // End of file, or a reset where something was still unread.
                assert!(matches!(oldest.read(&mut [0]).await, Ok(0) | Err(_)));
            }
        };
        tokio::select! {
            never = serve(listener, router(health), EXCHANGE_TIMEOUT) => match never {},
            () = talk => {}
        }
    }

    #[tokio::test]
    async fn request_that_is_being_answered_outlives_all_that_come_behind_it() {
        let (began, begins) = tokio::sync::mpsc::channel::<()>(2 * MAX_CONNECTIONS);
        let (answer, answered) = watch::channel(false);
        let slow = move || {
            let (began, mut answered) = (began.clone(), answered.clone());
            async move {
                began.send(()).await.unwrap();
                answered.wait_for(|answered| *answered).await.unwrap();
                "done"
            }
        };
        let router = Router::new().route("/", get(slow));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let talk = async {
            let mut begins = begins;
            let ask = async || {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: pod\r\n\r\n").await.unwrap();
                stream
            };
            let waiting = ask().await;
            begins.recv().await.unwrap();
            let mut silent = Vec::new();
            for _ in 0..2 * MAX_CONNECTIONS {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            // The oldest of the silent ones has gone by then: so has the rest of the flood come in.
            assert!(matches!(silent[0].read(&mut [0]).await, Ok(0) | Err(_)));
            // As many more as there is room for, in the place of the silent ones; the last is kept by the kernel.
            let mut all = vec![waiting];
            for _ in 1..MAX_CONNECTIONS {
                all.push(ask().await);
            }
            for _ in 1..MAX_CONNECTIONS {
                begins.recv().await.unwrap();
            }
            all.push(ask().await);
            answer.send_replace(true);
            for stream in &mut all {
                let mut said = String::new();
                stream.read_to_string(&mut said).await.unwrap();
                assert!(said.ends_with("done"), "{said}");
            }
        };
        tokio::select! {
            never = serve(listener, router, EXCHANGE_TIMEOUT) => match never {},
            () = talk => {}
        }
    }
}
