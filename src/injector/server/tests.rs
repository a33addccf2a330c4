//! With TLS, on loopback.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use axum::extract::Extension;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::{DrainConfig, HttpConfig, InjectorConfig, LogConfig, LogFormat, ServerCert};
use crate::drain::Drain;
use crate::injector::certificate::{Issued, issue, parse};
use crate::injector::{Timeouts, fuzz, health};

struct World {
    dir: TempDir,
    address: std::net::SocketAddr,
    metrics: Arc<InjectorMetrics>,
    drain: Drain,
    /// Of all certificates that there have been.
    roots: RootCertStore,
    server: JoinSet<()>,
}

impl World {
    /// Shows what `issued` has, from a volume as a kubelet makes it.
    async fn start() -> Self {
        Self::with(Seats::new(MAX_CONNECTIONS, PATIENCE)).await
    }

    async fn with(seats: Seats) -> Self {
        let issued = issue("localhost", SystemTime::now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        publish(dir.path(), "1", Some(&issued), Some(&issued));
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
        }
        let metrics = Arc::new(InjectorMetrics::new());
        let drain = Drain::default();
        // However slow the machine is: what is slow here is not the peer.
        let timeouts = Timeouts { handshake: HOUR, body: HOUR };
        let injector = Injector::with(timeouts, &config(dir.path()), &metrics, drain.subscribe()).unwrap();
        // Whoever else is given its port once nobody listens there has it at 127.0.0.1.
        let listener = TcpListener::bind("127.0.0.9:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(injector.seat(seats, listener));
        let mut world = Self { dir, address, metrics, drain, roots: RootCertStore::empty(), server };
        world.believe(&issued);
        world
    }

    fn believe(&mut self, issued: &Issued) {
        self.roots.add_parsable_certificates(parse(issued.ca.as_bytes()));
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// What is answered to `request`, which has the connection closed, status first.
    async fn ask(&self, request: &[u8]) -> String {
        let mut connection = self.connect().await;
        // What is too long may be answered before it is all sent.
        let _ = connection.write_all(request).await;
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).trim_start_matches("HTTP/1.1 ").to_owned()
    }

    async fn shown(&self) -> CertificateDer<'static> {
        self.connect().await.get_ref().1.peer_certificates().unwrap()[0].clone()
    }

    fn scrape(&self) -> String {
        self.metrics.encode().unwrap()
    }

