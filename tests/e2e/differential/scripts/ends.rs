//! How sessions end, and what belongs in none.

use crate::differential::say::{copy_data, flush, message, query, startup, sync, terminate, unnamed};
use crate::differential::script::{Names, PROTOCOL_3_0, Script};
use crate::raw::packet;

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let session = |name: &str| Script::session(name, names);
    let begun = |name: &str, sent: Vec<u8>| session(name).send(sent);
    let mut scripts = vec![
        begun("Terminate", terminate()).end(),
        begun("Terminate with a body", message(b'X', b"abcd")).end(),
        begun("Terminate behind a Query", [query("SELECT 1"), terminate()].concat()).end(),
        begun("Terminate behind a slow Query", [query("SELECT pg_sleep(0.05)"), terminate()].concat()).end(),
        begun("Terminate behind a pipeline without Sync", [unnamed("SELECT 1", &[]), terminate()].concat())
            .end(),
        begun("Terminate behind an error without Sync", [unnamed("SELECT 1/0", &[]), terminate()].concat())
            .end(),
        begun("Terminate within a transaction", [query("BEGIN"), terminate()].concat()).end(),
        begun("Query behind Terminate", [terminate(), query("SELECT 1")].concat()).end(),
        begun("Terminate twice", [terminate(), terminate()].concat()).end(),
        begun("the end", Vec::new()),
        begun("the end behind a Query", query("SELECT 1")),
        begun("the end behind a slow Query", query("SELECT 'slow' FROM pg_sleep(0.05)")),
        begun("the end behind a pipeline", [unnamed("SELECT 1", &[]), sync()].concat()),
        begun("the end behind a pipeline without Sync", unnamed("SELECT 1", &[])),
        begun("the end behind Flush", [unnamed("SELECT 1", &[]), flush()].concat()),
        begun("the end behind an error without Sync", unnamed("SELECT 1/0", &[])),
        begun("the end within a transaction", query("BEGIN")),
        begun("the end behind many rows", query("SELECT repeat('x', 100) FROM generate_series(1, 10000)"))
            .alone(),
        begun("the end within a tag", query("SELECT 1")[..1].to_vec()),
        begun("the end within a length", query("SELECT 1")[..3].to_vec()),
        begun("the end behind a header", query("SELECT 1")[..5].to_vec()),
        begun("the end within a body", query("SELECT 1")[..9].to_vec()),
        begun("the end within a second Query", [query("SELECT 1"), query("SELECT 2")[..9].to_vec()].concat()),
        begun(
            "the end within a body in a transaction",
            [query("BEGIN"), query("SELECT 1")[..9].to_vec()].concat(),
        ),
        session("pg_terminate_backend of oneself")
            .send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
            .end(),
        session("pg_terminate_backend of oneself in a pipeline")
            .send(
                [
                    unnamed("SELECT pg_terminate_backend(pg_backend_pid())", &[]),
                    unnamed("SELECT 1", &[]),
                    sync(),
                ]
                .concat(),
            )
            .end(),
        session("pg_terminate_backend of an idle session")
            .superuser("SELECT pg_terminate_backend({0})")
            .end(),
        session("pg_terminate_backend within a transaction")
            .query("BEGIN")
            .superuser("SELECT pg_terminate_backend({0})")
            .end(),
        session("pg_terminate_backend of a running statement")
            .send(query("SELECT pg_sleep(600)"))
            .awaits("SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event = 'PgSleep'")
            .superuser("SELECT pg_terminate_backend({0})")
            .end(),
        session("pg_terminate_backend within COPY")
            .query("CREATE TEMP TABLE copied (a int)")
            .send(query("COPY copied FROM STDIN"))
            .until(b'G')
            .superuser("SELECT pg_terminate_backend({0})")
            .end(),
        session("RAISE of FATAL's code")
            .query("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '57P01'; END $$")
            .query("SELECT 1"),
        // Whether they end is seen by the other one.
        session("reset of an idle session")
            .also(1, names)
            .on(0)
            .query("SELECT pg_advisory_lock(4001)")
            .reset()
            .on(1)
            .query("SELECT pg_advisory_lock(4001)"),
        session("reset within a transaction")
            .also(1, names)
            .on(0)
            .query("BEGIN; INSERT INTO marks VALUES (-50)")
            .reset()
            .on(1)
            .query("INSERT INTO marks VALUES (-50)")
            .query("DELETE FROM marks WHERE id = -50"),
        session("reset within a message")
            .also(1, names)
            .on(0)
            .query("SELECT pg_advisory_lock(4002)")
            .send(query("SELECT 1")[..9].to_vec())
            .reset()
            .on(1)
            .query("SELECT pg_advisory_lock(4002)"),
        session("reset behind a Query")
            .also(1, names)
            .on(0)
            .query("SELECT pg_advisory_lock(4003)")
            .send(query("INSERT INTO marks VALUES (-51)"))
            .awaits("SELECT 1 FROM marks WHERE id = -51")
            .reset()
            .on(1)
            .query("SELECT pg_advisory_lock(4003)")
            .query("DELETE FROM marks WHERE id = -51"),
    ];
    scripts.extend(lengths(names));
    scripts.extend(strange(names));
    scripts.extend(tags(names));
    scripts
}

