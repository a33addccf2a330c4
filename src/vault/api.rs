//! Bodies of Vault's HTTP API, as far as pglease reads and writes them. Pure.
//!
//! Vault's `lease_duration` (Int, seconds) is spoken of here only: it leaves this module as a [`Duration`], bounded
//! by [`MAX_TTL`]. Unknown fields are ignored. What a secret can be in has no `Debug`.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Grant, Lease, Login, StaticCredential, Token, TokenKind};
use crate::ids::LeaseId;

/// PUT `sys/leases/renew`. `increment` 0 asks for what the `vault_role` grants by default.
#[derive(Serialize)]
pub(super) struct RenewBody<'a> {
    pub(super) lease_id: &'a str,
    pub(super) increment: u32,
}

/// PUT `sys/leases/lookup`.
#[derive(Serialize)]
pub(super) struct LeaseBody<'a> {
    pub(super) lease_id: &'a str,
}

/// `{}`.
#[derive(Serialize)]
pub(super) struct EmptyBody {}

/// What makes a well-formed answer unusable. Written without the values that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("not JSON of the expected shape, at byte {at}")]
    Shape {
        /// Column of the one line that Vault writes, from 1.
        at: usize,
    },
    #[error("it is longer than {MAX_BODY_LEN} bytes")]
    TooLong,
    #[error("status {status} where another was due")]
    Status { status: u16 },
    #[error("no token in it")]
    NoToken,
    #[error("no SecretID in it")]
    NoSecretId,
    #[error("no lease in it: is it a static role?")]
    NoLease,
    #[error("no user name or password in it")]
    NoCredential,
    #[error("the user name or the password in it has a zero byte, which PostgreSQL cannot carry")]
    ZeroByte,
    #[error("a duration of {seconds} s")]
    Duration { seconds: i64 },
    #[error("the token may be used a limited number of times: set token_num_uses of the auth role to 0")]
    LimitedUses,
}

/// Answer to a login and to renew-self.
#[derive(Deserialize)]
struct AuthAnswer {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default, deserialize_with = "secret")]
    client_token: Option<SecretString>,
    lease_duration: i64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    num_uses: i64,
    #[serde(default)]
    token_type: String,
}

/// Answer to lookup-self and to a lookup of a lease.
#[derive(Deserialize)]
struct LookupAnswer {
    data: Lookup,
}

#[derive(Deserialize)]
struct Lookup {
    ttl: i64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    num_uses: i64,
}

/// Answer to an unwrap of a `SecretID`.
#[derive(Deserialize)]
struct UnwrapAnswer {
    data: Unwrapped,
}

#[derive(Deserialize)]
struct Unwrapped {
    #[serde(default, deserialize_with = "secret")]
    secret_id: Option<SecretString>,
}

/// Answer to a creds read.
#[derive(Deserialize)]
struct CredsAnswer {
    #[serde(default)]
    lease_id: String,
    lease_duration: i64,
    #[serde(default)]
    renewable: bool,
    data: Creds,
}

#[derive(Deserialize)]
struct Creds {
    #[serde(default)]
    username: String,
    #[serde(default, deserialize_with = "secret")]
    password: Option<SecretString>,
    /// Of a static role.
    ttl: Option<i64>,
}

impl Creds {
    /// User name and password, where PostgreSQL can carry them.
    fn usable(self) -> Result<(String, SecretString), Unusable> {
        let Self { username, password, .. } = self;
        let password = password.filter(|_| !username.is_empty()).ok_or(Unusable::NoCredential)?;
        let is_cut = [username.as_str(), password.expose_secret()].iter().any(|text| text.contains('\0'));
        if is_cut { Err(Unusable::ZeroByte) } else { Ok((username, password)) }
    }
}

/// Answer to a read of a static role.
#[derive(Deserialize)]
struct StaticCredsAnswer {
    data: Creds,
}

/// Answer to a renewal of a lease.
#[derive(Deserialize)]
struct RenewAnswer {
    lease_duration: i64,
    #[serde(default)]
    renewable: bool,
}

