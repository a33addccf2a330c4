//! The `SecretID` of the method `approle`: unwrapped once, and not shown to Vault again and again once it was refused.
//!
//! Vault locks a `RoleID` out after five wrong `SecretID`s, for every pod that logs in with it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::Method;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tracing::error;

use super::error::{Answer, Operation};
use super::login::read_file;
use super::{Call, LOGIN_TIMEOUT, Login, Token, Vault, VaultError, api, unusable};

/// What is known of `SecretID`s. In memory only.
#[derive(Debug, Default)]
pub(super) struct SecretIds {
    /// Held while one is unwrapped: chains that log in side by side have one token to open.
    wrapped: tokio::sync::Mutex<Option<Wrapped>>,
    refused: Mutex<Option<Refused>>,
}

/// A wrapping token that Vault has answered to.
#[derive(Debug)]
struct Wrapped {
    token: SecretString,
    /// `None` where Vault did not know it (any more).
    secret_id: Option<SecretString>,
}

/// A `SecretID` that Vault refused.
#[derive(Debug)]
struct Refused {
    secret_id: SecretString,
    times: u32,
    at: Instant,
}

impl Vault {
    /// What to log in with now.
    pub(super) async fn secret_id(&self, path: &Path, wrapped: bool) -> Result<SecretString, VaultError> {
        let text = read_file(SECRET_ID_FILE, path)?;
        if wrapped { self.unwrapped(path, text).await } else { Ok(text) }
    }

    /// The `SecretID` in a wrapping token, which can be opened once.
    async fn unwrapped(&self, path: &Path, text: SecretString) -> Result<SecretString, VaultError> {
        let mut wrapped = self.secret_ids.wrapped.lock().await;
        let known = wrapped.take_if(|known| is_same(&known.token, &text));
        let known = if let Some(known) = known {
            known
        } else {
            let secret_id = self.unwrap(&text).await?;
            if secret_id.is_none() {
                error!(event = "login.secret_id_spent", ?path, "{SPENT}");
            }
            Wrapped { token: text, secret_id }
        };
        let secret_id = wrapped.insert(known).secret_id.clone();
        secret_id.ok_or_else(|| VaultError::Spent { path: path.to_owned() })
    }

    /// `None` where Vault does not know the token.
    async fn unwrap(&self, token: &SecretString) -> Result<Option<SecretString>, VaultError> {
        let token = Token(token.clone());
        let call = Call::new(Operation::Unwrap, Method::POST, "sys/wrapping/unwrap", LOGIN_TIMEOUT);
        match self.call(call.token(&token)).await {
            Ok(answer) => api::parse_unwrapped(&answer).map(Some).map_err(unusable(Operation::Unwrap)),
            Err(error) if matches!(error.answer(), Answer::BadRequest | Answer::Denied) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl SecretIds {
    /// Whether Vault may be asked now.
    pub(super) fn check(&self, secret_id: &SecretString, path: &Path) -> Result<(), VaultError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(refused) = refused.as_ref().filter(|refused| is_same(&refused.secret_id, secret_id)) else {
            return Ok(());
        };
        let left = pause_after(refused.times).saturating_sub(refused.at.elapsed());
        let path: PathBuf = path.to_owned();
        if left.is_zero() { Ok(()) } else { Err(VaultError::HeldBack { path, times: refused.times, left }) }
    }

    /// Takes note of what Vault said to it.
    pub(super) fn took(&self, secret_id: &SecretString, login: &Result<Login, VaultError>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match login.as_ref().map_err(VaultError::answer) {
            Ok(_) => *refused = None,
            Err(Answer::BadRequest | Answer::Denied) => {
                let before = refused.take_if(|refused| is_same(&refused.secret_id, secret_id));
                let times = before.map_or(0, |before| before.times).saturating_add(1);
                *refused = Some(Refused { secret_id: secret_id.clone(), times, at: Instant::now() });
            }
            Err(_) => {}
        }
    }
}

/// How long Vault is not asked after so many refusals of the same `SecretID`. A changed file is tried at once.
fn pause_after(times: u32) -> Duration {
    match times.checked_sub(FREE_TRIES) {
        None => Duration::ZERO,
        Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(8)).min(LONGEST_PAUSE),
    }
}

fn is_same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}

pub(super) const SPENT: &str = "the wrapping token is spent or has expired: unless pglease has opened it before, \
                                somebody else may have, and hold the SecretID";

pub(super) const SECRET_ID_FILE: &str = "vault.login.secret_id_file";

/// A first refusal may be a passing trouble of Vault's.
const FREE_TRIES: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_minutes() {
        let minutes: Vec<_> = (0..7).map(|times| pause_after(times).as_secs() / 60).collect();
        assert_eq!(minutes, [0, 0, 1, 2, 4, 5, 5]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_secret_id_waits_and_another_one_does_not() {
        let (secret_ids, path) = (SecretIds::default(), Path::new("/secret-id"));
        let (wrong, right) = (SecretString::from("wrong"), SecretString::from("right"));
        let refused = |status| {
            let (operation, texts) = (Operation::Login, String::new());
            Err(VaultError::Refused { operation, status, texts, retry_after: None })
        };
        secret_ids.took(&wrong, &refused(400));
        secret_ids.took(&wrong, &refused(503));
        assert!(secret_ids.check(&wrong, path).is_ok());
        secret_ids.took(&wrong, &refused(403));
        let error = secret_ids.check(&wrong, path).unwrap_err();
        assert!(matches!(error, VaultError::HeldBack { times: 2, .. }), "{error}");
        assert!(secret_ids.check(&right, path).is_ok());

        tokio::time::advance(FIRST_PAUSE).await;
        assert!(secret_ids.check(&wrong, path).is_ok());
        secret_ids.took(&right, &refused(400));
        assert!(secret_ids.check(&wrong, path).is_ok());
    }
}