    /// Waits for a line of the metrics.
    async fn counted(&self, line: &str) {
        let until = Instant::now() + Duration::from_mins(2);
        while !self.scrape().contains(line) {
            assert!(Instant::now() < until, "no {line} in\n{}", self.scrape());
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn config(dir: &Path) -> InjectorConfig {
    InjectorConfig {
        address: ([127, 0, 0, 1], 0).into(),
        explicit: true,
        tls: ServerCert { cert_file: dir.join("tls.crt"), key_file: dir.join("tls.key") },
        sidecar: fuzz::sidecar(),
        http: HttpConfig { address: ([127, 0, 0, 1], 0).into(), explicit: true },
        log: LogConfig { format: LogFormat::Json, level: tracing::Level::INFO },
    }
}

/// Has `..data` lead to a new directory with these files, all at once.
fn publish(volume: &Path, name: &str, certificate: Option<&Issued>, key: Option<&Issued>) {
    let directory = volume.join(name);
    fs::create_dir(&directory).unwrap();
    if let Some(issued) = certificate {
        fs::write(directory.join("tls.crt"), &issued.certificate).unwrap();
    }
    if let Some(issued) = key {
        fs::write(directory.join("tls.key"), issued.key.as_bytes()).unwrap();
    }
    symlink(name, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

fn first(issued: &Issued) -> CertificateDer<'static> {
    parse(issued.certificate.as_bytes()).remove(0)
}

fn post(path: &str, more: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {len}\r\n\r\n{body}").into_bytes()
}

const HOUR: Duration = Duration::from_hours(1);
const JSON: &str = "content-type: application/json\r\n";
const CLOSE: &str = "content-type: application/json\r\nconnection: close\r\n";
const REVIEW: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"705ab4f5","kind":{"group":"","version":"v1","kind":"Pod"},"operation":"CREATE","namespace":"default","object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"app","image":"app"}]}}}}"#;

/// Reads one answer that has a length.
async fn answer(connection: &mut TlsStream<TcpStream>) -> String {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() >= len.parse().unwrap() {
                return text;
            }
        }
        assert!(connection.read_buf(&mut read).await.unwrap() > 0, "{text}");
    }
}

#[tokio::test]
async fn reviews_are_answered_one_after_the_other_on_a_connection() {
    let world = World::start().await;
    let mut connection = world.connect().await;
    for _ in 0..3 {
        connection.write_all(&post("/mutate?timeout=5s", JSON, REVIEW)).await.unwrap();
        let answer = answer(&mut connection).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-type: application/json"),
            "{answer}"
        );
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let review: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(review["response"]["uid"], "705ab4f5");
        assert_eq!(review["response"]["allowed"], true);
    }
    world.counted("pglease_injector_reviews_total{outcome=\"unchanged\"} 3\n").await;
    world.counted("pglease_injector_review_seconds_count 3\n").await;
    world.counted("pglease_injector_tls_handshakes_total{result=\"ok\"} 1\n").await;
}

#[tokio::test]
async fn what_is_no_review_gets_a_code_and_a_reason() {
    let world = World::start().await;
    let long = " ".repeat(webhook::MAX_BODY_LEN + 1);
    let chunked = |chunk: &str| {
        let len = chunk.len();
        format!(
            "POST /mutate HTTP/1.1\r\nhost: x\r\n{CLOSE}transfer-encoding: chunked\r\n\r\n{len:x}\r\n{chunk}\r\n0\r\n\r\n"
        )
        .into_bytes()
    };
    for (request, status, reason) in [
        (post("/", CLOSE, REVIEW), "404", "posted to /mutate"),
        (post("/mutate/", CLOSE, REVIEW), "404", "posted to /mutate"),
        (
            b"GET /mutate HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
            "405",
            "reviews are posted",
        ),
        (post("/mutate", "connection: close\r\n", REVIEW), "415", "application/json"),
        (
            post("/mutate", "content-type: text/plain\r\nconnection: close\r\n", REVIEW),
            "415",
            "application/json",
        ),
        (post("/mutate", CLOSE, ""), "400", ""),
        (post("/mutate", CLOSE, "{"), "400", ""),
        (post("/mutate", CLOSE, "[]"), "400", ""),
        (post("/mutate", CLOSE, "{}"), "400", ""),
        (post("/mutate", CLOSE, &"[".repeat(100_000)), "400", ""),
        (post("/mutate", CLOSE, &long), "413", "longer than 3145728 bytes"),
        (chunked(&long), "413", "longer than 3145728 bytes"),
        (chunked(REVIEW), "200", ""),
        (b"\x16\x03\x01\0\r\n\r\n".to_vec(), "400", ""),
        (post("/mutate", &format!("x: {}\r\n", "x".repeat(4 * MAX_BUF_LEN)), REVIEW), "431", ""),
    ] {
        let answer = world.ask(&request).await;
        let shown = String::from_utf8_lossy(&request[..request.len().min(100)]).into_owned();
        assert!(answer.starts_with(status) && answer.contains(reason), "{shown}: {answer}");
    }
    assert!(world.ask(&post("/mutate", CLOSE, REVIEW)).await.starts_with("200"));
}

#[tokio::test]
async fn whoever_breaks_off_harms_nobody() {
    let world = World::start().await;
    let whole = post("/mutate", CLOSE, REVIEW);
    for cut in [0, 1, 20, whole.len() - REVIEW.len(), whole.len() - 1] {
        let mut connection = world.connect().await;
        connection.write_all(&whole[..cut]).await.unwrap();
        if cut % 2 == 0 {
            let _ = connection.shutdown().await;
        }
        drop(connection);
        let mut plain = TcpStream::connect(world.address).await.unwrap();
        plain.write_all(&whole[..cut]).await.unwrap();
        drop(plain);
    }
    assert!(world.ask(&whole).await.starts_with("200"));
    world.counted("pglease_injector_tls_handshakes_total{result=\"failed\"} 5\n").await;
}

#[tokio::test]
async fn silent_connections_cost_the_api_server_none_of_its_own() {
    let world = World::with(Seats::new(8, Duration::from_millis(50))).await;
    let mut own = world.connect().await;
    own.write_all(&post("/mutate", JSON, REVIEW)).await.unwrap();
    answer(&mut own).await;

    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    // The oldest of them is ended to make room: end of file, or a reset.
    let mut first = silent.remove(0);
    assert!(matches!(first.read(&mut [0]).await, Ok(0) | Err(_)));

    own.write_all(&post("/mutate", JSON, REVIEW)).await.unwrap();
    assert!(answer(&mut own).await.starts_with("HTTP/1.1 200 "));
    assert!(world.ask(&post("/mutate", CLOSE, REVIEW)).await.starts_with("200"));
}

#[tokio::test]
async fn those_who_say_little_by_little_are_ended_as_those_who_say_nothing() {
    let world = World::with(Seats::new(4, Duration::from_millis(50))).await;
    let whole = post("/mutate", CLOSE, REVIEW);
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut connection = world.connect().await;
        connection.write_all(&whole[..whole.len() - 1]).await.unwrap();
        slow.push(connection);
    }
    assert!(world.ask(&whole).await.starts_with("200"));
}

