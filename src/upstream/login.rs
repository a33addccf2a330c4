//! From the StartupMessage to ReadyForQuery, over whatever carries bytes.
//!
//! Two phases: until AuthenticationOk the other side is nobody in particular and gets little room; from there on
//! its greeting is kept for the client as it came.

#[cfg(test)]
mod tests;

use std::io;
use std::panic;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::{self, JoinError};

use crate::config::RequireAuth;
use crate::credential::Credential;
use crate::wire::authentication::{self, Authentication, PasswordMessage};
use crate::wire::error::{ErrorResponse, SinceLetIn};
use crate::wire::frame::{Frame, split_frame};
use crate::wire::message::HEADER_LEN;
use crate::wire::message::backend::{
    AUTHENTICATION, BACKEND_KEY_DATA, ERROR_RESPONSE, NEGOTIATE_PROTOCOL_VERSION, NOTICE_RESPONSE,
    PARAMETER_STATUS, READY_FOR_QUERY,
};
use crate::wire::negotiation::Versions;
use crate::wire::scram::{Asked, Binding, Exchange, Keys, Proof};
use crate::wire::scram_server::nonce;
use crate::wire::startup::{CancelKey, StartupParameters};

use super::error::LoginError;
use super::refusal::Stage;

/// What a login insists on.
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) binding: Binding,
    pub(super) require_auth: RequireAuth,
    /// Whether TLS has shown that this is the server: no one else gets a password in clear.
    pub(super) is_verified: bool,
    pub(super) versions: Versions,
    /// For key derivations that go on at a time.
    pub(super) turns: &'a Arc<Semaphore>,
}

/// What upstream said once it had let us in. `before_key` and `after_key` are as in [`super::LoggedIn`].
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) before_key: BytesMut,
    pub(super) key: Option<CancelKey>,
    pub(super) after_key: BytesMut,
}

/// Logs in as `credential` says, with `parameters` otherwise. The password leaves in clear or as MD5 where `terms` name
/// that, and only there. Not cancel safe: the connection is of no use after an error or a drop.
pub(super) async fn log_in<S>(
    stream: &mut S,
    credential: &Credential,
    parameters: &StartupParameters,
    terms: &Terms<'_>,
) -> Result<Greeting, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if credential.user.contains('\0') {
        return Err(LoginError::UserName);
    }
    let mut parameters = parameters.clone();
    parameters.set("user", credential.user.as_bytes());
    let mut startup = BytesMut::new();
    parameters.encode(terms.versions.most, &mut startup);

    let mut login = Login { stream, read: BytesMut::new(), kept: BytesMut::new(), room: MAX_LOGIN_LEN };
    login.send(&startup).await?;
    login.authenticate(credential, terms).await?;
    login.greeting().await
}

struct Login<'a, S> {
    stream: &'a mut S,
    /// Bytes of upstream that no one has looked at.
    read: BytesMut,
    /// Whole messages for the client.
    kept: BytesMut,
    /// Bytes that upstream may still send.
    room: u32,
}

/// One whole message.
struct Message {
    tag: u8,
    /// All of it, as it came.
    bytes: BytesMut,
}

