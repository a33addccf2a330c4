//! Sessions over real sockets on a thread that has a carrier: what is small goes out together.

use bytes::BytesMut;
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, yield_now};

use super::*;
use crate::session::close;
use crate::wire::error::ClientError;

struct Session {
    client: UnixStream,
    upstream: UnixStream,
    relay: Relay<UnixStream, UnixStream>,
    watch: Watch,
    far: Far,
}

impl Session {
    async fn new() -> Self {
        let (client, near_client) = UnixStream::pair().unwrap();
        let (upstream, near_upstream) = UnixStream::pair().unwrap();
        let Scene { relay, watch, far } = scene(1).await;
        let relay = Relay::new(near_client, near_upstream, relay.tracker, Tally::default()).posting();
        Self { client, upstream, relay, watch, far }
    }

    /// Its first poll, in which it leaves to the end of the turn what upstream has said.
    async fn post_ready(&mut self) {
        self.upstream.write_all(READY).await.unwrap();
        self.relay.upstream.readable().await.unwrap();
        poll_fn(|cx| {
            assert!(pin!(self.relay.run(&mut self.watch)).poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    }
}

/// Runs `work` on a thread with a carrier, as data threads have.
fn carried<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut carrier = JoinSet::new();
        carrier.spawn(outbox::carry());
        time::timeout(Duration::from_mins(5), work).await.expect("in time")
    })
}

/// Whether `socket` has something to read at this moment, as the kernel says.
fn has_come(socket: &UnixStream) -> bool {
    rustix::io::ioctl_fionread(socket).unwrap() > 0
}

/// Another content for each `mark`, in the same frames.
fn scramble(frames: &mut [u8], mark: u8) {
    let mut rest = frames;
    while let Some((header, body)) = rest.split_at_mut_checked(5) {
        let len = u32::from_be_bytes(header[1..].try_into().unwrap());
        let (content, behind) = body.split_at_mut(usize::try_from(len).unwrap() - 4);
        for byte in content {
            *byte ^= mark;
        }
        rest = behind;
    }
}

#[test]
fn sessions_of_one_turn_get_what_is_theirs_whatever_their_sockets_take() {
    carried(async {
        let mut playing = JoinSet::new();
        for number in 0..40_usize {
            playing.spawn(async move {
                let Session { client, upstream, mut relay, mut watch, far } = Session::new().await;
                let mut running = JoinSet::new();
                running.spawn(async move { relay.run(&mut watch).await });
                for socket in [&client, &upstream] {
                    socket2::SockRef::from(socket).set_send_buffer_size(4096 * (1 + number % 7)).unwrap();
                }
                let (mut up, mut down) = (frames(60_000 + number * 1001), frames(90_000 + number * 997));
                // So that no two of them are alike at any place.
                let mark = u8::try_from(2 * number).unwrap();
                for (bytes, mark) in [(&mut up, mark), (&mut down, mark + 1)] {
                    scramble(bytes, mark);
                }
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_upstream, mut to_upstream) = upstream.into_split();
                let piece = 1 + number * 37 % 3000;
                let send_up = async {
                    for piece in up.chunks(piece) {
                        to_client.write_all(piece).await.unwrap();
                        yield_now().await;
                    }
                    to_client.shutdown().await.unwrap();
                };
                let send_down = async {
                    for piece in down.chunks(piece + 11) {
                        to_upstream.write_all(piece).await.unwrap();
                        yield_now().await;
                    }
                };
                let (mut got_up, mut got_down) = (Vec::new(), vec![0; down.len()]);
                let receive_up = async { from_upstream.read_to_end(&mut got_up).await.unwrap() };
                let receive_down = async { from_client.read_exact(&mut got_down).await.unwrap() };
                tokio::join!(send_up, send_down, receive_up, receive_down);
                assert!(got_up == up && got_down == down, "session {number}");
                drop(to_upstream);
                drop(from_upstream);
                let end = running.join_next().await.unwrap().unwrap();
                assert!(matches!(end, RelayEnd::UpstreamClosed), "session {number}: {end:?}");
                drop(far);
            });
        }
        playing.join_all().await;
    });
}

/// Ends it, and returns what its client has read then.
async fn cut(session: Session, error: Option<&ClientError>) -> Vec<u8> {
    let Session { mut client, upstream, mut relay, mut watch, far } = session;
    far.phase.send(Phase::Cut).unwrap();
    let end = relay.run(&mut watch).await;
    assert!(matches!(end, RelayEnd::Ordered(Order::Cut)), "{end:?}");
    let reading = async {
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        drop((client, upstream));
        said
    };
    tokio::join!(close::close(&mut relay, error, None), reading).1
}

#[test]
fn session_that_is_told_to_end_says_before_that_what_waits_for_the_end_of_the_turn() {
    carried(async {
        let mut session = Session::new().await;
        session.post_ready().await;
        assert!(!has_come(&session.client));
        let error = Order::Cut.client_error(false);
        let mut last = BytesMut::from(READY);
        error.encode(&mut last);
        let said = cut(session, Some(&error)).await;
        assert_eq!(said, last);
    });
}

#[test]
fn thread_that_always_has_something_to_do_sends_all_the_same() {
    carried(async {
        let Session { mut client, mut upstream, mut relay, mut watch, far: _far } = Session::new().await;
        let mut busy = JoinSet::new();
        busy.spawn(async {
            loop {
                yield_now().await;
            }
        });
        let mut running = JoinSet::new();
        running.spawn(async move { relay.run(&mut watch).await });
        for _ in 0..100 {
            client.write_all(QUERY).await.unwrap();
            upstream.read_exact(&mut [0; QUERY.len()]).await.unwrap();
            upstream.write_all(READY).await.unwrap();
            client.read_exact(&mut [0; READY.len()]).await.unwrap();
        }
    });
}

#[test]
fn what_a_client_does_not_take_at_the_end_of_the_turn_is_what_it_is_told_first() {
    carried(async {
        let mut session = Session::new().await;
        session.relay.client.writable().await.unwrap();
        while session.relay.client.try_write(&[0; 1000]).is_ok() {}
        session.post_ready().await;
        assert!(session.relay.backend.falls_short());
        let said = cut(session, None).await;
        assert!(said.ends_with(READY) && said[..said.len() - READY.len()].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn session_that_is_dropped_sends_what_it_has_left_to_the_end_of_the_turn() {
    carried(async {
        let mut session = Session::new().await;
        session.post_ready().await;
        assert!(!has_come(&session.client));
        drop(session.relay);
        assert!(has_come(&session.client));
    });
}
