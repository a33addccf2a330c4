//! The extended query protocol, in every order, good and bad.

use crate::differential::say::{
    bind, close, copy_data, copy_done, describe, execute, flush, parse, query, sync, terminate, unnamed,
};
use crate::differential::script::{Names, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = orders(names);
    scripts.extend(statements(names));
    scripts.extend(at_random(names));
    scripts
}

/// Each is sent at once, has so many Sync, and is followed by a Query.
fn orders(names: &Names) -> Vec<Script> {
    let select = || unnamed("SELECT 1 AS one", &[]);
    let fails = || unnamed("SELECT 1/0", &[]);
    let portal = |name: &str, rows| [bind(name, "", &[]), execute(name, rows)].concat();
    let series = || parse("", "SELECT n FROM generate_series(1, 5) AS n", &[]);
    let cases: Vec<(&str, usize, Vec<Vec<u8>>)> = vec![
        ("Sync", 1, vec![sync()]),
        ("Sync five times", 5, vec![sync(), sync(), sync(), sync(), sync()]),
        ("Flush and Sync", 1, vec![flush(), sync()]),
        ("one statement", 1, vec![select(), sync()]),
        ("without Describe", 1, vec![parse("", "SELECT 1", &[]), bind("", "", &[]), execute("", 0), sync()]),
        ("Describe of the statement", 1, vec![parse("", "SELECT $1::int", &[]), describe(b'S', ""), sync()]),
        (
            "Describe of both",
            1,
            vec![
                parse("", "SELECT 1", &[]),
                describe(b'S', ""),
                bind("", "", &[]),
                describe(b'P', ""),
                sync(),
            ],
        ),
        ("only Parse", 1, vec![parse("", "SELECT 1", &[]), sync()]),
        ("Parse that fails", 1, vec![parse("", "SELEC 1", &[]), sync()]),
        ("Parse of nothing", 1, vec![unnamed("", &[]), sync()]),
        ("Parse of a comment", 1, vec![unnamed("-- nothing", &[]), sync()]),
        ("Parse of two statements", 1, vec![parse("", "SELECT 1; SELECT 2", &[]), sync()]),
        ("Parse of a missing table", 1, vec![parse("", "SELECT * FROM nowhere", &[]), sync()]),
        ("Bind without Parse", 1, vec![bind("", "", &[]), sync()]),
        ("Bind to a missing statement", 1, vec![bind("", "nothing", &[]), execute("", 0), sync()]),
        ("Execute without Bind", 1, vec![execute("", 0), sync()]),
        ("Execute of a missing portal", 1, vec![execute("nothing", 0), sync()]),
        ("Describe of a missing statement", 1, vec![describe(b'S', "nothing"), sync()]),
        ("Describe of a missing portal", 1, vec![describe(b'P', "nothing"), sync()]),
        ("Close of what is not there", 1, vec![close(b'S', "nothing"), close(b'P', "nothing"), sync()]),
        ("Close of the unnamed ones", 1, vec![select(), close(b'P', ""), close(b'S', ""), sync()]),
        ("Execute behind Close", 1, vec![select(), close(b'P', ""), execute("", 0), sync()]),
        ("Execute twice", 1, vec![select(), execute("", 0), sync()]),
        ("skipped up to Sync", 1, vec![fails(), select(), select(), sync()]),
        ("skipped, Flush too", 1, vec![fails(), flush(), select(), flush(), sync()]),
        ("error in the middle", 1, vec![select(), fails(), select(), sync()]),
        ("two Syncs", 2, vec![select(), sync(), select(), sync()]),
        ("error, Sync, and on", 3, vec![select(), sync(), fails(), select(), sync(), select(), sync()]),
        ("errors only", 3, vec![fails(), sync(), fails(), sync(), fails(), sync()]),
        ("Query behind Parse", 2, vec![parse("", "SELECT 1", &[]), query("SELECT 2"), sync()]),
        ("Query behind an error", 1, vec![fails(), query("SELECT 2"), sync()]),
        (
            "Query between Bind and Execute",
            2,
            vec![parse("", "SELECT 1", &[]), bind("", "", &[]), query("SELECT 2"), execute("", 0), sync()],
        ),
        ("Terminate instead of Sync", 0, vec![select(), terminate()]),
        (
            "portal by portions",
            1,
            vec![series(), portal("", 2), execute("", 2), execute("", 2), execute("", 2), sync()],
        ),
        ("portal by portions of exactly all", 1, vec![series(), portal("", 5), execute("", 5), sync()]),
        ("portal left suspended", 2, vec![series(), portal("", 2), sync(), execute("", 2), sync()]),
        (
            "suspended within a transaction",
            3,
            vec![
                unnamed("BEGIN", &[]),
                sync(),
                series(),
                portal("p", 2),
                sync(),
                execute("p", 0),
                unnamed("COMMIT", &[]),
                execute("p", 0),
                sync(),
            ],
        ),
        (
            "two portals in turn",
            2,
            vec![
                unnamed("BEGIN", &[]),
                series(),
                portal("a", 1),
                portal("b", 2),
                execute("a", 1),
                execute("b", 1),
                execute("a", 0),
                execute("b", 0),
                sync(),
                unnamed("ROLLBACK", &[]),
                sync(),
            ],
        ),
        ("portal of a used name", 1, vec![series(), bind("p", "", &[]), bind("p", "", &[]), sync()]),
        (
            "unnamed portal of a used name",
            1,
            vec![series(), bind("", "", &[]), bind("", "", &[]), execute("", 0), sync()],
        ),
        ("negative number of rows", 1, vec![series(), portal("", u32::MAX), sync()]),
        (
            "portal is gone behind Sync",
            2,
            vec![series(), bind("p", "", &[]), sync(), execute("p", 0), sync()],
        ),
        (
            "INSERT by portions",
            1,
            vec![
                parse("", "INSERT INTO t VALUES (-1), (-2) RETURNING id", &[]),
                portal("", 1),
                execute("", 1),
                unnamed("DELETE FROM t WHERE id < 0", &[]),
                sync(),
            ],
        ),
        ("Flush without Sync, then Sync", 1, vec![select(), flush(), select(), flush(), sync()]),
        (
            "implicit transaction is undone",
            2,
            vec![
                unnamed("INSERT INTO t VALUES (-5)", &[]),
                fails(),
                sync(),
                unnamed("SELECT id FROM t WHERE id = -5", &[]),
                sync(),
            ],
        ),
        (
            "COMMIT in a pipeline",
            1,
            vec![unnamed("SELECT 1", &[]), unnamed("COMMIT", &[]), unnamed("SELECT 2", &[]), sync()],
        ),
        (
            "BEGIN in a pipeline",
            2,
            vec![
                unnamed("SELECT 1", &[]),
                unnamed("BEGIN", &[]),
                fails(),
                sync(),
                unnamed("ROLLBACK", &[]),
                sync(),
            ],
        ),
        ("VACUUM in a pipeline", 1, vec![select(), unnamed("VACUUM pairs", &[]), sync()]),
        (
            "SET LOCAL in a pipeline",
            2,
            vec![
                unnamed("SET LOCAL application_name = 'here'", &[]),
                unnamed("SHOW application_name", &[]),
                sync(),
                unnamed("SHOW application_name", &[]),
                sync(),
            ],
        ),
        ("SET that is undone", 1, vec![unnamed("SET application_name = 'undone'", &[]), fails(), sync()]),
        (
            "notices in a pipeline",
            1,
            vec![
                unnamed("DO $$ BEGIN RAISE NOTICE 'one'; END $$", &[]),
                unnamed("DO $$ BEGIN RAISE NOTICE 'two'; END $$", &[]),
                sync(),
            ],
        ),
        (
            "NOTIFY in a pipeline",
            2,
            vec![
                unnamed("LISTEN pipeline_1", &[]),
                sync(),
                unnamed("NOTIFY pipeline_1, 'one'", &[]),
                unnamed("NOTIFY pipeline_1, 'two'", &[]),
                sync(),
            ],
        ),
        (
            "COPY in a pipeline",
            2,
            vec![
                unnamed("CREATE TEMP TABLE copied (line text)", &[]),
                sync(),
                unnamed("COPY copied FROM STDIN", &[]),
                copy_data("one\n"),
                copy_done(),
                sync(),
                unnamed("COPY copied TO STDOUT", &[]),
                sync(),
            ],
        ),
        ("SHOW by portions", 1, vec![parse("", "SHOW ALL_SUCH", &[]), portal("", 1), sync()]),
        (
            "EXPLAIN by portions",
            1,
            vec![
                parse("", "EXPLAIN (COSTS OFF) SELECT * FROM t ORDER BY id", &[]),
                portal("", 1),
                execute("", 1),
                execute("", 0),
                sync(),
            ],
        ),
    ];
    cases
        .into_iter()
        .map(|(name, syncs, sent)| {
            Script::session(name, names).send(sent.concat()).ready(syncs).query("SELECT 'after'")
        })
        .chain([
            Script::session("Flush alone", names).send([select(), flush()].concat()).until(b'C').ask(sync()),
            Script::session("Flush behind Parse", names)
                .send([parse("", "SELECT $1::int, $2", &[]), describe(b'S', ""), flush()].concat())
                .read(3)
                .send([bind("", "", &[Some("1"), Some("2")]), flush()].concat())
                .read(1)
                .send([execute("", 0), flush()].concat())
                .until(b'C')
                .ask(sync()),
            Script::session("Flush behind an error", names)
                .send([fails(), flush()].concat())
                .until(b'E')
                .send([select(), flush()].concat())
                .ask(sync()),
            Script::session("1,000 statements in a pipeline", names)
                .ask([unnamed("SELECT 1", &[]).repeat(1_000), sync()].concat())
                .alone(),
            Script::session("300 Syncs in a pipeline", names)
                .send([unnamed("SELECT 1", &[]), sync()].concat().repeat(300))
                .ready(300)
                .alone(),
        ])
        .collect()
}

