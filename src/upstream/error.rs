//! Why there is no upstream session, and what becomes of it: a log line, a label, a word to the client.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::config::{RequireAuth, TargetSessionAttrs};
use crate::telemetry::Causes;
use crate::wire::error::{ClientError, ErrorResponse, SqlState};
use crate::wire::frame::FrameError;
use crate::wire::negotiation::NegotiationError as VersionError;
use crate::wire::scram::ScramError;

use super::attrs::Unfit;
use super::connect::NegotiationError;
use super::refusal::{OnCredential, Stage};

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
    /// `28P01` or `28000`, said of our credential, not of the client's.
    #[error("upstream {address} rejected the credential with {}: {}", response.code_or_none(), response.message)]
    CredentialRejected { address: String, response: ErrorResponse },
    /// Upstream's own verdict on database, limits or parameters, or on where we come from.
    #[error("upstream {address} refused the session with {}: {}", response.code_or_none(), response.message)]
    Refused { address: String, response: ErrorResponse, credential: OnCredential },
    /// It let us in, and was told goodbye.
    #[error("upstream {address} is not the kind of server that is wanted: {is}")]
    Unfit { address: String, is: Unfit },
    #[error("{0}")]
    NoHost(Box<NoHost>),
}

/// All attempts at several hosts or addresses, or at one that did not fit.
#[derive(Debug)]
pub(crate) struct NoHost {
    pub(super) wanted: TargetSessionAttrs,
    /// At least one, in their order, none of them of this kind.
    pub(super) tried: Vec<UpstreamError>,
    pub(super) credential: OnCredential,
}

impl fmt::Display for NoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no upstream server for target_session_attrs={}", self.wanted.as_str())?;
        self.tried.iter().try_for_each(|error| write!(f, "; {}", Causes(error)))
    }
}

/// What tells most of all: the word of a server rather than a silence, the first of its kind.
pub(super) fn telling(tried: &[UpstreamError]) -> Option<&UpstreamError> {
    tried.iter().rev().max_by_key(|error| error.weight())
}

impl UpstreamError {
    pub(super) fn login(address: String, error: LoginError) -> Self {
        let LoginError::Refused { response, stage } = error else {
            return Self::Login { address, source: error };
        };
        match stage.judge(&response) {
            OnCredential::Rejected => Self::CredentialRejected { address, response },
            credential @ (OnCredential::Nothing
            | OnCredential::Doubtful
            | OnCredential::Accepted
            | OnCredential::Late) => Self::Refused { address, response, credential },
        }
    }

    /// How much it tells, beside others.
    fn weight(&self) -> u8 {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::Cancel { .. } | Self::NoHost(_) => 0,
            Self::TimedOut { .. } => 1,
            Self::Tls { .. } | Self::Login { .. } => 2,
            Self::CredentialRejected { .. } => 3,
            Self::Refused { .. } => 4,
            Self::Unfit { .. } => 5,
        }
    }

    /// What it tells of the credential.
    pub(crate) fn on_credential(&self) -> OnCredential {
        match self {
            Self::CredentialRejected { .. } => OnCredential::Rejected,
            Self::Refused { credential, .. } => *credential,
            Self::Unfit { .. } => OnCredential::Accepted,
            Self::NoHost(no_host) => no_host.credential,
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Tls { .. }
            | Self::Login { .. }
            | Self::Cancel { .. } => OnCredential::Nothing,
        }
    }

    /// The one attempt that tells most, where there were several.
    pub(crate) fn most_telling(&self) -> &Self {
        match self {
            Self::NoHost(no_host) => telling(&no_host.tried).unwrap_or(self),
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Tls { .. }
            | Self::Login { .. }
            | Self::Cancel { .. }
            | Self::CredentialRejected { .. }
            | Self::Refused { .. }
            | Self::Unfit { .. } => self,
        }
    }

    /// The same where other hosts have told something of it, too.
    pub(super) fn beside(mut self, others: OnCredential) -> Self {
        if let Self::Refused { credential, .. } = &mut self {
            *credential = others.max(*credential);
        }
        self
    }

    /// Upstream's own words, where they are what the client is told.
    pub(crate) fn response_mut(&mut self) -> Option<&mut ErrorResponse> {
        let Self::Refused { response, .. } = self else { return None };
        Some(response)
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
            Self::Unfit { .. } => "session_attrs",
            Self::NoHost(no_host) => telling(&no_host.tried).map_or("connect", Self::reason),
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
            | Self::Unfit { .. }
            | Self::Cancel { .. } => None,
            Self::NoHost(no_host) => telling(&no_host.tried).and_then(Self::sqlstate),
        }
    }

    /// What the client is told, written out arm by arm: `Display` is for the log.
    pub(crate) fn client_error(&self) -> ClientError {
        let unable =
            |message| ClientError::fatal(SqlState::UNABLE_TO_CONNECT, message).with_detail(self.told());
        match self {
            Self::Resolve { .. } | Self::Connect { .. } => unable("upstream server is not reachable"),
            Self::TimedOut { .. } => unable("upstream server did not answer in time"),
            Self::Tls { .. } => unable("no secure connection to upstream server"),
            Self::Login { source, .. } if source.is_untrusted() => unable("upstream server is not trusted"),
            Self::Login { .. } | Self::Cancel { .. } => unable("upstream server did not complete the login"),
            Self::CredentialRejected { .. } => {
                ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, "database credential is being replaced")
            }
            Self::Refused { response, .. } => ClientError::verbatim(response),
            Self::Unfit { .. } => unable("no upstream server is of the kind that is wanted"),
            Self::NoHost(no_host) => no_host.client_error(),
        }
    }

    /// The host and what was wrong with it, for a client: the words of a stranger are not passed on.
    fn told(&self) -> String {
        match self {
            Self::Resolve { host, source } if source.kind() == io::ErrorKind::TimedOut => {
                format!("{host}: name not resolved in time")
            }
            Self::Resolve { host, .. } => format!("{host}: name not resolved"),
            Self::Connect { address, source } => format!("{address}: {}", source.kind()),
            Self::TimedOut { address, limit } => format!("{address}: no answer within {limit:?}"),
            Self::Tls { address, source: NegotiationError::Stranger { .. } } => {
                format!("{address}: what answers the request for TLS is not PostgreSQL")
            }
            Self::Tls { address, source } => format!("{address}: {source}"),
            Self::Login { address, source } => format!("{address}: {}", source.told()),
            Self::Cancel { address, .. } => format!("{address}: cancel not delivered"),
            Self::CredentialRejected { address, .. } => format!("{address}: credential not accepted"),
            Self::Refused { address, response, .. } => {
                format!("{address}: {} {}", response.code_or_none(), response.message)
            }
            Self::Unfit { address, is } => format!("{address}: {is}"),
            Self::NoHost(no_host) => no_host.told(),
        }
    }
}

