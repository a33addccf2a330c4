//! Upstreams that say what no server says: the client is told in its own words or not at all, and nobody else
//! notices.

use socket2::SockRef;

use super::*;

/// What an upstream does behind its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Close,
    Reset,
}

/// What the client has to be told.
enum Told {
    /// An ErrorResponse of ours with this code.
    Ours(&'static str),
    /// These bytes, and then the end.
    Bytes(Vec<u8>),
    /// These bytes behind upstream's pid and a secret of ours, and then the end.
    Refused(Vec<u8>),
    /// A session that begins, with these bytes behind upstream's pid and our secret, and then the end.
    Session(Vec<u8>),
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
}

/// In answer to the StartupMessage.
fn logins() -> Vec<(&'static str, Vec<u8>, Told)> {
    let ok = AUTHENTICATION_OK;
    let after_ok = |bytes: &[u8]| [ok, STATUS, bytes].concat();
    let after_key = |bytes: &[u8]| [ok, STATUS, KEY, bytes].concat();
    let lost = || Told::Ours("08001");
    let error = message(b'E', b"SFATAL\0Mno code at all\0\0");
    let cut = |mut bytes: Vec<u8>| {
        bytes.pop();
        bytes
    };
    vec![
        ("nothing", Vec::new(), lost()),
        ("half a header", b"R\0\0".to_vec(), lost()),
        ("half a request", cut(ok.to_vec()), lost()),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), lost()),
        ("TLS alert", b"\x15\x03\x01\0\x02\x02\x28".to_vec(), lost()),
        ("length 3", b"R\0\0\0\x03".to_vec(), lost()),
        ("length -1", b"R\xff\xff\xff\xff".to_vec(), lost()),
        ("1 GiB of a request", b"R\x40\0\0\0".to_vec(), lost()),
        ("request of 65 KiB", message(b'R', &[0; 65 * 1024]), lost()),
        ("request without a kind", message(b'R', b"\0\0"), lost()),
        ("row before authentication", message(b'D', b"\0\0"), lost()),
        ("ReadyForQuery before authentication", READY.to_vec(), lost()),
        ("error without SQLSTATE", error.clone(), Told::Bytes(error.clone())),
        ("error without fields", message(b'E', b"\0"), Told::Bytes(message(b'E', b"\0"))),
        ("error without anything", message(b'E', b""), Told::Bytes(message(b'E', b""))),
        ("error with half a field", message(b'E', b"Sno end"), Told::Bytes(message(b'E', b"Sno end"))),
        ("half an error", cut(error.clone()), lost()),
        ("end behind AuthenticationOk", ok.to_vec(), lost()),
        ("AuthenticationOk twice", after_ok(ok), lost()),
        ("garbage behind AuthenticationOk", after_ok(b"\0\0\0\0\0\0\0\0"), lost()),
        ("length 0 behind AuthenticationOk", after_ok(b"S\0\0\0\0"), lost()),
        ("2 GiB of a ParameterStatus", after_ok(b"S\x7f\xff\xff\xff"), lost()),
        ("ParameterStatus of 2 MiB", after_ok(&message(b'S', &[b'x'; 2 << 20])), lost()),
        ("many a ParameterStatus", after_ok(&message(b'S', &[b'x'; 60_000]).repeat(20)), lost()),
        ("row in the greeting", after_ok(&message(b'D', b"\0\0")), lost()),
        ("key without a secret", after_ok(b"K\0\0\0\x08\0\0\0\x01"), lost()),
        ("key of 257 bytes", after_ok(&message(b'K', &[7; 261])), lost()),
        ("key without a pid", after_ok(&message(b'K', b"\0\0")), lost()),
        ("two keys", after_key(KEY), lost()),
        ("half a ReadyForQuery", after_key(&READY[..4]), lost()),
        ("end behind the key", after_key(b""), lost()),
        ("error behind the key", after_key(&error), Told::Refused(error.clone())),
        ("error without SQLSTATE behind AuthenticationOk", after_ok(&error), Told::Bytes(after_ok(&error))),
        ("ReadyForQuery twice", after_key(&READY.repeat(2)), Told::Session(READY.repeat(2))),
        (
            "ReadyForQuery of 9 bytes",
            after_key(b"Z\0\0\0\x08IIII"),
            Told::Session(b"Z\0\0\0\x08IIII".to_vec()),
        ),
    ]
}

/// In a session, in answer to a statement.
fn answers() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", Vec::new()),
        ("half a header", b"D\0\0".to_vec()),
        ("half a row", b"D\0\0\0\x20\0\x01".to_vec()),
        ("2 GiB of a row", b"D\x7f\xff\xff\xff\0\x01".to_vec()),
        ("length -1", b"D\xff\xff\xff\xff\0\x01".to_vec()),
        ("length 0", b"D\0\0\0\0\0\x01".to_vec()),
        ("tag 0", b"\0\0\0\0\x04".to_vec()),
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("ReadyForQuery twice", READY.repeat(2)),
        ("ReadyForQuery of nothing", message(b'Z', b"")),
        ("ReadyForQuery of an unknown kind", message(b'Z', b"?")),
        ("error without SQLSTATE", message(b'E', b"SERROR\0Mno code\0\0")),
        ("error without anything", message(b'E', b"")),
        ("error with half a field", message(b'E', b"SFATAL\0C57P01")),
        ("second greeting", [AUTHENTICATION_OK, STATUS, KEY, READY].concat()),
        ("request for a password", message(b'R', b"\0\0\0\x03")),
        (
            "COPY of everything",
            [message(b'W', b"\0\0\0"), message(b'G', b"\0\0\0"), message(b'c', b"")].concat(),
        ),
    ]
}

