//! What the check makes at Vault: a login of its own and the leases read with it, given back whatever happens.
//!
//! Logins and reads run in tasks that the [`Throwaway`] owns. A check that is cut short drops none of them halfway,
//! which could leave a credential behind that nobody knows of: what was begun is waited for, then all is revoked. So is
//! the revocation a task: who asks for it after somebody who has been dropped meanwhile is told what became of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time;

use super::end::End;
use crate::credential::{Credential, DerivedKeys, Granted};
use crate::ids::{GenerationId, LeaseId};
use crate::lease::{LiveToken, Requests};
use crate::vault::{
    Answer, Grant, Login, Operation, StaticCredential, TokenKind, Vault, VaultApi, VaultError,
};

/// The login and the leases of one check.
#[derive(Debug)]
pub(crate) struct Throwaway {
    vault: Arc<Vault>,
    made: Arc<Mutex<Option<Made>>>,
    /// Logins and reads that are under way.
    tasks: Mutex<JoinSet<()>>,
    /// Once there is one.
    giving: Mutex<Option<Giving>>,
}

/// The revocation of all that was made, and what came of it.
#[derive(Debug)]
struct Giving {
    /// `None` before its end.
    given: watch::Receiver<Option<Arc<GivenBack>>>,
    _task: JoinSet<()>,
}

/// What is there and not given back.
#[derive(Clone, Debug)]
struct Made {
    token: Arc<LiveToken>,
    token_end: End,
    leases: Vec<MadeLease>,
}

#[derive(Clone, Debug)]
struct MadeLease {
    id: LeaseId,
    db_role: String,
    end: End,
}

/// A login that the check may use.
#[derive(Clone, Debug)]
pub(crate) struct OwnLogin {
    pub(crate) token: Arc<LiveToken>,
    pub(crate) grant: Grant,
}

/// A credential that the check may use.
#[derive(Clone, Debug)]
pub(crate) struct OwnCredential {
    pub(crate) credential: Arc<Credential>,
    pub(crate) grant: Grant,
}

/// How giving back went.
#[derive(Debug)]
pub(crate) struct GivenBack {
    pub(crate) kind: TokenKind,
    /// `db_role`s of the leases.
    pub(crate) db_roles: Vec<String>,
    pub(crate) result: Result<(), VaultError>,
    /// When what is left ends by itself: all of it where `result` is an error, a batch token where it is not.
    pub(crate) left: Vec<Left>,
}

/// Something that is left, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) what: String,
    pub(crate) until: End,
}

impl Throwaway {
    pub(crate) fn new(vault: Arc<Vault>) -> Self {
        Self { vault, made: Arc::default(), tasks: Mutex::default(), giving: Mutex::default() }
    }

    /// Logs in, once.
    pub(crate) async fn log_in(&self) -> Result<OwnLogin, VaultError> {
        let (vault, made) = (Arc::clone(&self.vault), Arc::clone(&self.made));
        let login = async move {
            let Login { token, kind, grant, .. } = vault.log_in().await?;
            let token = Arc::new(LiveToken::new(token, kind));
            let token_end = End::in_a(grant.ttl);
            *locked(&made) = Some(Made { token: Arc::clone(&token), token_end, leases: Vec::new() });
            Ok(OwnLogin { token, grant })
        };
        self.to_its_end(login).await.unwrap_or(Err(lost(Operation::Login)))
    }

    /// Reads a credential with the login.
    pub(crate) async fn read_creds(
        &self,
        login: &OwnLogin,
        vault_path: &str,
    ) -> Result<OwnCredential, VaultError> {
        let (vault, made) = (Arc::clone(&self.vault), Arc::clone(&self.made));
        let (token, vault_path) = (Arc::clone(&login.token), vault_path.to_owned());
        let read = login.token.run(async move {
            let lease = vault.read_creds(token.token(), &vault_path, CREDS_TIMEOUT).await?;
            let end = End::in_a(lease.grant.ttl);
            let made_lease = MadeLease { id: lease.id.clone(), db_role: lease.user.clone(), end };
            locked(&made).iter_mut().for_each(|made| made.leases.push(made_lease.clone()));
            let credential = Credential {
                user: lease.user,
                password: lease.password,
                lease: Some(lease.id),
                generation: GenerationId(1),
                keys: DerivedKeys::default(),
                granted: Granted::default(),
            };
            Ok(OwnCredential { credential: Arc::new(credential), grant: lease.grant })
        });
        self.to_its_end(read).await.flatten().unwrap_or(Err(lost(Operation::ReadCreds)))
    }

