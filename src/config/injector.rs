//! `[injector]`: where the API server posts, and what every sidecar gets.

use std::net::SocketAddr;
use std::time::Duration;

use super::error::Problem;
use super::keys::{self, Key, Kind, Reads};
use super::settings::Reader;
use super::{HttpConfig, LogConfig, ServerCert, load, quantity, upstream, value, vault};

/// All settings of `pglease injector`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InjectorConfig {
    /// Where the API server posts.
    pub(crate) address: SocketAddr,
    /// Somebody asked for this address: without it there is no start. The default makes do with what the machine has.
    pub(crate) explicit: bool,
    /// What the API server is shown; the files are read again when they change.
    pub(crate) tls: ServerCert,
    pub(crate) sidecar: SidecarConfig,
    pub(crate) http: HttpConfig,
    pub(crate) log: LogConfig,
}

/// What every sidecar gets unless its pod's annotations say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SidecarConfig {
    pub(crate) image: String,
    pub(crate) image_pull_policy: Option<&'static str>,
    /// In the order written, each key once.
    pub(crate) settings: Vec<SidecarSetting>,
    pub(crate) vault_ca: Option<ObjectFile>,
    pub(crate) token: ProjectedToken,
    /// An init container that is restarted; else an ordinary container.
    pub(crate) native: bool,
    pub(crate) resources: Resources,
    pub(crate) conflict: Conflict,
}

/// A setting of the proxy, as its variable. The value is one that the proxy takes, but for files, which are the pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SidecarSetting {
    pub(crate) variable: String,
    pub(crate) value: String,
}

/// A file in a ConfigMap or Secret of the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectFile {
    pub(crate) kind: ObjectKind,
    pub(crate) name: String,
    pub(crate) key: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    ConfigMap,
    Secret,
}

/// The ServiceAccount token that the sidecar logs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProjectedToken {
    pub(crate) audience: String,
    /// Ten minutes at least.
    pub(crate) expiration: Duration,
}

/// Quantities as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) cpu_request: String,
    pub(crate) memory_request: String,
    pub(crate) cpu_limit: Option<String>,
    /// `None`: by `listen.max_sessions`.
    pub(crate) memory_limit: Option<String>,
}

/// What becomes of a pod that has a value of its own already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// Its own stays, with a warning.
    #[default]
    Keep,
    /// The pod is refused.
    Reject,
}

impl ObjectFile {
    /// From `configmap/NAME` or `secret/NAME`, with `/KEY` behind it where that is not `ca.crt`.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse_or(text, DEFAULT_CA_KEY)
    }

    /// As [`Self::parse`], with another key where none is written.
    pub(crate) fn parse_or(text: &str, default_key: &str) -> Result<Self, Problem> {
        let mut parts = text.splitn(3, '/');
        let kind = match parts.next() {
            Some("configmap") => ObjectKind::ConfigMap,
            Some("secret") => ObjectKind::Secret,
            _ => return Err(Problem::NotAnObjectFile),
        };
        let name = parts.next().unwrap_or_default();
        let key = parts.next().unwrap_or(default_key);
        if !is_object_name(name) || !is_data_key(key) {
            return Err(Problem::NotAnObjectFile);
        }
        Ok(Self { kind, name: name.to_owned(), key: key.to_owned() })
    }
}

/// Kubernetes, "Object Names and IDs": DNS subdomain names.
pub(super) fn is_object_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= MAX_OBJECT_NAME_LEN && name.split('.').all(is_label)
}

/// Kubernetes API, ConfigMap: keys are of letters, digits, `-`, `_` and `.`.
fn is_data_key(key: &str) -> bool {
    let is_of_key = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !["", ".", ".."].contains(&key) && key.len() <= MAX_OBJECT_NAME_LEN && key.bytes().all(is_of_key)
}

pub(super) fn read(reader: &mut Reader<'_>) -> Option<InjectorConfig> {
    let address = reader.value(ADDRESS, value::socket_address);
    let cert_file = reader.value("injector.tls_cert_file", value::certificate_file);
    let key_file = reader.value("injector.tls_key_file", value::key_file);
    let sidecar = sidecar(reader);
    let http = load::http(reader, None);
    let log = load::log(reader);
    if let (Some(address), Some(http)) = (address, &http)
        && (load::collide(address, http.address) || load::collide(http.address, address))
        && let Some(other) = reader.written(ADDRESS)
    {
        reader.fault("http.address", Problem::SamePort { other });
    }
    Some(InjectorConfig {
        address: address?,
        explicit: reader.is_written(ADDRESS),
        tls: ServerCert { cert_file: cert_file?, key_file: key_file? },
        sidecar: sidecar?,
        http: http?,
        log: log?,
    })
}

fn sidecar(reader: &mut Reader<'_>) -> Option<SidecarConfig> {
    let image = reader.value("injector.image", value::text);
    let image_pull_policy =
        reader.is_written(PULL_POLICY).then(|| reader.word(PULL_POLICY, PULL_POLICIES)).flatten();
    let settings = reader.list("injector.settings", setting);
    let vault_ca = reader.optional("injector.vault_ca", ObjectFile::parse);
    let audience = reader.value("injector.token_audience", value::text);
    let expiration = reader.value("injector.token_expiration", token_expiration);
    let native = reader.value("injector.native_sidecar", value::boolean);
    let resources = resources(reader);
    let conflict =
        reader.word("injector.conflict", &[("keep", Conflict::Keep), ("reject", Conflict::Reject)]);
    Some(SidecarConfig {
        image: image?,
        image_pull_policy,
        settings: last_of_each(settings?),
        vault_ca,
        token: ProjectedToken { audience: audience?, expiration: expiration? },
        native: native?,
        resources: resources?,
        conflict: conflict?,
    })
}

