//! What stands between us and a session, in words: cause and cure of everything that connecting, TLS and the login can
//! end in. Pure.

mod tls;
mod refusal;

use std::io;

use crate::check::fault::Fault;
use crate::check::report::Found;
use crate::check::resolver;
use crate::config::UpstreamConfig;
use crate::telemetry::Causes;
use crate::upstream::{LoginError, UpstreamError};
use crate::wire::scram::ScramError;

pub(super) use refusal::{Elsewhere, connection_type, creation_in};
pub(super) use tls::no_binding;

/// Where it happened, as far as a cure has to name it.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) upstream: &'a UpstreamConfig,
    pub(super) database: &'a str,
    pub(super) vault_path: &'a str,
    pub(super) startup_role: Option<&'a str>,
    /// Whether the login has named it.
    pub(super) as_startup_role: bool,
    /// Our own address on the way there.
    pub(super) ours: Option<std::net::IpAddr>,
    /// Whether another host of the list has taken the same credential.
    pub(super) accepted_elsewhere: bool,
    /// What another database of the server has told.
    pub(super) elsewhere: &'a Elsewhere,
}

/// Name, cause and cure of one failure.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) fault: Fault,
    pub(super) cause: String,
    pub(super) cure: String,
}

impl Trouble {
    fn new(fault: Fault, cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { fault, cause: cause.into(), cure: cure.into() }
    }
}

/// What failed and what helps.
pub(super) fn fault<T>(error: &UpstreamError, place: &Place<'_>) -> Found<T> {
    let error = error.most_telling();
    let Trouble { fault, cause, cure } = explain(error, place);
    Found::fault(fault, Causes(error).to_string(), cause, cure)
}

fn explain(error: &UpstreamError, place: &Place<'_>) -> Trouble {
    match error {
        UpstreamError::Resolve { source, .. } if resolver::is_silent(source) => Trouble::new(
            Fault::PostgresResolverSilent,
            "the resolver of this machine does not answer, or gets no answer itself",
            "see that the name servers of /etc/resolv.conf can be reached: a NetworkPolicy has to let DNS through",
        ),
        UpstreamError::Resolve { .. } => Trouble::new(
            Fault::PostgresNameUnknown,
            "no name server knows the name",
            "correct the host in `upstream`; a Service of another namespace is \
             <service>.<namespace>.svc",
        ),
        UpstreamError::Connect { source, .. } => unreachable_for(source),
        UpstreamError::TimedOut { .. } => Trouble::new(
            Fault::PostgresSilent,
            "nobody answers: what is sent there is dropped on the way, or what listens there hangs, or is no PostgreSQL",
            "let connections to this address and port through: NetworkPolicy, security group, firewall; if they are, \
             look at the server",
        ),
        UpstreamError::Tls { source, .. } => tls::explain(source, place.upstream),
        UpstreamError::Login { source, .. } => unfinished(source, place),
        UpstreamError::CredentialRejected { response, .. } => refusal::of_credential(response, place),
        UpstreamError::Refused { response, .. } => refusal::of_session(response, place),
        UpstreamError::Unfit { .. } => Trouble::new(
            Fault::NoHostOfThatKind,
            "target_session_attrs asks for another kind of server",
            "add a host of that kind to `upstream`, or ask for another: target_session_attrs=any",
        ),
        UpstreamError::Cancel { .. } | UpstreamError::NoHost(_) => Trouble::new(
            Fault::NoHost,
            "no host of `upstream` serves",
            "see what the steps of the single hosts say",
        ),
    }
}

fn unreachable_for(source: &io::Error) -> Trouble {
    let (fault, cause, cure) = if source.kind() == io::ErrorKind::ConnectionRefused {
        (
            Fault::PostgresNothingListens,
            "nothing listens there",
            "start PostgreSQL, or correct the port in `upstream`; the server listens where \
             `listen_addresses` and `port` of postgresql.conf say",
        )
    } else if source.kind() == io::ErrorKind::NotFound {
        (
            Fault::SocketMissing,
            "there is no such socket",
            "correct the directory in `upstream`: it is one of `unix_socket_directories` of \
             postgresql.conf, and has to be mounted here",
        )
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        (
            Fault::SocketForbidden,
            "this process may not connect to it",
            "give its user the right: the mode of the socket is `unix_socket_permissions` of postgresql.conf",
        )
    } else {
        (
            Fault::PostgresNoWay,
            "there is no way to this address",
            "correct the host in `upstream`, or let connections through: routes, NetworkPolicy, firewall",
        )
    };
    Trouble::new(fault, cause, cure)
}

