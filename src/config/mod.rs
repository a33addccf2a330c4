//! Settings, valid by construction: nothing downstream checks them again.
//!
//! What is written comes in by `flags`, `env` and `file`, each value with its place; `settings` lays the three over
//! each other; `load` with `vault`, `routes` and `upstream` makes the types below of it, or says all that is wrong.
//! `keys` is the one table of names. Called by the commands that read settings, at start, and with `sources` again while
//! the process runs. Runs no task.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

pub(crate) use {
    certificate::{CertificateConfig, certificate_flags, load_certificate},
    elsewhere::{Fault, Given, judge, key_of_variable, variable, with_root_cert},
    env::{FILES as FILES_VARIABLE, environment},
    error::ConfigErrors,
    file::{Content, Print},
    flags::{admin_flags, flags, injector_flags, wait_flags},
    injector::{
        Conflict, InjectorConfig, ObjectFile, ObjectKind, ProjectedToken, SidecarConfig, token_expiration,
    },
    keys::nearest,
    load::{
        Loaded, Origin, grace_warning, level_name, level_named, load, load_admin, load_http, load_injector,
    },
    needs::{descriptors as needed_descriptors, memory_mib, sessions_within},
    quantity::{is_cpu, is_memory, parse as parse_quantity},
    require_auth::RequireAuth,
    schema::schema,
    server::{
        Host, Keepalive, LoadBalanceHosts, Place, ProtocolVersion, Silence, TargetSessionAttrs,
        UpstreamConfig,
    },
    sources::Sources,
    ssl::{ChannelBinding, SslMode, SslNegotiation, SslOptions, TlsVersion, is_open_key},
    value::duration,
    vault::is_static,
};
#[cfg(any(test, fuzzing))]
pub(crate) use {
    fuzz::{fuzz_file, fuzz_upstream},
    injector::{Resources, SidecarSetting},
};

mod auth;
mod certificate;
mod conninfo;
mod credential_files;
mod elsewhere;
mod env;
mod error;
mod file;
mod fixed;
mod flags;
mod injector;
mod keys;
mod keywords;
mod load;
mod needs;
mod quantity;
mod require_auth;
mod routes;
mod schema;
mod server;
mod settings;
mod sources;
mod ssl;
mod upstream;
mod value;
mod vault;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(any(test, fuzzing))]
mod fuzz;

/// All settings of `pglease proxy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) vault: VaultConfig,
    pub(crate) listen: ListenConfig,
    /// The first that matches serves. Without one nothing is listened to, and there is a file.
    pub(crate) routes: Vec<RouteConfig>,
    pub(crate) files: Vec<FileConfig>,
    pub(crate) drain: DrainConfig,
    pub(crate) http: HttpConfig,
    pub(crate) admin: AdminConfig,
    pub(crate) log: LogConfig,
    pub(crate) pod: PodConfig,
}

/// Where Vault is and how pglease logs in to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VaultConfig {
    /// `http://` or `https://`, host, port, and a path prefix if any; no slash at its end.
    pub(crate) address: String,
    /// Of the secrets; sent as `X-Vault-Namespace`.
    pub(crate) namespace: Option<String>,
    pub(crate) tls: VaultTls,
    /// Hosts that Vault may redirect to beside its own, as a URL has them.
    pub(crate) redirect_hosts: Vec<String>,
    /// `http://`, host and port of an HTTP proxy.
    pub(crate) proxy: Option<String>,
    /// Where tokens are written down for the start after a crash.
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) login: LoginConfig,
}

/// TLS towards Vault. All files are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VaultTls {
    pub(crate) ca: Ca,
    /// pglease's own certificate.
    pub(crate) client: Option<ClientCert>,
    /// What Vault's certificate is for, where that is not the address's host.
    pub(crate) server_name: Option<String>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
}

/// The CAs that a server's certificate is verified against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ca {
    #[default]
    System,
    /// PEM.
    File(PathBuf),
    /// A directory of PEM files.
    Dir(PathBuf),
}

/// PEM files of a certificate, with its chain, and of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientCert {
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// PEM files of the certificate that clients are shown, with its chain, and of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerCert {
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// As what pglease logs in to Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginConfig {
    /// Of the auth method and its tokens.
    pub(crate) namespace: Option<String>,
    pub(crate) method: LoginMethod,
}

/// An auth method with what it needs. `mount` is `auth/<mount>` without slashes at its ends; files are read again at
/// each login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoginMethod {
    Kubernetes {
        mount: String,
        role: String,
        jwt_file: PathBuf,
    },
    Jwt {
        mount: String,
        role: String,
        jwt_file: PathBuf,
    },
    AppRole {
        mount: String,
        role_id: String,
        secret_id_file: PathBuf,
        /// The file holds a response-wrapping token instead of the `SecretID`.
        wrapped: bool,
    },
    /// Logs in with [`VaultTls::client`].
    Cert {
        mount: String,
        role: Option<String>,
    },
    /// A token that somebody else keeps alive.
    TokenFile {
        token_file: PathBuf,
    },
}

/// Where applications connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenConfig {
    pub(crate) addresses: Vec<ListenAddress>,
    pub(crate) unix_socket: Option<UnixSocket>,
    /// TLS for clients that ask for it; the files are read again when they change.
    pub(crate) tls: Option<ServerCert>,
    pub(crate) auth: AuthConfig,
    /// Sessions at the same time, from StartupMessage to close.
    pub(crate) max_sessions: usize,
    /// That run sessions; `auto` is what the machine has.
    pub(crate) threads: usize,
    /// StartupMessage to ReadyForQuery, all included.
    pub(crate) connect_wait: Duration,
}

/// Of a Unix socket where no address has a port: PostgreSQL's own.
pub(crate) const DEFAULT_PORT: u16 = 5432;

