//! A client that writes without reading, before a server that answers each message before it reads the next: where
//! both block, they do so directly as well.

use super::*;

const REQUEST: &[u8] = b"Q\0\0\0\x0bSELECT\0";
const ANSWER: &[u8] = b"D\0\0\0\x0aanswer";

/// Answers message for message, as a backend that waits until its answer is taken.
async fn serve(mut stream: DuplexStream) {
    let mut request = [0; REQUEST.len()];
    while stream.read_exact(&mut request).await.is_ok() {
        stream.write_all(ANSWER).await.unwrap();
    }
}

/// How many bytes go until nothing moves any more.
async fn write_without_reading(stream: &mut DuplexStream) -> usize {
    let mut written = 0;
    let endless = REQUEST.repeat(100);
    while let Ok(len) = time::timeout(secs(1), stream.write(&endless[written % REQUEST.len()..])).await {
        written += len.unwrap();
    }
    written
}

#[tokio::test(start_paused = true)]
async fn client_that_writes_all_before_it_reads_gets_at_least_as_far_as_directly() {
    for pipe_len in [100, 4096, 100_000] {
        let (mut client, server) = duplex(pipe_len);
        let directly = tokio::select! {
            written = write_without_reading(&mut client) => written,
            () = serve(server) => panic!("the server ends"),
        };

        let (_, relay, through) = play(scene(pipe_len).await, async |far| {
            let Far { mut client, upstream, .. } = far;
            let writing = async {
                let written = write_without_reading(&mut client).await;
                // All that was asked is answered once somebody reads.
                let whole = written / REQUEST.len();
                let mut answers = vec![0; whole * ANSWER.len()];
                client.read_exact(&mut answers).await.unwrap();
                assert_eq!(answers, ANSWER.repeat(whole));
                drop(client);
                written
            };
            tokio::join!(writing, serve(upstream)).0
        })
        .await;
        assert!(through >= directly, "{through} bytes, {directly} directly");
        assert!(relay.frontend.stash.len() <= READ_LEN && relay.backend.stash.len() <= READ_LEN);
    }
}