/// A login that the server did not refuse, and that came to nothing.
fn unfinished(source: &LoginError, place: &Place<'_>) -> Trouble {
    let database = super::quote::identifier(place.database);
    let hba = |method: &str| {
        format!(
            "-- in pg_hba.conf, in front of the line that holds now:\n{} {database} all {} {method}\n-- then:\n\
             SELECT pg_reload_conf();",
            connection_type(place.upstream),
            refusal::client_address(place.ours),
        )
    };
    if let LoginError::Io(source) = source
        && let Some(rustls::Error::AlertReceived(alert)) =
            source.get_ref().and_then(|fault| fault.downcast_ref())
    {
        return tls::alert_received(*alert);
    }
    match source {
        LoginError::Io(_) | LoginError::Closed => Trouble::new(
            Fault::LoginBroken,
            "the connection broke in the middle of the login",
            "see the server's log, and that of what is in between",
        ),
        LoginError::Method { method, .. } => Trouble::new(
            Fault::AuthMethod,
            format!("the server asks for {method}, and require_auth does not allow it"),
            format!("ALTER SYSTEM SET password_encryption = 'scram-sha-256';\n{}", hba("scram-sha-256")),
        ),
        LoginError::NothingAsked { .. } => Trouble::new(
            Fault::AuthTrust,
            "the server lets everybody in without a password (trust), and require_auth does not allow it",
            hba("scram-sha-256"),
        ),
        LoginError::InClear => Trouble::new(
            Fault::AuthInClear,
            "the server asks for the password in clear, and the connection is not one of verified TLS",
            hba("scram-sha-256"),
        ),
        LoginError::NotBound { asked } => Trouble::new(
            Fault::NotBound,
            format!("channel_binding=require, and the server asks for {asked}, which cannot be bound"),
            hba("scram-sha-256"),
        ),
        LoginError::Scram(ScramError::PlusNotOffered) => Trouble::new(
            Fault::BindingNotOffered,
            "channel_binding=require, and the server offers no SCRAM-SHA-256-PLUS: something that ends TLS is in \
             between, as poolers are, or the role's password is stored in another way",
            "connect to PostgreSQL itself, or say channel_binding=prefer in `upstream`",
        ),
        LoginError::Scram(ScramError::NoMechanism) => Trouble::new(
            Fault::BindingNotOffered,
            "the server offers no kind of SCRAM that goes with channel_binding as it is",
            "say channel_binding=prefer in `upstream`",
        ),
        LoginError::Scram(ScramError::Iterations { asked }) => Trouble::new(
            Fault::ScramRounds,
            format!("the role's password was stored with {asked} rounds of key derivation"),
            "ALTER SYSTEM SET scram_iterations = 4096;\nSELECT pg_reload_conf();",
        ),
        LoginError::Scram(
            ScramError::ServerFirst { .. } | ScramError::NoSalt | ScramError::ServerFinal { .. },
        )
        | LoginError::NotProven
        | LoginError::OutOfOrder { .. } => Trouble::new(
            Fault::ServerNotProven,
            "the server did not prove that it knows the credential: it may be somebody else's, who is after passwords",
            "find out who answers at this address; do not turn `sslmode` or `channel_binding` down",
        ),
        LoginError::Version(_) => Trouble::new(
            Fault::ProtocolVersion,
            "server and pglease do not agree on a version of the protocol",
            "take min_protocol_version and max_protocol_version out of `upstream`",
        ),
        LoginError::UserName | LoginError::Password => Trouble::new(
            Fault::ZeroByte,
            "PostgreSQL takes no zero byte, neither in a name nor in a password",
            format!(
                "have Vault make others: username_template and password_policy of the connection of {}",
                place.vault_path
            ),
        ),
        LoginError::Frame(_) | LoginError::Unexpected { .. } | LoginError::Malformed { .. } => Trouble::new(
            Fault::ProtocolUnknown,
            "what answers there does not speak PostgreSQL's protocol",
            "correct host and port in `upstream`",
        ),
        // The caller has these as an error of their own.
        LoginError::Refused { response, .. } => refusal::of_session(response, place),
    }
}

#[cfg(test)]
mod tests;
