//! What is left of a session: its log lines and its metrics.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::thread;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{debug, error, field, info, warn};

use super::auth::Client;
use super::cancel::Registration;
use super::error::{Blame, SessionError};
use super::fault::Panicked;
use super::relay::{Relay, RelayEnd};
use crate::credential::Credential;
use crate::ids::{GenerationId, SessionId};
use crate::telemetry::{Causes, Metrics, SessionEndLabels};
use crate::upstream::Address;

/// One connection, from accept on. Where a panic keeps its end from being told it tells so itself.
#[derive(Debug)]
pub(crate) struct Record {
    id: SessionId,
    began: Instant,
    metrics: Arc<Metrics>,
    generation: Option<GenerationId>,
    /// What became of it has been told.
    is_told: bool,
}

impl Record {
    pub(crate) fn new(id: SessionId, metrics: Arc<Metrics>) -> Self {
        Self { id, began: Instant::now(), metrics, generation: None, is_told: false }
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// When the connection came.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Upstream has let us in.
    pub(crate) fn opened(
        &mut self,
        client: &Client,
        address: &Address,
        credential: &Credential,
        registration: Option<&Registration>,
    ) {
        self.generation = Some(credential.generation);
        let parameter = |name| client.message.parameters.get(name).unwrap_or_default();
        info!(
            event = "session.start",
            session = %self.id,
            client = %client.transport.peer,
            over = client.transport.as_str(),
            db = %Name(&client.database),
            client_user = %Name(&client.user),
            application_name = %Name(parameter("application_name")),
            db_role = credential.user,
            generation = %credential.generation,
            lease = credential.lease.as_ref().map(field::display),
            pid = registration.map(|registration| registration.key().pid),
            upstream = %address.host(),
            address = %address.socket(),
        );
    }

    /// The connection only brought a cancel.
    pub(crate) fn cancelled(mut self) {
        self.is_told = true;
        debug!(event = "cancel.served", session = %self.id);
    }

    /// The session did not begin, or its client could not be told that it has. Says so loudly only where it is not just a
    /// client that went away.
    pub(crate) fn refused(mut self, error: &SessionError) {
        if matches!(error, SessionError::Panicked(_)) {
            panicked(self.id);
        }
        self.tell_refused(error);
    }

    fn tell_refused(&mut self, error: &SessionError) {
        let (session, reason, blame) = (self.id, error.reason(), error.blame());
        let told = error.client_error(session).is_some();
        let cause = Causes(error);
        self.is_told = true;
        if self.generation.is_some() {
            return self.ended(reason, blame, Some(cause), [0, 0]);
        }
        match blame {
            Blame::Client if told => {
                info!(event = "session.refused", %session, reason, blame = blame.as_str(), error = %cause);
            }
            Blame::Client => {
                debug!(event = "session.refused", %session, reason, blame = blame.as_str(), error = %cause);
            }
            Blame::Upstream | Blame::Vault | Blame::Proxy => {
                warn!(event = "session.refused", %session, reason, blame = blame.as_str(), error = %cause);
            }
        }
        if told {
            self.count(reason);
        }
    }

    /// The relay has ended.
    pub(crate) fn closed<C, U>(mut self, end: &RelayEnd, relay: &Relay<C, U>)
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        // A client that upstream has told of the end closes, too.
        let client_left = relay.client_hung_up() && !relay.tracker.ends_with_error();
        let (reason, blame, cause) = outcome(end, client_left);
        if matches!(end, RelayEnd::Panicked(_)) {
            panicked(self.id);
        }
        self.is_told = true;
        self.ended(reason, blame, cause, [relay.frontend.bytes, relay.backend.bytes]);
    }

    /// The one end of what [`Self::opened`] has told of. Bytes are those from client and upstream.
    fn ended(
        &self,
        reason: &'static str,
        blame: Blame,
        cause: Option<Causes<'_>>,
        [frontend_bytes, backend_bytes]: [u64; 2],
    ) {
        info!(
            event = "session.end",
            session = %self.id,
            reason,
            blame = blame.as_str(),
            error = cause.map(field::display),
            frontend_bytes,
            backend_bytes,
            duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            generation = self.generation.map(field::display),
        );
        self.count(reason);
    }

    fn count(&self, reason: &'static str) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.metrics.session_seconds.get_or_create(&SessionEndLabels { reason }).observe(seconds);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.is_told && thread::panicking() {
            self.tell_refused(&Panicked.into());
        }
    }
}

/// A panic has ended the session, whatever is told of its end besides.
pub(crate) fn panicked(session: SessionId) {
    error!(event = "session.panic", %session, "a bug of pglease ended this session");
}

/// The word for the end of a relay, who brought it about, and the error in it.
fn outcome(end: &RelayEnd, client_left: bool) -> (&'static str, Blame, Option<Causes<'_>>) {
    match end {
        // Upstream answers a client's goodbye in kind, or is not there any more to do so.
        RelayEnd::UpstreamClosed | RelayEnd::UpstreamFailed(_) if client_left => {
            ("client_closed", Blame::Client, None)
        }
        RelayEnd::UpstreamClosed => ("upstream_closed", Blame::Upstream, None),
        RelayEnd::UpstreamFailed(error) => ("upstream_failed", Blame::Upstream, Some(Causes(error))),
        RelayEnd::ClientFailed(error) => ("client_failed", Blame::Client, Some(Causes(error))),
        RelayEnd::Ordered(order) => (order.reason(), order.blame(), None),
        RelayEnd::Panicked(panicked) => ("panic", Blame::Proxy, Some(Causes(panicked))),
    }
}

/// A name that a client has chosen: as text in one line, and not more of it than PostgreSQL would take.
pub(super) struct Name<'a>(pub(super) &'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(self.0.get(..MAX_NAME_LEN).unwrap_or(self.0));
        name.chars()
            .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
            .try_for_each(|c| f.write_char(c))
    }
}

/// `NAMEDATALEN` less its `\0`, in bytes.
const MAX_NAME_LEN: usize = 63;

#[cfg(test)]
mod tests {
    use std::io;
    use std::panic::resume_unwind;

    use super::*;
    use crate::session::fault::tried;
    use crate::session::startup::StartupError;

    #[test]
    fn name_is_one_bounded_line_whatever_the_client_sent() {
        assert_eq!(Name(b"app").to_string(), "app");
        assert_eq!(Name(b"a\nb\x1b[31m\xff").to_string(), "a\u{fffd}b\u{fffd}[31m\u{fffd}");
        assert_eq!(Name(&[b'x'; 100]).to_string().len(), MAX_NAME_LEN);
    }

    #[test]
    fn connection_is_counted_once_whatever_a_panic_breaks_off() {
        let metrics = Arc::new(Metrics::new());
        let panics = || {
            let text = metrics.encode().unwrap();
            text.matches("session_seconds_count{reason=\"panic\"} 1\n").count()
        };
        let record = |id| Record::new(SessionId(id), Arc::clone(&metrics));
        drop(record(1));
        let told = record(2);
        tried(move || {
            told.cancelled();
            resume_unwind(Box::new("a bug"));
        })
        .unwrap_err();
        assert_eq!(panics(), 0);
        let untold = record(3);
        tried(move || {
            let _untold = untold;
            resume_unwind(Box::new("a bug"));
        })
        .unwrap_err();
        assert_eq!(panics(), 1);
    }

    #[test]
    fn error_is_told_with_its_sources_in_one_line() {
        let error = SessionError::from(StartupError::from(io::Error::other("reset")));
        assert_eq!(Causes(&error).to_string(), "startup: connection to the client: reset");
    }
}
