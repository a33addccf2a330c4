//! Case C19: nothing is taken for idle that is not, at the end of a lease and in a drain, and all of it is afterwards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::of;
use crate::raw::{Message, Raw};
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_for, pglease_with, until};

/// What keeps a session busy, from its first byte to the last ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    /// Two Syncs in flight, of which the second is slow.
    TwoSyncs,
    /// A batch that goes on behind an error, before and after its ReadyForQuery.
    BehindAnError,
    /// A Query while a Sync is unanswered.
    QueryBehindSync,
    /// COPY IN that fails within a pipeline.
    CopyFail,
    /// A Query of which the end comes late.
    LateEnd,
}

const ALL: [Busy; 5] =
    [Busy::TwoSyncs, Busy::BehindAnError, Busy::QueryBehindSync, Busy::CopyFail, Busy::LateEnd];

/// A session that is busy in one way, and what has been said of its end.
struct Session {
    raw: Raw,
    /// ReadyForQuery that have come.
    ready: usize,
    sent: Arc<Sent>,
    last_sent: Instant,
}

/// What several sessions have said.
#[derive(Default)]
struct Sent {
    bytes: AtomicUsize,
    /// How many of them have said all that makes them busy.
    busy: AtomicUsize,
}

/// The session has ended, with its goodbye.
struct Ended;

