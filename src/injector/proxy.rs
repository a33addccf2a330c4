//! Settings of the sidecar: what the injector gives every one, and over that what the pod's annotations say, judged
//! together as `pglease proxy` will judge them.

use std::time::Duration;

use serde_json::{Value, json};

use super::annotations::{ANNOTATIONS, Annotations, Notes, PREFIX, missing};
use super::files::Files;
use super::pod;
use crate::config::{
    self, AuthConfig, Config, Fault, Given, ListenAddress, ObjectFile, ObjectKind, SidecarConfig,
};

/// What the sidecar is told, and what it will make of that.
#[derive(Debug)]
pub(super) struct Proxy {
    /// Name and value, in the order in which they are given.
    pub(super) variables: Vec<(String, String)>,
    /// But for what only the file of `pglease.dev/config` knows.
    pub(super) config: Config,
    /// What it reads, each a volume of its own.
    pub(super) files: Vec<File>,
    /// Whether `config` is not all: there is a file of settings, or something is wrong.
    pub(super) is_partial: bool,
    /// Whether it logs in with a `ServiceAccount`'s token.
    pub(super) has_token: bool,
    /// Directory of the Unix socket.
    pub(super) socket: Option<String>,
    /// What it writes for the application.
    pub(super) credential_files: Files,
}

/// A file out of a `ConfigMap` or Secret.
#[derive(Debug)]
pub(super) struct File {
    pub(super) volume: &'static str,
    pub(super) directory: &'static str,
    /// In that directory.
    name: &'static str,
    from: ObjectFile,
}

impl File {
    fn path(&self) -> String {
        format!("{}/{}", self.directory, self.name)
    }

    /// The volume's source, as a pod has it.
    pub(super) fn source(&self) -> Value {
        let items = json!([{ "key": self.from.key, "path": self.name }]);
        match self.from.kind {
            ObjectKind::ConfigMap => json!({ "configMap": { "name": self.from.name, "items": items } }),
            ObjectKind::Secret => json!({ "secret": { "secretName": self.from.name, "items": items } }),
        }
    }
}

impl Proxy {
    /// What is wrong is then among the faults.
    pub(super) fn read(
        pod: &Value,
        annotations: &Annotations,
        defaults: &SidecarConfig,
        notes: &mut Notes,
    ) -> Option<Self> {
        let mut settings = Settings::begin(defaults);
        let mut files = Vec::new();
        let config_file = file(annotations, "config", CONFIG, notes);
        settings.add_plain(annotations);
        settings.add_vault_ca(annotations, defaults, &mut files, notes);
        let ca = settings.add_upstream_ca(annotations, &mut files, notes);
        if let Some(file) = file(annotations, "auth-file", AUTH_FILE, notes) {
            settings.set("listen.auth_file", &file.path(), "auth-file");
            files.push(file);
        }
        settings.add_ports(annotations, notes);
        let socket = settings.add_socket(annotations, notes);
        let has_file = config_file.is_some();
        let credential_files = Files::read(pod, annotations, ca.as_deref(), notes);
        if !credential_files.is_empty() {
            settings.drop_route();
            if !defaults.native {
                settings.keep_files(pod::termination_grace(pod));
            }
        }
        let judged = config::judge(&settings.given, &credential_files.tables, has_file);
        let judged = judged.map_err(|faults| add(faults, notes));
        let is_partial = has_file || judged.is_err();
        // What else is wrong with the pod shall be told of as well.
        let config = judged.or_else(|()| config::judge(&[], &[], true)).ok()?;
        let mut variables = settings.variables();
        variables.extend(credential_files.variable());
        if let Some(file) = config_file {
            variables.insert(0, (CONFIG_FILE_VARIABLE.to_owned(), file.path()));
            files.push(file);
        }
        let has_token = settings.has_token();
        Some(Self { variables, config, files, is_partial, has_token, socket, credential_files })
    }

    /// Where it listens for applications on all addresses of loopback; the socket is named by the same.
    pub(super) fn port(&self) -> u16 {
        let first = self.config.listen.addresses.first();
        first.copied().map_or(config::DEFAULT_PORT, port_of)
    }

    /// TCP ports that the sidecar takes, each with the annotation that chooses another.
    pub(super) fn ports(&self) -> Vec<(u16, &'static str)> {
        let addresses = self.config.listen.addresses.iter().filter(|_| self.listens());
        let listen = addresses.map(|address| (port_of(*address), "port"));
        listen.chain([(self.config.http.address.port(), "http-port")]).collect()
    }

    /// Whether it lets applications in: without a route there are files alone.
    pub(super) fn listens(&self) -> bool {
        !self.config.routes.is_empty()
    }

    /// What the application needs of the sidecar's files, to connect by what it reads.
    pub(super) fn shared_files(&self) -> impl Iterator<Item = &File> {
        let is_shared = |file: &&File| file.volume == UPSTREAM_CA.volume && !self.credential_files.is_empty();
        self.files.iter().filter(is_shared)
    }

    /// Whether applications prove who they are.
    pub(super) fn has_auth(&self) -> bool {
        self.config.listen.auth != AuthConfig::Trust
    }