/// Answer to anything that Vault refuses.
#[derive(Default, Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// The token of a login. `jwt_expiry` is left to the caller, who has the JWT.
pub(super) fn parse_login(body: &[u8]) -> Result<Login, Unusable> {
    let AuthAnswer { auth } = parse(body)?;
    let token = auth.client_token.filter(is_header_value).ok_or(Unusable::NoToken)?;
    refuse_limited(auth.num_uses)?;
    let grant = Grant { ttl: endless_or(auth.lease_duration)?, renewable: auth.renewable };
    let kind = if auth.token_type == "batch" { TokenKind::Batch } else { TokenKind::Service };
    Ok(Login { token: Token(token), kind, grant, jwt_expiry: None })
}

/// The token of a login that is of no use otherwise.
pub(super) fn parse_token(body: &[u8]) -> Option<Token> {
    let AuthAnswer { auth } = parse(body).ok()?;
    auth.client_token.filter(is_header_value).map(Token)
}

/// What was wrapped.
pub(super) fn parse_unwrapped(body: &[u8]) -> Result<SecretString, Unusable> {
    let UnwrapAnswer { data } = parse(body)?;
    data.secret_id.ok_or(Unusable::NoSecretId)
}

/// What renew-self granted.
pub(super) fn parse_renewed_token(body: &[u8]) -> Result<Grant, Unusable> {
    let AuthAnswer { auth } = parse(body)?;
    Ok(Grant { ttl: endless_or(auth.lease_duration)?, renewable: auth.renewable })
}

/// What lookup-self tells.
pub(super) fn parse_lookup(body: &[u8]) -> Result<Grant, Unusable> {
    let LookupAnswer { data } = parse(body)?;
    refuse_limited(data.num_uses)?;
    Ok(Grant { ttl: endless_or(data.ttl)?, renewable: data.renewable })
}

/// The lease of a creds read.
pub(super) fn parse_creds(body: &[u8]) -> Result<Lease, Unusable> {
    let answer: CredsAnswer = parse(body)?;
    let (user, password) = answer.data.usable()?;
    if answer.lease_id.is_empty() {
        return Err(Unusable::NoLease);
    }
    let ttl = Some(bounded(answer.lease_duration)?);
    Ok(Lease {
        id: LeaseId::from(answer.lease_id.as_str()),
        grant: Grant { ttl, renewable: answer.renewable },
        user,
        password,
    })
}

/// What is left of a lease.
pub(super) fn parse_lease_lookup(body: &[u8]) -> Result<Grant, Unusable> {
    let LookupAnswer { data } = parse(body)?;
    // Below zero where it is past its end, and its revocation not done yet.
    let seconds = u64::try_from(data.ttl).unwrap_or_default();
    Ok(Grant { ttl: Some(Duration::from_secs(seconds).min(MAX_TTL)), renewable: data.renewable })
}

/// The credential of a static role.
pub(super) fn parse_static_creds(body: &[u8]) -> Result<StaticCredential, Unusable> {
    let StaticCredsAnswer { data } = parse(body)?;
    let seconds = data.ttl.unwrap_or(-1);
    let ttl = u64::try_from(seconds).map_err(|_| Unusable::Duration { seconds })?;
    let (user, password) = data.usable()?;
    Ok(StaticCredential { user, password, ttl: Duration::from_secs(ttl).min(MAX_TTL) })
}

/// What a renewal granted.
pub(super) fn parse_renewed_lease(body: &[u8]) -> Result<Grant, Unusable> {
    let answer: RenewAnswer = parse(body)?;
    Ok(Grant { ttl: Some(bounded(answer.lease_duration)?), renewable: answer.renewable })
}

