//! Who is asking. `trust`: whoever reaches the listener, which is on loopback only.

use crate::wire::error::{ClientError, SqlState};
use crate::wire::startup::StartupMessage;

/// A client that may go on, and what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// What it calls itself. Decides on nothing but the route.
    pub(crate) user: Vec<u8>,
    /// As it named it, or else its user name.
    pub(crate) database: Vec<u8>,
    pub(crate) message: StartupMessage,
}

/// Why a client may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("client named no user")]
    NoUser,
}

impl AuthError {
    pub(crate) fn client_error(self) -> ClientError {
        match self {
            Self::NoUser => ClientError::fatal(
                SqlState::INVALID_AUTHORIZATION,
                "no PostgreSQL user name specified in startup packet",
            ),
        }
    }
}

/// Lets everybody in who says a name.
pub(crate) fn trust(message: StartupMessage) -> Result<Client, AuthError> {
    let given = |name| message.parameters.get(name).filter(|value| !value.is_empty());
    let user = given("user").ok_or(AuthError::NoUser)?.to_vec();
    let database = given("database").map_or_else(|| user.clone(), <[u8]>::to_vec);
    Ok(Client { user, database, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::startup::{PROTOCOL_3_0, ProtocolVersion, StartupParameters};

    fn asking(pairs: &[(&str, &str)]) -> Result<(Vec<u8>, Vec<u8>), AuthError> {
        let mut parameters = StartupParameters::default();
        for (name, value) in pairs {
            parameters.push(*name, *value);
        }
        let client = trust(StartupMessage { version: ProtocolVersion(PROTOCOL_3_0), parameters })?;
        Ok((client.user, client.database))
    }

    #[test]
    fn database_defaults_to_the_user_name() {
        let (alice, wizard) = (b"alice".to_vec(), b"wizard".to_vec());
        assert_eq!(asking(&[("user", "alice"), ("database", "wizard")]), Ok((alice.clone(), wizard)));
        assert_eq!(asking(&[("user", "alice")]), Ok((alice.clone(), alice.clone())));
        assert_eq!(asking(&[("database", ""), ("user", "alice")]), Ok((alice.clone(), alice)));
    }

    #[test]
    fn client_without_a_name_is_refused_as_by_the_server() {
        assert_eq!(asking(&[("database", "wizard")]), Err(AuthError::NoUser));
        assert_eq!(asking(&[("user", "")]), Err(AuthError::NoUser));
    }
}
