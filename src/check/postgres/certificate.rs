//! What a server has shown in TLS and was believed for: how long that will go on, and whether a login can be bound to
//! it. Pure.

use std::time::Duration;

use super::trouble::{Trouble, no_binding};
use crate::check::certificate::Handshake;
use crate::check::fault::Warning;
use crate::check::report::Found;
use crate::config::{ChannelBinding, SslMode, UpstreamConfig};
use crate::upstream::Shown;

/// Judges a handshake that was done, at a time since 1970.
pub(super) fn judge(shown: &Shown, upstream: &UpstreamConfig, now: Duration) -> Found {
    let Handshake { version, lasts, ends_soon } = Handshake::of(shown.version, &shown.certificates, now);
    let found = format!("{version}, sslmode={}{lasts}", upstream.ssl_mode.name());

    if let (ChannelBinding::Require, Err(error)) = (upstream.channel_binding, &shown.binding) {
        let Trouble { fault, cause, cure } = no_binding();
        return Found::fault(fault, error.to_string(), cause, cure);
    }
    match upstream.ssl_mode {
        SslMode::Require => {
            return Found::warning(
                Warning::PostgresUnverified,
                found,
                "sslmode=require takes any certificate: whoever is on the way can pass for the server",
                "say sslmode=verify-full&sslrootcert=/path/ca.pem in `upstream`",
            );
        }
        SslMode::Disable | SslMode::VerifyCa | SslMode::VerifyFull => {}
    }
    if ends_soon {
        return Found::warning(
            Warning::PostgresCertificateEndsSoon,
            found,
            "the server's certificate, or one of its chain, ends soon; from then on nobody can log in",
            "put a new certificate in the place of the server's ssl_cert_file, then:\nSELECT pg_reload_conf();",
        );
    }
    match (upstream.channel_binding, &shown.binding) {
        (ChannelBinding::Prefer, Err(error)) => Found::warning(
            Warning::PostgresUnbound,
            format!("{found}; {error}"),
            "logins are not bound to the server's certificate: whoever gets one of the same name from a CA that is \
             believed here can sit in between",
            "give the server a certificate that is signed with RSA or ECDSA and SHA-256",
        ),
        (ChannelBinding::Disable, _) => Found::fine(found),
        (ChannelBinding::Prefer | ChannelBinding::Require, _) => {
            Found::fine(format!("{found}, channel binding possible"))
        }
    }
}

/// Judges a connection without TLS. One over a Unix socket needs none.
pub(super) fn judge_plain(is_socket: bool) -> Found {
    if is_socket {
        return Found::fine("a Unix socket, without TLS");
    }
    Found::warning(
        Warning::PostgresPlain,
        "no TLS",
        "sslmode=disable: SCRAM keeps the password from who listens, and nothing else is kept from them",
        "say sslmode=verify-full&sslrootcert=/path/ca.pem in `upstream`",
    )
}
