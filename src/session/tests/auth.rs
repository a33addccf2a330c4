//! Clients that have to prove who they are.

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use tempfile::TempDir;

use super::*;
use crate::config::{AuthConfig, DrainConfig};
use crate::wire::verifier::tests::verifier_of;

const ASKED: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";

/// A proxy that knows the password `secret` of `app`.
fn asking(upstream_port: u16, max_sessions: usize) -> (Proxy, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    std::fs::write(&file, format!("\"app\" \"{}\"\n", verifier_of("secret", 2, b"salt"))).unwrap();
    let auth = Auth::load(&AuthConfig::Password { file }).unwrap();
    (proxy_with(auth, upstream_port, max_sessions), dir)
}

/// One message and the code behind its length word.
async fn request(client: &mut DuplexStream) -> (u32, Vec<u8>) {
    assert_eq!(client.read_u8().await.unwrap(), b'R');
    let len = client.read_u32().await.unwrap() as usize;
    let code = client.read_u32().await.unwrap();
    let mut data = vec![0; len - 8];
    client.read_exact(&mut data).await.unwrap();
    (code, data)
}

/// Says who it is and all but its last message, which comes back.
async fn up_to_the_proof(client: &mut DuplexStream, password: &str) -> (ScramSha256, BytesMut) {
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    client.write_all(&startup()).await.unwrap();
    expect(client, ASKED).await;
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).unwrap();
    client.write_all(&out).await.unwrap();
    let (code, server_first) = request(client).await;
    assert_eq!(code, 11);
    scram.update(&server_first).unwrap();
    out.clear();
    frontend::sasl_response(scram.message(), &mut out).unwrap();
    (scram, out)
}

async fn rest(client: &mut DuplexStream) -> Vec<u8> {
    let mut told = Vec::new();
    client.read_to_end(&mut told).await.unwrap();
    told
}

#[tokio::test]
async fn proof_of_both_sides_and_greeting_are_one_write() {
    let server = Server::bind().await;
    let (proxy, _dir) = asking(server.port(), 1);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let client_side = async {
        let (mut scram, proof) = up_to_the_proof(&mut client, "secret").await;
        client.write_all(&[&proof[..], QUERY].concat()).await.unwrap();
        let mut told = BytesMut::with_capacity(64 * 1024);
        client.read_buf(&mut told).await.unwrap();
        assert!(told.ends_with(READY), "{}", told.escape_ascii());
        let final_len = 1 + u32::from_be_bytes(told[1..5].try_into().unwrap()) as usize;
        let (last, greeting) = told.split_at(final_len);
        scram.finish(&last[9..]).unwrap();
        assert!(greeting.starts_with(AUTHENTICATION_OK));
        expect(&mut client, READY).await;
        drop(client);
    };
    let server_side = async {
        let mut stream = server.let_in().await;
        // What came behind the proof is upstream's.
        expect(&mut stream, QUERY).await;
        stream.write_all(READY).await.unwrap();
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);
}

