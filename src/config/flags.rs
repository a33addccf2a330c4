//! Every flag that sets something, for clap, and what was given.

use clap::{Arg, ArgMatches};

use super::env;
use super::error::Place;
use super::keys::{KEYS, Key, Kind, Preset, Reads};
use super::settings::{Layer, Setting};

/// The flags of `pglease proxy`.
pub(crate) fn flags() -> Vec<Arg> {
    flags_of(Reads::Proxy)
}

/// The flags of `pglease injector`.
pub(crate) fn injector_flags() -> Vec<Arg> {
    flags_of(Reads::Injector)
}

fn flags_of(command: Reads) -> Vec<Arg> {
    let file = Arg::new(CONFIG_FILE)
        .long("config-file")
        .value_name("PATH")
        .help(format!("TOML file with settings [env: {}]", env::CONFIG_FILE));
    let keys = KEYS.iter().filter(|key| key.is_read_by(command) && !key.is_of_file());
    [file].into_iter().chain(keys.map(flag)).collect()
}

/// Those of [`flags`] that say where a running pglease is asked.
pub(crate) fn admin_flags() -> Vec<Arg> {
    flags_for(&["admin.address"])
}

/// Those that say where it answers its probes, and what it says of itself.
pub(crate) fn wait_flags() -> Vec<Arg> {
    flags_for(&["http.address", "admin.address"])
}

fn flags_for(keys: &[&str]) -> Vec<Arg> {
    let is_wanted = |arg: &Arg| arg.get_id() == CONFIG_FILE || keys.contains(&arg.get_id().as_str());
    flags().into_iter().filter(is_wanted).collect()
}

fn flag(key: &'static Key) -> Arg {
    let default = match key.default {
        Preset::Value(text) | Preset::Absent(text) => format!(" [default: {text}]"),
        Preset::Required => String::new(),
    };
    let arg = Arg::new(key.name)
        .long(key.flag())
        .value_name(value_name(&key.kind))
        .help(format!("{}{default} [env: {}]", key.about, key.variable()))
        .help_heading(heading(key));
    if key.kind == Kind::Boolean {
        // It may stand alone.
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        // `-5s` is a value, if a wrong one, and no flag.
        arg.allow_hyphen_values(key.kind == Kind::Duration)
    }
}

fn heading(key: &Key) -> &'static str {
    match key.table_and_leaf().0 {
        "vault" | "vault.login" => "Vault",
        "listen" => "Listen",
        "route" => "Route",
        "drain" => "Drain",
        "injector" => "Injector",
        _ => "Observe",
    }
}

fn value_name(kind: &Kind) -> String {
    let name = match kind {
        Kind::Word(known) => return known.join("|"),
        Kind::IntegerOr { word, .. } => return format!("NUMBER|{word}"),
        Kind::Text => "TEXT",
        Kind::Path => "PATH",
        Kind::Url => "URL",
        Kind::Address => "ADDRESS",
        Kind::Upstream => "URI",
        Kind::Duration => "DURATION",
        Kind::Integer { .. } => "NUMBER",
        Kind::Boolean => "true|false",
        Kind::List => "LIST",
    };
    name.to_owned()
}

/// What was given.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    pub(crate) settings: Layer,
    pub(crate) config_file: Option<String>,
}

/// Takes what is of [`flags`] from `matches`; a command may have left some out.
pub(crate) fn read(matches: &ArgMatches) -> Flags {
    let given = |id: &str| matches.try_get_one::<String>(id).ok().flatten();
    let settings = KEYS
        .iter()
        .filter_map(|key| Some((key, given(key.name)?)))
        .map(|(key, text)| Setting::from_text(key, text, Place::Flag(format!("--{}", key.flag()))))
        .collect();
    Flags { settings, config_file: given(CONFIG_FILE).cloned() }
}

/// Place of the file's name, where it was given here.
pub(crate) const CONFIG_FILE_FLAG: &str = "--config-file";
const CONFIG_FILE: &str = "config_file";
