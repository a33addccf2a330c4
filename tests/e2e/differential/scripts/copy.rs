//! COPY in and out, and what may go wrong within.

use crate::differential::say::{
    bind, call, close, copy_data, copy_done, copy_fail, describe, execute, flush, message, parse, query,
    sync, terminate, unnamed,
};
use crate::differential::script::{Names, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = outward(names);
    scripts.extend(inward(names));
    scripts.extend(extended(names));
    scripts
}

fn outward(names: &Names) -> Vec<Script> {
    let statements = [
        "COPY t TO STDOUT",
        "COPY (SELECT 1, NULL, 'a\tb') TO STDOUT",
        "COPY (SELECT 1, 'a\"b', NULL) TO STDOUT WITH (FORMAT csv, HEADER)",
        "COPY (SELECT 1::int4, 'a'::text, NULL::int4) TO STDOUT WITH (FORMAT binary)",
        "COPY (SELECT 1 WHERE false) TO STDOUT",
        "COPY (SELECT FROM generate_series(1, 3)) TO STDOUT",
        "COPY (SELECT 10 / (5 - n) FROM generate_series(1, 10) AS n) TO STDOUT",
        "COPY (SELECT 1/0) TO STDOUT",
        "COPY nowhere TO STDOUT",
        "COPY t (nothing) TO STDOUT",
        "COPY t TO STDOUT WITH (FORMAT bogus)",
        "COPY t TO '/tmp/not-allowed'",
        "COPY t TO PROGRAM 'true'",
        "COPY (SELECT repeat('x', 200000)) TO STDOUT",
        "COPY (SELECT n, repeat('x', 100) FROM generate_series(1, 5000) AS n) TO STDOUT",
        "COPY (SELECT 1) TO STDOUT; COPY (SELECT 2) TO STDOUT; SELECT 3",
        "COPY (SELECT 1) TO STDOUT; SELECT 1/0; COPY (SELECT 2) TO STDOUT",
        "COPY (SELECT 'ä') TO STDOUT WITH (ENCODING 'LATIN1')",
        "COPY (SELECT '∞') TO STDOUT WITH (ENCODING 'LATIN1')",
    ];
    let outward = statements.into_iter().map(|sql| {
        let name = sql.chars().take(80).collect::<String>();
        Script::session(name, names).query(sql).query("SELECT 1")
    });
    let notices = Script::session("notices between CopyData", names).query(
        "CREATE FUNCTION pg_temp.tell(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''row %'', n; RETURN n; END'; \
         COPY (SELECT pg_temp.tell(n) FROM generate_series(1, 5) AS n) TO STDOUT",
    );
    outward.chain([notices]).collect()
}

