//! The auth methods: what pglease logs in to Vault with.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::error::{FileProblem, Operation};
use super::inspect::Claims;
use super::{
    Call, LOGIN_TIMEOUT, Login, Token, TokenKind, Unusable, Vault, VaultApi, VaultError, api, unusable,
};
use crate::config::LoginMethod;

/// POST `auth/<mount>/login` of the methods `kubernetes` and `jwt`.
#[derive(Serialize)]
struct JwtBody<'a> {
    role: &'a str,
    jwt: &'a str,
}

/// That of `approle`.
#[derive(Serialize)]
struct AppRoleBody<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

/// That of `cert`. Without a name Vault looks for the role that the certificate fits.
#[derive(Serialize)]
struct CertBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl Vault {
    pub(super) async fn log_in_by(&self, method: &LoginMethod) -> Result<Login, VaultError> {
        match method {
            LoginMethod::Kubernetes { mount, role, jwt_file } => {
                let jwt = read_file(JWT_FILE, jwt_file)?;
                let login = self.log_in_with_jwt(mount, role, &jwt).await?;
                Ok(Login { jwt_expiry: expiry(jwt.expose_secret()), ..login })
            }
            // Nobody looks at the JWT again once it has been taken: its end is nobody's.
            LoginMethod::Jwt { mount, role, jwt_file } => {
                self.log_in_with_jwt(mount, role, &read_file(JWT_FILE, jwt_file)?).await
            }
            LoginMethod::AppRole { mount, role_id, secret_id_file, wrapped } => {
                let secret_id = self.secret_id(secret_id_file, *wrapped).await?;
                self.log_in_as_app(mount, role_id, secret_id_file, &secret_id).await
            }
            LoginMethod::Cert { mount, role } => {
                self.post_login(mount, CertBody { name: role.as_deref() }, "").await
            }
            LoginMethod::TokenFile { token_file } => self.take_token(token_file).await,
        }
    }

    async fn log_in_with_jwt(
        &self,
        mount: &str,
        role: &str,
        jwt: &SecretString,
    ) -> Result<Login, VaultError> {
        let jwt = jwt.expose_secret();
        self.post_login(mount, JwtBody { role, jwt }, jwt).await
    }

    async fn log_in_as_app(
        &self,
        mount: &str,
        role_id: &str,
        secret_id_file: &Path,
        secret_id: &SecretString,
    ) -> Result<Login, VaultError> {
        self.secret_ids.check(secret_id, secret_id_file)?;
        let body = AppRoleBody { role_id, secret_id: secret_id.expose_secret() };
        let login = self.post_login(mount, body, secret_id.expose_secret()).await;
        self.secret_ids.took(secret_id, &login);
        login
    }

    /// `secret` is in the body.
    async fn post_login(&self, mount: &str, body: impl Serialize, secret: &str) -> Result<Login, VaultError> {
        let path = format!("auth/{mount}/login");
        let call = Call::new(Operation::Login, Method::POST, &path, LOGIN_TIMEOUT);
        let answer = self.call(call.secret(secret).body(body)).await?;
        let login = api::parse_login(&answer);
        if let (Err(_), Some(token)) = (&login, api::parse_token(&answer)) {
            // It is of no use to us, and would live on.
            let _ = self.revoke_self(&token).await;
        }
        login.map_err(unusable(Operation::Login))
    }

    /// A token that somebody else has logged in for: lookup-self tells what it is worth.
    async fn take_token(&self, path: &Path) -> Result<Login, VaultError> {
        let token = Token(read_file(TOKEN_FILE, path)?);
        let file = |problem| VaultError::File { setting: TOKEN_FILE, path: path.to_owned(), problem };
        if !token.0.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(file(FileProblem::Characters));
        }
        let call = Call::new(Operation::Login, Method::GET, "auth/token/lookup-self", LOGIN_TIMEOUT);
        let answer = self.call(call.token(&token)).await?;
        let grant = api::parse_lookup(&answer).map_err(|source| {
            let is_limited = source == Unusable::LimitedUses;
            if is_limited { file(FileProblem::LimitedUses) } else { unusable(Operation::Login)(source) }
        })?;
        Ok(Login { token, kind: TokenKind::Foreign, grant, jwt_expiry: None })
    }
}

