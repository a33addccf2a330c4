//! The way to Vault in words: why there is no connection, what its certificate is worth, what state Vault is in. Pure.

use std::error::Error;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use crate::check::certificate::Handshake;
use crate::check::fault::{Fault, Warning};
use crate::check::report::Found;
use crate::check::resolver;
use crate::config::{Ca, VaultConfig};
use crate::telemetry::Causes;
use crate::vault::{Health, Hop, ShownTls};

/// Why a name has no address.
pub(super) fn unresolved<T>(hop: &Hop, error: &io::Error) -> Found<T> {
    let setting = setting(hop);
    let (fault, cause, cure) = if resolver::is_silent(error) {
        let cure = "see that the name servers of /etc/resolv.conf can be reached: a NetworkPolicy has to let DNS through";
        (
            Fault::VaultResolverSilent,
            "the resolver of this machine does not answer, or gets no answer itself",
            cure.to_owned(),
        )
    } else {
        let cure = format!(
            "correct the host in {setting}; a Service of another namespace is <service>.<namespace>.svc"
        );
        (Fault::VaultNameUnknown, "no name server knows the name", cure)
    };
    Found::fault(fault, format!("{} has no address: {error}", hop.host), cause, cure)
}

/// Why nothing listens, or nobody answers, at an address.
pub(super) fn unreached<T>(hop: &Hop, error: &io::Error) -> Found<T> {
    let (fault, cause, cure) = unreachable_for(error.kind(), setting(hop));
    Found::fault(fault, format!("no connection: {error}"), cause, cure)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no cure of their own")]
fn unreachable_for(kind: io::ErrorKind, setting: &str) -> (Fault, &'static str, String) {
    match kind {
        io::ErrorKind::ConnectionRefused => {
            let cure = format!("start Vault, or correct the port in {setting}");
            (Fault::VaultNothingListens, "nothing listens there", cure)
        }
        io::ErrorKind::TimedOut => (
            Fault::VaultSilent,
            "nobody answers: what is sent there is dropped on the way, or the server hangs",
            format!(
                "let connections to this address and port through: NetworkPolicy, security group, firewall; else \
                 correct {setting}"
            ),
        ),
        _ => (
            Fault::VaultNoWay,
            "there is no way to this address",
            format!(
                "correct the host in {setting}, or let connections through: routes, NetworkPolicy, firewall"
            ),
        ),
    }
}

fn setting(hop: &Hop) -> &'static str {
    if hop.is_proxy { "vault.proxy" } else { "vault.address" }
}

/// Judges a handshake that was done, at a time since 1970.
pub(super) fn judge_tls(shown: &ShownTls, config: &VaultConfig, now: Duration) -> Found {
    let Handshake { version, lasts, ends_soon } = Handshake::of(shown.version, &shown.certificates, now);
    if config.tls.skip_verify {
        let cause = "vault.skip_verify is on: whoever is on the way can pose as Vault";
        let cure = "set vault.skip_verify = false, and vault.ca_file to the CA of Vault's certificate";
        return Found::warning(
            Warning::VaultUnverified,
            format!("{version}{lasts}, not verified"),
            cause,
            cure,
        );
    }
    if ends_soon {
        let cause = "Vault's certificate, or one of its chain, ends soon; from then on nobody can log in";
        let cure =
            "put a new certificate in the place of tls_cert_file of Vault's listener, then send Vault SIGHUP";
        return Found::warning(Warning::VaultCertificateEndsSoon, format!("{version}{lasts}"), cause, cure);
    }
    Found::fine(format!("{version}{lasts}"))
}