    /// The database that upstream names.
    pub(super) fn database(&self) -> Option<&str> {
        self.config.routes.first()?.upstream.database.as_deref()
    }
}

fn port_of(address: ListenAddress) -> u16 {
    match address {
        ListenAddress::Localhost { port } => port,
        ListenAddress::Socket(address) => address.port(),
    }
}

/// What is given, and by whom; of two for one key the later holds.
#[derive(Debug, Default)]
struct Settings {
    given: Vec<Given>,
}

impl Settings {
    /// What every sidecar gets.
    fn begin(defaults: &SidecarConfig) -> Self {
        let mut settings = Self::default();
        if defaults.native {
            // It is told to stop once the application has ended, and must not spend what is left of the pod's grace.
            settings.give("drain.deadline", "2s", "the injector");
        }
        for setting in &defaults.settings {
            if let Some(key) = config::key_of_variable(&setting.variable) {
                settings.give(key, &setting.value, "injector.settings");
            }
        }
        if settings.has_token() && settings.value(JWT_FILE).is_none() {
            settings.give(JWT_FILE, TOKEN_FILE, "the injector");
        }
        settings
    }

    fn give(&mut self, key: &'static str, value: &str, by: &str) {
        self.given.retain(|given| given.key != key);
        self.given.push(Given { key, value: value.to_owned(), by: by.to_owned() });
    }

    /// By one of our annotations.
    fn set(&mut self, key: &'static str, value: &str, annotation: &str) {
        self.give(key, value, &format!("{PREFIX}{annotation}"));
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.given.iter().find(|given| given.key == key).map(|given| given.value.as_str())
    }

    /// Leaves out what is said of a route that nobody asks for.
    fn drop_route(&mut self) {
        let is_asked = |key| self.value(key).is_some();
        if !is_asked("route.upstream") && !is_asked("route.vault_path") {
            self.given.retain(|given| !given.key.starts_with("route."));
        }
    }

    /// Files stay for an application that is told to stop at the same moment, for as long as leaves enough of the pod's
    /// grace to revoke. What an author or operator says of the drain holds.
    fn keep_files(&mut self, grace: u64) {
        let most = Duration::from_secs(grace * 2 / 3);
        // What is none is told of when it is judged.
        let deadline = self.value("drain.deadline").and_then(|text| config::duration(text).ok());
        let stay =
            format!("{}", humantime::format_duration(deadline.map_or(most, |deadline| deadline.min(most))));
        for key in ["drain.deadline", "drain.accept_for"] {
            if self.value(key).is_none() {
                self.give(key, &stay, "the injector");
            }
        }
    }

    fn has_token(&self) -> bool {
        matches!(self.value("vault.login.method"), None | Some("kubernetes" | "jwt"))
    }

    /// Annotations whose values are settings as they stand.
    fn add_plain(&mut self, annotations: &Annotations) {
        for annotation in ANNOTATIONS {
            if let (Some(key), Some(written)) = (annotation.key, annotations.get(annotation.name)) {
                self.give(key, &written.value, &written.by);
            }
        }
    }

    fn add_vault_ca(
        &mut self,
        annotations: &Annotations,
        defaults: &SidecarConfig,
        files: &mut Vec<File>,
        notes: &mut Notes,
    ) {
        let own = file(annotations, "vault-ca", VAULT_CA, notes);
        let by = if own.is_some() { "pglease.dev/vault-ca" } else { "injector.vault_ca" };
        let injectors = || defaults.vault_ca.clone().map(|from| VAULT_CA.of(from));
        if let Some(file) = own.or_else(injectors) {
            self.give("vault.ca_file", &file.path(), by);
            files.push(file);
        }
    }

    /// Where the CAs are, if there are some of the author's.
    fn add_upstream_ca(
        &mut self,
        annotations: &Annotations,
        files: &mut Vec<File>,
        notes: &mut Notes,
    ) -> Option<String> {
        let file = file(annotations, "upstream-ca", UPSTREAM_CA, notes)?;
        let path = file.path();
        let upstream = self.given.iter_mut().find(|given| given.key == "route.upstream");
        if upstream.is_none() && annotations.files().values().all(|file| !file.contains_key("upstream")) {
            notes.fault("pglease.dev/upstream-ca belongs to an upstream; write pglease.dev/upstream as well");
            return None;
        }
        if let Some(upstream) = upstream {
            match config::with_root_cert(&upstream.value, &path) {
                Some(with_ca) => upstream.value = with_ca,
                // What does not parse is told of when it is judged.
                None if upstream.value.contains("sslrootcert") => notes.fault(
                    "pglease.dev/upstream names an sslrootcert, and pglease.dev/upstream-ca another; remove one of them",
                ),
                None => {}
            }
        }
        files.push(file);
        Some(path)
    }

    fn add_ports(&mut self, annotations: &Annotations, notes: &mut Notes) {
        if let Some(port) = annotations.parse("port", notes, port) {
            self.set("listen.addresses", &format!("localhost:{port}"), "port");
        }
        if let Some(port) = annotations.parse("http-port", notes, port) {
            // The address that the operator chose stays: a cluster may have one of the two kinds only.
            let host = self.value("http.address").and_then(|address| address.rsplit_once(':'));
            let host = host.map_or(ALL_ADDRESSES, |(host, _)| host).to_owned();
            self.set("http.address", &format!("{host}:{port}"), "http-port");
        }
    }

