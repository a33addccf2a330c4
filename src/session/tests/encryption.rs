//! TLS with clients, over pipes in memory.

use std::{fs, io};

use rcgen::generate_simple_self_signed;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::{Ca, ServerCert};
use crate::tls::{self, ALPN, Verify, client_config};
use encryption::ClientTls;

const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
const GSSENC_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x30";
const STRANGER: Peer = Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 50_000));

/// A proxy that does TLS, and the folder of its certificate.
fn encrypting(max_sessions: usize) -> (Proxy, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let files = ServerCert { cert_file: dir.path().join("tls.pem"), key_file: dir.path().join("tls.key") };
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&files.cert_file, made.cert.pem()).unwrap();
    fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
    let proxy = proxy(1, max_sessions);
    let shared = &proxy.shared;
    let tls = ClientTls::load(&files, &shared.metrics).unwrap();
    shared.change(|rules| rules.tls = Some(Arc::new(tls)));
    (proxy, dir)
}

impl Proxy {
    fn connect_from(&self, peer: Peer) -> (impl Future<Output = ()> + use<>, DuplexStream) {
        let (client, far_client) = duplex(64 * 1024);
        let place = self.shared.places().take();
        (run(ClientStream::Plain(client), peer, place, Arc::clone(&self.shared)), far_client)
    }

    fn handshakes(&self, result: &'static str) -> u64 {
        let label = crate::telemetry::ResultLabels { result };
        self.shared.metrics.tls_handshakes.get_or_create(&label).get()
    }
}

/// The client's side of a handshake.
async fn handshake(client: DuplexStream, alpn: &[&[u8]]) -> io::Result<TlsStream<DuplexStream>> {
    let mut config = client_config(&tls::ClientTls::new(Verify::Nothing, &Ca::System)).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, client).await
}

/// What a client is told in TLS to the end, which must be TLS's own.
async fn told_within(mut client: TlsStream<DuplexStream>, sent: &[u8]) -> Vec<u8> {
    client.write_all(sent).await.unwrap();
    client.flush().await.unwrap();
    let mut told = Vec::new();
    client.read_to_end(&mut told).await.expect("a close_notify before the end");
    told
}

