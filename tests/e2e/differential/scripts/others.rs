//! Function calls, large objects, LISTEN and NOTIFY, cancels.

use crate::differential::say::{call, copy_data, copy_done, message, query, sync, terminate, unnamed};
use crate::differential::script::{Key, Names, Script};

pub(in crate::differential) fn calls(names: &Names) -> Vec<Script> {
    let int = |value: i32| value.to_be_bytes().to_vec();
    let session = |name: &str| Script::session(name, names);
    let once = |name: &str, sent: Vec<u8>| session(name).ask(sent).query("SELECT 1");
    let large = |name: &str, statements: &[&str]| statements.iter().fold(session(name), Script::query);
    let cases = vec![
        once("int4pl in binary", call(INT4PL, &[1], &[Some(&int(2)), Some(&int(3))], 1)),
        once("int4pl in text", call(INT4PL, &[0], &[Some(b"2"), Some(b"3")], 0)),
        once("int4pl in both", call(INT4PL, &[0, 1], &[Some(b"2"), Some(&int(3))], 1)),
        once("int4pl of NULL", call(INT4PL, &[1], &[None, Some(&int(3))], 1)),
        once("int4pl beyond its type", call(INT4PL, &[0], &[Some(b"2147483647"), Some(b"1")], 0)),
        once("too few arguments", call(INT4PL, &[1], &[Some(&int(2))], 1)),
        once("too many arguments", call(INT4PL, &[1], &[Some(&int(2)), Some(&int(3)), Some(&int(4))], 1)),
        once("no arguments", call(INT4PL, &[], &[], 1)),
        once("short argument", call(INT4PL, &[1], &[Some(b"\0"), Some(&int(3))], 1)),
        once("unknown format of an argument", call(INT4PL, &[9], &[Some(&int(2)), Some(&int(3))], 1)),
        once("unknown format of the result", call(INT4PL, &[1], &[Some(&int(2)), Some(&int(3))], 9)),
        once("wrong number of formats", call(INT4PL, &[1, 1, 1], &[Some(&int(2)), Some(&int(3))], 1)),
        once("function that there is not", call(999_999, &[], &[], 0)),
        once("function 0", call(0, &[], &[], 0)),
        once("set of rows", call(GENERATE_SERIES, &[1], &[Some(&int(1)), Some(&int(3))], 1)),
        once("empty FunctionCall", message(b'F', b"")),
        once("half a FunctionCall", message(b'F', b"\0\0")),
        once("FunctionCall with bytes behind its end", {
            let mut sent = call(INT4PL, &[1], &[Some(&int(2)), Some(&int(3))], 1);
            sent.extend(b"more");
            let len = u32::try_from(sent.len() - 1).unwrap();
            sent[1..5].copy_from_slice(&len.to_be_bytes());
            sent
        }),
        session("FunctionCall in a transaction")
            .query("BEGIN")
            .ask(call(INT4PL, &[0], &[Some(b"2"), Some(b"3")], 0))
            .ask(call(999_999, &[], &[], 0))
            .ask(call(INT4PL, &[0], &[Some(b"2"), Some(b"3")], 0))
            .query("ROLLBACK"),
        session("FunctionCall in a pipeline")
            .send(
                [unnamed("SELECT 1", &[]), call(INT4PL, &[0], &[Some(b"2"), Some(b"3")], 0), sync()].concat(),
            )
            .ready(2),
        session("FunctionCall behind an error")
            .send(
                [unnamed("SELECT 1/0", &[]), call(INT4PL, &[0], &[Some(b"2"), Some(b"3")], 0), sync()]
                    .concat(),
            )
            .ready(1)
            .query("SELECT 1"),
        session("three FunctionCalls at once")
            .send(call(INT4PL, &[0], &[Some(b"2"), Some(b"3")], 0).repeat(3))
            .ready(3),
        // Large objects: the whole life of one, by the calls that drivers make.
        session("large object by FunctionCall")
            .query("BEGIN")
            .query(format!("SELECT lo_create({LARGE_OBJECT}) > 0"))
            .ask(call(LO_OPEN, &[1], &[Some(&LARGE_OBJECT.to_be_bytes()), Some(&int(0x0006_0000))], 1))
            .ask(call(LOWRITE, &[1], &[Some(&int(0)), Some(b"large object")], 1))
            .ask(call(LO_LSEEK, &[1], &[Some(&int(0)), Some(&int(6)), Some(&int(0))], 1))
            .ask(call(LOREAD, &[1], &[Some(&int(0)), Some(&int(100))], 1))
            .ask(call(LOREAD, &[1], &[Some(&int(0)), Some(&int(100))], 1))
            .ask(call(LO_CLOSE, &[1], &[Some(&int(0))], 1))
            .ask(call(LOREAD, &[1], &[Some(&int(0)), Some(&int(100))], 1))
            .query("ROLLBACK"),
        session("large object of 300 kB by FunctionCall")
            .query("BEGIN")
            .query(format!("SELECT lo_create({}) > 0", LARGE_OBJECT + 1))
            .ask(call(LO_OPEN, &[1], &[Some(&(LARGE_OBJECT + 1).to_be_bytes()), Some(&int(0x0006_0000))], 1))
            .ask(call(LOWRITE, &[1], &[Some(&int(0)), Some(&vec![b'x'; 300_000])], 1))
            .ask(call(LO_LSEEK, &[1], &[Some(&int(0)), Some(&int(0)), Some(&int(0))], 1))
            .ask(call(LOREAD, &[1], &[Some(&int(0)), Some(&int(300_000))], 1))
            .query("ROLLBACK")
            .alone(),
        large(
            "large object that there is not",
            &[
                "BEGIN",
                "SELECT lo_open(987654321, 131072)",
                "ROLLBACK",
                "SELECT lo_unlink(987654321)",
                "SELECT lo_get(987654321)",
            ],
        ),
        large(
            "large object by SQL",
            &[
                "BEGIN",
                "SELECT lo_from_bytea(777001, 'large object')",
                "SELECT lo_get(777001), lo_get(777001, 6, 3)",
                "SELECT lo_put(777001, 0, 'small')",
                "SELECT lo_get(777001)",
                "SELECT loread(lo_open(777001, 262144), 5)",
                "SELECT lo_unlink(777001)",
                "SELECT lo_get(777001)",
                "ROLLBACK",
            ],
        ),
        large(
            "large object outside a transaction",
            &["SELECT lo_open(777002, 262144)", "SELECT lo_close(0)", "SELECT loread(0, 1)"],
        ),
        large(
            "lo_import and lo_export",
            &["SELECT lo_import('/etc/hostname')", "SELECT lo_export(1, '/tmp/not-allowed')"],
        ),
    ];
    cases
}

