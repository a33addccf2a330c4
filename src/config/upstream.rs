//! What a connection string means: libpq's keywords, as far as a route has a use for them.
//!
//! PostgreSQL manual, "Parameter Key Words".

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::conninfo::{self, Pairs, SyntaxError};
use super::error::{MASK, did_you_mean, quoted};
use super::keys;
use super::keywords::{KEYWORDS, Keyword, Use};
use super::{ChannelBinding, SslMode, UpstreamConfig};

/// What is wrong with an `upstream`, and what to do about it. Quotes no value that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("holds a {keyword}; remove it, as pglease logs in with what it leases")]
    Secret { keyword: &'static str },
    #[error("{}: unknown keyword; {}", quoted(keyword), did_you_mean(*nearest))]
    Unknown { keyword: String, nearest: Option<&'static str> },
    #[error("{keyword}: not built yet; leave it out")]
    NotBuilt { keyword: &'static str },
    #[error("{keyword}: the client's own goes on unchanged; leave it out")]
    Clients { keyword: &'static str },
    #[error("{keyword}: has no use here; leave it out")]
    Unused { keyword: &'static str },
    #[error("names no host; write it like postgresql://db.example.com:5432/app")]
    NoHost,
    #[error("names several hosts, which is not built yet; name one")]
    SeveralHosts,
    #[error("names a Unix socket as host, which is not built yet; name a host or an IP address")]
    UnixSocket,
    #[error("has a host that is neither a name nor an IP address; write it like db.example.com")]
    Host,
    #[error("has a port that is not a number from 1 to 65535; write it like 5432")]
    Port,
    #[error("has a dbname with a control character; remove it")]
    Database,
    #[error("sslmode={mode} promises nothing; use verify-full, or disable to do without TLS knowingly")]
    WeakSslMode { mode: &'static str },
    #[error("sslmode=verify-ca: not built yet; use verify-full")]
    VerifyCa,
    #[error("{keyword}: no such choice; use {choices}")]
    Choice { keyword: &'static str, choices: &'static str },
    #[error("connect_timeout is not a number of seconds up to ten years; write it like connect_timeout=10")]
    ConnectTimeout,
    #[error(
        "sslrootcert with sslmode={mode}, which verifies no certificate; use sslmode=verify-full, or remove it"
    )]
    RootCertUnused { mode: &'static str },
    #[error(
        "channel_binding=require with sslmode=disable, without which there is nothing to bind to; change one"
    )]
    BindingWithoutTls,
}

/// The server that `text` names, or all that is wrong with it.
pub(crate) fn parse(text: &str) -> Result<UpstreamConfig, Vec<UpstreamError>> {
    let pairs = conninfo::parse(text).map_err(|error| vec![error.into()])?;
    // First and alone: what follows an unquoted password is pieces of it.
    let secrets = secrets(&pairs);
    if !secrets.is_empty() {
        return Err(secrets);
    }

    // As in libpq, the last of the same keyword counts, and an empty value is none.
    let values: BTreeMap<&str, &str> =
        pairs.iter().map(|(keyword, value)| (keyword.as_str(), value.as_str())).collect();
    let mut meaning = Meaning { values, errors: Vec::new() };
    meaning.refuse();
    let config = meaning.config();
    if meaning.errors.is_empty() { Ok(config) } else { Err(meaning.errors) }
}

/// `text` without what may be a secret.
pub(crate) fn masked(text: &str) -> String {
    if conninfo::is_uri(text) {
        return masked_uri(text);
    }
    let Ok(pairs) = conninfo::parse(text) else { return MASK.to_owned() };
    // Behind a secret there may be pieces of it.
    let open = pairs.iter().take_while(|(keyword, _)| is_open(keyword)).count();
    let Some((secret, _)) = pairs.get(open) else { return text.to_owned() };
    let shown = pairs.iter().take(open).map(|(keyword, value)| format!("{keyword}={value}"));
    let shown: Vec<String> = shown.chain([format!("{secret}={MASK}")]).collect();
    shown.join(" ")
}

fn masked_uri(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return MASK.to_owned() };
    let (userinfo, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => (format!("{MASK}@"), rest),
        None => (String::new(), rest),
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let pairs = conninfo::parse(&format!("{scheme}://{address}"));
    // A "port" of letters is the password of somebody who forgot the host.
    let is_address = pairs.is_ok_and(|pairs| {
        pairs
            .iter()
            .all(|(keyword, port)| keyword != "port" || port.chars().all(|c| c.is_ascii_digit() || c == ','))
    });
    let address = if is_address { address } else { MASK };
    let parameters: Vec<String> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((MASK, "")))
        .map(|(keyword, value)| masked_pair(keyword, value))
        .collect();
    let query = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
    format!("{scheme}://{userinfo}{address}{query}")
}

fn masked_pair(keyword: &str, value: &str) -> String {
    format!("{keyword}={}", if is_open(keyword) { value } else { MASK })
}

/// Whether values of `keyword` may be shown: it is known, and no secret.
fn is_open(keyword: &str) -> bool {
    KEYWORDS.iter().any(|known| known.name == keyword && known.meaning != Use::Secret)
}

fn secrets(pairs: &Pairs) -> Vec<UpstreamError> {
    let written = |known: &&Keyword| pairs.iter().any(|(keyword, _)| keyword == known.name);
    KEYWORDS
        .iter()
        .filter(|known| known.meaning == Use::Secret)
        .filter(written)
        .map(|known| UpstreamError::Secret { keyword: known.name })
        .collect()
}

/// Values by keyword on their way to a configuration, and what was found wrong with them.
struct Meaning<'a> {
    values: BTreeMap<&'a str, &'a str>,
    errors: Vec<UpstreamError>,
}

