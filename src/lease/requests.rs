//! What the tasks of a chain report to it.

use std::sync::Arc;

use super::aftermath::Retired;
use super::check::Findings;
use super::clock::Now;
use super::keeper::Kind;
use super::learning::Tried;
use super::token::LiveToken;
use crate::ids::GenerationId;
use crate::upstream::UpstreamError;
use crate::vault::{Grant, Lease, Login, VaultError};

/// The end of one task.
#[derive(Debug)]
pub(super) enum Report {
    LoggedIn {
        asked_at: Now,
        result: Result<Login, VaultError>,
    },
    CredsRead {
        token: Arc<LiveToken>,
        asked_at: Now,
        result: Result<Lease, VaultError>,
        token_is_dead: bool,
    },
    /// Vault does not answer for the token that a sibling was to be read with.
    NoSibling {
        token: Arc<LiveToken>,
        error: VaultError,
    },
    /// `result` is `None` where the probe took too long.
    Probed {
        generation: GenerationId,
        prover: usize,
        result: Option<Result<(), UpstreamError>>,
    },
    /// A credential was looked into.
    Checked {
        generation: GenerationId,
        asked_at: Now,
        found: Findings,
    },
    Renewed {
        generation: GenerationId,
        kind: Kind,
        asked_at: Now,
        result: Result<Grant, VaultError>,
    },
    /// The file of a token that somebody else keeps was read again: what is left of the token, `None` where there is
    /// another one in the file.
    TokenSeen {
        generation: GenerationId,
        asked_at: Now,
        result: Result<Option<Grant>, VaultError>,
    },
    /// No session holds the generation any more.
    Released(GenerationId),
    /// A token or a lease was revoked.
    Revoked {
        with: Revoked,
        result: Result<(), VaultError>,
    },
    /// A throw-away credential has ended.
    Learned(Box<Tried>),
    /// A lease came to its end a while ago.
    RevocationDue(Retired),
    /// Such a lease was looked up.
    LookedFor {
        retired: Retired,
        result: Result<Grant, VaultError>,
    },
    /// A renewal or lookup ended with the revocation of what it was made with.
    Aborted,
    /// A creds read ended with its token's revocation.
    ReadAborted,
}

impl Report {
    /// What Vault said to the revocation of a token, if it is of one.
    pub(super) fn revocation(&self) -> Option<&Result<(), VaultError>> {
        if let Self::Learned(tried) = self {
            return tried.revoked.as_ref();
        }
        let Self::Revoked { result, .. } = self else { return None };
        Some(result)
    }
}

/// What ends with a revocation.
#[derive(Debug)]
pub(super) enum Revoked {
    /// The lease of a generation, alone.
    Lease(GenerationId),
    /// A token, and all generations that are being revoked under it.
    Token(Arc<LiveToken>),
    /// A lease that nobody uses, or a token under which one may have been made without our knowledge.
    Draft,
    /// Nothing: its lease has ended before.
    Nothing,
}