pub(in crate::differential) fn notifications(names: &Names) -> Vec<Script> {
    // Channels are of the database: each script has its own.
    let session = |name: &str| Script::session(name, names);
    let two = |name: &str| session(name).also(1, names);
    let all = |name: &str, statements: &[&str]| statements.iter().fold(session(name), Script::query);
    vec![
        all("to oneself", &["LISTEN self_1", "NOTIFY self_1", "NOTIFY self_1, 'with payload'", "SELECT 1"]),
        all("to nobody", &["NOTIFY nobody_1", "LISTEN nobody_2", "NOTIFY nobody_1", "SELECT 1"]),
        all(
            "twice the same",
            &["LISTEN same_1", "BEGIN; NOTIFY same_1, 'x'; NOTIFY same_1, 'x'; NOTIFY same_1, 'y'; COMMIT"],
        ),
        all(
            "undone",
            &[
                "LISTEN undone_1",
                "BEGIN; NOTIFY undone_1; ROLLBACK",
                "SELECT 1",
                "BEGIN; LISTEN undone_2; ROLLBACK",
                "NOTIFY undone_2",
            ],
        ),
        all(
            "in a failed transaction",
            &["LISTEN failed_1", "BEGIN", "NOTIFY failed_1", "SELECT 1/0", "COMMIT", "SELECT 1"],
        ),
        all(
            "under a savepoint",
            &[
                "LISTEN save_1",
                "BEGIN",
                "SAVEPOINT a",
                "NOTIFY save_1, 'undone'",
                "ROLLBACK TO a",
                "NOTIFY save_1, 'done'",
                "COMMIT",
            ],
        ),
        all(
            "UNLISTEN",
            &[
                "LISTEN un_1",
                "LISTEN un_2",
                "UNLISTEN un_1",
                "NOTIFY un_1",
                "NOTIFY un_2",
                "UNLISTEN *",
                "NOTIFY un_2",
            ],
        ),
        all("DISCARD ALL", &["LISTEN discard_1", "DISCARD ALL", "NOTIFY discard_1", "SELECT 1"]),
        all(
            "by function",
            &[
                "LISTEN func_1",
                "SELECT pg_notify('func_1', 'payload'), pg_listening_channels()",
                "SELECT pg_notify('', 'x')",
                "SELECT pg_notify(repeat('n', 70), 'x')",
            ],
        ),
        all(
            "payload of 7,999 bytes",
            &[
                "LISTEN long_1",
                "SELECT pg_notify('long_1', repeat('x', 7999))",
                "SELECT pg_notify('long_1', repeat('x', 8000))",
            ],
        ),
        all(
            "odd names and payloads",
            &["LISTEN \"odd ä\"\"x\"", "NOTIFY \"odd ä\"\"x\", 'ä \"quoted\" 🐘'", "NOTIFY \"Odd\""],
        ),
        all(
            "many of one transaction",
            &[
                "LISTEN many_1",
                "DO $$ BEGIN FOR n IN 1..500 LOOP PERFORM pg_notify('many_1', n::text); END LOOP; END $$",
                "SELECT 1",
            ],
        ),
        two("from another session")
            .on(0)
            .query("LISTEN other_1")
            .on(1)
            .query("NOTIFY other_1, 'from another'")
            .on(0)
            .until(b'A')
            .query("SELECT 1"),
        two("from another session while a statement runs")
            .on(0)
            .query("LISTEN other_2; SELECT pg_advisory_lock(2002)")
            .query("SELECT pg_advisory_unlock(2002)")
            .on(1)
            .query("SELECT pg_advisory_lock(2002)")
            .on(0)
            .send(query("SELECT pg_advisory_lock(2002)"))
            .awaits("SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event = 'advisory'")
            .on(1)
            .query("NOTIFY other_2, 'meanwhile'")
            .query("SELECT pg_advisory_unlock(2002)")
            .on(0)
            .until(b'A'),
        two("from another session in a transaction")
            .on(0)
            .query("LISTEN other_3")
            .query("BEGIN")
            .on(1)
            .query("NOTIFY other_3, 'held back'")
            .on(0)
            .query("SELECT 1")
            .query("COMMIT")
            .query("SELECT 1"),
        two("both ways")
            .on(0)
            .query("LISTEN both_1")
            .on(1)
            .query("LISTEN both_1")
            .on(0)
            .query("NOTIFY both_1, 'from 0'")
            .on(1)
            .until(b'A')
            .query("NOTIFY both_1, 'from 1'")
            .on(0)
            .until(b'A'),
        two("to one that has gone")
            .on(0)
            .query("LISTEN gone_1")
            .send(terminate())
            .end()
            .on(1)
            .query("NOTIFY gone_1")
            .query("SELECT 1"),
    ]
}

