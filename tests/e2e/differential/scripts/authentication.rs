//! SCRAM, asked for by both: the answers of who knows the password, of who does not, and of nobody.

use crate::differential::say::{message, query, string, terminate};
use crate::differential::script::{Names, Script};

/// Of the user whom both know.
pub(in crate::differential) const PASSWORD: &str = "a secret of both";

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = whole(names);
    scripts.extend(first(names));
    scripts.extend(last(names));
    scripts
}

fn whole(names: &Names) -> Vec<Script> {
    let asked = |name: &str| Script::asked(name, names);
    let nobody = Names { user: "nobody_such".to_owned(), ..names.clone() };
    let postgres = Names { user: "pg_monitor".to_owned(), ..names.clone() };
    vec![
        asked("right password").prove(PASSWORD).ready(1).query("SELECT 1"),
        asked("wrong password").prove("another secret").end(),
        asked("empty password").prove("").end(),
        asked("password with other letters").prove("A secret of both").end(),
        Script::asked("unknown user", &nobody).prove(PASSWORD).end(),
        Script::asked("user without a password", &postgres).prove(PASSWORD).end(),
        asked("nothing"),
        asked("Terminate").send(terminate()),
        asked("Query instead").send(query("SELECT 1")),
        asked("Query behind the proof").prove(PASSWORD).send(query("SELECT 1")).ready(2),
        asked("refused behind the proof").prove(PASSWORD).ready(1).query("BOGUS"),
        Script::bare("bad parameter behind the proof")
            .send(names.startup(&[("bogus", "1")]))
            .read(1)
            .answers()
            .prove(PASSWORD)
            .end(),
        Script::bare("no such database behind the proof")
            .send(names.startup(&[("database", "nowhere")]))
            .read(1)
            .answers()
            .prove(PASSWORD)
            .end(),
        Script::bare("unknown database and wrong password")
            .send(names.startup(&[("database", "nowhere")]))
            .read(1)
            .answers()
            .prove("wrong")
            .end(),
        Script::bare("protocol option and proof")
            .send(names.startup(&[("_pq_.x", "1")]))
            .read(2)
            .answers()
            .prove(PASSWORD)
            .ready(1),
        Script::bare("Query behind the StartupMessage")
            .send([names.startup(&[]), query("SELECT 1")].concat())
            .answers(),
    ]
}

/// A `SASLInitialResponse`.
fn response(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_be_bytes();
    message(b'p', &[&string(mechanism)[..], &len, data].concat())
}

fn first(names: &Names) -> Vec<Script> {
    let scram = |data: &[u8]| response("SCRAM-SHA-256", data);
    let bare = |len: &[u8], data: &[u8]| message(b'p', &[&b"SCRAM-SHA-256\0"[..], len, data].concat());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty message", message(b'p', b"")),
        ("cleartext password", message(b'p', &string(PASSWORD))),
        ("md5 password", message(b'p', b"md50123456789abcdef0123456789abcdef\0")),
        ("name without its end", message(b'p', b"SCRAM-SHA-256")),
        ("name and nothing", message(b'p', b"SCRAM-SHA-256\0")),
        ("name and half a length", message(b'p', b"SCRAM-SHA-256\0\0\0")),
        ("unknown mechanism", response("SCRAM-SHA-512", b"n,,n=,r=abc")),
        ("empty mechanism", response("", b"n,,n=,r=abc")),
        ("mechanism in lower case", response("scram-sha-256", b"n,,n=,r=abc")),
        ("PLUS that was not offered", response("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc")),
        ("length -1", bare(&[255; 4], b"")),
        ("length -1 and data", bare(&[255; 4], b"n,,n=,r=abc")),
        ("length -2", bare(&[255, 255, 255, 254], b"n,,n=,r=abc")),
        ("length beyond the end", bare(&[0, 0, 0, 99], b"n,,n=,r=abc")),
        ("length before the end", bare(&[0, 0, 0, 3], b"n,,n=,r=abc")),
        ("length 0", bare(&[0; 4], b"")),
        ("no data", scram(b"")),
        ("zero byte", scram(b"n,,n=,r=a\0c")),
        ("zero byte at the end", scram(b"n,,n=,r=abc\0")),
        ("no header", scram(b"n=,r=abc")),
        ("flag y", scram(b"y,,n=,r=abc")),
        ("flag p", scram(b"p=tls-server-end-point,,n=,r=abc")),
        ("flag p of another type", scram(b"p=tls-unique,,n=,r=abc")),
        ("unknown flag", scram(b"x,,n=,r=abc")),
        ("flag N", scram(b"N,,n=,r=abc")),
        ("flag without a comma", scram(b"nn,,n=,r=abc")),
        ("authorization identity", scram(b"n,a=somebody,n=,r=abc")),
        ("something else for it", scram(b"n,x=somebody,n=,r=abc")),
        ("extension", scram(b"n,,m=ext,n=,r=abc")),
        ("extension behind the nonce", scram(b"n,,n=,r=abc,m=ext,x=1")),
        ("bad attribute behind the nonce", scram(b"n,,n=,r=abc,=1")),
        ("user name of its own", scram(b"n,,n=somebody,r=abc")),
        ("escaped user name", scram(b"n,,n=a=2Cb=3Dc,r=abc")),
        ("no user name", scram(b"n,,r=abc")),
        ("no nonce", scram(b"n,,n=")),
        ("empty nonce", scram(b"n,,n=,r=")),
        ("nonce that is not printable", scram(b"n,,n=,r=a\x01c")),
        ("nonce with a space", scram(b"n,,n=,r=a c")),
        ("nonce that is no ASCII", scram("n,,n=,r=ä".as_bytes())),
        ("attributes the other way round", scram(b"n,,r=abc,n=")),
        ("trailing comma", scram(b"n,,n=,r=abc,")),
        ("attribute of two letters", scram(b"n,,nn=,r=abc")),
        ("attribute without a value", scram(b"n,,n,r=abc")),
        ("long nonce", scram(&[&b"n,,n=,r="[..], &[b'x'; 900]].concat())),
        ("1,024 bytes", scram(&[&b"n,,n=,r="[..], &[b'x'; 998]].concat())),
        ("70,000 bytes", scram(&vec![b'x'; 70_000])),
        ("2 GiB", b"p\x7f\xff\xff\xffSCRAM".to_vec()),
        ("length 3 of the message", b"p\0\0\0\x03".to_vec()),
        ("length -1 of the message", b"p\xff\xff\xff\xff".to_vec()),
        ("another message", message(b'd', b"n,,n=,r=abc")),
        ("a message of its own kind", message(b'z', b"")),
        ("zeros", vec![0; 32]),
        ("half a message", scram(b"n,,n=,r=abc")[..20].to_vec()),
        ("half a header", b"p\0\0".to_vec()),
        ("StartupMessage again", names.startup(&[])),
        ("two answers at once", scram(b"n,,n=,r=abc").repeat(2)),
    ];
    cases
        .into_iter()
        .map(|(name, sent)| Script::asked(format!("first: {name}"), names).send(sent).one_of_many())
        .collect()
}