impl<'a> Meaning<'a> {
    /// Keywords that do nothing here.
    fn refuse(&mut self) {
        for (&keyword, &value) in &self.values {
            let error = match KEYWORDS.iter().find(|known| known.name == keyword) {
                None => {
                    let nearest = keys::nearest(keyword, KEYWORDS.iter().map(|known| known.name));
                    UpstreamError::Unknown { keyword: keyword.to_owned(), nearest }
                }
                Some(known) => match known.meaning {
                    Use::Built => continue,
                    _ if value.is_empty() || known.default == Some(value) => continue,
                    Use::Later => UpstreamError::NotBuilt { keyword: known.name },
                    Use::Client => UpstreamError::Clients { keyword: known.name },
                    Use::None => UpstreamError::Unused { keyword: known.name },
                    Use::Secret => UpstreamError::Secret { keyword: known.name },
                },
            };
            self.errors.push(error);
        }
    }

    fn config(&mut self) -> UpstreamConfig {
        let host = self.take(host).unwrap_or_default();
        let port = self.take(port).unwrap_or_default();
        let database = self.take(database).unwrap_or_default();
        let ssl_mode = self.take(ssl_mode);
        let channel_binding = self.take(channel_binding);
        let connect_timeout = self.take(connect_timeout).unwrap_or_default();
        let ssl_root_cert = self.value("sslrootcert");

        if let (Some(mode), Some(binding)) = (ssl_mode, channel_binding) {
            self.check_tls(mode, ssl_root_cert, binding);
        }
        UpstreamConfig {
            host,
            port,
            database,
            ssl_mode: ssl_mode.unwrap_or_default(),
            ssl_root_cert: ssl_root_cert.filter(|path| *path != SYSTEM_ROOTS).map(PathBuf::from),
            channel_binding: channel_binding.unwrap_or_default(),
            connect_timeout,
        }
    }

    fn check_tls(&mut self, mode: SslMode, root_cert: Option<&str>, binding: ChannelBinding) {
        let mode_name = match mode {
            SslMode::VerifyFull => return,
            SslMode::Disable => "disable",
            SslMode::Require => "require",
        };
        if root_cert.is_some() {
            self.errors.push(UpstreamError::RootCertUnused { mode: mode_name });
        }
        if mode == SslMode::Disable && binding == ChannelBinding::Require {
            self.errors.push(UpstreamError::BindingWithoutTls);
        }
    }

    fn take<T>(&mut self, read: impl FnOnce(&Self) -> Result<T, UpstreamError>) -> Option<T> {
        read(self).map_err(|error| self.errors.push(error)).ok()
    }

    fn value(&self, keyword: &str) -> Option<&'a str> {
        self.values.get(keyword).copied().filter(|value| !value.is_empty())
    }
}

fn host(meaning: &Meaning<'_>) -> Result<String, UpstreamError> {
    let host = meaning.value("host").ok_or(UpstreamError::NoHost)?;
    match host {
        _ if host.contains(',') => Err(UpstreamError::SeveralHosts),
        _ if host.starts_with(['/', '@']) => Err(UpstreamError::UnixSocket),
        _ if host.chars().all(is_of_host) => Ok(host.to_owned()),
        _ => Err(UpstreamError::Host),
    }
}

/// Of a name (underscores occur in Docker's), an IP address, or an IPv6 address with a zone.
fn is_of_host(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '.' | '-' | '_' | ':' | '%')
}

