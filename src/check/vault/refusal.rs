//! Why Vault did not do what it was asked, in words. Pure.
//!
//! The proxy decides nothing on the words of an error. Here they choose between cures, where the status leaves several.

use std::time::Duration;

use super::command::Commands;
use super::way;
use crate::check::fault::Fault;
use crate::check::report::Found;
use crate::config::{self, LoginMethod, VaultConfig};
use crate::telemetry::Causes;
use crate::vault::{Answer, Claims, FileProblem, Identity, Operation, Unusable, VaultError};

/// What was asked for, as far as a cure has to name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) config: &'a VaultConfig,
    pub(super) identity: Option<&'a Identity>,
    /// That of the credential; of a login the first of those to come.
    pub(super) vault_path: &'a str,
    /// Since 1970.
    pub(super) now: Duration,
}

/// What failed and what helps.
pub(super) fn fault<T>(error: &VaultError, asked: Asked<'_>) -> Found<T> {
    let (fault, cause, cure) = explain(error, asked);
    Found::fault(fault, Causes(error).to_string(), cause, cure)
}

fn explain(error: &VaultError, asked: Asked<'_>) -> Explained {
    if let Some(rustls::Error::AlertReceived(alert)) = way::within(error) {
        // In TLS 1.3 a server says what it thinks of a client certificate when the handshake is over.
        let (fault, cause, cure) = way::alert_received(*alert);
        return (fault, cause.to_owned(), cure.to_owned());
    }
    let (fault, cause, cure) = match (error, error.operation()) {
        (
            VaultError::File { problem: FileProblem::LimitedUses, .. }
            | VaultError::Unusable { source: Unusable::LimitedUses, .. },
            _,
        ) => return limited_uses(asked),
        (VaultError::File { setting, .. }, _) => {
            return (Fault::LoginFile, "there is nothing in it to log in with".to_owned(), file(setting));
        }
        (VaultError::Spent { .. } | VaultError::HeldBack { .. }, _) => (
            Fault::SecretIdSpent,
            "the SecretID is of no use any more",
            asked.commands().write("auth/<mount>/role/<name>/secret-id", "-f -field=secret_id"),
        ),
        (VaultError::NoConnection { .. } | VaultError::NoAnswer { .. }, _) => (
            Fault::VaultNoAnswer,
            "Vault, or what is in front of it, did not answer in time, though it could be reached",
            "see Vault's log; a database that Vault waits for, or an open transaction that blocks a DROP ROLE, makes \
             creds wait"
                .to_owned(),
        ),
        (VaultError::Unusable { source: Unusable::ZeroByte, .. }, _) => return zero_byte(asked),
        (VaultError::Unusable { .. }, Operation::ReadCreds | Operation::ReadStaticCreds) => {
            return of_another_kind(asked);
        }
        (VaultError::Unusable { .. }, _) => return not_vault(),
        (VaultError::Refused { operation, texts, status, .. }, _) => {
            return refused(error, &Refusal { operation: *operation, texts, status: *status }, asked);
        }
    };
    (fault, cause.to_owned(), cure)
}

/// Name, cause and cure.
type Explained = (Fault, String, String);

#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no cure of their own")]
fn refused(error: &VaultError, refusal: &Refusal<'_>, asked: Asked<'_>) -> Explained {
    let Refusal { operation, texts, status } = *refusal;
    let texts = texts.to_lowercase();
    let has = |words: &str| texts.contains(words);
    match error.answer() {
        Answer::NotFound if has("namespace") => return namespace(asked, operation),
        Answer::Redirect => {
            return (
                Fault::VaultRedirects,
                "a standby names its leader by an address that is not followed".to_owned(),
                "set vault.redirect_hosts to the host that it names, or give vault.address the Service of the active \
                 node; a leader that is gone is replaced within seconds"
                    .to_owned(),
            );
        }
        Answer::TryLater { .. } => {
            return (
                Fault::VaultRateLimit,
                "Vault's rate limit or lease-count quota is used up".to_owned(),
                "# which there are, and what is in them:\nvault list sys/quotas/rate-limit\nvault list sys/quotas/lease-count\n\
                 # and, where nobody needs it (it can also be written with a higher rate):\nvault delete sys/quotas/rate-limit/<name>"
                    .to_owned(),
            );
        }
        Answer::Unavailable if status == 503 => {
            return (Fault::VaultSealed, "Vault is sealed".to_owned(), "vault operator unseal".to_owned());
        }
        _ => {}
    }
    match operation {
        Operation::Health if asked.config.address.starts_with("https://") => not_vault(),
        Operation::Health => {
            let https = asked.config.address.replacen("http://", "https://", 1);
            (
                Fault::VaultNotVault,
                "what answers there is not Vault, or speaks TLS".to_owned(),
                format!(
                    "set vault.address = \"{https}\" (annotation pglease.dev/vault-address), or correct it"
                ),
            )
        }
        Operation::Login => login(&texts, error.answer(), asked),
        Operation::ReadCreds | Operation::ReadStaticCreds => creds(&texts, error.answer(), asked),
        _ => (
            Fault::VaultRefused,
            "Vault did not allow it, or could not do it".to_owned(),
            "see what vault.policy says, and Vault's log".to_owned(),
        ),
    }
}

