//! What the token must be allowed to do, and the lines of a policy that are missing. Pure.

use std::collections::BTreeMap;

use super::command::Commands;
use crate::check::fault::Fault;
use crate::check::report::Found;
use crate::vault::TokenKind;

/// A line of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) path: String,
    capability: &'static str,
    /// What goes wrong without it.
    otherwise: &'static str,
}

/// Whether the token has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    Yes,
    No,
    /// It was not tried.
    Unknown,
}

/// All that the proxy asks of a token of this kind, but for the credentials themselves, as a policy of it has them.
pub(super) fn needed(kind: TokenKind, has_leases: bool, commands: Commands<'_>) -> Vec<Right> {
    let right = |path: &str, capability, otherwise| Right { path: path.to_owned(), capability, otherwise };
    let mut rights = vec![right(LOOK_UP_SELF, "read", "nothing can be told about a token in doubt")];
    if kind == TokenKind::Service {
        rights.push(right(
            RENEW_SELF,
            "update",
            "the token, and all that was read with it, ends with its TTL",
        ));
        rights.push(right(REVOKE_SELF, "update", "credentials stay behind when the pod ends"));
    }
    if has_leases {
        let renew = commands.policy_path(RENEW);
        rights.push(right(
            &commands.policy_path(LOOK_UP),
            "update",
            "nothing can be told about a lease in doubt",
        ));
        rights.push(right(&renew, "update", "the credential is replaced each time that its TTL ends"));
    }
    rights
}

/// What `sys/capabilities-self` says of a right.
pub(super) fn by_capabilities(right: &Right, told: &BTreeMap<String, Vec<String>>) -> Has {
    let Some(capabilities) = told.get(&right.path) else { return Has::Unknown };
    let is_granted = capabilities.iter().any(|has| has == right.capability || has == "root");
    if is_granted { Has::Yes } else { Has::No }
}

/// Judges all of them. `policies` are the token's, where it could be asked.
pub(super) fn judge(rights: &[(Right, Has)], policies: &[String]) -> Found {
    let missing: Vec<&Right> =
        rights.iter().filter(|(_, has)| *has == Has::No).map(|(right, _)| right).collect();
    let unknown: Vec<&str> =
        rights.iter().filter(|(_, has)| *has == Has::Unknown).map(|(right, _)| right.path.as_str()).collect();
    if missing.is_empty() {
        let mut found = "all that the proxy asks for is allowed".to_owned();
        if !unknown.is_empty() {
            found = format!("{found}, as far as was tried: not {}", unknown.join(", "));
        }
        return Found::fine(found);
    }
    let paths: Vec<&str> = missing.iter().map(|right| right.path.as_str()).collect();
    let cause = missing.iter().map(|right| right.otherwise).collect::<Vec<_>>().join("; ");
    let which = if policies.is_empty() { String::new() } else { format!(" ({})", policies.join(", ")) };
    let lines = missing.iter().map(|Right { path, capability, .. }| {
        format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}")
    });
    let heading = format!("# lines for a policy of the token{which}; deploy/vault/policy.hcl has all:");
    let cure = [heading].into_iter().chain(lines).collect::<Vec<_>>().join("\n");
    Found::fault(Fault::PolicyLacks, format!("not allowed: {}", paths.join(", ")), cause, cure)
}

pub(super) const LOOK_UP_SELF: &str = "auth/token/lookup-self";
pub(super) const RENEW_SELF: &str = "auth/token/renew-self";
const REVOKE_SELF: &str = "auth/token/revoke-self";
pub(super) const LOOK_UP: &str = "sys/leases/lookup";
pub(super) const RENEW: &str = "sys/leases/renew";

#[cfg(test)]
mod tests {
    use super::super::super::report::{Class, Outcome};
    use super::*;
    use crate::config::{LoginConfig, LoginMethod, VaultConfig, VaultTls};

    fn config(secrets: Option<&str>, login: Option<&str>) -> VaultConfig {
        let method = LoginMethod::TokenFile { token_file: "token".into() };
        VaultConfig {
            address: "http://vault:8200".to_owned(),
            namespace: secrets.map(str::to_owned),
            tls: VaultTls::default(),
            redirect_hosts: Vec::new(),
            proxy: None,
            state_dir: None,
            login: LoginConfig { namespace: login.map(str::to_owned), method },
        }
    }

    fn paths(kind: TokenKind, has_leases: bool, config: &VaultConfig) -> Vec<String> {
        needed(kind, has_leases, Commands { config }).into_iter().map(|right| right.path).collect()
    }

    #[test]
    fn rights_are_those_that_a_token_of_its_kind_can_use() {
        let plain = config(None, None);
        let all = [LOOK_UP_SELF, RENEW_SELF, REVOKE_SELF, LOOK_UP, RENEW];
        assert_eq!(paths(TokenKind::Service, true, &plain), all);
        assert_eq!(paths(TokenKind::Batch, true, &plain), [LOOK_UP_SELF, LOOK_UP, RENEW]);
        assert_eq!(paths(TokenKind::Foreign, false, &plain), [LOOK_UP_SELF]);
        let below = config(Some("team/sub"), Some("team"));
        assert_eq!(
            paths(TokenKind::Batch, true, &below)[1..],
            ["sub/sys/leases/lookup", "sub/sys/leases/renew"]
        );
        let of_root = config(Some("team"), None);
        assert_eq!(paths(TokenKind::Batch, true, &of_root)[2], "team/sys/leases/renew");
        let same = config(Some("team"), Some("team"));
        assert_eq!(paths(TokenKind::Batch, true, &same)[2], RENEW);
    }

    #[test]
    fn missing_lines_are_written_as_a_policy_has_them() {
        let plain = config(None, None);
        let rights = needed(TokenKind::Service, true, Commands { config: &plain });
        let told = |capability: &str| {
            let told = [(RENEW, capability), (LOOK_UP, "deny"), (LOOK_UP_SELF, "root")];
            told.map(|(path, capability)| (path.to_owned(), vec![capability.to_owned()])).into()
        };
        let known = |told: &BTreeMap<String, Vec<String>>| {
            rights.iter().map(|right| (right.clone(), by_capabilities(right, told))).collect::<Vec<_>>()
        };
        let found = judge(&known(&told("update")), &["db-app".to_owned()]);
        assert_eq!(found.outcome(), Outcome::Failed(Class::Permission));
        let lines = "# lines for a policy of the token (db-app); deploy/vault/policy.hcl has all:\n\
                     path \"sys/leases/lookup\" { capabilities = [\"update\"] }";
        assert_eq!(found.cure(), Some(lines));
        assert!(judge(&known(&told("read")), &[]).cure().unwrap().contains("path \"sys/leases/renew\""));

        let found = judge(&known(&BTreeMap::new()), &[]);
        assert_eq!(found.outcome(), Outcome::Passed);
        assert!(found.found().contains("not auth/token/lookup-self, "), "{found:?}");
    }
}
