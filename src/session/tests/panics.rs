//! Bugs of pglease: each ends one session, and its client is told.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use tokio::io::ReadBuf;
use tokio::runtime::{Builder, Handle};

use super::*;
use crate::wire::status;

/// A client at which pglease stumbles: reading the word "bug" makes it panic, and so does the end of some.
struct Stumbling {
    stream: DuplexStream,
    at_end: bool,
}

impl Direct for Stumbling {}

impl AsyncRead for Stumbling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        assert!(!buf.filled()[before..].windows(3).any(|word| word == b"bug"), "as the test wants it");
        read
    }
}

impl AsyncWrite for Stumbling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        assert!(!self.at_end, "as the test wants it");
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The task of such a connection, and the client's end of it.
fn stumbling(proxy: &Proxy, at_end: bool) -> (impl Future<Output = ()> + Send + use<>, DuplexStream) {
    let (stream, far_client) = duplex(1024);
    let client = ClientStream::Plain(Stumbling { stream, at_end });
    (run(client, SOMEBODY, proxy.shared.places().take(), Arc::clone(&proxy.shared)), far_client)
}

/// Nothing is left of any session.
fn is_given_back(proxy: &Proxy, issued: &credential::Issued) -> bool {
    let Proxy { shared, .. } = proxy;
    *issued.holds().borrow() == 0
        && shared.roster().len() + shared.places().len() == 0
        && shared.seats().take().is_some()
}

#[tokio::test]
async fn panic_ends_one_session_and_its_client_is_told() {
    let proxy = proxy(1, 1);
    let (session, mut far_client) = stumbling(&proxy, false);
    let talk = async {
        far_client.write_all(&packet(0x0003_0000, b"user\0bug\0\0")).await.unwrap();
        let mut told = Vec::new();
        far_client.read_to_end(&mut told).await.unwrap();
        drop(far_client);
        told
    };
    let ((), told) = tokio::join!(session, talk);
    assert_eq!(code(&told), "XX000");
    assert!(told.escape_ascii().to_string().contains("under session "));
    assert!(proxy.ended("panic"));
}

#[tokio::test]
async fn panic_in_the_relay_ends_both_sides_in_frame() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let issued = proxy.promote(1);
    let (session, mut far_client) = stumbling(&proxy, false);
    let client_side = async {
        far_client.write_all(&startup()).await.unwrap();
        read_greeting(&mut far_client).await;
        far_client.write_all(b"Q\0\0\0\x08bug\0").await.unwrap();
        let mut told = Vec::new();
        far_client.read_to_end(&mut told).await.unwrap();
        drop(far_client);
        told
    };
    let server_side = async {
        let mut stream = server.let_in().await;
        // What the bug has read is lost, and nothing may follow it.
        expect_end(&mut stream).await;
    };
    let ((), told, ()) = tokio::join!(session, client_side, server_side);
    assert_eq!(code(&told), "XX000");
    assert!(proxy.ended("panic"));
    assert!(is_given_back(&proxy, &issued));
}

#[tokio::test]
async fn panic_at_what_comes_before_the_relay_ends_the_session_as_one_in_the_relay_does() {
    for (bug, is_clients) in [(QUERY, true), (READY, false)] {
        let server = Server::bind().await;
        let proxy = proxy(server.port(), 1);
        let issued = proxy.promote(1);
        status::bug::make(bug);
        let (session, mut client) = proxy.connect();
        let client_side = async {
            client.write_all(&[&startup()[..], QUERY].concat()).await.unwrap();
            read_greeting(&mut client).await;
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            drop(client);
            told
        };
        let server_side = async {
            let mut stream = server.let_in().await;
            let mut told = Vec::new();
            stream.read_to_end(&mut told).await.unwrap();
            told
        };
        let ((), to_client, to_server) = tokio::join!(session, client_side, server_side);
        if is_clients {
            // What the client has said may be there in part: nothing may follow it.
            assert_eq!((code(&to_client), to_server), ("XX000", Vec::new()));
        } else {
            assert_eq!((to_client, &to_server[..]), (Vec::new(), TERMINATE));
        }
        assert!(proxy.ended("panic"));
        assert!(is_given_back(&proxy, &issued));
    }
}

#[tokio::test]
async fn panic_at_the_end_of_a_session_leaves_nothing_of_it() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let issued = proxy.promote(1);
    let (session, mut client) = stumbling(&proxy, true);
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        let (mut upstream, _) = server.accept().await;
        greet(&mut upstream).await;
        read_greeting(&mut client).await;
        client.write_all(TERMINATE).await.unwrap();
        expect(&mut upstream, TERMINATE).await;
        drop(upstream);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    };
    tokio::join!(session, talk);
    // It has ended well for those who count.
    assert!(proxy.ended("client_closed") && !proxy.ended("panic"));
    assert!(is_given_back(&proxy, &issued));
}

#[test]
fn panic_on_another_thread_ends_that_session_and_no_other_on_any() {
    let over = CancellationToken::new();
    let [first, second] = [(); 2].map(|()| Builder::new_current_thread().enable_all().build().unwrap());
    let (sessions, handle, until) = (TaskTracker::new(), second.handle().clone(), over.clone());
    let thread = thread::spawn(move || second.block_on(until.cancelled()));
    first.block_on(async {
        let server = Server::bind().await;
        let proxy = proxy(server.port(), 3);
        let issued = proxy.promote(1);
        let begun = async |mut client: DuplexStream| {
            client.write_all(&startup()).await.unwrap();
            let upstream = server.let_in().await;
            read_greeting(&mut client).await;
            (client, upstream)
        };
        let mut others = Vec::new();
        for runtime in [&handle, &Handle::current()] {
            let (session, client) = proxy.connect();
            sessions.spawn_on(session, runtime);
            others.push(begun(client).await);
        }
        let (session, client) = stumbling(&proxy, false);
        sessions.spawn_on(session, &handle);
        let (mut client, mut upstream) = begun(client).await;
        client.write_all(b"Q\0\0\0\x08bug\0").await.unwrap();
        expect_end(&mut upstream).await;
        drop(upstream);
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        drop(client);
        assert_eq!(code(&told), "XX000");
        for (client, upstream) in &mut others {
            client.write_all(QUERY).await.unwrap();
            expect(upstream, QUERY).await;
            upstream.write_all(READY).await.unwrap();
            expect(client, READY).await;
        }
        drop(others);
        sessions.close();
        sessions.wait().await;
        assert!(proxy.ended("panic"));
        assert!(is_given_back(&proxy, &issued));
    });
    over.cancel();
    thread.join().unwrap();
}
