//! What is wrong with the settings, in one line each: key, value, place and cure.

use std::fmt;

use super::keys::{self, Key, Kind};
use super::upstream::{self, UpstreamError};

/// Everything that is wrong, in the order of where it is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(crate) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors
            .sort_by_cached_key(|error| (error.place().is_none(), error.place().cloned(), error.to_string()));
        errors.dedup();
        Self(errors)
    }
}

impl IntoIterator for ConfigErrors {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{key}: unknown key ({place}); {}", did_you_mean(*nearest))]
    UnknownKey { key: String, place: Place, nearest: Option<&'static str> },
    #[error("{variable}: unknown variable; {}", did_you_mean(nearest.as_deref()))]
    UnknownVariable { variable: String, nearest: Option<String> },
    #[error("{variable}: not UTF-8; write it in UTF-8")]
    VariableNotUtf8 { variable: String },
    #[error("{place}: not TOML: {message}")]
    Syntax { place: Place, message: String },
    #[error("{key}: not set{}; {}", in_parentheses(table.as_ref()), how_to_set(key))]
    Missing { key: &'static str, table: Option<Place> },
    #[error("{written}: {problem}")]
    Value { written: Written, problem: Problem },
    #[error(
        "route: none given; set --upstream, --vault-path and --vault-login-role (PGLEASE_UPSTREAM, \
         PGLEASE_VAULT_PATH, PGLEASE_VAULT_LOGIN_ROLE), or write [[route]] or [[file]] into the file of \
         --config-file (PGLEASE_CONFIG_FILE)"
    )]
    NoRoute,
    #[error(
        "route: can never match ({place}), as the one before it at {earlier} takes all its clients; \
             write it before that one, or remove it"
    )]
    RouteShadowed { place: Place, earlier: Place },
}

impl ConfigError {
    /// Whether it is something wrong with what is written for the key.
    pub(crate) fn is_about(&self, key: &str) -> bool {
        matches!(self, Self::Value { written, .. } if written.key == key)
    }

    fn place(&self) -> Option<&Place> {
        match self {
            Self::UnknownKey { place, .. }
            | Self::Syntax { place, .. }
            | Self::Missing { table: Some(place), .. }
            | Self::Value { written: Written { place, .. }, .. }
            | Self::RouteShadowed { place, .. } => Some(place),
            Self::UnknownVariable { .. }
            | Self::VariableNotUtf8 { .. }
            | Self::Missing { table: None, .. }
            | Self::NoRoute => None,
        }
    }
}

