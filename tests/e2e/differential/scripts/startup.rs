//! First packets, good and bad.

use crate::differential::differences::{HANG_UP, LONGEST};
use crate::differential::say::{query, string, terminate};
use crate::differential::script::{Names, PROTOCOL_3_0, Script};
use crate::raw::packet;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = malformed(names);
    scripts.extend(cancels());
    scripts.extend(encryption(names));
    scripts.extend(versions(names));
    scripts.extend(early(names));
    scripts
}

fn malformed(names: &Names) -> Vec<Script> {
    let hello = names.startup(&[]);
    let body = |body: &[u8]| packet(PROTOCOL_3_0, body);
    let user = [&b"user\0"[..], &string(&names.user)].concat();
    let filled = |len: usize| {
        let begin =
            [user.clone(), b"database\0".to_vec(), string(&names.database), b"a.b\0".to_vec()].concat();
        [begin.clone(), vec![b'x'; len - begin.len() - 2], vec![0, 0]].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("half a length", b"\0\0".to_vec()),
        ("only a length", b"\0\0\0\x08".to_vec()),
        ("length 0", b"\0\0\0\0\0\x03\0\0".to_vec()),
        ("length 3", b"\0\0\0\x03\0\x03\0\0".to_vec()),
        ("length 4", b"\0\0\0\x04\0\x03\0\0".to_vec()),
        ("length 7", b"\0\0\0\x07\0\x03\0".to_vec()),
        ("only a header", body(b"")),
        ("half a StartupMessage", hello[..20].to_vec()),
        ("all but its last byte", hello[..hello.len() - 1].to_vec()),
        ("9,900 bytes", body(&filled(9_892))),
        (LONGEST, body(&filled(9_996))),
        (HANG_UP, hello.clone()),
        ("10,005 bytes", body(&filled(9_997))),
        ("10,004 bytes without any sense", body(&[b'x'; 9_996])),
        ("100,000 bytes", body(&[b'x'; 100_000])),
        ("2 GiB", b"\x7f\xff\xff\xff\0\x03\0\0user\0".to_vec()),
        ("-2 GiB", b"\x80\0\0\0\0\x03\0\0user\0".to_vec()),
        ("4 GiB", b"\xff\xff\xff\xff\0\x03\0\0user\0".to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("Redis", b"*1\r\n$4\r\nPING\r\n".to_vec()),
        ("Query", query("SELECT 1")),
        ("Terminate", terminate()),
        ("no terminator", body(b"user\0app")),
        ("no value", body(b"user\0")),
        ("name without a value before the terminator", body(&[&user[..], b"database\0\0"].concat())),
        ("bytes behind the terminator", body(&[&user[..], b"\0x\0"].concat())),
        ("pairs behind the terminator", body(&[&user[..], b"\0geqo\0off\0\0"].concat())),
        ("no user", body(b"database\0postgres\0\0")),
        ("empty user", body(b"user\0\0database\0postgres\0\0")),
        ("no parameters", body(b"\0")),
        ("two terminators", body(b"\0\0")),
        ("upper-case name of user", body(b"USER\0app\0\0")),
    ];
    let cases = cases.into_iter().map(|(name, sent)| Script::bare(name).send(sent));
    // One that begins after all must have its greeting before it may go.
    cases
        .map(
            |script| {
                if ["9,900 bytes", LONGEST].contains(&script.name.as_str()) {
                    script.ready(1)
                } else {
                    script
                }
            },
        )
        .collect()
}

fn cancels() -> Vec<Script> {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("cancel of nobody", packet(CANCEL_REQUEST, b"\0\0\0\x01abcd")),
        ("cancel of pid 0", packet(CANCEL_REQUEST, b"\0\0\0\0abcd")),
        ("cancel of a negative pid", packet(CANCEL_REQUEST, b"\xff\xff\xff\xfeabcd")),
        ("cancel without anything", packet(CANCEL_REQUEST, b"")),
        ("cancel with half a pid", packet(CANCEL_REQUEST, b"\0\0")),
        ("cancel without a key", packet(CANCEL_REQUEST, b"\0\0\0\x01")),
        ("cancel with half a key", packet(CANCEL_REQUEST, b"\0\0\0\x01ab")),
        ("cancel with a key of 32 bytes", packet(CANCEL_REQUEST, &[7; 36])),
        ("cancel with a key of 256 bytes", packet(CANCEL_REQUEST, &[7; 260])),
        ("cancel with a key of 257 bytes", packet(CANCEL_REQUEST, &[7; 261])),
        ("cancel with a key of 9,000 bytes", packet(CANCEL_REQUEST, &[7; 9_004])),
        ("half a cancel", packet(CANCEL_REQUEST, b"\0\0\0\x01abcd")[..10].to_vec()),
        ("bytes behind a cancel", [packet(CANCEL_REQUEST, b"\0\0\0\x01abcd"), query("SELECT 1")].concat()),
        (
            "two cancels",
            [packet(CANCEL_REQUEST, b"\0\0\0\x01abcd"), packet(CANCEL_REQUEST, b"\0\0\0\x02abcd")].concat(),
        ),
    ];
    cases.into_iter().map(|(name, sent)| Script::bare(name).send(sent)).collect()
}

