//! Relays of one thread share a buffer: whatever comes in whatever pieces, to each its own.

use proptest::prelude::*;
use tokio::runtime;
use tokio::task::{JoinSet, yield_now};

use super::*;

/// What becomes of one session.
#[derive(Clone, Debug)]
struct Plan {
    /// What each of its pipes takes.
    pipe_len: usize,
    client: Side,
    upstream: Side,
}

/// One of its ends.
#[derive(Clone, Debug)]
struct Side {
    /// Lengths of what it writes at a time; what it writes is as long as all of them.
    writes: Vec<usize>,
    /// What it reads at a time.
    read_len: usize,
    /// Having read so much, it vanishes.
    vanishes_after: Option<usize>,
}

fn sides() -> impl Strategy<Value = Side> {
    let write = prop_oneof![4 => 1..300_usize, 1 => 1..READ_LEN + 3000];
    let vanishes_after = prop_oneof![3 => Just(None), 1 => (0..5000_usize).prop_map(Some)];
    (prop::collection::vec(write, 0..12), 1..5000_usize, vanishes_after)
        .prop_map(|(writes, read_len, vanishes_after)| Side { writes, read_len, vanishes_after })
}

fn plans() -> impl Strategy<Value = Plan> {
    (1..9000_usize, sides(), sides()).prop_map(|(pipe_len, client, upstream)| Plan {
        pipe_len,
        client,
        upstream,
    })
}

/// Bytes that no other session has in that place, and this one in no other direction.
fn marked(session: usize, direction: Direction, len: usize) -> Vec<u8> {
    let odd = usize::from(direction == Direction::Backend);
    let seed = u64::try_from(session * 2 + odd).unwrap();
    let mut numbers = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| numbers.u8(..)).take(len).collect()
}

impl Side {
    fn len(&self) -> usize {
        self.writes.iter().sum()
    }

    /// Writes `bytes`, and closes its side where that is what it does at the end of them; gives what it reads until
    /// the other side ends.
    async fn play(&self, stream: DuplexStream, bytes: &[u8], closes: bool) -> Vec<u8> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let send = async {
            let mut rest = bytes;
            for &len in &self.writes {
                let (chunk, after) = rest.split_at(len);
                rest = after;
                // Nobody is left to read it.
                if writer.write_all(chunk).await.is_err() {
                    break;
                }
                yield_now().await;
            }
            if closes {
                let _ = writer.shutdown().await;
            }
        };
        let mut got = Vec::new();
        let receive = async {
            let mut buf = vec![0; self.read_len];
            loop {
                let room = self.vanishes_after.map_or(usize::MAX, |after| after - got.len());
                let len = buf.len().min(room);
                match reader.read(&mut buf[..len]).await {
                    Ok(len) if len > 0 => got.extend_from_slice(&buf[..len]),
                    Ok(_) | Err(_) => break,
                }
                yield_now().await;
            }
        };
        if self.vanishes_after.is_some() {
            tokio::select! {
                () = receive => {}
                // It has no more to say, and listens on.
                () = async { send.await; std::future::pending().await } => {}
            }
        } else {
            tokio::join!(send, receive);
        }
        got
    }
}

/// A whole session. What each side has got is what the other one has sent: all of it, or the beginning where one of
/// them vanished.
async fn session(number: usize, plan: Plan) {
    let Scene { mut relay, mut watch, far } = scene(plan.pipe_len).await;
    let Far { client, upstream, issued, publisher, source, phase } = far;
    let up = marked(number, Direction::Frontend, plan.client.len());
    let down = marked(number, Direction::Backend, plan.upstream.len());
    let relaying = async {
        relay.run(&mut watch).await;
        drop(relay);
    };
    let ((), got_down, got_up) = tokio::join!(
        relaying,
        plan.client.play(client, &up, true),
        plan.upstream.play(upstream, &down, false)
    );

    let is_whole = plan.client.vanishes_after.or(plan.upstream.vanishes_after).is_none();
    for (sent, got) in [(&up, &got_up), (&down, &got_down)] {
        assert!(sent.starts_with(got), "session {number}: {} bytes are others'", got.len());
        assert!(!is_whole || got.len() == sent.len(), "session {number}: {} of {}", got.len(), sent.len());
    }
    drop((issued, publisher, source, phase));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_byte_of_one_session_reaches_another(plans in prop::collection::vec(plans(), 2..7)) {
        let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut sessions = JoinSet::new();
            for (number, plan) in plans.into_iter().enumerate() {
                sessions.spawn(session(number, plan));
            }
            // What never ends is seen by the clock.
            time::timeout(secs(3600), sessions.join_all()).await.expect("none of them waits for ever");
        });
    }
}
