//! What is logged in with, before Vault has seen it. Pure.

use std::time::Duration;

use crate::check::certificate::span;
use crate::check::fault::{Fault, Warning};
use crate::check::report::Found;
use crate::vault::{Claims, Identity};

/// Judges it at a time since 1970.
pub(super) fn judge(identity: &Identity, now: Duration) -> Found {
    match identity {
        Identity::Jwt { claims: Some(claims), .. } => judge_claims(claims, now),
        Identity::Jwt { claims: None, .. } => Found::fault(
            Fault::JwtMalformed,
            "no JWT: three parts with dots between, the second one base64url",
            "the file holds something else: a token of another kind, or a password",
            "set vault.login.jwt_file to the projected ServiceAccount token",
        ),
        Identity::SecretId { .. } => Found::fine("a SecretID, or what it is wrapped in"),
        Identity::TokenFile { .. } => Found::fine("a token"),
        Identity::Certificate { .. } => Found::fine("the client certificate"),
    }
}

fn judge_claims(claims: &Claims, now: Duration) -> Found {
    let Claims { audience, subject, expires_at, .. } = claims;
    let audience = if audience.is_empty() { "nobody in particular".to_owned() } else { audience.join(", ") };
    let subject = subject.as_deref().unwrap_or("nobody in particular");
    let Some(end) = *expires_at else {
        let found = format!("of {subject}, for {audience}, without end");
        let cause = "it never changes: whoever reads it once can log in for ever";
        return Found::warning(Warning::JwtEndless, found, cause, PROJECTED);
    };
    if end + LEEWAY < now {
        return Found::fault(
            Fault::JwtExpired,
            format!("of {subject}, for {audience}, over since {}", span(now.saturating_sub(end))),
            "the file is not replaced: a copy, or mounted by subPath",
            PROJECTED,
        );
    }
    let found = format!("of {subject}, for {audience}, for another {}", span(end.saturating_sub(now)));
    if claims.audience.iter().any(|audience| audience.contains(API_SERVER)) {
        return Found::warning(
            Warning::JwtForApiServer,
            found,
            "its audience is the API server itself: whoever gets hold of it can call that",
            PROJECTED,
        );
    }
    Found::fine(found)
}

/// Vault takes a JWT for so long after its end.
const LEEWAY: Duration = Duration::from_mins(1);

/// In the audience that Kubernetes gives tokens for itself.
const API_SERVER: &str = "kubernetes.default.svc";

const PROJECTED: &str = "set vault.login.jwt_file to a projected volume of its own, mounted without subPath:\n\
    projected: {sources: [{serviceAccountToken: {path: token, audience: vault, expirationSeconds: 86400}}]}";

#[cfg(test)]
mod tests {
    use super::super::super::report::{Class, Outcome};
    use super::*;

    #[test]
    fn jwt_is_judged_by_what_it_says() {
        let now = Duration::from_secs(1_000_000);
        let claims = |audience: &str, end: Option<u64>| {
            let subject = Some("system:serviceaccount:default:web".to_owned());
            let (audience, expires_at) = (vec![audience.to_owned()], end.map(Duration::from_secs));
            Identity::Jwt {
                path: "token".into(),
                claims: Some(Claims { audience, subject, issued_at: None, expires_at }),
            }
        };
        let failed = Outcome::Failed(Class::Configuration);
        for (identity, outcome) in [
            (claims("vault", Some(1_003_600)), Outcome::Passed),
            (claims("vault", Some(999_941)), Outcome::Passed),
            (claims("vault", Some(999_939)), failed),
            (claims("vault", None), Outcome::Warning),
            (claims("https://kubernetes.default.svc.cluster.local", Some(1_003_600)), Outcome::Warning),
            (Identity::Jwt { path: "token".into(), claims: None }, failed),
            (Identity::SecretId { path: "id".into() }, Outcome::Passed),
        ] {
            assert_eq!(judge(&identity, now).outcome(), outcome, "{identity:?}");
        }
        let said = judge(&claims("vault", Some(1_086_400)), now);
        assert_eq!(said.found(), "of system:serviceaccount:default:web, for vault, for another 24 h");
    }
}
