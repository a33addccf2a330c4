//! Query, and what it answers.

use crate::differential::say::{message, query};
use crate::differential::script::{Names, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts: Vec<_> = QUERIES
        .iter()
        .map(|sql| {
            let title = sql.chars().take(60).collect::<String>();
            // What it leaves of the session is seen in what follows.
            Script::session(title, names).query(sql).query("SELECT 1")
        })
        .collect();
    scripts.extend(raised(names));
    scripts.extend(encodings(names));
    scripts.extend(large(names));
    scripts.extend(raw(names));
    scripts
}

const QUERIES: &[&str] = &[
    "",
    " ",
    ";",
    ";;;",
    "-- nothing",
    "/* nothing */",
    "/* not closed",
    "SELECT 1",
    "SELECT 1;",
    "select 1 as one, 'two' as two, null as three, true, 1.5, '{1,2}'::int[]",
    "SELECT",
    "SELECT FROM t LIMIT 3",
    "SELECT NULL, NULL, NULL",
    "SELECT '', ' ', E'\\t\\n'",
    "SELECT 'ä', '∞', '🐘', U&'\\+01F418'",
    "SELECT id FROM t ORDER BY id",
    "SELECT id FROM t WHERE false",
    "SELECT 1; SELECT 2; SELECT 3",
    "SELECT 1;; SELECT 2;",
    "SELECT 1; SELECT 1/0; SELECT 3",
    "SELECT 1; SELEC 2; SELECT 3",
    "SELECT 1; SELECT nowhere FROM t; SELECT 3",
    "CREATE TEMP TABLE a (id int); INSERT INTO a VALUES (1), (2); SELECT * FROM a; SELECT 1/0",
    "CREATE TEMP TABLE b (id int); INSERT INTO b VALUES (1), (2); UPDATE b SET id = 3; DELETE FROM b; DROP TABLE b",
    "BEGIN; SELECT 1; COMMIT",
    "BEGIN; SELECT 1/0; COMMIT",
    "SELECT 1; BEGIN; SELECT 1/0; COMMIT; SELECT 2",
    "COMMIT",
    "ROLLBACK",
    "BEGIN; BEGIN",
    "SELECT 1; COMMIT; SELECT 1/0; SELECT 2",
    "VACUUM; SELECT 1",
    "SELECT 1; VACUUM",
    "SHOW server_encoding",
    "SHOW ALL_SUCH",
    "SHOW is_superuser",
    "SET geqo = off; SHOW geqo; RESET geqo; SHOW geqo",
    "SET application_name = 'renamed'",
    "SET application_name TO DEFAULT",
    "SET client_encoding = 'LATIN1'; SELECT 'ä'",
    "SET client_encoding = 'bogus'",
    "SET NAMES 'UTF8'",
    "SET TIME ZONE 'Etc/GMT+5'; SHOW TimeZone",
    "SET TimeZone = 'bogus'",
    "SET DateStyle = 'SQL, DMY'; SELECT date '2026-01-31'",
    "SET IntervalStyle = 'sql_standard'; SELECT interval '1 day 2 hours'",
    "SET standard_conforming_strings = off",
    "SET bogus = 1",
    "SET my.setting = 'mine'; SHOW my.setting",
    "SET LOCAL geqo = off; SHOW geqo",
    "BEGIN; SET LOCAL application_name = 'local'; COMMIT; SHOW application_name",
    "BEGIN; SET application_name = 'undone'; ROLLBACK; SHOW application_name",
    "SET search_path = nowhere, public; SELECT current_schemas(false)",
    "SELECT set_config('application_name', 'by function', false)",
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD ALL; SELECT 1",
    "DISCARD TEMP",
    "DISCARD PLANS",
    "DISCARD SEQUENCES",
    "SET ROLE NONE",
    "SET ROLE nobody_such",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION DEFAULT",
    "SET SESSION AUTHORIZATION postgres",
    "SET is_superuser = on",
    "SET work_mem = '1TB'",
    "SET log_statement = 'all'",
    "SET shared_buffers = '1MB'",
    "PREPARE p AS SELECT $1::int; EXECUTE p(5); DEALLOCATE p",
    "PREPARE p AS SELECT 1; PREPARE p AS SELECT 1",
    "EXECUTE nothing",
    "DEALLOCATE nothing",
    "DEALLOCATE ALL",
    "EXPLAIN (COSTS OFF) SELECT * FROM t WHERE id = 5",
    "EXPLAIN (COSTS OFF, FORMAT JSON) SELECT 1",
    "INSERT INTO t VALUES (1)",
    "INSERT INTO t VALUES (-3); DELETE FROM t WHERE id = -3 RETURNING id",
    "INSERT INTO nowhere VALUES (1)",
    "SELECT * FROM pg_authid",
    "CREATE DATABASE not_allowed",
    "CREATE ROLE not_allowed",
    "DROP TABLE t",
    "DROP TABLE IF EXISTS nowhere",
    "CREATE TEMP TABLE IF NOT EXISTS twice (id int); CREATE TEMP TABLE IF NOT EXISTS twice (id int)",
    "CREATE TEMP TABLE f (id int REFERENCES nowhere)",
    "CREATE TEMP TABLE checked (n int CONSTRAINT positive CHECK (n > 0)); INSERT INTO checked VALUES (-1)",
    "CREATE TEMP TABLE needed (n int NOT NULL); INSERT INTO needed VALUES (NULL)",
    "SELECT 1/0",
    "SELECT 'x'::int",
    "SELECT 1 + 'x'",
    "SELECT $1",
    "SELECT nothing()",
    "SELECT 9223372036854775807 + 1",
    "SELECT '1999-02-30'::date",
    "SELECT E'\\xff'",
    "SELECT 'not closed",
    "SELECT \"not closed",
    "SELECT * FROM generate_series(1, 2000)",
    "SELECT repeat('x', 100000)",
    "SELECT 1 WHERE pg_sleep(0) IS NOT NULL",
    "VALUES (1, 'a'), (2, 'b')",
    "TABLE t LIMIT 2",
    "WITH w AS (SELECT 1 AS n) SELECT n FROM w",
    "DO $$ BEGIN NULL; END $$",
    "DO $$ BEGIN PERFORM 1/0; END $$",
    "DO $$ BEGIN COMMIT; END $$",
    "BEGIN; DO $$ BEGIN COMMIT; END $$",
    "LOAD 'nowhere'",
    "CHECKPOINT",
    "LOCK TABLE t",
    "MERGE",
    "CALL nothing()",
    "DECLARE c CURSOR FOR SELECT 1",
    "FETCH 1 FROM c",
    "BEGIN; DECLARE c CURSOR FOR SELECT id FROM t ORDER BY id; FETCH 2 FROM c; MOVE 3 FROM c; FETCH 1 FROM c; CLOSE c; COMMIT",
    "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM t ORDER BY id LIMIT 3; FETCH ALL FROM h",
    "BEGIN; DECLARE b BINARY CURSOR FOR SELECT 1::int4, 'a'::text; FETCH 1 FROM b",
];

