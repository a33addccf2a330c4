//! `sslmode` and what goes with it.

use std::path::PathBuf;

use super::{Meaning, UpstreamError};
use crate::config::{ChannelBinding, ClientCert, SslMode, SslNegotiation, SslOptions, TlsVersion};

pub(super) fn ssl_mode(meaning: &Meaning<'_>) -> Result<SslMode, UpstreamError> {
    match meaning.value("sslmode") {
        None => Ok(SslMode::default()),
        Some("disable") => Ok(SslMode::Disable),
        Some("require") => Ok(SslMode::Require),
        Some("verify-ca") => Ok(SslMode::VerifyCa),
        Some("verify-full") => Ok(SslMode::VerifyFull),
        Some("prefer") => Err(UpstreamError::WeakSslMode { mode: "prefer" }),
        Some("allow") => Err(UpstreamError::WeakSslMode { mode: "allow" }),
        Some(_) => Err(UpstreamError::Choice {
            keyword: "sslmode",
            choices: "disable, require, verify-ca or verify-full",
        }),
    }
}

pub(super) fn channel_binding(meaning: &Meaning<'_>) -> Result<ChannelBinding, UpstreamError> {
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

/// All else of TLS, or what is wrong with it.
pub(super) fn options(meaning: &Meaning<'_>) -> Result<SslOptions, Vec<UpstreamError>> {
    let mut errors = Vec::new();
    let negotiation = negotiation(meaning).map_err(|error| errors.push(error));
    let client = client(meaning).map_err(|error| errors.push(error));
    let sni = sni(meaning).map_err(|error| errors.push(error));
    let versions = versions(meaning).map_err(|error| errors.push(error));
    let [crl_file, crl_dir] =
        ["sslcrl", "sslcrldir"].map(|keyword| meaning.value(keyword).map(PathBuf::from));
    let (Ok(negotiation), Ok((client, must_ask)), Ok(sni), Ok((min_version, max_version))) =
        (negotiation, client, sni, versions)
    else {
        return Err(errors);
    };
    Ok(SslOptions { negotiation, client, must_ask, crl_file, crl_dir, sni, min_version, max_version })
}

fn negotiation(meaning: &Meaning<'_>) -> Result<SslNegotiation, UpstreamError> {
    match meaning.value("sslnegotiation") {
        None | Some("postgres") => Ok(SslNegotiation::Postgres),
        Some("direct") => Ok(SslNegotiation::Direct),
        Some(_) => Err(UpstreamError::Choice { keyword: "sslnegotiation", choices: "postgres or direct" }),
    }
}

/// The certificate to show, and whether it must be asked for.
fn client(meaning: &Meaning<'_>) -> Result<(Option<ClientCert>, bool), UpstreamError> {
    let client = match (meaning.value("sslcert"), meaning.value("sslkey")) {
        (Some(cert), Some(key)) => Some(ClientCert { cert_file: cert.into(), key_file: key.into() }),
        (None, None) => None,
        (Some(_), None) => return Err(UpstreamError::HalfClientCert { there: "sslcert", missing: "sslkey" }),
        (None, Some(_)) => return Err(UpstreamError::HalfClientCert { there: "sslkey", missing: "sslcert" }),
    };
    match meaning.value("sslcertmode") {
        None | Some("allow") => Ok((client, false)),
        Some("disable") => Ok((None, false)),
        Some("require") if client.is_none() => Err(UpstreamError::NoClientCert),
        Some("require") => Ok((client, true)),
        Some(_) => {
            Err(UpstreamError::Choice { keyword: "sslcertmode", choices: "disable, allow or require" })
        }
    }
}

fn sni(meaning: &Meaning<'_>) -> Result<bool, UpstreamError> {
    match meaning.value("sslsni") {
        None | Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(_) => Err(UpstreamError::Choice { keyword: "sslsni", choices: "0 or 1" }),
    }
}

fn versions(meaning: &Meaning<'_>) -> Result<(TlsVersion, TlsVersion), UpstreamError> {
    let min = version(meaning, "ssl_min_protocol_version", TlsVersion::V1_2)?;
    let max = version(meaning, "ssl_max_protocol_version", TlsVersion::V1_3)?;
    if min > max {
        return Err(UpstreamError::VersionOrder {
            least: "ssl_min_protocol_version",
            most: "ssl_max_protocol_version",
        });
    }
    Ok((min, max))
}

/// In whatever case, as in libpq.
fn version(
    meaning: &Meaning<'_>,
    keyword: &'static str,
    default: TlsVersion,
) -> Result<TlsVersion, UpstreamError> {
    match meaning.value(keyword).map(str::to_ascii_lowercase).as_deref() {
        None => Ok(default),
        Some("tlsv1.2") => Ok(TlsVersion::V1_2),
        Some("tlsv1.3") => Ok(TlsVersion::V1_3),
        Some("tlsv1" | "tlsv1.1") => Err(UpstreamError::OldTls { keyword }),
        Some(_) => Err(UpstreamError::Choice { keyword, choices: "TLSv1.2 or TLSv1.3" }),
    }
}

/// Keywords of TLS that do not go together.
pub(super) fn contradictions(
    meaning: &Meaning<'_>,
    mode: SslMode,
    binding: ChannelBinding,
    options: &SslOptions,
) -> Vec<UpstreamError> {
    let root_cert = meaning.value("sslrootcert");
    let mut errors = Vec::new();
    if !mode.verifies() {
        let written = ["sslrootcert", "sslcrl", "sslcrldir"];
        let unused = written.into_iter().filter(|keyword| meaning.value(keyword).is_some());
        errors.extend(unused.map(|keyword| UpstreamError::NothingVerified { keyword, mode: mode.name() }));
    }
    if mode == SslMode::VerifyCa && root_cert.is_none_or(|path| path == SYSTEM_ROOTS) {
        errors.push(UpstreamError::AnyonesCertificate);
    }
    if mode == SslMode::Disable {
        if binding == ChannelBinding::Require {
            errors.push(UpstreamError::BindingWithoutTls);
        }
        if options.negotiation == SslNegotiation::Direct {
            errors.push(UpstreamError::WithoutTls { what: "sslnegotiation=direct" });
        }
        if options.client.is_some() {
            errors.push(UpstreamError::WithoutTls { what: "sslcert" });
        }
    }
    errors
}

/// `sslrootcert` of libpq 16 and later: the system's CAs.
pub(super) const SYSTEM_ROOTS: &str = "system";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::upstream::parse;

    #[test]
    fn options_are_those_of_libpq() {
        let default = SslOptions::default;
        let shown = || ClientCert { cert_file: "/c.pem".into(), key_file: "/k.pem".into() };
        for (keywords, expected) in [
            ("sslnegotiation=postgres sslcertmode=allow sslsni=1", default()),
            ("sslnegotiation=direct", SslOptions { negotiation: SslNegotiation::Direct, ..default() }),
            ("sslcert=/c.pem sslkey=/k.pem", SslOptions { client: Some(shown()), ..default() }),
            (
                "sslcert=/c.pem sslkey=/k.pem sslcertmode=require",
                SslOptions { client: Some(shown()), must_ask: true, ..default() },
            ),
            ("sslcert=/c.pem sslkey=/k.pem sslcertmode=disable", default()),
            (
                "sslcrl=/crl.pem sslcrldir=/crls",
                SslOptions { crl_file: Some("/crl.pem".into()), crl_dir: Some("/crls".into()), ..default() },
            ),
            ("sslsni=0", SslOptions { sni: false, ..default() }),
            ("ssl_min_protocol_version=tlsv1.3", SslOptions { min_version: TlsVersion::V1_3, ..default() }),
            ("ssl_max_protocol_version=TLSv1.2", SslOptions { max_version: TlsVersion::V1_2, ..default() }),
        ] {
            assert_eq!(parse(&format!("host=db {keywords}")).unwrap().ssl, expected, "{keywords}");
        }
        let by_ca = parse("host=db sslmode=verify-ca sslrootcert=/ca.pem").unwrap();
        assert_eq!(by_ca.ssl_mode, SslMode::VerifyCa);
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (text, expected) in [
            ("sslmode=on", "sslmode: no such choice; use disable, require, verify-ca or verify-full"),
            (
                "sslmode=verify-ca",
                "sslmode=verify-ca without a file of CAs in sslrootcert, where any certificate of the public would \
                 do; name one, or use verify-full",
            ),
            (
                "sslmode=verify-ca sslrootcert=system",
                "sslmode=verify-ca without a file of CAs in sslrootcert, where any certificate of the public would \
                 do; name one, or use verify-full",
            ),
            (
                "sslmode=require sslcrl=/crl.pem",
                "sslcrl with sslmode=require, which verifies no certificate; use sslmode=verify-full, or remove it",
            ),
            (
                "sslmode=disable sslnegotiation=direct",
                "sslnegotiation=direct with sslmode=disable, which is without TLS; change one",
            ),
            (
                "sslmode=disable sslcert=/c.pem sslkey=/k.pem",
                "sslcert with sslmode=disable, which is without TLS; change one",
            ),
            ("sslcert=/c.pem", "sslcert without sslkey; name the certificate's file and its key's"),
            ("sslkey=/k.pem", "sslkey without sslcert; name the certificate's file and its key's"),
            (
                "sslcertmode=require",
                "sslcertmode=require without sslcert and sslkey to show; name both files",
            ),
            ("sslcertmode=on", "sslcertmode: no such choice; use disable, allow or require"),
            ("sslsni=2", "sslsni: no such choice; use 0 or 1"),
            ("sslnegotiation=requiredirect", "sslnegotiation: no such choice; use postgres or direct"),
            (
                "ssl_min_protocol_version=TLSv1.1",
                "ssl_min_protocol_version: no TLS before 1.2 is spoken; use TLSv1.2 or TLSv1.3",
            ),
            (
                "ssl_max_protocol_version=1.3",
                "ssl_max_protocol_version: no such choice; use TLSv1.2 or TLSv1.3",
            ),
            (
                "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "ssl_min_protocol_version is above ssl_max_protocol_version; change one",
            ),
        ] {
            let errors = parse(&format!("host=db {text}")).unwrap_err();
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(errors, [expected], "{text}");
        }
    }
}
