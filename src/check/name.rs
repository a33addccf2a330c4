//! The steps by name: stable, as CI and runbooks go by them. docs/check.md has the same list.

use std::fmt;

/// A step, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    ConfigSettings,
    ConfigFiles,
    PodDescriptors,
    PodMemory,
    PodDeadline,
    VaultResolve,
    VaultConnect,
    VaultTls,
    VaultHealth,
    VaultClock,
    PostgresReach,
    PostgresTls,
    VaultIdentity,
    VaultLogin,
    VaultCreds,
    PostgresLogin,
    PostgresParameters,
    PostgresChoice,
    PostgresClock,
    PostgresValidUntil,
    PostgresStartupRole,
    PostgresOwnership,
    PostgresConnections,
    PostgresGrants,
    PostgresBelongings,
    PostgresStaleRoles,
    PostgresHba,
    VaultToken,
    VaultLease,
    VaultPolicy,
    VaultRotation,
    VaultRevoke,
    PostgresRevocation,
    CheckEnd,
}

impl Name {
    /// Every step.
    pub(crate) const ALL: &[Self] = &[
        Self::ConfigSettings,
        Self::ConfigFiles,
        Self::PodDescriptors,
        Self::PodMemory,
        Self::PodDeadline,
        Self::VaultResolve,
        Self::VaultConnect,
        Self::VaultTls,
        Self::VaultHealth,
        Self::VaultClock,
        Self::PostgresReach,
        Self::PostgresTls,
        Self::VaultIdentity,
        Self::VaultLogin,
        Self::VaultCreds,
        Self::PostgresLogin,
        Self::PostgresParameters,
        Self::PostgresChoice,
        Self::PostgresClock,
        Self::PostgresValidUntil,
        Self::PostgresStartupRole,
        Self::PostgresOwnership,
        Self::PostgresConnections,
        Self::PostgresGrants,
        Self::PostgresBelongings,
        Self::PostgresStaleRoles,
        Self::PostgresHba,
        Self::VaultToken,
        Self::VaultLease,
        Self::VaultPolicy,
        Self::VaultRotation,
        Self::VaultRevoke,
        Self::PostgresRevocation,
        Self::CheckEnd,
    ];

    /// As it is printed.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigSettings => "config.settings",
            Self::ConfigFiles => "config.files",
            Self::PodDescriptors => "pod.descriptors",
            Self::PodMemory => "pod.memory",
            Self::PodDeadline => "pod.deadline",
            Self::VaultResolve => "vault.resolve",
            Self::VaultConnect => "vault.connect",
            Self::VaultTls => "vault.tls",
            Self::VaultHealth => "vault.health",
            Self::VaultClock => "vault.clock",
            Self::PostgresReach => "postgres.reach",
            Self::PostgresTls => "postgres.tls",
            Self::VaultIdentity => "vault.identity",
            Self::VaultLogin => "vault.login",
            Self::VaultCreds => "vault.creds",
            Self::PostgresLogin => "postgres.login",
            Self::PostgresParameters => "postgres.parameters",
            Self::PostgresChoice => "postgres.choice",
            Self::PostgresClock => "postgres.clock",
            Self::PostgresValidUntil => "postgres.valid_until",
            Self::PostgresStartupRole => "postgres.startup_role",
            Self::PostgresOwnership => "postgres.ownership",
            Self::PostgresConnections => "postgres.connections",
            Self::PostgresGrants => "postgres.grants",
            Self::PostgresBelongings => "postgres.belongings",
            Self::PostgresStaleRoles => "postgres.stale_roles",
            Self::PostgresHba => "postgres.pg_hba",
            Self::VaultToken => "vault.token",
            Self::VaultLease => "vault.lease",
            Self::VaultPolicy => "vault.policy",
            Self::VaultRotation => "vault.rotation",
            Self::VaultRevoke => "vault.revoke",
            Self::PostgresRevocation => "postgres.revocation",
            Self::CheckEnd => "check.end",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That no step is missing in [`Name::ALL`] is for the compiler to say: each is printed by its arm above, and
    /// counted here.
    #[test]
    fn steps_stand_in_order_and_in_the_docs() {
        let places: Vec<usize> = Name::ALL.iter().map(|name| *name as usize).collect();
        assert_eq!(places, (0..=Name::CheckEnd as usize).collect::<Vec<_>>());

        let (docs, _) = include_str!("../../docs/check.md").split_once("## What it can find").unwrap();
        let docs = docs.lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: Vec<&str> = docs.filter_map(|row| row.split('`').next()).collect();
        assert_eq!(documented, Name::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>());
    }
}