/// Notices and errors of each level, with each field.
fn raised(names: &Names) -> Vec<Script> {
    let levels = ["debug", "log", "info", "notice", "warning", "exception"];
    let at_each = levels.iter().flat_map(|level| {
        ["notice", "debug1", "error", "log"].map(|min| {
            let sql = format!(
                "SET client_min_messages = {min}; DO $$ BEGIN RAISE {level} 'at level %', 1 USING DETAIL = 'more', HINT = 'do', ERRCODE = 'P0TST'; END $$"
            );
            Script::session(format!("raise {level} where {min} is shown"), names).query(sql).query("SELECT 1").one_of_many()
        })
    });
    let fields = [
        "RAISE EXCEPTION USING MESSAGE = 'm', COLUMN = 'c', CONSTRAINT = 'k', DATATYPE = 'd', TABLE = 't', SCHEMA = 's'",
        "RAISE EXCEPTION ''",
        "RAISE EXCEPTION '%', repeat('long ', 5000)",
        "RAISE NOTICE '%', repeat('long ', 5000)",
        "RAISE EXCEPTION SQLSTATE '57P01' USING MESSAGE = 'not the end'",
        "RAISE EXCEPTION SQLSTATE '28P01' USING MESSAGE = 'not the password'",
        "RAISE EXCEPTION SQLSTATE '42704' USING MESSAGE = 'not the role'",
        "RAISE EXCEPTION SQLSTATE '08006' USING MESSAGE = 'not the connection'",
        "RAISE EXCEPTION '🐘 %', E'\\u00e4'",
        "FOR n IN 1..300 LOOP RAISE NOTICE 'number %', n; END LOOP",
        "ASSERT false, 'asserted'",
    ];
    let fields = fields.into_iter().map(|raise| {
        let title = raise.chars().take(60).collect::<String>();
        Script::session(title, names).query(format!("DO $$ BEGIN {raise}; END $$")).query("SELECT 1")
    });
    let within = [
        Script::session("notices between rows", names).query(
            "CREATE FUNCTION pg_temp.tell(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''row %'', n; RETURN n; END'; \
             SELECT pg_temp.tell(id) FROM t WHERE id < 20 ORDER BY id",
        ),
        Script::session("error behind rows", names)
            .query("SELECT 10 / (5 - id) FROM generate_series(1, 10) AS id")
            .query("SELECT 1"),
        Script::session("error behind many rows", names)
            .query("SELECT 10 / (3000 - id), repeat('x', 50) FROM generate_series(1, 5000) AS id")
            .query("SELECT 1"),
    ];
    at_each.chain(fields).chain(within).collect()
}