async fn say(mut upstream: TcpStream, words: &[u8], then: Then) {
    upstream.write_all(words).await.unwrap();
    match then {
        // What is still unread would make a reset of it.
        Then::Close => {
            upstream.shutdown().await.unwrap();
            let _ = upstream.read_to_end(&mut Vec::new()).await;
        }
        Then::Reset => SockRef::from(&upstream).set_linger(Some(Duration::ZERO)).unwrap(),
    }
}

/// A session that goes on beside those of bad upstreams.
struct Bystander {
    client: DuplexStream,
    upstream: TcpStream,
}

impl Bystander {
    async fn ask(&mut self) {
        self.client.write_all(QUERY).await.unwrap();
        expect(&mut self.upstream, QUERY).await;
        self.upstream.write_all(READY).await.unwrap();
        expect(&mut self.client, READY).await;
    }
}

/// Runs `script` with a proxy, its upstream and a bystander.
async fn beside(script: impl AsyncFnOnce(&Proxy, &Server, &mut Bystander)) {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let script = async {
        client.write_all(&startup()).await.unwrap();
        let upstream = server.let_in().await;
        read_greeting(&mut client).await;
        let mut bystander = Bystander { client, upstream };
        script(&proxy, &server, &mut bystander).await;
        let Bystander { client, mut upstream } = bystander;
        drop(client);
        expect_end(&mut upstream).await;
    };
    time::timeout(Duration::from_mins(1), async { tokio::join!(session, script) }).await.unwrap();
    assert_eq!(*issued.holds().borrow(), 0);
    let text = proxy.shared.metrics.encode().unwrap();
    assert!(!text.contains("reason=\"panic\""), "{text}");
}

/// What comes behind a secret that is not upstream's.
fn behind_key<'a>(told: &'a [u8], name: &str) -> &'a [u8] {
    let greeting = [AUTHENTICATION_OK, STATUS, &KEY[..9]].concat();
    let rest = told.strip_prefix(&greeting[..]).and_then(|told| told.split_at_checked(4));
    let (secret, rest) = rest.unwrap_or_else(|| panic!("{name}: {}", told.escape_ascii()));
    assert_ne!(secret, &KEY[9..], "{name}");
    rest
}

#[tokio::test]
async fn what_no_server_says_in_a_login_is_told_as_an_error_and_disturbs_nobody() {
    beside(async |proxy, server, bystander| {
        for (name, words, expected) in logins() {
            let startup = startup();
            let upstream = async {
                let (stream, _) = server.accept().await;
                say(stream, &words, Then::Close).await;
            };
            let (told, ()) = tokio::join!(proxy.told(&startup), upstream);
            match expected {
                Told::Ours(expected) => assert_eq!(code(&told), expected, "{name}"),
                Told::Bytes(bytes) => assert_eq!(told, bytes, "{name}: {}", told.escape_ascii()),
                Told::Refused(bytes) => assert_eq!(behind_key(&told, name), bytes, "{name}"),
                Told::Session(bytes) => {
                    let rest = behind_key(&told, name);
                    // Behind it there is room for a word of ours: that upstream is lost.
                    let rest = rest.strip_prefix(&bytes[..]).unwrap_or_else(|| panic!("{name}"));
                    assert_eq!(code(rest), "08006", "{name}");
                }
            }
            bystander.ask().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_no_server_says_in_a_session_reaches_its_client_as_it_came_and_disturbs_nobody() {
    beside(async |proxy, server, bystander| {
        for (name, words) in answers() {
            for then in [Then::Close, Then::Reset] {
                let (session, mut client) = proxy.connect();
                let client_side = async {
                    client.write_all(&startup()).await.unwrap();
                    read_greeting(&mut client).await;
                    client.write_all(QUERY).await.unwrap();
                    let mut told = Vec::new();
                    client.read_to_end(&mut told).await.unwrap();
                    drop(client);
                    told
                };
                let upstream = async {
                    let mut stream = server.let_in().await;
                    expect(&mut stream, QUERY).await;
                    say(stream, &words, then).await;
                };
                let ((), told, ()) = tokio::join!(session, client_side, upstream);
                if then == Then::Reset {
                    // The kernel throws away what was on its way; what did come came as it was.
                    assert!(words.starts_with(&told) || told.starts_with(&words), "{name}");
                } else {
                    let rest = told.strip_prefix(&words[..]);
                    let rest = rest.unwrap_or_else(|| panic!("{name}: {}", told.escape_ascii()));
                    assert!(rest.is_empty() || code(rest) == "08006", "{name}: {}", rest.escape_ascii());
                }
                bystander.ask().await;
            }
        }
    })
    .await;
}
