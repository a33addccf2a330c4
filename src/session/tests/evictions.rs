//! Newer connections that come, on another thread, at the moment at which one gets more than a place.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{Join, ReadBuf, ReadHalf, WriteHalf, join, split};
use tokio::task::JoinSet;

use super::cancels;
use super::*;

/// What is read of a connection whose place goes to newer ones while its first words are being read: by the time they are
/// judged it is lost, and its task has not been told.
struct Overtaken {
    reader: ReadHalf<DuplexStream>,
    places: Arc<Places>,
    newer: Vec<Place>,
}

impl Direct for Join<Overtaken, WriteHalf<DuplexStream>> {}

impl AsyncRead for Overtaken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.reader).poll_read(cx, buf);
        if buf.filled().len() > before && self.newer.is_empty() {
            self.newer = (0..2 * SPARE_PLACES).map(|_| self.places.take()).collect();
        }
        read
    }
}

/// Says `sent` over such a connection, to the end; gives what its client is told.
async fn overtaken(proxy: &Proxy, sent: &[u8]) -> Vec<u8> {
    let (stream, mut client) = duplex(1024);
    let places = Arc::clone(proxy.shared.places());
    let place = places.take();
    let (reader, writer) = split(stream);
    let client_stream = ClientStream::Plain(join(Overtaken { reader, places, newer: Vec::new() }, writer));
    let session = run(client_stream, SOMEBODY, place, Arc::clone(&proxy.shared));
    let talk = async {
        client.write_all(sent).await.unwrap();
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        told
    };
    tokio::join!(session, talk).1
}

#[tokio::test]
async fn connection_whose_place_is_lost_gets_no_seat_and_no_upstream() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let issued = proxy.promote(1);
    assert!(overtaken(&proxy, &startup()).await.is_empty());
    assert!(cancels::soon(&server).await.is_none(), "a login has begun");
    assert_eq!((proxy.shared.roster().len(), *issued.holds().borrow()), (0, 0));
    let seats: Vec<_> = (0..10).map(|_| proxy.shared.seats().take().unwrap()).collect();
    assert!(proxy.shared.seats().take().is_none(), "{} seats", seats.len());
}

#[tokio::test]
async fn cancel_whose_place_is_lost_is_not_delivered_by_halves() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let (_client, _upstream, key) = cancels::begin(&proxy, &server, &mut tasks, 1).await;
    let request = packet(80_877_102, &key);
    assert!(overtaken(&proxy, &request).await.is_empty());
    assert!(cancels::soon(&server).await.is_none(), "a delivery has begun");

    // The next one is served.
    let (told, cancel) = tokio::join!(proxy.told(&request), async { server.accept().await.1 });
    assert!(told.is_empty());
    assert_eq!(cancel, packet(80_877_102, &cancels::upstream_key(1)));
}
