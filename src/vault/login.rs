//! The kubernetes auth method: what pglease logs in to Vault with. Pure, but for reading the file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::VaultError;

/// The token of the pod's service account.
pub(super) struct Jwt {
    pub(super) text: SecretString,
    /// `exp` as Unix time, where the JWT has one that can be read.
    pub(super) expiry: Option<Duration>,
}

/// Reads the JWT: once for each login, as the kubelet replaces the file.
pub(super) fn read_jwt(path: &Path) -> Result<Jwt, VaultError> {
    let unreadable = |source| VaultError::JwtFile { path: path.to_owned(), source };
    let mut text = Zeroizing::new(String::with_capacity(4096));
    File::open(path)
        .and_then(|file| file.take(MAX_JWT_LEN + 1).read_to_string(&mut text))
        .and_then(|_| {
            let fits = u64::try_from(text.len()).is_ok_and(|len| len <= MAX_JWT_LEN);
            if fits { Ok(()) } else { Err(io::Error::other("it is too long for a JWT")) }
        })
        .map_err(unreadable)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(VaultError::JwtFileEmpty { path: path.to_owned() });
    }
    Ok(Jwt { text: SecretString::from(text), expiry: expiry(text) })
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
}

/// `exp` of a JWT (RFC 7519 §4.1.4), unverified: it moves a plan and nothing more.
fn expiry(jwt: &str) -> Option<Duration> {
    let payload = jwt.split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&decode_base64url(payload)?).ok()?;
    Some(Duration::from_secs(claims.exp))
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

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let len = self.text.expose_secret().len();
        f.debug_struct("Jwt").field("len", &len).field("expiry", &self.expiry).finish()
    }
}

/// Longest JWT that is read.
const MAX_JWT_LEN: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn jwt_is_read_without_its_newline_and_its_expiry_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        // {"alg":"RS256"} . {"exp":1700000000,"aud":["k8s"],"x":"ÿ?~"} . x
        fs::write(
            &path,
            "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3MDAwMDAwMDAsImF1ZCI6WyJrOHMiXSwieCI6IsO_P34ifQ.eA\n",
        )
        .unwrap();

        let jwt = read_jwt(&path).unwrap();
        assert!(jwt.text.expose_secret().ends_with(".eA"));
        assert_eq!(jwt.expiry, Some(Duration::from_secs(1_700_000_000)));
    }

    #[test]
    fn text_that_is_no_jwt_has_no_expiry() {
        for text in ["opaque", "a.b.c", "..", "a.%%.c", "a.e30.c", "a.eyJleHAiOi0xfQ.c"] {
            assert_eq!(expiry(text), None, "{text}");
        }
    }

    #[test]
    fn missing_empty_or_huge_file_is_named_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(read_jwt(&path).unwrap_err().to_string().contains("vault.login.jwt_file"));

        fs::write(&path, " \n").unwrap();
        let error = read_jwt(&path).unwrap_err();
        assert!(matches!(error, VaultError::JwtFileEmpty { .. }));
        assert!(error.to_string().contains("vault.login.jwt_file"));

        fs::write(&path, vec![b'a'; 100_000]).unwrap();
        assert!(matches!(read_jwt(&path), Err(VaultError::JwtFile { .. })));
    }
}