/// What is no text of the encoding, or has no counterpart in the other.
fn encodings(names: &Names) -> Vec<Script> {
    let encodings = ["UTF8", "LATIN1", "WIN1252", "SQL_ASCII", "EUC_JP", "SJIS", "GBK", "KOI8R"];
    let sent: [(&str, &[u8]); 4] = [
        ("a byte of LATIN1", b"SELECT '\xe4'"),
        ("a cut character", b"SELECT '\xe2\x88'"),
        ("what it may not have", b"SELECT chr(8734)"),
        ("a name", b"SELECT 1 AS \"\xc3\xa4\", nowhere AS \"\xc3\xa4\""),
    ];
    let each = encodings.into_iter().flat_map(|encoding| {
        sent.map(|(what, sql)| {
            Script::session_with(format!("{what} under {encoding}"), names, &[("client_encoding", encoding)])
                .query(sql)
                .query("SELECT 'ä'")
                .one_of_many()
        })
    });
    each.collect()
}

fn large(names: &Names) -> Vec<Script> {
    let columns = |count: usize| {
        let columns: Vec<_> = (1..=count).map(|n| format!("{n} AS c{n}")).collect();
        format!("SELECT {}", columns.join(", "))
    };
    vec![
        Script::session("query of 1 MB", names)
            .query(format!("SELECT length('{}')", "x".repeat(1_000_000)))
            .alone(),
        Script::session("query of 1 MB that fails", names)
            .query(format!("SELECT '{}'::int", "x".repeat(1_000_000)))
            .query("SELECT 1")
            .alone(),
        Script::session("1,600 columns", names).query(columns(1_600)).alone(),
        Script::session("1,664 columns", names).query(columns(1_664)).alone(),
        Script::session("1,665 columns", names).query(columns(1_665)).query("SELECT 1").alone(),
        Script::session("row of 5 MB", names)
            .query("SELECT repeat('x', 5000000), 2")
            .query("SELECT 1")
            .alone(),
        Script::session("50,000 rows", names)
            .query("SELECT n, NULL, 'row ' || n FROM generate_series(1, 50000) AS n")
            .query("SELECT 1")
            .alone(),
        Script::session("500 queries at once", names)
            .send((0..500).flat_map(|n| query(format!("SELECT {n}"))).collect::<Vec<_>>())
            .ready(500)
            .alone(),
        Script::session("1,000 statements in one", names)
            .query((0..1_000).map(|n| format!("SELECT {n};")).collect::<Vec<_>>().concat())
            .alone(),
    ]
}

fn raw(names: &Names) -> Vec<Script> {
    let cases: [(&str, Vec<u8>); 5] = [
        ("Query without its end", message(b'Q', b"SELECT 1")),
        ("Query of nothing at all", message(b'Q', b"")),
        ("Query with bytes behind its end", message(b'Q', b"SELECT 1\0SELECT 2\0")),
        ("Query with two ends", message(b'Q', b"SELECT 1\0\0")),
        ("Query that is all zeros", message(b'Q', &[0; 20])),
    ];
    cases
        .into_iter()
        .map(|(name, sent)| Script::session(name, names).send([sent, query("SELECT 1")].concat()).ready(2))
        .collect()
}
