//! How long tokens and leases last, what ends a credential first, and how often there is a new one. Pure.

use std::time::Duration;

use super::command::Commands;
use crate::check::fault::Warning;
use crate::check::report::Found;
use crate::config::LoginMethod;
use crate::vault::{Answer, Grant, TokenFacts, TokenKind};

/// What is known of the token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) granted: Grant,
    /// `None`: it may not be looked up.
    pub(super) facts: Option<TokenFacts>,
    /// `None`: it is not ours to renew.
    pub(super) renewed: Option<Result<Grant, Answer>>,
}

/// What is known of a lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) granted: Grant,
    pub(super) renewed: Result<Grant, Answer>,
    /// As long as it can get; `None`: it could not be asked, or is as long as its token.
    pub(super) longest: Option<Duration>,
}

/// Judges what the login has given.
pub(super) fn judge_token(token: &Token, method: &LoginMethod, commands: Commands<'_>) -> Found {
    let life = life(token.granted.ttl);
    let kind = match token.kind {
        TokenKind::Service => "a service token",
        TokenKind::Batch => "a batch token",
        TokenKind::Foreign => "somebody else's token",
    };
    let found = format!("{kind} for {life}");
    let set = |field: &str| {
        auth_role(method)
            .map_or_else(|| "put another one there".to_owned(), |role| commands.write(&role, field))
    };
    let ends = token.granted.ttl.is_some();
    match (token.kind, token.renewed) {
        (TokenKind::Batch, _) => Found::warning(
            Warning::TokenBatch,
            found,
            "it can be neither renewed nor revoked: leases are ended one by one, and a creds read whose answer is lost \
             leaves a role behind until its TTL",
            set("token_type=service"),
        ),
        (TokenKind::Foreign, _) => Found::fine(format!("{found}, whose keeper renews it")),
        (TokenKind::Service, _) if ends && !token.granted.renewable => Found::warning(
            Warning::TokenNotRenewable,
            format!("{found}, not renewable"),
            "the credential is replaced each time that the token ends",
            set("token_type=service token_period=0"),
        ),
        (TokenKind::Service, None) => Found::fine(found),
        (TokenKind::Service, Some(Ok(renewed))) => {
            let policies = token.facts.as_ref().map(|facts| facts.policies.join(", "));
            let policies = policies.map_or_else(String::new, |policies| format!(", policies {policies}"));
            Found::fine(format!("{found}, renewed to {}{policies}", self::life(renewed.ttl)))
        }
        (TokenKind::Service, Some(Err(Answer::Denied))) => Found::warning(
            Warning::TokenRenewalRefused,
            format!("{found}, and its renewal was refused"),
            "it may not renew itself (vault.policy), or the API server does not vouch for the JWT of its login any more: \
             the credential is replaced each time that the token ends",
            "see vault.policy and vault.identity",
        ),
        (TokenKind::Service, Some(Err(answer))) => Found::warning(
            Warning::TokenRenewalFailed,
            format!("{found}, and its renewal failed: {}", answer.as_str()),
            "a deleted auth role, and trouble of Vault's, do so",
            auth_role(method).map_or_else(|| "see Vault's log".to_owned(), |role| commands.read(&role, "")),
        ),
    }
}

/// Judges what the creds read has given.
pub(super) fn judge_lease(lease: &Lease, vault_path: &str, commands: Commands<'_>) -> Found {
    let ttl = lease.granted.ttl.unwrap_or_default();
    let role = vault_role(vault_path);
    let set = |field: &str| commands.write(&role, field);
    let found = format!("for {}", life(Some(ttl)));
    let renewed = match lease.renewed {
        _ if !lease.granted.renewable => {
            return Found::warning(
                Warning::LeaseNotRenewable,
                format!("{found}, not renewable"),
                "the credential is replaced before each end of its TTL",
                "give the auth role tokens that are renewable (token_type=service): leases of others are not",
            );
        }
        Ok(renewed) => renewed.ttl.unwrap_or_default(),
        Err(Answer::Denied) => {
            return Found::warning(
                Warning::LeaseRenewalRefused,
                format!("{found}, and its renewal was refused"),
                "the token may not renew leases (vault.policy): the credential is replaced each time that its TTL ends",
                "see vault.policy",
            );
        }
        Err(answer) => {
            return Found::warning(
                Warning::LeaseRenewalFailed,
                format!("{found}, and its renewal failed: {}", answer.as_str()),
                "Vault could not move VALID UNTIL in PostgreSQL: renew_statements that fail, or its connection there",
                format!(
                    "{}\n# empty renew_statements are Vault's own:\n{}",
                    commands.read(&role, ""),
                    set("renew_statements=")
                ),
            );
        }
    };
    let longest =
        lease.longest.map_or_else(String::new, |longest| format!(", max_ttl {}", life(Some(longest))));
    let found = format!("{found}, renewed to {}{longest}", life(Some(renewed)));
    if ttl > LONG_TTL {
        return Found::warning(
            Warning::LeaseLong,
            found,
            "what a crash leaves behind lives as long",
            set("default_ttl=1h"),
        );
    }
    if ttl < SHORT_TTL {
        let cause =
            "a renewal behind a slow revocation takes 10 s and more, and the credential may end before it";
        return Found::warning(Warning::LeaseShort, found, cause, set("default_ttl=1h max_ttl=24h"));
    }
    if lease.longest.is_some_and(|longest| longest < ttl.mul_f64(LEAST_LENGTHENING)) {
        let cause =
            "max_ttl is hardly longer than default_ttl: a lease is replaced each time instead of renewed";
        return Found::warning(
            Warning::LeaseHardlyLengthened,
            found,
            cause,
            set(&format!("max_ttl={}s", (ttl * 24).as_secs())),
        );
    }
    Found::fine(found)
}