fn port(meaning: &Meaning<'_>) -> Result<u16, UpstreamError> {
    match meaning.value("port") {
        None => Ok(DEFAULT_PORT),
        // One port for each of several hosts, of which `host` speaks.
        Some(ports) if ports.contains(',') => Ok(DEFAULT_PORT),
        Some(port) => port.trim().parse().ok().filter(|port| *port != 0).ok_or(UpstreamError::Port),
    }
}

fn database(meaning: &Meaning<'_>) -> Result<Option<String>, UpstreamError> {
    match meaning.value("dbname") {
        Some(name) if name.chars().any(char::is_control) => Err(UpstreamError::Database),
        name => Ok(name.map(str::to_owned)),
    }
}

fn ssl_mode(meaning: &Meaning<'_>) -> Result<SslMode, UpstreamError> {
    match meaning.value("sslmode") {
        None => Ok(SslMode::default()),
        Some("disable") => Ok(SslMode::Disable),
        Some("require") => Ok(SslMode::Require),
        Some("verify-full") => Ok(SslMode::VerifyFull),
        Some("verify-ca") => Err(UpstreamError::VerifyCa),
        Some("prefer") => Err(UpstreamError::WeakSslMode { mode: "prefer" }),
        Some("allow") => Err(UpstreamError::WeakSslMode { mode: "allow" }),
        Some(_) => {
            Err(UpstreamError::Choice { keyword: "sslmode", choices: "disable, require or verify-full" })
        }
    }
}

fn channel_binding(meaning: &Meaning<'_>) -> Result<ChannelBinding, UpstreamError> {
    match meaning.value("channel_binding") {
        None => Ok(ChannelBinding::default()),
        Some("disable") => Ok(ChannelBinding::Disable),
        Some("prefer") => Ok(ChannelBinding::Prefer),
        Some("require") => Ok(ChannelBinding::Require),
        Some(_) => {
            Err(UpstreamError::Choice { keyword: "channel_binding", choices: "disable, prefer or require" })
        }
    }
}

/// Whole seconds; none, zero and less are no limit, and 1 is taken as 2, as in libpq.
fn connect_timeout(meaning: &Meaning<'_>) -> Result<Option<Duration>, UpstreamError> {
    let Some(text) = meaning.value("connect_timeout") else { return Ok(None) };
    let seconds: i64 = text.trim().parse().map_err(|_| UpstreamError::ConnectTimeout)?;
    match u64::try_from(seconds) {
        Err(_) | Ok(0) => Ok(None),
        Ok(seconds) if seconds > MAX_SECONDS => Err(UpstreamError::ConnectTimeout),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds.max(MIN_CONNECT_SECONDS)))),
    }
}