    /// Reads the credential of a static role, which makes nothing.
    pub(crate) async fn read_static_creds(
        &self,
        login: &OwnLogin,
        vault_path: &str,
    ) -> Result<OwnCredential, VaultError> {
        let StaticCredential { user, password, ttl } =
            self.vault.read_static_creds(login.token.token(), vault_path).await?;
        let credential = Credential {
            user,
            password,
            lease: None,
            generation: GenerationId(1),
            keys: DerivedKeys::default(),
            granted: Granted::default(),
        };
        let grant = Grant { ttl: Some(ttl), renewable: false };
        Ok(OwnCredential { credential: Arc::new(credential), grant })
    }

    /// Renews the token, or this lease of it. `longest` is what Vault may make of it, from now on: `None` is the end that
    /// Vault has for it.
    ///
    /// Where the answer is lost, or this is dropped, that may have become its end.
    pub(crate) async fn renew(
        &self,
        lease: Option<&LeaseId>,
        longest: Option<Duration>,
        renewal: impl Future<Output = Result<Grant, VaultError>>,
    ) -> Result<Grant, VaultError> {
        let Some(before) = self.set_end(lease, |end| end.or_later(longest)) else { return renewal.await };
        let renewed = renewal.await;
        match &renewed {
            Ok(grant) => self.set_end(lease, |_| End::in_a(grant.ttl)),
            Err(error) if has_refused(error) => self.set_end(lease, |_| before),
            Err(_) => None,
        };
        renewed
    }

    /// Gives what it was before; `None` where there is no such thing any more.
    fn set_end(&self, lease: Option<&LeaseId>, to: impl FnOnce(End) -> End) -> Option<End> {
        let mut made = locked(&self.made);
        let made = made.as_mut()?;
        let end = match lease {
            None => &mut made.token_end,
            Some(id) => &mut made.leases.iter_mut().find(|lease| lease.id == *id)?.end,
        };
        let before = *end;
        *end = to(before);
        Some(before)
    }

    /// Gives back what was made, after what is under way. `None` where there is nothing.
    ///
    /// Cancel safe: it goes on without its caller, and whoever calls again is told what came of it.
    pub(crate) async fn give_back(&self) -> Option<Arc<GivenBack>> {
        let mut given = locked(&self.giving).get_or_insert_with(|| self.begin_to_give_back()).given.clone();
        if let Ok(given) = given.wait_for(Option::is_some).await {
            return given.clone();
        }
        // There was nothing, or a bug has ended the task.
        let made = locked(&self.made).take()?;
        Some(Arc::new(made.given_back(Err(lost(Operation::RevokeSelf)))))
    }

    fn begin_to_give_back(&self) -> Giving {
        let (vault, made) = (Arc::clone(&self.vault), Arc::clone(&self.made));
        let mut before = std::mem::take(&mut *locked(&self.tasks));
        let (tell, given) = watch::channel(None);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let all = async { while before.join_next().await.is_some() {} };
            let _ = time::timeout(MAX_WAIT, all).await;
            let Some(all) = locked(&made).clone() else { return };
            let result = all.revoke(&vault).await;
            locked(&made).take();
            tell.send_replace(Some(Arc::new(all.given_back(result))));
        });
        Giving { given, _task: task }
    }

    /// Runs `work` in a task of ours, so that it goes on where the caller is dropped.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, is_done) = oneshot::channel();
        locked(&self.tasks).spawn(async move {
            // The check may be over by now.
            let _ = done.send(work.await);
        });
        is_done.await.ok()
    }
}

impl Made {
    /// The token with its leases; these alone where the token is not ours to end, or cannot be.
    async fn revoke(&self, vault: &Vault) -> Result<(), VaultError> {
        if self.token.can_be_revoked() {
            self.token.revoke(vault).await?;
            // What may look itself up and not end itself is told as what is gone already.
            return match vault.look_up_self(self.token.token()).await {
                Ok(_) => vault.revoke_self(self.token.token()).await,
                Err(_) => Ok(()),
            };
        }
        let mut result = Ok(());
        for lease in &self.leases {
            let expired = self.token.expire(vault, &lease.id, &Requests::default()).await;
            result = result.and(expired);
        }
        result
    }

    fn given_back(self, result: Result<(), VaultError>) -> GivenBack {
        let left = self.left(result.is_ok());
        let db_roles = self.leases.into_iter().map(|lease| lease.db_role).collect();
        GivenBack { kind: self.token.kind(), db_roles, result, left }
    }

