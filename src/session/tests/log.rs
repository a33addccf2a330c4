//! What the log says of a session.

use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use serde_json::Value;
use tokio::io::ReadBuf;
use tracing_subscriber::fmt;

use super::*;

/// What is logged.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// On this thread, for as long as the guard lives.
    pub(super) fn begin() -> (Self, impl Drop) {
        // With a thread's own log alone, a line that another thread comes to first is taken for one that nobody wants.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    /// The events whose names begin so, whole.
    pub(super) fn of(&self, kind: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["event"].as_str().unwrap_or_default().starts_with(kind)).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client that cannot be told anything: its connection is broken, or pglease stumbles at the first word to it.
struct Deaf {
    stream: DuplexStream,
    stumbles: bool,
}

impl Direct for Deaf {}

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!std::mem::take(&mut self.stumbles), "as the test wants it");
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn session_whose_client_cannot_be_told_that_it_has_begun_ends_in_the_log_all_the_same() {
    for (stumbles, reason, blame) in [(false, "client_failed", "client"), (true, "panic", "proxy")] {
        let server = Server::bind().await;
        let proxy = proxy(server.port(), 1);
        let issued = proxy.promote(1);
        let (stream, mut far_client) = duplex(1024);
        let place = proxy.shared.places().take();
        let session =
            run(ClientStream::Plain(Deaf { stream, stumbles }), SOMEBODY, place, Arc::clone(&proxy.shared));
        let (lines, _logging) = Lines::begin();
        let client_side = async {
            far_client.write_all(&startup()).await.unwrap();
            let mut stream = server.let_in().await;
            // Upstream is told before the client is let go; a bug tells it nothing but the end.
            let mut told = Vec::new();
            stream.read_to_end(&mut told).await.unwrap();
            assert_eq!(told, if stumbles { b"" } else { TERMINATE });
            drop(far_client);
        };
        tokio::join!(session, client_side);

        let events = lines.of("session.");
        let named = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
        let (starts, ends) = (named("session.start"), named("session.end"));
        assert_eq!((starts.len(), ends.len(), named("session.refused").len()), (1, 1, 0), "{events:?}");
        assert_eq!((&ends[0]["reason"], &ends[0]["blame"]), (&reason.into(), &blame.into()));
        assert_eq!((&ends[0]["session"], &ends[0]["generation"]), (&starts[0]["session"], &"g1".into()));
        assert_eq!((&ends[0]["frontend_bytes"], &ends[0]["backend_bytes"]), (&0.into(), &0.into()));
        assert!(proxy.ended(reason));
        assert_eq!(*issued.holds().borrow(), 0);
    }
}

#[tokio::test]
async fn session_that_runs_to_its_end_has_one_start_and_one_end() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let (lines, _logging) = Lines::begin();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        let mut stream = server.let_in().await;
        read_greeting(&mut client).await;
        drop(client);
        expect_end(&mut stream).await;
    };
    tokio::join!(session, talk);
    let events = lines.of("session.");
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["session.start", "session.end"]);
    assert_eq!(events[0]["client"], SOMEBODY.to_string());
}
