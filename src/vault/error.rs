//! What went wrong towards Vault, and what kind of answer it was. Pure.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::api::Unusable;
use super::approle::SPENT;
use super::http::ExchangeError;
use super::state_dir::StateDirError;
use crate::tls::TlsError;

/// A request that pglease makes of Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Login,
    Unwrap,
    LookUpSelf,
    ReadCreds,
    RenewLease,
    RenewSelf,
    LookUpLease,
    ExpireLease,
    ReadStaticCreds,
    RevokeSelf,
    /// Of `pglease check` alone, as those below.
    Health,
    Capabilities,
    StretchLease,
}

/// Whose namespace a request is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// That of the token.
    Login,
    Secrets,
    /// None.
    Server,
}

impl Operation {
    /// The label in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Unwrap => "unwrap",
            Self::LookUpSelf => "lookup_self",
            Self::ReadCreds => "creds",
            Self::RenewLease => "renew",
            Self::RenewSelf => "renew_self",
            Self::LookUpLease => "lookup",
            Self::ExpireLease => "expire",
            Self::ReadStaticCreds => "static_creds",
            Self::RevokeSelf => "revoke_self",
            Self::Health => "health",
            Self::Capabilities => "capabilities",
            Self::StretchLease => "stretch",
        }
    }
}

impl Operation {
    pub(super) fn scope(self) -> Scope {
        match self {
            Self::Login
            | Self::Unwrap
            | Self::LookUpSelf
            | Self::RenewSelf
            | Self::RevokeSelf
            | Self::Capabilities => Scope::Login,
            Self::ReadCreds
            | Self::RenewLease
            | Self::LookUpLease
            | Self::ExpireLease
            | Self::ReadStaticCreds
            | Self::StretchLease => Scope::Secrets,
            Self::Health => Scope::Server,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no client for Vault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultSetupError {
    #[error("TLS with vault.address")]
    Tls(#[from] TlsError),
    #[error("{setting} cannot be sent as a header")]
    Namespace { setting: &'static str },
    #[error("vault.address is no URL")]
    Address,
    #[error("vault.proxy is no URL")]
    Proxy,
    #[error("vault.state_dir {path:?}")]
    StateDir { path: PathBuf, source: StateDirError },
}

/// Why Vault did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("{setting} {path:?} {problem}")]
    File { setting: &'static str, path: PathBuf, problem: FileProblem },
    #[error("vault.login.secret_id_file {path:?}: {SPENT}")]
    Spent { path: PathBuf },
    /// Vault is not asked again yet.
    #[error(
        "vault.login.role_id, or what vault.login.secret_id_file {path:?} holds, was refused {times} times: not tried \
         again for {} s, unless the file changes",
        left.as_secs()
    )]
    HeldBack { path: PathBuf, times: u32, left: Duration },
    /// The request never went out.
    #[error("no connection to Vault for {operation}")]
    NoConnection { operation: Operation, source: Option<ExchangeError> },
    /// The request went out, and Vault may have done it.
    #[error("no answer from Vault to {operation}")]
    NoAnswer { operation: Operation, source: Option<ExchangeError> },
    /// `texts` are Vault's own: for people, never for a decision.
    #[error("Vault answered {operation} with {status}{}", said(texts))]
    Refused { operation: Operation, status: u16, texts: String, retry_after: Option<Duration> },
    #[error("Vault's answer to {operation} is of no use")]
    Unusable { operation: Operation, source: Unusable },
}

/// What is wrong with a file that a login needs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileProblem {
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    #[error("is empty")]
    Empty,
    #[error("is longer than 65536 bytes")]
    TooLong,
    #[error("holds characters that are not of one line of text")]
    Characters,
    #[error("holds a token that may be used a limited number of times: use one with num_uses 0")]
    LimitedUses,
}

fn said(texts: &str) -> String {
    if texts.is_empty() { String::new() } else { format!(": {texts}") }
}

/// The kinds of answer that the error policy tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The request was never sent: no connection, or nothing to log in with.
    NotSent,
    /// Sent, and not answered: Vault may have done it.
    Lost,
    /// A success of another shape or status than the API's.
    Malformed,
    /// A standby names another address, which was not followed.
    Redirect,
    /// 400.
    BadRequest,
    /// 401 or 403.
    Denied,
    /// 404.
    NotFound,
    /// 412 and 429, with `Retry-After` where it was given.
    TryLater { retry_after: Option<Duration> },
    /// Another 4xx: a fault of ours.
    Unexpected,
    /// 5xx, and the 47x with which Vault speaks of its own state.
    Unavailable,
}

impl Answer {
    /// The word in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Lost => "no_answer",
            Self::Malformed => "malformed",
            Self::Redirect => "redirect",
            Self::BadRequest => "bad_request",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::TryLater { .. } => "try_later",
            Self::Unexpected => "unexpected",
            Self::Unavailable => "unavailable",
        }
    }

    /// Whether Vault may have done what it was asked for, without our knowledge.
    pub(crate) fn may_have_made_one(self) -> bool {
        matches!(self, Self::Lost | Self::Malformed)
    }
}