#[tokio::test]
async fn way_to_upstream_is_made_while_the_client_proves_who_it_is() {
    let server = Server::bind().await;
    let (proxy, _dir) = asking(server.port(), 1);
    let _issued = proxy.promote(1);
    for (password, is_right) in [("secret", true), ("wrong", false)] {
        let (session, mut client) = proxy.connect();
        let (is_there, may_prove) = tokio::sync::oneshot::channel();
        let client_side = async {
            let (_scram, proof) = up_to_the_proof(&mut client, password).await;
            may_prove.await.unwrap();
            client.write_all(&proof).await.unwrap();
            if is_right {
                assert_eq!(request(&mut client).await.0, 12);
                read_greeting(&mut client).await;
                drop(client);
            } else {
                assert_eq!(code(&rest(&mut client).await), "28P01");
            }
        };
        let server_side = async {
            let (mut stream, _) = server.0.accept().await.unwrap();
            is_there.send(()).unwrap();
            if is_right {
                read_packet(&mut stream).await;
                greet(&mut stream).await;
            }
            // Who has not proven who it is has had nothing said there.
            expect_end(&mut stream).await;
        };
        tokio::join!(session, client_side, server_side);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_keeps_no_seat_from_others_and_may_lose_his_place() {
    let (proxy, _dir) = asking(1, 1);
    for sent in [&b""[..], b"p", b"p\0\0\x01\0SCRAM"] {
        let (session, mut client) = proxy.connect();
        let talk = async {
            client.write_all(&startup()).await.unwrap();
            expect(&mut client, ASKED).await;
            client.write_all(sent).await.unwrap();
            time::sleep(Duration::from_secs(1)).await;
            assert!(proxy.shared.seats().take().is_some());
            proxy.shared.places().clear();
            assert_eq!(rest(&mut client).await, b"");
        };
        tokio::join!(session, talk);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_and_says_nothing_is_left_after_a_minute_without_a_word() {
    let (proxy, _dir) = asking(1, 1);
    let (session, mut client) = proxy.connect();
    let began = Instant::now();
    let drip = async {
        let (_scram, proof) = up_to_the_proof(&mut client, "secret").await;
        for byte in proof {
            time::sleep(Duration::from_secs(1)).await;
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        assert_eq!(rest(&mut client).await, b"");
    };
    tokio::join!(session, drip);
    // The client notices when it says the next byte.
    assert!((60..=61).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn client_that_goes_away_while_it_is_asked_is_not_an_error() {
    let (proxy, _dir) = asking(1, 1);
    let (session, mut client) = proxy.connect();
    tokio::join!(session, async {
        client.write_all(&startup()).await.unwrap();
        expect(&mut client, ASKED).await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, b"");
    });
    assert!(!proxy.ended("auth"));
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_when_a_drain_begins_is_told_when_no_session_begins_any_more() {
    let (proxy, _dir) = asking(1, 1);
    let [accept_for, deadline] = [5, 20].map(Duration::from_secs);
    let (session, mut client) = proxy.connect();
    let talk = async {
        let (_scram, _proof) = up_to_the_proof(&mut client, "secret").await;
        let began = Instant::now();
        proxy.drain.begin(DrainConfig { accept_for, grace: deadline, deadline, strict_exit: false }, began);
        assert_eq!(code(&rest(&mut client).await), "57P03");
        assert_eq!(began.elapsed(), accept_for);
        drop(client);
    };
    tokio::join!(session, talk);
    // One that comes later is not even asked.
    assert_eq!(code(&proxy.told(&startup()).await), "57P03");
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_at_the_cut_is_told() {
    let (proxy, _dir) = asking(1, 1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        let (_scram, _proof) = up_to_the_proof(&mut client, "secret").await;
        proxy.drain.cut();
        assert_eq!(code(&rest(&mut client).await), "57P03");
        drop(client);
    };
    tokio::join!(session, talk);
}

#[tokio::test(start_paused = true)]
async fn seat_that_went_while_the_client_was_asked_is_told_of_behind_our_proof() {
    let (proxy, _dir) = asking(1, 1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        let (mut scram, proof) = up_to_the_proof(&mut client, "secret").await;
        let _seat = proxy.shared.seats().take().unwrap();
        client.write_all(&proof).await.unwrap();
        let (code_of_request, last) = request(&mut client).await;
        assert_eq!(code_of_request, 12);
        scram.finish(&last).unwrap();
        assert_eq!(code(&rest(&mut client).await), "53300");
        drop(client);
    };
    tokio::join!(session, talk);
    assert!(proxy.ended("max_sessions"));
}

#[tokio::test(start_paused = true)]
async fn connect_wait_begins_with_the_proof() {
    let (proxy, _dir) = asking(1, 1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        let (_scram, proof) = up_to_the_proof(&mut client, "secret").await;
        time::sleep(Duration::from_secs(30)).await;
        let proven = Instant::now();
        client.write_all(&proof).await.unwrap();
        assert_eq!(request(&mut client).await.0, 12);
        // There is no credential.
        assert_eq!(code(&rest(&mut client).await), "57P03");
        assert_eq!(proven.elapsed(), Duration::from_secs(10));
        drop(client);
    };
    tokio::join!(session, talk);
}

#[tokio::test(start_paused = true)]
async fn wrong_password_is_refused_without_our_proof() {
    let (proxy, _dir) = asking(1, 1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        let (_scram, proof) = up_to_the_proof(&mut client, "Secret").await;
        client.write_all(&proof).await.unwrap();
        assert_eq!(code(&rest(&mut client).await), "28P01");
        drop(client);
    };
    tokio::join!(session, talk);
    assert!(proxy.ended("auth"));
    assert!(proxy.shared.seats().take().is_some());
}

#[tokio::test(start_paused = true)]
async fn peer_of_a_socket_is_let_in_by_the_kernels_word_alone() {
    let proxy = proxy_with(Auth::load(&AuthConfig::Peer { uids: vec![1000] }).unwrap(), 1, 1);
    // Who is let in waits for a credential, which there is none of.
    for (peer, expected) in
        [(Peer::Unix { uid: 1000 }, "57P03"), (Peer::Unix { uid: 0 }, "28000"), (SOMEBODY, "28000")]
    {
        let (client, mut far_client) = duplex(1024);
        let place = proxy.shared.places().take();
        let session = run(ClientStream::Plain(client), peer, place, Arc::clone(&proxy.shared));
        let talk = async {
            far_client.write_all(&startup()).await.unwrap();
            assert_eq!(code(&rest(&mut far_client).await), expected, "{peer:?}");
            drop(far_client);
        };
        tokio::join!(session, talk);
    }
}
