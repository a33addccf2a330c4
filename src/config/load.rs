//! From the three ways to settings that hold, or to everything that is wrong with them.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use clap::ArgMatches;
use tracing::Level;

use super::error::{ConfigError, ConfigErrors, Place, Problem};
use super::file::{Content, Print};
use super::fixed::Fixed;
use super::keys::Reads;
use super::settings::{self, FileSettings, Files, Merged, Reader};
use super::{
    AdminConfig, Config, DEFAULT_PORT, DrainConfig, HttpConfig, InjectorConfig, ListenAddress, ListenConfig,
    LogConfig, LogFormat, PodConfig, ServerCert, Sources, SslMode, UnixSocket, auth, credential_files, env,
    file, flags, injector, routes, value, vault,
};

/// Settings that hold, and what an operator should know about them.
#[derive(Clone, Debug)]
pub(crate) struct Loaded<C = Config> {
    pub(crate) config: C,
    /// Each one line, to be logged once.
    pub(crate) warnings: Vec<String>,
    pub(crate) origin: Origin,
}

/// What settings were made of.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) sources: Sources,
    /// Of the file, where one is named.
    pub(crate) print: Option<Print>,
    /// What of them holds until the process ends.
    pub(crate) fixed: Fixed,
}

/// Reads flags, environment and file, and checks the files that they name. Binds nothing, connects to nothing.
pub(crate) fn load(
    matches: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigErrors> {
    let sources = Sources::new(matches, variables);
    sources.load(sources.read().as_ref())
}

/// The same with this in the file, whatever it holds by now.
pub(super) fn load_with(sources: &Sources, content: Option<&Content>) -> Result<Loaded, ConfigErrors> {
    let config = |merged: &Merged, errors: &mut Vec<_>| config(merged, Files::Here, errors);
    let loaded = load_all(Reads::Proxy, sources, content, config)?;
    Ok(Loaded { warnings: warnings(&loaded.config), ..loaded })
}

/// Reads where a running pglease is to be asked, for the commands that ask it. What else is set is not looked at,
/// since it may have been given by flags of the other.
pub(crate) fn load_admin(
    matches: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<AdminConfig, ConfigErrors> {
    load_part(matches, variables, admin)
}

/// Reads where it answers its probes, in the same way.
pub(crate) fn load_http(
    matches: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<HttpConfig, ConfigErrors> {
    load_part(matches, variables, |reader| http(reader, None))
}

/// What `part` makes of the proxy's settings that are no route's.
fn load_part<T>(
    matches: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    part: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Result<T, ConfigErrors> {
    let sources = Sources::new(matches, variables);
    let read =
        |merged: &Merged, errors: &mut Vec<_>| part(&mut Reader::new(&merged.settings, errors, Files::Here));
    load_all(Reads::Proxy, &sources, sources.read().as_ref(), read).map(|loaded| loaded.config)
}

/// Reads the settings of `pglease injector`; those that are the proxy's alone are left alone.
pub(crate) fn load_injector(
    matches: &ArgMatches,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded<InjectorConfig>, ConfigErrors> {
    let sources = Sources::new(matches, variables);
    sources.load_injector(sources.read().as_ref())
}

pub(super) fn load_injector_with(
    sources: &Sources,
    content: Option<&Content>,
) -> Result<Loaded<InjectorConfig>, ConfigErrors> {
    let read = |merged: &Merged, errors: &mut Vec<_>| {
        injector::read(&mut Reader::new(&merged.settings, errors, Files::Here))
    };
    load_all(Reads::Injector, sources, content, read)
}

/// What `make` makes of the three ways, or all that is wrong with them.
fn load_all<C>(
    command: Reads,
    sources: &Sources,
    content: Option<&Content>,
    make: impl FnOnce(&Merged, &mut Vec<ConfigError>) -> Option<C>,
) -> Result<Loaded<C>, ConfigErrors> {
    let mut errors = Vec::new();
    let print = content.map(|content| content.print().clone());
    let read = read(command, sources, content, &mut errors);
    let made = read.and_then(|merged| Some((make(&merged, &mut errors)?, Fixed::of(&merged, command))));
    match made {
        Some((config, fixed)) if errors.is_empty() => {
            let origin = Origin { sources: sources.clone(), print, fixed };
            Ok(Loaded { config, warnings: Vec::new(), origin })
        }
        _ => Err(ConfigErrors::new(errors)),
    }
}

/// The three ways laid over each other. `None` where the file cannot be read:
/// all that stands in it would be called missing.
fn read(
    command: Reads,
    sources: &Sources,
    content: Option<&Content>,
    errors: &mut Vec<ConfigError>,
) -> Option<Merged> {
    let given = flags::read(sources.matches());
    let environment = env::read(sources.variables().to_vec(), errors);
    let named = match (given.config_file, environment.config_file) {
        (Some(path), _) => Some((path, Place::Flag(flags::CONFIG_FILE_FLAG.to_owned()))),
        (None, Some(path)) => Some((path, Place::Variable(env::CONFIG_FILE.to_owned()))),
        (None, None) => None,
    };
    let file = match named.zip(content) {
        Some(((path, place), content)) => file::judge(&path, place, content, errors),
        None => Some(FileSettings::default()),
    };
    let more_files = environment.files.map(|text| file::parse_files(env::FILES, &text, errors));
    let layers = [environment.vault, environment.settings, given.settings];
    let mut file = file?;
    file.files.extend(more_files.unwrap_or_default());
    Some(settings::merge(command, file, layers, errors))
}

pub(super) fn config(merged: &Merged, on: Files, errors: &mut Vec<ConfigError>) -> Option<Config> {
    let mut reader = Reader::new(&merged.settings, errors, on);
    let vault = vault::read(&mut reader);
    let listen = listen(&mut reader);
    let drain = drain(&mut reader);
    let http = http(&mut reader, listen.as_ref());
    let admin = admin(&mut reader);
    if let (Some(admin), Some(listen), Some(http)) = (&admin, &listen, &http) {
        check_admin(&mut reader, admin, listen, http);
    }
    let log = log(&mut reader);
    let pod = pod(&mut reader);
    if merged.routes.is_empty() && merged.files.is_empty() {
        errors.push(ConfigError::NoRoute);
    }
    let routes = routes::read(&merged.routes, on, errors);
    let files = credential_files::read(&merged.files, &merged.routes, on, errors);
    Some(Config {
        vault: vault?,
        listen: listen?,
        routes,
        files,
        drain: drain?,
        http: http?,
        admin: admin?,
        log: log?,
        pod,
    })
}

fn listen(reader: &mut Reader<'_>) -> Option<ListenConfig> {
    let auth = auth::read(reader);
    let addresses = reader.list("listen.addresses", value::listen_address);
    let max_sessions = reader.integer("listen.max_sessions");
    let threads = reader.integer_or("listen.threads", cores);
    let connect_wait = reader.value("listen.connect_wait", value::positive_duration);
    let tls = server_cert(reader);
    let unix_socket = unix_socket(reader, addresses.as_deref().unwrap_or_default());
    if let Some(addresses) = &addresses {
        check_addresses(reader, addresses);
        if let Some(auth) = &auth {
            auth::check_addresses(reader, addresses, auth);
        }
    }
    Some(ListenConfig {
        addresses: addresses?,
        unix_socket: unix_socket?,
        tls,
        auth: auth?,
        max_sessions: max_sessions?,
        threads: threads?,
        connect_wait: connect_wait?,
    })
}

/// As many as this process may use: what it may run on, and what the container's CPU limit leaves of that.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Both files or none.
fn server_cert(reader: &mut Reader<'_>) -> Option<ServerCert> {
    let cert_file =
        reader.is_given(TLS_CERT_FILE).then(|| reader.optional_path(TLS_CERT_FILE, value::certificate_file));
    let key_file = reader.is_given(TLS_KEY_FILE).then(|| reader.optional_path(TLS_KEY_FILE, value::key_file));
    match (cert_file, key_file) {
        (None, None) => None,
        (Some(cert_file), Some(key_file)) => Some(ServerCert { cert_file: cert_file?, key_file: key_file? }),
        (Some(cert_file), None) => cert_file.and_then(|_| reader.missing(TLS_KEY_FILE)),
        (None, Some(key_file)) => key_file.and_then(|_| reader.missing(TLS_CERT_FILE)),
    }
}

/// The inner one is `None` where there is to be no socket.
#[expect(clippy::option_option, reason = "wrong or absent")]
fn unix_socket(reader: &mut Reader<'_>, addresses: &[ListenAddress]) -> Option<Option<UnixSocket>> {
    let mode = reader.value("listen.unix_socket_mode", value::file_mode);
    if !reader.is_given(UNIX_SOCKET) {
        return mode.map(|_| None);
    }
    let socket = UnixSocket { directory: reader.optional_path(UNIX_SOCKET, value::directory)?, mode: mode? };
    let longest =
        socket.path(addresses.first().map_or(DEFAULT_PORT, |address| match sockets(*address).as_slice() {
            [first, ..] if first.port() != 0 => first.port(),
            _ => u16::MAX,
        }));
    let len = longest.as_os_str().len();
    if len > MAX_SOCKET_PATH_LEN {
        reader.fault(UNIX_SOCKET, Problem::SocketPathTooLong { len, max_len: MAX_SOCKET_PATH_LEN });
        return None;
    }
    Some(Some(socket))
}

const UNIX_SOCKET: &str = "listen.unix_socket";
/// What the kernel takes, without the `\0` behind it: `sun_path` of unix(7).
const MAX_SOCKET_PATH_LEN: usize = 107;
const TLS_CERT_FILE: &str = "listen.tls_cert_file";
const TLS_KEY_FILE: &str = "listen.tls_key_file";

fn check_addresses(reader: &mut Reader<'_>, addresses: &[ListenAddress]) {
    if addresses.is_empty() && !reader.is_given(UNIX_SOCKET) {
        reader.fault("listen.addresses", Problem::NoListenAddress);
    }
    let mut bound: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        let sockets = sockets(*address);
        let is_taken = |socket: &&SocketAddr| bound.iter().any(|bound| overlap(*bound, **socket));
        if let Some(twice) = sockets.iter().find(is_taken) {
            reader.fault("listen.addresses", Problem::ListenedTwice { address: twice.to_string() });
        }
        bound.extend(sockets);
    }
}

/// Whether both cannot be listened at. Ours for all addresses of IPv6 leave those of IPv4 alone.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_all = one.ip().is_unspecified() || other.ip().is_unspecified();
    let is_same = one.ip() == other.ip() || (is_all && one.is_ipv4() == other.is_ipv4());
    one.port() != 0 && one.port() == other.port() && is_same
}

fn sockets(address: ListenAddress) -> Vec<SocketAddr> {
    match address {
        ListenAddress::Localhost { port } => {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        ListenAddress::Socket(address) => vec![address],
    }
}

fn drain(reader: &mut Reader<'_>) -> Option<DrainConfig> {
    let accept_for = reader.value("drain.accept_for", value::duration);
    let grace = reader.value("drain.grace", value::duration);
    let deadline = reader.value("drain.deadline", value::duration);
    let strict_exit = reader.value("drain.strict_exit", value::boolean);
    let (accept_for, grace, deadline) = (accept_for?, grace?, deadline?);
    check_at_most(reader, "drain.accept_for", accept_for, deadline);
    check_at_most(reader, "drain.grace", grace, deadline);
    Some(DrainConfig { accept_for, grace, deadline, strict_exit: strict_exit? })
}

fn check_at_most(reader: &mut Reader<'_>, name: &'static str, duration: Duration, deadline: Duration) {
    if duration > deadline
        && let Some(other) = reader.written("drain.deadline")
    {
        reader.fault(name, Problem::LongerThan { other });
    }
}

pub(super) fn http(reader: &mut Reader<'_>, listen: Option<&ListenConfig>) -> Option<HttpConfig> {
    let address = reader.value("http.address", value::socket_address)?;
    let taken = listen.into_iter().flat_map(|listen| &listen.addresses).flat_map(|address| sockets(*address));
    if taken.into_iter().any(|taken| collide(address, taken) || overlap(address, taken))
        && let Some(other) = reader.written("listen.addresses")
    {
        reader.fault("http.address", Problem::SamePort { other });
    }
    Some(HttpConfig { address, explicit: reader.is_written("http.address") })
}

fn admin(reader: &mut Reader<'_>) -> Option<AdminConfig> {
    let address = reader.value("admin.address", value::admin_address);
    let control = reader.value("admin.control", value::boolean);
    if address == Some(None) && control == Some(true) {
        reader.fault("admin.control", Problem::NoAdminAddress);
    }
    Some(AdminConfig { address: address?, explicit: reader.is_written("admin.address"), control: control? })
}

/// What somebody asked for must not be another's. The default is done without where it is.
fn check_admin(reader: &mut Reader<'_>, admin: &AdminConfig, listen: &ListenConfig, http: &HttpConfig) {
    let Some(address) = admin.address.filter(|_| admin.explicit) else { return };
    let of_listen = listen.addresses.iter().flat_map(|taken| sockets(*taken));
    for (name, taken) in [
        ("listen.addresses", of_listen.into_iter().any(|taken| overlap(address, taken))),
        ("http.address", collide(http.address, address)),
    ] {
        if taken && let Some(other) = reader.written(name) {
            reader.fault("admin.address", Problem::SamePort { other });
        }
    }
}

pub(super) fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let takes_all = |ip: IpAddr| match ip {
        // An IPv6 socket for all addresses takes those of IPv4 as well, where the machine does not say otherwise.
        IpAddr::V6(ip) => ip.is_unspecified(),
        IpAddr::V4(ip) => ip.is_unspecified() && other.is_ipv4(),
    };
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || takes_all(one.ip()))
}

pub(super) fn log(reader: &mut Reader<'_>) -> Option<LogConfig> {
    let format = reader.word("log.format", &[("json", LogFormat::Json), ("text", LogFormat::Text)]);
    let level = reader.word("log.level", LEVELS);
    Some(LogConfig { format: format?, level: level? })
}

/// The level of this name.
pub(crate) fn level_named(name: &str) -> Option<Level> {
    LEVELS.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
}

/// What a level is called.
pub(crate) fn level_name(level: Level) -> &'static str {
    LEVELS.iter().find(|(_, known)| *known == level).map_or("", |(name, _)| name)
}

/// From the fewest lines to the most.
const LEVELS: &[(&str, Level)] = &[
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// Whatever is wrong is an error all the same.
fn pod(reader: &mut Reader<'_>) -> PodConfig {
    PodConfig {
        name: reader.optional("pod.name", value::text),
        namespace: reader.optional("pod.namespace", value::text),
        uid: reader.optional("pod.uid", value::text),
        memory_limit: reader.optional("pod.memory_limit", value::memory),
        termination_grace: reader.optional("pod.termination_grace", value::duration),
    }
}

/// What the settings give up, once for each upstream.
fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = auth::warnings(&config.listen);
    warnings.extend(credential_files::warnings(&config.files));
    warnings.extend(grace_warning(config));
    if !vault::is_private(&config.vault.address) {
        warnings.push(format!(
            "vault.address {} is plain HTTP: whoever is on the way reads tokens and database passwords; use https://",
            config.vault.address
        ));
    }
    if config.vault.tls.skip_verify {
        warnings.push(format!(
            "vault.skip_verify is on: the certificate of vault.address {} is not verified, so whoever is on the way \
             can pose as Vault and have what pglease logs in with; use vault.ca_file",
            config.vault.address
        ));
    }
    let of_files = config.files.iter().filter_map(|file| file.upstream.as_ref());
    for upstream in config.routes.iter().map(|route| &route.upstream).chain(of_files) {
        let warning = match upstream.ssl_mode {
            SslMode::VerifyFull | SslMode::VerifyCa => continue,
            SslMode::Disable | SslMode::Require if !upstream.has_network() => continue,
            SslMode::Disable => format!(
                "upstream {upstream} has sslmode=disable: whoever is on the way reads and changes queries and \
                 rows; use sslmode=verify-full"
            ),
            SslMode::Require => format!(
                "upstream {upstream} has sslmode=require: its certificate is not verified, so whoever is on the \
                 way can pose as the server; use sslmode=verify-full"
            ),
        };
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    warnings
}

/// That Kubernetes ends the pod before the drain is over.
pub(crate) fn grace_warning(config: &Config) -> Option<String> {
    let deadline = config.drain.deadline;
    let grace = config.pod.termination_grace.filter(|grace| deadline >= *grace)?;
    Some(format!(
        "drain.deadline {} is not below the pod's terminationGracePeriodSeconds, {}: Kubernetes kills pglease before it \
         has revoked its leases; make it shorter by 5 s at least",
        humantime::format_duration(deadline),
        humantime::format_duration(grace)
    ))
}