/// What a file holds, without the blanks around it. Read once for each login, as others replace it.
pub(super) fn read_file(setting: &'static str, path: &Path) -> Result<SecretString, VaultError> {
    let problem = |problem| VaultError::File { setting, path: path.to_owned(), problem };
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_CAPACITY));
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes))
        .map_err(|source| problem(FileProblem::Unreadable(source)))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE_LEN) {
        return Err(problem(FileProblem::TooLong));
    }
    let text = str::from_utf8(&bytes).map_err(|_| problem(FileProblem::Characters))?.trim();
    if text.is_empty() {
        Err(problem(FileProblem::Empty))
    } else if text.chars().any(char::is_control) {
        Err(problem(FileProblem::Characters))
    } else {
        Ok(SecretString::from(text))
    }
}

/// What a JWT (RFC 7519 §4.1) says of itself, unverified: its end moves a plan and nothing more.
pub(super) fn claims(jwt: &str) -> Option<Claims> {
    let payload = jwt.split('.').nth(1)?;
    let payload: Value = serde_json::from_slice(&decode_base64url(payload)?).ok()?;
    let payload = payload.as_object()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // One text, or several.
    let audience = match payload.get("aud") {
        Some(Value::Array(several)) => several.iter().filter_map(text).collect(),
        one => one.and_then(text).into_iter().collect(),
    };
    let moment = |name: &str| payload.get(name)?.as_u64().map(Duration::from_secs);
    Some(Claims {
        audience,
        subject: payload.get("sub").and_then(text),
        issued_at: moment("iat"),
        expires_at: moment("exp"),
    })
}

fn expiry(jwt: &str) -> Option<Duration> {
    claims(jwt)?.expires_at
}

/// RFC 4648 §5 without padding, as JWTs are written.
fn decode_base64url(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut bits, mut bit_len) = (0_u32, 0_u32);
    for byte in text.bytes() {
        let sextet = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(sextet)) & 0xffff;
        bit_len += 6;
        if bit_len >= 8 {
            bit_len -= 8;
            bytes.push(u8::try_from(bits >> bit_len & 0xff).ok()?);
        }
    }
    Some(bytes)
}

pub(super) const JWT_FILE: &str = "vault.login.jwt_file";
pub(super) const TOKEN_FILE: &str = "vault.login.token_file";

/// Longest file that is read: no JWT is longer.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// What common ones fit in, so that no copy is left behind by growing.
const FILE_CAPACITY: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn file_is_read_without_its_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "abc\n").unwrap();
        assert_eq!(read_file(JWT_FILE, &path).unwrap().expose_secret(), "abc");
    }

    #[test]
    fn expiry_of_a_jwt_is_found_and_that_of_another_text_is_not() {
        // {"alg":"RS256"} . {"exp":1700000000,"aud":["k8s"],"x":"ÿ?~"} . x
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3MDAwMDAwMDAsImF1ZCI6WyJrOHMiXSwieCI6IsO_P34ifQ.eA";
        assert_eq!(expiry(jwt), Some(Duration::from_secs(1_700_000_000)));
        for text in ["opaque", "a.b.c", "..", "a.%%.c", "a.e30.c", "a.eyJleHAiOi0xfQ.c"] {
            assert_eq!(expiry(text), None, "{text}");
        }
    }

    #[test]
    fn file_that_is_of_no_use_is_named_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let says = |words: &str| {
            let error = read_file(TOKEN_FILE, &path).unwrap_err().to_string();
            assert_eq!(error, format!("vault.login.token_file {path:?} {words}"));
        };
        says("cannot be read");
        for (text, words) in [
            (&b" \n"[..], "is empty"),
            (b"s.one\ns.two\n", "holds characters that are not of one line of text"),
            (b"s.one\0", "holds characters that are not of one line of text"),
            (b"s.\xff", "holds characters that are not of one line of text"),
            (&vec![b'a'; 100_000], "is longer than 65536 bytes"),
        ] {
            fs::write(&path, text).unwrap();
            says(words);
        }
    }
}
