//! An application's clients on one database of pglease: a pool whose sessions are replaced now and then, clients that
//! reconnect all the time, and sessions that stay to the end, one of them in a transaction.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_postgres::Error;
use tokio_util::sync::CancellationToken;

use crate::support::pglease::Pglease;
use crate::support::postgres::Database;

/// Clients at work, until they are told to stop.
pub(crate) struct Load {
    shared: Arc<Shared>,
    stop: CancellationToken,
    clients: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    done: Mutex<Done>,
}

/// What the clients have done.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) statements: Vec<Took>,
    pub(crate) connects: Vec<Took>,
    pub(crate) errors: Vec<String>,
}

/// Something that took its time.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) begun: Instant,
    pub(crate) took: Duration,
}

impl Load {
    /// Ten clients of `database`.
    pub(crate) fn start(pglease: &Arc<Pglease>, database: &str) -> Self {
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let mut clients = JoinSet::new();
        for number in 0..10 {
            let client = Client {
                pglease: Arc::clone(pglease),
                database: database.to_owned(),
                shared: Arc::clone(&shared),
                stop: stop.clone(),
            };
            clients.spawn(async move {
                let end = match number {
                    0..4 => client.pooled().await,
                    4..6 => client.reconnecting().await,
                    6..9 => client.staying("SELECT 1").await,
                    _ => client.staying("BEGIN; SELECT count(*) FROM t").await,
                };
                if let Err(error) = end {
                    client.shared.done.lock().unwrap().errors.push(format!("client {number}: {error:?}"));
                }
            });
        }
        Self { shared, stop, clients }
    }

    /// Ends the clients, and tells what they have done.
    pub(crate) async fn stop(mut self) -> Done {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.shared.done.lock().unwrap())
    }
}

struct Client {
    pglease: Arc<Pglease>,
    database: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Client {
    /// A place in a pool: statements one after the other, with a new session after 10 to 20 s.
    async fn pooled(&self) -> Result<(), Error> {
        while !self.stop.is_cancelled() {
            let session = self.connect().await?;
            let end = Instant::now() + Duration::from_secs(10).mul_f64(1.0 + fastrand::f64());
            while Instant::now() < end && self.pause(20).await {
                self.ask(&session).await?;
            }
        }
        Ok(())
    }

    /// A session for each statement.
    async fn reconnecting(&self) -> Result<(), Error> {
        while self.pause(100).await {
            self.ask(&self.connect().await?).await?;
        }
        Ok(())
    }

    /// One session from beginning to end.
    async fn staying(&self, begin: &str) -> Result<(), Error> {
        let session = self.connect().await?;
        session.batch_execute(begin).await?;
        while self.pause(500).await {
            self.ask(&session).await?;
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Database, Error> {
        let begun = Instant::now();
        let session = self.pglease.connect(&self.database).await?;
        let took = begun.elapsed();
        self.shared.done.lock().unwrap().connects.push(Took { begun, took });
        Ok(session)
    }

    async fn ask(&self, session: &Database) -> Result<(), Error> {
        let begun = Instant::now();
        session.simple_query("SELECT count(*) FROM t").await?;
        let took = begun.elapsed();
        self.shared.done.lock().unwrap().statements.push(Took { begun, took });
        Ok(())
    }

    /// Waits for so many milliseconds, more or less; false where it is time to stop.
    async fn pause(&self, milliseconds: u64) -> bool {
        let pause = Duration::from_millis(milliseconds).mul_f64(0.5 + fastrand::f64());
        self.stop.run_until_cancelled(time::sleep(pause)).await.is_some()
    }
}