/// Prepared statements that live on.
fn statements(names: &Names) -> Vec<Script> {
    let run = |name: &str, values: &[Option<&str>]| [bind("", name, values), execute("", 0), sync()].concat();
    let prepare = |name: &str, sql: &str| [parse(name, sql, &[]), sync()].concat();
    let session = |name: &str| Script::session(name, names);
    vec![
        session("named statement")
            .ask(prepare("s", "SELECT $1::int + 1"))
            .ask(run("s", &[Some("1")]))
            .ask(run("s", &[Some("2")])),
        session("named statement twice")
            .ask(prepare("s", "SELECT 1"))
            .ask(prepare("s", "SELECT 2"))
            .ask(run("s", &[])),
        session("named statement, closed and made again")
            .ask(prepare("s", "SELECT 1"))
            .ask([close(b'S', "s"), sync()].concat())
            .ask(run("s", &[]))
            .ask(prepare("s", "SELECT 2"))
            .ask(run("s", &[])),
        session("unnamed statement is replaced")
            .ask(prepare("", "SELECT 1"))
            .ask(prepare("", "SELECT 2"))
            .ask(run("", &[])),
        session("Query takes the unnamed statement away")
            .ask(prepare("", "SELECT 1"))
            .query("SELECT 2")
            .ask(run("", &[])),
        session("Query leaves named statements")
            .ask(prepare("s", "SELECT 1"))
            .query("SELECT 2")
            .ask(run("s", &[])),
        session("statement of SQL")
            .query("PREPARE s AS SELECT 1")
            .ask(run("s", &[]))
            .query("DEALLOCATE s")
            .ask(run("s", &[])),
        session("statement for SQL")
            .ask(prepare("s", "SELECT $1::int"))
            .query("EXECUTE s(5)")
            .query("DEALLOCATE s"),
        session("DISCARD ALL and statements")
            .ask(prepare("s", "SELECT 1"))
            .query("DISCARD ALL")
            .ask(run("s", &[])),
        session("DEALLOCATE ALL and statements")
            .ask(prepare("s", "SELECT 1"))
            .query("DEALLOCATE ALL")
            .ask(run("s", &[])),
        session("statement outlives ROLLBACK")
            .query("BEGIN")
            .ask(prepare("s", "SELECT 1"))
            .query("ROLLBACK")
            .ask(run("s", &[])),
        session("statement outlives its error")
            .ask(prepare("s", "SELECT 10 / $1::int"))
            .ask(run("s", &[Some("0")]))
            .ask(run("s", &[Some("5")])),
        session("result type changes")
            .query("CREATE TEMP TABLE changing (a int)")
            .ask(prepare("s", "SELECT * FROM changing"))
            .query("ALTER TABLE changing ADD COLUMN b text")
            .ask(run("s", &[])),
        session("table goes away")
            .query("CREATE TEMP TABLE going (a int)")
            .ask(prepare("s", "SELECT * FROM going"))
            .query("DROP TABLE going")
            .ask(run("s", &[])),
        session("table comes with the pipeline").ask(
            [
                unnamed("CREATE TEMP TABLE coming (a int)", &[]),
                unnamed("INSERT INTO coming VALUES ($1)", &[Some("5")]),
                unnamed("SELECT * FROM coming", &[]),
                sync(),
            ]
            .concat(),
        ),
        session("search_path changes")
            .ask(prepare("s", "SELECT count(*) FROM t"))
            .query("SET search_path = pg_catalog")
            .ask(run("s", &[])),
        session("statement in an aborted transaction")
            .ask(prepare("s", "SELECT 1"))
            .ask(prepare("r", "ROLLBACK"))
            .query("BEGIN")
            .query("SELECT 1/0")
            .ask(run("s", &[]))
            .ask(prepare("n", "SELECT 1"))
            .ask(run("r", &[])),
        session("long names")
            .ask(prepare(&"n".repeat(500), "SELECT 1"))
            .ask(run(&"n".repeat(500), &[]))
            .ask(run(&"n".repeat(499), &[])),
        session("odd names").ask(prepare("a b\"c'ä", "SELECT 1")).ask(run("a b\"c'ä", &[])),
        session("cursor of SQL as a portal")
            .query("BEGIN; DECLARE c CURSOR FOR SELECT id FROM t ORDER BY id")
            .ask([execute("c", 2), describe(b'P', "c"), sync()].concat())
            .query("FETCH 2 FROM c")
            .ask([close(b'P', "c"), sync()].concat())
            .query("FETCH 1 FROM c"),
        session("portal as a cursor of SQL")
            .query("BEGIN")
            .ask(
                [parse("", "SELECT id FROM t ORDER BY id", &[]), bind("p", "", &[]), execute("p", 1), sync()]
                    .concat(),
            )
            .query("FETCH 2 FROM p")
            .ask([execute("p", 1), sync()].concat())
            .query("COMMIT"),
        session("hundred statements")
            .ask(
                (0..100)
                    .flat_map(|n| parse(&format!("s{n}"), &format!("SELECT {n}"), &[]))
                    .chain(sync())
                    .collect::<Vec<_>>(),
            )
            .ask(
                (0..100)
                    .flat_map(|n| [bind("", &format!("s{n}"), &[]), execute("", 0)].concat())
                    .chain(sync())
                    .collect::<Vec<_>>(),
            )
            .alone(),
    ]
}