/// An API server that has so many reviews to ask for at once makes a connection for each.
#[tokio::test]
async fn burst_of_reviews_waits_for_seats_and_each_is_answered() {
    let world = Arc::new(World::with(Seats::new(4, HOUR)).await);
    let mut asked = JoinSet::new();
    for _ in 0..40 {
        let world = Arc::clone(&world);
        asked.spawn(async move { world.ask(&post("/mutate", CLOSE, REVIEW)).await });
    }
    for answer in asked.join_all().await {
        assert!(answer.starts_with("200"), "{answer}");
    }
}

#[tokio::test]
async fn certificate_is_read_again_when_its_volume_changes_and_half_a_pair_is_not_shown() {
    let mut world = World::start().await;
    let before = world.shown().await;
    let renewed = issue("localhost", SystemTime::now() - Duration::from_hours(24)).unwrap();
    world.believe(&renewed);
    let old_end = expiry(&world.scrape());

    // The certificate without its key, then with the key of another.
    publish(world.dir.path(), "2", Some(&renewed), None);
    world.counted("pglease_injector_certificate_reloads_total{result=\"failed\"} 1\n").await;
    assert_eq!(world.shown().await, before);
    assert_eq!(expiry(&world.scrape()), old_end);

    publish(world.dir.path(), "3", Some(&renewed), Some(&renewed));
    world.counted("pglease_injector_certificate_reloads_total{result=\"ok\"} 1\n").await;
    assert_eq!(world.shown().await, first(&renewed));
    assert!(expiry(&world.scrape()) < old_end);

    // One that has expired is shown all the same.
    let expired = issue("localhost", SystemTime::now() - Duration::from_hours(366 * 24)).unwrap();
    publish(world.dir.path(), "4", Some(&expired), Some(&expired));
    world.counted("pglease_injector_certificate_reloads_total{result=\"ok\"} 2\n").await;
}

