//! What can be wrong, by name: stable, as CI and runbooks go by them. docs/check.md says what each means, and a test
//! makes each that can be made.

use super::report::Class;

/// Writes down an enum whose variants have a name each, and, where they stand in groups, a class.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $type {
            $($variant,)+
        }

        impl $type {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$variant,)+];

            /// As JSON has it.
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
    ($(#[$doc:meta])* $type:ident $(in $class:ident { $($variant:ident = $name:literal,)+ })+) => {
        named! { $(#[$doc])* $type { $($($variant = $name,)+)+ } }

        impl $type {
            /// Whose turn it is.
            pub(crate) const fn class(self) -> Class {
                match self {
                    $($(Self::$variant)|+ => Class::$class,)+
                }
            }
        }
    };
}

named! {
    /// Something that does not work.
    Fault
    in Configuration {
        Setting = "setting",
        File = "file",
        DeadlinePastGrace = "deadline-past-grace",
        VaultNameUnknown = "vault-name-unknown",
        VaultNoTls = "vault-no-tls",
        VaultTlsDisagreed = "vault-tls-disagreed",
        VaultCaUnknown = "vault-ca-unknown",
        VaultCertificateExpired = "vault-certificate-expired",
        VaultCertificateTooEarly = "vault-certificate-too-early",
        VaultCertificateName = "vault-certificate-name",
        VaultCertificateUnusable = "vault-certificate-unusable",
        VaultNotInitialised = "vault-not-initialised",
        VaultNotVault = "vault-not-vault",
        NamespaceMissing = "namespace-missing",
        LoginFile = "login-file",
        JwtMalformed = "jwt-malformed",
        JwtExpired = "jwt-expired",
        JwtRefused = "jwt-refused",
        AuthRoleMissing = "auth-role-missing",
        SecretIdSpent = "secret-id-spent",
        TokenLimitedUses = "token-limited-uses",
        VaultRoleMissing = "vault-role-missing",
        EngineOfAnotherKind = "engine-of-another-kind",
        PostgresNameUnknown = "postgres-name-unknown",
        SocketMissing = "socket-missing",
        NoHostOfThatKind = "no-host-of-that-kind",
        PostgresNoTls = "postgres-no-tls",
        NotPostgres = "not-postgres",
        TlsAtOnce = "tls-at-once",
        NotTlsAtOnce = "not-tls-at-once",
        PostgresTlsDisagreed = "postgres-tls-disagreed",
        PostgresTlsVersion = "postgres-tls-version",
        PostgresCaUnknown = "postgres-ca-unknown",
        PostgresCertificateExpired = "postgres-certificate-expired",
        PostgresCertificateTooEarly = "postgres-certificate-too-early",
        PostgresCertificateName = "postgres-certificate-name",
        PostgresCertificateRevoked = "postgres-certificate-revoked",
        RevocationListUnusable = "revocation-list-unusable",
        PostgresCertificateUnusable = "postgres-certificate-unusable",
        ClientCertificateNotAsked = "client-certificate-not-asked",
        ClientCertificateName = "client-certificate-name",
        NothingToBindTo = "nothing-to-bind-to",
        NoTlsToBindTo = "no-tls-to-bind-to",
        BindingNotOffered = "binding-not-offered",
        NotBound = "not-bound",
        RoleUnknown = "role-unknown",
        RoleNoLogin = "role-no-login",
        PgHba = "pg-hba",
        DatabaseMissing = "database-missing",
        SessionRefused = "session-refused",
        PoolerRefusesRole = "pooler-refuses-role",
        PoolerRefusesStartup = "pooler-refuses-startup",
        AuthMethod = "auth-method",
        AuthTrust = "auth-trust",
        AuthInClear = "auth-in-clear",
        ScramRounds = "scram-rounds",
        ProtocolVersion = "protocol-version",
        ProtocolUnknown = "protocol-unknown",
        ZeroByte = "zero-byte",
        StartupRoleMissing = "startup-role-missing",
        SessionsHarmed = "sessions-harmed",
    }
    in Permission {
        VaultClientCertificate = "vault-client-certificate",
        VaultRefused = "vault-refused",
        JwtAudience = "jwt-audience",
        JwtNotVouchedFor = "jwt-not-vouched-for",
        ServiceAccount = "service-account",
        ServiceAccountNamespace = "service-account-namespace",
        AuthMountMissing = "auth-mount-missing",
        SecretIdRefused = "secret-id-refused",
        CertificateRefused = "certificate-refused",
        TokenRefused = "token-refused",
        CredsNotAllowed = "creds-not-allowed",
        PolicyLacks = "policy-lacks",
        RevokeNotAllowed = "revoke-not-allowed",
        SocketForbidden = "socket-forbidden",
        PostgresClientCertificate = "postgres-client-certificate",
        ConnectNotAllowed = "connect-not-allowed",
        ServerNotProven = "server-not-proven",
        StartupRoleNoMember = "startup-role-no-member",
        StartupRoleNoSet = "startup-role-no-set",
    }
    in Unavailable {
        VaultResolverSilent = "vault-resolver-silent",
        VaultNothingListens = "vault-nothing-listens",
        VaultSilent = "vault-silent",
        VaultNoWay = "vault-no-way",
        VaultProxy = "vault-proxy",
        VaultHandshakeBroken = "vault-handshake-broken",
        VaultSealed = "vault-sealed",
        VaultRedirects = "vault-redirects",
        VaultRateLimit = "vault-rate-limit",
        VaultNoAnswer = "vault-no-answer",
        ConnectionDisallowsRole = "connection-disallows-role",
        RoleNotMade = "role-not-made",
        RevokeFailed = "revoke-failed",
        PostgresResolverSilent = "postgres-resolver-silent",
        PostgresNothingListens = "postgres-nothing-listens",
        PostgresSilent = "postgres-silent",
        PostgresNoWay = "postgres-no-way",
        NoHost = "no-host",
        PostgresCannotBegin = "postgres-cannot-begin",
        PostgresHandshakeBroken = "postgres-handshake-broken",
        RoleUnknownHere = "role-unknown-here",
        RoleLimitReached = "role-limit-reached",
        DatabaseLimitReached = "database-limit-reached",
        ServerFull = "server-full",
        ServerStarting = "server-starting",
        ServerInTrouble = "server-in-trouble",
        LoginBroken = "login-broken",
    }
    in Unfinished {
        Unfinished = "unfinished",
    }
}

named! {
    /// Something that works, and will hurt.
    Warning {
        Setting = "setting-gives-up",
        FewDescriptors = "few-descriptors",
        LittleMemory = "little-memory",
        DeadlineNearGrace = "deadline-near-grace",
        VaultUnverified = "vault-unverified",
        VaultCertificateEndsSoon = "vault-certificate-ends-soon",
        VaultClock = "vault-clock",
        JwtEndless = "jwt-endless",
        JwtForApiServer = "jwt-for-api-server",
        TokenBatch = "token-batch",
        TokenNotRenewable = "token-not-renewable",
        TokenRenewalRefused = "token-renewal-refused",
        TokenRenewalFailed = "token-renewal-failed",
        LeaseNotRenewable = "lease-not-renewable",
        LeaseRenewalRefused = "lease-renewal-refused",
        LeaseRenewalFailed = "lease-renewal-failed",
        LeaseLong = "lease-long",
        LeaseShort = "lease-short",
        LeaseHardlyLengthened = "lease-hardly-lengthened",
        RotatesOften = "rotates-often",
        PostgresUnverified = "postgres-unverified",
        PostgresPlain = "postgres-plain",
        PostgresCertificateEndsSoon = "postgres-certificate-ends-soon",
        PostgresUnbound = "postgres-unbound",
        Pooler = "pooler",
        PoolerRefusesKeys = "pooler-refuses-keys",
        Trust = "trust",
        PostgresClock = "postgres-clock",
        ValidForEver = "valid-for-ever",
        ValidTooShort = "valid-too-short",
        ActsAsSuperuser = "acts-as-superuser",
        InheritsNothing = "inherits-nothing",
        StartupRoleSuperuser = "startup-role-superuser",
        MayOwn = "may-own",
        OwnedByOther = "owned-by-other",
        RoleLimit = "role-limit",
        DatabaseLimit = "database-limit",
        ServerSmall = "server-small",
        ServerBusy = "server-busy",
        RolesExpired = "roles-expired",
        RolesPileUp = "roles-pile-up",
        Belongings = "belongings",
        GrantsToRole = "grants-to-role",
        AccessListLong = "access-list-long",
        PgHbaUnreadable = "pg-hba-unreadable",
        RevocationBlocked = "revocation-blocked",
        ReadersHarmed = "readers-harmed",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_stands_once_in_the_docs_with_the_code_that_it_leads_to() {
        let docs = include_str!("../../docs/check.md");
        let (_, list) = docs.split_once("## What it can find").unwrap();
        let documented: Vec<&str> = list.lines().filter(|line| line.starts_with("| `")).collect();
        let faults = Fault::ALL.iter().map(|fault| (fault.as_str(), fault.class().exit_code()));
        let all: Vec<_> = faults.chain(Warning::ALL.iter().map(|warning| (warning.as_str(), 0))).collect();
        let rows: Vec<_> = all.iter().map(|(name, code)| format!("| `{name}` | {code} | ")).collect();
        assert_eq!(documented.len(), rows.len());
        for (line, row) in documented.iter().zip(&rows) {
            assert!(line.starts_with(row), "{row} is not the beginning of {line}");
        }
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len(), "a name stands twice");
        let counts = format!("{} faults and {} warnings", Fault::ALL.len(), Warning::ALL.len());
        assert!(list.contains(&counts), "{counts}");
    }
}