fn encryption(names: &Names) -> Vec<Script> {
    let ssl = || packet(SSL_REQUEST, b"");
    let gssenc = || packet(GSSENC_REQUEST, b"");
    let hello = || names.startup(&[]);
    let in_turn = |name: &str, parts: &[Vec<u8>]| {
        let mut script = Script::bare(name);
        for (number, part) in parts.iter().enumerate() {
            script = script.send(part.clone());
            if number + 1 < parts.len() {
                script = script.byte();
            }
        }
        script
    };
    vec![
        in_turn("SSLRequest", &[ssl(), Vec::new()]),
        in_turn("GSSENCRequest", &[gssenc(), Vec::new()]),
        in_turn("SSLRequest and on", &[ssl(), hello()]).ready(1).query("SELECT 1"),
        in_turn("GSSENCRequest and on", &[gssenc(), hello()]).ready(1).query("SELECT 1"),
        in_turn("both and on", &[ssl(), gssenc(), hello()]).ready(1).query("SELECT 1"),
        in_turn("both the other way round and on", &[gssenc(), ssl(), hello()]).ready(1).query("SELECT 1"),
        in_turn("SSLRequest twice", &[ssl(), ssl()]),
        in_turn("GSSENCRequest twice", &[gssenc(), gssenc()]),
        in_turn("both and SSLRequest", &[ssl(), gssenc(), ssl()]),
        in_turn("both and GSSENCRequest", &[gssenc(), ssl(), gssenc()]),
        in_turn("SSLRequest, then garbage", &[ssl(), b"\0\0\0\x01".to_vec()]),
        in_turn("SSLRequest, then a cancel", &[ssl(), packet(CANCEL_REQUEST, b"\0\0\0\x01abcd")]),
        in_turn("SSLRequest, then protocol 2", &[ssl(), packet(0x0002_0000, b"user\0app\0\0")]),
        in_turn("SSLRequest, then HTTP", &[ssl(), b"GET / HTTP/1.1\r\n\r\n".to_vec()]),
        Script::bare("StartupMessage behind SSLRequest").send([ssl(), hello()].concat()).byte().whole(),
        Script::bare("StartupMessage behind GSSENCRequest").send([gssenc(), hello()].concat()).byte().whole(),
        Script::bare("SSLRequest behind SSLRequest").send([ssl(), ssl()].concat()).byte().whole(),
        Script::bare("one byte behind SSLRequest").send([ssl(), vec![0]].concat()).byte().whole(),
        Script::bare("7 bytes of an SSLRequest").send(ssl()[..7].to_vec()),
        Script::bare("SSLRequest of 7 bytes").send(b"\0\0\0\x07\x04\xd2\x16".to_vec()),
        Script::bare("SSLRequest with a body").send(packet(SSL_REQUEST, b"more")),
        Script::bare("GSSENCRequest with a body").send(packet(GSSENC_REQUEST, b"more")),
    ]
}