/// The gauge's value.
fn expiry(scrape: &str) -> i64 {
    let name = "pglease_injector_certificate_expiry_timestamp_seconds ";
    scrape.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn drain_serves_on_for_as_long_as_the_api_server_may_not_know() {
    let world = World::start().await;
    let health = health(Arc::clone(&world.metrics), world.drain.subscribe());
    let ready = async || {
        let request = "GET /readyz HTTP/1.1\r\nhost: pod\r\n\r\n";
        crate::http::tests::answer(health.clone(), request).await
    };
    assert!(ready().await.starts_with("HTTP/1.1 200 "));
    let config = DrainConfig { accept_for: HOUR, grace: Duration::ZERO, deadline: HOUR, strict_exit: false };
    world.drain.begin(config, Instant::now());
    assert!(ready().await.starts_with("HTTP/1.1 503 "));
    let new = world.ask(&post("/mutate", JSON, REVIEW)).await;
    assert!(new.starts_with("200") && new.contains("connection: close"), "{new}");
}

#[tokio::test]
async fn drain_answers_what_is_under_way_and_sends_the_rest_elsewhere() {
    let mut world = World::start().await;
    let (mut idle, mut late) = (world.connect().await, world.connect().await);
    idle.write_all(&post("/mutate", JSON, REVIEW)).await.unwrap();
    answer(&mut idle).await;
    let whole = post("/mutate", &format!("{JSON}expect: 100-continue\r\n"), REVIEW);
    late.write_all(&whole[..whole.len() - REVIEW.len()]).await.unwrap();
    // Its body is waited for: it is under way.
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    late.read_exact(&mut go_on).await.unwrap();

    let config =
        DrainConfig { accept_for: Duration::ZERO, grace: Duration::ZERO, deadline: HOUR, strict_exit: false };
    world.drain.begin(config, Instant::now());
    // An idle connection is closed when nobody is let in any more.
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    let new = TcpStream::connect(world.address).await;
    assert_eq!(new.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    late.write_all(REVIEW.as_bytes()).await.unwrap();
    assert!(answer(&mut late).await.starts_with("HTTP/1.1 200 "));
    world.server.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn cut_ends_it_at_once() {
    let mut world = World::start().await;
    let mut half = world.connect().await;
    half.write_all(b"POST /mutate HTTP/1.1\r\n").await.unwrap();
    world.drain.cut();
    world.server.join_next().await.unwrap().unwrap();
}

/// A body of so many bytes that says no more after them, neither its end.
struct Unfinished(usize);

impl hyper::body::Body for Unfinished {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
        match std::mem::take(&mut self.0) {
            0 => std::task::Poll::Pending,
            len => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(vec![b' '; len].into())))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_does_not_come_is_given_up_and_all_together_have_a_bound() {
    let metrics = Arc::new(InjectorMetrics::new());
    let drain = Drain::default();
    let sidecar = config(Path::new("")).sidecar;
    let webhook = webhook::Webhook::new(sidecar, Arc::clone(&metrics), drain.subscribe(), HOUR);
    let router = webhook::router(Arc::new(webhook)).layer(Extension(Seat::new(Instant::now())));
    let post = |body: axum::body::Body| {
        let request = Request::post("/mutate").header("content-type", "application/json").body(body);
        let (mut router, request) = (router.clone(), request.unwrap());
        async move { tower_service::Service::call(&mut router, request).await.unwrap().status().as_u16() }
    };
    let unfinished = |len| post(axum::body::Body::new(Unfinished(len)));

    let began = Instant::now();
    assert_eq!(unfinished(0).await, 408);
    assert_eq!(began.elapsed(), HOUR);

    // Whoever sends takes room, whoever only connects does not.
    let mut held = JoinSet::new();
    for _ in 0..webhook::MAX_BODIES_LEN / webhook::MAX_BODY_LEN {
        held.spawn(unfinished(webhook::MAX_BODY_LEN));
    }
    tokio::task::yield_now().await;
    assert_eq!(unfinished(webhook::MAX_BODY_LEN).await, 503);
    assert!(held.join_all().await.iter().all(|status| *status == 408));
    assert_eq!(post(vec![b' '; webhook::MAX_BODY_LEN].into()).await, 400);
    let scrape = metrics.encode().unwrap();
    assert!(scrape.contains("pglease_injector_reviews_total{outcome=\"failed\"} 1\n"), "{scrape}");
}
