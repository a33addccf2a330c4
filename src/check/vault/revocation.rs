//! How giving back went. Pure.

use crate::check::fault::Fault;
use crate::check::report::Found;
use crate::check::throwaway::{GivenBack, Left};
use crate::telemetry::Causes;
use crate::vault::{Answer, TokenKind, VaultError};

pub(super) fn judge(given: &GivenBack) -> Found {
    let roles = given.db_roles.join(", ");
    let leases = if roles.is_empty() { "no lease".to_owned() } else { format!("the lease of {roles}") };
    let left = left(&given.left);
    match (&given.result, given.kind) {
        (Ok(()), TokenKind::Service) => Found::fine(format!("the token, and {leases} with it")),
        (Ok(()), TokenKind::Foreign) => Found::fine(format!("{leases}; the token is not the check's")),
        (Ok(()), TokenKind::Batch) => {
            Found::fine(format!("{leases}; a batch token cannot be revoked: {left}"))
        }
        (Err(error), _) => {
            let (fault, cause, cure) = explain(error);
            let cause = format!("{}: {cause}", Causes(error));
            Found::fault(fault, format!("not revoked: {left}"), cause, cure)
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no cure of their own")]
fn explain(error: &VaultError) -> (Fault, &'static str, &'static str) {
    match error.answer() {
        Answer::Denied => (
            Fault::RevokeNotAllowed,
            "the token may not revoke itself, and the proxy's may not either",
            "# lines for a policy of the token; deploy/vault/policy.hcl has all:\n\
             path \"auth/token/lookup-self\" { capabilities = [\"read\"] }\n\
             path \"auth/token/revoke-self\" { capabilities = [\"update\"] }",
        ),
        _ => (
            Fault::RevokeFailed,
            "Vault went away in between",
            "# where the rest must not wait for its end:\nvault list sys/leases/lookup/<vault_path>\n\
             vault lease revoke -prefix <vault_path>",
        ),
    }
}

fn left(left: &[Left]) -> String {
    left.iter().map(|left| format!("{} {}", left.what, left.until)).collect::<Vec<_>>().join(", ")
}
