//! tokio-postgres with deadpool.

use std::future::poll_fn;
use std::time::Duration;

use clients::{
    BIG_ROWS, BIG_VALUE, COPIED, POOL_SIZE, Pool, Result, Value, client, expect, is_sleeping, or_fail, run,
    sleep, url,
};
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use futures_util::future::join;
use futures_util::{SinkExt, TryStreamExt};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls, Notification};

struct Program {
    runtime: Runtime,
    one: Client,
    /// What `one` is notified of.
    told: tokio::sync::Mutex<mpsc::UnboundedReceiver<Notification>>,
    pool: deadpool_postgres::Pool,
}

impl Program {
    fn new() -> Result<Self> {
        let runtime = Runtime::new()?;
        let (one, told) = runtime.block_on(connect())?;
        let config = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let manager = Manager::from_config(url().parse()?, NoTls, config);
        let pool = deadpool_postgres::Pool::builder(manager).max_size(POOL_SIZE as usize).build()?;
        Ok(Self { runtime, one, told: told.into(), pool })
    }

    fn now<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(step)
    }

    async fn query(&self) -> Result {
        let sql = "SELECT $1::int + 1, $2::text, $3::float8, $4::text";
        let row = self.one.query_one(sql, &[&41, &"é€", &0.5, &None::<&str>]).await?;
        expect((row.get(0), row.get(1), row.get(2), row.get(3)), (42, "é€", 0.5, None::<&str>))
    }

    async fn prepared(&self) -> Result {
        let statement = self.one.prepare("SELECT id FROM t WHERE id = $1").await?;
        for id in 1..=8 {
            expect(self.one.query_one(&statement, &[&id]).await?.get(0), id)?;
        }
        let sql =
            "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')";
        expect(self.one.query_one(sql, &[]).await?.get(0), 1_i64)
    }

    async fn transaction(&self) -> Result {
        let (mut other, _told) = connect().await?;
        let sql = "INSERT INTO client_rows VALUES ($1, $2, 'transaction')";
        let transaction = other.transaction().await?;
        transaction.execute(sql, &[&client(), &-1]).await?;
        transaction.commit().await?;
        let transaction = other.transaction().await?;
        transaction.execute(sql, &[&client(), &-2]).await?;
        transaction.rollback().await?;
        let sql = "SELECT id FROM client_rows WHERE client = $1 AND note = 'transaction'";
        let rows = other.query(sql, &[&client()]).await?;
        expect(rows.iter().map(|row| row.get(0)).collect(), vec![-1])
    }

    async fn copy(&self) -> Result {
        let mut sink = Box::pin(self.one.copy_in("COPY client_rows FROM STDIN").await?);
        for id in 0..COPIED {
            sink.send(std::io::Cursor::new(format!("{}\t{id}\tcopied\n", client()))).await?;
        }
        expect(sink.as_mut().finish().await?, u64::from(COPIED.unsigned_abs()))?;
        let sql = format!(
            "COPY (SELECT id FROM client_rows WHERE client = '{}' AND note = 'copied' ORDER BY id) TO STDOUT",
            client()
        );
        let chunks: Vec<_> = self.one.copy_out(&sql).await?.try_collect().await?;
        let wanted: String = (0..COPIED).map(|id| format!("{id}\n")).collect();
        expect(chunks.concat(), wanted.into_bytes())
    }

    async fn listen(&self) -> Result {
        let (other, _told) = connect().await?;
        let pid: i32 = other.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        self.one.batch_execute("LISTEN tokio_postgres").await?;
        other.batch_execute("NOTIFY tokio_postgres, 'hello'").await?;
        let told = self.told.lock().await.recv().await.ok_or("no notification")?;
        expect((told.channel(), told.payload(), told.process_id()), ("tokio_postgres", "hello", pid))
    }

    async fn cancel(&self) -> Result {
        let (sleeper, _told) = connect().await?;
        let token = sleeper.cancel_token();
        let (sql, is_sleeping) = (sleep(), is_sleeping());
        let sleeping = sleeper.batch_execute(&sql);
        let cancelling = async {
            while self.one.query_one(&is_sleeping, &[]).await?.get::<_, i64>(0) != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            token.cancel_query(NoTls).await
        };
        let (slept, cancelled) = join(sleeping, cancelling).await;
        cancelled?;
        expect(slept.err().and_then(|error| error.code().cloned()), Some(SqlState::QUERY_CANCELED))?;
        expect(sleeper.query_one("SELECT 1", &[]).await?.get(0), 1)
    }

    async fn error(&self) -> Result {
        for (sql, sqlstate) in [
            ("INSERT INTO t VALUES (1)", SqlState::UNIQUE_VIOLATION),
            ("SELECT 1 FROM missing", SqlState::UNDEFINED_TABLE),
        ] {
            let error = self.one.batch_execute(sql).await.err().ok_or("no error")?;
            expect(error.code(), Some(&sqlstate))?;
        }
        expect(self.one.query_one("SELECT 1", &[]).await?.get(0), 1)
    }

    async fn big(&self) -> Result {
        let rows = self.one.query("SELECT generate_series(1, $1)", &[&BIG_ROWS]).await?;
        expect((rows.len(), rows.last().map(|row| row.get(0))), (BIG_ROWS as usize, Some(BIG_ROWS)))?;
        let row = self.one.query_one("SELECT repeat('x', $1)", &[&BIG_VALUE]).await?;
        expect(row.get::<_, &str>(0).len(), BIG_VALUE as usize)
    }

    async fn ended(&self) -> Result {
        let connection = self.pool.get().await?;
        let ended = connection.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await;
        expect(ended.err().and_then(|error| error.code().cloned()), Some(SqlState::ADMIN_SHUTDOWN))?;
        drop(connection);
        expect(self.pool.get().await?.query_one("SELECT 1", &[]).await?.get(0), 1)
    }
}

impl Pool for Program {
    fn with(&self, during: &mut dyn FnMut(&mut Value<'_>) -> Result) -> Result {
        let connection = self.now(async { Ok(self.pool.get().await?) })?;
        during(&mut |sql| self.now(async { Ok(connection.query_one(sql, &[]).await?.get(0)) }))
    }
}

/// A connection of its own.
async fn connect() -> Result<(Client, mpsc::UnboundedReceiver<Notification>)> {
    let (client, mut connection) = tokio_postgres::connect(&url(), NoTls).await?;
    let (sender, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = sender.send(notification);
            }
        }
    });
    Ok((client, told))
}

fn main() {
    let program = or_fail("start", Program::new());
    let p = &program;
    run(
        &[
            ("query", &|| p.now(p.query())),
            ("prepared", &|| p.now(p.prepared())),
            ("transaction", &|| p.now(p.transaction())),
            ("copy", &|| p.now(p.copy())),
            ("notify", &|| p.now(p.listen())),
            ("cancel", &|| p.now(p.cancel())),
            ("error", &|| p.now(p.error())),
            ("big", &|| p.now(p.big())),
            ("ended", &|| p.now(p.ended())),
        ],
        p,
    );
}
