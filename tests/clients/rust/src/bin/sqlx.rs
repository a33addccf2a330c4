//! sqlx with its own pool.

use clients::{
    BIG_ROWS, BIG_VALUE, COPIED, PATIENCE, POOL_SIZE, Pool, Result, Value, client, expect, or_fail, run, url,
};
use futures_util::TryStreamExt;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgListener, PgPool, PgPoolCopyExt, PgPoolOptions};
use tokio::runtime::Runtime;

struct Program {
    runtime: Runtime,
    pool: PgPool,
}

impl Program {
    fn new() -> Result<Self> {
        let runtime = Runtime::new()?;
        let options = PgPoolOptions::new().max_connections(POOL_SIZE).acquire_timeout(PATIENCE);
        let options = options.test_before_acquire(true);
        let pool = runtime.block_on(options.connect(&url()))?;
        Ok(Self { runtime, pool })
    }

    fn now<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(step)
    }

    async fn query(&self) -> Result {
        let query = sqlx::query_as("SELECT $1::int + 1, $2::text, $3::float8, $4::text");
        let row: (i32, String, f64, Option<String>) =
            query.bind(41).bind("é€").bind(0.5).bind(None::<String>).fetch_one(&self.pool).await?;
        expect(row, (42, "é€".to_owned(), 0.5, None))
    }

    async fn prepared(&self) -> Result {
        let mut connection = self.pool.acquire().await?;
        for id in 1..=8 {
            let query = sqlx::query_scalar("SELECT id FROM t WHERE id = $1").bind(id);
            expect(query.fetch_one(&mut *connection).await?, id)?;
        }
        let sql =
            "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')";
        expect(sqlx::query_scalar(sql).fetch_one(&mut *connection).await?, 1_i64)
    }

    async fn transaction(&self) -> Result {
        let insert = |id: i32| {
            sqlx::query("INSERT INTO client_rows VALUES ($1, $2, 'transaction')").bind(client()).bind(id)
        };
        let mut transaction = self.pool.begin().await?;
        insert(-1).execute(&mut *transaction).await?;
        transaction.commit().await?;
        let mut transaction = self.pool.begin().await?;
        insert(-2).execute(&mut *transaction).await?;
        transaction.rollback().await?;
        let sql = "SELECT id FROM client_rows WHERE client = $1 AND note = 'transaction'";
        let rows: Vec<i32> = sqlx::query_scalar(sql).bind(client()).fetch_all(&self.pool).await?;
        expect(rows, vec![-1])
    }

    async fn copy(&self) -> Result {
        let mut copy = self.pool.copy_in_raw("COPY client_rows FROM STDIN").await?;
        for id in 0..COPIED {
            copy.send(format!("{}\t{id}\tcopied\n", client()).into_bytes()).await?;
        }
        expect(copy.finish().await?, u64::from(COPIED.unsigned_abs()))?;
        let sql = format!(
            "COPY (SELECT id FROM client_rows WHERE client = '{}' AND note = 'copied' ORDER BY id) TO STDOUT",
            client()
        );
        let chunks: Vec<_> = self.pool.copy_out_raw(&sql).await?.try_collect().await?;
        let wanted: String = (0..COPIED).map(|id| format!("{id}\n")).collect();
        expect(chunks.concat(), wanted.into_bytes())
    }

    async fn listen(&self) -> Result {
        let mut listener = PgListener::connect(&url()).await?;
        listener.listen("sqlx").await?;
        let mut other = self.pool.acquire().await?;
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *other).await?;
        sqlx::query("NOTIFY sqlx, 'hello'").execute(&mut *other).await?;
        let told = listener.recv().await?;
        expect((told.channel(), told.payload(), told.process_id()), ("sqlx", "hello", pid.unsigned_abs()))
    }

    async fn error(&self) -> Result {
        let mut connection = self.pool.acquire().await?;
        for (sql, sqlstate) in [("INSERT INTO t VALUES (1)", "23505"), ("SELECT 1 FROM missing", "42P01")] {
            let error = sqlx::query(sql).execute(&mut *connection).await.err();
            expect(code(error.as_ref()), Some(sqlstate.to_owned()))?;
        }
        expect(sqlx::query_scalar("SELECT 1").fetch_one(&mut *connection).await?, 1)
    }

    async fn big(&self) -> Result {
        let query = sqlx::query_scalar("SELECT generate_series(1, $1)").bind(BIG_ROWS);
        let rows: Vec<i32> = query.fetch_all(&self.pool).await?;
        expect((rows.len(), rows.last()), (BIG_ROWS as usize, Some(&BIG_ROWS)))?;
        let value: String =
            sqlx::query_scalar("SELECT repeat('x', $1)").bind(BIG_VALUE).fetch_one(&self.pool).await?;
        expect(value.len(), BIG_VALUE as usize)
    }

    async fn ended(&self) -> Result {
        let ended = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&self.pool).await;
        expect(code(ended.err().as_ref()), Some("57P01".to_owned()))?;
        expect(sqlx::query_scalar("SELECT 1").fetch_one(&self.pool).await?, 1)
    }
}

impl Pool for Program {
    fn with(&self, during: &mut dyn FnMut(&mut Value<'_>) -> Result) -> Result {
        let mut connection = self.now(async { Ok(self.pool.acquire().await?) })?;
        during(&mut |sql| {
            self.now(async {
                let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
                Ok(query.fetch_one(&mut *connection).await?)
            })
        })?;
        // Dropped outside a runtime it could not be given back.
        let _inside = self.runtime.enter();
        drop(connection);
        Ok(())
    }
}

fn code(error: Option<&sqlx::Error>) -> Option<String> {
    Some(error?.as_database_error()?.code()?.into_owned())
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
            ("error", &|| p.now(p.error())),
            ("big", &|| p.now(p.big())),
            ("ended", &|| p.now(p.ended())),
        ],
        p,
    );
}
