//! What the tasks of a chain report to it.

use std::sync::Arc;

use super::check::Findings;
use super::clock::Now;
use super::keeper::Kind;
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
    /// `result` is `None` where the probe took too long.
    Probed {
        generation: GenerationId,
        index: usize,
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
    /// No session holds the generation any more.
    Released(GenerationId),
    /// A token was revoked.
    Revoked {
        with: Revoked,
        result: Result<(), VaultError>,
    },
    /// A request ended with its token's revocation.
    Aborted,
}

/// What ends with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revoked {
    /// The lease of a generation.
    Lease(GenerationId),
    /// A lease that may have been made without our knowledge, if any.
    Draft,
    /// Nothing: its lease has ended before.
    Nothing,
}
