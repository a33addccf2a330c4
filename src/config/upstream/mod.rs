//! What a connection string means: libpq's keywords, as far as a route has a use for them.
//!
//! PostgreSQL manual, "Parameter Key Words".

mod error;
mod masked;
mod hosts;
mod login;
mod tls;
mod tcp;

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::conninfo::{self, Pairs};
use super::keys;
use super::keywords::{KEYWORDS, Keyword, Use};
use super::{ChannelBinding, Place, SslMode, UpstreamConfig};

pub(crate) use error::UpstreamError;
pub(crate) use masked::masked;

/// The servers that `text` names, or all that is wrong with it.
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
                    Use::Client => UpstreamError::Clients { keyword: known.name },
                    Use::None => UpstreamError::Unused { keyword: known.name },
                    Use::Secret => UpstreamError::Secret { keyword: known.name },
                },
            };
            self.errors.push(error);
        }
    }

    fn config(&mut self) -> UpstreamConfig {
        let hosts = hosts::read(self).map_err(|errors| self.errors.extend(errors)).unwrap_or_default();
        let database = self.take(database).unwrap_or_default();
        let ssl_mode = self.take(tls::ssl_mode);
        let channel_binding = self.take(tls::channel_binding);
        let ssl = tls::options(self).map_err(|errors| self.errors.extend(errors)).unwrap_or_default();
        let require_auth = self.take(login::require_auth);
        let (min_protocol_version, max_protocol_version) = self.take(login::versions).unwrap_or_default();
        let target_session_attrs = self.take(hosts::target_session_attrs).unwrap_or_default();
        let load_balance_hosts = self.take(hosts::load_balance_hosts).unwrap_or_default();
        let connect_timeout = self.take(tcp::connect_timeout).unwrap_or_default();
        let silence = self.take(tcp::silence).unwrap_or_default();
        let ssl_root_cert = self.value("sslrootcert");

        if let (Some(mode), Some(binding)) = (ssl_mode, channel_binding) {
            let contradictions = tls::contradictions(self, mode, binding, &ssl);
            self.errors.extend(contradictions);
            let methods = require_auth.unwrap_or_default();
            self.errors.extend(login::contradictions(mode, binding, methods));
        }
        let has_socket = hosts.iter().any(|host| matches!(host.place, Place::Socket(_)));
        if channel_binding == Some(ChannelBinding::Require) && has_socket {
            self.errors.push(UpstreamError::BindingOnSocket);
        }
        if ssl_mode == Some(SslMode::VerifyFull) && hosts::has_nameless(self) {
            self.errors.push(UpstreamError::Nameless);
        }
        UpstreamConfig {
            hosts,
            database,
            ssl_mode: ssl_mode.unwrap_or_default(),
            ssl_root_cert: ssl_root_cert.filter(|path| *path != tls::SYSTEM_ROOTS).map(PathBuf::from),
            ssl,
            channel_binding: channel_binding.unwrap_or_default(),
            require_auth: require_auth.unwrap_or_default(),
            min_protocol_version,
            max_protocol_version,
            target_session_attrs,
            load_balance_hosts,
            connect_timeout,
            silence,
        }
    }

    fn take<T>(&mut self, read: impl FnOnce(&Self) -> Result<T, UpstreamError>) -> Option<T> {
        read(self).map_err(|error| self.errors.push(error)).ok()
    }

    fn value(&self, keyword: &str) -> Option<&'a str> {
        self.values.get(keyword).copied().filter(|value| !value.is_empty())
    }
}

fn database(meaning: &Meaning<'_>) -> Result<Option<String>, UpstreamError> {
    match meaning.value("dbname") {
        Some(name) if name.chars().any(char::is_control) => Err(UpstreamError::Database),
        name => Ok(name.map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_name_the_same_server() {
        let full = UpstreamConfig {
            database: Some("wizard".to_owned()),
            ssl_root_cert: Some(PathBuf::from("/etc/pg/ca.pem")),
            channel_binding: ChannelBinding::Require,
            connect_timeout: Some(Duration::from_secs(5)),
            ..UpstreamConfig::at("db", 5433)
        };
        let plain = UpstreamConfig::plain("db", 5432);

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
            ("postgresql://[::1]:1?sslrootcert=system", UpstreamConfig::at("::1", 1)),
            ("host=a host=b", UpstreamConfig::at("b", 5432)),
            ("postgresql://a?host=b&port=6", UpstreamConfig::at("b", 6)),
            (
                "host=db target_session_attrs=any require_auth=scram-sha-256,none hostaddr=''",
                UpstreamConfig::at("db", 5432),
            ),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (text, expected) in [
            ("", "names no host; write it like postgresql://db.example.com:5432/app"),
            ("postgresql:///app", "names no host; write it like postgresql://db.example.com:5432/app"),
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
            (
                "host=db target_session_attrs=master",
                "target_session_attrs: no such choice; use any, read-write, read-only, primary, standby or prefer-standby",
            ),
            ("host=db load_balance_hosts=on", "load_balance_hosts: no such choice; use disable or random"),
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
