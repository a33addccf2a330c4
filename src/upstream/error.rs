//! Why there is no upstream session, and what becomes of it: a log line, a label, a word to the client.

use std::io;
use std::time::Duration;

use crate::config::RequireAuth;
use crate::wire::error::{ClientError, ErrorResponse, SqlState};
use crate::wire::frame::FrameError;
use crate::wire::negotiation::NegotiationError as VersionError;
use crate::wire::scram::ScramError;

use super::connect::NegotiationError;

/// Why there is no upstream session. `address` is host, address and port, for the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("looking up upstream {host}")]
    Resolve { host: String, source: io::Error },
    #[error("connecting to upstream {address}")]
    Connect { address: String, source: io::Error },
    #[error("upstream {address} has not let us in within {limit:?}")]
    TimedOut { address: String, limit: Duration },
    #[error("no secure connection to upstream {address}")]
    Tls { address: String, source: NegotiationError },
    #[error("login at upstream {address} failed")]
    Login { address: String, source: LoginError },
    #[error("delivering a CancelRequest to upstream {address}")]
    Cancel { address: String, source: io::Error },
    /// `28P01` or `28000`: our credential, not the client's.
    #[error("upstream {address} rejected the credential with {}: {}", response.code_or_none(), response.message)]
    CredentialRejected { address: String, response: ErrorResponse },
    /// Upstream's own verdict on database, limits or parameters.
    #[error("upstream {address} refused the session with {}: {}", response.code_or_none(), response.message)]
    Refused { address: String, response: ErrorResponse },
}

impl UpstreamError {
    pub(super) fn login(address: String, error: LoginError) -> Self {
        let LoginError::Refused(response) = error else {
            return Self::Login { address, source: error };
        };
        match response.code {
            Some(SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION) => {
                Self::CredentialRejected { address, response }
            }
            _ => Self::Refused { address, response },
        }
    }

    /// Whether a server has spoken, so that another address of it would say the same.
    pub(super) fn is_verdict(&self) -> bool {
        matches!(self, Self::CredentialRejected { .. } | Self::Refused { .. })
    }

    /// Whether it was a server that failed, rather than the way to it.
    pub(super) fn is_of_server(&self) -> bool {
        !matches!(self, Self::Resolve { .. } | Self::Connect { .. })
    }

    /// The label `reason` of `upstream_connect_failures`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Connect { .. } => "connect",
            Self::TimedOut { .. } => "timeout",
            Self::Tls { .. } => "tls",
            Self::Login { source, .. } => source.reason(),
            Self::Cancel { .. } => "cancel",
            Self::CredentialRejected { .. } => "auth_rejected",
            Self::Refused { .. } => "refused",
        }
    }

    /// Upstream's code, where it gave one.
    pub(crate) fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Self::CredentialRejected { response, .. } | Self::Refused { response, .. } => response.code,
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Tls { .. }
            | Self::Login { .. }
            | Self::Cancel { .. } => None,
        }
    }

    /// What the client is told, written out arm by arm: `Display` is for the log.
    pub(crate) fn client_error(&self) -> ClientError {
        let unable = |message| ClientError::fatal(SqlState::UNABLE_TO_CONNECT, message);
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::TimedOut { .. } => {
                unable("upstream server is not reachable")
            }
            Self::Tls { .. } => unable("no secure connection to upstream server"),
            Self::Login { source, .. } if source.is_untrusted() => unable("upstream server is not trusted"),
            Self::Login { .. } | Self::Cancel { .. } => unable("upstream server did not complete the login"),
            Self::CredentialRejected { .. } => {
                ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "database credential is being replaced")
            }
            Self::Refused { response, .. } => ClientError::verbatim(response),
        }
    }
}

