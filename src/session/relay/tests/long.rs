//! Answers that are long, over real connections: the kernel has the mark that [`super::gather`] sets.

use std::cell::RefCell;

use tokio::net::TcpStream;

use super::counts::connection;
use super::*;
use crate::net;

thread_local! {
    static MARKS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn set_mark(socket: &TcpStream, len: usize) -> io::Result<()> {
    MARKS.with_borrow_mut(|marks| marks.push(len));
    net::set_low_mark(socket, len)
}

async fn answer(upstream: &mut TcpStream, client: &mut TcpStream, answer: &[u8]) {
    let mut read = vec![0; answer.len()];
    let (written, all) = tokio::join!(upstream.write_all(answer), client.read_exact(&mut read));
    written.unwrap();
    all.unwrap();
    assert!(read == answer, "bytes are not what they were");
}

#[tokio::test]
async fn long_answer_that_pauses_anywhere_comes_whole() {
    let (client, mut far_client) = connection().await;
    let (upstream, mut far_upstream) = connection().await;
    let Scene { relay, mut watch, far: _far } = scene(1).await;
    let relay = Relay::new(client, upstream, relay.tracker, Tally::default());
    let mut relay = relay.gathering(set_mark);
    let script = async move {
        let rows = frames(18 * 1024 * 1024);
        let (first, second) = rows.split_at(17 * 1024 * 1024 + 1);
        for _ in 0..2 {
            far_client.write_all(QUERY).await.unwrap();
            let mut query = [0; QUERY.len()];
            far_upstream.read_exact(&mut query).await.unwrap();
            // Nothing more comes before all of it has arrived.
            answer(&mut far_upstream, &mut far_client, first).await;
            assert_eq!(MARKS.with_borrow(|marks| marks.first().copied()), Some(gather::MARK));
            answer(&mut far_upstream, &mut far_client, second).await;
            answer(&mut far_upstream, &mut far_client, READY).await;
            assert_eq!(MARKS.take().last(), Some(&1));
        }
    };
    let (end, ()) = tokio::join!(relay.run(&mut watch), script);
    assert!(matches!(end, RelayEnd::UpstreamClosed), "{end:?}");
}
