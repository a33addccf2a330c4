//! `host`, `hostaddr` and `port`: lists of the same length, but that one port may do for all.
//!
//! PostgreSQL manual, "Specifying Multiple Hosts".

use std::net::IpAddr;

use super::{Meaning, UpstreamError};
use crate::config::server::{Host, LoadBalanceHosts, Place, TargetSessionAttrs};

/// At least one host where there is nothing wrong.
pub(super) fn read(meaning: &Meaning<'_>) -> Result<Vec<Host>, Vec<UpstreamError>> {
    let names = list(meaning.value("host"));
    let addresses = list(meaning.value("hostaddr"));
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err(vec![UpstreamError::NoHost]);
    }
    let mut errors = Vec::new();
    if names.len().min(addresses.len()) != 0 && names.len() != addresses.len() {
        errors.push(UpstreamError::HostAddrCount { hosts: names.len(), addresses: addresses.len() });
    }
    let ports = ports(meaning, count).map_err(|error| errors.push(error)).unwrap_or_default();
    let mut hosts = Vec::with_capacity(count);
    for entry in 0..count {
        let at = |list: &[&'_ str]| list.get(entry).copied().unwrap_or_default().to_owned();
        let port = ports.get(entry).copied().unwrap_or(DEFAULT_PORT);
        match host(at(&names), at(&addresses), port) {
            Ok(host) => hosts.push(host),
            Err(UpstreamError::NoHost) if count > 1 => {
                errors.push(UpstreamError::EmptyHost { entry: entry + 1 });
            }
            Err(error) if errors.contains(&error) => {}
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(hosts) } else { Err(errors) }
}

/// Whether an address stands without the name that a certificate could be for.
pub(super) fn has_nameless(meaning: &Meaning<'_>) -> bool {
    let names = list(meaning.value("host"));
    let name = |entry: usize| names.get(entry).copied().unwrap_or_default();
    let addresses = list(meaning.value("hostaddr"));
    addresses.iter().enumerate().any(|(entry, address)| !address.is_empty() && is_nameless(name(entry)))
}

/// Whether it is nothing that a certificate could be for: nothing at all, or a Unix socket.
fn is_nameless(name: &str) -> bool {
    name.is_empty() || name.starts_with(['/', '@'])
}

fn list(value: Option<&str>) -> Vec<&str> {
    value.map(|value| value.split(',').collect()).unwrap_or_default()
}

fn host(name: String, address: String, port: u16) -> Result<Host, UpstreamError> {
    let network = |name, address| Ok(Host { name, place: Place::Network(address), port });
    match (name.as_str(), address.as_str()) {
        ("", "") => Err(UpstreamError::NoHost),
        // libpq prefers the address, too.
        (_, "") if name.starts_with('/') => socket(name, port),
        (_, "") if name.starts_with('@') => Err(UpstreamError::AbstractSocket),
        _ if !address.is_empty() && !is_address(&address) => Err(UpstreamError::HostAddr),
        // As in libpq, where a socket's directory is then no more than a name, and one of no certificate.
        _ if !address.is_empty() && is_nameless(&name) => network(address.clone(), address),
        _ if !name.chars().all(is_of_host) => Err(UpstreamError::Host),
        (_, "") => network(name.clone(), name),
        _ => network(name, address),
    }
}

fn socket(dir: String, port: u16) -> Result<Host, UpstreamError> {
    let path = format!("{}/.s.PGSQL.{port}", dir.trim_end_matches('/'));
    if path.len() > MAX_SOCKET_PATH {
        return Err(UpstreamError::SocketPath { max: MAX_SOCKET_PATH });
    }
    Ok(Host { name: dir, place: Place::Socket(path.into()), port })
}

pub(super) fn target_session_attrs(meaning: &Meaning<'_>) -> Result<TargetSessionAttrs, UpstreamError> {
    match meaning.value("target_session_attrs") {
        None => Ok(TargetSessionAttrs::default()),
        Some("any") => Ok(TargetSessionAttrs::Any),
        Some("read-write") => Ok(TargetSessionAttrs::ReadWrite),
        Some("read-only") => Ok(TargetSessionAttrs::ReadOnly),
        Some("primary") => Ok(TargetSessionAttrs::Primary),
        Some("standby") => Ok(TargetSessionAttrs::Standby),
        Some("prefer-standby") => Ok(TargetSessionAttrs::PreferStandby),
        Some(_) => Err(UpstreamError::Choice {
            keyword: "target_session_attrs",
            choices: "any, read-write, read-only, primary, standby or prefer-standby",
        }),
    }
}

pub(super) fn load_balance_hosts(meaning: &Meaning<'_>) -> Result<LoadBalanceHosts, UpstreamError> {
    match meaning.value("load_balance_hosts") {
        None => Ok(LoadBalanceHosts::default()),
        Some("disable") => Ok(LoadBalanceHosts::Disable),
        Some("random") => Ok(LoadBalanceHosts::Random),
        Some(_) => Err(UpstreamError::Choice { keyword: "load_balance_hosts", choices: "disable or random" }),
    }
}

/// Of a name (underscores occur in Docker's), an IP address, or an IPv6 address with a zone.
fn is_of_host(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '.' | '-' | '_' | ':' | '%')
}

