//! Who is asking: the name that the client says, and how it proves that it is the one.

mod file;
mod password;
mod users;

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time;

use super::encryption::{Encryption, Transport};
use super::record::Name;
use crate::config::AuthConfig;
use crate::net::Peer;
use crate::wire::error::{ClientError, SqlState};
use crate::wire::sasl::SaslError;
use crate::wire::scram_server::Offer;
use crate::wire::startup::StartupMessage;

use file::AuthFile;
pub(crate) use file::AuthFileError;

/// A client, how it came, and what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// What it calls itself. Decides on nothing but the route.
    pub(crate) user: Vec<u8>,
    /// As it named it, or else its user name.
    pub(crate) database: Vec<u8>,
    pub(crate) message: StartupMessage,
    pub(crate) transport: Transport,
}

/// Why a client may not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("client named no user")]
    NoUser,
    #[error("client went away before it had proven who it is")]
    Closed,
    #[error("client did not prove who it is within {AUTH_TIMEOUT:?}")]
    TimedOut,
    #[error("listen.auth_file has no user {}", Name(user))]
    NoSuchUser { user: Vec<u8> },
    #[error("wrong password of user {}", Name(user))]
    WrongPassword { user: Vec<u8> },
    #[error("exchange with user {}", Name(user))]
    Sasl { user: Vec<u8>, source: SaslError },
    #[error("user id {uid} is not in listen.peer_uids: no session for user {}", Name(user))]
    Peer { uid: u32, user: Vec<u8> },
    #[error("a connection that the kernel knows no user of: no session for user {}", Name(user))]
    NoPeer { user: Vec<u8> },
    #[error("no randomness for a nonce")]
    Random,
    #[error("connection to the client")]
    Io(#[from] io::Error),
}

impl AuthError {
    /// PostgreSQL's own answer; `None` for silence. Who was refused is not told whether there is such a user.
    pub(crate) fn client_error(&self) -> Option<ClientError> {
        let wrong_password = |user: &[u8]| {
            let user = String::from_utf8_lossy(user);
            ClientError::fatal(
                SqlState::INVALID_PASSWORD,
                format!("password authentication failed for user \"{user}\""),
            )
        };
        Some(match self {
            Self::NoUser => ClientError::fatal(
                SqlState::INVALID_AUTHORIZATION,
                "no PostgreSQL user name specified in startup packet",
            ),
            Self::NoSuchUser { user } | Self::WrongPassword { user } => wrong_password(user),
            Self::Sasl { user, source } => source.client_error().unwrap_or_else(|| wrong_password(user)),
            Self::Peer { user, .. } | Self::NoPeer { user } => {
                let user = String::from_utf8_lossy(user);
                ClientError::fatal(
                    SqlState::INVALID_AUTHORIZATION,
                    format!("Peer authentication failed for user \"{user}\""),
                )
            }
            Self::Random => ClientError::fatal(SqlState::INTERNAL_ERROR, "could not generate random nonce"),
            Self::Closed | Self::TimedOut | Self::Io(_) => return None,
        })
    }
}

/// Who a client says it is; that has still to be proven.
pub(crate) fn identify(message: StartupMessage, transport: Transport) -> Result<Client, AuthError> {
    let given = |name| message.parameters.get(name).filter(|value| !value.is_empty());
    let user = given("user").ok_or(AuthError::NoUser)?.to_vec();
    let database = given("database").map_or_else(|| user.clone(), <[u8]>::to_vec);
    Ok(Client { user, database, message, transport })
}

/// How clients prove who they are.
#[derive(Debug)]
pub(crate) enum Auth {
    /// Not at all: whoever reaches the listener, which is on loopback only.
    Trust,
    /// By SCRAM, over TLS bound to our certificate if it can be.
    Password(AuthFile),
    /// By being one of these users of the machine, who may call themselves what they like.
    Peer(Vec<u32>),
}

impl Auth {
    /// Reads the files that the settings name.
    pub(crate) fn load(config: &AuthConfig) -> Result<Self, AuthFileError> {
        Ok(match config {
            AuthConfig::Trust => Self::Trust,
            AuthConfig::Password { file } => Self::Password(AuthFile::load(file)?),
            AuthConfig::Peer { uids } => Self::Peer(uids.clone()),
        })
    }

    /// Whether clients are asked for a proof, which takes its time.
    pub(crate) fn asks(&self) -> bool {
        matches!(self, Self::Password(_))
    }