/// What is wrong with a value, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("no such choice; use {}", any_of(known))]
    NotAWord { known: &'static [&'static str] },
    #[error("{found} where {expected} is expected; write it like {example}")]
    WrongType { found: &'static str, expected: &'static str, example: &'static str },
    #[error("not a table; write [{table}]")]
    NotATable { table: String },
    #[error("not an array of tables; write [[{table}]]")]
    NotTables { table: &'static str },
    #[error("not in a [[file]]; this variable has those only")]
    NotAFileTable,
    #[error(
        "the file has {routes} routes, and this may be meant for any of them; write it into its [[route]]"
    )]
    SeveralRoutes { routes: usize },
    #[error("empty; write something")]
    Empty,
    #[error("holds a control character; remove it")]
    ControlCharacter,

    #[error("not a duration; write one like \"30s\", \"5m\" or \"1h 30m\"")]
    NotADuration,
    #[error("has no unit; write it like \"30s\", \"5m\" or \"1h 30m\"")]
    NoUnit,
    #[error("negative; a duration is \"0s\" or more")]
    Negative,
    #[error("leaves no time; make it longer than that")]
    Zero,
    #[error("longer than ten years; make it shorter")]
    TooLong,
    #[error("longer than {other}; make it at most that")]
    LongerThan { other: Written },
    #[error("not a whole number from {min} to {max}; write one")]
    NotInRange { min: u64, max: u64 },
    #[error("neither a whole number from {min} to {max} nor \"{word}\"; write one of them")]
    NotInRangeOr { min: u64, max: u64, word: &'static str },
    #[error(
        "sessions of a standby stay when it is promoted, and would not be what target_session_attrs asks for; leave \
         it at 0, or take another target_session_attrs than standby, prefer-standby and read-only"
    )]
    WarmStandby,
    #[error("neither true nor false; write one of them")]
    NotABoolean,

    #[error("not an IP address with a port; write it like {example}")]
    NotAnAddress { example: &'static str },
    #[error(
        "{address:?} is neither localhost nor an IP address, with a port; write it like \"localhost:5432\""
    )]
    NotAListenAddress { address: String },
    #[error(
        "{address:?} is no loopback address, and with listen.auth = \"trust\" whoever reaches it would be let in; \
         use \"localhost:5432\", or listen.auth = \"password\""
    )]
    ListenNotLoopback { address: String },
    #[error(
        "the kernel tells who connects to a Unix socket, not who does by TCP, and listen.auth = \"peer\" goes by that; \
         write addresses = [] and unix_socket, or use listen.auth = \"password\""
    )]
    PeerOverTcp,
    #[error("{uid:?} is not the id of a user; write its number, as id -u prints it")]
    NotAUid { uid: String },
    #[error("no loopback address; use one like \"127.0.0.1:9633\"")]
    AdminNotLoopback,
    #[error("there is no admin.address to be asked at; write one, or leave this out")]
    NoAdminAddress,
    #[error("{address:?} is named twice; remove one")]
    ListenedTwice { address: String },
    #[error("not a file mode; write it in octal, like \"0660\"")]
    NotAFileMode,
    #[error(
        "the socket in it would have a path of {len} bytes, and there is room for {max_len}; name a directory with a shorter path"
    )]
    SocketPathTooLong { len: usize, max_len: usize },
    #[error("nowhere to connect to; name an address, like \"localhost:5432\"")]
    NoListenAddress,
    #[error("the port of {other} as well; choose another")]
    SamePort { other: Written },

    #[error("not key=value; write it like \"vault.address=https://vault.vault.svc:8200\"")]
    NotKeyAndValue,
    #[error("no setting of pglease proxy; {}", did_you_mean(nearest.as_deref()))]
    NotASetting { nearest: Option<String> },
    #[error("{setting}: {problem}")]
    SidecarSetting { setting: String, problem: Box<Self> },
    #[error("not configmap/NAME[/KEY] or secret/NAME[/KEY]; write it so, with names as Kubernetes has them")]
    NotAnObjectFile,
    #[error("shorter than 10m, which is the least that Kubernetes gives; make it longer")]
    TokenTooShort,
    #[error("neither bytes nor a quantity of them; write it like \"64Mi\"")]
    NotAMemory,
    #[error("not a quantity of Kubernetes; write it like \"10m\" or \"16Mi\"")]
    NotAQuantity,

    #[error("cannot be read: {reason}; name a file that is there and that this user may read")]
    Unreadable { reason: String },
    #[error("not a regular file; name one that can be read again and again")]
    NotAFile,
    #[error("the file is empty; fill it, or name another")]
    EmptyFile,
    #[error("the file holds no list of revoked certificates in PEM; fill it, or name another")]
    NoRevocationList,
    #[error(
        "others may read the file; give it the mode 0600, or 0640 where it is root's, as they could use the key"
    )]
    OpenKey,
    #[error("not a directory; name one that is there")]
    NotADirectory,
    #[error("the file holds no certificate; name a PEM file with one")]
    NoCertificate,
    #[error("the file holds no private key; name a PEM file with one, unencrypted")]
    NoKey,
    #[error("the file is not UTF-8; write it in UTF-8")]
    FileNotUtf8,
    #[error("the file is larger than {max_len} bytes; name the right one")]
    FileTooLarge { max_len: u64 },

    #[error("not an address of Vault; write it like \"https://vault.vault.svc:8200\"")]
    NotAVaultAddress,
    #[error("holds a user or password; remove it, as Vault knows pglease by its login")]
    VaultAddressWithUser,
    #[error("has a query or fragment; end it before the ? or #")]
    VaultAddressWithQuery,
    #[error("has an empty name in its path; write single slashes")]
    VaultAddressPath,
    #[error(
        "not of the form \"<mount>/creds/<role>\" or \"<mount>/static-creds/<role>\"; write it like \
         \"database/creds/db-app\""
    )]
    NotAVaultPath,
    #[error("begins with the API's \"v1/\"; leave that out: \"<mount>/creds/<role>\"")]
    VaultPathWithVersion,
    #[error(
        "the role {role:?} cannot be one of Vault's; use letters, digits, \"_\", and between them \"-\" and \".\""
    )]
    NotAVaultRole { role: String },
    #[error("not a path of Vault's; write names with single slashes between them, without spaces, %, ? or #")]
    NotAMount,
    #[error("begins with \"auth/\"; leave that out")]
    MountWithAuth,
    #[error("{host:?} is neither a name nor an IP address; write it without scheme, port and path")]
    NotAHost { host: String },
    #[error("neither a name nor an IP address that a certificate could be for; write one")]
    NotAServerName,
    #[error("not an HTTP proxy; write it like \"http://proxy.example.com:3128\"")]
    NotAProxy,
    #[error("holds a user or password, which pglease does not send; remove it")]
    ProxyWithUser,
    #[error("no key of {method}; remove one of them")]
    OfAnotherMethod { method: Written },
    #[error("plain HTTP, and the login method \"cert\" is a certificate of TLS; use https://")]
    CertWithoutTls,

    #[error("a relative path; begin it with /, as who reads the file may have another working directory")]
    NotAbsolute,
    #[error("no name of a file; end it with one")]
    NoFileName,
    #[error(
        "the directory {directory:?} {reason}; name a file in one that pglease may write to, like a memory-backed volume"
    )]
    NoDirectoryFor { directory: String, reason: String },
    #[error("a link; name what it leads to, as the link would be replaced and not that")]
    IsALink,
    #[error("a directory; name a file in it")]
    IsADirectory,
    #[error("there and not a regular file; remove it, or name another")]
    IsSpecial,
    #[error("also the path of the [[file]] at {other}; give each its own")]
    SamePath { other: Place },
    #[error("only of use with format = {format:?}; remove it, or change format")]
    OfAnotherFormat { format: &'static str },
    #[error("needs template or template_file; write one of them")]
    NoTemplate,
    #[error("{other} is there as well; remove one of them")]
    OneOfTwo { other: Written },
    #[error("tells of a PostgreSQL, and none is known: {routes} routes have this vault_path; write upstream")]
    NoUpstream { routes: usize },
    #[error(
        "tells of a database, and none is named; write upstream with one, like \"postgresql://db.example.com:5432/app\""
    )]
    NoDatabase,
    #[error("no name of a process; write it as ps -o comm prints it, like \"java\"")]
    NotAProcess,
    #[error("nothing to take time; remove it, or write url or command")]
    NothingToTime,
    #[error(
        "does not lead to loopback; write it like \"http://127.0.0.1:8080/reload\", as whoever else hears of it need not"
    )]
    NotLoopbackUrl,
    #[error("names no program; write it like [\"/usr/bin/reload\", \"--quietly\"]")]
    NoProgram,

    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("{keyword} {path:?}: {problem}")]
    UpstreamFile { keyword: &'static str, path: String, problem: Box<Self> },
}