/// Vault's own words about a refusal, for the log: one line of [`MAX_ERROR_CHARS`] at most, with `secrets` blotted
/// out should Vault ever echo one. Empty where it said nothing in its own form.
pub(super) fn parse_errors(body: &[u8], secrets: &[&str]) -> String {
    let Errors { errors } = serde_json::from_slice(body).unwrap_or_default();
    let blotted = |text: String| {
        let secrets = secrets.iter().filter(|secret| !secret.is_empty());
        secrets.fold(text, |text, secret| text.replace(secret, "[redacted]"))
    };
    let text = blotted(errors.join("; "));
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "");
    // Once more: one with a control character in it is a secret again without.
    blotted(line).chars().take(MAX_ERROR_CHARS).collect()
}

/// Whatever Vault, or who passes for it, may answer; see `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_answer(body: &[u8]) {
    let durations = [
        parse_login(body).ok().and_then(|login| login.grant.ttl),
        parse_renewed_token(body).ok().and_then(|grant| grant.ttl),
        parse_lookup(body).ok().and_then(|grant| grant.ttl),
        parse_lease_lookup(body).ok().and_then(|grant| grant.ttl),
        parse_renewed_lease(body).ok().and_then(|grant| grant.ttl),
    ];
    assert!(durations.into_iter().flatten().all(|ttl| ttl <= MAX_TTL));
    let _ = (parse_creds(body), parse_static_creds(body), parse_unwrapped(body));
    let said = parse_errors(body, &["hvs.secret"]);
    assert!(!said.contains("hvs.secret") && !said.contains('\n') && said.chars().count() <= MAX_ERROR_CHARS);
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Unusable> {
    // serde's own message quotes the value that it stumbled over, which may be a secret.
    serde_json::from_slice(body).map_err(|error| Unusable::Shape { at: error.column() })
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()).map(SecretString::from))
}

/// A lease that ends: a positive number of seconds.
fn bounded(seconds: i64) -> Result<Duration, Unusable> {
    endless_or(seconds)?.ok_or(Unusable::Duration { seconds })
}

/// A token's life: 0 is Vault's way to say that it does not end.
fn endless_or(seconds: i64) -> Result<Option<Duration>, Unusable> {
    let whole = u64::try_from(seconds).map_err(|_| Unusable::Duration { seconds })?;
    Ok((whole > 0).then(|| Duration::from_secs(whole).min(MAX_TTL)))
}

fn refuse_limited(num_uses: i64) -> Result<(), Unusable> {
    if num_uses == 0 { Ok(()) } else { Err(Unusable::LimitedUses) }
}

/// Visible ASCII, as RFC 9110 §5.5 wants it of a field value that needs no quoting.
fn is_header_value(token: &SecretString) -> bool {
    token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic())
}

/// Longest answer that is read.
pub(super) const MAX_BODY_LEN: usize = 1 << 20;

/// Longest text of an error that is kept.
const MAX_ERROR_CHARS: usize = 400;