impl Session {
    async fn begin(address: SocketAddr, sent: &Arc<Sent>) -> Self {
        let (raw, _) = Raw::log_in(address, &[("user", "app"), ("database", "app")], "").await;
        Self { raw, ready: 0, sent: Arc::clone(sent), last_sent: Instant::now() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.last_sent = Instant::now();
        self.sent.bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        self.raw.send(bytes).await;
    }

    /// From here on it is busy until it says more, or for as long as its work takes.
    fn is_busy(&self) {
        self.sent.busy.fetch_add(1, Ordering::SeqCst);
    }

    /// Is busy once, slowly: `work` is how long each slow part takes.
    async fn play(&mut self, busy: Busy, work: Duration) -> Result<(), Ended> {
        let slow = format!("SELECT pg_sleep({})", work.as_secs_f64());
        match busy {
            Busy::TwoSyncs => {
                self.send(&[batch("SELECT 1"), batch(&slow)].concat()).await;
                self.is_busy();
                self.ready(2).await
            }
            Busy::BehindAnError => {
                self.send(&batch("SELECT 1 / 0")).await;
                self.up_to(b'E').await?;
                self.send(&build(|out| {
                    frontend::parse("s", "SELECT 1", [], out).unwrap();
                    frontend::describe(b'S', "s", out).unwrap();
                    frontend::flush(out);
                }))
                .await;
                self.up_to(b'Z').await?;
                self.up_to(b'T').await?;
                self.is_busy();
                self.pause(work).await?;
                self.send(&[bound("s"), close("s"), build(frontend::sync)].concat()).await;
                self.ready(1).await
            }
            Busy::QueryBehindSync => {
                self.send(&batch(&slow)).await;
                self.is_busy();
                self.pause(work / 4).await?;
                self.send(&build(|out| frontend::query(&slow, out).unwrap())).await;
                self.ready(2).await
            }
            Busy::CopyFail => {
                self.send(&batch("COPY t FROM STDIN")).await;
                self.up_to(b'G').await?;
                let failing = build(|out| {
                    frontend::CopyData::new(&b"70000\n"[..]).unwrap().write(out);
                    frontend::copy_fail("as the test wants it", out).unwrap();
                    frontend::sync(out);
                });
                self.send(&[failing, batch(&slow)].concat()).await;
                self.is_busy();
                self.ready(2).await
            }
            Busy::LateEnd => {
                let query = build(|out| frontend::query("SELECT 1", out).unwrap());
                let (early, late) = query.split_at(query.len() - 3);
                self.send(early).await;
                self.is_busy();
                self.pause(work).await?;
                self.send(late).await;
                self.ready(1).await
            }
        }
    }

    async fn ready(&mut self, count: usize) -> Result<(), Ended> {
        for _ in 0..count {
            self.up_to(b'Z').await?;
        }
        Ok(())
    }

    async fn up_to(&mut self, tag: u8) -> Result<(), Ended> {
        loop {
            let message = self.raw.message().await.expect("a goodbye");
            if is_goodbye(&message) {
                assert_eq!(self.raw.rest().await, []);
                return Err(Ended);
            }
            if message.tag == tag {
                self.ready += usize::from(tag == b'Z');
                return Ok(());
            }
        }
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), Ended> {
        match time::timeout(pause, self.raw.message()).await {
            Err(_) => Ok(()),
            Ok(message) => {
                assert!(is_goodbye(&message.expect("a goodbye")));
                Err(Ended)
            }
        }
    }
}

fn is_goodbye(message: &Message) -> bool {
    message.tag == b'E' && message.fields().contains(&('C', "57P01".to_owned()))
}

fn build(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

fn bound(statement: &str) -> Vec<u8> {
    build(|out| {
        let bound = frontend::bind("", statement, [], [], |(), _| Ok(IsNull::No), [], out);
        assert!(bound.is_ok());
        frontend::execute("", 0, out).unwrap();
    })
}

fn close(statement: &str) -> Vec<u8> {
    build(|out| frontend::close(b'S', statement, out).unwrap())
}

fn batch(sql: &str) -> Vec<u8> {
    let parse = build(|out| frontend::parse("", sql, [], out).unwrap());
    [parse, bound(""), build(frontend::sync)].concat()
}

#[tokio::test]
async fn case_c19_drain_waits_for_what_only_looks_idle() {
    let world = World::shared(of(VaultRole::default())).await;
    let settings = world.settings() + "[drain]\ndeadline = \"1m\"\n\n" + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    let (mut playing, sent) = (JoinSet::new(), Arc::<Sent>::default());
    for busy in ALL {
        let mut session = Session::begin(pglease.addresses()[0], &sent).await;
        playing.spawn(async move {
            // It is told once all is answered, and not before.
            let played = session.play(busy, Duration::from_secs(4)).await;
            assert!(played.is_ok(), "{busy:?}: ended behind {} ReadyForQuery", session.ready);
            let message = session.raw.message().await.expect("a goodbye");
            assert!(is_goodbye(&message), "{busy:?}: {message:?}");
        });
    }
    // All are, and pglease has read it.
    until(async || {
        let all = sent.busy.load(Ordering::SeqCst) == ALL.len();
        let read = pglease.metric("pglease_bytes_total", "frontend").await;
        all && read >= f64::from(u32::try_from(sent.bytes.load(Ordering::SeqCst)).unwrap())
    })
    .await;
    pglease.sigterm();
    playing.join_all().await;

    assert!(pglease.wait_exit(PATIENCE).await.success());
    let ends = pglease.events("session.end");
    assert!(ends.len() == ALL.len() && ends.iter().all(|end| end["reason"] == "drain"), "{ends:?}");
}

#[tokio::test]
async fn case_c19_end_of_a_lease_waits_for_what_only_looks_idle() {
    let (default_ttl, max_ttl) = ("20s", "25s");
    let vault_role = VaultRole { default_ttl, max_ttl, revocation: Revocation::Drop, ..VaultRole::default() };
    let world = World::shared(of(vault_role)).await;
    // Before this, Vault has issued nothing.
    let issued_from = Instant::now();
    let pglease = pglease_for(&world).await;
    let (mut playing, sent) = (JoinSet::new(), Arc::<Sent>::default());
    for busy in ALL {
        let mut session = Session::begin(pglease.addresses()[0], &sent).await;
        playing.spawn(async move {
            // Never idle for the two seconds after which a session may be ended before the others.
            while session.play(busy, Duration::from_secs(1)).await.is_ok()
                && session.pause(Duration::from_millis(100)).await.is_ok()
            {}
            (busy, issued_from.elapsed(), session.last_sent.elapsed())
        });
    }
    // Vault counts in whole seconds. Then: min(5 s, D/8) before the end.
    let boundary = Duration::from_secs(25 - 1) - Duration::from_millis(2500);
    for (busy, at, silent) in playing.join_all().await {
        // Unless this machine has stood still, so that it was idle for as long.
        let was_idle = silent >= Duration::from_secs(2);
        assert!(
            at >= boundary || was_idle,
            "{busy:?} ended after {at:?}, having said nothing for {silent:?}"
        );
    }
    let ends = pglease.events("session.end");
    assert!(ends.iter().all(|end| end["blame"] == "vault"), "{ends:?}");
}
