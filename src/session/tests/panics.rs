//! Bugs of pglease: each ends one session, and its client is told.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::*;

/// A client at which pglease stumbles: reading the word "bug" makes it panic.
struct Stumbling(DuplexStream);

impl AsyncRead for Stumbling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        assert!(!buf.filled()[before..].windows(3).any(|word| word == b"bug"), "as the test wants it");
        read
    }
}

impl AsyncWrite for Stumbling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn panic_ends_one_session_and_its_client_is_told() {
    let proxy = proxy(1, 1);
    let (client, mut far_client) = duplex(1024);
    let session = run(
        ClientStream::Plain(Stumbling(client)),
        SOMEBODY,
        proxy.shared.places().take(),
        Arc::clone(&proxy.shared),
    );
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
    let (client, mut far_client) = duplex(1024);
    let session = run(
        ClientStream::Plain(Stumbling(client)),
        SOMEBODY,
        proxy.shared.places().take(),
        Arc::clone(&proxy.shared),
    );
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
    assert_eq!(*issued.holds().borrow(), 0);
    assert!(proxy.shared.seats().take().is_some());
}