/// A socket for clients on this machine, in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnixSocket {
    pub(crate) directory: PathBuf,
    /// Of the socket: who may connect.
    pub(crate) mode: u32,
}

impl UnixSocket {
    /// Where clients of libpq look for it.
    pub(crate) fn path(&self, port: u16) -> PathBuf {
        self.directory.join(format!(".s.PGSQL.{port}"))
    }
}

/// One entry of `listen.addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    /// 127.0.0.1 and, where the machine has it, `::1`. Port 0 takes a free one, the same for both.
    Localhost { port: u16 },
    /// A loopback address, unless clients prove who they are.
    Socket(SocketAddr),
}

/// How applications prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum AuthConfig {
    /// Not at all: who reaches a listener is let in.
    #[default]
    Trust,
    /// With SCRAM, against the verifiers in a file that is read again when it changes.
    Password { file: PathBuf },
    /// By the kernel's word on who connects to a Unix socket: one of these users.
    Peer { uids: Vec<u32> },
}

/// Where sessions for a database and a user go, and on whose credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteConfig {
    /// What the client asks for; `None`: any.
    pub(crate) database: Option<String>,
    /// What the client calls itself; `None`: anyone.
    pub(crate) user: Option<String>,
    pub(crate) upstream: UpstreamConfig,
    /// `<mount>/creds/<vault_role>` or `<mount>/static-creds/<role>`; routes with the same path share a chain.
    pub(crate) vault_path: String,
    /// Sent as the startup parameter `role`, where the client does not name one itself.
    pub(crate) startup_role: Option<String>,
    pub(crate) at_lease_end: AtLeaseEnd,
    /// Age at which a session ends once it is idle, give or take a tenth; `None`: never.
    pub(crate) max_session_age: Option<Duration>,
    /// Sessions that are logged in ahead of their clients.
    pub(crate) warm: usize,
    /// `/startup` and `/readyz` do not wait for it.
    pub(crate) optional: bool,
}

/// A file with a credential in it, for a program that cannot go through pglease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileConfig {
    /// Absolute, in a directory that can be written to.
    pub(crate) path: PathBuf,
    /// As in a route; the same path has the same chain.
    pub(crate) vault_path: String,
    pub(crate) format: FormatConfig,
    /// Of the file.
    pub(crate) mode: u32,
    /// Where its credential is proven beside the routes.
    pub(crate) upstream: Option<UpstreamConfig>,
    /// What the format tells of the server, where that is known; there, where the format needs it.
    pub(crate) target: Option<TargetConfig>,
    /// How long a credential is kept alive once the file has the next; `None`: to its end.
    pub(crate) keep: Option<Duration>,
    pub(crate) on_change: OnChange,
    /// `/startup` and `/readyz` do not wait for it.
    pub(crate) optional: bool,
}

/// What a file looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FormatConfig {
    UsernamePassword,
    Json,
    Env,
    Pgpass,
    PgService,
    Uri,
    Properties,
    Template(TemplateSource),
}

/// Where the text of a template is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TemplateSource {
    Inline(String),
    File(PathBuf),
}

/// A PostgreSQL as a connection string names it, for those who connect by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetConfig {
    /// At least one; of a Unix socket its directory.
    pub(crate) hosts: Vec<(String, u16)>,
    /// Empty where none is named.
    pub(crate) database: String,
    /// All other keywords of libpq that were written, `sslmode` first.
    pub(crate) options: Vec<(String, String)>,
    /// The section of `pg_service`.
    pub(crate) service: String,
}

/// How the reader of a file is told that it has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnChange {
    /// Not at all: it looks, or reads when it is refused.
    #[default]
    Nothing,
    Signal {
        signal: FileSignal,
        /// Of the process.
        name: String,
    },
    /// An empty POST.
    Http {
        url: Url,
        timeout: Duration,
    },
    Command {
        program: String,
        arguments: Vec<String>,
        timeout: Duration,
    },
}

/// A signal that a program may take as a reason to read its files again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSignal {
    Hangup,
    Interrupt,
    Quit,
    User1,
    User2,
    Terminate,
    WindowChange,
}

/// What becomes of open sessions when their lease ends for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AtLeaseEnd {
    /// `Leave` where the end does no harm, else `Close`.
    #[default]
    Auto,
    /// Sessions go on.
    Leave,
    /// Sessions end with `57P01` before the lease does.
    Close,
}

/// How the process stops. Both are counted from SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DrainConfig {
    /// How long new sessions are still accepted; at most `deadline`.
    pub(crate) accept_for: Duration,
    /// How long idle sessions are left alone; at most `deadline`.
    pub(crate) grace: Duration,
    /// When the sessions still open are cut. Keep it below the pod's `terminationGracePeriodSeconds`.
    pub(crate) deadline: Duration,
    /// Whether the exit code tells that something was lost.
    pub(crate) strict_exit: bool,
}

/// The port for the kubelet and Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpConfig {
    pub(crate) address: SocketAddr,
    /// Somebody asked for this address: without it there is no start. The default makes do with what the machine has.
    pub(crate) explicit: bool,
}

/// The port for people, reached from this machine only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdminConfig {
    /// A loopback address; `None`: switched off.
    pub(crate) address: Option<SocketAddr>,
    /// Somebody asked for this address: without it there is no start. The default is done without.
    pub(crate) explicit: bool,
    /// Whether more is answered than how things stand.
    pub(crate) control: bool,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogConfig {
    pub(crate) format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub(crate) level: tracing::Level,
}

/// What Kubernetes says of the pod that this runs in; nothing elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodConfig {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    /// Of the container, in bytes.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) termination_grace: Option<Duration>,
}

/// Shape of a log line on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One object a line.
    #[default]
    Json,
    /// For people.
    Text,
}