/// Why upstream has not let us in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("connection broke during login")]
    Io(#[from] io::Error),
    #[error("upstream closed the connection during login")]
    Closed,
    #[error("upstream sent a malformed message")]
    Frame(#[from] FrameError),
    #[error("upstream sent message {:?}, which has no place in a login", char::from(*tag))]
    Unexpected { tag: u8 },
    #[error("upstream sent a malformed {name}")]
    Malformed { name: &'static str },
    #[error("user name of the credential contains a zero byte")]
    UserName,
    #[error("password of the credential contains a zero byte")]
    Password,
    #[error("upstream and pglease do not agree on a version of the protocol")]
    Version(#[from] VersionError),
    #[error("upstream asks for {method}, and require_auth is {allowed}")]
    Method { method: &'static str, allowed: RequireAuth },
    #[error("upstream asks for nothing, and require_auth is {allowed}")]
    NothingAsked { allowed: RequireAuth },
    #[error("upstream asks for the password in clear, which goes over verified TLS only")]
    InClear,
    #[error("upstream sent {name} out of order")]
    OutOfOrder { name: &'static str },
    #[error("upstream asks for {asked}, and channel binding is required")]
    NotBound { asked: &'static str },
    #[error("upstream let us in without proof that it knows the credential")]
    NotProven,
    #[error("SCRAM authentication failed")]
    Scram(#[from] ScramError),
    #[error("upstream refused the login")]
    Refused(ErrorResponse),
}

impl LoginError {
    /// Whether the other side failed to show that it is the server that our credential is for. That says nothing
    /// about the credential.
    pub(super) fn is_untrusted(&self) -> bool {
        self.reason() == UNTRUSTED
    }

    /// As [`UpstreamError::reason`].
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) | Self::Closed => "lost",
            Self::Frame(_)
            | Self::Unexpected { .. }
            | Self::Malformed { .. }
            | Self::UserName
            | Self::Password
            | Self::Version(_) => "protocol",
            Self::Method { .. }
            | Self::NothingAsked { .. }
            | Self::InClear
            | Self::OutOfOrder { .. }
            | Self::NotBound { .. }
            | Self::NotProven
            | Self::Scram(_) => UNTRUSTED,
            Self::Refused(_) => "refused",
        }
    }
}

const UNTRUSTED: &str = "untrusted";

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8]) -> UpstreamError {
        UpstreamError::login("db".to_owned(), LoginError::Refused(ErrorResponse::parse(body)))
    }

    #[test]
    fn only_28p01_and_28000_are_against_the_credential() {
        for code in ["28P01", "28000"] {
            let error = refused(format!("SFATAL\0C{code}\0Mno\0\0").as_bytes());
            assert_eq!(
                (error.reason(), error.sqlstate().unwrap().to_string()),
                ("auth_rejected", code.into())
            );
            let told =
                ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "database credential is being replaced");
            assert_eq!(error.client_error(), told);
        }
        for body in [&b"C53300\0Mfull\0\0"[..], b"C57P03\0\0", b"C42501\0\0", b"Mno code\0\0", b""] {
            let error = refused(body);
            assert_eq!(error.reason(), "refused");
            assert_eq!(error.client_error(), ClientError::Verbatim(ErrorResponse::parse(body)));
        }
    }

    #[test]
    fn client_hears_nothing_of_hosts_and_foreign_bytes() {
        let address = || "db.internal (10.0.0.1:5432)".to_owned();
        let io = || io::Error::other("secret detail");
        for error in [
            UpstreamError::Resolve { host: address(), source: io() },
            UpstreamError::Connect { address: address(), source: io() },
            UpstreamError::TimedOut { address: address(), limit: Duration::from_secs(1) },
            UpstreamError::Tls { address: address(), source: NegotiationError::Stranger { byte: b'H' } },
            UpstreamError::Login { address: address(), source: LoginError::NotProven },
            UpstreamError::Login { address: address(), source: LoginError::Closed },
        ] {
            let ClientError::Own { code, message, .. } = error.client_error() else { panic!("{error}") };
            assert_eq!(code, SqlState::UNABLE_TO_CONNECT);
            assert!(!message.contains("10.0.0.1") && !message.contains("secret"), "{message}");
            assert!(error.to_string().contains("db.internal"), "{error}");
        }
    }
}
