//! What clients answer that are asked for a proof, good and malformed.

use crate::raw::startup;

/// A message of the client's.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &len[..], body].concat()
}

/// `SASLInitialResponse` with this data, as long as it is.
pub(super) fn initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    message(b'p', &[mechanism.as_bytes(), b"\0", &len.to_be_bytes(), data].concat())
}

pub(super) const SCRAM: &str = "SCRAM-SHA-256";

/// What a client sends that has been asked for a password, before it closes its side.
pub(super) fn first_answers() -> Vec<(&'static str, Vec<u8>)> {
    let scram = |data: &[u8]| initial(SCRAM, data);
    let good = scram(b"n,,n=,r=theirs");
    let mut long = good.clone();
    long[1..5].copy_from_slice(&1025_u32.to_be_bytes());
    vec![
        ("nothing", Vec::new()),
        ("half a message", good[..20].to_vec()),
        ("half a header", good[..3].to_vec()),
        ("a tag", b"p".to_vec()),
        ("Query", message(b'Q', b"SELECT 1\0")),
        ("Terminate", message(b'X', b"")),
        ("Sync", message(b'S', b"")),
        ("StartupMessage again", startup(&[("user", "app")])),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("tag 0", vec![0; 9]),
        ("tag 255", vec![0xff; 9]),
        ("length 0", b"p\0\0\0\0".to_vec()),
        ("length 3", b"p\0\0\0\x03".to_vec()),
        ("length -1", b"p\xff\xff\xff\xff".to_vec()),
        ("2 GiB", b"p\x7f\xff\xff\xffSCRAM-SHA-256\0".to_vec()),
        ("1,025 bytes", long),
        ("1,024 bytes", scram(&[b"n,,n=,r=", &vec![b'x'; 994][..]].concat())),
        ("empty body", message(b'p', b"")),
        ("a password in clear", message(b'p', b"secret\0")),
        ("mechanism alone", message(b'p', b"SCRAM-SHA-256\0")),
        ("mechanism without its end", message(b'p', b"SCRAM-SHA-256")),
        ("half a length of data", message(b'p', b"SCRAM-SHA-256\0\0\0")),
        ("less data than said", message(b'p', b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=")),
        ("more data than said", message(b'p', b"SCRAM-SHA-256\0\0\0\0\x01n,,n=,r=")),
        ("data of length -2", message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xfen,,")),
        ("no data and some", message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xffn,,")),
        ("no data, then nothing", message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff")),
        (
            "no data, then an empty message",
            [message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"), message(b'p', b"")].concat(),
        ),
        (
            "no data, then garbage",
            [message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"), message(b'p', b"garbage")].concat(),
        ),
        ("empty data", scram(b"")),
        ("no mechanism", initial("", b"n,,n=,r=theirs")),
        ("unknown mechanism", initial("SCRAM-SHA-1", b"n,,n=,r=theirs")),
        ("PLUS without TLS", initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=theirs")),
        ("OAUTHBEARER", initial("OAUTHBEARER", b"n,,\x01auth=\x01\x01")),
        ("zero within", scram(b"n,,n=,r=the\0irs")),
        ("unknown flag", scram(b"x,,n=,r=theirs")),
        ("unprintable flag", scram(b"\xff,,n=,r=theirs")),
        ("flag alone", scram(b"n")),
        ("flag without a comma", scram(b"nn,n=,r=theirs")),
        ("bound without TLS", scram(b"p=tls-server-end-point,,n=,r=theirs")),
        ("authorization identity", scram(b"n,a=admin,n=,r=theirs")),
        ("no authorization identity", scram(b"n,n=,r=theirs")),
        ("mandatory extension", scram(b"n,,m=x,n=,r=theirs")),
        ("no user name", scram(b"n,,r=theirs")),
        ("user name without a value", scram(b"n,,n")),
        ("no nonce", scram(b"n,,n=app")),
        ("another attribute for the nonce", scram(b"n,,n=app,s=theirs")),
        ("nonce with a space", scram(b"n,,n=,r=the irs")),
        ("nonce of another alphabet", scram(b"n,,n=,r=\xc3\xa4")),
        ("extension without a value", scram(b"n,,n=,r=theirs,x")),
        ("extension of no name", scram(b"n,,n=,r=theirs,=x")),
        ("extension of a bad name", scram(b"n,,n=,r=theirs,\x01=x")),
        ("good, then nothing", good.clone()),
        ("good, then half a message", [&good[..], b"p\0\0"].concat()),
        ("good, then Terminate", [&good[..], &message(b'X', b"")].concat()),
        ("good, then Query", [&good[..], &message(b'Q', b"SELECT 1\0")].concat()),
        ("good, then an empty message", [&good[..], &message(b'p', b"")].concat()),
        ("good, then length 0", [&good[..], b"p\0\0\0\0"].concat()),
        ("good, then 1 GiB", [&good[..], b"p\x40\0\0\0"].concat()),
        ("good twice", [good.clone(), good].concat()),
    ]
}

/// What a client sends that has been given salt and nonce, before it closes its side. `NONCE` is both sides', `PROOF`
/// is one for another password.
pub(super) const LAST_ANSWERS: &[&str] = &[
    "",
    "\0",
    "NONCE",
    "r=NONCE,p=PROOF",
    "c",
    "c=biws",
    "c=biws,r=NONCE",
    "c=biws,r=NONCE,x=1",
    "c=biws,r=NONCE,\u{1}=1,p=PROOF",
    "c=biws,r=NONCE,p=",
    "c=biws,r=NONCE,p=AAAA",
    "c=biws,r=NONCE,p=*",
    "c=biws,r=NONCE,p=PROOFPROOF",
    "c=biws,r=NONCE,p=PROOF,x=1",
    "c=biws,r=NONCE,p=PROOF,",
    "c=biws,r=NONCE,x=1,p=PROOF",
    "c=biws,r=NONCE,p=PROOF",
    "c=biws,r=NONCE.,p=PROOF",
    "c=biws,r=theirs,p=PROOF",
    "c=biws,r=,p=PROOF",
    "c=eSws,r=NONCE,p=PROOF",
    "c=,r=NONCE,p=PROOF",
    "c=biws\0,r=NONCE,p=PROOF",
    "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCws,r=NONCE,p=PROOF",
    "c=biws,p=PROOF,r=NONCE",
];
