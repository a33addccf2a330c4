//! Why there is no TLS with a server, in words.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::Trouble;
use crate::check::fault::Fault;
use crate::config::UpstreamConfig;
use crate::upstream::NegotiationError;

pub(super) fn explain(error: &NegotiationError, upstream: &UpstreamConfig) -> Trouble {
    match error {
        NegotiationError::Refused => Trouble::new(
            Fault::PostgresNoTls,
            format!("the server does no TLS, and sslmode={} insists on it", upstream.ssl_mode.name()),
            "-- with ssl_cert_file and ssl_key_file in the server's data folder:\n\
             ALTER SYSTEM SET ssl = on;\nSELECT pg_reload_conf();\n\
             -- or, to do without TLS knowingly, in `upstream`: sslmode=disable",
        ),
        NegotiationError::Stranger { .. }
        | NegotiationError::Stuffed
        | NegotiationError::Handshake { source: _, is_direct: true } => not_postgres(error),
        NegotiationError::ErrorResponse => Trouble::new(
            Fault::PostgresCannotBegin,
            "the server could not begin a session: it is too old for TLS, or out of processes or memory",
            "see the server's log",
        ),
        NegotiationError::Closed | NegotiationError::Io(_) => Trouble::new(
            Fault::PostgresHandshakeBroken,
            "the connection ended before TLS began: a pooler, load balancer or mesh in between that has nobody behind \
             it does so",
            "see the log of what answers at this address, and whether PostgreSQL runs behind it",
        ),
        NegotiationError::NoAlpn => Trouble::new(
            Fault::NotTlsAtOnce,
            "sslnegotiation=direct, and the server has not agreed to speak PostgreSQL's protocol",
            "take sslnegotiation=direct out of `upstream`: only PostgreSQL 17 and later do that",
        ),
        NegotiationError::CertificateNotShown => Trouble::new(
            Fault::ClientCertificateNotAsked,
            "sslcertmode=require, and the server does not ask for a certificate",
            "set ssl_ca_file in the server's postgresql.conf and reload it, or take sslcertmode=require out of \
             `upstream`",
        ),
        NegotiationError::EndPoint(_) => no_binding(),
        NegotiationError::NoTls => Trouble::new(
            Fault::NoTlsToBindTo,
            "channel_binding=require, and there is no TLS to bind to",
            "say sslmode=verify-full in `upstream`",
        ),
        NegotiationError::Handshake { source, is_direct: false } => handshake(source, upstream),
    }
}

/// Where channel binding is required and the server's certificate has no hash to bind to.
pub(in crate::check::postgres) fn no_binding() -> Trouble {
    Trouble::new(
        Fault::NothingToBindTo,
        "channel_binding=require, and nobody has defined what a certificate with such a signature is bound by",
        "give the server a certificate that is signed with RSA or ECDSA and SHA-256, or say channel_binding=prefer in \
         `upstream`",
    )
}

fn not_postgres(error: &NegotiationError) -> Trouble {
    let (fault, cause, cure) = if matches!(error, NegotiationError::Stranger { byte: TLS_ALERT }) {
        (
            Fault::TlsAtOnce,
            "what listens there wants TLS at once",
            "say sslnegotiation=direct in `upstream` if it is PostgreSQL 17 or later; else correct the port",
        )
    } else if matches!(error, NegotiationError::Handshake { .. }) {
        (
            Fault::NotTlsAtOnce,
            "sslnegotiation=direct: the server does not take TLS at once, or its certificate is not believed",
            "take sslnegotiation=direct out of `upstream`, which every server understands; this check then \
             tells of the certificate",
        )
    } else {
        (
            Fault::NotPostgres,
            "what answers there is not PostgreSQL: another service, a proxy, or a mesh",
            "correct host and port in `upstream`; have a mesh leave this port alone",
        )
    };
    Trouble::new(fault, cause, cure)
}

fn handshake(source: &io::Error, upstream: &UpstreamConfig) -> Trouble {
    match source.get_ref().and_then(|fault| fault.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(fault)) => certificate(fault, upstream),
        Some(rustls::Error::AlertReceived(alert)) => alert_received(*alert),
        Some(rustls::Error::InvalidCertRevocationList(_)) => revocation_lists(),
        Some(_) | None => Trouble::new(
            Fault::PostgresTlsDisagreed,
            "client and server did not agree on how to do TLS",
            "see the server's log; pglease speaks TLS 1.2 and 1.3",
        ),
    }
}

