//! Why a session did not begin, whose fault that is, and what the client is told.

use std::io;

use bytes::BytesMut;

use super::auth::AuthError;
use super::cancel::CancelError;
use super::fault::Panicked;
use super::login::LoginError;
use super::route::NoRoute;
use super::startup::StartupError;
use crate::ids::SessionId;
use crate::wire::error::{ClientError, SqlState};
use crate::wire::message::AUTHENTICATION_OK;

/// Why a session did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("startup")]
    Startup(#[from] StartupError),
    #[error("new sessions are refused while draining")]
    Draining,
    #[error("client from another machine does not use TLS, which there is")]
    NotEncrypted,
    #[error("all of the {max} sessions are taken")]
    NoSeat { max: u32 },
    #[error("authentication of the client")]
    Auth(#[from] AuthError),
    #[error("routing")]
    Route(#[from] NoRoute),
    #[error("login")]
    Login(#[from] LoginError),
    #[error("cancel key")]
    CancelKey(#[from] CancelError),
    #[error("telling the client that its session has begun")]
    ClientLost(#[source] io::Error),
    #[error("client does not read")]
    ClientStalled,
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Who would have to do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    Client,
    Upstream,
    Vault,
    Proxy,
}

impl Blame {
    /// The word in logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Vault => "vault",
            Self::Proxy => "proxy",
        }
    }
}

impl SessionError {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Auth(AuthError::Random)
            | Self::Draining
            | Self::NoSeat { .. }
            | Self::CancelKey(_)
            | Self::Panicked(_) => Blame::Proxy,
            Self::Startup(_)
            | Self::NotEncrypted
            | Self::Auth(_)
            | Self::Route(_)
            | Self::ClientLost(_)
            | Self::ClientStalled => Blame::Client,
            Self::Login(error) => match error {
                LoginError::ClientGone => Blame::Client,
                LoginError::NoCredential { .. } | LoginError::NoSource(_) => Blame::Vault,
                LoginError::TimedOut { .. } | LoginError::Upstream(_) => Blame::Upstream,
            },
        }
    }

    /// The word in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Startup(StartupError::Evicted) => "evicted",
            Self::Startup(StartupError::Handshake(_) | StartupError::NoTls | StartupError::NoAlpn) => "tls",
            Self::Startup(_) => "startup",
            Self::NotEncrypted => "not_encrypted",
            Self::Draining => "draining",
            Self::NoSeat { .. } => "max_sessions",
            Self::Auth(_) => "auth",
            Self::Route(_) => "no_route",
            Self::CancelKey(_) => "internal",
            Self::Panicked(_) => "panic",
            Self::ClientLost(_) | Self::ClientStalled => "client_failed",
            Self::Login(error) => match error {
                LoginError::ClientGone => "client_gone",
                LoginError::NoCredential { .. } | LoginError::NoSource(_) => "no_credential",
                LoginError::TimedOut { .. } => "timeout",
                LoginError::Upstream(error) => error.reason(),
            },
        }
    }

    /// What the client is told; `None` for silence.
    pub(crate) fn client_error(&self, session: SessionId) -> Option<ClientError> {
        let error = match self {
            Self::Startup(error) => return error.client_error(),
            Self::Auth(error) => return error.client_error(),
            Self::Login(error) => return error.client_error(),
            Self::ClientLost(_) | Self::ClientStalled => return None,
            Self::NotEncrypted => ClientError::fatal(
                SqlState::INVALID_AUTHORIZATION,
                "connections from other machines must be encrypted",
            )
            .with_hint("Connect with sslmode=require, or better with sslmode=verify-full."),
            Self::Draining => ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "pglease is shutting down"),
            Self::NoSeat { max } => {
                ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many sessions already")
                    .with_detail(format!("pglease serves listen.max_sessions, {max}, at a time."))
            }
            Self::Route(error) => error.client_error(),
            Self::CancelKey(_) | Self::Panicked(_) => internal(session),
        };
        Some(error)
    }

    /// Writes what the client is told, in the words of its protocol.
    pub(crate) fn encode(&self, session: SessionId, out: &mut BytesMut) {
        if let Self::Startup(error) = self
            && let Some(answer) = error.old_style_answer()
        {
            out.extend_from_slice(&answer);
        } else if let Some(error) = self.client_error(session) {
            if error.is_of_one_let_in() {
                out.extend_from_slice(AUTHENTICATION_OK);
            }
            error.encode(out);
        }
    }
}

/// What a client is told of a bug of ours.
pub(crate) fn internal(session: SessionId) -> ClientError {
    ClientError::fatal(SqlState::INTERNAL_ERROR, "internal error")
        .with_detail(format!("The log of pglease has more under session {session}."))
}
