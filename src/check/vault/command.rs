//! Commands of Vault's command line, as a cure has them. OpenBao's, `bao`, takes the same. Pure.

use crate::config::{LoginMethod, VaultConfig};

/// For one Vault, whose namespace each command names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commands<'a> {
    pub(super) config: &'a VaultConfig,
}

impl Commands<'_> {
    pub(super) fn read(self, path: &str, options: &str) -> String {
        self.run("read", options, path)
    }

    pub(super) fn list(self, path: &str) -> String {
        self.run("list", "", path)
    }

    /// `rest` is fields, or options in front of the path where it begins with a dash.
    pub(super) fn write(self, path: &str, rest: &str) -> String {
        if rest.starts_with('-') {
            self.run("write", rest, path)
        } else if matches!(self.config.login.method, LoginMethod::Jwt { .. }) && path.starts_with("auth/") {
            // Without it each writing makes the role one for browsers.
            self.run("write", "", &format!("{path} role_type=jwt {rest}"))
        } else {
            self.run("write", "", &format!("{path} {rest}"))
        }
    }

    /// Options stand between the command and what it is about.
    pub(super) fn run(self, command: &str, options: &str, about: &str) -> String {
        let namespace = self.namespace_of(command, about).map(|namespace| format!("-namespace={namespace}"));
        let parts = ["vault", command, namespace.as_deref().unwrap_or_default(), options, about];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Where a login can go.
    pub(super) fn mounts(self) -> String {
        format!(
            "# its path is for vault.login.mount (annotation pglease.dev/vault-login-mount):\n{}",
            self.run("auth list", "", "")
        )
    }

    /// A path as a policy of the token has it: from the namespace of the login.
    pub(super) fn policy_path(self, path: &str) -> String {
        let VaultConfig { namespace, login, .. } = self.config;
        let Some(secrets) = namespace.as_deref() else { return path.to_owned() };
        let from = login.namespace.as_deref().unwrap_or_default();
        match secrets.strip_prefix(from).map(|below| below.trim_matches('/')) {
            Some("") | None => path.to_owned(),
            Some(below) => format!("{below}/{path}"),
        }
    }

    fn namespace_of(&self, command: &str, about: &str) -> Option<&str> {
        let VaultConfig { namespace, login, .. } = self.config;
        let is_of_login = command.starts_with("auth") || about.starts_with("auth/");
        if is_of_login { login.namespace.as_deref() } else { namespace.as_deref() }
    }
}
