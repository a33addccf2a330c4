//! Sessions from accept to close.

use super::*;
use crate::credential::{Revocation, Standing, Suspicion};
use crate::net::ClientSocket;

#[tokio::test]
async fn session_goes_from_accept_to_close() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();

    let client_side = async {
        client.write_all(&startup()).await.unwrap();
        let secret = read_greeting(&mut client).await;
        assert_ne!(secret, KEY[9..], "the secret is our own");
        assert_eq!(*issued.holds().borrow(), 1);
        client.write_all(QUERY).await.unwrap();
        expect(&mut client, READY).await;
        client.write_all(TERMINATE).await.unwrap();
        client.shutdown().await.unwrap();
        expect_end(&mut client).await;
    };
    let server_side = async {
        let (mut stream, first) = server.accept().await;
        let text = first.escape_ascii().to_string();
        for pair in ["user\\x00v-1\\x00", "database\\x00wizard\\x00", "role\\x00app_owner\\x00"] {
            assert!(text.contains(pair), "{text}");
        }
        greet(&mut stream).await;
        expect(&mut stream, QUERY).await;
        stream.write_all(READY).await.unwrap();
        expect(&mut stream, TERMINATE).await;
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);

    assert_eq!(*issued.holds().borrow(), 0);
    assert!(proxy.shared.seats().take().is_some());
    assert!(proxy.ended("client_closed"));
    let text = proxy.shared.metrics.encode().unwrap();
    assert!(text.contains("pglease_bytes_total{direction=\"frontend\"} 12\n"), "{text}");
}

/// Nine thousand idle sessions are nine thousand of these.
#[tokio::test]
async fn task_of_a_session_stays_small() {
    let (server, proxy) = (Server::bind().await, proxy(1, 1));
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).await.unwrap();
    let session = run(
        ClientStream::Plain(ClientSocket::Tcp(client)),
        SOMEBODY,
        proxy.shared.places().take(),
        Arc::clone(&proxy.shared),
    );
    assert!(size_of_val(&session) <= 64, "{} bytes", size_of_val(&session));
}

#[tokio::test]
async fn newer_protocol_is_negotiated_before_anything_else() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let client_side = async {
        client.write_all(&packet(0x0003_270f, b"user\0a\0database\0wizard\0_pq_.x\x001\0\0")).await.unwrap();
        expect(&mut client, b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0").await;
        // Upstream speaks 3.0, and its secret has 4 bytes: ours is as the client's version has it.
        expect(&mut client, &[AUTHENTICATION_OK, STATUS, b"K\0\0\0\x28", &KEY[5..9]].concat()).await;
        client.read_exact(&mut [0; 32]).await.unwrap();
        expect(&mut client, READY).await;
        drop(client);
    };
    let server_side = async {
        let (mut stream, first) = server.accept().await;
        assert!(!first.escape_ascii().to_string().contains("_pq_"));
        assert_eq!(first[4..8], 0x0003_0000_u32.to_be_bytes());
        greet(&mut stream).await;
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);
}

#[tokio::test]
async fn rejected_credential_is_replaced_and_tried_once_more() {
    let server = Server::bind().await;
    let mut proxy = proxy(server.port(), 10);
    let first = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let shared = Arc::clone(&proxy.shared);

    let client_side = async {
        client.write_all(&startup()).await.unwrap();
        read_greeting(&mut client).await;
        drop(client);
    };
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        stream.write_all(b"E\0\0\0\x13SFATAL\0C28P01\0\0").await.unwrap();
        drop(stream);
        assert_eq!(proxy.publisher.suspicion().await, Some(Suspicion::Rejected(GenerationId(1))));
        assert_eq!((*first.holds().borrow(), shared.metrics.clients_waiting.get()), (0, 1));
        let _second = proxy.promote(2);
        let (mut stream, first) = server.accept().await;
        assert!(first.escape_ascii().to_string().contains("user\\x00v-2\\x00"));
        greet(&mut stream).await;
        expect_end(&mut stream).await;
    };
    tokio::join!(session, client_side, server_side);
    let metrics = &shared.metrics;
    assert_eq!((metrics.upstream_auth_rejects.get(), metrics.clients_waiting.get()), (1, 0));
}

