//! `listen.auth`: how applications prove who they are, and where that is enough.

use std::net::SocketAddr;

use super::error::Problem;
use super::settings::Reader;
use super::{AuthConfig, ListenAddress, ListenConfig, value};

pub(crate) fn read(reader: &mut Reader<'_>) -> Option<AuthConfig> {
    let method = reader.word(METHOD, METHODS)?;
    for (name, of) in KEYS {
        if *of != method
            && reader.is_given(name)
            && let Some(method) = reader.written(METHOD)
        {
            reader.fault(name, Problem::OfAnotherMethod { method });
        }
    }
    match method {
        Method::Trust => Some(AuthConfig::Trust),
        Method::Password => {
            Some(AuthConfig::Password { file: reader.value(AUTH_FILE, value::readable_file)? })
        }
    }
}

/// Whether everybody who can connect is one who may.
pub(crate) fn check_addresses(reader: &mut Reader<'_>, addresses: &[ListenAddress], auth: &AuthConfig) {
    if *auth != AuthConfig::Trust {
        return;
    }
    for address in open(addresses) {
        reader.fault("listen.addresses", Problem::ListenNotLoopback { address: address.to_string() });
    }
}

/// What the settings give up.
pub(crate) fn warnings(listen: &ListenConfig) -> Vec<String> {
    let warning = |address: SocketAddr| {
        format!(
            "listen.addresses has {address}, which is no loopback address, and clients connect without TLS: SCRAM \
             keeps their passwords, but whoever is on the way reads and changes queries and rows"
        )
    };
    open(&listen.addresses).map(warning).collect()
}

/// Those that are reached from other machines.
fn open(addresses: &[ListenAddress]) -> impl Iterator<Item = SocketAddr> {
    addresses.iter().filter_map(|address| match *address {
        ListenAddress::Socket(address) if !value::is_loopback(address.ip()) => Some(address),
        ListenAddress::Socket(_) | ListenAddress::Localhost { .. } => None,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Trust,
    Password,
}

const METHOD: &str = "listen.auth";
const METHODS: &[(&str, Method)] = &[("trust", Method::Trust), ("password", Method::Password)];
const AUTH_FILE: &str = "listen.auth_file";
/// Whose key is whose.
const KEYS: &[(&str, Method)] = &[(AUTH_FILE, Method::Password)];