impl Message {
    fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// How far the proof has come.
enum Auth {
    Fresh,
    /// A password was sent, in clear or as MD5.
    Answered,
    Begun(Exchange),
    Proved(Proof),
    Verified,
}

impl Auth {
    fn stage(&self) -> Stage {
        match self {
            Self::Fresh => Stage::Unasked,
            Self::Answered | Self::Begun(_) | Self::Proved(_) => Stage::Asked,
            Self::Verified => Stage::Proven,
        }
    }
}

impl<S> Login<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Up to AuthenticationOk. It counts where nothing was asked of us and that will do, or when what was asked has run
    /// to its end: half of an exchange would do for who wants to be taken for the server.
    async fn authenticate(&mut self, credential: &Credential, terms: &Terms<'_>) -> Result<(), LoginError> {
        let mut auth = Auth::Fresh;
        let mut is_negotiated = false;
        loop {
            let message = self.message(MAX_NOTICE_LEN).await?;
            let request = match message.tag {
                AUTHENTICATION if message.body().len() <= MAX_REQUEST_LEN => {
                    Authentication::parse(message.body())
                        .ok_or(LoginError::Malformed { name: "authentication request" })?
                }
                AUTHENTICATION => return Err(LoginError::Malformed { name: "authentication request" }),
                ERROR_RESPONSE => {
                    let response = ErrorResponse::parse(message.body());
                    return Err(LoginError::Refused { response, stage: auth.stage() });
                }
                NOTICE_RESPONSE | PARAMETER_STATUS => {
                    self.kept.unsplit(message.bytes);
                    continue;
                }
                NEGOTIATE_PROTOCOL_VERSION if !is_negotiated && matches!(auth, Auth::Fresh) => {
                    terms.versions.judge(message.body())?;
                    is_negotiated = true;
                    continue;
                }
                tag => return Err(LoginError::Unexpected { tag }),
            };
            auth = match (request, auth) {
                (Authentication::Ok, Auth::Fresh) => return is_enough(terms),
                (Authentication::Ok, Auth::Verified | Auth::Answered) => return Ok(()),
                (Authentication::Ok, Auth::Begun(_) | Auth::Proved(_)) => return Err(LoginError::NotProven),
                (Authentication::Cleartext, Auth::Fresh) => {
                    self.send(&cleartext(credential, terms)?).await?;
                    Auth::Answered
                }
                (Authentication::Md5 { salt }, Auth::Fresh) => {
                    self.send(&md5(credential, salt, terms)?).await?;
                    Auth::Answered
                }
                (Authentication::Sasl(_), Auth::Fresh) if !terms.require_auth.scram => {
                    return Err(not_allowed("SCRAM-SHA-256", terms));
                }
                (Authentication::Sasl(offered), Auth::Fresh) => {
                    let exchange = Exchange::begin(offered, &terms.binding, fresh_nonce()?)?;
                    let mut reply = BytesMut::new();
                    exchange.encode(&mut reply);
                    self.send(&reply).await?;
                    Auth::Begun(exchange)
                }
                (Authentication::SaslContinue(server_first), Auth::Begun(exchange)) => {
                    let proof = prove(exchange.ask(server_first)?, credential, terms.turns).await?;
                    let mut reply = BytesMut::new();
                    proof.encode(&mut reply);
                    self.send(&reply).await?;
                    Auth::Proved(proof)
                }
                (Authentication::SaslFinal(server_final), Auth::Proved(proof)) => {
                    proof.verify(server_final)?;
                    Auth::Verified
                }
                (Authentication::Other(method), _) => return Err(not_allowed(method, terms)),
                (request, _) => return Err(LoginError::OutOfOrder { name: request.name() }),
            };
        }
    }

    /// From AuthenticationOk up to ReadyForQuery at least.
    async fn greeting(mut self) -> Result<Greeting, LoginError> {
        let mut key: Option<CancelKey> = None;
        let mut before_key = BytesMut::new();
        let before_ok = self.kept.len();
        loop {
            let message = self.message(MAX_LOGIN_LEN).await?;
            match message.tag {
                ERROR_RESPONSE => {
                    let has_begun = key.is_some() || self.kept.len() > before_ok;
                    let stage = if has_begun { Stage::Begun } else { Stage::LetIn };
                    if key.is_none() {
                        before_key = self.kept.split();
                    }
                    let said = SinceLetIn {
                        before_key: before_key.to_vec(),
                        pid: key.map(|key| key.pid),
                        after_key: self.kept.to_vec(),
                    };
                    let response = ErrorResponse::parse(message.body()).since_let_in(said);
                    return Err(LoginError::Refused { response, stage });
                }
                // Joins without a copy what was read in one go.
                NOTICE_RESPONSE | PARAMETER_STATUS => self.kept.unsplit(message.bytes),
                BACKEND_KEY_DATA if key.is_none() => {
                    key = Some(backend_key(message.body())?);
                    before_key = self.kept.split();
                }
                READY_FOR_QUERY => {
                    if key.is_none() {
                        before_key = self.kept.split();
                    }
                    self.kept.unsplit(message.bytes);
                    self.kept.unsplit(self.read);
                    return Ok(Greeting { before_key, key, after_key: self.kept });
                }
                tag => return Err(LoginError::Unexpected { tag }),
            }
        }
    }