fn not_vault() -> Explained {
    (
        Fault::VaultNotVault,
        "what answers there is not Vault: another service, or a proxy's own page".to_owned(),
        "correct vault.address (annotation pglease.dev/vault-address)".to_owned(),
    )
}

fn namespace(asked: Asked<'_>, operation: Operation) -> Explained {
    let VaultConfig { namespace, login, .. } = asked.config;
    let is_login = matches!(operation, Operation::Login | Operation::Unwrap | Operation::LookUpSelf);
    let (setting, namespace) = if is_login && login.namespace != *namespace {
        ("vault.login.namespace", &login.namespace)
    } else {
        ("vault.namespace (annotation pglease.dev/vault-namespace)", namespace)
    };
    let name = namespace.as_deref().unwrap_or("/");
    (
        Fault::NamespaceMissing,
        format!("there is no namespace {name}"),
        format!("set {setting} to one that `vault namespace list` has, or remove it"),
    )
}

/// Of a login that was answered, and not granted.
fn login(texts: &str, answer: Answer, asked: Asked<'_>) -> Explained {
    let has = |words: &str| texts.contains(words);
    match &asked.config.login.method {
        LoginMethod::Kubernetes { mount, role, .. } | LoginMethod::Jwt { mount, role, .. } => {
            jwt_login(texts, answer, mount, role, asked)
        }
        LoginMethod::AppRole { mount, .. } if answer == Answer::Denied && !has("invalid") => (
            Fault::AuthMountMissing,
            format!("there is no auth method at {mount}, or the RoleID is locked out after wrong SecretIDs"),
            asked.commands().mounts(),
        ),
        LoginMethod::AppRole { mount, .. } => (
            Fault::SecretIdRefused,
            "Vault does not know this RoleID, or not this SecretID with it: it has ended, was used up, or belongs to \
             another role"
                .to_owned(),
            format!(
                "# <name> is the role of vault.login.role_id:\n{}\n{}\n# the first is for vault.login.role_id, the second \
                 for the file of vault.login.secret_id_file",
                asked.commands().read(&format!("auth/{mount}/role/<name>/role-id"), "-field=role_id"),
                asked.commands().write(&format!("auth/{mount}/role/<name>/secret-id"), "-f -field=secret_id"),
            ),
        ),
        LoginMethod::Cert { mount, role } => {
            let role = role.as_deref().unwrap_or("<name>");
            let path = format!("auth/{mount}/certs/{role}");
            (
                Fault::CertificateRefused,
                "no role of the cert method takes the certificate of vault.client_cert_file, or TLS ends in front of \
                 Vault"
                    .to_owned(),
                asked.commands().write(&path, "certificate=@ca.pem allowed_common_names=<common name>"),
            )
        }
        LoginMethod::TokenFile { token_file } => (
            Fault::TokenRefused,
            "Vault does not know the token, it has ended, or it may not look itself up".to_owned(),
            format!(
                "have whoever writes {} (Vault Agent's sink) log in again; its policies must grant auth/token/lookup-self",
                token_file.display()
            ),
        ),
    }
}