    /// The directory of the socket, if there is to be one.
    fn add_socket(&mut self, annotations: &Annotations, notes: &mut Notes) -> Option<String> {
        let directory = annotations.parse("unix-socket", notes, socket_directory).flatten();
        let is_peer = self.value("listen.auth") == Some("peer");
        if let Some(directory) = &directory {
            self.set("listen.unix_socket", directory, "unix-socket");
            // Who has the volume may connect: the application's user id is not known here.
            self.set("listen.unix_socket_mode", "0666", "unix-socket");
        } else if is_peer {
            notes.fault(
                "pglease.dev/auth = \"peer\": goes by a Unix socket; write pglease.dev/unix-socket: \"true\"",
            );
        }
        if is_peer {
            if annotations.get("port").is_some() {
                notes.fault(
                    "pglease.dev/port: there is no TCP with pglease.dev/auth = \"peer\"; remove one of them",
                );
            }
            self.set("listen.addresses", NO_ADDRESS, "auth");
        }
        directory
    }

    /// In the order of the table of keys, so that the same annotations make the same pod.
    fn variables(&self) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> = self
            .given
            .iter()
            .filter_map(|given| Some((config::variable(given.key)?, given.value.clone())))
            .collect();
        variables.sort();
        variables
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "not a port; write a number from 1 to 65535".to_owned())
}

/// `None` is no socket.
fn socket_directory(text: &str) -> Result<Option<String>, String> {
    let directory = match text {
        "false" => return Ok(None),
        "true" => SOCKET_DIRECTORY,
        path => path.trim_end_matches('/'),
    };
    // Kubernetes takes no `:` in the path of a mount, and no two mounts at one.
    if !directory.starts_with('/') || directory.contains(':') || directory.split('/').any(|name| name == "..")
    {
        return Err("neither true, false nor the absolute path of a directory; write one of them".to_owned());
    }
    if is_own_directory(directory) {
        return Err("a directory of the sidecar's other files; name another".to_owned());
    }
    Ok(Some(directory.to_owned()))
}

/// Whether the sidecar has files of another kind there.
pub(super) fn is_own_directory(directory: &str) -> bool {
    OWN_DIRECTORIES.iter().any(|own| directory.starts_with(own))
}

/// Where a kind of file goes.
#[derive(Clone, Copy, Debug)]
struct Kind {
    volume: &'static str,
    directory: &'static str,
    name: &'static str,
}

impl Kind {
    fn of(self, from: ObjectFile) -> File {
        File { volume: self.volume, directory: self.directory, name: self.name, from }
    }
}

const VAULT_CA: Kind =
    Kind { volume: "pglease-vault-ca", directory: "/etc/pglease/vault-ca", name: "ca.crt" };
const UPSTREAM_CA: Kind =
    Kind { volume: "pglease-upstream-ca", directory: "/etc/pglease/upstream-ca", name: "ca.crt" };
const AUTH_FILE: Kind = Kind { volume: "pglease-auth", directory: "/etc/pglease/auth", name: "users" };
const CONFIG: Kind =
    Kind { volume: "pglease-config", directory: "/etc/pglease/config", name: "pglease.toml" };

/// The file that an annotation names; its key is called as it is by default.
fn file(annotations: &Annotations, name: &str, kind: Kind, notes: &mut Notes) -> Option<File> {
    annotations.parse(name, notes, |text| {
        let whole = match text.split_once('/') {
            Some(("configmap" | "secret", _)) => text.to_owned(),
            _ if name == "config" => format!("configmap/{text}"),
            _ => text.to_owned(),
        };
        let from = ObjectFile::parse_or(&whole, kind.name).map_err(|problem| problem.to_string())?;
        Ok(kind.of(from))
    })
}

fn add(faults: Vec<Fault>, notes: &mut Notes) {
    for fault in faults {
        match fault {
            Fault::Missing { key } => notes.fault(missing(key)),
            Fault::Wrong { by, text } if by.is_empty() => notes.fault(text),
            Fault::Wrong { by, text } => notes.fault(format!("{by}: {text}")),
        }
    }
}

const JWT_FILE: &str = "vault.login.jwt_file";
/// Where the projected token is mounted.
pub(super) const TOKEN_DIRECTORY: &str = "/var/run/secrets/pglease";
const TOKEN_FILE: &str = "/var/run/secrets/pglease/token";
/// Where its files are mounted.
const OWN_DIRECTORIES: &[&str] = &["/etc/pglease", TOKEN_DIRECTORY];
const SOCKET_DIRECTORY: &str = "/var/run/pglease";
const CONFIG_FILE_VARIABLE: &str = "PGLEASE_CONFIG_FILE";
const ALL_ADDRESSES: &str = "[::]";
/// An empty list in a variable, where nothing at all would be no variable.
const NO_ADDRESS: &str = ",";
