//! What is wrong with an `upstream`.

use crate::config::conninfo::SyntaxError;
use crate::config::error::{did_you_mean, quoted};
use crate::config::require_auth::RequireAuthError;

/// What is wrong with an `upstream`, and what to do about it. Quotes no value that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("holds a {keyword}; remove it, as pglease logs in with what it leases")]
    Secret { keyword: &'static str },
    #[error("{}: unknown keyword; {}", quoted(keyword), did_you_mean(*nearest))]
    Unknown { keyword: String, nearest: Option<&'static str> },
    #[error("{keyword}: the client's own goes on unchanged; leave it out")]
    Clients { keyword: &'static str },
    #[error("{keyword}: has no use here; leave it out")]
    Unused { keyword: &'static str },
    #[error("names no host; write it like postgresql://db.example.com:5432/app")]
    NoHost,
    #[error("host: entry {entry} is empty; name each host")]
    EmptyHost { entry: usize },
    #[error("names an abstract Unix socket, which anybody can make; name a directory, host or IP address")]
    AbstractSocket,
    #[error("names a Unix socket with a path of more than {max} bytes; use a shorter one")]
    SocketPath { max: usize },
    #[error("has a hostaddr that is not an IP address; write it like 10.0.0.1")]
    HostAddr,
    #[error("host and hostaddr have {hosts} and {addresses} entries; give as many of each")]
    HostAddrCount { hosts: usize, addresses: usize },
    #[error("port has {ports} entries for {hosts} {}; give one for all, or one for each", if *hosts == 1 { "host" } else { "hosts" })]
    PortCount { ports: usize, hosts: usize },
    #[error("hostaddr without a name in host with sslmode=verify-full, which verifies the name; add it")]
    Nameless,
    #[error("has a host that is neither a name nor an IP address; write it like db.example.com")]
    Host,
    #[error("has a port that is not a number from 1 to 65535; write it like 5432")]
    Port,
    #[error("has a dbname with a control character; remove it")]
    Database,
    #[error("sslmode={mode} promises nothing; use verify-full, or disable to do without TLS knowingly")]
    WeakSslMode { mode: &'static str },
    #[error("{keyword}: no such choice; use {choices}")]
    Choice { keyword: &'static str, choices: &'static str },
    #[error("{keyword} is not a number up to {max}; 0 is the system's default")]
    Number { keyword: &'static str, max: u64 },
    #[error("connect_timeout is not a number of seconds up to ten years; write it like connect_timeout=10")]
    ConnectTimeout,
    #[error(
        "{keyword} with sslmode={mode}, which verifies no certificate; use sslmode=verify-full, or remove it"
    )]
    NothingVerified { keyword: &'static str, mode: &'static str },
    #[error(
        "sslmode=verify-ca without a file of CAs in sslrootcert, where any certificate of the public would do; name \
         one, or use verify-full"
    )]
    AnyonesCertificate,
    #[error("{what} with sslmode=disable, which is without TLS; change one")]
    WithoutTls { what: &'static str },
    #[error("{there} without {missing}; name the certificate's file and its key's")]
    HalfClientCert { there: &'static str, missing: &'static str },
    #[error("sslcertmode=require without sslcert and sslkey to show; name both files")]
    NoClientCert,
    #[error("{keyword}: no TLS before 1.2 is spoken; use TLSv1.2 or TLSv1.3")]
    OldTls { keyword: &'static str },
    #[error(
        "channel_binding=require with sslmode=disable, without which there is nothing to bind to; change one"
    )]
    BindingWithoutTls,
    #[error("require_auth: {0}")]
    RequireAuth(#[from] RequireAuthError),
    #[error(
        "require_auth names password with sslmode={mode}, which would give it to anyone; use verify-full"
    )]
    PasswordInClear { mode: &'static str },
    #[error(
        "channel_binding=require without scram-sha-256 in require_auth, which alone is bound; change one"
    )]
    BindingWithoutScram,
    #[error("{least} is above {most}; change one")]
    VersionOrder { least: &'static str, most: &'static str },
    #[error("channel_binding=require with a Unix socket as host, which has no TLS to bind to; change one")]
    BindingOnSocket,
}
