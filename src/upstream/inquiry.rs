//! A session of pglease's own at an upstream, to ask it something by simple queries.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time;

use super::{LoggedIn, say_goodbye};
use crate::net::Stream;
use crate::wire::error::ErrorResponse;
use crate::wire::frame::{Frame, FrameError, split_frame};
use crate::wire::message::HEADER_LEN;
use crate::wire::message::backend::{
    DATA_ROW, ERROR_RESPONSE, NOTICE_RESPONSE, NOTIFICATION_RESPONSE, PARAMETER_STATUS, READY_FOR_QUERY,
};
use crate::wire::query;

/// Rows of text, as a query gave them.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// Upstream's own words: to the query, or, where the code says so, the last of the session.
    #[error("upstream said {}: {}", response.code_or_none(), response.message)]
    Refused { response: ErrorResponse },
    #[error("upstream closed the connection without a word")]
    Closed,
    #[error("connection to upstream broke")]
    Io(#[from] io::Error),
    #[error("upstream sent a malformed message")]
    Frame(#[from] FrameError),
    #[error("upstream sent a malformed row")]
    Row,
    #[error("no answer within {limit:?}")]
    TimedOut { limit: Duration },
}

/// A session that is asked.
#[derive(Debug)]
pub(crate) struct Inquiry<S = Stream> {
    stream: S,
    /// Bytes of upstream that no one has looked at.
    read: BytesMut,
    /// Messages that are no part of an answer, where somebody wants them.
    aside: Option<BytesMut>,
}

impl Inquiry {
    /// Takes over a session whose greeting nobody else wants.
    pub(crate) fn new(LoggedIn { stream, mut after_key, .. }: LoggedIn) -> Self {
        let _greeting = Self::greeting_of(&mut after_key);
        Self { stream, read: after_key, aside: None }
    }

    /// Takes off what is up to ReadyForQuery.
    pub(super) fn greeting_of(after_key: &mut BytesMut) -> BytesMut {
        let (mut rest, mut len) = (&after_key[..], 0);
        while let Ok(Some((Frame { tag, body }, behind))) = split_frame(rest, u32::MAX) {
            len += HEADER_LEN + body.len();
            rest = behind;
            if tag == READY_FOR_QUERY {
                break;
            }
        }
        after_key.split_to(len)
    }

    /// Says Terminate and waits a little for upstream's end.
    pub(crate) async fn close(mut self) {
        say_goodbye(&mut self.stream).await;
    }
}

impl<S> Inquiry<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Asks in a session that is somebody else's, of which `read` has come and was not looked at.
    pub(super) fn aside(stream: S, read: BytesMut) -> Self {
        Self { stream, read, aside: Some(BytesMut::new()) }
    }

    /// What has come and is no part of an answer.
    pub(super) fn into_rest(self) -> BytesMut {
        let mut rest = self.aside.unwrap_or_default();
        rest.unsplit(self.read);
        rest
    }

    /// Asks, within [`QUERY_TIMEOUT`]. Not cancel safe: after a drop or an error that is not
    /// [`QueryError::Refused`] the session is of no use.
    pub(crate) async fn ask(&mut self, sql: &str) -> Result<Rows, QueryError> {
        let limit = QUERY_TIMEOUT;
        time::timeout(limit, self.exchange(sql)).await.unwrap_or(Err(QueryError::TimedOut { limit }))
    }

    async fn exchange(&mut self, sql: &str) -> Result<Rows, QueryError> {
        let mut request = BytesMut::new();
        query::encode(sql, &mut request)?;
        let sent = async {
            self.stream.write_all(&request).await?;
            self.stream.flush().await
        };
        // Where upstream has ended the session there is nothing to write to, but its last words to read.
        let sent = sent.await;
        let answer = self.answer().await;
        match (sent, answer) {
            (Err(error), Err(QueryError::Closed)) => Err(error.into()),
            (_, answer) => answer,
        }
    }

    /// Up to ReadyForQuery, or to the end of the session.
    async fn answer(&mut self) -> Result<Rows, QueryError> {
        let (mut rows, mut refusal) = (Rows::new(), None);
        let mut room = MAX_ANSWER_LEN;
        loop {
            let Some((Frame { tag, body }, _)) = split_frame(&self.read, room)? else {
                self.read.reserve(READ_LEN);
                match (self.stream.read_buf(&mut self.read).await, refusal.is_some()) {
                    // A FATAL: nothing comes behind it.
                    (Ok(0) | Err(_), true) => break,
                    (Ok(0), false) => return Err(QueryError::Closed),
                    (Err(error), false) => return Err(error.into()),
                    (Ok(_), _) => continue,
                }
            };
            let len = HEADER_LEN + body.len();
            match tag {
                DATA_ROW => rows.push(texts(body)?),
                ERROR_RESPONSE => refusal = refusal.or(Some(ErrorResponse::parse(body))),
                NOTICE_RESPONSE | PARAMETER_STATUS | NOTIFICATION_RESPONSE => {
                    if let Some(aside) = &mut self.aside {
                        aside.unsplit(self.read.split_to(len));
                        room = room.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
                        continue;
                    }
                }
                _ => {}
            }
            let _seen = self.read.split_to(len);
            room = room.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
            if tag == READY_FOR_QUERY {
                break;
            }
        }
        refusal.map_or(Ok(rows), |response| Err(QueryError::Refused { response }))
    }
}

