//! Every key by name: the one table that the file, the environment, the flags, their errors and
//! `docs/settings.md` are made from.

pub(crate) use table::KEYS;

mod table;

/// One setting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// As the file spells it, tables first: `listen.max_sessions`. Those of a route begin with `route.`.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: Preset,
    /// One clause for `--help` and the docs.
    pub(crate) about: &'static str,
}

/// The command that reads settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// `pglease proxy`, and those that ask it.
    Proxy,
    /// `pglease injector`.
    Injector,
}

/// What may be written for a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// Path of a file or directory.
    Path,
    /// `http://` or `https://`.
    Url,
    /// Address and port.
    Address,
    /// libpq URI or conninfo string.
    Upstream,
    /// Number and unit.
    Duration,
    /// Bounds included.
    Integer {
        min: u64,
        max: u64,
    },
    /// The same, or the word.
    IntegerOr {
        min: u64,
        max: u64,
        word: &'static str,
    },
    Boolean,
    /// One of a few.
    Word(&'static [&'static str]),
    /// Array in the file, comma separated elsewhere.
    List,
}

/// What holds where nobody wrote anything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Preset {
    /// It must be written.
    Required,
    /// Nothing; in words, what that means.
    Absent(&'static str),
    /// As if this had been written; commas separate the items of a list.
    Value(&'static str),
}

impl Key {
    /// The environment variable: `PGLEASE_LISTEN_MAX_SESSIONS`; a route's key goes without its table.
    pub(crate) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.bare().replace('.', "_").to_uppercase())
    }

    /// The flag without its dashes: `listen-max-sessions`; a route's key goes without its table.
    pub(crate) fn flag(&self) -> String {
        self.bare().replace(['.', '_'], "-")
    }

    pub(crate) fn is_of_route(&self) -> bool {
        self.name.starts_with(ROUTE_PREFIX)
    }

    /// Whether it is one of a `[[file]]`'s, of which there may be several: these have no flag and no variable each.
    pub(crate) fn is_of_file(&self) -> bool {
        self.name.starts_with(FILE_PREFIX)
    }

    /// Whether the command goes by it. What is not is left alone, since a file and a pod's variables may be for both.
    pub(crate) fn is_read_by(&self, command: Reads) -> bool {
        let is_of_both = BOTH_READ.iter().any(|table| self.name.starts_with(table));
        is_of_both || self.name.starts_with(INJECTOR_PREFIX) == (command == Reads::Injector)
    }

    /// Whether another value takes effect while the process runs. Of what else is set the value from the start stays.
    pub(crate) fn may_change(&self) -> bool {
        MAY_CHANGE.iter().any(|beginning| self.name.starts_with(beginning))
    }

    /// The table that the key stands in, and its name there.
    pub(crate) fn table_and_leaf(&self) -> (&'static str, &'static str) {
        self.name.rsplit_once('.').unwrap_or(("", self.name))
    }

    fn bare(&self) -> &'static str {
        self.name.strip_prefix(ROUTE_PREFIX).unwrap_or(self.name)
    }
}

impl Kind {
    /// What the file must hold, in words.
    pub(crate) fn expected(&self) -> &'static str {
        match self {
            Self::Text
            | Self::Path
            | Self::Url
            | Self::Address
            | Self::Upstream
            | Self::Duration
            | Self::Word(_) => "a string",
            Self::Integer { .. } => "an integer",
            Self::IntegerOr { .. } => "an integer or a string",
            Self::Boolean => "a boolean",
            Self::List => "an array of strings",
        }
    }

    /// A value of this kind, as the file would have it.
    pub(crate) fn example(&self) -> &'static str {
        match self {
            Self::Text | Self::Word(_) => "\"text\"",
            Self::Path => "\"/path/to/file\"",
            Self::Url => "\"https://vault.vault.svc:8200\"",
            Self::Address => "\"127.0.0.1:9632\"",
            Self::Upstream => "\"postgresql://db.example.com:5432/app\"",
            Self::Duration => "\"30s\"",
            Self::Integer { .. } => "1000",
            Self::IntegerOr { .. } => "1",
            Self::Boolean => "true",
            Self::List => "[\"one\", \"two\"]",
        }
    }
}

/// The key of that name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether the file may have a table of that name. Arrays of tables, and what is in them, are not among them.
pub(crate) fn is_table(name: &str) -> bool {
    TABLES.contains(&name) && ![ROUTE_TABLE, FILE_TABLE, ON_CHANGE_TABLE].contains(&name)
}

/// The tables that stand in the table `name`; the file itself is `""`.
pub(crate) fn tables_of(name: &str) -> impl Iterator<Item = &'static str> {
    TABLES.iter().copied().filter(move |table| table.rsplit_once('.').map_or("", |(outer, _)| outer) == name)
}

