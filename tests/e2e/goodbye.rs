//! Case C18: clients that insert just as their sessions are ended. What a client was told of an insert is compared with
//! what is in the table. `tests/long` includes this file as well.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time;

use crate::raw::{Message, Raw};
use crate::steps::until;
use crate::support::pglease::Pglease;
use crate::support::world::World;

/// What the clients were told.
#[derive(Default)]
pub(crate) struct Told {
    /// Inserts that were answered.
    pub(crate) done: BTreeSet<i64>,
    /// Sent, and the next word was the goodbye.
    pub(crate) undone: BTreeSet<i64>,
    /// The same, and it said that nobody knows what became of the statement.
    pub(crate) unknown: BTreeSet<i64>,
    /// Sessions that have begun.
    sessions: usize,
    /// Sessions that ended while their client was silent.
    pub(crate) silent: usize,
}

impl Told {
    pub(crate) fn attempts(&self) -> usize {
        self.done.len() + self.undone.len() + self.unknown.len()
    }
}

/// How the inserts come.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Silence before each.
    pub(crate) pause: Duration,
    /// And up to so much more, drawn anew.
    pub(crate) jitter: Duration,
    /// Of each client at least; it goes on until the end of a session, and has a new one where these are not enough.
    pub(crate) attempts: usize,
}

/// Clients at work.
pub(crate) struct Clients {
    told: Arc<Mutex<Told>>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// So many of them, each with a session, on the table `inserted` of the world.
    pub(crate) async fn start(world: &World<'_>, pglease: &Pglease, count: usize, pace: Pace) -> Self {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS inserted (id bigint PRIMARY KEY); TRUNCATE inserted;
             GRANT SELECT, INSERT ON inserted TO {}",
            world.group("app_rw")
        );
        world.superuser.batch_execute(&sql).await.unwrap();
        let told = Arc::new(Mutex::default());
        let next_id = Arc::new(AtomicI64::new(1));
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let client = Client {
                address: pglease.addresses()[0],
                told: Arc::clone(&told),
                next_id: Arc::clone(&next_id),
                pace,
            };
            tasks.spawn(client.run());
        }
        let clients = Self { told, tasks };
        until(async || clients.told.lock().await.sessions >= count).await;
        clients
    }

    /// Waits until each has made its attempts, and compares.
    pub(crate) async fn finish(mut self, world: &World<'_>) -> Told {
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let told = std::mem::take(&mut *self.told.lock().await);
        let rows = world.superuser.query("SELECT id FROM inserted", &[]).await.unwrap();
        let inserted: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        assert!(told.done.is_subset(&inserted), "lost: {:?}", told.done.difference(&inserted));
        let both: Vec<_> = told.undone.intersection(&inserted).collect();
        assert!(both.is_empty(), "ended while idle, and inserted all the same: {both:?}");
        told
    }
}

struct Client {
    address: std::net::SocketAddr,
    told: Arc<Mutex<Told>>,
    next_id: Arc<AtomicI64>,
    pace: Pace,
}

impl Client {
    async fn run(self) {
        let mut attempts = 0;
        loop {
            let (mut raw, _) = Raw::log_in(self.address, &[("user", "app"), ("database", "app")], "").await;
            self.told.lock().await.sessions += 1;
            while self.attempt(&mut raw).await {
                attempts += 1;
            }
            if attempts >= self.pace.attempts {
                return;
            }
        }
    }

    /// Inserts a row; false at the end of the session.
    async fn attempt(&self, raw: &mut Raw) -> bool {
        let pause = self.pace.pause + self.pace.jitter.mul_f64(fastrand::f64());
        if let Ok(message) = time::timeout(pause, raw.message()).await {
            assert_goodbye(&message.expect("a goodbye"));
            assert_eq!(raw.rest().await, []);
            self.told.lock().await.silent += 1;
            return false;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        raw.send(&insert(id)).await;
        while let Some(message) = raw.message().await {
            match message.tag {
                b'Z' => return self.told.lock().await.done.insert(id),
                b'E' => {
                    let is_known = assert_goodbye(&message);
                    assert_eq!(raw.rest().await, []);
                    let mut told = self.told.lock().await;
                    if is_known { &mut told.undone } else { &mut told.unknown }.insert(id);
                    return false;
                }
                _ => {}
            }
        }
        panic!("closed without a word behind {id}");
    }
}

/// pglease's own, which says of a statement that its fate is not known, or nothing.
fn assert_goodbye(message: &Message) -> bool {
    let fields = message.fields();
    let field = |name| fields.iter().find(|(field, _)| *field == name).map_or("", |(_, text)| text);
    assert_eq!((message.tag, field('C'), field('F')), (b'E', "57P01", ""), "{message:?}");
    !field('D').contains("not known")
}

/// As a Query, as a batch of the extended protocol, as a transaction in one Query.
fn insert(id: i64) -> Vec<u8> {
    let sql = format!("INSERT INTO inserted VALUES ({id})");
    let mut out = BytesMut::new();
    match id % 3 {
        0 => frontend::query(&sql, &mut out).unwrap(),
        1 => frontend::query(&format!("BEGIN; {sql}; COMMIT"), &mut out).unwrap(),
        _ => {
            frontend::parse("", &sql, [], &mut out).unwrap();
            let bound = frontend::bind("", "", [], [], |(), _| Ok(IsNull::No), [], &mut out);
            assert!(bound.is_ok());
            frontend::execute("", 0, &mut out).unwrap();
            frontend::sync(&mut out);
        }
    }
    out.to_vec()
}