fn lengths(names: &Names) -> Vec<Script> {
    let cases: [(&str, &[u8]); 14] = [
        ("length 0", b"Q\0\0\0\0"),
        ("length 1", b"Q\0\0\0\x01"),
        ("length 3", b"Q\0\0\0\x03"),
        ("length 3 of a Sync", b"S\0\0\0\x03"),
        ("length 0 of a Terminate", b"X\0\0\0\0"),
        ("length -1", b"Q\xff\xff\xff\xff"),
        ("length -2 GiB", b"Q\x80\0\0\0"),
        ("2 GiB of a Query", b"Q\x7f\xff\xff\xffSELECT"),
        ("1 GiB of a Query", b"Q\x40\0\0\0SELECT"),
        ("1 GiB of a Sync", b"S\x40\0\0\0"),
        ("20 kB of a Sync", b"S\0\0\x50\0"),
        ("20 kB of a Terminate", b"X\0\0\x50\0"),
        ("1 GiB of a Terminate", b"X\x40\0\0\0"),
        ("1 GiB of an unknown message", b"z\x40\0\0\0"),
    ];
    cases
        .into_iter()
        .flat_map(|(name, sent)| {
            [
                Script::session(name, names).send(sent),
                Script::session(format!("{name} behind a Query"), names)
                    .send([query("SELECT 1"), sent.to_vec()].concat()),
            ]
        })
        .collect()
}

fn strange(names: &Names) -> Vec<Script> {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("second StartupMessage", names.startup(&[])),
        ("second StartupMessage of 2 bytes", b"\0\x03".to_vec()),
        ("StartupMessage without anything", startup(PROTOCOL_3_0, &[])),
        ("SSLRequest in a session", packet(80_877_103, b"")),
        ("GSSENCRequest in a session", packet(80_877_104, b"")),
        ("CancelRequest in a session", packet(80_877_102, b"\0\0\0\x01abcd")),
        ("HTTP in a session", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("TLS in a session", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec()),
        ("password nobody asked for", [message(b'p', b"secret\0"), query("SELECT 1")].concat()),
        ("empty password", [message(b'p', b""), query("SELECT 1")].concat()),
        ("password in a pipeline", [unnamed("SELECT 1", &[]), message(b'p', b"secret\0"), sync()].concat()),
        ("CopyData of 100 kB", [copy_data(vec![b'x'; 100_000]), query("SELECT 1")].concat()),
        ("zeros", vec![0; 64]),
        ("0xff", vec![255; 64]),
        ("spaces", vec![b' '; 64]),
        ("line of text", b"SELECT 1;\n".to_vec()),
        ("messages of the server", [message(b'Z', b"I"), query("SELECT 1")].concat()),
    ];
    cases.into_iter().map(|(name, sent)| Script::session(name, names).send(sent)).collect()
}

/// Every tag, at an idle point and within a pipeline.
fn tags(names: &Names) -> Vec<Script> {
    let tags = (b'A'..=b'Z').chain(b'a'..=b'z').chain([0, 1, b'\n', b'0', b'?', 0x7f, 0x80, 0xff]);
    tags.flat_map(|tag| {
        let shown = tag.escape_ascii();
        [
            Script::session(format!("empty message {shown}"), names)
                .send([message(tag, b""), sync(), query("SELECT 1")].concat()),
            Script::session(format!("message {shown} in a pipeline"), names).send(
                [unnamed("SELECT 1", &[]), message(tag, b"\0\0\0\0\0\0\0\0"), sync(), query("SELECT 1")]
                    .concat(),
            ),
        ]
        .map(Script::one_of_many)
    })
    .collect()
}