fn texts(row: &[u8]) -> Result<Vec<Option<String>>, QueryError> {
    let columns = query::data_row(row).ok_or(QueryError::Row)?;
    let text = |column: &[u8]| String::from_utf8_lossy(column).into_owned();
    Ok(columns.into_iter().map(|column| column.map(text)).collect())
}

/// Of one query. It may have to wait for a lock of the catalogue's.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// All messages of one answer, in bytes.
const MAX_ANSWER_LEN: u32 = 64 * 1024;
const READ_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::upstream::fake::{FakeUpstream, bounded, message};

    const READY: &[u8] = b"Z\0\0\0\x05I";

    /// What comes of a query that a server answers with `bytes`, and then ends or goes on.
    async fn answer(bytes: &[u8], ends: bool) -> Result<Rows, QueryError> {
        let (ours, theirs) = duplex(64 * 1024);
        let mut inquiry = Inquiry { stream: ours, read: BytesMut::new(), aside: None };
        let mut upstream = FakeUpstream::new(theirs);
        let answered = async {
            assert_eq!(upstream.receive().await, (b'Q', b"SELECT 1\0".to_vec()));
            upstream.send(bytes).await;
            (!ends).then_some(upstream)
        };
        bounded(async { tokio::join!(inquiry.ask("SELECT 1"), answered).0 }).await
    }

    fn code(result: Result<Rows, QueryError>) -> String {
        let Err(QueryError::Refused { response }) = result else { panic!("{result:?}") };
        response.code.unwrap().to_string()
    }

    #[tokio::test]
    async fn rows_are_collected_up_to_ready_for_query() {
        let row = message(b'D', b"\0\x02\0\0\0\x01t\xff\xff\xff\xff");
        let noise = message(b'N', b"SNOTICE\0Mhello\0\0");
        let all =
            [message(b'T', b"\0\0"), noise, row.clone(), row, message(b'C', b"SELECT 2\0"), READY.to_vec()];
        let rows = answer(&all.concat(), false).await.unwrap();
        assert_eq!(rows, vec![vec![Some("t".to_owned()), None]; 2]);
        assert_eq!(answer(READY, false).await.unwrap(), Rows::new());
    }

    #[tokio::test]
    async fn what_comes_beside_an_answer_is_kept_for_who_wants_it() {
        let (ours, theirs) = duplex(64 * 1024);
        let status = message(b'S', b"TimeZone\0UTC\0");
        let mut greeting = BytesMut::from(&[&status, READY, &status].concat()[..]);
        assert_eq!(Inquiry::greeting_of(&mut greeting), [&status, READY].concat());
        let mut inquiry = Inquiry::aside(ours, greeting);
        let mut upstream = FakeUpstream::new(theirs);
        let notice = message(b'N', b"SNOTICE\0Mhello\0\0");
        let answered = async {
            upstream.receive().await;
            let row = message(b'D', b"\0\x01\0\0\0\x01t");
            upstream.send(&[&row[..], &notice, READY, b"S\0\0"].concat()).await;
        };
        let (rows, ()) = tokio::join!(inquiry.ask("SELECT 1"), answered);
        assert_eq!(rows.unwrap(), [[Some("t".to_owned())]]);
        assert_eq!(inquiry.into_rest(), [&status, &notice, &b"S\0\0"[..]].concat());
    }

    #[tokio::test]
    async fn refusal_and_last_words_are_told_from_silence() {
        let refused = message(b'E', b"SERROR\0C42704\0Mno\0\0");
        assert_eq!(code(answer(&[&refused, READY].concat(), false).await), "42704");
        let ended = message(b'E', b"SFATAL\0C57P01\0Mno\0\0");
        assert_eq!(code(answer(&ended, true).await), "57P01");
        assert!(matches!(answer(b"", true).await, Err(QueryError::Closed)));
        assert!(matches!(answer(b"Z\0", true).await, Err(QueryError::Closed)));
    }

    #[tokio::test]
    async fn last_words_are_read_where_nothing_can_be_written_any_more() {
        let (ours, theirs) = duplex(64 * 1024);
        let mut upstream = FakeUpstream::new(theirs);
        upstream.send(&message(b'E', b"SFATAL\0C57P01\0Mno\0\0")).await;
        drop(upstream);
        let mut inquiry = Inquiry { stream: ours, read: BytesMut::new(), aside: None };
        assert_eq!(code(inquiry.ask("SELECT 1").await), "57P01");
        assert!(matches!(inquiry.ask("SELECT 1").await, Err(QueryError::Io(_))));
    }

    #[tokio::test]
    async fn answer_is_bounded_in_length() {
        let row = message(b'D', &[&b"\0\x01\0\0\x40\0"[..], &[b'x'; 0x4000]].concat());
        assert!(answer(&row.repeat(3), true).await.is_err_and(|error| matches!(error, QueryError::Closed)));
        assert!(matches!(answer(&row.repeat(5), false).await, Err(QueryError::Frame(_))));
        assert!(matches!(answer(&message(b'D', b"\0\x01"), false).await, Err(QueryError::Row)));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_server_is_given_up() {
        let (ours, _theirs) = duplex(64 * 1024);
        let mut inquiry = Inquiry { stream: ours, read: BytesMut::new(), aside: None };
        assert!(matches!(inquiry.ask("SELECT 1").await, Err(QueryError::TimedOut { .. })));
    }
}
