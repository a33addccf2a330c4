//! Holds a credential and has upstream log in with it, all within `connect_wait`. A credential that upstream
//! rejects is reported, and the login tried once more with its successor; one that is only doubtful is reported and
//! kept.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use bytes::BytesMut;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{self, Instant};
use tracing::warn;

use super::cancel;
use super::route::Route;
use crate::credential::{Hold, SourceClosed};
use crate::roster::{Line, State};
use crate::telemetry::{ConnectFailureLabels, Metrics};
use crate::upstream::{Ahead, LoggedIn, OnCredential, UpstreamError};
use crate::wire::error::{ClientError, SqlState};
use crate::wire::message::{AUTHENTICATION_OK, TERMINATE};
use crate::wire::startup::{CancelKey, StartupParameters};

/// An upstream session and the claim on its credential.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) logged_in: LoggedIn,
    pub(crate) hold: Hold,
}

/// Why a session got no upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("no credential within {waited:?}")]
    NoCredential { waited: Duration },
    #[error("no credential will come")]
    NoSource(#[from] SourceClosed),
    #[error("login at upstream took longer than what was left of {waited:?}")]
    TimedOut { waited: Duration },
    #[error("login at upstream")]
    Upstream(#[from] UpstreamError),
    /// While it waited.
    #[error("client went away before its session had begun")]
    ClientGone,
}

impl LoginError {
    /// What the client is told; `None` where there is nobody to tell.
    pub(crate) fn client_error(&self) -> Option<ClientError> {
        let error = match self {
            Self::NoCredential { waited } => {
                ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "no database credential is available yet")
                    .with_detail(format!("pglease waited {waited:?} for Vault to issue one."))
                    .with_hint("The log and /readyz of pglease tell what it waits for.")
            }
            Self::NoSource(SourceClosed) => ClientError::fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "no database credential is available any more",
            ),
            Self::TimedOut { waited } => {
                ClientError::fatal(SqlState::UNABLE_TO_CONNECT, "upstream server did not answer in time")
                    .with_detail(format!("A session must begin within listen.connect_wait, {waited:?}."))
            }
            Self::Upstream(error) => error.client_error(),
            Self::ClientGone => return None,
        };
        Some(error)
    }
}

/// Goes on with what was begun ahead, for ever. Cancel safe.
pub(crate) async fn go_on(ahead: &mut Option<Ahead>) -> Infallible {
    match ahead {
        Some(ahead) => ahead.go_on().await,
        None => pending().await,
    }
}

/// One session's way to its upstream.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) route: &'a Route,
    /// A connection that was begun before.
    pub(crate) ahead: Option<Ahead>,
    pub(crate) parameters: &'a StartupParameters,
    /// Of a cancel key in the client's version of the protocol, in bytes.
    pub(crate) secret_len: usize,
    pub(crate) metrics: &'a Metrics,
    /// What the session does is told there.
    pub(crate) line: &'a Line,
    /// `connect_wait`, and when it is over.
    pub(crate) connect_wait: Duration,
    pub(crate) deadline: Instant,
}

impl<'a> Attempt<'a> {
    /// Logs in, unless the client goes away first. What the client sends meanwhile is kept in `early`.
    ///
    /// Not cancel safe: what was begun is closed.
    pub(crate) async fn run<C>(&mut self, client: &mut C, early: &mut BytesMut) -> Result<Login, LoginError>
    where
        C: AsyncRead + Unpin,
    {
        tokio::select! {
            biased;
            login = self.log_in() => login,
            () = hang_up(client, early) => Err(LoginError::ClientGone),
        }
    }

    async fn log_in(&mut self) -> Result<Login, LoginError> {
        let source = &self.route.source;
        let warm = self.route.warm.as_ref();
        if let Some(warm) = warm
            && let Some(login) = warm.take(self.parameters, source).await
        {
            return Ok(login);
        }
        let _logs_in = warm.map(|warm| warm.client_logs_in());
        let waiting = (!source.is_ready()).then(|| self.wait());
        let hold = self.credential(source.hold()).await?;
        drop(waiting);

        match self.log_in_in_time(&hold).await {
            Err(LoginError::Upstream(error)) if error.on_credential() == OnCredential::Rejected => {
                self.metrics.upstream_auth_rejects.inc();
                let generation = hold.credential().generation;
                warn!(event = "upstream.credential_rejected", %generation, %error);
            }
            outcome => return self.settle(outcome, hold),
        }

        let waiting = self.wait();
        let hold = self.credential(source.replace(hold)).await?;
        drop(waiting);
        let outcome = self.log_in_in_time(&hold).await;
        self.settle(outcome, hold)
    }

