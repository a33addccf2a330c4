//! Asks for a drain, and waits for its end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::time::{self, Instant};

use super::{Outcome, POLL, number, parse, word};
use crate::admin::client::AskError;

/// Returns when nobody listens any more, or another pglease in its place.
///
/// A connection that breaks says nothing: it may be the end, or one among too many. So it is asked again, until a new
/// one is refused.
pub(super) async fn drain(
    address: SocketAddr,
    mut ask: impl AsyncFnMut(Method, &'static str) -> Result<(StatusCode, String), AskError>,
) -> Result<Outcome, AskError> {
    let drained = Outcome { text: "drained".to_owned(), is_done: true };
    let mut until = Instant::now() + MAX_END;
    let mut was_there = false;
    let said = loop {
        match ask(Method::POST, "/drain").await {
            Ok((_, said)) => break said,
            // So little was left to do.
            Err(error) if was_there && is_refused(&error) => return Ok(drained),
            Err(AskError::Gone { .. }) if Instant::now() < until => was_there = true,
            Err(error) => return Err(error),
        }
        time::sleep(POLL).await;
    };
    until =
        Instant::now() + Duration::from_secs(number(&parse(address, &said)?, "deadline_seconds")) + MAX_END;
    while Instant::now() < until {
        match ask(Method::GET, "/status").await {
            Ok((_, said)) if word(&parse(address, &said)?, "phase") == "serving" => return Ok(drained),
            Err(error) if is_refused(&error) => return Ok(drained),
            Ok(_) | Err(AskError::Connect { .. } | AskError::Gone { .. } | AskError::TimedOut { .. }) => {}
            Err(error) => return Err(error),
        }
        time::sleep(POLL).await;
    }
    Ok(Outcome { text: "still draining, although its deadline is over".to_owned(), is_done: false })
}

/// Nobody listens there.
fn is_refused(error: &AskError) -> bool {
    matches!(error, AskError::Connect { error, .. } if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// From the cut of the last sessions to the end of the process: revocations take 5 s at most.
const MAX_END: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;

    use axum::body::Body;
    use axum::http::Request;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;

    use super::*;

    /// What is answered.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Serving,
        Draining,
        /// The connection is gone.
        Gone,
        /// Nobody listens.
        Refused,
        /// There is no connection for another reason.
        Unconnected,
        Late,
        Denied,
    }

    async fn answer(says: Says) -> Result<(StatusCode, String), AskError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9633));
        let connect = |kind: io::ErrorKind| AskError::Connect { address, error: kind.into() };
        let of = |phase: &str| format!("{{ \"phase\": \"{phase}\", \"deadline_seconds\": 20 }}");
        match says {
            Says::Serving => Ok((StatusCode::OK, of("serving"))),
            Says::Draining => Ok((StatusCode::OK, of("draining"))),
            Says::Refused => Err(connect(io::ErrorKind::ConnectionRefused)),
            Says::Unconnected => Err(connect(io::ErrorKind::AddrNotAvailable)),
            Says::Late => Err(AskError::TimedOut { address, limit: Duration::from_secs(5) }),
            Says::Denied => {
                Err(AskError::Refused { status: StatusCode::FORBIDDEN, said: "not allowed".to_owned() })
            }
            Says::Gone => {
                let (near, far) = tokio::io::duplex(64);
                drop(far);
                let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
                let request = sender.send_request(Request::new(Body::empty()));
                let (answer, _) = tokio::join!(request, connection);
                Err(AskError::Gone { address, error: answer.unwrap_err() })
            }
        }
    }

    /// What becomes of a drain that is answered so, the last answer again and again: whether it is done, or its error;
    /// and how many answers are left.
    async fn drained(answers: &[Says]) -> (Result<bool, String>, usize) {
        let mut left = VecDeque::from(answers.to_vec());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9633));
        let ask = async |_: Method, _: &str| {
            let says = if left.len() > 1 { left.pop_front() } else { left.front().copied() };
            answer(says.unwrap()).await
        };
        let result = drain(address, ask).await;
        (result.map(|outcome| outcome.is_done).map_err(|error| error.to_string()), left.len())
    }

    #[tokio::test(start_paused = true)]
    async fn drain_is_done_when_nobody_listens_and_a_connection_that_breaks_is_made_again() {
        use Says::{Denied, Draining, Gone, Late, Refused, Serving, Unconnected};
        for answers in [
            &[Draining, Refused][..],
            &[Draining, Draining, Gone, Late, Unconnected, Draining, Refused],
            // Before it has said so, too.
            &[Gone, Gone, Draining, Draining, Refused],
            &[Gone, Refused],
            // Another has begun there.
            &[Draining, Draining, Serving],
        ] {
            assert_eq!(drained(answers).await, (Ok(true), 1), "{answers:?}");
        }
        for (answers, said) in [
            (&[Refused][..], "nobody listens"),
            (&[Unconnected], "nobody listens"),
            (&[Denied], "not allowed"),
            (&[Gone], "without an answer"),
            (&[Gone, Late], "no answer"),
            (&[Draining, Denied], "not allowed"),
        ] {
            let (result, left) = drained(answers).await;
            assert!(result.as_ref().is_err_and(|error| error.contains(said)), "{answers:?}: {result:?}");
            assert_eq!(left, 1, "{answers:?}");
        }
        for answers in [&[Draining][..], &[Draining, Gone], &[Draining, Late]] {
            assert_eq!(drained(answers).await, (Ok(false), 1), "{answers:?}");
        }
    }
}
