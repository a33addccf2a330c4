//! Transactions, alone and of two sessions that stand in each other's way.

use crate::differential::script::{Names, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = alone(names);
    scripts.extend(limits(names));
    scripts.extend(in_conflict(names));
    scripts
}

/// The statements of each are sent one after the other: the status is seen behind every one.
fn alone(names: &Names) -> Vec<Script> {
    let cases: &[&[&str]] = &[
        &["BEGIN", "SELECT 1", "COMMIT"],
        &["BEGIN", "SELECT 1/0", "SELECT 1", "COMMIT"],
        &["BEGIN", "SELECT 1/0", "ROLLBACK"],
        &["BEGIN", "SELECT 1/0", "END", "SELECT 1"],
        &["START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", "SELECT 1", "COMMIT"],
        &["BEGIN", "BEGIN", "COMMIT", "COMMIT"],
        &["ROLLBACK", "COMMIT"],
        &["BEGIN", "COMMIT AND CHAIN", "SELECT 1", "ROLLBACK AND CHAIN", "ROLLBACK"],
        &["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"],
        &[
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "COMMIT AND CHAIN",
            "SHOW transaction_isolation",
            "COMMIT",
        ],
        &["BEGIN", "SELECT 1/0", "COMMIT AND CHAIN", "SELECT 1", "COMMIT"],
        &["BEGIN", "SAVEPOINT a", "SELECT 1/0", "ROLLBACK TO a", "SELECT 1", "COMMIT"],
        &["BEGIN", "SAVEPOINT a", "SAVEPOINT b", "RELEASE a", "ROLLBACK TO b", "ROLLBACK"],
        &["BEGIN", "RELEASE nothing", "ROLLBACK TO nothing", "COMMIT"],
        &["SAVEPOINT a", "RELEASE a", "ROLLBACK TO a"],
        &["BEGIN READ ONLY", "CREATE TABLE not_allowed (a int)", "ROLLBACK"],
        &[
            "BEGIN READ ONLY",
            "SET TRANSACTION READ WRITE",
            "SELECT 1",
            "SET TRANSACTION READ WRITE",
            "COMMIT",
        ],
        &["BEGIN", "SELECT 1", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "COMMIT"],
        &["SET TRANSACTION READ ONLY", "SHOW transaction_read_only"],
        &["SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "INSERT INTO t VALUES (-9)", "RESET ALL"],
        &["BEGIN", "SET LOCAL TimeZone = 'Etc/GMT-7'", "COMMIT", "SHOW TimeZone"],
        &["BEGIN", "SET TimeZone = 'Etc/GMT-7'", "SELECT 1/0", "ROLLBACK", "SHOW TimeZone"],
        &["BEGIN", "SAVEPOINT a", "SET application_name = 'within'", "ROLLBACK TO a", "COMMIT"],
        &["BEGIN", "SET LOCAL client_encoding = 'LATIN1'", "SELECT 1/0", "COMMIT"],
        &["BEGIN", "CREATE TEMP TABLE kept (a int) ON COMMIT DROP", "COMMIT", "SELECT * FROM kept"],
        &[
            "BEGIN",
            "CREATE TEMP TABLE emptied (a int) ON COMMIT DELETE ROWS",
            "INSERT INTO emptied VALUES (1)",
            "COMMIT",
            "TABLE emptied",
        ],
        &[
            "CREATE TEMP TABLE later (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
            "BEGIN",
            "INSERT INTO later VALUES (1), (1)",
            "COMMIT",
            "TABLE later",
        ],
        &[
            "BEGIN",
            "DECLARE c CURSOR FOR SELECT 10 / (3 - id) FROM t WHERE id < 5 ORDER BY id",
            "FETCH 2 FROM c",
            "FETCH 2 FROM c",
            "FETCH 1 FROM c",
            "ROLLBACK",
        ],
        &[
            "BEGIN",
            "DECLARE c SCROLL CURSOR FOR SELECT id FROM t ORDER BY id",
            "FETCH LAST FROM c",
            "FETCH BACKWARD 2 FROM c",
            "CLOSE c",
            "CLOSE c",
            "COMMIT",
        ],
        &[
            "BEGIN",
            "DECLARE c CURSOR WITH HOLD FOR SELECT id FROM t ORDER BY id",
            "COMMIT",
            "FETCH 2 FROM c",
            "CLOSE ALL",
            "FETCH 1 FROM c",
        ],
        &["BEGIN", "SELECT 1", "PREPARE TRANSACTION 'nothing done'", "ROLLBACK PREPARED 'nothing done'"],
        &["PREPARE TRANSACTION 'no transaction'", "COMMIT PREPARED 'nowhere'", "ROLLBACK PREPARED 'nowhere'"],
        &[
            "BEGIN",
            "INSERT INTO t VALUES (-20)",
            "PREPARE TRANSACTION 'undone'",
            "SELECT 1",
            "ROLLBACK PREPARED 'undone'",
        ],
        &[
            "BEGIN",
            "INSERT INTO t VALUES (-21)",
            "DELETE FROM t WHERE id = -21",
            "PREPARE TRANSACTION 'done'",
            "COMMIT PREPARED 'done'",
        ],
        &["BEGIN", "CREATE TEMP TABLE of_two_phases (a int)", "PREPARE TRANSACTION 'temporary'", "ROLLBACK"],
        &["BEGIN", "SELECT 1/0", "PREPARE TRANSACTION 'failed'", "SELECT 1"],
        &[
            "BEGIN",
            "SELECT 1/0",
            "BEGIN",
            "SAVEPOINT a",
            "RELEASE a",
            "SET geqo = off",
            "SHOW geqo",
            "",
            "DISCARD ALL",
            "ROLLBACK",
        ],
        &["BEGIN", "DISCARD ALL", "ROLLBACK", "DISCARD ALL"],
        &["BEGIN", "VACUUM", "ROLLBACK"],
        &["BEGIN", "SET ROLE none", "SET SESSION AUTHORIZATION DEFAULT", "RESET ROLE", "COMMIT"],
        &["SELECT pg_advisory_lock(77)", "SELECT pg_advisory_unlock(77)", "SELECT pg_advisory_unlock(77)"],
        &[
            "DO $$ BEGIN INSERT INTO t VALUES (-30); ROLLBACK; PERFORM 1; COMMIT; END $$",
            "SELECT id FROM t WHERE id = -30",
        ],
        &[
            "CREATE PROCEDURE pg_temp.proc(INOUT n int) LANGUAGE plpgsql AS 'BEGIN n := n + 1; COMMIT; END'",
            "CALL pg_temp.proc(1)",
            "BEGIN",
            "CALL pg_temp.proc(1)",
            "ROLLBACK",
        ],
    ];
    let scripts = cases.iter().map(|statements| {
        let begin = Script::session(statements.join("; ").chars().take(80).collect::<String>(), names);
        statements.iter().fold(begin, Script::query)
    });
    scripts.collect()
}

/// Time limits of the server's own.
fn limits(names: &Names) -> Vec<Script> {
    let session = |name: &str| Script::session(name, names);
    let mut scripts = vec![
        session("idle_in_transaction_session_timeout")
            .query("SET idle_in_transaction_session_timeout = 20")
            .query("BEGIN")
            .end(),
        session("idle_in_transaction_session_timeout behind an error")
            .query("SET idle_in_transaction_session_timeout = 20")
            .query("BEGIN; SELECT 1/0")
            .end(),
        session("idle_session_timeout").query("SET idle_session_timeout = 20").end(),
        Script::session_with("idle_session_timeout of the startup", names, &[("idle_session_timeout", "20")])
            .end(),
        // So long that the statement has begun, however busy the machine is.
        session("statement_timeout")
            .query("SET LOCAL statement_timeout = 1000; SELECT pg_sleep(600)")
            .query("SELECT 1"),
    ];
    if names.major >= 17 {
        // In one Query with its start: what came behind the end would be unread there, and reset the connection.
        let running = "BEGIN; SET LOCAL transaction_timeout = 1000; SELECT pg_sleep(600)";
        let idle = "BEGIN; SET LOCAL transaction_timeout = 300";
        scripts.push(session("transaction_timeout in a statement").query(running).end());
        scripts.push(session("transaction_timeout").query(idle).end());
    }
    // What is said and when it is said depends on no merging.
    scripts.into_iter().map(Script::alone).collect()
}

fn in_conflict(names: &Names) -> Vec<Script> {
    // Each script has rows and locks of its own: others run beside it.
    let two = |name: &str| Script::session(name, names).also(1, names);
    let waits = "SELECT 1 FROM pg_stat_activity WHERE pid = {1} AND wait_event_type = 'Lock'";
    let waits_0 = "SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event_type = 'Lock'";
    let say = crate::differential::say::query;
    vec![
        two("deadlock")
            .on(0)
            .query("SELECT look_for_deadlocks_after('1h')")
            .query("BEGIN; SELECT pg_advisory_xact_lock(1001)")
            .on(1)
            .query("SELECT look_for_deadlocks_after('1ms')")
            .query("BEGIN; SELECT pg_advisory_xact_lock(1002)")
            .on(0)
            .send(say("SELECT pg_advisory_xact_lock(1002)"))
            .awaits(waits_0)
            .on(1)
            .query("SELECT pg_advisory_xact_lock(1001)")
            .query("ROLLBACK")
            .on(0)
            .ready(1)
            .query("COMMIT"),
        two("lock_timeout")
            .on(0)
            .query("SELECT pg_advisory_lock(1003)")
            .on(1)
            .query("SET lock_timeout = 20")
            .query("SELECT pg_advisory_lock(1003)")
            .query("SELECT 1"),
        two("NOWAIT")
            .on(0)
            .query("BEGIN; SELECT * FROM t WHERE id = 11 FOR UPDATE")
            .on(1)
            .query("SELECT * FROM t WHERE id = 11 FOR UPDATE NOWAIT")
            .query("SELECT * FROM t WHERE id = 11 FOR UPDATE SKIP LOCKED"),
        two("serialization failure")
            .on(0)
            .query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT n IS NULL FROM pairs WHERE id = 1")
            .on(1)
            .query("UPDATE pairs SET n = n + 1 WHERE id = 1")
            .on(0)
            .query("UPDATE pairs SET n = n + 1 WHERE id = 1")
            .query("SELECT 1")
            .query("COMMIT"),
        two("update that waits")
            .on(0)
            .query("BEGIN; UPDATE pairs SET n = 0 WHERE id = 2")
            .on(1)
            .send(say("UPDATE pairs SET n = 0 WHERE id = 2"))
            .awaits(waits)
            .on(0)
            .query("COMMIT")
            .on(1)
            .ready(1),
        two("unique key that waits")
            .on(0)
            .query("BEGIN; INSERT INTO marks VALUES (-40)")
            .on(1)
            .send(say("INSERT INTO marks VALUES (-40)"))
            .awaits(waits)
            .on(0)
            .query("ROLLBACK")
            .on(1)
            .ready(1)
            .query("DELETE FROM marks WHERE id = -40"),
        two("waiting session is ended")
            .on(0)
            .query("SELECT pg_advisory_lock(1005)")
            .on(1)
            .send(say("SELECT pg_advisory_lock(1005)"))
            .awaits(waits)
            .superuser("SELECT pg_terminate_backend({1})")
            .end(),
    ]
}