fn jwt_login(texts: &str, answer: Answer, mount: &str, role: &str, asked: Asked<'_>) -> Explained {
    let has = |words: &str| texts.contains(words);
    let claims = match asked.identity {
        Some(Identity::Jwt { claims: Some(claims), .. }) => claims.clone(),
        _ => Claims::default(),
    };
    let is_kubernetes = matches!(asked.config.login.method, LoginMethod::Kubernetes { .. });
    let path = format!("auth/{mount}/role/{role}");
    let write = |fields: String| asked.commands().write(&path, &fields);
    let audience = claims.audience.join(",");
    let account = Account::of(&claims);
    let is_over = claims.expires_at.is_some_and(|end| end < asked.now);
    if is_over || has("expired") || has("expiration") {
        return (
            Fault::JwtExpired,
            "the JWT is over: its file is not replaced".to_owned(),
            "mount the ServiceAccount token as a projected volume, not by subPath and not as a copy; the kubelet then \
             replaces it in time"
                .to_owned(),
        );
    }
    if has("audience") {
        let field = if is_kubernetes { "audience" } else { "bound_audiences" };
        return (
            Fault::JwtAudience,
            format!("the JWT is for {}, and the auth role {role} takes another audience", said(&audience)),
            format!(
                "# either the token gets the audience of the role (annotation pglease.dev/token-audience), which is in:\n\
                 {}\n# or the role takes that of the token:\n{}",
                asked.commands().read(&path, ""),
                write(format!("{field}={audience}")),
            ),
        );
    }
    if has("service account name") {
        return (
            Fault::ServiceAccount,
            format!("the auth role {role} is not for the ServiceAccount {}", said(account.name)),
            write(format!("bound_service_account_names={}", account.name)),
        );
    }
    if has("namespace not authorized") || has("namespaces") {
        return (
            Fault::ServiceAccountNamespace,
            format!("the auth role {role} is not for the Kubernetes namespace {}", said(account.namespace)),
            write(format!("bound_service_account_namespaces={}", account.namespace)),
        );
    }
    if answer == Answer::BadRequest && (has("role") || texts.is_empty()) {
        let policy = policy_name(asked.vault_path);
        let make = if is_kubernetes {
            format!(
                "bound_service_account_names={} bound_service_account_namespaces={} audience={audience} \
                 token_policies={policy} token_ttl=1h",
                account.name, account.namespace
            )
        } else {
            let subject = claims.subject.as_deref().unwrap_or("<sub>");
            format!(
                "user_claim=sub bound_audiences={audience} bound_subject={subject} \
                 token_policies={policy} token_ttl=1h"
            )
        };
        return (
            Fault::AuthRoleMissing,
            format!("auth/{mount} has no role {role}, or the role does not take this JWT"),
            format!(
                "# either vault.login.role (annotation pglease.dev/vault-login-role) gets the name of one of these:\n{}\n\
                 # or the role is made:\n{}",
                asked.commands().list(&format!("auth/{mount}/role")),
                write(make),
            ),
        );
    }
    jwt_login_in_the_dark(answer, mount, &path, &audience, asked)
}

/// Where Vault's words tell nothing.
fn jwt_login_in_the_dark(
    answer: Answer,
    mount: &str,
    path: &str,
    audience: &str,
    asked: Asked<'_>,
) -> Explained {
    let is_kubernetes = matches!(asked.config.login.method, LoginMethod::Kubernetes { .. });
    if answer == Answer::Denied && is_kubernetes {
        return (
            Fault::JwtNotVouchedFor,
            format!(
                "there is no auth method at {mount}, or the API server did not vouch for the JWT: it is for another \
                 audience or cluster (it says {}), or Vault may not ask the API server",
                said(audience)
            ),
            format!(
                "# whether {mount}/ is there, with type kubernetes (else: vault.login.mount, annotation \
                 pglease.dev/vault-login-mount):\n{}\n# which API server is asked:\n{}\n# which audience the role takes \
                 (the token's: annotation pglease.dev/token-audience):\n{}\n# whether Vault may ask:\n\
                 kubectl get clusterrolebinding -o wide | grep system:auth-delegator",
                asked.commands().run("auth list", "", ""),
                asked.commands().read(&format!("auth/{mount}/config"), ""),
                asked.commands().read(path, ""),
            ),
        );
    }
    if answer == Answer::Denied {
        return (
            Fault::AuthMountMissing,
            format!("there is no auth method at {mount}, or this address may not log in"),
            asked.commands().mounts(),
        );
    }
    (
        Fault::JwtRefused,
        "Vault does not take this JWT: its signature, issuer or claims are not what the auth method wants"
            .to_owned(),
        format!(
            "{}\n{}",
            asked.commands().read(&format!("auth/{mount}/config"), ""),
            asked.commands().read(path, "")
        ),
    )
}

/// Of a credential that was asked for, and not granted.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others have no cure of their own")]
fn creds(texts: &str, answer: Answer, asked: Asked<'_>) -> Explained {
    let path = asked.vault_path;
    let has = |words: &str| texts.contains(words);
    let (mount, role) = in_two(path);
    let kind = kind_of_role(path);
    match answer {
        Answer::Denied => (
            Fault::CredsNotAllowed,
            format!("no policy of the token lets it read {path}, or the path is misspelt"),
            format!(
                "# either route.vault_path (annotation pglease.dev/vault-path) is corrected, or a policy of the token gets \
                 the line:\npath \"{}\" {{ capabilities = [\"read\"] }}",
                asked.commands().policy_path(path)
            ),
        ),
        Answer::BadRequest | Answer::NotFound => (
            Fault::VaultRoleMissing,
            format!("{mount} is no database secrets engine, or has no role {role}"),
            format!(
                "# either route.vault_path (annotation pglease.dev/vault-path) gets the name of one of these:\n{}\n\
                 # or the role is made, as deploy/vault/setup.sh does:\n{}",
                asked.commands().list(&format!("{mount}/{kind}")),
                asked.commands().read(&format!("{mount}/{kind}/{role}"), ""),
            ),
        ),
        Answer::Unavailable if has("allowed role") => (
            Fault::ConnectionDisallowsRole,
            format!("the connection of {role} does not allow it"),
            format!(
                "# <connection> is its db_name:\n{}\n{}",
                asked.commands().read(&format!("{mount}/{kind}/{role}"), "-field=db_name"),
                asked.commands().write(&format!("{mount}/config/<connection>"), &format!("allowed_roles={role}")),
            ),
        ),
        _ => (
            Fault::RoleNotMade,
            "Vault could not make a role in PostgreSQL: its own connection there fails, or its creation_statements do"
                .to_owned(),
            format!(
                "# PostgreSQL's words are above, or in Vault's log; the connection is the role's db_name:\n{}",
                role_and_connection(asked),
            ),
        ),
    }
}

