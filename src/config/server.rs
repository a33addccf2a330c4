//! The servers of a route, as a connection string names them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{ChannelBinding, RequireAuth, SslMode, SslOptions};

/// PostgreSQL servers that stand for one another, as libpq names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamConfig {
    /// At least one, in the order in which they are tried.
    pub(crate) hosts: Vec<Host>,
    /// Replaces the database that the client names; `None`: the client's goes on.
    pub(crate) database: Option<String>,
    pub(crate) ssl_mode: SslMode,
    /// PEM file of the CAs that the server's certificate is verified against; without it the system's.
    pub(crate) ssl_root_cert: Option<PathBuf>,
    pub(crate) ssl: SslOptions,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) require_auth: RequireAuth,
    pub(crate) min_protocol_version: ProtocolVersion,
    /// What a server is asked for.
    pub(crate) max_protocol_version: ProtocolVersion,
    pub(crate) target_session_attrs: TargetSessionAttrs,
    pub(crate) load_balance_hosts: LoadBalanceHosts,
    /// For each address of each host, which has no more than its share of what is left of `listen.connect_wait`.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) silence: Silence,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// `host`: what its certificate is for. Where there is none, `hostaddr`.
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) port: u16,
}

/// Where a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// What is looked up: `hostaddr`, else `host`.
    Network(String),
    /// A Unix socket. It has no TLS.
    Socket(PathBuf),
}

impl fmt::Display for Host {
    /// As settings would have it: `db.example.com:5432`, `[::1]:5432`; a Unix socket by its path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place, port } = self;
        match place {
            Place::Socket(path) => write!(f, "{}", path.display()),
            Place::Network(_) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Place::Network(_) => write!(f, "{name}:{port}"),
        }
    }
}

impl UpstreamConfig {
    /// Whether a network is between us and any of the hosts.
    pub(crate) fn has_network(&self) -> bool {
        self.hosts.iter().any(|host| matches!(host.place, Place::Network(_)))
    }
}

impl fmt::Display for UpstreamConfig {
    /// Its hosts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{host}")?;
        }
        Ok(())
    }
}

/// libpq's `target_session_attrs`: which servers will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TargetSessionAttrs {
    #[default]
    Any,
    /// Neither a standby nor read-only by default.
    ReadWrite,
    ReadOnly,
    /// Not a standby.
    Primary,
    Standby,
    /// A standby if there is one, else any.
    PreferStandby,
}

impl TargetSessionAttrs {
    /// The word in settings.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// libpq's `load_balance_hosts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LoadBalanceHosts {
    /// Hosts in the order written, addresses in that of the resolver.
    #[default]
    Disable,
    /// Both in an order by chance, another for each session.
    Random,
}

/// How a connection over TCP is found to be dead on which nothing comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    /// `None`: never asked.
    pub(crate) keepalive: Option<Keepalive>,
    /// How long what was sent may stay unacknowledged; `None`: the system's default.
    pub(crate) user_timeout: Option<Duration>,
}

/// The probes of a silent connection; `None` is the system's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keepalive {
    /// Silence before the first.
    pub(crate) idle: Option<Duration>,
    /// Between those that nobody answers.
    pub(crate) interval: Option<Duration>,
    /// Unanswered ones that end the connection.
    pub(crate) count: Option<u32>,
}

impl Default for Silence {
    /// No limit on what is unacknowledged: Linux would also end a connection by it whose other side is there and
    /// takes no bytes for a while, as a server does that waits for a lock.
    fn default() -> Self {
        Self { keepalive: Some(Keepalive::default()), user_timeout: None }
    }
}

impl Default for Keepalive {
    /// Two minutes in all. The kernel's own default is over two hours, in which a `LISTENing` session would wait for
    /// nobody, and most load balancers and firewalls forget a connection that is silent for four to six minutes.
    fn default() -> Self {
        Self { idle: Some(Duration::from_mins(1)), interval: Some(Duration::from_secs(10)), count: Some(6) }
    }
}

/// A version of the protocol that pglease speaks with servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProtocolVersion {
    #[default]
    V3_0,
    /// With cancel keys of up to 256 bytes.
    V3_2,
}

#[cfg(test)]
impl UpstreamConfig {
    /// One host, and libpq's defaults, or ours, for all else.
    pub(crate) fn at(name: &str, port: u16) -> Self {
        Self {
            hosts: vec![Host::at(name, port)],
            database: None,
            ssl_mode: SslMode::default(),
            ssl_root_cert: None,
            ssl: SslOptions::default(),
            channel_binding: ChannelBinding::default(),
            require_auth: RequireAuth::default(),
            min_protocol_version: ProtocolVersion::default(),
            max_protocol_version: ProtocolVersion::default(),
            target_session_attrs: TargetSessionAttrs::default(),
            load_balance_hosts: LoadBalanceHosts::default(),
            connect_timeout: None,
            silence: Silence::default(),
        }
    }

    /// The same over plain TCP.
    pub(crate) fn plain(name: &str, port: u16) -> Self {
        Self { ssl_mode: SslMode::Disable, ..Self::at(name, port) }
    }
}

#[cfg(test)]
impl Host {
    pub(crate) fn at(name: &str, port: u16) -> Self {
        Self { name: name.to_owned(), place: Place::Network(name.to_owned()), port }
    }

    pub(crate) fn socket(dir: &str, port: u16) -> Self {
        let path = PathBuf::from(format!("{dir}/.s.PGSQL.{port}"));
        Self { name: dir.to_owned(), place: Place::Socket(path), port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_shown_as_they_are_written() {
        let mut config = UpstreamConfig::at("::1", 5433);
        config.hosts.extend([Host::at("db", 5432), Host::socket("/run/pg", 6000)]);
        assert_eq!(config.to_string(), "[::1]:5433,db:5432,/run/pg/.s.PGSQL.6000");
    }
}