/// In the handshake, or behind it, where a server of TLS 1.3 says what it thinks of a client certificate.
pub(super) fn alert_received(alert: AlertDescription) -> Trouble {
    let is_of_client_certificate = matches!(
        alert,
        AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
    );
    let (fault, cause, cure) = if alert == AlertDescription::ProtocolVersion {
        (
            Fault::PostgresTlsVersion,
            "the server speaks no version of TLS that `upstream` allows",
            "ALTER SYSTEM SET ssl_min_protocol_version = 'TLSv1.2';\n\
             ALTER SYSTEM RESET ssl_max_protocol_version;\nSELECT pg_reload_conf();\n\
             -- and take ssl_min_protocol_version and ssl_max_protocol_version out of `upstream`",
        )
    } else if is_of_client_certificate {
        (
            Fault::PostgresClientCertificate,
            "the server does not take the client certificate, or wants one",
            "set sslcert and sslkey in `upstream` to a certificate that the server's ssl_ca_file vouches \
             for",
        )
    } else {
        (
            Fault::PostgresTlsDisagreed,
            "the server did not agree on how to do TLS",
            "see the server's log; its certificate must be of RSA, of ECDSA with P-256 or P-384, or of Ed25519",
        )
    };
    Trouble::new(fault, cause, cure)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has more faults than anybody mends, and adds to them"
)]
fn certificate(fault: &CertificateError, upstream: &UpstreamConfig) -> Trouble {
    let ca = upstream.ssl_root_cert.as_ref();
    let ca =
        ca.map_or_else(|| "the system's CAs".to_owned(), |path| format!("sslrootcert={}", path.display()));
    let reissued =
        "put a new certificate in the place of the server's ssl_cert_file, then:\nSELECT pg_reload_conf();";
    let (name, cause, cure) = match fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            Fault::PostgresCaUnknown,
            format!("the server's certificate was issued by a CA that {ca} does not have"),
            "name the file with that CA's certificate in `upstream`: sslrootcert=/path/ca.pem; have the \
             server's ssl_cert_file hold the certificates in between"
                .to_owned(),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            Fault::PostgresCertificateExpired,
            "the server's certificate has expired, unless this machine's clock is wrong".to_owned(),
            reissued.to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            Fault::PostgresCertificateTooEarly,
            "the server's certificate is not valid yet, unless this machine's clock is wrong".to_owned(),
            "set the clock of this machine, or of the one that issued the certificate".to_owned(),
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            Fault::PostgresCertificateName,
            format!("the server's certificate is for {}", named(presented)),
            format!("name the host so in `upstream` (its address can go into hostaddr), or {reissued}"),
        ),
        CertificateError::NotValidForName => (
            Fault::PostgresCertificateName,
            "the server's certificate is for another name".to_owned(),
            format!("name the host as its certificate does, or {reissued}"),
        ),
        CertificateError::Revoked => {
            let cause = "the server's certificate was revoked".to_owned();
            (Fault::PostgresCertificateRevoked, cause, reissued.to_owned())
        }
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => return revocation_lists(),
        other => (
            Fault::PostgresCertificateUnusable,
            format!("the server's certificate cannot be verified here: {other}"),
            format!(
                "{reissued}\n-- of RSA, ECDSA with P-256 or P-384, or Ed25519, version 3, for server use"
            ),
        ),
    };
    Trouble::new(name, cause, cure)
}

fn revocation_lists() -> Trouble {
    Trouble::new(
        Fault::RevocationListUnusable,
        "the lists of sslcrl or sslcrldir do not say whether the server's certificate was revoked",
        "put there a list of each CA of the chain that is valid now",
    )
}

/// Names as rustls gives them: `DnsName("db")`, `IpAddress(127.0.0.1)`.
fn named(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all".to_owned();
    }
    let inside = |name: &String| {
        let name = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'));
        name.trim_matches('"').to_owned()
    };
    presented.iter().map(inside).collect::<Vec<_>>().join(", ")
}

/// First byte of an alert record.
const TLS_ALERT: u8 = 0x15;