pub(in crate::differential) fn cancels(names: &Names) -> Vec<Script> {
    let session = |name: &str| Script::session(name, names);
    let sleeps = "SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event = 'PgSleep'";
    let sleeping = |name: &str| session(name).send(query("SELECT pg_sleep(600)")).awaits(sleeps);
    // What misses is seen by what still runs: another key ends it.
    let missing = |name: &str, key| {
        sleeping(name)
            .cancel(0, key)
            .awaits(sleeps)
            .superuser("SELECT pg_cancel_backend({0})")
            .ready(1)
            .query("SELECT 1")
    };
    vec![
        sleeping("cancel of a statement").cancel(0, Key::Right).ready(1).query("SELECT 1"),
        missing("cancel with a wrong secret", Key::WrongSecret),
        missing("cancel with a wrong pid", Key::WrongPid),
        missing("cancel with a short key", Key::Short),
        missing("cancel with a long key", Key::Long),
        session("cancel of nothing").query("SELECT 1").cancel(0, Key::Right).query("SELECT 1"),
        session("cancel of two statements, one after the other")
            .send(query("SELECT pg_sleep(600)"))
            .awaits(sleeps)
            .cancel(0, Key::Right)
            .ready(1)
            .send(query("SELECT pg_sleep(600)"))
            .awaits(sleeps)
            .cancel(0, Key::Right)
            .ready(1),
        session("cancel in a transaction")
            .query("BEGIN")
            .send(query("SELECT pg_sleep(600)"))
            .awaits(sleeps)
            .cancel(0, Key::Right)
            .ready(1)
            .query("SELECT 1")
            .query("ROLLBACK"),
        session("cancel of a pipeline")
            .send([unnamed("SELECT 1", &[]), unnamed("SELECT pg_sleep(600)", &[]), unnamed("SELECT 2", &[]), sync()].concat())
            .awaits(sleeps)
            .cancel(0, Key::Right)
            .ready(1)
            .query("SELECT 1"),
        session("cancel of the first of two queries")
            .send([query("SELECT pg_sleep(600)"), query("SELECT 2")].concat())
            .awaits(sleeps)
            .cancel(0, Key::Right)
            .ready(2),
        session("cancel of a COPY out")
            .send(query("COPY (SELECT 1 UNION ALL SELECT 2 FROM pg_sleep(600)) TO STDOUT"))
            .awaits(sleeps)
            .cancel(0, Key::Right)
            .ready(1)
            .query("SELECT 1"),
        session("cancel of a COPY in")
            .query("CREATE TEMP TABLE copied (a int)")
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .awaits("SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event = 'ClientRead' AND state = 'active'")
            .cancel(0, Key::Right)
            // What waits for a client looks at a cancel with the next message.
            .send([copy_data("1\n"), copy_done()].concat())
            .ready(1)
            .query("SELECT 1"),
        session("cancel of a wait for a lock")
            .also(1, names)
            .query("SELECT pg_advisory_lock(3001)")
            .on(0)
            .send(query("SELECT pg_advisory_lock(3001)"))
            .awaits("SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event_type = 'Lock'")
            .cancel(0, Key::Right)
            .ready(1),
        session("cancel by another session")
            .also(1, names)
            .on(0)
            .send(query("SELECT pg_sleep(600)"))
            .awaits(sleeps)
            .superuser("SELECT pg_cancel_backend({0})")
            .ready(1),
        session("cancel of an ended session").send(terminate()).end().cancel(0, Key::Right),
    ]
}

/// Object IDs of `pg_proc`.
const INT4PL: u32 = 177;
const GENERATE_SERIES: u32 = 1067;
const LO_OPEN: u32 = 952;
const LO_CLOSE: u32 = 953;
const LOREAD: u32 = 954;
const LOWRITE: u32 = 955;
const LO_LSEEK: u32 = 956;

const LARGE_OBJECT: u32 = 777_777;