/// Why there is no TLS.
pub(super) fn no_tls<T>(error: &(dyn Error + 'static), hop: &Hop, config: &VaultConfig) -> Found<T> {
    let found = format!("no TLS: {}", Causes(error));
    match within::<rustls::Error>(error) {
        Some(rustls::Error::InvalidCertificate(fault)) => {
            let (fault, cause, cure) = certificate(fault, config);
            Found::fault(fault, found, cause, cure)
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            let (fault, cause, cure) = alert_received(*alert);
            Found::fault(fault, found, cause, cure)
        }
        Some(_) => Found::fault(
            Fault::VaultNoTls,
            found,
            "what answers there does not speak TLS",
            "write http:// in vault.address if that is Vault without TLS; else correct its port",
        ),
        None => {
            let kind = io_kind(error).unwrap_or(io::ErrorKind::TimedOut);
            let (fault, cause, cure) = if hop.is_proxy {
                (
                    Fault::VaultProxy,
                    "the proxy of vault.proxy does not lead to Vault",
                    "have the proxy allow CONNECT to vault.address".to_owned(),
                )
            } else if matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
                (
                    Fault::VaultHandshakeBroken,
                    "the connection was closed in the middle of the handshake",
                    "see the log of what answers at this address, and whether Vault is behind it".to_owned(),
                )
            } else {
                unreachable_for(kind, setting(hop))
            };
            Found::fault(fault, found, cause, cure)
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no cure of their own")]
fn certificate(fault: &CertificateError, config: &VaultConfig) -> (Fault, String, String) {
    let ca = match &config.tls.ca {
        Ca::System => "the system's CAs do".to_owned(),
        Ca::File(path) => format!("vault.ca_file {} does", path.display()),
        Ca::Dir(path) => format!("vault.ca_path {} does", path.display()),
    };
    let reissued =
        "put a new certificate in the place of tls_cert_file of Vault's listener, then send Vault SIGHUP";
    match fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            Fault::VaultCaUnknown,
            format!("Vault's certificate was issued by a CA that {ca} not have"),
            "name the file with that CA's certificate in vault.ca_file (annotation pglease.dev/vault-ca)"
                .to_owned(),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            Fault::VaultCertificateExpired,
            "Vault's certificate has expired, unless this machine's clock is wrong".to_owned(),
            reissued.to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            Fault::VaultCertificateTooEarly,
            "Vault's certificate is not valid yet, unless this machine's clock is wrong".to_owned(),
            "set the clock of this machine, or of the one that issued the certificate".to_owned(),
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            Fault::VaultCertificateName,
            format!("Vault's certificate is for {}", named(presented)),
            format!(
                "name the host so in vault.address, or set vault.tls_server_name to a name of it, or {reissued}"
            ),
        ),
        CertificateError::NotValidForName => (
            Fault::VaultCertificateName,
            "Vault's certificate is for another name".to_owned(),
            format!("name the host as its certificate does, or set vault.tls_server_name, or {reissued}"),
        ),
        _ => (
            Fault::VaultCertificateUnusable,
            "Vault's certificate cannot be verified here".to_owned(),
            reissued.to_owned(),
        ),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no cure of their own")]
pub(super) fn alert_received(alert: AlertDescription) -> (Fault, &'static str, &'static str) {
    match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateRequired
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => (
            Fault::VaultClientCertificate,
            "Vault does not take the client certificate, or wants one",
            "set vault.client_cert_file and vault.client_key_file to a certificate that Vault's tls_client_ca_file \
             vouches for",
        ),
        _ => (
            Fault::VaultTlsDisagreed,
            "Vault did not agree on how to do TLS",
            "see Vault's log; pglease speaks TLS 1.2 and 1.3",
        ),
    }
}

/// Names as rustls gives them: `DnsName("vault")`, `IpAddress(127.0.0.1)`.
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

/// Judges what Vault says of itself; with a value where logins can be served.
pub(super) fn judge_health(health: &Health) -> Found<()> {
    let Health { initialized, sealed, standby, version, .. } = health;
    if !initialized {
        let cause = "it was never initialised";
        return Found::fault(
            Fault::VaultNotInitialised,
            "Vault is not initialised",
            cause,
            "vault operator init",
        );
    }
    if *sealed {
        let (cause, cure) = (
            "it was started, or sealed by somebody, and nobody has unsealed it",
            "vault operator unseal\n# with as many keys as its threshold; auto-unseal has its reasons in Vault's log",
        );
        return Found::fault(Fault::VaultSealed, "Vault is sealed", cause, cure);
    }
    let role = if *standby { "a standby, which forwards to its leader" } else { "active" };
    let version = if version.is_empty() { String::new() } else { format!(", version {version}") };
    Found::fine(format!("unsealed, {role}{version}"))
}

/// How far Vault's clock, which is told in whole seconds, is ahead of ours; both since 1970, ours before and after.
pub(super) fn ahead(theirs: i64, before: Duration, after: Duration) -> f64 {
    let theirs = Duration::from_secs(u64::try_from(theirs).unwrap_or_default()).as_secs_f64() + 0.5;
    theirs - f64::midpoint(before.as_secs_f64(), after.as_secs_f64())
}

/// Judges that.
pub(super) fn judge_clock(ahead: f64) -> Found {
    let direction = if ahead < 0.0 { "behind" } else { "ahead of" };
    if ahead.abs() <= TOLD_SKEW {
        return Found::fine("Vault's clock is this machine's, within 2 s");
    }
    let found = format!("Vault's clock is {:.0} s {direction} this machine's", ahead.abs());
    if ahead.abs() <= MAX_SKEW {
        return Found::fine(found);
    }
    let cause = "certificates and JWTs are judged by both clocks, and VALID UNTIL of a leased role is set by Vault's: \
                 PostgreSQL's has to agree with that one within 5 s";
    let cure =
        "have the machines of Vault and PostgreSQL, and this one, keep time (NTP: chrony, systemd-timesyncd)";
    Found::warning(Warning::VaultClock, found, cause, cure)
}

/// The first of this kind among an error and what is behind it.
pub(super) fn within<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An error that is inside one of I/O is not its source: that one's is.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inside.and_then(|inside| within::<E>(inside)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Of the innermost error of I/O: those around it have none of their own.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let found: &io::Error = within(error)?;
    let inside = found.get_ref().and_then(|inside| io_kind(inside));
    inside.or_else(|| found.source().and_then(io_kind)).or_else(|| Some(found.kind()))
}

/// What seconds and a round trip hide.
const TOLD_SKEW: f64 = 2.0;

/// PostgreSQL is let to take a credential for 5 s longer than its lease.
const MAX_SKEW: f64 = 5.0;