/// The known key, or table, that somebody who wrote `name` may have meant.
pub(crate) fn nearest_key(name: &str) -> Option<&'static str> {
    // Of the two `vault_path`s that of a route is meant, where it does not say.
    let of_others = |key: &&Key| !key.is_of_file() || name.starts_with(FILE_TABLE);
    let names = KEYS.iter().filter(of_others).map(|key| key.name);
    nearest(name, names.chain(TABLES.iter().copied()))
}

/// The candidate most like `name`, if one is like it at all: a slip of the keys away, a part of it, or the same word
/// in another table.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (similarity(name, candidate), candidate))
        .filter(|(score, _)| *score >= LIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

fn similarity(name: &str, candidate: &str) -> f64 {
    let distance = strsim::normalized_damerau_levenshtein(name, candidate);
    let is_part = ends_in(name, candidate) || ends_in(candidate, name) || begins_with(candidate, name);
    if is_part || leaf(name) == leaf(candidate) { LIKE + (1.0 - LIKE) * distance } else { distance }
}

/// Whether `name` is more words and then `end`.
fn ends_in(name: &str, end: &str) -> bool {
    !end.is_empty() && name.strip_suffix(end).is_some_and(|words| words.ends_with(['.', '_']))
}

/// Whether `name` is `beginning` and then more words.
fn begins_with(name: &str, beginning: &str) -> bool {
    !beginning.is_empty() && name.strip_prefix(beginning).is_some_and(|words| words.starts_with(['.', '_']))
}

fn leaf(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, leaf)| leaf)
}

/// Similarity from which on a name is worth suggesting; 1 is the same name.
const LIKE: f64 = 0.7;

/// What our variables begin with.
pub(crate) const VARIABLE_PREFIX: &str = "PGLEASE_";
pub(crate) const ROUTE_TABLE: &str = "route";
pub(crate) const FILE_TABLE: &str = "file";
/// Stands in a `[[file]]`.
pub(crate) const ON_CHANGE_TABLE: &str = "file.on_change";
const ROUTE_PREFIX: &str = "route.";
const FILE_PREFIX: &str = "file.";
const INJECTOR_PREFIX: &str = "injector.";
/// Beginnings of the keys that both commands read.
const BOTH_READ: &[&str] = &["http.", "log."];
/// Beginnings of the keys that a reload brings into effect. The others are what is bound, who is asked for
/// credentials, and what the machine is: to change them under what is open would end it.
const MAY_CHANGE: &[&str] = &[
    "listen.auth_file",
    "listen.peer_uids",
    "listen.tls_",
    "listen.max_sessions",
    "listen.connect_wait",
    ROUTE_PREFIX,
    "drain.accept_for",
    "drain.grace",
    "drain.deadline",
    "admin.control",
    "log.level",
];
const TABLES: &[&str] = &[
    "vault",
    "vault.login",
    "listen",
    ROUTE_TABLE,
    FILE_TABLE,
    ON_CHANGE_TABLE,
    "drain",
    "http",
    "admin",
    "log",
    "pod",
    "injector",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_keys_share_a_name_a_flag_or_a_variable() {
        let count = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>().len();

        assert_eq!(count(KEYS.iter().map(|key| key.name.to_owned()).collect()), KEYS.len());
        assert_eq!(count(KEYS.iter().map(Key::flag).collect()), KEYS.len());
        assert_eq!(count(KEYS.iter().map(Key::variable).collect()), KEYS.len());
    }

    #[test]
    fn flags_and_variables_follow_the_name() {
        let names = |name| find(name).map(|key| (key.flag(), key.variable()));
        let both = |flag: &str, variable: &str| Some((flag.to_owned(), variable.to_owned()));

        assert_eq!(names("listen.max_sessions"), both("listen-max-sessions", "PGLEASE_LISTEN_MAX_SESSIONS"));
        assert_eq!(names("vault.login.role"), both("vault-login-role", "PGLEASE_VAULT_LOGIN_ROLE"));
        assert_eq!(names("route.upstream"), both("upstream", "PGLEASE_UPSTREAM"));
        assert_eq!(names("route.at_lease_end"), both("at-lease-end", "PGLEASE_AT_LEASE_END"));
    }

    #[test]
    fn every_key_stands_in_a_known_table() {
        for key in KEYS {
            assert!(TABLES.contains(&key.table_and_leaf().0), "{}", key.name);
        }
    }

    #[test]
    fn slips_find_what_was_meant_and_nonsense_finds_nothing() {
        for (written, meant) in [
            ("listen.max_sesions", Some("listen.max_sessions")),
            ("vault.adress", Some("vault.address")),
            ("vault.addr", Some("vault.address")),
            ("vault.role", Some("vault.login.role")),
            ("vault_path", Some("route.vault_path")),
            ("listen.grace", Some("drain.grace")),
            ("http.adress", Some("http.address")),
            ("htp.address", Some("http.address")),
            ("routes", Some("route")),
            ("files", Some("file")),
            ("file.vault_role", Some("file.vault_path")),
            ("file.on_change.comand", Some("file.on_change.command")),
            ("vualt", Some("vault")),
            ("listen.foo", None),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest_key(written), meant, "{written}");
        }
    }
}
