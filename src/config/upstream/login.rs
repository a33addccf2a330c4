//! How pglease logs in: methods and versions of the protocol.

use super::{Meaning, UpstreamError};
use crate::config::{ChannelBinding, ProtocolVersion, RequireAuth, SslMode};

pub(super) fn require_auth(meaning: &Meaning<'_>) -> Result<RequireAuth, UpstreamError> {
    meaning.value("require_auth").map_or(Ok(RequireAuth::default()), |list| Ok(RequireAuth::parse(list)?))
}

/// Methods that could never be used, or not without giving the password away.
pub(super) fn contradictions(
    mode: SslMode,
    binding: ChannelBinding,
    require_auth: RequireAuth,
) -> Vec<UpstreamError> {
    let in_clear = (require_auth.password && !mode.verifies())
        .then_some(UpstreamError::PasswordInClear { mode: mode.name() });
    let unbound = (binding == ChannelBinding::Require && !require_auth.scram)
        .then_some(UpstreamError::BindingWithoutScram);
    in_clear.into_iter().chain(unbound).collect()
}

/// `min_protocol_version` and `max_protocol_version`.
pub(super) fn versions(meaning: &Meaning<'_>) -> Result<(ProtocolVersion, ProtocolVersion), UpstreamError> {
    let least = version(meaning, "min_protocol_version")?;
    let most = version(meaning, "max_protocol_version")?;
    match (least, most) {
        (Some(least), Some(most)) if least > most => {
            Err(UpstreamError::VersionOrder { least: "min_protocol_version", most: "max_protocol_version" })
        }
        // Who wants a newer one at least is not asked for an older one.
        (least, most) => {
            let least = least.unwrap_or_default();
            Ok((least, most.unwrap_or_default().max(least)))
        }
    }
}

fn version(meaning: &Meaning<'_>, keyword: &'static str) -> Result<Option<ProtocolVersion>, UpstreamError> {
    match meaning.value(keyword) {
        None => Ok(None),
        Some("3.0") => Ok(Some(ProtocolVersion::V3_0)),
        Some("3.2" | "latest") => Ok(Some(ProtocolVersion::V3_2)),
        Some(_) => Err(UpstreamError::Choice { keyword, choices: "3.0, 3.2 or latest" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::upstream::parse;

    fn errors(text: &str) -> Vec<String> {
        parse(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn versions_are_those_of_libpq() {
        use ProtocolVersion::{V3_0, V3_2};
        for (keywords, expected) in [
            ("", (V3_0, V3_0)),
            ("min_protocol_version='' max_protocol_version=''", (V3_0, V3_0)),
            ("max_protocol_version=3.0", (V3_0, V3_0)),
            ("max_protocol_version=3.2", (V3_0, V3_2)),
            ("max_protocol_version=latest", (V3_0, V3_2)),
            ("min_protocol_version=3.2 max_protocol_version=latest", (V3_2, V3_2)),
            ("min_protocol_version=3.2", (V3_2, V3_2)),
        ] {
            let config = parse(&format!("host=db {keywords}")).unwrap();
            assert_eq!((config.min_protocol_version, config.max_protocol_version), expected, "{keywords}");
        }
        assert_eq!(
            errors("host=db min_protocol_version=3.2 max_protocol_version=3.0"),
            ["min_protocol_version is above max_protocol_version; change one"]
        );
        assert_eq!(
            errors("host=db max_protocol_version=3.1"),
            ["max_protocol_version: no such choice; use 3.0, 3.2 or latest"]
        );
    }

    #[test]
    fn methods_go_with_tls_and_binding_or_not() {
        for text in [
            "host=db require_auth=password",
            "host=db sslmode=verify-ca sslrootcert=/ca.pem require_auth=password",
            "host=db sslmode=disable require_auth=md5",
            "host=db channel_binding=require require_auth=scram-sha-256,md5",
            "host=db channel_binding=prefer require_auth=none",
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for (text, expected) in [
            (
                "require_auth=gss",
                "require_auth: gss is no method of pglease's; use scram-sha-256, none, md5 or password",
            ),
            (
                "require_auth=password sslmode=require",
                "require_auth names password with sslmode=require, which would give it to anyone; use verify-full",
            ),
            (
                "require_auth=scram-sha-256,password sslmode=disable",
                "require_auth names password with sslmode=disable, which would give it to anyone; use verify-full",
            ),
            (
                "require_auth=md5,none channel_binding=require",
                "channel_binding=require without scram-sha-256 in require_auth, which alone is bound; change one",
            ),
        ] {
            assert_eq!(errors(&format!("host=db {text}")), [expected], "{text}");
        }
    }
}
