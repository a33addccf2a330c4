//! Every environment variable: the one module that reads the environment.

use std::ffi::OsString;

use super::error::{ConfigError, Place};
use super::keys::{self, KEYS, Key, Kind, VARIABLE_PREFIX};
use super::settings::{Layer, Setting};

/// The process's own variables, for `load`.
pub(crate) fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

/// What the environment brings.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// `PGLEASE_…`.
    pub(crate) settings: Layer,
    /// Vault's own, which rank below.
    pub(crate) vault: Layer,
    pub(crate) config_file: Option<String>,
    /// `[[file]]` tables in TOML.
    pub(crate) files: Option<String>,
}

/// Takes what is pglease's and what is Vault's from `variables`. An empty variable is none.
pub(crate) fn read(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    errors: &mut Vec<ConfigError>,
) -> Environment {
    let mut environment = Environment::default();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| is_read(name)) else { continue };
        if value.is_empty() || is_service_link(name, &value.to_string_lossy()) {
            continue;
        }
        match value.to_str() {
            Some(value) => read_one(&mut environment, name, value, errors),
            None => errors.push(ConfigError::VariableNotUtf8 { variable: name.to_owned() }),
        }
    }
    environment.vault.sort_by(|one, other| one.place.cmp(&other.place));
    environment
}

fn read_one(environment: &mut Environment, name: &str, value: &str, errors: &mut Vec<ConfigError>) {
    let place = || Place::Variable(name.to_owned());
    let vaults = VAULT_VARIABLES.iter().find(|(vaults, _)| *vaults == name);

    if let Some(key) = vaults.and_then(|(_, key)| keys::find(key)) {
        let value = if key.kind == Kind::Boolean { boolean_of_go(value) } else { value };
        environment.vault.push(Setting::from_text(key, value, place()));
    } else if name == CONFIG_FILE {
        environment.config_file = Some(value.to_owned());
    } else if name == FILES {
        environment.files = Some(value.to_owned());
    } else if let Some(key) = keys_with_variables().find(|key| key.variable() == name) {
        environment.settings.push(Setting::from_text(key, value, place()));
    } else {
        errors.push(ConfigError::UnknownVariable { variable: name.to_owned(), nearest: nearest(name) });
    }
}

fn is_read(name: &str) -> bool {
    (name.starts_with(VARIABLE_PREFIX) && !name.starts_with(TESTS_PREFIX))
        || VAULT_VARIABLES.iter().any(|(vaults, _)| *vaults == name)
}

/// What Go's `ParseBool` takes for true and false, in our words.
fn boolean_of_go(value: &str) -> &str {
    match value {
        "1" | "t" | "T" | "TRUE" | "True" => "true",
        "0" | "f" | "F" | "FALSE" | "False" => "false",
        other => other,
    }
}

/// Whether Kubernetes sets it in every pod of a namespace that has a Service `pglease` or `pglease-…`.
///
/// Kubernetes, "Accessing the Service", environment variables: `<SERVICE>_SERVICE_HOST`,
/// `<SERVICE>_SERVICE_PORT[_<NAME>]`, `<SERVICE>_PORT` and `<SERVICE>_PORT_<number>_<PROTOCOL>` (URLs), and the
/// latter with `_PROTO`, `_PORT` and `_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_of_port = |(start, _): (usize, &str)| {
        let port = name.get(start..).and_then(|port| port.strip_prefix(SERVICE_PORT)).unwrap_or_default();
        port.split_once('_').is_some_and(|(number, protocol)| {
            number.parse::<u16>().is_ok()
                && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known))
        })
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.match_indices(SERVICE_PORT).any(is_of_port)
}

fn keys_with_variables() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| !key.is_of_file())
}

fn nearest(name: &str) -> Option<String> {
    let bare = name.strip_prefix(VARIABLE_PREFIX)?;
    let others = [CONFIG_FILE.to_owned(), FILES.to_owned()];
    let known: Vec<String> = keys_with_variables().map(Key::variable).chain(others).collect();
    let known = known.iter().filter_map(|known| known.strip_prefix(VARIABLE_PREFIX));
    keys::nearest(bare, known).map(|bare| format!("{VARIABLE_PREFIX}{bare}"))
}

/// Names the file.
pub(crate) const CONFIG_FILE: &str = "PGLEASE_CONFIG_FILE";
/// Holds `[[file]]` tables, for those who can give a container variables and no file.
pub(crate) const FILES: &str = "PGLEASE_FILES";
/// Of the project's own tests, whose children inherit them.
const TESTS_PREFIX: &str = "PGLEASE_TEST_";

/// Stands before a port's number in Kubernetes' variables.
const SERVICE_PORT: &str = "_PORT_";

/// Variables that Vault's own tools know, with what they set. Of two for one key the last by name counts, as with
/// them.
const VAULT_VARIABLES: &[(&str, &str)] = &[
    ("VAULT_ADDR", "vault.address"),
    ("VAULT_NAMESPACE", "vault.namespace"),
    ("VAULT_CACERT", "vault.ca_file"),
    ("VAULT_CAPATH", "vault.ca_dir"),
    ("VAULT_CLIENT_CERT", "vault.client_cert_file"),
    ("VAULT_CLIENT_KEY", "vault.client_key_file"),
    ("VAULT_TLS_SERVER_NAME", "vault.tls_server_name"),
    ("VAULT_SKIP_VERIFY", "vault.skip_verify"),
    ("VAULT_HTTP_PROXY", "vault.proxy"),
    ("VAULT_PROXY_ADDR", "vault.proxy"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_services_are_not_settings() {
        for (name, value) in [
            ("PGLEASE_SERVICE_HOST", "10.0.0.7"),
            ("PGLEASE_SERVICE_PORT", "443"),
            ("PGLEASE_SERVICE_PORT_HTTPS", "443"),
            ("PGLEASE_PORT", "tcp://10.0.0.7:443"),
            ("PGLEASE_PORT_443_TCP", "tcp://10.0.0.7:443"),
            ("PGLEASE_PORT_443_TCP_PROTO", "tcp"),
            ("PGLEASE_PORT_443_TCP_PORT", "443"),
            ("PGLEASE_PORT_443_TCP_ADDR", "10.0.0.7"),
            ("PGLEASE_INJECTOR_PORT_443_TCP_ADDR", "10.0.0.7"),
            ("PGLEASE_MY_PORT_1_PORT_53_UDP_PROTO", "udp"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        for key in keys_with_variables() {
            assert!(!is_service_link(&key.variable(), "tcp://10.0.0.7:443"), "{}", key.name);
        }
        assert!(!is_service_link("PGLEASE_HTTP_PORT", "9632"));
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let others = ["PGLEASE_TEST_PG", "VAULT_TOKEN", "VAULT_FORMAT", "PATH", "PGHOST"];
        let variables = others.map(|name| (OsString::from(name), OsString::from("x")));
        let mut errors = Vec::new();

        let environment = read(variables, &mut errors);
        assert!(environment.settings.is_empty() && environment.vault.is_empty() && errors.is_empty());
    }
}