/// Behind a first message that is as it should be.
fn last(names: &Names) -> Vec<Script> {
    let proof = "A".repeat(43) + "=";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("empty", message(b'p', b"")),
        ("another message", query("SELECT 1")),
        ("Terminate", terminate()),
        ("zero byte", message(b'p', b"c=biws,r=a\0c,p=AAAA")),
        ("no binding", message(b'p', b"r=abc,p=AAAA")),
        ("another binding", message(b'p', format!("c=eSws,r=abc,p={proof}").as_bytes())),
        ("bad base64 of the binding", message(b'p', format!("c=!!!!,r=abc,p={proof}").as_bytes())),
        ("nonce of the client alone", message(b'p', format!("c=biws,r=abc,p={proof}").as_bytes())),
        ("empty nonce", message(b'p', format!("c=biws,r=,p={proof}").as_bytes())),
        ("no nonce", message(b'p', format!("c=biws,p={proof}").as_bytes())),
        ("no proof", message(b'p', b"c=biws,r=abc")),
        ("empty proof", message(b'p', b"c=biws,r=abc,p=")),
        ("short proof", message(b'p', b"c=biws,r=abc,p=AAAA")),
        ("long proof", message(b'p', format!("c=biws,r=abc,p=AAAA{proof}").as_bytes())),
        ("proof that is no base64", message(b'p', format!("c=biws,r=abc,p={}", "!".repeat(44)).as_bytes())),
        ("bytes behind the proof", message(b'p', format!("c=biws,r=abc,p={proof},x=1").as_bytes())),
        ("extension before the proof", message(b'p', format!("c=biws,r=abc,x=1,p={proof}").as_bytes())),
        ("bad extension before the proof", message(b'p', format!("c=biws,r=abc,11,p={proof}").as_bytes())),
        ("70,000 bytes", message(b'p', &vec![b'x'; 70_000])),
        ("half", message(b'p', b"c=biws,r=abc")[..8].to_vec()),
        ("initial response again", response("SCRAM-SHA-256", b"n,,n=,r=abc")),
    ];
    let cases = cases.into_iter().map(|(name, sent)| {
        Script::asked(format!("last: {name}"), names)
            .send(response("SCRAM-SHA-256", b"n,,n=,r=abc"))
            .read(1)
            .send(sent)
            .one_of_many()
    });
    // The first message may come on its own, asked for.
    let asked = Script::asked("first message on its own", names)
        .send(message(b'p', &[&b"SCRAM-SHA-256\0"[..], &[255; 4]].concat()))
        .read(1)
        .send(message(b'p', b"n,,n=,r=abc"))
        .read(1)
        .send(message(b'p', format!("c=biws,r=abc,p={proof}").as_bytes()));
    cases.chain([asked]).collect()
}