/// What is sent once `COPY copied FROM STDIN` runs; each has one ReadyForQuery, and is looked at afterwards.
fn inward(names: &Names) -> Vec<Script> {
    let into = |name: &str, options: &str, sent: Vec<Vec<u8>>| {
        Script::session(name, names)
            .query("CREATE TEMP TABLE copied (a int, b text)")
            .send(query(format!("COPY copied FROM STDIN {options}")))
            .until(b'G')
            .send(sent.concat())
            .ready(1)
            .query("SELECT count(*), min(a), max(b) FROM copied")
    };
    let header = || [&b"PGCOPY\n\xff\r\n\0"[..], &[0; 8]].concat();
    let cases: Vec<(&str, &str, Vec<Vec<u8>>)> = vec![
        ("two rows", "", vec![copy_data("1\tone\n2\ttwo\n"), copy_done()]),
        ("no row", "", vec![copy_done()]),
        ("empty CopyData", "", vec![copy_data(""), copy_data("1\tone\n"), copy_data(""), copy_done()]),
        (
            "row in pieces",
            "",
            vec![copy_data("1"), copy_data("\to"), copy_data("ne\n2\t"), copy_data("two\n"), copy_done()],
        ),
        ("row without its end", "", vec![copy_data("1\tone"), copy_done()]),
        ("end-of-data mark", "", vec![copy_data("1\tone\n\\.\n"), copy_done()]),
        (
            "rows behind the end-of-data mark",
            "",
            vec![copy_data("1\tone\n\\.\n2\ttwo\n"), copy_data("3\tthree\n"), copy_done()],
        ),
        ("NULL", "", vec![copy_data("\\N\t\\N\n"), copy_done()]),
        ("too few columns", "", vec![copy_data("1\n"), copy_done()]),
        ("too many columns", "", vec![copy_data("1\tone\tmore\n"), copy_done()]),
        ("no number", "", vec![copy_data("x\tone\n"), copy_data("2\ttwo\n"), copy_done()]),
        ("no UTF-8", "", vec![copy_data(b"1\t\xff\n"), copy_done()]),
        ("zero byte", "", vec![copy_data(b"1\ta\0b\n"), copy_done()]),
        ("CSV", "WITH (FORMAT csv)", vec![copy_data("1,\"a\nb\"\n2,\n"), copy_done()]),
        ("CSV that is not closed", "WITH (FORMAT csv)", vec![copy_data("1,\"a\n"), copy_done()]),
        ("CSV with a header", "WITH (FORMAT csv, HEADER)", vec![copy_data("a,b\n1,one\n"), copy_done()]),
        (
            "binary",
            "WITH (FORMAT binary)",
            vec![
                copy_data([header(), b"\0\x02\0\0\0\x04\0\0\0\x05\0\0\0\x01a\xff\xff".to_vec()].concat()),
                copy_done(),
            ],
        ),
        ("binary without its mark", "WITH (FORMAT binary)", vec![copy_data("PGCOPY?"), copy_done()]),
        (
            "binary cut short",
            "WITH (FORMAT binary)",
            vec![copy_data([header(), b"\0\x02\0\0".to_vec()].concat()), copy_done()],
        ),
        (
            "binary with too few columns",
            "WITH (FORMAT binary)",
            vec![copy_data([header(), b"\0\x01\0\0\0\x04\0\0\0\x05".to_vec()].concat()), copy_done()],
        ),
        ("CopyFail", "", vec![copy_data("1\tone\n"), copy_fail("enough")]),
        ("CopyFail at once", "", vec![copy_fail("")]),
        ("CopyFail with an odd reason", "", vec![copy_fail("ä \"quoted\" 'x'")]),
        ("CopyDone twice", "", vec![copy_data("1\tone\n"), copy_done(), copy_done()]),
        ("CopyFail behind CopyDone", "", vec![copy_data("1\tone\n"), copy_done(), copy_fail("late")]),
        ("CopyData behind CopyDone", "", vec![copy_done(), copy_data("1\tone\n")]),
        ("CopyData behind CopyFail", "", vec![copy_fail("enough"), copy_data("1\tone\n"), copy_done()]),
        (
            "much behind an error",
            "",
            vec![copy_data("x\tone\n"), copy_data("2\ttwo\n").repeat(500), copy_done()],
        ),
        ("Sync within", "", vec![copy_data("1\tone\n"), sync(), copy_data("2\ttwo\n"), copy_done()]),
        ("Flush within", "", vec![copy_data("1\tone\n"), flush(), copy_data("2\ttwo\n"), copy_done()]),
        ("WHERE", "WHERE a > 1", vec![copy_data("1\tone\n2\ttwo\n"), copy_done()]),
        (
            "many rows",
            "",
            vec![(0..3_000).flat_map(|n| copy_data(format!("{n}\trow {n}\n"))).collect(), copy_done()],
        ),
        ("large CopyData", "", vec![copy_data(format!("1\t{}\n", "x".repeat(300_000))), copy_done()]),
    ];
    let mut scripts: Vec<_> = cases
        .into_iter()
        .map(|(name, options, sent)| into(&format!("COPY IN: {name}"), options, sent))
        .collect();
    // What does not belong there ends the COPY, and then is looked at or not.
    let others: [(&str, Vec<u8>); 12] = [
        ("Query", query("SELECT 1")),
        ("Parse", parse("", "SELECT 1", &[])),
        ("Bind", bind("", "", &[])),
        ("Describe", describe(b'P', "")),
        ("Execute", execute("", 0)),
        ("Close", close(b'P', "")),
        ("FunctionCall", call(1, &[], &[], 0)),
        ("password", message(b'p', b"secret\0")),
        ("unknown message", message(b'z', b"")),
        ("Terminate", terminate()),
        ("CopyFail without its end", message(b'f', b"enough")),
        ("CopyDone with a body", message(b'c', b"more")),
    ];
    scripts.extend(others.into_iter().map(|(name, sent)| {
        Script::session(format!("COPY IN: {name} within"), names)
            .query("CREATE TEMP TABLE copied (a int, b text)")
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .send(
                [copy_data("1\tone\n"), sent, copy_done(), sync(), query("SELECT count(*) FROM copied")]
                    .concat(),
            )
    }));
    scripts.extend([
        Script::session("COPY IN: the end within", names)
            .query("CREATE TEMP TABLE copied (a int, b text)")
            .send([query("COPY copied FROM STDIN"), copy_data("1\tone\n")].concat())
            .until(b'G'),
        Script::session("COPY IN: the end within CopyData", names)
            .query("CREATE TEMP TABLE copied (a int, b text)")
            .send([query("COPY copied FROM STDIN"), copy_data("1\tone\n2\ttwo\n")[..9].to_vec()].concat())
            .until(b'G'),
        Script::session("COPY IN: two in one Query", names)
            .query("CREATE TEMP TABLE copied (a int, b text)")
            .send(query("COPY copied FROM STDIN; COPY copied FROM STDIN; SELECT count(*) FROM copied"))
            .until(b'G')
            .send([copy_data("1\tone\n"), copy_done()].concat())
            .until(b'G')
            .ask([copy_data("2\ttwo\n"), copy_done()].concat()),
        Script::session("COPY IN: first of two fails", names)
            .query("CREATE TEMP TABLE copied (a int, b text)")
            .send(query("COPY copied FROM STDIN; COPY copied FROM STDIN"))
            .until(b'G')
            .ask([copy_data("x\tone\n"), copy_done()].concat())
            .query("SELECT count(*) FROM copied"),
        Script::session("COPY IN: in a transaction", names)
            .query("BEGIN; CREATE TEMP TABLE copied (a int, b text)")
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .ask([copy_data("1\n"), copy_done()].concat())
            .query("SELECT 1")
            .query("ROLLBACK"),
        Script::session("COPY IN: is refused", names)
            .query("COPY pg_class FROM STDIN")
            .query("COPY nowhere FROM STDIN")
            .query("COPY t FROM '/etc/hostname'")
            .send([query("COPY nowhere FROM STDIN"), copy_data("1\n"), copy_done(), query("SELECT 1")].concat())
            .ready(2),
        Script::session("COPY IN: a trigger's notices", names)
            .query(
                "CREATE TEMP TABLE copied (a int, b text); \
                 CREATE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''row %'', NEW.a; RETURN NEW; END'; \
                 CREATE TRIGGER tell BEFORE INSERT ON copied FOR EACH ROW EXECUTE FUNCTION pg_temp.tell()",
            )
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .ask([copy_data("1\tone\n"), copy_data("2\ttwo\n"), copy_done()].concat()),
    ]);
    scripts
}

