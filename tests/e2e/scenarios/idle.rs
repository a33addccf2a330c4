//! Case C19: nothing is taken for idle that is not, at the end of a lease and in a drain, and all of it is afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::of;
use crate::raw::{Message, Raw};
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_for, pglease_with};

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
}

/// The session has ended, with its goodbye.
struct Ended;

impl Session {
    async fn begin(address: SocketAddr) -> Self {
        let (raw, _) = Raw::log_in(address, &[("user", "app"), ("database", "app")], "").await;
        Self { raw, ready: 0 }
    }

    /// Is busy once, slowly: `work` is how long each slow part takes.
    async fn play(&mut self, busy: Busy, work: Duration) -> Result<(), Ended> {
        let slow = format!("SELECT pg_sleep({})", work.as_secs_f64());
        match busy {
            Busy::TwoSyncs => {
                self.raw.send(&[batch("SELECT 1"), batch(&slow)].concat()).await;
                self.ready(2).await
            }
            Busy::BehindAnError => {
                self.raw.send(&batch("SELECT 1 / 0")).await;
                self.up_to(b'E').await?;
                self.raw
                    .send(&build(|out| {
                        frontend::parse("s", "SELECT 1", [], out).unwrap();
                        frontend::describe(b'S', "s", out).unwrap();
                        frontend::flush(out);
                    }))
                    .await;
                self.up_to(b'Z').await?;
                self.up_to(b'T').await?;
                self.pause(work).await?;
                self.raw.send(&[bound("s"), close("s"), build(frontend::sync)].concat()).await;
                self.ready(1).await
            }
            Busy::QueryBehindSync => {
                self.raw.send(&batch(&slow)).await;
                self.pause(work / 4).await?;
                self.raw.send(&build(|out| frontend::query(&slow, out).unwrap())).await;
                self.ready(2).await
            }
            Busy::CopyFail => {
                self.raw.send(&batch("COPY t FROM STDIN")).await;
                self.up_to(b'G').await?;
                let failing = build(|out| {
                    frontend::CopyData::new(&b"70000\n"[..]).unwrap().write(out);
                    frontend::copy_fail("as the test wants it", out).unwrap();
                    frontend::sync(out);
                });
                self.raw.send(&[failing, batch(&slow)].concat()).await;
                self.ready(2).await
            }
            Busy::LateEnd => {
                let query = build(|out| frontend::query("SELECT 1", out).unwrap());
                let (early, late) = query.split_at(query.len() - 3);
                self.raw.send(early).await;
                self.pause(work).await?;
                self.raw.send(late).await;
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
    let mut playing = JoinSet::new();
    for busy in ALL {
        let mut session = Session::begin(pglease.addresses()[0]).await;
        playing.spawn(async move {
            // It is told once all is answered, and not before.
            let played = session.play(busy, Duration::from_secs(4)).await;
            assert!(played.is_ok(), "{busy:?}: ended behind {} ReadyForQuery", session.ready);
            let message = session.raw.message().await.expect("a goodbye");
            assert!(is_goodbye(&message), "{busy:?}: {message:?}");
        });
    }
    time::sleep(Duration::from_secs(1)).await;
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
    let mut playing = JoinSet::new();
    for busy in ALL {
        let mut session = Session::begin(pglease.addresses()[0]).await;
        playing.spawn(async move {
            // Never idle for the two seconds after which a session may be ended before the others.
            while session.play(busy, Duration::from_secs(1)).await.is_ok()
                && session.pause(Duration::from_millis(100)).await.is_ok()
            {}
            (busy, issued_from.elapsed())
        });
    }
    // Vault counts in whole seconds. Then: min(5 s, D/8) before the end.
    let boundary = Duration::from_secs(25 - 1) - Duration::from_millis(2500);
    for (busy, at) in playing.join_all().await {
        assert!(at >= boundary, "{busy:?} ended after {at:?}");
    }
    let ends = pglease.events("session.end");
    assert!(ends.iter().all(|end| end["blame"] == "vault"), "{ends:?}");
}
