//! Settings of a proxy that will run elsewhere: judged by what judges the proxy's own, but for files and for what a
//! file of settings may bring there.

use super::error::{ConfigError, ConfigErrors, Place};
use super::keys::Reads;
use super::settings::{self, FileSettings, Files, OneOf, Setting};
use super::{Config, conninfo, keys, load};

/// A setting that the proxy will be given by its variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// As the table of keys spells it.
    pub(crate) key: &'static str,
    pub(crate) value: String,
    /// Who gives it, as an error shall name it.
    pub(crate) by: String,
}

/// What is wrong with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody gives what is needed.
    Missing { key: &'static str },
    /// `text` begins with the key and its value, without secrets.
    Wrong { by: String, text: String },
}

/// What the proxy will make of `given`, of two for one key the later, and of `files`, each a `[[file]]`. Where a file
/// of settings will be there (`has_file`), nothing is missing, and what only that file knows stands in the result as
/// if nobody had written it.
pub(crate) fn judge(given: &[Given], files: &[Vec<Given>], has_file: bool) -> Result<Config, Vec<Fault>> {
    let mut errors = Vec::new();
    let layer = given.iter().filter_map(setting).collect();
    let mut file = if has_file { stand_in() } else { FileSettings::default() };
    file.files.extend(files.iter().filter_map(|table| {
        let place = Place::Given(table.first()?.by.clone());
        Some(OneOf { place, settings: table.iter().filter_map(setting).collect() })
    }));
    let merged = settings::merge(Reads::Proxy, file, [layer], &mut errors);
    let config = load::config(&merged, Files::Elsewhere, &mut errors);
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(ConfigErrors::new(errors).into_iter().flat_map(faults).collect()),
    }
}

fn setting(given: &Given) -> Option<Setting> {
    let key = keys::find(given.key)?;
    Some(Setting::from_text(key, &given.value, Place::Given(given.by.clone())))
}

/// What is required, as a file might have it.
fn stand_in() -> FileSettings {
    let place = || Place::File { path: "pglease.toml".to_owned(), line: 1 };
    let written = |(key, value): &(&str, &str)| Some(Setting::from_text(keys::find(key)?, value, place()));
    let (of_route, others) =
        STAND_INS.iter().filter_map(written).partition(|setting| setting.key.is_of_route());
    let routes = vec![OneOf { place: place(), settings: of_route }];
    FileSettings { settings: others, routes, files: Vec::new() }
}

const STAND_INS: &[(&str, &str)] = &[
    ("vault.address", "https://vault.example.com"),
    ("vault.login.role", "role"),
    ("route.upstream", "postgresql://db.example.com"),
    ("route.vault_path", "database/creds/role"),
];

fn faults(error: ConfigError) -> Vec<Fault> {
    match error {
        ConfigError::Missing { key, .. } => vec![Fault::Missing { key }],
        ConfigError::NoRoute => {
            vec![Fault::Missing { key: "route.upstream" }, Fault::Missing { key: "route.vault_path" }]
        }
        ConfigError::Value { written, problem } => {
            let by = match &written.place {
                Place::Given(by) => by.clone(),
                Place::File { .. } | Place::Variable(_) | Place::Flag(_) | Place::Default => String::new(),
            };
            vec![Fault::Wrong { by, text: format!("{} = {}: {problem}", written.key, written.value) }]
        }
        other @ (ConfigError::UnknownKey { .. }
        | ConfigError::UnknownVariable { .. }
        | ConfigError::VariableNotUtf8 { .. }
        | ConfigError::Syntax { .. }
        | ConfigError::RouteShadowed { .. }) => {
            vec![Fault::Wrong { by: String::new(), text: other.to_string() }]
        }
    }
}

/// The variable that brings a key.
pub(crate) fn variable(key: &str) -> Option<String> {
    keys::find(key).map(keys::Key::variable)
}

/// The key that a variable brings.
pub(crate) fn key_of_variable(variable: &str) -> Option<&'static str> {
    keys::KEYS.iter().find(|key| key.variable() == variable).map(|key| key.name)
}