/// Of any IP version, IPv6 with a zone or without.
fn is_address(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, ""));
    zone.chars().all(is_of_host)
        && address.parse().is_ok_and(|address: IpAddr| zone.is_empty() || address.is_ipv6())
}

fn ports(meaning: &Meaning<'_>, hosts: usize) -> Result<Vec<u16>, UpstreamError> {
    let given = list(meaning.value("port"));
    let ports = given.iter().map(|port| read_port(port)).collect::<Result<Vec<_>, _>>()?;
    match ports[..] {
        [] => Ok(vec![DEFAULT_PORT; hosts]),
        [port] => Ok(vec![port; hosts]),
        _ if ports.len() == hosts => Ok(ports),
        _ => Err(UpstreamError::PortCount { ports: ports.len(), hosts }),
    }
}

/// An empty entry is the default.
fn read_port(text: &str) -> Result<u16, UpstreamError> {
    match text.trim() {
        "" => Ok(DEFAULT_PORT),
        port => port.parse().ok().filter(|port| *port != 0).ok_or(UpstreamError::Port),
    }
}

const DEFAULT_PORT: u16 = 5432;
/// `sun_path` less its `\0`, in bytes.
const MAX_SOCKET_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::config::UpstreamConfig;

    fn hosts(text: &str) -> Result<Vec<Host>, Vec<String>> {
        match parse(text) {
            Ok(UpstreamConfig { hosts, .. }) => Ok(hosts),
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
        }
    }

    fn with_address(name: &str, address: &str, port: u16) -> Host {
        Host { place: Place::Network(address.to_owned()), ..Host::at(name, port) }
    }

    #[test]
    fn hosts_addresses_and_ports_go_together_as_in_libpq() {
        for (text, expected) in [
            ("postgresql://a:5432,b:5433/db", vec![Host::at("a", 5432), Host::at("b", 5433)]),
            (
                "postgresql://a,[::1]:1,[fe80::1%25eth0]/db",
                vec![Host::at("a", 5432), Host::at("::1", 1), Host::at("fe80::1%eth0", 5432)],
            ),
            ("host=a,b port=6000", vec![Host::at("a", 6000), Host::at("b", 6000)]),
            ("host=a,b,c port=1,,3", vec![Host::at("a", 1), Host::at("b", 5432), Host::at("c", 3)]),
            ("host=a,b port=''", vec![Host::at("a", 5432), Host::at("b", 5432)]),
            ("host=a,a", vec![Host::at("a", 5432), Host::at("a", 5432)]),
            (
                "host=a,b hostaddr=10.0.0.1,::1 port=1",
                vec![with_address("a", "10.0.0.1", 1), with_address("b", "::1", 1)],
            ),
            ("host=a,b hostaddr=,10.0.0.2", vec![Host::at("a", 5432), with_address("b", "10.0.0.2", 5432)]),
            ("host=/run/pg,b port=1", vec![Host::socket("/run/pg", 1), Host::at("b", 1)]),
            ("postgresql://%2Frun%2Fpg/db", vec![Host::socket("/run/pg", 5432)]),
            ("postgresql:///db?host=/run/pg", vec![Host::socket("/run/pg", 5432)]),
            ("hostaddr=fe80::1%eth0 sslmode=disable", vec![Host::at("fe80::1%eth0", 5432)]),
            (
                "host=/run/pg,@pg,c hostaddr=10.0.0.1,::1, port=1 sslmode=require",
                vec![Host::at("10.0.0.1", 1), Host::at("::1", 1), Host::at("c", 1)],
            ),
            (
                "host=a, hostaddr=,10.0.0.1 sslmode=require",
                vec![Host::at("a", 5432), Host::at("10.0.0.1", 5432)],
            ),
        ] {
            assert_eq!(hosts(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn every_choice_is_taken_by_its_word() {
        for wanted in [
            TargetSessionAttrs::Any,
            TargetSessionAttrs::ReadWrite,
            TargetSessionAttrs::ReadOnly,
            TargetSessionAttrs::Primary,
            TargetSessionAttrs::Standby,
            TargetSessionAttrs::PreferStandby,
        ] {
            let config = parse(&format!("host=db target_session_attrs={}", wanted.as_str())).unwrap();
            assert_eq!(config.target_session_attrs, wanted);
        }
        for (word, balance) in [("disable", LoadBalanceHosts::Disable), ("random", LoadBalanceHosts::Random)]
        {
            let config = parse(&format!("host=db load_balance_hosts={word}")).unwrap();
            assert_eq!(config.load_balance_hosts, balance);
        }
        assert_eq!(parse("host=db"), Ok(UpstreamConfig::at("db", 5432)));
    }

    #[test]
    fn lists_that_do_not_fit_name_the_keyword() {
        for (text, expected) in [
            ("host=a,,c", "host: entry 2 is empty; name each host"),
            ("postgresql://a,/db", "host: entry 2 is empty; name each host"),
            ("host=a,b,c port=1,2", "port has 2 entries for 3 hosts; give one for all, or one for each"),
            ("host=a port=1,2", "port has 2 entries for 1 host; give one for all, or one for each"),
            ("host=a,b hostaddr=10.0.0.1", "host and hostaddr have 2 and 1 entries; give as many of each"),
            ("host=a hostaddr=b", "has a hostaddr that is not an IP address; write it like 10.0.0.1"),
            (
                "host=a hostaddr=10.0.0.1%x",
                "has a hostaddr that is not an IP address; write it like 10.0.0.1",
            ),
            (
                "hostaddr=10.0.0.1",
                "hostaddr without a name in host with sslmode=verify-full, which verifies the name; add it",
            ),
            (
                "host=a, hostaddr=,10.0.0.1",
                "hostaddr without a name in host with sslmode=verify-full, which verifies the name; add it",
            ),
            (
                "host=/run/pg hostaddr=10.0.0.1",
                "hostaddr without a name in host with sslmode=verify-full, which verifies the name; add it",
            ),
            (
                "host=@pg",
                "names an abstract Unix socket, which anybody can make; name a directory, host or IP address",
            ),
            (
                "host=/run/pg channel_binding=require",
                "channel_binding=require with a Unix socket as host, which has no TLS to bind to; change one",
            ),
            ("host=a,b port=1,x", "has a port that is not a number from 1 to 65535; write it like 5432"),
        ] {
            assert_eq!(hosts(text), Err(vec![expected.to_owned()]), "{text}");
        }
    }
}