/// Messages in an order that nobody thought of.
fn at_random(names: &Names) -> Vec<Script> {
    (0..60_u64)
        .map(|seed| {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut sent = Vec::new();
            for _ in 0..dice.usize(6..25) {
                sent.push(any(&mut dice, seed));
            }
            // One ReadyForQuery too many is asked for: it all ends with the end.
            let script = Script::session(format!("pipeline {seed} at random"), names).send(sent.concat());
            script.send(sync()).send(query("SELECT 'last'")).finish().one_of_many()
        })
        .collect()
}

fn any(dice: &mut fastrand::Rng, seed: u64) -> Vec<u8> {
    // Channels are of the database: others play beside it.
    let (listen, notify) = (format!("LISTEN random_{seed}"), format!("NOTIFY random_{seed}"));
    let statement = *dice.choice(&["", "", "s", "t"]).unwrap();
    let portal = *dice.choice(&["", "", "p", "q"]).unwrap();
    let sql = *dice
        .choice(&[
            "SELECT 1",
            "SELECT n FROM generate_series(1, 7) AS n",
            "SELECT $1::int",
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT a",
            "ROLLBACK TO a",
            "SELECT 1/0",
            "SELEC",
            "",
            "SET application_name = 'at random'",
            &notify,
            &listen,
            "CREATE TEMP TABLE at_random (a int)",
            "INSERT INTO at_random VALUES (1), (2) RETURNING a",
            "DO $$ BEGIN RAISE NOTICE 'at random'; END $$",
            "COPY (SELECT 1) TO STDOUT",
        ])
        .unwrap();
    match dice.u8(0..13) {
        0..=2 => parse(statement, sql, &[]),
        3 => bind(portal, statement, &[]),
        4 => bind(portal, statement, &[Some("5")]),
        5 => describe(b'S', statement),
        6 => describe(b'P', portal),
        7 => execute(portal, dice.u32(0..4)),
        8 => unnamed(sql, &[]),
        9 => close(if dice.bool() { b'S' } else { b'P' }, statement),
        10 => sync(),
        11 => flush(),
        _ => query(sql),
    }
}