/// Sends `sent` in plain, a byte at a time, and says what comes back to the end.
async fn told_plainly(proxy: &Proxy, sent: &[&[u8]]) -> Vec<u8> {
    let (session, mut client) = proxy.connect();
    let talk = async {
        let mut told = Vec::new();
        for (number, part) in sent.iter().enumerate() {
            for byte in *part {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            if number + 1 < sent.len() {
                told.push(client.read_u8().await.unwrap());
            }
        }
        client.read_to_end(&mut told).await.unwrap();
        drop(client);
        told
    };
    tokio::join!(session, talk).1
}

#[tokio::test(start_paused = true)]
async fn tls_begins_by_request_or_at_once_and_ends_with_its_own_word() {
    let (proxy, _dir) = encrypting(1);
    for is_direct in [false, true] {
        for (sent, expected) in [
            (startup(), "57P03"),
            (packet(0x0003_0000, b"user\0app\0\0"), "3D000"),
            (packet(0x0004_0000, b"\0"), "0A000"),
            // A cancel that hits nobody.
            (packet(80_877_102, b"\0\0\0\x07abcd"), ""),
        ] {
            let (session, mut client) = proxy.connect();
            let talk = async {
                if !is_direct {
                    client.write_all(SSL_REQUEST).await.unwrap();
                    assert_eq!(client.read_u8().await.unwrap(), b'S');
                }
                let client = handshake(client, &[ALPN]).await.unwrap();
                assert_eq!(client.get_ref().1.alpn_protocol(), Some(ALPN));
                let told = told_within(client, &sent).await;
                if expected.is_empty() {
                    assert_eq!(told, b"");
                } else {
                    assert_eq!(code(&told), expected);
                }
            };
            tokio::join!(session, talk);
        }
    }
    assert_eq!((proxy.handshakes("ok"), proxy.handshakes("failed")), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn request_for_encryption_within_tls_is_answered_as_by_the_server() {
    let (proxy, _dir) = encrypting(1);
    // After SSLRequest neither kind is to be had any more; to a client that began with TLS both are declined once.
    for (is_direct, request) in
        [(false, SSL_REQUEST), (false, GSSENC_REQUEST), (true, SSL_REQUEST), (true, GSSENC_REQUEST)]
    {
        let (session, mut client) = proxy.connect();
        let talk = async {
            if !is_direct {
                client.write_all(SSL_REQUEST).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'S');
            }
            let mut client = handshake(client, &[ALPN]).await.unwrap();
            if is_direct {
                client.write_all(request).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'N');
            }
            assert_eq!(code(&told_within(client, request).await), "0A000");
        };
        tokio::join!(session, talk);
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_begins_with_tls_must_name_the_protocol() {
    let (proxy, _dir) = encrypting(1);
    // Without a name the handshake is done, as by the server, and the connection closed.
    let (session, client) = proxy.connect();
    let talk = async {
        let client = handshake(client, &[]).await.unwrap();
        assert_eq!(told_within(client, b"").await, b"");
    };
    tokio::join!(session, talk);
    // Another name is refused by an alert, with a request and without.
    for is_direct in [false, true] {
        let (session, mut client) = proxy.connect();
        let talk = async {
            if !is_direct {
                client.write_all(SSL_REQUEST).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'S');
            }
            let refused = handshake(client, &[b"http/1.1"]).await.unwrap_err();
            assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
        };
        tokio::join!(session, talk);
    }
    // With a request none need be named.
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(SSL_REQUEST).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'S');
        let client = handshake(client, &[]).await.unwrap();
        assert_eq!(code(&told_within(client, &startup()).await), "57P03");
    };
    tokio::join!(session, talk);
}

#[tokio::test(start_paused = true)]
async fn client_without_tls_is_served_but_from_another_machine() {
    let (proxy, _dir) = encrypting(1);
    for (peer, expected) in [(SOMEBODY, "57P03"), (Peer::Unix { uid: 0 }, "57P03"), (STRANGER, "28000")] {
        let (session, mut client) = proxy.connect_from(peer);
        let talk = async {
            client.write_all(&startup()).await.unwrap();
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            drop(client);
            assert_eq!(code(&told), expected);
        };
        tokio::join!(session, talk);
    }
    let (session, client) = proxy.connect_from(STRANGER);
    let talk = async {
        let client = handshake(client, &[ALPN]).await.unwrap();
        assert_eq!(code(&told_within(client, &startup()).await), "57P03");
    };
    tokio::join!(session, talk);
    // As in the server there is none over a Unix socket.
    let (session, mut client) = proxy.connect_from(Peer::Unix { uid: 0 });
    let talk = async {
        client.write_all(SSL_REQUEST).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        drop(client);
    };
    tokio::join!(session, talk);
}

#[tokio::test(start_paused = true)]
async fn bad_input_around_the_handshake_gets_an_alert_at_most() {
    let (proxy, _dir) = encrypting(1);
    let hello = {
        let config = client_config(&tls::ClientTls::new(Verify::Nothing, &Ca::System)).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    };
    // A StartupMessage in plain, garbage, an HTTP request, an alert, a record that is too long, a half ClientHello
    // and the end.
    let alert = b"\x15\x03\x01\0\x02\x02\x28";
    let too_long = b"\x16\x03\x01\xff\xff\x01\0\0";
    for sent in [&startup()[..], b"garbage, and more of it", b"GET / HTTP/1.1\r\n\r\n", alert, too_long] {
        let told = told_plainly(&proxy, &[SSL_REQUEST, sent]).await;
        assert_eq!(told[0], b'S');
        assert!(told.len() == 1 || (told[1] == 0x15 && told.len() == 8), "{}", told.escape_ascii());
    }
    for cut in [1, 5, 6, 50, hello.len() - 1] {
        let (session, mut client) = proxy.connect();
        let talk = async {
            client.write_all(&hello[..cut]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            assert_eq!(told, b"", "cut at {cut}");
        };
        tokio::join!(session, talk);
    }
    // The ClientHello may not come with the request: what is behind it could be anybody's.
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&[SSL_REQUEST, &hello].concat()).await.unwrap();
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, b"S");
    };
    tokio::join!(session, talk);
    assert_eq!((proxy.handshakes("ok"), proxy.handshakes("failed")), (0, 10));
    assert!(!proxy.shared.metrics.encode().unwrap().contains("pglease_session_seconds_count"));
}

