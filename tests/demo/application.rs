//! The application: three kinds of client at once, none of which knows a password.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// Runs until it is stopped.
pub(crate) struct Application {
    clients: JoinSet<()>,
    tally: Arc<Tally>,
    stop: CancellationToken,
}

impl Application {
    pub(crate) fn start(url: &str) -> Self {
        let (tally, stop) = (Arc::<Tally>::default(), CancellationToken::new());
        let visitor =
            |name| Visitor { name, url: url.to_owned(), tally: Arc::clone(&tally), stop: stop.clone() };

        let mut clients = JoinSet::new();
        clients.spawn(visitor("session").stay());
        clients.spawn(visitor("reconnecting").reconnect());
        for _ in 0..4 {
            clients.spawn(visitor("pool").work());
        }
        Self { clients, tally, stop }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Has every client finish what it is doing and hang up.
    pub(crate) async fn stop(mut self) -> Arc<Tally> {
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.tally
    }
}

/// What the application has seen.
#[derive(Default)]
pub(crate) struct Tally {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    queries: u64,
    failed: u64,
    users: BTreeSet<String>,
    newest_user: String,
    /// The first of them.
    errors: Vec<String>,
}

impl Tally {
    pub(crate) fn queries(&self) -> u64 {
        self.with(|counts| counts.queries)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.with(|counts| counts.failed)
    }

    /// How many database users it has been.
    pub(crate) fn users(&self) -> usize {
        self.with(|counts| counts.users.len())
    }

    /// Who its newest session is.
    pub(crate) fn newest_user(&self) -> String {
        self.with(|counts| counts.newest_user.clone())
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.with(|counts| counts.errors.clone())
    }

    fn answered(&self, queries: u64) {
        self.with(|counts| counts.queries += queries);
    }

    fn is(&self, user: String) {
        self.with(|counts| {
            counts.users.insert(user.clone());
            counts.newest_user = user;
        });
    }

    fn saw(&self, client: &str, error: &str) {
        self.with(|counts| {
            counts.failed += 1;
            if counts.errors.len() < 20 {
                counts.errors.push(format!("{client}: {error}"));
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Counts) -> T) -> T {
        act(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One client.
struct Visitor {
    name: &'static str,
    url: String,
    tally: Arc<Tally>,
    stop: CancellationToken,
}

type Outcome = Result<(), String>;

impl Visitor {
    /// One session all the time, with a query every quarter of a second.
    async fn stay(self) {
        while !self.stop.is_cancelled() {
            let session = async |client: &mut Client| {
                while self.pause(Duration::from_millis(250)).await {
                    ask(client.query_one("SELECT count(*) FROM t", &[])).await?;
                    self.tally.answered(1);
                }
                Ok(())
            };
            self.connected(session).await;
        }
    }

    /// A session for each query.
    async fn reconnect(self) {
        while self.pause(Duration::from_millis(100)).await {
            let session = async |client: &mut Client| {
                ask(client.query_one("SELECT id FROM t WHERE id = 42", &[])).await?;
                self.tally.answered(1);
                Ok(())
            };
            self.connected(session).await;
        }
    }

    /// One connection of a pool under load, replaced after some 12 s as pools do.
    async fn work(self) {
        while !self.stop.is_cancelled() {
            let life = Duration::from_millis(fastrand::u64(10_000..14_000));
            let replace_at = time::Instant::now() + life;
            let session = async |client: &mut Client| {
                let by_id = ask(client.prepare("SELECT id FROM t WHERE id = $1")).await?;
                while time::Instant::now() < replace_at && self.pause(Duration::from_millis(5)).await {
                    let id = fastrand::i32(1..=100);
                    ask(client.query_one(&by_id, &[&id])).await?;
                    let transaction = ask(client.transaction()).await?;
                    ask(transaction.execute("INSERT INTO visits (visitor) VALUES ($1)", &[&self.name]))
                        .await?;
                    ask(transaction.query_one(&by_id, &[&id])).await?;
                    ask(transaction.commit()).await?;
                    self.tally.answered(5);
                }
                Ok(())
            };
            self.connected(session).await;
        }
    }

    /// Runs `session` on a new connection and hangs up. What goes wrong is counted, and followed by a pause.
    async fn connected(&self, session: impl AsyncFnOnce(&mut Client) -> Outcome) {
        if let Err(error) = self.try_connected(session).await {
            self.tally.saw(self.name, &error);
            self.pause(Duration::from_millis(100)).await;
        }
    }

    async fn try_connected(&self, session: impl AsyncFnOnce(&mut Client) -> Outcome) -> Outcome {
        let (mut client, connection) = ask(tokio_postgres::connect(&self.url, NoTls)).await?;
        let queries = async move {
            let user = ask(client.query_one("SELECT current_user::text", &[])).await?;
            self.tally.is(user.get(0));
            self.tally.answered(1);
            session(&mut client).await
        };
        // The connection ends once the queries have dropped their client.
        let (outcome, hung_up) = tokio::join!(queries, connection);
        outcome?;
        hung_up.map_err(|error| said(&error))
    }

    /// False when it is time to stop.
    async fn pause(&self, pause: Duration) -> bool {
        self.stop.run_until_cancelled(time::sleep(pause)).await.is_some()
    }
}

/// An answer, or what the application sees instead of one.
async fn ask<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, String> {
    match time::timeout(LIMIT, answer).await {
        Ok(answer) => answer.map_err(|error| said(&error)),
        Err(_) => Err(format!("no answer within {LIMIT:?}")),
    }
}

/// tokio-postgres keeps what the server said out of its own words.
fn said(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || format!("{error:?}"),
        |response| format!("{} {}: {}", response.severity(), response.code().code(), response.message()),
    )
}

/// A query takes a millisecond, a connection at most pglease's `connect_wait` of 10 s.
const LIMIT: Duration = Duration::from_secs(15);