const DEFAULT_PORT: u16 = 5432;
/// `sslrootcert` of libpq 16 and later: the system's CAs.
const SYSTEM_ROOTS: &str = "system";
const MIN_CONNECT_SECONDS: u64 = 2;
/// Ten years.
const MAX_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(host: &str, port: u16) -> UpstreamConfig {
        UpstreamConfig {
            host: host.to_owned(),
            port,
            database: None,
            ssl_mode: SslMode::VerifyFull,
            ssl_root_cert: None,
            channel_binding: ChannelBinding::Prefer,
            connect_timeout: None,
        }
    }

    #[test]
    fn both_forms_name_the_same_server() {
        let full = UpstreamConfig {
            database: Some("wizard".to_owned()),
            ssl_root_cert: Some(PathBuf::from("/etc/pg/ca.pem")),
            channel_binding: ChannelBinding::Require,
            connect_timeout: Some(Duration::from_secs(5)),
            ..at("db", 5433)
        };
        let plain = UpstreamConfig { ssl_mode: SslMode::Disable, ..at("db", 5432) };

        for (text, expected) in [
            (
                "postgresql://db:5433/wizard?sslmode=verify-full&sslrootcert=/etc/pg/ca.pem&channel_binding=require\
                 &connect_timeout=5",
                full.clone(),
            ),
            (
                "host=db port=5433 dbname=wizard sslrootcert=/etc/pg/ca.pem channel_binding=require connect_timeout=5",
                full,
            ),
            ("postgresql://db?sslmode=disable", plain.clone()),
            ("host=db sslmode=disable sslrootcert='' port='' gssencmode=disable", plain),
            ("postgresql://[::1]:1?sslrootcert=system", at("::1", 1)),
            ("host=a host=b", at("b", 5432)),
            ("postgresql://a?host=b&port=6", at("b", 6)),
            ("host=db target_session_attrs=any require_auth=scram-sha-256,none hostaddr=''", at("db", 5432)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn connect_timeout_counts_as_in_libpq() {
        let timeout = |seconds: &str| parse(&format!("host=db connect_timeout={seconds}"));
        let seconds = |seconds| Ok(Some(Duration::from_secs(seconds)));

        for (text, expected) in [
            ("0", Ok(None)),
            ("-1", Ok(None)),
            ("''", Ok(None)),
            ("1", seconds(2)),
            ("2", seconds(2)),
            ("' 10 '", seconds(10)),
            ("1.5", Err(vec![UpstreamError::ConnectTimeout])),
            ("10s", Err(vec![UpstreamError::ConnectTimeout])),
            ("999999999999", Err(vec![UpstreamError::ConnectTimeout])),
        ] {
            assert_eq!(timeout(text).map(|upstream| upstream.connect_timeout), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (text, expected) in [
            ("", "names no host; write it like postgresql://db.example.com:5432/app"),
            ("postgresql:///app", "names no host; write it like postgresql://db.example.com:5432/app"),
            ("postgresql://a:1,b:2/app", "names several hosts, which is not built yet; name one"),
            (
                "host=/run/postgresql",
                "names a Unix socket as host, which is not built yet; name a host or an IP address",
            ),
            (
                "host='a b'",
                "has a host that is neither a name nor an IP address; write it like db.example.com",
            ),
            ("host=db port=0", "has a port that is not a number from 1 to 65535; write it like 5432"),
            ("host=db port=65536", "has a port that is not a number from 1 to 65535; write it like 5432"),
            (
                "host=db sslmode=prefer",
                "sslmode=prefer promises nothing; use verify-full, or disable to do without TLS knowingly",
            ),
            (
                "host=db sslmode=allow",
                "sslmode=allow promises nothing; use verify-full, or disable to do without TLS knowingly",
            ),
            ("host=db sslmode=verify-ca", "sslmode=verify-ca: not built yet; use verify-full"),
            ("host=db sslmode=on", "sslmode: no such choice; use disable, require or verify-full"),
            ("host=db channel_binding=on", "channel_binding: no such choice; use disable, prefer or require"),
            (
                "host=db sslmode=require sslrootcert=system",
                "sslrootcert with sslmode=require, which verifies no certificate; use sslmode=verify-full, or remove \
                 it",
            ),
            (
                "host=db sslmode=disable channel_binding=require",
                "channel_binding=require with sslmode=disable, without which there is nothing to bind to; change one",
            ),
            ("host=db target_session_attrs=primary", "target_session_attrs: not built yet; leave it out"),
            ("host=db hostaddr=10.0.0.1", "hostaddr: not built yet; leave it out"),
            (
                "host=db application_name=x",
                "application_name: the client's own goes on unchanged; leave it out",
            ),
            ("host=db krbsrvname=x", "krbsrvname: has no use here; leave it out"),
            ("host=db passfile=/x", "holds a passfile; remove it, as pglease logs in with what it leases"),
            ("host=db hots=x", "\"hots\": unknown keyword; did you mean host?"),
            ("host=db zebra=x", "\"zebra\": unknown keyword; remove it"),
            ("jdbc:postgresql://db/app", "a URI of another kind; begin it with postgresql:// or postgres://"),
            (
                "host=db wizard",
                "has a word without \"=\" at character 9; write keyword=value, and values with spaces in '…'",
            ),
        ] {
            let errors = parse(text).unwrap_err();
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(errors, [expected], "{text}");
        }
    }

    #[test]
    fn masked_keeps_what_is_no_secret() {
        for (text, expected) in [
            ("postgresql://db:5432/app?sslmode=require", "postgresql://db:5432/app?sslmode=require"),
            ("postgresql://u:p@db/app", "postgresql://***@db/app"),
            ("postgresql://u:p/app", "postgresql://***"),
            ("postgresql://db?password=p&sslmode=x", "postgresql://db?password=***&sslmode=x"),
            ("host='db' port=x", "host='db' port=x"),
            ("host='db' password=a b=c", "host=db password=***"),
            ("host=db password='a", "***"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", uri in "postgres(ql)?://[a@:/?,%\\[\\]=&1é]*", words in "(host|port|sslmode)=.{0,4} .*") {
            for text in [text, uri, words] {
                let _ = (parse(&text), masked(&text));
            }
        }

        #[test]
        fn no_password_is_shown(password in "canary[a-z0-9/?#@:%&= ']{0,9}") {
            for text in [
                format!("postgresql://app:{password}@db/app"),
                format!("postgresql://db/app?password={password}"),
                format!("host=db password={password}"),
                format!("host=db password='{password}'"),
            ] {
                prop_assert!(!masked(&text).contains("canary"), "{}", masked(&text));
                let errors = parse(&text).map_err(|errors| format!("{errors:?}"));
                prop_assert!(errors.as_ref().is_err_and(|errors| !errors.contains("canary")), "{errors:?}");
            }
        }
    }
}