fn extended(names: &Names) -> Vec<Script> {
    let session = |name: &str| Script::session(name, names).query("CREATE TEMP TABLE copied (a int, b text)");
    let copy = || unnamed("COPY copied FROM STDIN", &[]);
    vec![
        session("COPY IN, extended")
            .send([copy(), flush()].concat())
            .until(b'G')
            .ask([copy_data("1\tone\n"), copy_done(), sync()].concat()),
        session("COPY IN, extended, all at once")
            .ask([copy(), copy_data("1\tone\n"), copy_done(), sync()].concat())
            .query("SELECT count(*) FROM copied"),
        session("COPY IN, extended, that fails")
            .ask([copy(), copy_data("x\n"), copy_done(), sync()].concat())
            .query("SELECT 1"),
        session("COPY IN, extended, CopyFail")
            .ask([copy(), copy_fail("enough"), sync()].concat())
            .query("SELECT 1"),
        session("COPY IN, extended, more behind it")
            .ask([copy(), copy_data("1\tone\n"), copy_done(), unnamed("SELECT 1", &[]), sync()].concat()),
        session("COPY IN, extended, Execute within")
            .send([copy(), copy_data("1\tone\n"), unnamed("SELECT 1", &[]), copy_done(), sync()].concat())
            .ready(1)
            .query("SELECT 1"),
        session("COPY OUT, extended").ask([unnamed("COPY t TO STDOUT", &[]), sync()].concat()),
        session("COPY OUT, extended, by portions").ask(
            [parse("", "COPY t TO STDOUT", &[]), bind("", "", &[]), execute("", 2), execute("", 0), sync()]
                .concat(),
        ),
        session("COPY OUT, extended, that fails").ask(
            [
                unnamed("COPY (SELECT 1/(3-n) FROM generate_series(1, 5) n) TO STDOUT", &[]),
                unnamed("SELECT 1", &[]),
                sync(),
            ]
            .concat(),
        ),
        session("COPY is described").ask(
            [
                parse("", "COPY t TO STDOUT", &[]),
                describe(b'S', ""),
                bind("", "", &[]),
                describe(b'P', ""),
                sync(),
            ]
            .concat(),
        ),
        session("CopyData without COPY")
            .send([copy_data("1\n"), copy_done(), copy_fail("x"), query("SELECT 1")].concat())
            .ready(1),
        session("CopyData without COPY in a pipeline")
            .ask([parse("", "SELECT 1", &[]), copy_data("1\n"), copy_done(), sync()].concat()),
    ]
}
