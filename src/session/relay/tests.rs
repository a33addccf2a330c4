//! The relay over pipes in memory and a paused clock.

mod counts;
mod ends;
mod isolation;
mod long;
mod pipeline;
mod tls;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::watch as channel;
use tokio::time;

use super::outbox::READ_LEN;
use super::*;
use crate::config::AtLeaseEnd;
use crate::credential::{self, Credential, CredentialSource, DerivedKeys, Issued, Publisher};
use crate::drain::Phase;
use crate::ids::{GenerationId, LeaseId};
use crate::session::doubt::Doubts;
use crate::telemetry::Metrics;

/// A relay, the far ends of its two connections, and what surrounds it.
struct Scene {
    relay: Relay<DuplexStream, DuplexStream>,
    watch: Watch,
    far: Far,
}

struct Far {
    client: DuplexStream,
    upstream: DuplexStream,
    issued: Issued,
    publisher: Publisher,
    source: CredentialSource,
    phase: channel::Sender<Phase>,
}

fn credential(generation: u64) -> Credential {
    Credential {
        user: format!("v-{generation}"),
        password: SecretString::from("secret"),
        lease: Some(LeaseId::from("lease")),
        generation: GenerationId(generation),
        keys: DerivedKeys::default(),
        granted: credential::Granted::default(),
    }
}

/// A scene of a session that is idle; `pipe_len` is what each pipe takes.
async fn scene(pipe_len: usize) -> Scene {
    let (client, far_client) = duplex(pipe_len);
    let (upstream, far_upstream) = duplex(pipe_len);
    let mut tracker = Tracker::new();
    tracker.backend(b"Z\0\0\0\x05I");
    let (publisher, source) = credential::channel();
    let issued = publisher.promote(credential(1));
    let hold = source.hold().await.unwrap();
    let (phase, phase_rx) = channel::channel(Phase::Serving);
    Scene {
        relay: Relay::new(client, upstream, tracker, Tally::default()),
        watch: Watch {
            removed: Arc::default(),
            standing: hold.standing(),
            doubts: Doubts::new(hold, Arc::new(Metrics::new())),
            phase: phase_rx,
            at_lease_end: AtLeaseEnd::Auto,
            max_age: None,
            seed: 0.0,
            cancellable: None,
            is_cancelled: false,
        },
        far: Far { client: far_client, upstream: far_upstream, issued, publisher, source, phase },
    }
}

/// Runs the relay beside `script`, which is given the far ends.
async fn play<S, F, T>(scene: Scene, script: S) -> (RelayEnd, Relay<DuplexStream, DuplexStream>, T)
where
    S: FnOnce(Far) -> F,
    F: Future<Output = T>,
{
    let Scene { mut relay, mut watch, far } = scene;
    let (end, out) =
        time::timeout(Duration::from_hours(1), async { tokio::join!(relay.run(&mut watch), script(far)) })
            .await
            .expect("both wait");
    (end, relay, out)
}

/// Numbers that repeat late, in CopyData frames of many lengths.
fn frames(total: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut next = 0u8;
    for len in (0..).map(|n: usize| n * 7919 % 40_000) {
        if out.len() >= total {
            break;
        }
        out.push(b'd');
        out.extend(u32::try_from(len + 4).unwrap().to_be_bytes());
        out.extend((0..len).map(|_| {
            next = next.wrapping_mul(5).wrapping_add(3);
            next
        }));
    }
    out
}

const QUERY: &[u8] = b"Q\0\0\0\x06;\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const IN_TRANSACTION: &[u8] = b"Z\0\0\0\x05T";
const NOTIFICATION: &[u8] = b"A\0\0\0\x0a\0\0\0\x01\0\0";

async fn expect(stream: &mut DuplexStream, expected: &[u8]) {
    let mut buf = vec![0; expected.len()];
    stream.read_exact(&mut buf).await.unwrap();
    assert_eq!(buf, expected);
}