    fn left(&self, is_revoked: bool) -> Vec<Left> {
        let kind = self.token.kind();
        let token = Left { what: "the token of the check".to_owned(), until: self.token_end };
        let lease = |lease: &MadeLease| Left {
            what: format!("the login of {}", lease.db_role),
            // It ends with its token. Of one that is not ours we do not know when that is.
            until: if kind == TokenKind::Foreign { lease.end } else { lease.end.or_with(self.token_end) },
        };
        match (kind, is_revoked) {
            (TokenKind::Service | TokenKind::Foreign, true) => Vec::new(),
            (TokenKind::Batch, true) => vec![token],
            (TokenKind::Foreign, false) => self.leases.iter().map(lease).collect(),
            (TokenKind::Service | TokenKind::Batch, false) => {
                self.leases.iter().map(lease).chain([token]).collect()
            }
        }
    }
}

/// Whether Vault has done nothing, and said so.
fn has_refused(error: &VaultError) -> bool {
    matches!(error.answer(), Answer::Denied | Answer::BadRequest | Answer::NotFound | Answer::Unexpected)
}

/// Of a task that was broken off.
fn lost(operation: Operation) -> VaultError {
    VaultError::NoAnswer { operation, source: None }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As a chain gives it where its token has time.
const CREDS_TIMEOUT: Duration = Duration::from_secs(30);

/// For a login or a read that was under way when the check was cut short: longer than either takes, so that none is
/// dropped whose answer may come yet.
const MAX_WAIT: Duration = Duration::from_secs(35);

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::SystemTime;

    use super::*;
    use crate::config::{LoginConfig, LoginMethod, VaultConfig, VaultTls};
    use crate::telemetry::Metrics;
    use crate::vault::Token;

    const HOUR: Duration = Duration::from_hours(1);

    /// With a token that does not end and a lease for an hour, of a Vault that nobody asks.
    fn throwaway() -> (Throwaway, LeaseId) {
        let method = LoginMethod::TokenFile { token_file: "/nonexistent".into() };
        let config = VaultConfig {
            address: "http://127.0.0.1:1".to_owned(),
            namespace: None,
            tls: VaultTls::default(),
            redirect_hosts: vec![],
            proxy: None,
            state_dir: None,
            login: LoginConfig { namespace: None, method },
        };
        let vault = Vault::load(&config, Arc::new(Metrics::new())).unwrap();
        let (throwaway, id) = (Throwaway::new(Arc::new(vault)), LeaseId::from("lease"));
        let token = Arc::new(LiveToken::new(Token::from_text("s.canary"), TokenKind::Service));
        let lease = MadeLease { id: id.clone(), db_role: "v-1".to_owned(), end: End::in_a(Some(HOUR)) };
        *locked(&throwaway.made) = Some(Made { token, token_end: End::Never, leases: vec![lease] });
        (throwaway, id)
    }

    fn lease_end(throwaway: &Throwaway) -> End {
        locked(&throwaway.made).as_ref().unwrap().left(false)[0].until
    }

    #[tokio::test]
    async fn lease_ends_where_the_last_answer_has_put_it_or_nobody_knows() {
        let (operation, source) = (Operation::StretchLease, None);
        let day = || Ok(Grant { ttl: Some(HOUR * 24), renewable: true });
        let refused = || {
            let (texts, retry_after) = (String::new(), None);
            Err(VaultError::Refused { operation, status: 403, texts, retry_after })
        };
        let (throwaway, id) = throwaway();
        let first = lease_end(&throwaway);
        let _ = throwaway.renew(Some(&id), None, ready(refused())).await;
        assert_eq!(lease_end(&throwaway), first);

        let began_at = SystemTime::now();
        let _ = throwaway.renew(Some(&id), None, ready(day())).await;
        let End::At(end) = lease_end(&throwaway) else { panic!("it was answered") };
        assert!(end >= began_at + HOUR * 24 && end <= SystemTime::now() + HOUR * 24);
        // One that asks for less, and is not heard of any more, leaves it so or makes it shorter.
        let lost = Err(VaultError::NoAnswer { operation, source });
        let _ = throwaway.renew(Some(&id), Some(HOUR), ready(lost)).await;
        assert_eq!(lease_end(&throwaway), End::By(end));

        let dropped = time::timeout(Duration::ZERO, throwaway.renew(Some(&id), None, pending())).await;
        assert!(dropped.is_err());
        assert_eq!(lease_end(&throwaway), End::ByMaxTtl);
        // With its token, whatever else.
        let _ = throwaway.renew(None, None, ready(day())).await;
        let End::By(end) = lease_end(&throwaway) else { panic!("the token ends") };
        assert!(end >= began_at + HOUR * 24);
    }
}
