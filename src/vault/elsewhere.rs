//! Leases in another namespace than their token's. OpenBao does not end them with it, so they are ended one by one
//! before it is revoked.

use std::sync::{Mutex, PoisonError};

use secrecy::ExposeSecret;

use super::{Answer, Token, VaultApi, VaultError};
use crate::ids::LeaseId;

/// Those that were read and not ended, with their tokens.
#[derive(Debug, Default)]
pub(super) struct Elsewhere(Mutex<Vec<(Token, LeaseId)>>);

impl Elsewhere {
    pub(super) fn add(&self, token: &Token, lease: &LeaseId) {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        leases.push((token.clone(), lease.clone()));
        // Those of tokens that ended by themselves are never asked for.
        let excess = leases.len().saturating_sub(MAX_LEASES);
        leases.drain(..excess);
    }

    fn of(&self, token: &Token) -> Vec<LeaseId> {
        let leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        leases.iter().filter(|(of, _)| is_same(of, token)).map(|(_, lease)| lease.clone()).collect()
    }

    fn remove(&self, lease: &LeaseId) {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|(_, known)| known != lease);
    }
}

/// Ends the leases of `token`. An outer error is worth another try before the token is gone, an inner one is not.
pub(super) async fn end_leases(
    vault: &impl VaultApi,
    elsewhere: &Elsewhere,
    token: &Token,
) -> Result<Result<(), VaultError>, VaultError> {
    let mut ended = Ok(());
    for lease in elsewhere.of(token) {
        let result = vault.expire_lease(token, &lease).await;
        match result.as_ref().map_err(VaultError::answer) {
            // Where Vault does not know it, it has ended.
            Ok(()) | Err(Answer::BadRequest) => {}
            Err(Answer::Denied) => ended = result,
            Err(_) => return result.map(Ok),
        }
        elsewhere.remove(&lease);
    }
    Ok(ended)
}

fn is_same(one: &Token, other: &Token) -> bool {
    one.0.expose_secret() == other.0.expose_secret()
}

/// More than are alive at a time: nine generations of each chain.
const MAX_LEASES: usize = 256;
