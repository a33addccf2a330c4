//! What a set-up in Vault takes away from a credential, told to the operator once for each loss.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::warn;

use crate::vault::{Grant, TokenKind};

/// What may be lost to a credential: what its login and its creds read have granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Losses {
    pub(super) kind: TokenKind,
    /// Whether the token may look itself up, and so renew itself and its leases.
    pub(super) may_renew: bool,
    pub(super) token: Grant,
    pub(super) lease: Grant,
}

/// One loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    NoDefaultPolicy,
    BatchToken,
    TokenNotRenewable,
    LeaseNotRenewable,
    LongTtl,
}

/// What the operator of one chain has been told.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    told: BTreeSet<Loss>,
}

impl Losses {
    fn all(self) -> Vec<Loss> {
        let is_ours = self.kind == TokenKind::Service;
        let ends = self.token.ttl.is_some();
        let long = self.lease.ttl.is_some_and(|ttl| ttl > LONG_TTL);
        let losses = [
            (Loss::NoDefaultPolicy, !self.may_renew),
            (Loss::BatchToken, self.kind == TokenKind::Batch),
            (Loss::TokenNotRenewable, self.may_renew && is_ours && ends && !self.token.renewable),
            (Loss::LeaseNotRenewable, self.may_renew && !self.lease.renewable),
            (Loss::LongTtl, long),
        ];
        losses.into_iter().filter_map(|(loss, is_true)| is_true.then_some(loss)).collect()
    }
}

impl Warnings {
    /// Logs those that were not logged before.
    pub(super) fn tell(&mut self, vault_path: &str, losses: Losses) {
        for loss in losses.all() {
            if self.told.insert(loss) {
                log(vault_path, loss, losses.lease.ttl.unwrap_or_default());
            }
        }
    }
}

fn log(vault_path: &str, loss: Loss, ttl: Duration) {
    match loss {
        Loss::NoDefaultPolicy => warn!(
            event = "token.without_default_policy",
            vault_path,
            "neither lease nor token can be renewed or revoked: give the auth role the default policy",
        ),
        Loss::BatchToken => warn!(
            event = "token.batch",
            vault_path,
            "it can be neither renewed nor revoked, and a lost answer leaves a role behind: \
             give the auth role the token_type service",
        ),
        Loss::TokenNotRenewable => warn!(
            event = "token.not_renewable",
            vault_path, "the credential is replaced each time that the token ends",
        ),
        Loss::LeaseNotRenewable => warn!(
            event = "lease.not_renewable",
            vault_path, "the credential is replaced before each end of its ttl",
        ),
        Loss::LongTtl => warn!(
            event = "lease.long_ttl",
            vault_path,
            ttl_seconds = ttl.as_secs(),
            "what a crash leaves behind lives as long: give the vault_role a default_ttl",
        ),
    }
}

/// A `vault_role` without a TTL of its own gets Vault's 32 days.
const LONG_TTL: Duration = Duration::from_hours(24);

#[cfg(test)]
mod tests {
    use super::*;

    const fn grant(hours: u64, renewable: bool) -> Grant {
        Grant { ttl: Some(Duration::from_hours(hours)), renewable }
    }

    #[test]
    fn each_loss_is_found() {
        let good = Losses {
            kind: TokenKind::Service,
            may_renew: true,
            token: grant(1, true),
            lease: grant(24, true),
        };
        for (losses, found) in [
            (good, vec![]),
            (Losses { may_renew: false, ..good }, vec![Loss::NoDefaultPolicy]),
            (Losses { kind: TokenKind::Batch, token: grant(1, false), ..good }, vec![Loss::BatchToken]),
            (Losses { token: grant(1, false), ..good }, vec![Loss::TokenNotRenewable]),
            (Losses { token: Grant { ttl: None, renewable: false }, ..good }, vec![]),
            (Losses { kind: TokenKind::Foreign, token: grant(1, false), ..good }, vec![]),
            (Losses { lease: grant(768, false), ..good }, vec![Loss::LeaseNotRenewable, Loss::LongTtl]),
        ] {
            assert_eq!(losses.all(), found, "{losses:?}");
        }
    }

    #[test]
    fn each_is_told_once() {
        let mut warnings = Warnings::default();
        let losses = Losses {
            kind: TokenKind::Batch,
            may_renew: false,
            token: grant(1, false),
            lease: grant(24, true),
        };
        for _ in 0..2 {
            warnings.tell("database/creds/db-app", losses);
            assert_eq!(warnings.told.len(), 2);
        }
    }
}
