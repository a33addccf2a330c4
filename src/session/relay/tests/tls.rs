//! The relay where one side or both speak TLS: what a layer has decrypted, or not yet sent, must neither stay there
//! nor keep the session busy.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use bytes::BytesMut;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::config::Ca;
use crate::net::ClientStream;
use crate::tls::{ClientTls, Verify, client_config};

type Wire = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

/// Who speaks TLS as a client, and as a server.
fn speakers() -> (TlsConnector, TlsAcceptor) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from(key.cert.der().to_vec());
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)
        .unwrap();
    let client = client_config(&ClientTls::new(Verify::Nothing, &Ca::System)).unwrap();
    (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)))
}

/// A pipe of which the first end speaks TLS as a client, the second as a server.
async fn tls_pipe(pipe_len: usize) -> (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>) {
    let (connector, acceptor) = speakers();
    let (near, far) = duplex(pipe_len);
    let connecting = connector.connect(ServerName::try_from("localhost").unwrap(), near);
    let (client, server) = tokio::join!(connecting, acceptor.accept(far));
    (client.unwrap(), server.unwrap())
}

/// A client that speaks TLS, and its connection as a session has it.
async fn tls_client(pipe_len: usize) -> (client::TlsStream<DuplexStream>, ClientStream<DuplexStream>) {
    let (connector, acceptor) = speakers();
    let (far, near) = duplex(pipe_len);
    let mut near = ClientStream::Plain(near);
    let connecting = connector.connect(ServerName::try_from("localhost").unwrap(), far);
    let (far, upgraded) = tokio::join!(connecting, near.upgrade(&acceptor, BytesMut::new()));
    upgraded.unwrap();
    (far.unwrap(), near)
}

/// A relay between two pipes, their far ends, and how often it was polled.
struct Layers {
    relay: Relay<Wire, Wire>,
    watch: Watch,
    client: Wire,
    upstream: Wire,
    polls: Cell<u64>,
    /// What the watch looks at.
    _around: Far,
}

impl Layers {
    async fn new(pipe_len: usize, client_tls: bool, upstream_tls: bool) -> Self {
        let (client, far_client): (Wire, Wire) = if client_tls {
            let (far, near) = tls_pipe(pipe_len).await;
            (Box::new(near), Box::new(far))
        } else {
            let (near, far) = duplex(pipe_len);
            (Box::new(near), Box::new(far))
        };
        let (upstream, far_upstream): (Wire, Wire) = if upstream_tls {
            let (near, far) = tls_pipe(pipe_len).await;
            (Box::new(near), Box::new(far))
        } else {
            let (near, far) = duplex(pipe_len);
            (Box::new(near), Box::new(far))
        };
        let Scene { relay, watch, far } = scene(64).await;
        let relay = Relay::new(client, upstream, relay.tracker, Tally::default());
        Self {
            relay,
            watch,
            client: far_client,
            upstream: far_upstream,
            polls: Cell::default(),
            _around: far,
        }
    }

    /// Runs the relay, which does not end, beside `script`. A relay that is polled without end while nothing happens
    /// would keep the paused clock from going on, so that `script` would never be out of time.
    async fn play(&mut self, script: impl AsyncFnOnce(&mut Wire, &mut Wire, &Cell<u64>)) {
        let Self { relay, watch, client, upstream, polls, .. } = self;
        let mut running = pin!(relay.run(watch));
        let running = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            assert!(polls.get() < 1_000_000, "polled without end");
            running.as_mut().poll(cx)
        });
        tokio::select! {
            end = running => panic!("{end:?}"),
            () = script(client, upstream, polls) => {}
        }
    }
}

/// The timer wakes the task that the relay is polled in as well.
async fn expect_quiet(polls: &Cell<u64>) {
    let before = polls.get();
    time::sleep(secs(3600)).await;
    assert!(polls.get() <= before + 3, "{} polls while nothing happens", polls.get() - before);
}

async fn say(stream: &mut Wire, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// Within a second of a clock that stands still while anything happens.
async fn hear(stream: &mut Wire, expected: &[u8]) {
    let mut buf = vec![0; expected.len()];
    let heard = time::timeout(secs(1), stream.read_exact(&mut buf)).await;
    heard.unwrap_or_else(|_| panic!("stalled within {} bytes", expected.len())).unwrap();
    assert!(buf == expected);
}

async fn both<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> (A, B) {
    time::timeout(Duration::from_hours(9), async { tokio::join!(one, other) }).await.expect("both wait")
}

/// One frame of so many bytes in all.
fn frame(tag: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(len - 1).unwrap().to_be_bytes());
    while frame.len() < len {
        frame.extend_from_slice(&PATTERN[..PATTERN.len().min(len - frame.len())]);
    }
    frame
}

/// Of a length that no boundary is a multiple of.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=250).cycle().take(251 * 41).collect());

fn around(size: usize, step: usize) -> impl Iterator<Item = usize> {
    let range: RangeInclusive<usize> = size - 300..=size + 300;
    range.step_by(step)
}

/// Around whole numbers of TLS records, of reads, and of what is read in one turn: by one where that is quick, by
/// primes where it is not.
fn sizes() -> impl Iterator<Item = usize> {
    let quick = [16_384].into_iter().flat_map(|size| around(size, 1));
    let more = [32_768, 65_536].into_iter().flat_map(|size| around(size, 5));
    let slow = [131_072, 262_144, 524_288].into_iter().flat_map(|size| around(size, 37));
    quick.chain(more).chain(slow)
}