/// `upstream` with this file of CAs. `None` where it names one itself, or does not parse.
pub(crate) fn with_root_cert(upstream: &str, path: &str) -> Option<String> {
    let pairs = conninfo::parse(upstream).ok()?;
    if pairs.iter().any(|(keyword, value)| keyword == "sslrootcert" && !value.is_empty()) {
        return None;
    }
    let join = match upstream {
        text if !conninfo::is_uri(text) => " ",
        text if text.ends_with(['?', '&']) => "",
        text if text.contains('?') => "&",
        _ => "?",
    };
    Some(format!("{upstream}{join}sslrootcert={path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthConfig, Ca, UpstreamConfig};

    fn given(settings: &[(&'static str, &str)]) -> Vec<Given> {
        let given = |(key, value): &(&'static str, &str)| Given {
            key,
            value: (*value).to_owned(),
            by: format!("by {key}"),
        };
        settings.iter().map(given).collect()
    }

    const MINIMUM: &[(&str, &str)] = &[
        ("vault.address", "https://vault:8200"),
        ("vault.login.role", "web"),
        ("route.upstream", "postgresql://db/app?sslrootcert=/nowhere/ca.crt"),
        ("route.vault_path", "database/creds/db-app"),
    ];

    #[test]
    fn files_are_not_looked_at_and_all_else_is() {
        let files =
            [("vault.ca_file", "/nowhere/ca"), ("listen.auth", "password"), ("listen.auth_file", "/x")];
        let config = judge(&given(&[MINIMUM, &files].concat()), &[], false).unwrap();
        assert_eq!(config.vault.tls.ca, Ca::File("/nowhere/ca".into()));
        assert_eq!(config.listen.auth, AuthConfig::Password { file: "/x".into() });
        assert_eq!(config.routes[0].upstream.ssl_root_cert, Some("/nowhere/ca.crt".into()));

        let wrong = [("route.upstream", "postgresql://u:canary@db"), ("drain.grace", "1m")];
        let faults = judge(&given(&[MINIMUM, &wrong].concat()), &[], false).unwrap_err();
        let texts: Vec<String> = faults.iter().map(|fault| format!("{fault:?}")).collect();
        assert!(
            texts.iter().any(|text| text.contains("by route.upstream") && text.contains("holds a password"))
        );
        assert!(texts.iter().any(|text| text.contains("by drain.grace") && text.contains("longer than")));
        assert!(!texts.concat().contains("canary"), "{texts:?}");
    }

    #[test]
    fn nothing_is_missing_where_a_file_will_be() {
        let missing = ["route.upstream", "route.vault_path", "vault.address", "vault.login.role"];
        let mut faults = judge(&[], &[], false).unwrap_err();
        faults.sort_by_key(|fault| format!("{fault:?}"));
        assert_eq!(faults, missing.map(|key| Fault::Missing { key }));

        let settings = given(&[("listen.max_sessions", "7"), ("route.vault_path", "a/creds/b")]);
        let config = judge(&settings, &[], true).unwrap();
        assert_eq!((config.listen.max_sessions, config.routes[0].vault_path.as_str()), (7, "a/creds/b"));
        assert_eq!(config.routes[0].upstream.database, None);
    }

    #[test]
    fn variables_and_keys_name_each_other() {
        for key in keys::KEYS {
            assert_eq!(variable(key.name).and_then(|variable| key_of_variable(&variable)), Some(key.name));
        }
    }

    #[test]
    fn root_cert_joins_both_forms() {
        for upstream in [
            "postgresql://db",
            "postgresql://db/app",
            "postgresql://db/app?",
            "postgresql://db/app?sslmode=verify-full",
            "host=db dbname=app",
            "host=db sslrootcert=''",
        ] {
            let joined = with_root_cert(upstream, "/etc/ca.crt").unwrap();
            let UpstreamConfig { ssl_root_cert, hosts, .. } = super::super::upstream::parse(&joined).unwrap();
            assert_eq!(
                (ssl_root_cert, hosts[0].name.as_str()),
                (Some("/etc/ca.crt".into()), "db"),
                "{joined}"
            );
        }
        assert_eq!(with_root_cert("host=db sslrootcert=/a", "/b"), None);
        assert_eq!(with_root_cert("host", "/b"), None);
    }
}