async fn expect_end(stream: &mut DuplexStream) {
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[tokio::test(start_paused = true)]
async fn bytes_go_both_ways_at_once_unchanged_whatever_the_pipes_take() {
    for pipe_len in [1, 13, 4096, 1 << 20] {
        let total = if pipe_len < 100 { 40_000 } else { 3_000_000 };
        let (up, down) = (frames(total), frames(total + 1));
        let (end, relay, ()) = play(scene(pipe_len).await, async |far| {
            let Far { client, upstream, .. } = far;
            let (mut from_client, mut to_client) = tokio::io::split(client);
            let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
            let send_up = async {
                to_client.write_all(&up).await.unwrap();
                to_client.shutdown().await.unwrap();
            };
            let send_down = async { to_upstream.write_all(&down).await.unwrap() };
            let (mut got_up, mut got_down) = (Vec::new(), vec![0; down.len()]);
            let receive_up = async { from_upstream.read_to_end(&mut got_up).await.unwrap() };
            let receive_down = async { from_client.read_exact(&mut got_down).await.unwrap() };
            tokio::join!(send_up, send_down, receive_up, receive_down);
            assert!(got_up == up && got_down == down);
        })
        .await;
        assert!(matches!(end, RelayEnd::UpstreamClosed), "{end:?}");
        assert_eq!((relay.frontend.bytes, relay.backend.bytes), (up.len() as u64, down.len() as u64));
        assert_eq!((relay.frontend.stash.capacity(), relay.backend.stash.capacity()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_has_closed_its_write_side_still_gets_its_answer() {
    let (end, relay, ()) = play(scene(1024).await, async |mut far: Far| {
        far.client.write_all(QUERY).await.unwrap();
        far.client.shutdown().await.unwrap();
        expect(&mut far.upstream, QUERY).await;
        expect_end(&mut far.upstream).await;
        time::sleep(secs(60)).await;
        far.upstream.write_all(READY).await.unwrap();
        drop(far.upstream);
        expect(&mut far.client, READY).await;
    })
    .await;
    assert!(matches!(end, RelayEnd::UpstreamClosed));
    assert!(relay.client_hung_up() && relay.upstream_ended());
}

#[tokio::test(start_paused = true)]
async fn early_bytes_of_the_client_go_first_and_count() {
    let mut scene = scene(1024).await;
    let (client, far_client) = duplex(1024);
    let (upstream, far_upstream) = duplex(1024);
    scene.relay = Relay::new(client, upstream, Tracker::new(), Tally::default());
    scene.relay.begin(READY, QUERY);
    (scene.far.client, scene.far.upstream) = (far_client, far_upstream);
    assert!(scene.relay.tracker.is_running());

    let (_, relay, ()) = play(scene, async |mut far: Far| {
        far.client.write_all(b"S\0\0\0\x04").await.unwrap();
        expect(&mut far.upstream, &[QUERY, b"S\0\0\0\x04"].concat()).await;
    })
    .await;
    assert_eq!(relay.frontend.bytes, 12);
}

#[tokio::test(start_paused = true)]
async fn what_a_stalled_client_does_not_take_is_bounded() {
    let total = 10_000_000;
    let (_, relay, taken) = play(scene(1000).await, async |mut far: Far| {
        let sent = async {
            let down = frames(total);
            let mut rest = &down[..];
            while let Ok(Ok(len)) = time::timeout(secs(1), far.upstream.write(rest)).await {
                rest = &rest[len..];
            }
            down.len() - rest.len()
        };
        sent.await
    })
    .await;
    // Two pipes and one read.
    assert!(taken <= 2000 + READ_LEN, "{taken}");
    assert!(relay.backend.stash.len() <= READ_LEN);
}

#[tokio::test(start_paused = true)]
async fn client_that_vanishes_ends_the_relay() {
    let (end, ..) = play(scene(16).await, async |far: Far| {
        let Far { client, mut upstream, .. } = far;
        drop(client);
        expect_end(&mut upstream).await;
        // Written to nobody.
        let _ = time::timeout(secs(1), upstream.write_all(&frames(1000))).await;
    })
    .await;
    assert!(matches!(end, RelayEnd::ClientFailed(_)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn last_words_of_an_upstream_that_takes_nothing_more_are_passed_on() {
    let mut scene = scene(1024).await;
    let (upstream, mut far_upstream) = duplex(1024);
    far_upstream.write_all(b"E\0\0\0\x08abcd").await.unwrap();
    drop(far_upstream);
    scene.relay = Relay::new(scene.relay.client, upstream, scene.relay.tracker, Tally::default());

    let (end, relay, ()) = play(scene, async |mut far: Far| {
        far.client.write_all(QUERY).await.unwrap();
        expect(&mut far.client, b"E\0\0\0\x08abcd").await;
    })
    .await;
    assert!(matches!(end, RelayEnd::UpstreamFailed(_) | RelayEnd::UpstreamClosed), "{end:?}");
    assert!(relay.tracker.ends_with_error() && !relay.client_hung_up());
}

/// As TLS does: many reads are ready at once and nothing wakes for them; what is written goes on with a flush only.
#[derive(Debug)]
struct Layered {
    readable: Vec<u8>,
    per_read: usize,
    written: Vec<u8>,
    flushed: Arc<std::sync::Mutex<Vec<u8>>>,
}

impl AsyncRead for Layered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.per_read.min(self.readable.len()).min(buf.remaining());
        if len == 0 {
            return Poll::Pending;
        }
        buf.put_slice(&self.readable.drain(..len).collect::<Vec<_>>());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Layered {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = std::mem::take(&mut self.written);
        self.flushed.lock().unwrap().extend(written);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_inside_a_layer_neither_stall_nor_stay() {
    for (per_read, len) in [(16_384, 131_072), (16_384, 131_073), (65_536, 524_288), (1, 300)] {
        let down = frames(len);
        let flushed = Arc::default();
        let upstream =
            Layered { readable: down.clone(), per_read, written: Vec::new(), flushed: Arc::clone(&flushed) };
        let Scene { relay, mut watch, mut far } = scene(1 << 20).await;
        let mut relay = Relay::new(relay.client, upstream, relay.tracker, Tally::default());
        let script = async {
            far.client.write_all(QUERY).await.unwrap();
            expect(&mut far.client, &down).await;
        };
        tokio::select! {
            end = relay.run(&mut watch) => panic!("{end:?}"),
            done = time::timeout(secs(1), script) => done.unwrap(),
        }
        assert_eq!(*flushed.lock().unwrap(), QUERY);
    }
}