fn versions(names: &Names) -> Vec<Script> {
    let pairs = |more: &[u8]| {
        let named =
            [b"user\0".to_vec(), string(&names.user), b"database\0".to_vec(), string(&names.database)];
        [&named.concat()[..], more, b"\0"].concat()
    };
    let asks = |name: &str, version: u32, more: &[u8]| {
        Script::bare(name).send(packet(version, &pairs(more))).ready(1).query("SELECT 1")
    };
    let mut scripts: Vec<_> = [
        ("protocol 0.0", 0),
        ("protocol 0.1", 1),
        ("protocol 1.0", 0x0001_0000),
        ("protocol 2.0", 0x0002_0000),
        ("protocol 2.65535", 0x0002_ffff),
        ("protocol 4.0", 0x0004_0000),
        ("protocol 4.1", 0x0004_0001),
        ("protocol 65535.65535", 0xffff_ffff),
        ("protocol 1234.5677", CANCEL_REQUEST - 1),
        ("protocol 1234.5681", GSSENC_REQUEST + 1),
    ]
    .map(|(name, version)| Script::bare(name).send(packet(version, &pairs(b""))))
    .into();
    scripts.extend([
        Script::bare("protocol 4.0 without parameters").send(packet(0x0004_0000, b"")),
        Script::bare("protocol 2.0 without parameters").send(packet(0x0002_0000, b"")),
        Script::bare("protocol 3.2 without user").send(packet(0x0003_0002, b"\0")),
        Script::bare("protocol 3.9999 without user").send(packet(0x0003_270f, b"_pq_.x\x001\0\0")),
        asks("protocol 3.0", PROTOCOL_3_0, b""),
        asks("protocol 3.1", PROTOCOL_3_0 + 1, b""),
        asks("protocol 3.2", PROTOCOL_3_0 + 2, b""),
        asks("protocol 3.3", PROTOCOL_3_0 + 3, b""),
        asks("protocol 3.9999", 0x0003_270f, b"_pq_.test_protocol_negotiation\x001\0"),
        asks("protocol 3.65535", 0x0003_ffff, b""),
        asks("protocol option at 3.2", PROTOCOL_3_0 + 2, b"_pq_.x\x001\0"),
        asks("protocol option", PROTOCOL_3_0, b"_pq_.x\x001\0"),
        asks("protocol options", PROTOCOL_3_0, b"_pq_.x\x001\0_pq_.y\0\0_pq_.x\x002\0"),
        asks("protocol option without a name", PROTOCOL_3_0, b"_pq_.\x001\0"),
        asks("what is no protocol option", PROTOCOL_3_0, b"_pq_x.y\x001\0"),
        asks("upper-case protocol option", PROTOCOL_3_0, b"_PQ_.x\x001\0"),
        Script::bare("protocol option and an unknown parameter")
            .send(packet(PROTOCOL_3_0, &pairs(b"_pq_.x\x001\0bogus\x001\0")))
            .ready(1),
        Script::bare("protocol option and no such database")
            .send(packet(PROTOCOL_3_0, &pairs(b"_pq_.x\x001\0database\0nowhere\0")))
            .ready(1),
    ]);
    scripts
}

/// What is sent behind a StartupMessage before its answer has come.
fn early(names: &Names) -> Vec<Script> {
    let hello = || names.startup(&[]);
    let behind = |name: &str, sent: Vec<u8>| Script::bare(name).send([hello(), sent].concat());
    vec![
        behind("Query behind StartupMessage", query("SELECT 1")).ready(2),
        behind("two of them", [query("SELECT 1"), query("SELECT 2")].concat()).ready(3),
        behind("Query and Terminate behind StartupMessage", [query("SELECT 1"), terminate()].concat()).end(),
        behind("Terminate behind StartupMessage", terminate()).end(),
        behind("half a Query behind StartupMessage", query("SELECT 1")[..7].to_vec()).ready(1),
        behind("StartupMessage twice", hello()).end(),
        behind("SSLRequest behind StartupMessage", packet(SSL_REQUEST, b"")).end(),
        behind("password behind StartupMessage", b"p\0\0\0\x0bsecret\0".to_vec()).end(),
        behind("unknown tag behind StartupMessage", b"z\0\0\0\x04".to_vec()).end(),
        behind("9,000 bytes behind StartupMessage", query([&b"SELECT 1 --"[..], &[b'x'; 9_000]].concat()))
            .ready(2),
    ]
}