#[tokio::test]
async fn refusal_of_upstream_reaches_the_client_as_it_is() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let refusal = b"E\0\0\0\x1bSFATAL\0C53300\0Mtoo many\0Ffile\0\0";
    let refusal =
        [&b"E"[..], &u32::try_from(refusal.len() - 1).unwrap().to_be_bytes(), &refusal[5..]].concat();
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        stream.write_all(&refusal).await.unwrap();
    };
    let startup = startup();
    let (told, ()) = tokio::join!(proxy.told(&startup), server_side);
    assert_eq!(told, refusal);
    assert!(proxy.ended("refused"));
}

#[tokio::test]
async fn refusal_of_one_let_in_comes_behind_its_greeting_and_doubts_the_credential() {
    let refusal = b"E\0\0\0\x13SFATAL\0C28000\0\0";
    let server = Server::bind().await;
    let mut proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        let said = [AUTHENTICATION_OK, STATUS, KEY, STATUS, refusal].concat();
        stream.write_all(&said).await.unwrap();
    };
    let startup = startup();
    let (told, ()) = tokio::join!(proxy.told(&startup), server_side);
    // The secret is not upstream's.
    let (before, rest) = told.split_at(AUTHENTICATION_OK.len() + STATUS.len());
    assert_eq!(before, [AUTHENTICATION_OK, STATUS].concat());
    let (key, rest) = rest.split_at(KEY.len());
    assert_eq!(key[..9], KEY[..9]);
    assert_ne!(key[9..], KEY[9..]);
    assert_eq!(rest, [STATUS, refusal].concat());
    assert_eq!(proxy.publisher.suspicion().await, Some(Suspicion::Doubted(GenerationId(1))));
    assert_eq!(proxy.shared.metrics.upstream_auth_rejects.get(), 0);
}

#[tokio::test]
async fn refusal_before_anything_was_asked_is_the_clients_to_hear_and_doubts_the_credential() {
    let refusal = b"E\0\0\0\x13SFATAL\0C28000\0\0";
    let server = Server::bind().await;
    let mut proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let server_side = async {
        let (mut stream, _) = server.accept().await;
        stream.write_all(refusal).await.unwrap();
    };
    let startup = startup();
    let (told, ()) = tokio::join!(proxy.told(&startup), server_side);
    assert_eq!(told, refusal);
    assert_eq!(proxy.publisher.suspicion().await, Some(Suspicion::Doubted(GenerationId(1))));
}

#[tokio::test]
async fn lost_upstream_is_told_unless_upstream_said_why_itself() {
    for fatal in [&b""[..], b"E\0\0\0\x13SFATAL\0C57P01\0\0"] {
        let server = Server::bind().await;
        let proxy = proxy(server.port(), 10);
        let _issued = proxy.promote(1);
        let (session, mut client) = proxy.connect();
        let client_side = async {
            client.write_all(&startup()).await.unwrap();
            read_greeting(&mut client).await;
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            drop(client);
            told
        };
        let server_side = async {
            let mut stream = server.let_in().await;
            stream.write_all(fatal).await.unwrap();
        };
        let ((), told, ()) = tokio::join!(session, client_side, server_side);
        assert_eq!(code(&told), if fatal.is_empty() { "08006" } else { "57P01" });
        assert!(fatal.is_empty() || told == fatal);
        assert!(proxy.ended("upstream_closed"));
    }
}

#[tokio::test]
async fn ended_session_tells_client_and_upstream_and_waits_for_upstream() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let client_side = async {
        client.write_all(&startup()).await.unwrap();
        read_greeting(&mut client).await;
        issued.set_standing(Standing::Revoked(Revocation::ByVault));
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert_eq!(code(&told), "57P01");
        drop(client);
    };
    let server_side = async {
        let mut stream = server.let_in().await;
        expect(&mut stream, TERMINATE).await;
        expect_end(&mut stream).await;
        assert_eq!(*issued.holds().borrow(), 1, "held until upstream has ended");
    };
    tokio::join!(session, client_side, server_side);
    assert_eq!(*issued.holds().borrow(), 0);
}
