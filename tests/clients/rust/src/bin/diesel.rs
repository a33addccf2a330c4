//! diesel with r2d2.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use clients::{
    BIG_ROWS, BIG_VALUE, COPIED, PATIENCE, POOL_SIZE, Pool, Result, Value, client, expect, or_fail, run, url,
};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::r2d2::{self, ConnectionManager};
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Double, Integer, Nullable, Text};

diesel::table! {
    t (id) {
        id -> Integer,
    }
}

diesel::table! {
    client_rows (client, id) {
        client -> Text,
        id -> Integer,
        note -> Text,
    }
}

struct Program {
    one: Mutex<PgConnection>,
    pool: r2d2::Pool<ConnectionManager<PgConnection>>,
}

#[derive(QueryableByName, Debug, PartialEq)]
struct Several {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    text: String,
    #[diesel(sql_type = Double)]
    half: f64,
    #[diesel(sql_type = Nullable<Text>)]
    nothing: Option<String>,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[derive(QueryableByName)]
struct Words {
    #[diesel(sql_type = Text)]
    value: String,
}

#[derive(QueryableByName)]
struct Numbers {
    #[diesel(sql_type = Array<Integer>)]
    value: Vec<i32>,
}

impl Program {
    fn new() -> Result<Self> {
        let manager = ConnectionManager::new(url());
        let options = r2d2::Pool::builder().max_size(POOL_SIZE).connection_timeout(PATIENCE);
        let pool = options.test_on_check_out(true).build(manager)?;
        Ok(Self { one: Mutex::new(PgConnection::establish(&url())?), pool })
    }

    fn one<T>(&self, during: impl FnOnce(&mut PgConnection) -> Result<T>) -> Result<T> {
        during(&mut self.one.lock().expect("one thread"))
    }

    fn query(&self) -> Result {
        let query = sql_query("SELECT $1 + 1 AS number, $2 AS text, $3 AS half, $4 AS nothing");
        let query = query.bind::<Integer, _>(41).bind::<Text, _>("é€").bind::<Double, _>(0.5);
        let row: Several =
            self.one(|one| Ok(query.bind::<Nullable<Text>, _>(None::<String>).get_result(one)?))?;
        expect(row, Several { number: 42, text: "é€".to_owned(), half: 0.5, nothing: None })
    }

    fn prepared(&self) -> Result {
        self.one(|one| {
            for id in 1..=8 {
                expect(t::table.filter(t::id.eq(id)).select(t::id).first(one)?, id)?;
            }
            let sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT \"t\".\"id\" FROM%'";
            expect(sql_query(sql).get_result::<Count>(one)?.count, 1)
        })
    }

    fn transaction(&self) -> Result {
        self.one(|one| {
            let insert = |one: &mut PgConnection, id: i32| {
                let row = (
                    client_rows::client.eq(client()),
                    client_rows::id.eq(id),
                    client_rows::note.eq("transaction"),
                );
                diesel::insert_into(client_rows::table).values(row).execute(one)
            };
            one.transaction(|one| insert(one, -1))?;
            let rolled_back: QueryResult<()> = one.transaction(|one| {
                insert(one, -2)?;
                Err(Error::RollbackTransaction)
            });
            expect(rolled_back, Err(Error::RollbackTransaction))?;
            let mine = client_rows::client.eq(client()).and(client_rows::note.eq("transaction"));
            expect(client_rows::table.filter(mine).select(client_rows::id).load(one)?, vec![-1])
        })
    }

    fn copy(&self) -> Result {
        use diesel::pg::CopyFormat;
        use std::io::Read;

        self.one(|one| {
            let copied = diesel::copy_from(client_rows::table).from_raw_data(client_rows::table, |copy| {
                for id in 0..COPIED {
                    let line = writeln!(copy, "{}\t{id}\tcopied", client());
                    line.map_err(|error| Error::SerializationError(error.into()))?;
                }
                Ok::<_, Error>(())
            });
            let copied = copied.with_format(CopyFormat::Text).execute(one)?;
            expect(copied, COPIED as usize)?;
            // It copies whole tables, in no order; and its connection takes no command behind that.
            let mut out = String::new();
            let other = &mut PgConnection::establish(&url())?;
            diesel::copy_to(client_rows::table)
                .with_format(CopyFormat::Text)
                .load_raw(other)?
                .read_to_string(&mut out)?;
            let mine = format!("{}\t", client());
            expect(
                out.lines().filter(|line| line.starts_with(&mine) && line.ends_with("copied")).count(),
                copied,
            )
        })
    }

