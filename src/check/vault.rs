//! The way to Vault, as `vault` goes it for a chain: login, creds, and all of it given back.

use std::sync::Arc;
use std::time::SystemTime;

use super::name::Name;
use super::report::{Class, Found, Recorder};
use super::throwaway::{GivenBack, Left, OwnCredential, OwnLogin, Throwaway};
use crate::config;
use crate::telemetry::Causes;
use crate::vault::{Answer, Grant, TokenKind, VaultError};

/// Logs in.
pub(super) async fn log_in(throwaway: &Throwaway, record: &Recorder) -> Option<OwnLogin> {
    let work = async {
        match throwaway.log_in().await {
            Ok(login) => Found::fine(format!("a token for {}", life(&login.grant))).with(login),
            Err(error) => refused(&error),
        }
    };
    record.step(Name::VaultLogin, "", work).await
}

/// Reads a credential.
pub(super) async fn read_creds(
    throwaway: &Throwaway,
    login: &OwnLogin,
    vault_path: &str,
    record: &Recorder,
) -> Option<OwnCredential> {
    if config::is_static(vault_path) {
        record.skip(Name::VaultCreds, vault_path, "a static role").await;
        return None;
    }
    let work = async {
        match throwaway.read_creds(login, vault_path).await {
            Ok(made) => Found::fine(format!("{} for {}", made.credential.user, life(&made.grant))).with(made),
            Err(error) => refused(&error),
        }
    };
    record.step(Name::VaultCreds, vault_path, work).await
}

/// Gives everything back; `true` where it is.
pub(super) async fn give_back(throwaway: &Arc<Throwaway>, record: &Recorder) -> Option<GivenBack> {
    let work = async {
        match throwaway.give_back().await {
            Some(given) => judge(given),
            None => Found::skipped("nothing was made"),
        }
    };
    record.step(Name::VaultRevoke, "", work).await
}

fn judge(given: GivenBack) -> Found<GivenBack> {
    let leases = match given.db_roles.as_slice() {
        [] => "no lease".to_owned(),
        roles => roles.join(", "),
    };
    let left = left(&given.left);
    match (&given.result, given.kind) {
        (Ok(()), TokenKind::Service) => Found::fine(format!("the token, {leases}")).with(given),
        (Ok(()), TokenKind::Foreign) => {
            Found::fine(format!("{leases}; the token is not the check's")).with(given)
        }
        (Ok(()), TokenKind::Batch) => {
            Found::fine(format!("{leases}; a batch token cannot be: {left}")).with(given)
        }
        (Err(error), _) => {
            let (class, cause) = (class(error), Causes(error).to_string());
            let cure = "the least that is needed is in deploy/vault/policy.hcl";
            Found::fault(class, format!("not revoked: {left}"), cause, cure)
        }
    }
}

fn life(grant: &Grant) -> String {
    grant.ttl.map_or_else(|| "ever".to_owned(), |ttl| humantime::format_duration(ttl).to_string())
}

fn left(left: &[Left]) -> String {
    let until = |until: Option<SystemTime>| match until {
        Some(until) => format!("ends at {}", humantime::format_rfc3339_seconds(until)),
        None => "does not end".to_owned(),
    };
    left.iter().map(|left| format!("{} {}", left.what, until(left.until))).collect::<Vec<_>>().join(", ")
}

fn refused<T>(error: &VaultError) -> Found<T> {
    let cause = Causes(error).to_string();
    Found::fault(class(error), "refused", cause, "see docs/setup.md")
}

fn class(error: &VaultError) -> Class {
    match error.answer() {
        Answer::NotSent | Answer::Lost | Answer::Redirect | Answer::TryLater { .. } | Answer::Unavailable => {
            Class::Unavailable
        }
        Answer::Denied => Class::Permission,
        Answer::Malformed | Answer::BadRequest | Answer::NotFound | Answer::Unexpected => {
            Class::Configuration
        }
    }
}