    fn wait(&self) -> Waiting<'a> {
        Waiting::begin(&self.metrics.clients_waiting, self.line)
    }

    fn settle(&self, outcome: Result<LoggedIn, LoginError>, hold: Hold) -> Result<Login, LoginError> {
        match outcome {
            Ok(logged_in) => Ok(Login { logged_in, hold }),
            Err(LoginError::Upstream(mut error)) => {
                if error.on_credential() == OnCredential::Doubtful {
                    hold.doubt();
                }
                if let Some(response) = error.response_mut() {
                    // Without randomness the client does without a key, as of some poolers.
                    response.give_key(|pid| cancel::own_key(pid, self.secret_len).ok());
                }
                Err(error.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for a replica that does not know the credential yet, where another host has accepted it: a new one would
    /// be known there later still.
    async fn log_in_in_time(&mut self, hold: &Hold) -> Result<LoggedIn, LoginError> {
        let mut pause = MIN_PAUSE;
        loop {
            match self.log_in_with(hold).await {
                Err(LoginError::Upstream(error))
                    if error.on_credential() == OnCredential::Late
                        && Instant::now() + pause < self.deadline => {}
                // Those that were logged in ahead keep no client out.
                Err(LoginError::Upstream(error))
                    if error.sqlstate() == Some(SqlState::TOO_MANY_CONNECTIONS) && self.make_room().await =>
                {
                    continue;
                }
                settled => return settled,
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn make_room(&mut self) -> bool {
        match &self.route.warm {
            Some(warm) => warm.make_room().await,
            None => false,
        }
    }

    async fn credential(
        &mut self,
        hold: impl Future<Output = Result<Hold, SourceClosed>>,
    ) -> Result<Hold, LoginError> {
        let no_credential = |_| LoginError::NoCredential { waited: self.connect_wait };
        Ok(time::timeout_at(self.deadline, hold).await.map_err(no_credential)??)
    }

    async fn log_in_with(&mut self, hold: &Hold) -> Result<LoggedIn, LoginError> {
        let begun = Instant::now();
        let timed_out = LoginError::TimedOut { waited: self.connect_wait };
        let outcome = if begun < self.deadline {
            // Ends by the same instant with a word on each host.
            let login = self.route.upstream.log_in_on(
                self.ahead.take(),
                hold.credential(),
                self.parameters,
                self.deadline,
            );
            let outcome = time::timeout_at(self.deadline, login).await;
            outcome.map_or(Err(timed_out), |outcome| outcome.map_err(LoginError::from))
        } else {
            Err(timed_out)
        };
        match &outcome {
            Ok(_) => self.metrics.upstream_connect_seconds.observe(begun.elapsed().as_secs_f64()),
            Err(LoginError::Upstream(error)) => self.count_failure(error.reason(), error.sqlstate()),
            Err(_) => self.count_failure("timeout", None),
        }
        outcome
    }

    fn count_failure(&self, reason: &'static str, sqlstate: Option<SqlState>) {
        let sqlstate = sqlstate.map(|code| code.to_string()).unwrap_or_default();
        self.metrics
            .upstream_connect_failures
            .get_or_create(&ConnectFailureLabels { reason, sqlstate })
            .inc();
    }
}

/// Returns when the client has gone away. Cancel safe.
///
/// What it sends meanwhile is read, up to [`MAX_EARLY_LEN`] bytes: only behind it would the end be seen. A client
/// that has sent something and then closed its write side may still want the answer.
async fn hang_up<C: AsyncRead + Unpin>(client: &mut C, early: &mut BytesMut) {
    let mut chunk = [0; 256];
    while early.len() < MAX_EARLY_LEN {
        match client.read(&mut chunk).await {
            Ok(0) if early.is_empty() || &early[..] == TERMINATE => return,
            Ok(0) => break,
            Ok(len) => early.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(_) => return,
        }
    }
    pending::<()>().await;
}

/// Counted as waiting for as long as it lives.
struct Waiting<'a>(&'a Gauge, &'a Line);

impl<'a> Waiting<'a> {
    fn begin(gauge: &'a Gauge, line: &'a Line) -> Self {
        gauge.inc();
        line.enter(State::Waiting);
        Self(gauge, line)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
        self.1.enter(State::Login);
    }
}

/// What the client hears when its session begins, in one write: AuthenticationOk, upstream's own words, its pid
/// with a secret of ours.
pub(crate) fn greeting(logged_in: &LoggedIn, key: Option<&CancelKey>) -> BytesMut {
    let len = logged_in.before_key.len() + logged_in.after_key.len() + 64;
    let mut out = BytesMut::with_capacity(len);
    out.extend_from_slice(AUTHENTICATION_OK);
    out.extend_from_slice(&logged_in.before_key);
    if let Some(key) = key {
        key.encode_key_data(&mut out);
    }
    out.extend_from_slice(&logged_in.after_key);
    out
}

/// Between logins at a replica that lags.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// What a client may send before its session has begun and still be heard to go away, in bytes.
const MAX_EARLY_LEN: usize = 8 * 1024;