impl VaultError {
    /// What kind of answer this was.
    pub(crate) fn answer(&self) -> Answer {
        match self {
            Self::File { .. } | Self::Spent { .. } | Self::HeldBack { .. } | Self::NoConnection { .. } => {
                Answer::NotSent
            }
            Self::NoAnswer { .. } => Answer::Lost,
            Self::Unusable { .. } => Answer::Malformed,
            Self::Refused { status, retry_after, .. } => match status {
                300..400 => Answer::Redirect,
                400 => Answer::BadRequest,
                401 | 403 => Answer::Denied,
                404 => Answer::NotFound,
                412 | 429 => Answer::TryLater { retry_after: *retry_after },
                472..=474 => Answer::Unavailable,
                401..500 => Answer::Unexpected,
                _ => Answer::Unavailable,
            },
        }
    }

    /// The word in `/status`: as [`Self::answer`] has it, but for what was not sent because of a file.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } | Self::Spent { .. } | Self::HeldBack { .. } => "file",
            Self::NoConnection { .. }
            | Self::NoAnswer { .. }
            | Self::Refused { .. }
            | Self::Unusable { .. } => self.answer().as_str(),
        }
    }

    /// What was asked.
    pub(crate) fn operation(&self) -> Operation {
        match self {
            Self::File { .. } | Self::Spent { .. } | Self::HeldBack { .. } => Operation::Login,
            Self::NoConnection { operation, .. }
            | Self::NoAnswer { operation, .. }
            | Self::Refused { operation, .. }
            | Self::Unusable { operation, .. } => *operation,
        }
    }

    /// HTTP status, where there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Unusable { source: Unusable::Status { status }, .. } => {
                Some(*status)
            }
            Self::Unusable { .. } => Some(200),
            Self::File { .. }
            | Self::Spent { .. }
            | Self::HeldBack { .. }
            | Self::NoConnection { .. }
            | Self::NoAnswer { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests themselves are held against the table by tests/e2e/replay.rs.
    #[test]
    fn every_operation_is_documented() {
        use Operation as Op;
        let docs = include_str!("../../docs/vault.md");
        for operation in [
            Op::Login,
            Op::Unwrap,
            Op::LookUpSelf,
            Op::ReadCreds,
            Op::RenewLease,
            Op::RenewSelf,
            Op::LookUpLease,
            Op::ExpireLease,
            Op::ReadStaticCreds,
            Op::RevokeSelf,
            Op::Health,
            Op::Capabilities,
            Op::StretchLease,
        ] {
            assert_eq!(docs.matches(&format!("\n| `{operation}` | `")).count(), 1, "{operation}");
        }
        assert_eq!(docs.matches("\n| `").count(), 13);
    }

    fn refused(status: u16, retry_after: Option<Duration>) -> VaultError {
        let texts = "permission denied".to_owned();
        VaultError::Refused { operation: Operation::ReadCreds, status, texts, retry_after }
    }

    #[test]
    fn every_status_is_of_one_kind() {
        let later = Some(Duration::from_secs(9));
        for (status, answer) in [
            (301, Answer::Redirect),
            (307, Answer::Redirect),
            (308, Answer::Redirect),
            (400, Answer::BadRequest),
            (401, Answer::Denied),
            (403, Answer::Denied),
            (404, Answer::NotFound),
            (405, Answer::Unexpected),
            (412, Answer::TryLater { retry_after: later }),
            (413, Answer::Unexpected),
            (422, Answer::Unexpected),
            (429, Answer::TryLater { retry_after: later }),
            (472, Answer::Unavailable),
            (473, Answer::Unavailable),
            (474, Answer::Unavailable),
            (500, Answer::Unavailable),
            (503, Answer::Unavailable),
            (599, Answer::Unavailable),
            (999, Answer::Unavailable),
        ] {
            assert_eq!(refused(status, later).answer(), answer, "{status}");
        }
    }

    #[test]
    fn error_names_operation_status_and_vaults_words() {
        assert_eq!(refused(403, None).to_string(), "Vault answered creds with 403: permission denied");
    }
}
