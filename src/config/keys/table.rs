//! The table itself.

use super::Preset::{Absent, Required, Value};
use super::{Built, Key, Kind, Preset};

const fn key(name: &'static str, kind: Kind, default: Preset, about: &'static str) -> Key {
    Key { name, kind, default, built: Built::Yes, about }
}

/// One that is not built yet, and how it may be written all the same.
const fn later(
    name: &'static str,
    kind: Kind,
    default: Preset,
    off: &'static str,
    about: &'static str,
) -> Key {
    Key { name, kind, default, built: Built::NotYet { off }, about }
}

const OFF: Preset = Absent("off");

/// All keys, in the order of the docs.
pub(crate) const KEYS: &[Key] = &[
    key("vault.address", Kind::Url, Required, "Vault or OpenBao; a path prefix is kept"),
    key("vault.namespace", Kind::Text, Absent("none"), "namespace of the secrets"),
    key(
        "vault.ca_file",
        Kind::Path,
        Absent("the system's CAs"),
        "PEM file of the CAs that Vault's certificate is verified against",
    ),
    key("vault.ca_dir", Kind::Path, Absent("none"), "directory of such files; vault.ca_file comes first"),
    key("vault.client_cert_file", Kind::Path, OFF, "PEM file of pglease's own certificate towards Vault"),
    key("vault.client_key_file", Kind::Path, OFF, "PEM file of that certificate's key"),
    key(
        "vault.tls_server_name",
        Kind::Text,
        Absent("the address's host"),
        "name that Vault's certificate must have",
    ),
    key(
        "vault.skip_verify",
        Kind::Boolean,
        Value("false"),
        "believe any certificate: whoever is on the way can pose as Vault",
    ),
    key(
        "vault.redirect_hosts",
        Kind::List,
        Absent("none"),
        "hosts that Vault may redirect to, beside its own",
    ),
    key("vault.proxy", Kind::Url, Absent("none"), "HTTP proxy on the way to Vault"),
    key(
        "vault.state_dir",
        Kind::Path,
        OFF,
        "directory on a memory volume for the tokens that a crash leaves behind",
    ),
    key(
        "vault.login.method",
        Kind::Word { built: &["kubernetes", "jwt", "approle", "cert", "token_file"], later: &[] },
        Value("kubernetes"),
        "auth method",
    ),
    key(
        "vault.login.mount",
        Kind::Text,
        Absent("the method's name"),
        "where the auth method is mounted, without \"auth/\"",
    ),
    key(
        "vault.login.namespace",
        Kind::Text,
        Absent("`vault.namespace`"),
        "namespace of the login, where it differs",
    ),
    key(
        "vault.login.role",
        Kind::Text,
        Absent("(required by kubernetes and jwt)"),
        "kubernetes, jwt, cert: auth role to log in as",
    ),
    key(
        "vault.login.jwt_file",
        Kind::Path,
        Value("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        "kubernetes, jwt: ServiceAccount token, read again at each login",
    ),
    key("vault.login.role_id", Kind::Text, Absent("(required by approle)"), "approle: the RoleID"),
    key(
        "vault.login.secret_id_file",
        Kind::Path,
        Absent("(required by approle)"),
        "approle: file with the SecretID, read again at each login",
    ),
    key(
        "vault.login.secret_id_wrapped",
        Kind::Boolean,
        Value("false"),
        "approle: the file holds a response-wrapping token of the SecretID",
    ),
    key(
        "vault.login.token_file",
        Kind::Path,
        Absent("(required by token_file)"),
        "token_file: file with a token that somebody else keeps alive, read again at each login",
    ),
    key(
        "listen.addresses",
        Kind::List,
        Value("localhost:5432"),
        "where applications connect; localhost is 127.0.0.1 and ::1",
    ),
    key(
        "listen.unix_socket",
        Kind::Path,
        OFF,
        "directory for a socket .s.PGSQL.<port>, with the port of the first address",
    ),
    key("listen.unix_socket_mode", Kind::Text, Value("0660"), "who may connect to that socket, in octal"),
    key(
        "listen.auth",
        Kind::Word { built: &["trust", "password", "peer"], later: &[] },
        Value("trust"),
        "how applications prove who they are",
    ),
    key(
        "listen.auth_file",
        Kind::Path,
        Absent("(required by password)"),
        "password: file with lines of \"user\" \"verifier\", read again when it changes",
    ),
    key(
        "listen.peer_uids",
        Kind::List,
        Absent("(required by peer)"),
        "peer: ids of the users that may connect",
    ),
    key(
        "listen.tls_cert_file",
        Kind::Path,
        OFF,
        "PEM file of the certificate, with its chain, for applications that ask for TLS",
    ),
    key("listen.tls_key_file", Kind::Path, OFF, "PEM file of that certificate's key"),
    key(
        "listen.max_sessions",
        Kind::Integer { min: 1, max: 1_000_000 },
        Value("1000"),
        "sessions at the same time; more get 53300",
    ),
    later("listen.threads", Kind::IntegerOr("auto"), Value("1"), "1", "threads that run sessions"),
    key(
        "listen.connect_wait",
        Kind::Duration,
        Value("10s"),
        "longest time from StartupMessage to ReadyForQuery, all included",
    ),
    key("route.database", Kind::Text, Value("*"), "database that the client asks for; * is any"),
    key("route.user", Kind::Text, Value("*"), "user that the client says it is; * is any"),
    key(
        "route.upstream",
        Kind::Upstream,
        Required,
        "PostgreSQL, as libpq URI or conninfo string, without user and password",
    ),
    key(
        "route.vault_path",
        Kind::Text,
        Required,
        "where credentials are read: <mount>/creds/<role>, or <mount>/static-creds/<role>",
    ),
    key(
        "route.startup_role",
        Kind::Text,
        Absent("none"),
        "role that sessions take on: owner of what the application creates",
    ),
    key(
        "route.at_lease_end",
        Kind::Word { built: &["auto", "leave", "close"], later: &[] },
        Value("auto"),
        "what becomes of open sessions when their lease ends for good",
    ),
    key(
        "route.max_session_age",
        Kind::Duration,
        Value("0s"),
        "age at which a session ends once it is idle, give or take a tenth; 0s is off",
    ),
    key(
        "route.warm",
        Kind::Integer { min: 0, max: 1_000 },
        Value("0"),
        "sessions that are kept logged in, for clients to begin at once; 0 is off",
    ),
    key("route.optional", Kind::Boolean, Value("false"), "/startup and /readyz do not wait for this route"),
    key("drain.accept_for", Kind::Duration, Value("0s"), "how long after SIGTERM new sessions are accepted"),
    key("drain.grace", Kind::Duration, Value("0s"), "how long after SIGTERM idle sessions are left alone"),
    key("drain.deadline", Kind::Duration, Value("20s"), "when, after SIGTERM, open sessions are cut"),
    key(
        "drain.strict_exit",
        Kind::Boolean,
        Value("false"),
        "exit code 3 where sessions were cut, or a credential could not be revoked at the end",
    ),
    key("http.address", Kind::Address, Value("[::]:9632"), "/livez, /readyz, /startup and /metrics"),
    key(
        "admin.address",
        Kind::Address,
        Value("127.0.0.1:9633"),
        "/status and control, on loopback; \"\" is off",
    ),
    key(
        "admin.control",
        Kind::Boolean,
        Value("false"),
        "pglease drain and pglease rotate are answered there",
    ),
    key(
        "log.format",
        Kind::Word { built: &["json", "text"], later: &[] },
        Value("json"),
        "shape of the lines on stderr",
    ),
    key(
        "log.level",
        Kind::Word { built: &["error", "warn", "info", "debug", "trace"], later: &[] },
        Value("info"),
        "least important lines that are logged",
    ),
    key("pod.name", Kind::Text, OFF, "the pod's name, for logs"),
    key("pod.namespace", Kind::Text, OFF, "the pod's namespace, for logs"),
    key("pod.uid", Kind::Text, OFF, "the pod's uid, for logs"),
    key("pod.memory_limit", Kind::Text, OFF, "the container's memory limit: bytes, or a quantity like 64Mi"),
    key(
        "pod.termination_grace",
        Kind::Duration,
        OFF,
        "the pod's terminationGracePeriodSeconds, which drain.deadline must stay below",
    ),
    key("injector.address", Kind::Address, Value("[::]:8443"), "where the API server posts, by HTTPS"),
    key(
        "injector.tls_cert_file",
        Kind::Path,
        Required,
        "PEM file of the certificate that the API server is shown, with its chain",
    ),
    key("injector.tls_key_file", Kind::Path, Required, "PEM file of that certificate's key"),
    key("injector.image", Kind::Text, Required, "image of the sidecar"),
    key(
        "injector.image_pull_policy",
        Kind::Word { built: &["Always", "IfNotPresent", "Never"], later: &[] },
        Absent("Kubernetes' own"),
        "when the kubelet pulls that image",
    ),
    key(
        "injector.settings",
        Kind::List,
        Absent("none"),
        "key=value: settings of every sidecar, which a pod's annotations change",
    ),
    key(
        "injector.vault_ca",
        Kind::Text,
        OFF,
        "CAs of Vault: configmap/NAME or secret/NAME in the pod's namespace, and /KEY where that is not ca.crt",
    ),
    key(
        "injector.token_audience",
        Kind::Text,
        Value("vault"),
        "audience of the ServiceAccount token that the sidecar logs in with",
    ),
    key("injector.token_expiration", Kind::Duration, Value("24h"), "life of that token; 10m at least"),
    key(
        "injector.native_sidecar",
        Kind::Boolean,
        Value("true"),
        "false: an ordinary container, for clusters older than 1.29",
    ),
    key("injector.cpu_request", Kind::Text, Value("10m"), "CPU that the sidecar asks for"),
    key("injector.memory_request", Kind::Text, Value("16Mi"), "memory that the sidecar asks for"),
    key("injector.cpu_limit", Kind::Text, OFF, "CPU that the sidecar gets at most"),
    key(
        "injector.memory_limit",
        Kind::Text,
        Absent("by listen.max_sessions"),
        "memory that the sidecar gets at most",
    ),
    key(
        "injector.conflict",
        Kind::Word { built: &["keep", "reject"], later: &[] },
        Value("keep"),
        "where a pod has a value of its own already: keep it with a warning, or reject the pod",
    ),
];
