//! What the check makes at Vault: a login of its own and the leases read with it, given back whatever happens.
//!
//! Logins and reads run in tasks that the [`Throwaway`] owns. A check that is cut short drops none of them halfway,
//! which could leave a credential behind that nobody knows of: what was begun is waited for, then all is revoked. So is
//! the revocation a task: who asks for it after somebody who has been dropped meanwhile is told what became of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time;

use crate::credential::{Credential, DerivedKeys, Granted};
use crate::ids::{GenerationId, LeaseId};
use crate::lease::{LiveToken, Requests};
use crate::vault::{Grant, Login, Operation, StaticCredential, TokenKind, Vault, VaultApi, VaultError};

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
    /// `None` where it does not end.
    token_ends_at: Option<SystemTime>,
    leases: Vec<MadeLease>,
}

#[derive(Clone, Debug)]
struct MadeLease {
    id: LeaseId,
    db_role: String,
    ends_at: SystemTime,
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

/// Something that is left, and until when; `None`: for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) what: String,
    pub(crate) until: Option<SystemTime>,
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
            let token_ends_at = grant.ttl.map(|ttl| SystemTime::now() + ttl);
            *locked(&made) = Some(Made { token: Arc::clone(&token), token_ends_at, leases: Vec::new() });
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
            let ends_at = SystemTime::now() + lease.grant.ttl.unwrap_or_default();
            let db_role = lease.user.clone();
            let made_lease = MadeLease { id: lease.id.clone(), db_role, ends_at };
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
        let token = Left { what: "the token of the check".to_owned(), until: self.token_ends_at };
        let lease = |lease: &MadeLease| Left {
            what: format!("the login of {}", lease.db_role),
            until: Some(lease.ends_at),
        };
        match (self.token.kind(), is_revoked) {
            (TokenKind::Service | TokenKind::Foreign, true) => Vec::new(),
            (TokenKind::Batch, true) => vec![token],
            (TokenKind::Foreign, false) => self.leases.iter().map(lease).collect(),
            (TokenKind::Service | TokenKind::Batch, false) => {
                self.leases.iter().map(lease).chain([token]).collect()
            }
        }
    }
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