/// Where a value was written. Ordered as errors are shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    File {
        path: String,
        /// Counts from 1.
        line: usize,
    },
    Variable(String),
    /// With its dashes.
    Flag(String),
    /// By somebody who sets what a proxy elsewhere will read.
    Given(String),
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Variable(name) | Self::Flag(name) | Self::Given(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A key with its value and place, fit to be shown: `drain.grace = "30s" (PGLEASE_DRAIN_GRACE)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) key: String,
    /// As the file would have it, shortened, without what may be a secret.
    pub(crate) value: String,
    pub(crate) place: Place,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, self.value, self.place)
    }
}

/// `text` as a value of `key`, fit to be shown.
pub(crate) fn shown(key: &Key, text: &str) -> String {
    match key.kind {
        Kind::Integer { .. } | Kind::IntegerOr { .. } if text.parse::<i64>().is_ok() => text.to_owned(),
        Kind::Boolean if text.parse::<bool>().is_ok() => text.to_owned(),
        Kind::Upstream => quoted(&upstream::masked(text)),
        Kind::Url => quoted(&without_userinfo(text)),
        // Somebody may have put the secret itself where the name of its file belongs.
        Kind::Path if !text.contains('/') && text.chars().count() > MAX_FILE_NAME_SHOWN => quoted(MASK),
        Kind::Text
        | Kind::Path
        | Kind::Address
        | Kind::Duration
        | Kind::Integer { .. }
        | Kind::IntegerOr { .. }
        | Kind::Boolean
        | Kind::Word(_)
        | Kind::List => quoted(text),
    }
}

/// In quotes, on one line, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn without_userinfo(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("{MASK}@{host}"))
}

/// The cure for a name that is not known.
pub(crate) fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(|| "remove it".to_owned(), |nearest| format!("did you mean {nearest}?"))
}

fn in_parentheses(place: Option<&Place>) -> String {
    place.map(|place| format!(" ({place})")).unwrap_or_default()
}

fn any_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => format!("{word:?}"),
        [words @ .., last] => {
            let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
            format!("{} or {last:?}", words.join(", "))
        }
    }
}

fn how_to_set(name: &str) -> String {
    let Some(key) = keys::find(name) else { return String::new() };
    let (table, leaf) = key.table_and_leaf();
    if key.is_of_file() {
        return format!("write {leaf} into the [[{table}]]");
    }
    let table = if key.is_of_route() { format!("[[{table}]]") } else { format!("[{table}]") };
    format!("set --{} or {}, or {leaf} in the file's {table}", key.flag(), key.variable())
}

/// Characters of a value that are shown.
const MAX_SHOWN: usize = 100;
/// Characters of a path without a slash that are shown: fewer than a token or a `SecretID` has.
const MAX_FILE_NAME_SHOWN: usize = 20;
/// Stands for what is not shown.
pub(crate) const MASK: &str = "***";
