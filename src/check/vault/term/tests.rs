//! What is judged of tokens, leases and what comes of both.

use super::*;
use crate::check::report::Outcome;
use crate::config::{LoginConfig, VaultConfig, VaultTls};

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

fn config() -> VaultConfig {
    let method = LoginMethod::Kubernetes {
        mount: "kubernetes".to_owned(),
        role: "web".to_owned(),
        jwt_file: "token".into(),
    };
    VaultConfig {
        address: "http://vault:8200".to_owned(),
        namespace: Some("team".to_owned()),
        tls: VaultTls::default(),
        redirect_hosts: Vec::new(),
        proxy: None,
        state_dir: None,
        login: LoginConfig { namespace: Some("team".to_owned()), method },
    }
}

fn grant(ttl: Duration) -> Grant {
    Grant { ttl: Some(ttl), renewable: true }
}

fn token(kind: TokenKind, renewed: Option<Result<Grant, Answer>>) -> Token {
    Token { kind, granted: grant(HOUR), facts: None, renewed }
}

fn lease(ttl: Duration, longest: Duration) -> Lease {
    Lease { granted: grant(ttl), renewed: Ok(grant(ttl)), longest: Some(longest) }
}

#[test]
fn token_is_fine_where_it_is_ours_and_renewed() {
    let config = config();
    let (commands, method) = (Commands { config: &config }, &config.login.method);
    let unrenewable =
        Token { granted: Grant { ttl: Some(HOUR), renewable: false }, ..token(TokenKind::Service, None) };
    let endless = Token { granted: Grant { ttl: None, renewable: false }, ..token(TokenKind::Service, None) };
    for (token, outcome, cure) in [
        (token(TokenKind::Service, Some(Ok(grant(HOUR)))), Outcome::Passed, None),
        (endless, Outcome::Passed, None),
        (token(TokenKind::Foreign, None), Outcome::Passed, None),
        (
            token(TokenKind::Batch, None),
            Outcome::Warning,
            Some("vault write -namespace=team auth/kubernetes/role/web token_type=service"),
        ),
        (unrenewable, Outcome::Warning, Some("token_type=service")),
        (token(TokenKind::Service, Some(Err(Answer::Denied))), Outcome::Warning, Some("vault.policy")),
        (token(TokenKind::Service, Some(Err(Answer::Unavailable))), Outcome::Warning, Some("vault read")),
    ] {
        let found = judge_token(&token, method, commands);
        assert_eq!(found.outcome(), outcome, "{token:?}");
        assert!(cure.is_none_or(|cure| found.cure().unwrap().contains(cure)), "{found:?}");
    }
}

#[test]
fn lease_is_fine_where_renewals_are_worth_it() {
    let config = config();
    let commands = Commands { config: &config };
    let secs = Duration::from_secs;
    for (lease, outcome, cure) in [
        (lease(HOUR, DAY), Outcome::Passed, None),
        (Lease { longest: None, ..lease(HOUR, DAY) }, Outcome::Passed, None),
        (lease(DAY * 32, DAY * 32), Outcome::Warning, Some("database/roles/db-app default_ttl=1h")),
        (lease(secs(30), HOUR), Outcome::Warning, Some("default_ttl=1h max_ttl=24h")),
        (lease(HOUR, HOUR), Outcome::Warning, Some("max_ttl=86400s")),
        (Lease { renewed: Err(Answer::Denied), ..lease(HOUR, DAY) }, Outcome::Warning, Some("vault.policy")),
        (
            Lease { renewed: Err(Answer::BadRequest), ..lease(HOUR, DAY) },
            Outcome::Warning,
            Some("renew_statements="),
        ),
        (
            Lease { granted: Grant { ttl: Some(HOUR), renewable: false }, ..lease(HOUR, DAY) },
            Outcome::Warning,
            Some("token_type=service"),
        ),
    ] {
        let found = judge_lease(&lease, "database/creds/db-app", commands);
        assert_eq!(found.outcome(), outcome, "{lease:?}");
        assert!(cure.is_none_or(|cure| found.cure().unwrap().contains(cure)), "{found:?}");
    }
}

#[test]
fn what_ends_first_is_named_with_its_cure() {
    let config = config();
    let renewed = token(TokenKind::Service, Some(Ok(grant(HOUR))));
    let refused = token(TokenKind::Service, Some(Err(Answer::Denied)));
    let foreign = token(TokenKind::Foreign, None);
    let limited = |explicit_max_ttl| Token {
        facts: Some(TokenFacts { grant: grant(HOUR), explicit_max_ttl, policies: Vec::new() }),
        ..renewed.clone()
    };
    let (minutes, day) = (Duration::from_mins, lease(HOUR, DAY));
    let unrenewed = Lease { renewed: Err(Answer::Denied), ..lease(minutes(10), DAY) };
    for (token, lease, jwt_left, found, cure) in [
        (
            &renewed,
            day,
            None,
            "the lease's max_ttl ends first: a new credential within 1day, a renewal every 30m",
            None,
        ),
        (
            &renewed,
            day,
            Some(HOUR * 2),
            "the login's JWT, without which OpenBao renews no token, ends first: a new credential within 2h, a renewal every 30m",
            None,
        ),
        (
            &foreign,
            day,
            Some(HOUR * 2),
            "the lease's max_ttl ends first: a new credential within 1day, a renewal every 30m",
            None,
        ),
        (
            &refused,
            day,
            None,
            "the token, which is not renewed, ends first: a new credential within 1h, a renewal every 30m",
            None,
        ),
        (&renewed, Lease { longest: None, ..day }, None, "no end is in sight, a renewal every 30m", None),
        (&renewed, day, Some(minutes(10)), "", Some("pglease.dev/token-expiration")),
        (
            &renewed,
            lease(minutes(1), minutes(10)),
            None,
            "",
            Some("database/roles/db-app default_ttl=1h max_ttl=24h"),
        ),
        (&renewed, unrenewed, None, "", Some("database/roles/db-app")),
        (&limited(Some(minutes(5))), day, None, "", Some("role/web token_explicit_max_ttl=0")),
        (&limited(None), day, None, "", None),
    ] {
        let (vault_path, method) = ("database/creds/db-app", &config.login.method);
        let rotation = Rotation { token, lease: &lease, jwt_left, vault_path, method };
        let judged = judge_rotation(rotation, Commands { config: &config });
        assert!(judged.found().starts_with(found), "{judged:?}");
        let outcome = if cure.is_some() { Outcome::Warning } else { Outcome::Passed };
        assert_eq!(judged.outcome(), outcome, "{judged:?}");
        assert!(cure.is_none_or(|cure| judged.cure().unwrap().contains(cure)), "{judged:?}");
    }
}