impl NoHost {
    fn client_error(&self) -> ClientError {
        let error = match telling(&self.tried) {
            // Not replaced, as not all of them have judged it.
            Some(UpstreamError::CredentialRejected { .. }) => ClientError::fatal(
                SqlState::UNABLE_TO_CONNECT,
                "no upstream server that could be asked accepts the database credential",
            ),
            Some(UpstreamError::Unfit { .. }) => ClientError::fatal(
                SqlState::UNABLE_TO_CONNECT,
                format!("no upstream server for target_session_attrs={}", self.wanted.as_str()),
            ),
            // Of a server that starts or goes: its own words, and those of the others.
            Some(UpstreamError::Refused { response, .. }) => ClientError::fatal(
                response.code.unwrap_or(SqlState::UNABLE_TO_CONNECT),
                response.message.as_str(),
            ),
            Some(error) => error.client_error(),
            None => ClientError::fatal(SqlState::UNABLE_TO_CONNECT, "upstream server is not reachable"),
        };
        error.with_detail(self.told())
    }

    /// One line for each attempt, and not more of them than a person reads.
    fn told(&self) -> String {
        let mut lines: Vec<String> = self.tried.iter().take(MAX_TOLD).map(UpstreamError::told).collect();
        if let Some(more) = self.tried.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
            lines.push(format!("and {more} more"));
        }
        lines.join("\n")
    }
}

/// Attempts that a client is told of.
const MAX_TOLD: usize = 16;

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
    Refused { response: ErrorResponse, stage: Stage },
}

impl LoginError {
    /// Whether the other side failed to show that it is the server that our credential is for. That says nothing
    /// about the credential.
    pub(super) fn is_untrusted(&self) -> bool {
        self.reason() == UNTRUSTED
    }

    /// For a client, as [`UpstreamError::told`].
    fn told(&self) -> String {
        match self {
            Self::Method { method, .. } => format!("asks for {method}, which require_auth does not allow"),
            Self::NothingAsked { .. } => "asks for nothing, which require_auth does not allow".to_owned(),
            Self::NotBound { asked } => {
                format!("asks for {asked}, which cannot be bound as channel_binding=require wants")
            }
            Self::Scram(ScramError::PlusNotOffered) => {
                "offers no channel binding, which channel_binding=require wants".to_owned()
            }
            Self::Scram(ScramError::NoMechanism) => {
                "offers no way of SCRAM that can be gone with channel_binding as it is".to_owned()
            }
            Self::Scram(ScramError::Iterations { .. }) => {
                "asks for a number of rounds of key derivation that is out of bounds".to_owned()
            }
            Self::InClear => "asks for the password in clear, which goes over verified TLS only".to_owned(),
            Self::OutOfOrder { .. }
            | Self::NotProven
            | Self::Scram(
                ScramError::ServerFirst { .. } | ScramError::NoSalt | ScramError::ServerFinal { .. },
            ) => "not trusted, as it did not prove that it knows the credential".to_owned(),
            Self::Io(_) | Self::Closed => "connection lost during login".to_owned(),
            Self::Version(_) => "does not agree with pglease on a version of the protocol".to_owned(),
            Self::UserName | Self::Password => "credential has a zero byte, which none can have".to_owned(),
            Self::Frame(_) | Self::Unexpected { .. } | Self::Malformed { .. } => {
                "not the protocol of PostgreSQL".to_owned()
            }
            Self::Refused { response, .. } => format!("{} {}", response.code_or_none(), response.message),
        }
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
            Self::Refused { .. } => "refused",
        }
    }
}

const UNTRUSTED: &str = "untrusted";

#[cfg(test)]
mod tests;
