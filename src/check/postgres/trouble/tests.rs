//! Each fault with its class and what is said of it.

use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use super::*;
use crate::check::report::Outcome;
use crate::config::{RequireAuth, SslMode};
use crate::upstream::{NegotiationError, OnCredential};
use crate::wire::binding::EndPointError;
use crate::wire::error::ErrorResponse;

use crate::check::report::Class;
use Class::{Configuration, Permission, Unavailable};

fn address() -> String {
    "db:5432".to_owned()
}

/// What is said of an error, at a place that `change` makes another one.
fn said<'a>(error: &UpstreamError, change: impl FnOnce(&mut Place<'a>)) -> Found {
    // For as long as the test runs, as what `change` puts there.
    let upstream: &UpstreamConfig = Box::leak(Box::new(UpstreamConfig::at("db", 5432)));
    let elsewhere: &Elsewhere = Box::leak(Box::default());
    let mut place = Place {
        upstream,
        database: "wizard",
        vault_path: "database/creds/db-app",
        startup_role: None,
        as_startup_role: false,
        ours: "10.0.0.7".parse().ok(),
        accepted_elsewhere: false,
        elsewhere,
    };
    change(&mut place);
    fault(error, &place)
}

fn assert_said(found: &Found, class: Class, words: [&str; 2]) {
    let said = format!("{}\n{}", found.cause().unwrap(), found.cure().unwrap());
    assert_eq!(found.outcome(), Outcome::Failed(class), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(found.found().contains("db"), "{found:?}");
}

fn io(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

fn refused(code: &str, routine: &str) -> UpstreamError {
    let response = ErrorResponse::parse(format!("SFATAL\0C{code}\0Mnein\0R{routine}\0\0").as_bytes());
    UpstreamError::Refused { address: address(), response, credential: OnCredential::Nothing }
}

fn rejected(code: &str) -> UpstreamError {
    let response = ErrorResponse::parse(format!("SFATAL\0C{code}\0Mnein\0\0").as_bytes());
    UpstreamError::CredentialRejected { address: address(), response }
}

fn tls(source: NegotiationError) -> UpstreamError {
    UpstreamError::Tls { address: address(), source }
}

fn handshake(fault: rustls::Error) -> UpstreamError {
    let source = io::Error::new(io::ErrorKind::InvalidData, fault);
    tls(NegotiationError::Handshake { source, is_direct: false })
}

fn login(source: LoginError) -> UpstreamError {
    UpstreamError::Login { address: address(), source }
}

#[test]
fn way_to_a_server_that_is_not_there_says_whose_fault_it_is() {
    let resolve = |kind| UpstreamError::Resolve { host: address(), source: io(kind) };
    let connect = |kind| UpstreamError::Connect { address: address(), source: io(kind) };
    for (error, class, words) in [
        (
            resolve(io::ErrorKind::NotFound),
            Configuration,
            ["no name server knows", "<service>.<namespace>.svc"],
        ),
        (resolve(io::ErrorKind::TimedOut), Unavailable, ["does not answer", "let DNS through"]),
        (connect(io::ErrorKind::ConnectionRefused), Unavailable, ["nothing listens", "listen_addresses"]),
        (connect(io::ErrorKind::HostUnreachable), Unavailable, ["no way to this address", "NetworkPolicy"]),
        (connect(io::ErrorKind::NotFound), Configuration, ["no such socket", "unix_socket_directories"]),
        (
            connect(io::ErrorKind::PermissionDenied),
            Permission,
            ["may not connect", "unix_socket_permissions"],
        ),
        (
            UpstreamError::TimedOut { address: address(), limit: Duration::from_secs(5) },
            Unavailable,
            ["dropped on the way", "NetworkPolicy"],
        ),
    ] {
        assert_said(&said(&error, |_| {}), class, words);
    }
}

#[test]
fn server_without_the_tls_that_is_wanted_says_which_setting_is_wrong() {
    let invalid = |fault| handshake(rustls::Error::InvalidCertificate(fault));
    let name = CertificateError::NotValidForNameContext {
        expected: "db".try_into().unwrap(),
        presented: vec!["DnsName(\"pg.internal\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()],
    };
    let undefined = EndPointError::Undefined { algorithm: "Ed25519".to_owned() };
    let alert = |alert| handshake(rustls::Error::AlertReceived(alert));
    for (error, class, words) in [
        (tls(NegotiationError::Refused), Configuration, ["sslmode=verify-full insists", "SET ssl = on;"]),
        (tls(NegotiationError::Stranger { byte: b'H' }), Configuration, ["not PostgreSQL", "mesh"]),
        (
            tls(NegotiationError::Stranger { byte: 0x15 }),
            Configuration,
            ["TLS at once", "sslnegotiation=direct"],
        ),
        (tls(NegotiationError::ErrorResponse), Unavailable, ["out of processes", "log"]),
        (tls(NegotiationError::Closed), Unavailable, ["nobody behind it", "log"]),
        (tls(NegotiationError::NoAlpn), Configuration, ["sslnegotiation=direct", "PostgreSQL 17"]),
        (tls(NegotiationError::CertificateNotShown), Configuration, ["sslcertmode=require", "ssl_ca_file"]),
        (tls(NegotiationError::EndPoint(undefined)), Configuration, ["channel_binding=require", "ECDSA"]),
        (tls(NegotiationError::NoTls), Configuration, ["no TLS to bind to", "sslmode=verify-full"]),
        (
            invalid(CertificateError::UnknownIssuer),
            Configuration,
            ["the system's CAs", "sslrootcert=/path/ca.pem"],
        ),
        (invalid(CertificateError::Expired), Configuration, ["expired", "SELECT pg_reload_conf();"]),
        (invalid(CertificateError::NotValidYet), Configuration, ["not valid yet", "clock"]),
        (invalid(name), Configuration, ["is for pg.internal, 10.0.0.1", "name the host so"]),
        (invalid(CertificateError::NotValidForName), Configuration, ["another name", "name the host"]),
        (invalid(CertificateError::Revoked), Configuration, ["revoked", "new certificate"]),
        (
            invalid(CertificateError::UnknownRevocationStatus),
            Configuration,
            ["sslcrl", "each CA of the chain"],
        ),
        (invalid(CertificateError::BadEncoding), Configuration, ["cannot be verified", "version 3"]),
        (
            alert(AlertDescription::ProtocolVersion),
            Configuration,
            ["no version of TLS", "ssl_min_protocol_version"],
        ),
        (alert(AlertDescription::CertificateRequired), Permission, ["wants one", "sslcert and sslkey"]),
        (alert(AlertDescription::HandshakeFailure), Configuration, ["did not agree", "P-256"]),
    ] {
        assert_said(&said(&error, |_| {}), class, words);
    }
    let direct = NegotiationError::Handshake { source: io(io::ErrorKind::UnexpectedEof), is_direct: true };
    assert_said(
        &said(&tls(direct), |_| {}),
        Configuration,
        ["sslnegotiation=direct", "every server understands"],
    );
}

#[test]
fn login_that_breaks_off_says_what_the_server_should_have_asked() {
    let allowed = RequireAuth::default();
    let line = "hostssl wizard all 10.0.0.7/32 scram-sha-256";
    for (source, class, words) in [
        (LoginError::Closed, Unavailable, ["middle of the login", "log"]),
        (LoginError::Method { method: "MD5", allowed }, Configuration, ["asks for MD5", line]),
        (LoginError::NothingAsked { allowed }, Configuration, ["trust", line]),
        (LoginError::InClear, Configuration, ["in clear", line]),
        (LoginError::NotBound { asked: "MD5" }, Configuration, ["channel_binding=require", line]),
        (LoginError::Scram(ScramError::PlusNotOffered), Configuration, ["poolers", "channel_binding=prefer"]),
        (
            LoginError::Scram(ScramError::NoMechanism),
            Configuration,
            ["channel_binding", "channel_binding=prefer"],
        ),
        (
            LoginError::Scram(ScramError::Iterations { asked: "9".to_owned() }),
            Configuration,
            ["9 rounds", "SET scram_iterations"],
        ),
        (LoginError::NotProven, Permission, ["did not prove", "do not turn"]),
        (LoginError::Unexpected { tag: b'H' }, Configuration, ["does not speak", "host and port"]),
        (LoginError::UserName, Configuration, ["zero byte", "username_template"]),
    ] {
        assert_said(&said(&login(source), |_| {}), class, words);
    }
}

#[test]
fn refusal_is_told_by_its_code_and_by_who_said_it() {
    let connect = "GRANT CONNECT ON DATABASE wizard TO <the group of IN ROLE";
    for (error, class, words) in [
        (rejected("28000"), Configuration, ["without LOGIN", "LOGIN PASSWORD '{{password}}'"]),
        (rejected("28P01"), Configuration, ["does not know the role", "vault read database/config/"]),
        (
            refused("28000", "ClientAuthentication"),
            Configuration,
            ["from 10.0.0.7/32 to database wizard with TLS", "hostssl wizard all 10.0.0.7/32 scram-sha-256"],
        ),
        (refused("28P01", ""), Configuration, ["clientcert=verify-full", "clientcert=verify-ca"]),
        (refused("3D000", ""), Configuration, ["no database wizard", "CREATE DATABASE wizard;"]),
        (refused("42501", ""), Permission, ["may not connect to database wizard", connect]),
        (
            refused("53300", "InitializeSessionUserId"),
            Unavailable,
            ["of the leased role", "CONNECTION LIMIT -1"],
        ),
        (
            refused("53300", "CheckMyDatabase"),
            Unavailable,
            ["of database wizard", "ALTER DATABASE wizard CONN"],
        ),
        (refused("53300", "InitProcess"), Unavailable, ["no connection left", "max_connections"]),
        (refused("57P03", ""), Unavailable, ["starting", "hot_standby"]),
        (refused("08P01", ""), Configuration, ["pooler", "auth_query"]),
        (refused("XX000", ""), Unavailable, ["cannot serve", "log"]),
        (refused("P0001", ""), Configuration, ["login trigger", "evtevent = 'login'"]),
        (refused("none", ""), Configuration, ["pooler", "auth_query"]),
    ] {
        assert_said(&said(&error, |_| {}), class, words);
    }
    let lag = said(&rejected("28P01"), |place| place.accepted_elsewhere = true);
    assert_said(&lag, Unavailable, ["a replica that is behind", "pg_stat_replication"]);
}

#[test]
fn cure_names_what_is_known_of_the_place() {
    let elsewhere = Elsewhere { groups: vec!["App".to_owned()], databases: vec!["witch".to_owned()] };
    let granted = said(&refused("42501", ""), |place| place.elsewhere = &elsewhere);
    assert!(granted.cure().unwrap().ends_with("TO \"App\";"), "{granted:?}");
    let missing = said(&refused("3D000", ""), |place| place.elsewhere = &elsewhere);
    assert!(missing.cause().unwrap().ends_with("it has witch"), "{missing:?}");

    let plain = UpstreamConfig::plain("db", 5432);
    assert_eq!(plain.ssl_mode, SslMode::Disable);
    let ours = "fd00::7".parse().ok();
    let hba = said(&refused("28000", ""), |place| (place.upstream, place.ours) = (&plain, ours));
    assert_said(&hba, Configuration, ["with no TLS", "host wizard all fd00::7/128 scram-sha-256"]);

    let as_owner = |place: &mut Place<'_>| {
        (place.startup_role, place.as_startup_role) = (Some("app_owner"), true);
    };
    assert_said(
        &said(&refused("42501", ""), as_owner),
        Permission,
        ["become app_owner", "IN ROLE app_owner;"],
    );
    assert_said(&said(&refused("22023", ""), as_owner), Configuration, ["no role app_owner", "CREATE ROLE"]);
    assert_said(&said(&refused("08P01", ""), as_owner), Configuration, ["pooler", "SET role = app_owner;"]);
}