fn of_another_kind(asked: Asked<'_>) -> Explained {
    (
        Fault::EngineOfAnotherKind,
        format!("{} is of another secrets engine than database, or a static role", asked.vault_path),
        format!(
            "# route.vault_path (annotation pglease.dev/vault-path) is <mount>/creds/<role>, or \
             <mount>/static-creds/<role>, of a mount with type database:\n{}",
            asked.commands().run("secrets list", "", "")
        ),
    )
}

fn zero_byte(asked: Asked<'_>) -> Explained {
    (
        Fault::ZeroByte,
        "PostgreSQL takes no zero byte, neither in a name nor in a password".to_owned(),
        format!(
            "# username_template and password_policy of the connection, which is the role's db_name, make them:\n{}",
            role_and_connection(asked),
        ),
    )
}

fn limited_uses(asked: Asked<'_>) -> Explained {
    let cause = "each request is a use, and after the last one the token dies, and its leases with it";
    let cure = match &asked.config.login.method {
        LoginMethod::Kubernetes { mount, role, .. } | LoginMethod::Jwt { mount, role, .. } => {
            asked.commands().write(&format!("auth/{mount}/role/{role}"), "token_num_uses=0")
        }
        LoginMethod::AppRole { mount, .. } => {
            asked.commands().write(&format!("auth/{mount}/role/<name>"), "token_num_uses=0")
        }
        LoginMethod::Cert { mount, role } => {
            let role = role.as_deref().unwrap_or("<name>");
            asked.commands().write(&format!("auth/{mount}/certs/{role}"), "token_num_uses=0")
        }
        LoginMethod::TokenFile { .. } => "put a token with num_uses 0 there".to_owned(),
    };
    (Fault::TokenLimitedUses, cause.to_owned(), cure)
}

fn file(setting: &str) -> String {
    format!("mend the file, or set {setting} to one that is there, with one line of text in it")
}

impl<'a> Asked<'a> {
    pub(super) fn commands(self) -> Commands<'a> {
        Commands { config: self.config }
    }
}

/// What Vault has said, in its own words, to what.
struct Refusal<'a> {
    operation: Operation,
    texts: &'a str,
    status: u16,
}

/// Whose ServiceAccount it is: `system:serviceaccount:<namespace>:<name>`.
struct Account<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Account<'a> {
    fn of(claims: &'a Claims) -> Self {
        let subject =
            claims.subject.as_deref().and_then(|subject| subject.strip_prefix("system:serviceaccount:"));
        let (namespace, name) =
            subject.and_then(|of| of.split_once(':')).unwrap_or(("<namespace>", "<name>"));
        Self { namespace, name }
    }
}

/// `deploy/vault/setup.sh` calls a policy as the `vault_role`.
fn policy_name(vault_path: &str) -> &str {
    in_two(vault_path).1
}

/// Mount, and name of the role.
fn in_two(vault_path: &str) -> (&str, &str) {
    let (engine, role) = vault_path.rsplit_once('/').unwrap_or((vault_path, vault_path));
    (engine.rsplit_once('/').map_or(engine, |(mount, _)| mount), role)
}

/// Shows what a credential is made by.
fn role_and_connection(asked: Asked<'_>) -> String {
    let (mount, role) = in_two(asked.vault_path);
    let kind = kind_of_role(asked.vault_path);
    format!(
        "{}\n{}",
        asked.commands().read(&format!("{mount}/{kind}/{role}"), ""),
        asked.commands().read(&format!("{mount}/config/<connection>"), ""),
    )
}

/// Where the engine has the roles of such a path.
fn kind_of_role(vault_path: &str) -> &'static str {
    if config::is_static(vault_path) { "static-roles" } else { "roles" }
}

fn said(text: &str) -> &str {
    if text.is_empty() { "nobody in particular" } else { text }
}