const LAYERS: [(bool, bool); 3] = [(false, true), (true, false), (true, true)];

#[tokio::test(start_paused = true)]
async fn case_c04_answers_and_copies_of_every_size_pass_layers_at_once_and_leave_them_quiet() {
    for (client_tls, upstream_tls) in LAYERS {
        let mut layers = Layers::new(1 << 18, client_tls, upstream_tls).await;
        layers
            .play(async |client, upstream, polls| {
                for size in sizes() {
                    let (data, answer) = (frame(b'd', size), [&frame(b'D', size)[..], READY].concat());
                    let copied = async {
                        say(client, &data).await;
                        hear(client, &answer).await;
                    };
                    let answered = async {
                        hear(upstream, &data).await;
                        say(upstream, &answer).await;
                    };
                    tokio::join!(copied, answered);
                }
                expect_quiet(polls).await;
            })
            .await;
        assert!(layers.relay.tracker.is_idle());
    }
}

/// The pipes take less than an answer has.
#[tokio::test(start_paused = true)]
async fn case_c04_reader_that_pauses_gets_the_rest_when_it_goes_on() {
    for (client_tls, upstream_tls) in LAYERS {
        for pipe_len in [1000, 16_384, 100_000] {
            let mut layers = Layers::new(pipe_len, client_tls, upstream_tls).await;
            layers
                .play(async |client, upstream, polls| {
                    for size in [131_072, 524_288].into_iter().flat_map(|size| around(size, 150)) {
                        let answer = [&frame(b'D', size)[..], READY].concat();
                        let (first, rest) = answer.split_at(size / 3);
                        let read = async {
                            hear(client, first).await;
                            // At once to where both pipes are full, and then no more.
                            time::sleep(Duration::from_millis(200)).await;
                            expect_quiet(polls).await;
                            hear(client, rest).await;
                        };
                        tokio::join!(read, say(upstream, &answer));
                    }
                })
                .await;
        }
    }
}

/// Beyond the pipes: one read, and what rustls takes before the socket does and before it is read.
#[tokio::test(start_paused = true)]
async fn what_is_kept_within_layers_for_a_stalled_client_is_bounded() {
    let pipe_len = 10_000;
    for (client_tls, upstream_tls) in LAYERS {
        let mut layers = Layers::new(pipe_len, client_tls, upstream_tls).await;
        layers
            .play(async |_, upstream, _| {
                let endless = frame(b'D', 5_000_000);
                let mut taken = 0;
                while let Ok(written) = time::timeout(secs(1), upstream.write(&endless[taken..])).await {
                    taken += written.unwrap();
                }
                let rustls = (usize::from(client_tls) + 2 * usize::from(upstream_tls)) * (64 + 16) * 1024;
                let most = 2 * pipe_len + READ_LEN + rustls;
                assert!(taken <= most, "{taken} of {most}");
            })
            .await;
        assert!(layers.relay.backend.stash.len() <= READ_LEN);
    }
}

/// With its goodbye or without, as drivers that just close do, and a half-close may be all that it is.
#[tokio::test(start_paused = true)]
async fn client_whose_tls_ends_still_gets_its_answer() {
    for says_goodbye in [true, false] {
        let (mut far, near) = tls_client(1024).await;
        let Scene { relay, mut watch, far: Far { mut upstream, .. } } = scene(1024).await;
        let mut relay = Relay::new(near, relay.upstream, relay.tracker, Tally::default());
        let script = async {
            far.write_all(QUERY).await.unwrap();
            far.flush().await.unwrap();
            if says_goodbye {
                far.shutdown().await.unwrap();
            } else {
                far.get_mut().0.shutdown().await.unwrap();
            }
            expect(&mut upstream, QUERY).await;
            expect_end(&mut upstream).await;
            time::sleep(secs(60)).await;
            upstream.write_all(READY).await.unwrap();
            drop(upstream);
            let mut answer = [0; READY.len()];
            far.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, READY);
        };
        let (end, ()) = both(relay.run(&mut watch), script).await;
        assert!(matches!(end, RelayEnd::UpstreamClosed), "{end:?}");
        assert!(relay.client_hung_up());
    }
}

/// A server that was killed says no goodbye of TLS.
#[tokio::test(start_paused = true)]
async fn upstream_that_dies_within_tls_is_heard_to_its_last_byte() {
    let (near, mut far) = tls_pipe(100_000).await;
    let Scene { relay, mut watch, far: Far { mut client, .. } } = scene(1024).await;
    let mut relay = Relay::new(relay.client, near, relay.tracker, Tally::default());
    let answer = frame(b'D', 50_000);
    let script = async {
        far.write_all(&answer).await.unwrap();
        far.flush().await.unwrap();
        far.get_mut().0.shutdown().await.unwrap();
        time::sleep(secs(60)).await;
        expect(&mut client, &answer).await;
    };
    let (end, ()) = both(relay.run(&mut watch), script).await;
    assert!(
        matches!(&end, RelayEnd::UpstreamFailed(error) if error.kind() == ErrorKind::UnexpectedEof),
        "{end:?}"
    );
    assert!(relay.can_speak_to_client() && !relay.client_hung_up());
}