/// What the end of a credential depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation<'a> {
    pub(super) token: &'a Token,
    pub(super) lease: &'a Lease,
    /// What is left of the JWT of the login, where tokens are renewed only while that holds.
    pub(super) jwt_left: Option<Duration>,
    pub(super) vault_path: &'a str,
    pub(super) method: &'a LoginMethod,
}

/// What ends a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    LeaseMaximum,
    LeaseNotRenewed,
    TokenMaximum,
    TokenNotRenewed,
    Jwt,
}

impl Rotation<'_> {
    /// What comes first, and after how long; `None`: nothing that can be seen from here.
    fn first(&self) -> Option<(Duration, End)> {
        let Self { token, lease, jwt_left, .. } = *self;
        let ttl = lease.granted.ttl.unwrap_or_default();
        let of_lease = match lease.renewed {
            Ok(_) if lease.granted.renewable => lease.longest.map(|longest| (longest, End::LeaseMaximum)),
            _ => Some((ttl, End::LeaseNotRenewed)),
        };
        let is_renewed = token.kind == TokenKind::Foreign || matches!(token.renewed, Some(Ok(_)));
        let of_token = if is_renewed {
            let facts = token.facts.as_ref();
            facts.and_then(|facts| facts.explicit_max_ttl).map(|longest| (longest, End::TokenMaximum))
        } else {
            token.granted.ttl.map(|ttl| (ttl, End::TokenNotRenewed))
        };
        let of_jwt = jwt_left.filter(|_| token.kind == TokenKind::Service).map(|left| (left, End::Jwt));
        [of_lease, of_token, of_jwt].into_iter().flatten().min()
    }
}

/// Judges what comes first, and when.
pub(super) fn judge_rotation(rotation: Rotation<'_>, commands: Commands<'_>) -> Found {
    let Rotation { lease, vault_path, method, .. } = rotation;
    let ttl = lease.granted.ttl;
    let renewal = ttl.map_or_else(String::new, |ttl| format!(", a renewal every {}", life(Some(ttl / 2))));
    let Some((after, end)) = rotation.first() else {
        return Found::fine(format!("no end is in sight{renewal}"));
    };
    let what = match end {
        End::LeaseMaximum => "the lease's max_ttl",
        End::LeaseNotRenewed => "the lease, which is not renewed,",
        End::TokenMaximum => "the token's explicit_max_ttl",
        End::TokenNotRenewed => "the token, which is not renewed,",
        End::Jwt => "the login's JWT, without which OpenBao renews no token,",
    };
    let found = format!("{what} ends first: a new credential within {}{renewal}", life(Some(after)));
    if after >= OFTEN {
        return Found::fine(found);
    }
    let cause = "each new credential is a login, a role in PostgreSQL and a revocation; for sessions on a role that is \
                 dropped it is the end";
    let of_auth = |fields: &str| {
        let role = auth_role(method);
        role.map_or_else(|| "put a longer one there".to_owned(), |role| commands.write(&role, fields))
    };
    let cure = match end {
        End::LeaseMaximum | End::LeaseNotRenewed => {
            commands.write(&vault_role(vault_path), "default_ttl=1h max_ttl=24h")
        }
        End::TokenMaximum => of_auth("token_explicit_max_ttl=0"),
        End::TokenNotRenewed => of_auth("token_type=service token_ttl=1h"),
        End::Jwt => "set the annotation pglease.dev/token-expiration: 24h, or expirationSeconds: 86400 of the projected \
                     ServiceAccount token"
            .to_owned(),
    };
    Found::warning(Warning::RotatesOften, found, cause, cure)
}

/// Where a lease's `vault_role` is written.
fn vault_role(vault_path: &str) -> String {
    vault_path.replacen("/creds/", "/roles/", 1)
}

/// Where the auth role is written; `None` where tokens come in a file.
fn auth_role(method: &LoginMethod) -> Option<String> {
    match method {
        LoginMethod::Kubernetes { mount, role, .. } | LoginMethod::Jwt { mount, role, .. } => {
            Some(format!("auth/{mount}/role/{role}"))
        }
        LoginMethod::AppRole { mount, .. } => Some(format!("auth/{mount}/role/<name>")),
        LoginMethod::Cert { mount, role } => {
            Some(format!("auth/{mount}/certs/{}", role.as_deref().unwrap_or("<name>")))
        }
        LoginMethod::TokenFile { .. } => None,
    }
}

/// `None` does not end.
pub(super) fn life(ttl: Option<Duration>) -> String {
    let whole = |ttl: Duration| humantime::format_duration(Duration::from_secs(ttl.as_secs())).to_string();
    ttl.map_or_else(|| "ever".to_owned(), whole)
}

/// A `vault_role` without a TTL of its own gets Vault's 32 days.
const LONG_TTL: Duration = Duration::from_hours(24);

/// Below it the stalls of a busy Vault are as long as the lease.
const SHORT_TTL: Duration = Duration::from_mins(1);

/// Of the TTL; below it `max_ttl` is no more than that, but for what has passed since.
const LEAST_LENGTHENING: f64 = 1.5;

/// More often than this a new credential is worth a word.
const OFTEN: Duration = Duration::from_mins(15);

#[cfg(test)]
mod tests;