#[tokio::test(start_paused = true)]
async fn handshake_lies_within_the_limits_of_the_startup() {
    let (proxy, _dir) = encrypting(1);
    // Out of time, then out of its place.
    for is_evicted in [false, true] {
        for sent in [&[SSL_REQUEST][..], &[SSL_REQUEST, b"\x16\x03\x01"], &[b"\x16\x03\x01"]] {
            let (session, mut client) = proxy.connect();
            let began = Instant::now();
            let talk = async {
                for part in sent {
                    client.write_all(part).await.unwrap();
                    if *part == SSL_REQUEST {
                        assert_eq!(client.read_u8().await.unwrap(), b'S');
                    }
                }
                time::sleep(Duration::from_millis(1)).await;
                if is_evicted {
                    proxy.shared.places().clear();
                }
                let mut told = Vec::new();
                client.read_to_end(&mut told).await.unwrap();
                assert_eq!(told, b"");
            };
            tokio::join!(session, talk);
            let limit = if is_evicted { Duration::from_millis(1) } else { Duration::from_secs(10) };
            assert_eq!(began.elapsed(), limit);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn connection_without_tls_here_is_closed_where_it_begins_with_it() {
    let proxy = proxy(1, 1);
    let (session, client) = proxy.connect();
    let (refused, ()) = tokio::join!(handshake(client, &[ALPN]), session);
    assert!(refused.is_err());
}

#[tokio::test]
async fn session_over_tls_is_relayed_and_ends_with_the_word_for_it() {
    let server = Server::bind().await;
    let (_, dir) = encrypting(1);
    let proxy = proxy(server.port(), 1);
    let files = ServerCert { cert_file: dir.path().join("tls.pem"), key_file: dir.path().join("tls.key") };
    let shared = &proxy.shared;
    let tls = ClientTls::load(&files, &shared.metrics).unwrap();
    shared.change(|rules| rules.tls = Some(Arc::new(tls)));
    let _issued = proxy.promote(1);
    // A client that says goodbye, one that only closes, a server that goes.
    for end in ["goodbye", "close", "server"] {
        let (session, client) = proxy.connect();
        let client_side = async {
            let mut client = handshake(client, &[ALPN]).await.unwrap();
            client.write_all(&startup()).await.unwrap();
            expect(&mut client, &[AUTHENTICATION_OK, STATUS, &KEY[..9]].concat()).await;
            client.read_exact(&mut [0; 4]).await.unwrap();
            expect(&mut client, READY).await;
            client.write_all(QUERY).await.unwrap();
            expect(&mut client, READY).await;
            match end {
                "goodbye" => assert_eq!(told_within(client, TERMINATE).await, b""),
                "close" => drop(client),
                _ => assert_eq!(code(&told_within(client, b"").await), "08006"),
            }
        };
        let server_side = async {
            let mut stream = server.let_in().await;
            expect(&mut stream, QUERY).await;
            stream.write_all(READY).await.unwrap();
            if end == "goodbye" {
                expect(&mut stream, TERMINATE).await;
            }
            if end == "close" {
                expect_end(&mut stream).await;
            }
        };
        tokio::join!(session, client_side, server_side);
    }
    let text = proxy.shared.metrics.encode().unwrap();
    assert!(text.contains("pglease_session_seconds_count{reason=\"client_closed\"} 2\n"), "{text}");
}