    fn listen(&self) -> Result {
        self.one(|one| {
            sql_query("LISTEN diesel").execute(one)?;
            let mut other = PgConnection::establish(&url())?;
            let pid: Words = sql_query("SELECT pg_backend_pid()::text AS value").get_result(&mut other)?;
            sql_query("NOTIFY diesel, 'hello'").execute(&mut other)?;
            let told = loop {
                // What has come; it waits for nothing.
                match one.notifications_iter().next() {
                    Some(told) => break told?,
                    None => thread::sleep(Duration::from_millis(20)),
                }
            };
            expect(
                (told.channel, told.payload, told.process_id.to_string()),
                ("diesel".into(), "hello".into(), pid.value),
            )
        })
    }

    fn error(&self) -> Result {
        self.one(|one| {
            let twice = diesel::insert_into(t::table).values(t::id.eq(1)).execute(one);
            let kind = |error| if let Err(Error::DatabaseError(kind, _)) = error { Some(kind) } else { None };
            let is_unique = matches!(kind(twice), Some(DatabaseErrorKind::UniqueViolation));
            expect(is_unique, true)?;
            // It has kinds for some SQLSTATEs, and the words for the rest.
            let missing = sql_query("SELECT 1 FROM missing").execute(one);
            let words = missing.err().map(|error| error.to_string());
            expect(words.as_deref(), Some("relation \"missing\" does not exist"))?;
            expect(diesel::select(1.into_sql::<Integer>()).get_result(one)?, 1)
        })
    }

    fn big(&self) -> Result {
        self.one(|one| {
            let rows: Vec<i32> = sql_query(format!("SELECT id FROM generate_series(1, {BIG_ROWS}) AS id"))
                .load::<Id>(one)?
                .into_iter()
                .map(|row| row.id)
                .collect();
            expect((rows.len(), rows.last()), (BIG_ROWS as usize, Some(&BIG_ROWS)))?;
            let sql = format!("SELECT repeat('x', {BIG_VALUE}) AS value");
            expect(sql_query(sql).get_result::<Words>(one)?.value.len(), BIG_VALUE as usize)?;
            let sql = "SELECT array_agg(id ORDER BY id) AS value FROM t";
            expect(sql_query(sql).get_result::<Numbers>(one)?.value, (1..=100).collect())
        })
    }

    fn ended(&self) -> Result {
        let mut connection = self.pool.get()?;
        let ended = sql_query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut connection);
        let words = ended.err().map(|error| error.to_string()).unwrap_or_default();
        expect(words.contains("terminating connection due to administrator command"), true)?;
        drop(connection);
        expect(diesel::select(1.into_sql::<Integer>()).get_result(&mut self.pool.get()?)?, 1)
    }
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Integer)]
    id: i32,
}

impl Pool for Program {
    fn with(&self, during: &mut dyn FnMut(&mut Value<'_>) -> Result) -> Result {
        let mut connection = self.pool.get()?;
        during(&mut |sql| Ok(sql_query(sql).get_result::<Count>(&mut connection)?.count))
    }
}

fn main() {
    let program = or_fail("start", Program::new());
    let p = &program;
    run(
        &[
            ("query", &|| p.query()),
            ("prepared", &|| p.prepared()),
            ("transaction", &|| p.transaction()),
            ("copy", &|| p.copy()),
            ("notify", &|| p.listen()),
            ("error", &|| p.error()),
            ("big", &|| p.big()),
            ("ended", &|| p.ended()),
        ],
        p,
    );
}