/// A hundred years. More is cut down to it, so that no sum of a time and a TTL overflows.
pub(super) const MAX_TTL: Duration = Duration::from_hours(100 * 365 * 24);

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: &str = r#"{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,"data":null,
        "auth":{"client_token":"s.abc","accessor":"a","policies":["default"],"lease_duration":3600,"renewable":true,
        "token_type":"service","orphan":true,"mfa_requirement":null,"num_uses":0}}"#;

    fn creds(lease_id: &str, duration: &str, data: &str) -> Vec<u8> {
        format!(r#"{{"lease_id":{lease_id},"lease_duration":{duration},"renewable":true,"data":{data}}}"#)
            .into()
    }

    #[test]
    fn login_gives_token_and_life() {
        let login = parse_login(LOGIN.as_bytes()).unwrap();

        assert_eq!(login.token.0.expose_secret(), "s.abc");
        assert_eq!(login.grant, Grant { ttl: Some(Duration::from_hours(1)), renewable: true });
        assert_eq!(login.kind, TokenKind::Service);
        let batch = LOGIN.replace("service", "batch");
        assert_eq!(parse_login(batch.as_bytes()).unwrap().kind, TokenKind::Batch);
    }

    #[test]
    fn login_that_cannot_serve_is_told_apart() {
        let limited = LOGIN.replace(r#""num_uses":0"#, r#""num_uses":3"#);
        assert_eq!(parse_login(limited.as_bytes()).unwrap_err(), Unusable::LimitedUses);
        assert!(Unusable::LimitedUses.to_string().contains("token_num_uses"));

        for token in [r#""""#, "null", r#""s.\nabc""#, r#""s.ü""#] {
            let broken = LOGIN.replace(r#""s.abc""#, token);
            assert_eq!(parse_login(broken.as_bytes()).unwrap_err(), Unusable::NoToken, "{token}");
        }
        let unlimited = LOGIN.replace("3600", "0");
        assert_eq!(parse_login(unlimited.as_bytes()).unwrap().grant.ttl, None);
    }

    #[test]
    fn creds_carry_any_character_that_postgresql_can() {
        let odd = "v-\"\\ü'".repeat(140);
        let data = format!(
            r#"{{"username":{},"password":{}}}"#,
            serde_json::to_string(&odd).unwrap(),
            serde_json::to_string(&odd).unwrap()
        );
        let lease = parse_creds(&creds(r#""a/\"b\\""#, "10", &data)).unwrap();

        assert_eq!(lease.user, odd);
        assert_eq!(lease.password.expose_secret(), odd);
        assert_eq!(lease.id.as_str(), "a/\"b\\");
    }

    #[test]
    fn creds_that_cannot_serve_are_refused() {
        let good = r#"{"username":"u","password":"p"}"#;
        let cases: [(Vec<u8>, Unusable); 10] = [
            (creds(r#""""#, "10", good), Unusable::NoLease),
            (creds(r#""l""#, "0", good), Unusable::Duration { seconds: 0 }),
            (creds(r#""l""#, "-5", good), Unusable::Duration { seconds: -5 }),
            (creds(r#""l""#, "10", "{}"), Unusable::NoCredential),
            (creds(r#""l""#, "10", r#"{"username":"","password":"p"}"#), Unusable::NoCredential),
            (creds(r#""l""#, "10", r#"{"username":"u\u0000","password":"p"}"#), Unusable::ZeroByte),
            (creds(r#""l""#, "10", r#"{"username":"u","password":"\u0000p"}"#), Unusable::ZeroByte),
            (creds(r#""l""#, "10", r#"{"username":"u","password":""}"#), Unusable::NoCredential),
            (b"<html>".to_vec(), Unusable::Shape { at: 1 }),
            (b"".to_vec(), Unusable::Shape { at: 0 }),
        ];
        for (body, error) in cases {
            assert_eq!(parse_creds(&body).err(), Some(error), "{}", String::from_utf8_lossy(&body));
        }
        for data in ["null", "[]", "7", r#"{"username":7}"#] {
            assert!(parse_creds(&creds(r#""l""#, "10", data)).is_err(), "{data}");
        }
        for duration in ["1e30", "\"10\"", "null", "99999999999999999999"] {
            assert!(parse_creds(&creds(r#""l""#, duration, good)).is_err(), "{duration}");
        }
    }

    #[test]
    fn lookup_of_a_lease_tells_what_is_left() {
        let body = br#"{"data":{"id":"l","expire_time":null,"ttl":3599,"renewable":true}}"#;
        let grant = Grant { ttl: Some(Duration::from_secs(3_599)), renewable: true };
        assert_eq!(parse_lease_lookup(body), Ok(grant));
        let ended = parse_lease_lookup(br#"{"data":{"ttl":0}}"#);
        assert_eq!(ended, Ok(Grant { ttl: Some(Duration::ZERO), renewable: false }));
        let past = parse_lease_lookup(br#"{"data":{"ttl":-1}}"#);
        assert_eq!(past, Ok(Grant { ttl: Some(Duration::ZERO), renewable: false }));
    }

    #[test]
    fn static_role_has_a_ttl_and_no_lease() {
        let body = |data: &str| format!(r#"{{"lease_id":"","lease_duration":0,"data":{data}}}"#).into_bytes();
        let read =
            parse_static_creds(&body(r#"{"username":"st","password":"p","rotation_period":20,"ttl":7}"#));
        let StaticCredential { user, password, ttl } = read.unwrap();
        let read = (user.as_str(), password.expose_secret(), ttl);
        assert_eq!(read, ("st", "p", Duration::from_secs(7)));
        for (data, error) in [
            (r#"{"username":"st","password":"p"}"#, Unusable::Duration { seconds: -1 }),
            (r#"{"username":"st","ttl":7}"#, Unusable::NoCredential),
        ] {
            assert_eq!(parse_static_creds(&body(data)).err(), Some(error), "{data}");
        }
    }

    #[test]
    fn durations_that_cannot_be_are_refused_everywhere() {
        let auth = |text: &str| {
            format!(r#"{{"auth":{{"client_token":"s.1","lease_duration":{text}}}}}"#).into_bytes()
        };
        let data =
            |text: &str| format!(r#"{{"data":{{"username":"u","password":"p","ttl":{text}}}}}"#).into_bytes();
        let lease = |text: &str| format!(r#"{{"lease_id":"l","lease_duration":{text}}}"#).into_bytes();
        for text in
            ["-1", "1e30", "0.5", "\"60\"", "[]", "true", "99999999999999999999", "-99999999999999999999"]
        {
            assert!(parse_login(&auth(text)).is_err(), "{text}");
            assert!(parse_renewed_token(&auth(text)).is_err(), "{text}");
            assert!(parse_lookup(&data(text)).is_err(), "{text}");
            assert!(text == "-1" || parse_lease_lookup(&data(text)).is_err(), "{text}");
            assert!(parse_static_creds(&data(text)).is_err(), "{text}");
            assert!(parse_renewed_lease(&lease(text)).is_err(), "{text}");
        }
        // A token that does not end; a lease always does.
        assert_eq!(parse_renewed_token(&auth("0")).map(|grant| grant.ttl), Ok(None));
        assert_eq!(parse_renewed_lease(&lease("0")), Err(Unusable::Duration { seconds: 0 }));
        for text in ["1000000000000", "9223372036854775807"] {
            assert_eq!(parse_lookup(&data(text)).map(|grant| grant.ttl), Ok(Some(MAX_TTL)), "{text}");
            assert_eq!(parse_lease_lookup(&data(text)).map(|grant| grant.ttl), Ok(Some(MAX_TTL)), "{text}");
        }
    }

    #[test]
    fn unwrapped_answer_holds_a_secret_id() {
        let parsed = parse_unwrapped(br#"{"data":{"secret_id":"within","secret_id_ttl":0}}"#).unwrap();
        assert_eq!(parsed.expose_secret(), "within");
        for data in [r#"{"password":"other"}"#, r#"{"secret_id":""}"#] {
            let body = format!(r#"{{"data":{data}}}"#);
            assert_eq!(parse_unwrapped(body.as_bytes()).err(), Some(Unusable::NoSecretId), "{data}");
        }
        assert!(parse_unwrapped(br#"{"data":null}"#).is_err());
    }

    #[test]
    fn absurd_durations_are_cut_down() {
        let grant = parse_renewed_lease(br#"{"lease_duration":1000000000000,"renewable":true}"#).unwrap();
        assert_eq!(grant.ttl, Some(MAX_TTL));
    }

    #[test]
    fn error_texts_are_one_short_line_without_secrets() {
        let body = br#"{"errors":["1 error occurred:\n\t* bad token s.canary","second"]}"#;

        assert_eq!(parse_errors(body, &["s.canary"]), "1 error occurred: * bad token [redacted]; second");
        assert_eq!(parse_errors(b"<html>", &["s.canary"]), "");
        let long = format!(r#"{{"errors":["{}"]}}"#, "x".repeat(10_000));
        assert_eq!(parse_errors(long.as_bytes(), &[]).len(), MAX_ERROR_CHARS);
    }
}