    /// The next whole message, its length judged before it is read.
    async fn message(&mut self, max_len: u32) -> Result<Message, LoginError> {
        loop {
            if let Some((Frame { tag, body }, _)) = split_frame(&self.read, max_len.min(self.room))? {
                let len = HEADER_LEN + body.len();
                self.room = self.room.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
                return Ok(Message { tag, bytes: self.read.split_to(len) });
            }
            self.read.reserve(READ_LEN);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(LoginError::Closed);
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        self.stream.write_all(bytes).await?;
        // TLS holds back what has not been flushed.
        Ok(self.stream.flush().await?)
    }
}

/// Whether a server may let us in without asking anything.
fn is_enough(terms: &Terms<'_>) -> Result<(), LoginError> {
    match terms.binding {
        Binding::Required(_) => Err(LoginError::NotBound { asked: "nothing" }),
        Binding::None | Binding::Preferred(_) if terms.require_auth.none => Ok(()),
        Binding::None | Binding::Preferred(_) => {
            Err(LoginError::NothingAsked { allowed: terms.require_auth })
        }
    }
}

/// The password itself, for a server that may have it.
fn cleartext(credential: &Credential, terms: &Terms<'_>) -> Result<PasswordMessage, LoginError> {
    const ASKED: &str = "the password in clear";
    if !terms.require_auth.password {
        return Err(not_allowed(ASKED, terms));
    }
    if !terms.is_verified {
        return Err(LoginError::InClear);
    }
    refuse_unbound(ASKED, terms)?;
    authentication::cleartext(&credential.password).ok_or(LoginError::Password)
}

/// The password's hash, for a server that may have it.
fn md5(credential: &Credential, salt: [u8; 4], terms: &Terms<'_>) -> Result<PasswordMessage, LoginError> {
    const ASKED: &str = "an MD5 password";
    if !terms.require_auth.md5 {
        return Err(not_allowed(ASKED, terms));
    }
    refuse_unbound(ASKED, terms)?;
    authentication::md5(&credential.user, &credential.password, salt).ok_or(LoginError::Password)
}

fn refuse_unbound(asked: &'static str, terms: &Terms<'_>) -> Result<(), LoginError> {
    match terms.binding {
        Binding::Required(_) => Err(LoginError::NotBound { asked }),
        Binding::None | Binding::Preferred(_) => Ok(()),
    }
}

fn not_allowed(method: &'static str, terms: &Terms<'_>) -> LoginError {
    LoginError::Method { method, allowed: terms.require_auth }
}

fn fresh_nonce() -> io::Result<String> {
    nonce().ok_or_else(|| io::Error::other("no randomness for a nonce"))
}

/// The proof. The keys for it are derived by the first login that is asked in this way; others wait for them.
async fn prove(asked: Asked, credential: &Credential, turns: &Arc<Semaphore>) -> Result<Proof, LoginError> {
    let place = credential.keys.under(&asked.salting);
    let derive = async || {
        let (password, salting) = (credential.password.clone(), asked.salting.clone());
        match in_turn(turns, move || Keys::derive(&password, &salting)).await {
            Ok(keys) => Ok(keys),
            Err(error) => match error.try_into_panic() {
                Ok(fault) => panic::resume_unwind(fault),
                // The process ends.
                Err(_) => Err(LoginError::Closed),
            },
        }
    };
    let keys = place.get_or_try_init(derive).await?;
    Ok(asked.prove(keys))
}

/// Works on another thread than that of the sessions, whose bytes would wait for it. Cancel safe, but for the work: that
/// goes on once it has begun, and so does its turn.
async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // Never closed, so there is always a turn.
    let turn = Arc::clone(turns).acquire_owned().await;
    let in_turn = move || {
        let _turn = turn;
        work()
    };
    task::spawn_blocking(in_turn).await
}

/// BackendKeyData: Int32 pid, Byte*n* secret, of 4 bytes in protocol 3.0 and at most 256 in any.
fn backend_key(body: &[u8]) -> Result<CancelKey, LoginError> {
    match body.split_first_chunk() {
        Some((&pid, secret)) if (4..=MAX_SECRET_LEN).contains(&secret.len()) => {
            Ok(CancelKey { pid: i32::from_be_bytes(pid), secret: secret.to_vec().into() })
        }
        _ => Err(LoginError::Malformed { name: "BackendKeyData" }),
    }
}

/// What is read at once: a whole greeting of PostgreSQL 18 has about 700 bytes.
const READ_LEN: usize = 4096;
/// One message before AuthenticationOk, in bytes. The longest that PostgreSQL sends are errors and notices.
const MAX_NOTICE_LEN: u32 = 64 * 1024;
/// The body of an authentication request, in bytes. libpq's own bound.
const MAX_REQUEST_LEN: usize = 2000;
/// Everything up to ReadyForQuery, in bytes. A login trigger's notices may be long.
const MAX_LOGIN_LEN: u32 = 1024 * 1024;
/// The secret of BackendKeyData, in bytes.
const MAX_SECRET_LEN: usize = 256;
