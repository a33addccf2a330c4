//! What each side is told at the end.
//!
//! The client: words of our own only where a message may begin; then the end of the stream, and whatever it still
//! sends is read away. A plain close with unread input sends a RST, and drivers never see the words before it.
//! Upstream: Terminate where a message may begin, then the end of the stream; its own end is awaited, so that
//! nothing of the session is left when the lease is revoked.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time;
use tracing::debug;

use super::cancel::Cancellable;
use super::relay::Relay;
use crate::wire::error::ClientError;
use crate::wire::message::TERMINATE;

/// Ends a client that has no upstream. `last_words` is what it is told, `&[]` for nothing.
pub(crate) async fn close_client<C>(client: &mut C, last_words: &[u8])
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    // Out of time or not, the connection is closed next.
    let _ = time::timeout(CLIENT_LIMIT, say_goodbye(client, last_words)).await;
}

/// Ends an upstream session.
pub(crate) async fn close_upstream<U>(upstream: &mut U, last_words: &[u8])
where
    U: AsyncRead + AsyncWrite + Unpin,
{
    let _ = time::timeout(UPSTREAM_LIMIT, say_goodbye(upstream, last_words)).await;
}

/// Ends both sides of a relay. `error` is what the client is told, if that is possible; `cancel` is what still
/// runs and shall not.
pub(crate) async fn close<C, U>(
    relay: &mut Relay<C, U>,
    error: Option<&ClientError>,
    cancel: Option<&Cancellable>,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut to_client = BytesMut::new();
    if let Ok(stash) = relay.backend.take_stash() {
        to_client.extend_from_slice(&stash);
        if let Some(error) = error.filter(|_| relay.can_speak_to_client()) {
            error.encode(&mut to_client);
        }
    }
    let mut to_upstream = Vec::new();
    if let Ok(stash) = relay.frontend.take_stash() {
        to_upstream = stash;
        if relay.can_speak_to_upstream() && !relay.tracker.is_terminated() {
            to_upstream.extend_from_slice(TERMINATE);
        }
    }
    let upstream_ended = relay.upstream_ended();
    let Relay { client, upstream, .. } = relay;
    tokio::join!(
        close_client(client, &to_client),
        async {
            if !upstream_ended {
                close_upstream(upstream, &to_upstream).await;
            }
        },
        cancel_within_limit(cancel)
    );
}

/// A client's hang-up or a deadline ends what runs: the server looks at Terminate only behind it.
async fn cancel_within_limit(cancel: Option<&Cancellable>) {
    let Some(session) = cancel else {
        return;
    };
    match time::timeout(UPSTREAM_LIMIT, session.cancel()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(event = "cancel.failed", %error),
        Err(_) => debug!(event = "cancel.failed", "out of time"),
    }
}

/// Writes `last_words`, closes the write side, and reads until the other side has closed its own.
async fn say_goodbye<S>(stream: &mut S, last_words: &[u8])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        stream.write_all(last_words).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    // Where nothing can be written any more there may still be something to read, up to the end.
    if told.await.is_ok() {
        // A large result that nobody wants any more is read away in few steps.
        let mut unread = vec![0; UNREAD_LEN];
        while stream.read(&mut unread).await.is_ok_and(|len| len > 0) {}
    }
}

/// What is read at once of what nobody wants any more.
const UNREAD_LEN: usize = 16 * 1024;
/// For a client to take its last words and close.
const CLIENT_LIMIT: Duration = Duration::from_secs(1);
/// For an upstream to end its session.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(2);
