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
            Some(AuthConfig::Password { file: reader.path(AUTH_FILE, value::readable_file)? })
        }
        Method::Peer => {
            let uids = reader.list(PEER_UIDS, uid)?;
            if uids.is_empty() { reader.missing(PEER_UIDS) } else { Some(AuthConfig::Peer { uids }) }
        }
    }
}

/// Of a user: what is written `-1` is nobody.
fn uid(text: &str) -> Result<u32, Problem> {
    text.trim().parse().ok().filter(|uid| *uid != u32::MAX).ok_or(Problem::NotAUid { uid: text.to_owned() })
}

/// Whether everybody who can connect is one who may.
pub(crate) fn check_addresses(reader: &mut Reader<'_>, addresses: &[ListenAddress], auth: &AuthConfig) {
    match auth {
        AuthConfig::Trust => {
            for address in open(addresses) {
                let address = address.to_string();
                reader.fault("listen.addresses", Problem::ListenNotLoopback { address });
            }
        }
        AuthConfig::Peer { .. } if !addresses.is_empty() => {
            reader.fault("listen.addresses", Problem::PeerOverTcp);
        }
        AuthConfig::Password { .. } | AuthConfig::Peer { .. } => {}
    }
}

/// What the settings give up.
pub(crate) fn warnings(listen: &ListenConfig) -> Vec<String> {
    let warning = |address: SocketAddr| {
        format!(
            "listen.addresses has {address}, which is no loopback address, and clients connect without TLS: SCRAM \
             keeps their passwords, but whoever is on the way reads and changes queries and rows; set \
             listen.tls_cert_file and listen.tls_key_file"
        )
    };
    // With TLS there, none from another machine is let in without.
    if listen.tls.is_some() { Vec::new() } else { open(&listen.addresses).map(warning).collect() }
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
    Peer,
}

const METHOD: &str = "listen.auth";
const METHODS: &[(&str, Method)] =
    &[("trust", Method::Trust), ("password", Method::Password), ("peer", Method::Peer)];
const AUTH_FILE: &str = "listen.auth_file";
const PEER_UIDS: &str = "listen.peer_uids";
/// Whose key is whose.
const KEYS: &[(&str, Method)] = &[(AUTH_FILE, Method::Password), (PEER_UIDS, Method::Peer)];