fn resources(reader: &mut Reader<'_>) -> Option<Resources> {
    let cpu_request = reader.value("injector.cpu_request", cpu);
    let memory_request = reader.value("injector.memory_request", memory);
    let cpu_limit = reader.optional("injector.cpu_limit", cpu);
    let memory_limit = reader.optional("injector.memory_limit", memory);
    Some(Resources { cpu_request: cpu_request?, memory_request: memory_request?, cpu_limit, memory_limit })
}

/// `key=value`.
fn setting(text: &str) -> Result<SidecarSetting, Problem> {
    let (name, value) = text.split_once('=').ok_or(Problem::NotKeyAndValue)?;
    sidecar_setting(name.trim(), value.trim()).map_err(|problem| Problem::SidecarSetting {
        setting: name.trim().to_owned(),
        problem: Box::new(problem),
    })
}

/// Of two for one key the last counts.
fn last_of_each(settings: Vec<SidecarSetting>) -> Vec<SidecarSetting> {
    let mut kept = Vec::<SidecarSetting>::with_capacity(settings.len());
    for setting in settings {
        kept.retain(|earlier| earlier.variable != setting.variable);
        kept.push(setting);
    }
    kept
}

/// What `pglease proxy` would be told by this key and value, or why it would not take it. Files are not looked at.
pub(crate) fn sidecar_setting(name: &str, value: &str) -> Result<SidecarSetting, Problem> {
    let of_proxy = |key: &&Key| key.is_read_by(Reads::Proxy);
    let Some(key) = keys::find(name).filter(of_proxy) else {
        return Err(Problem::NotASetting { nearest: keys::nearest_key(name).map(str::to_owned) });
    };
    judge(key, value)?;
    Ok(SidecarSetting { variable: key.variable(), value: value.to_owned() })
}

fn judge(key: &Key, text: &str) -> Result<(), Problem> {
    value::text(text)?;
    match key.name {
        "vault.address" => vault::address(text).map(drop),
        "vault.namespace" | "vault.login.namespace" => vault::namespace(text).map(drop),
        "vault.login.mount" => vault::login_mount(text).map(drop),
        "route.vault_path" => vault::path(text).map(drop),
        "listen.unix_socket_mode" => value::file_mode(text).map(drop),
        "admin.address" => value::admin_address(text).map(drop),
        "listen.addresses" => {
            text.split(',').try_for_each(|item| value::listen_address(item.trim()).map(drop))
        }
        _ => judge_kind(&key.kind, text),
    }
}

fn judge_kind(kind: &Kind, text: &str) -> Result<(), Problem> {
    match kind {
        Kind::Text | Kind::Path | Kind::Url | Kind::List => Ok(()),
        Kind::Address => value::socket_address(text).map(drop),
        Kind::Upstream => match upstream::parse(text) {
            Ok(_) => Ok(()),
            Err(errors) => errors.into_iter().next().map_or(Ok(()), |error| Err(error.into())),
        },
        Kind::Duration => value::duration(text).map(drop),
        Kind::Integer { min, max } => value::integer(text, *min, *max).map(drop),
        Kind::IntegerOr { min, max, word } => value::integer_or(text, *min, *max, word).map(drop),
        Kind::Boolean => value::boolean(text).map(drop),
        Kind::Word(known) if known.contains(&text) => Ok(()),
        Kind::Word(known) => Err(Problem::NotAWord { known }),
    }
}

/// Kubernetes API, ServiceAccountTokenProjection: `expirationSeconds` of 600 at least.
pub(crate) fn token_expiration(text: &str) -> Result<Duration, Problem> {
    match value::duration(text)? {
        expiration if expiration < MIN_TOKEN_EXPIRATION => Err(Problem::TokenTooShort),
        expiration => Ok(expiration),
    }
}

/// A quantity of CPU.
fn cpu(text: &str) -> Result<String, Problem> {
    if quantity::is_cpu(text) { Ok(text.to_owned()) } else { Err(Problem::NotAQuantity) }
}

/// A quantity of memory.
fn memory(text: &str) -> Result<String, Problem> {
    if quantity::is_memory(text) { Ok(text.to_owned()) } else { Err(Problem::NotAQuantity) }
}

const ADDRESS: &str = "injector.address";
const PULL_POLICY: &str = "injector.image_pull_policy";
/// As Kubernetes calls them.
const PULL_POLICIES: &[(&str, &str)] =
    &[("Always", "Always"), ("IfNotPresent", "IfNotPresent"), ("Never", "Never")];
const DEFAULT_CA_KEY: &str = "ca.crt";
const MAX_OBJECT_NAME_LEN: usize = 253;
const MIN_TOKEN_EXPIRATION: Duration = Duration::from_mins(10);