    /// Has a client prove who it says it is. Gives what it is owed in front of all else that it is told: our side of
    /// the proof. What it has sent beyond its own is left in `early`.
    ///
    /// Not cancel safe: a client that was asked may have answered.
    pub(crate) async fn prove<C>(
        &self,
        client: &mut C,
        early: &mut BytesMut,
        asking: &Client,
    ) -> Result<BytesMut, AuthError>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        match self {
            Self::Trust => Ok(BytesMut::new()),
            Self::Password(file) => {
                let binding = match &asking.transport.encryption {
                    Encryption::Tls { end_point } => end_point.clone(),
                    Encryption::None => None,
                };
                let proving = password::prove(client, early, &asking.user, Offer::new(binding), file);
                time::timeout(AUTH_TIMEOUT, proving).await.unwrap_or(Err(AuthError::TimedOut))
            }
            Self::Peer(uids) => {
                is_one_of(uids, asking.transport.peer, &asking.user).map(|()| BytesMut::new())
            }
        }
    }
}

fn is_one_of(uids: &[u32], peer: Peer, user: &[u8]) -> Result<(), AuthError> {
    match peer {
        Peer::Unix { uid } if uids.contains(&uid) => Ok(()),
        Peer::Unix { uid } => Err(AuthError::Peer { uid, user: user.to_vec() }),
        Peer::Tcp(_) => Err(AuthError::NoPeer { user: user.to_vec() }),
    }
}

/// PostgreSQL's own `authentication_timeout`. Who is asked holds a place and no seat: see [`super::admission`].
const AUTH_TIMEOUT: Duration = Duration::from_mins(1);

/// Any text for `listen.auth_file`; see `crate::fuzz`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_file(text: &[u8]) {
    match users::Users::parse(text) {
        Ok(users) => assert!(users.len() > 0 && users.len() <= text.len()),
        Err(error) => assert!(error.to_string().len() < 300),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::startup::{PROTOCOL_3_0, ProtocolVersion, StartupParameters};

    fn asking(pairs: &[(&str, &str)]) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut parameters = StartupParameters::default();
        for (name, value) in pairs {
            parameters.push(*name, *value);
        }
        let message = StartupMessage { version: ProtocolVersion(PROTOCOL_3_0), parameters };
        match identify(message, Transport::test()) {
            Ok(client) => Some((client.user, client.database)),
            Err(AuthError::NoUser) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn database_defaults_to_the_user_name() {
        let (alice, wizard) = (b"alice".to_vec(), b"wizard".to_vec());
        assert_eq!(asking(&[("user", "alice"), ("database", "wizard")]), Some((alice.clone(), wizard)));
        assert_eq!(asking(&[("user", "alice")]), Some((alice.clone(), alice.clone())));
        assert_eq!(asking(&[("database", ""), ("user", "alice")]), Some((alice.clone(), alice)));
    }

    #[test]
    fn client_without_a_name_is_refused_as_by_the_server() {
        assert_eq!(asking(&[("database", "wizard")]), None);
        assert_eq!(asking(&[("user", "")]), None);
    }

    #[test]
    fn peer_is_who_the_kernel_says_under_whatever_name() {
        let peer = |uid| Peer::Unix { uid };
        assert!(is_one_of(&[0, 1000], peer(1000), b"anyone").is_ok());
        let told = |peer| {
            let error = is_one_of(&[0, 1000], peer, b"app").unwrap_err();
            (error.to_string(), error.client_error())
        };
        let expected = ClientError::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "Peer authentication failed for user \"app\"",
        );
        assert_eq!(
            told(peer(1001)),
            (
                "user id 1001 is not in listen.peer_uids: no session for user app".to_owned(),
                Some(expected.clone())
            )
        );
        assert_eq!(told(Peer::Tcp(([127, 0, 0, 1], 1).into())).1, Some(expected));
    }

    #[test]
    fn whether_there_is_such_a_user_is_for_the_log_alone() {
        let user = b"app\n".to_vec();
        let unknown = AuthError::NoSuchUser { user: user.clone() };
        let known = AuthError::WrongPassword { user: user.clone() };
        let malformed = AuthError::Sasl { user, source: SaslError::Length { len: 0 } };
        assert_eq!(unknown.to_string(), "listen.auth_file has no user app\u{fffd}");
        assert_eq!(unknown.client_error(), known.client_error());
        assert_eq!(malformed.client_error(), known.client_error());
    }
}
