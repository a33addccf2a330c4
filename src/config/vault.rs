//! `[vault]`: where Vault is, as what pglease logs in, and the paths that routes name.

use std::net::IpAddr;

use rustls::pki_types::ServerName;
use url::{Host, Url};

use super::error::Problem;
use super::settings::Reader;
use super::{Ca, ClientCert, LoginConfig, LoginMethod, VaultConfig, VaultTls, value};

pub(crate) fn read(reader: &mut Reader<'_>) -> Option<VaultConfig> {
    let address = reader.value("vault.address", address);
    let namespace = reader.optional("vault.namespace", namespace).flatten();
    let tls = tls(reader);
    let redirect_hosts = reader.list("vault.redirect_hosts", host);
    let proxy = reader.optional("vault.proxy", proxy);
    let state_dir = reader.optional_path("vault.state_dir", value::directory);
    let login = login(reader, namespace.as_deref());
    let (address, tls, login) = (address?, tls?, login?);
    if matches!(login.method, LoginMethod::Cert { .. }) {
        check_cert(reader, &address)?;
    }
    Some(VaultConfig { address, namespace, tls, redirect_hosts: redirect_hosts?, proxy, state_dir, login })
}

fn tls(reader: &mut Reader<'_>) -> Option<VaultTls> {
    let file = reader.optional_path("vault.ca_file", value::certificate_file);
    let dir = reader.optional_path("vault.ca_dir", value::directory);
    let client = client_cert(reader);
    let server_name = reader.optional("vault.tls_server_name", server_name);
    let skip_verify = reader.value("vault.skip_verify", value::boolean);
    let ca = file.map(Ca::File).or(dir.map(Ca::Dir)).unwrap_or_default();
    Some(VaultTls { ca, client, server_name, skip_verify: skip_verify? })
}

/// Both files or none.
fn client_cert(reader: &mut Reader<'_>) -> Option<ClientCert> {
    let cert_file =
        reader.is_given(CERT_FILE).then(|| reader.optional_path(CERT_FILE, value::certificate_file));
    let key_file = reader.is_given(KEY_FILE).then(|| reader.optional_path(KEY_FILE, value::key_file));
    match (cert_file, key_file) {
        (None, None) => None,
        (Some(cert_file), Some(key_file)) => Some(ClientCert { cert_file: cert_file?, key_file: key_file? }),
        (Some(cert_file), None) => cert_file.and_then(|_| reader.missing(KEY_FILE)),
        (None, Some(key_file)) => key_file.and_then(|_| reader.missing(CERT_FILE)),
    }
}

/// The method `cert` logs in with the certificate of the connection.
fn check_cert(reader: &mut Reader<'_>, address: &str) -> Option<()> {
    if !reader.is_given(CERT_FILE) {
        return reader.missing(CERT_FILE);
    }
    if !address.starts_with(HTTPS) {
        reader.fault("vault.address", Problem::CertWithoutTls);
        return None;
    }
    Some(())
}

fn login(reader: &mut Reader<'_>, of_secrets: Option<&str>) -> Option<LoginConfig> {
    let own = reader.optional("vault.login.namespace", namespace);
    let namespace = own.unwrap_or_else(|| of_secrets.map(str::to_owned));
    let method = reader.word("vault.login.method", METHODS)?;
    refuse_others(reader, method);
    let mount = mount(reader, method);
    let method = match method {
        Method::Kubernetes | Method::Jwt => {
            let role = reader.value(ROLE, value::text);
            let jwt_file = reader.path(JWT_FILE, value::readable_file);
            let (mount, role, jwt_file) = (mount?, role?, jwt_file?);
            if method == Method::Jwt {
                LoginMethod::Jwt { mount, role, jwt_file }
            } else {
                LoginMethod::Kubernetes { mount, role, jwt_file }
            }
        }
        Method::AppRole => {
            let role_id = reader.value(ROLE_ID, value::text);
            let secret_id_file = reader.path(SECRET_ID_FILE, value::readable_file);
            let wrapped = reader.value(SECRET_ID_WRAPPED, value::boolean);
            let (mount, role_id, secret_id_file) = (mount?, role_id?, secret_id_file?);
            LoginMethod::AppRole { mount, role_id, secret_id_file, wrapped: wrapped? }
        }
        Method::Cert => LoginMethod::Cert { mount: mount?, role: reader.optional(ROLE, value::text) },
        Method::TokenFile => {
            LoginMethod::TokenFile { token_file: reader.path(TOKEN_FILE, value::readable_file)? }
        }
    };
    Some(LoginConfig { namespace, method })
}

/// As it is written, or as the method is called.
fn mount(reader: &mut Reader<'_>, method: Method) -> Option<String> {
    let name = METHODS.iter().find_map(|(name, known)| (*known == method).then_some(*name))?;
    if reader.is_given(MOUNT) { reader.optional(MOUNT, login_mount) } else { Some(name.to_owned()) }
}

/// Refuses what is written for keys of other methods.
fn refuse_others(reader: &mut Reader<'_>, method: Method) {
    let Some(written) = reader.written("vault.login.method") else { return };
    for (key, methods) in KEYS_OF_METHODS {
        if !methods.contains(&method) && reader.is_given(key) {
            reader.fault(key, Problem::OfAnotherMethod { method: written.clone() });
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Kubernetes,
    Jwt,
    AppRole,
    Cert,
    TokenFile,
}

const METHODS: &[(&str, Method)] = &[
    ("kubernetes", Method::Kubernetes),
    ("jwt", Method::Jwt),
    ("approle", Method::AppRole),
    ("cert", Method::Cert),
    ("token_file", Method::TokenFile),
];

/// The keys that not every method has, and those that have them.
const KEYS_OF_METHODS: &[(&str, &[Method])] = &[
    (MOUNT, &[Method::Kubernetes, Method::Jwt, Method::AppRole, Method::Cert]),
    (ROLE, &[Method::Kubernetes, Method::Jwt, Method::Cert]),
    (JWT_FILE, &[Method::Kubernetes, Method::Jwt]),
    (ROLE_ID, &[Method::AppRole]),
    (SECRET_ID_FILE, &[Method::AppRole]),
    (SECRET_ID_WRAPPED, &[Method::AppRole]),
    (TOKEN_FILE, &[Method::TokenFile]),
];

const CERT_FILE: &str = "vault.client_cert_file";
const KEY_FILE: &str = "vault.client_key_file";
const MOUNT: &str = "vault.login.mount";
const ROLE: &str = "vault.login.role";
const JWT_FILE: &str = "vault.login.jwt_file";
const ROLE_ID: &str = "vault.login.role_id";
const SECRET_ID_FILE: &str = "vault.login.secret_id_file";
const SECRET_ID_WRAPPED: &str = "vault.login.secret_id_wrapped";
const TOKEN_FILE: &str = "vault.login.token_file";

/// Scheme, host, port and path prefix, without slashes at its end and without the API's `/v1`, which callers add.
pub(super) fn address(text: &str) -> Result<String, Problem> {
    let text = value::text(text)?;
    let url = Url::parse(&text).map_err(|_| Problem::NotAVaultAddress)?;
    let has_scheme =
        ["http://", "https://"].iter().any(|scheme| text.to_ascii_lowercase().starts_with(scheme));
    if !has_scheme || !url.has_host() || url.port() == Some(0) {
        return Err(Problem::NotAVaultAddress);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Problem::VaultAddressWithUser);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Problem::VaultAddressWithQuery);
    }
    let path = url.path().trim_matches('/');
    if path.contains("//") {
        return Err(Problem::VaultAddressPath);
    }
    let origin = url.origin().ascii_serialization();
    Ok(match path.strip_suffix(API_VERSION).map(|prefix| prefix.strip_suffix('/').ok_or(prefix)) {
        Some(Ok(prefix)) => format!("{origin}/{prefix}"),
        // A name that merely ends in it is a prefix like any other.
        Some(Err(prefix)) if !prefix.is_empty() => format!("{origin}/{path}"),
        Some(Err(_)) => origin,
        None if path.is_empty() => origin,
        None => format!("{origin}/{path}"),
    })
}

/// A host without scheme, port and path, as a URL has it.
fn host(text: &str) -> Result<String, Problem> {
    let host = match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => Host::Ipv6(address),
        _ => Host::parse(text).map_err(|_| Problem::NotAHost { host: text.to_owned() })?,
    };
    Ok(host.to_string())
}

/// `http://`, host and port.
fn proxy(text: &str) -> Result<String, Problem> {
    let text = value::text(text)?;
    let url = Url::parse(&text).map_err(|_| Problem::NotAProxy)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Problem::ProxyWithUser);
    }
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if url.scheme() == "http" && url.has_host() && is_bare {
        Ok(url.origin().ascii_serialization())
    } else {
        Err(Problem::NotAProxy)
    }
}

/// A name or an IP address that a certificate can be for.
fn server_name(text: &str) -> Result<String, Problem> {
    ServerName::try_from(text).map_err(|_| Problem::NotAServerName)?;
    Ok(text.to_owned())
}

/// Whether what goes to this address stays on this machine or within TLS.
pub(crate) fn is_private(address: &str) -> bool {
    let Ok(url) = Url::parse(address) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    url.scheme() == "https" || host == "localhost" || host.parse::<IpAddr>().is_ok_and(value::is_loopback)
}

/// Without slashes at its ends; the root namespace, `/`, is none.
pub(super) fn namespace(text: &str) -> Result<Option<String>, Problem> {
    match text.trim_matches('/') {
        "" => Ok(None),
        namespace => names(namespace).map(|_| Some(namespace.to_owned())),
    }
}

/// Without slashes at its ends; it may be several names deep.
pub(super) fn login_mount(text: &str) -> Result<String, Problem> {
    let mount = text.trim_matches('/');
    if mount.is_empty() {
        return Err(Problem::Empty);
    }
    if mount.starts_with("auth/") {
        return Err(Problem::MountWithAuth);
    }
    names(mount).map(|_| mount.to_owned())
}

/// `<mount>/creds/<role>`, or `<mount>/static-creds/<role>`, without slashes at its ends. The mount may be several names
/// deep, and each of the three may be called what the others are: place decides.
pub(crate) fn path(text: &str) -> Result<String, Problem> {
    let path = text.trim_matches('/');
    if path.is_empty() {
        return Err(Problem::Empty);
    }
    match names(path)?.as_slice() {
        [API_VERSION, ..] => Err(Problem::VaultPathWithVersion),
        [_, .., "creds" | STATIC_CREDS, role] if is_role(role) => Ok(path.to_owned()),
        [_, .., "creds" | STATIC_CREDS, role] => Err(Problem::NotAVaultRole { role: (*role).to_owned() }),
        _ => Err(Problem::NotAVaultPath),
    }
}

/// Whether a [`path`] is a static role's.
pub(crate) fn is_static(path: &str) -> bool {
    path.rsplit('/').nth(1) == Some(STATIC_CREDS)
}

/// The names between slashes, each of which stands in a URL as it is.
fn names(path: &str) -> Result<Vec<&str>, Problem> {
    let is_name =
        |name: &&str| !name.is_empty() && !matches!(*name, "." | "..") && name.chars().all(is_of_name);
    let names: Vec<&str> = path.split('/').collect();
    if names.iter().all(is_name) { Ok(names) } else { Err(Problem::NotAMount) }
}

/// RFC 3986 §3.3, `pchar` but percent-encodings.
fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@".contains(character)
}

/// Vault's `GenericNameRegex`: `\w(([\w-.]+)?\w)?`.
fn is_role(role: &str) -> bool {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    role.starts_with(is_word)
        && role.ends_with(is_word)
        && role.chars().all(|character| is_word(character) || matches!(character, '-' | '.'))
}

const HTTPS: &str = "https://";

/// Second to last name of a static role's path.
const STATIC_CREDS: &str = "static-creds";

/// First name of each path of Vault's API.
const API_VERSION: &str = "v1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn address_keeps_its_prefix_and_nothing_behind_it() {
        for (text, expected) in [
            ("http://127.0.0.1:8200", Ok("http://127.0.0.1:8200")),
            ("http://127.0.0.1:8200/", Ok("http://127.0.0.1:8200")),
            ("http://127.0.0.1:8200//", Ok("http://127.0.0.1:8200")),
            ("HTTPS://Vault.Example.com", Ok("https://vault.example.com")),
            ("https://[::1]:8200", Ok("https://[::1]:8200")),
            ("https://example.com/vault", Ok("https://example.com/vault")),
            ("https://example.com/a/b/", Ok("https://example.com/a/b")),
            ("http://127.0.0.1:8200/v1", Ok("http://127.0.0.1:8200")),
            ("http://127.0.0.1:8200/v1/", Ok("http://127.0.0.1:8200")),
            ("https://example.com/vault/v1/", Ok("https://example.com/vault")),
            ("https://example.com/ev1", Ok("https://example.com/ev1")),
            ("https://example.com/vault/ev1", Ok("https://example.com/vault/ev1")),
            ("https://example.com/a//b", Err(Problem::VaultAddressPath)),
            ("https://u:p@example.com", Err(Problem::VaultAddressWithUser)),
            ("https://example.com?x=1", Err(Problem::VaultAddressWithQuery)),
            ("https://example.com/#x", Err(Problem::VaultAddressWithQuery)),
            ("vault:8200", Err(Problem::NotAVaultAddress)),
            ("127.0.0.1:8200", Err(Problem::NotAVaultAddress)),
            ("unix:///run/vault.sock", Err(Problem::NotAVaultAddress)),
            ("http:vault:8200", Err(Problem::NotAVaultAddress)),
            ("http://", Err(Problem::NotAVaultAddress)),
            ("https://vault:99999", Err(Problem::NotAVaultAddress)),
            ("https://vault:0", Err(Problem::NotAVaultAddress)),
            ("https://vault\n", Err(Problem::ControlCharacter)),
            ("", Err(Problem::Empty)),
        ] {
            assert_eq!(address(text), expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn path_is_told_by_the_place_of_its_names() {
        let role = |role: &str| Err(Problem::NotAVaultRole { role: role.to_owned() });
        for (text, expected) in [
            ("database/creds/db-app", Ok("database/creds/db-app")),
            ("/database/creds/db-app", Ok("database/creds/db-app")),
            ("database/creds/db-app/", Ok("database/creds/db-app")),
            ("database/shared/prod/x/creds/nymeria", Ok("database/shared/prod/x/creds/nymeria")),
            ("creds/creds/db-app", Ok("creds/creds/db-app")),
            ("database/creds/creds", Ok("database/creds/creds")),
            ("database/creds/static-creds", Ok("database/creds/static-creds")),
            ("static-creds/creds/a", Ok("static-creds/creds/a")),
            ("database/creds/Db_App.v2", Ok("database/creds/Db_App.v2")),
            ("/database/static-creds/a/", Ok("database/static-creds/a")),
            ("creds/static-creds/a", Ok("creds/static-creds/a")),
            ("database/static-creds/a.", role("a.")),
            ("static-creds/a", Err(Problem::NotAVaultPath)),
            ("v1/database/creds/a", Err(Problem::VaultPathWithVersion)),
            ("database/creds/a.", role("a.")),
            ("database/creds/-a", role("-a")),
            ("database/creds/a%2Fb", Err(Problem::NotAMount)),
            ("database//creds/a", Err(Problem::NotAMount)),
            ("database/../creds/a", Err(Problem::NotAMount)),
            ("data base/creds/a", Err(Problem::NotAMount)),
            ("datenbänke/creds/a", Err(Problem::NotAMount)),
            ("creds/a", Err(Problem::NotAVaultPath)),
            ("database/creds", Err(Problem::NotAVaultPath)),
            ("database/creds/a/b", Err(Problem::NotAVaultPath)),
            ("database/roles/a", Err(Problem::NotAVaultPath)),
            ("/", Err(Problem::Empty)),
        ] {
            assert_eq!(path(text), expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn static_roles_are_told_by_the_place_of_their_name() {
        for (path, expected) in [
            ("database/static-creds/a", true),
            ("creds/static-creds/creds", true),
            ("database/creds/static-creds", false),
            ("static-creds/creds/a", false),
            ("static-creds/static-creds/static-creds", true),
        ] {
            assert_eq!(is_static(path), expected, "{path}");
        }
    }

    #[test]
    fn mounts_and_namespaces_lose_the_slashes_at_their_ends() {
        assert_eq!(login_mount("kubernetes/"), Ok("kubernetes".to_owned()));
        assert_eq!(login_mount("/k8s/prod-1"), Ok("k8s/prod-1".to_owned()));
        assert_eq!(login_mount("auth/kubernetes"), Err(Problem::MountWithAuth));
        assert_eq!(login_mount("k8s//prod"), Err(Problem::NotAMount));
        assert_eq!(login_mount("/"), Err(Problem::Empty));
        assert_eq!(namespace("/team/"), Ok(Some("team".to_owned())));
        assert_eq!(namespace("team/sub"), Ok(Some("team/sub".to_owned())));
        assert_eq!(namespace("/"), Ok(None));
        assert_eq!(namespace("team sub"), Err(Problem::NotAMount));
    }

    #[test]
    fn plain_http_is_private_on_loopback_only() {
        for (address, expected) in [
            ("https://vault.example.com", true),
            ("http://localhost:8200", true),
            ("http://127.0.0.1:8200", true),
            ("http://[::1]:8200", true),
            ("http://10.0.0.1:8200", false),
            ("http://vault.example.com", false),
        ] {
            assert_eq!(is_private(address), expected, "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", url in "https?://[a@:/?#\\[\\].%1é]*", vault_path in "[a/.%é]*") {
            let _ = (address(&text), address(&url), path(&text), path(&vault_path), login_mount(&vault_path));
        }

        #[test]
        fn what_is_accepted_has_single_slashes(prefix in "[a/v1]{0,8}", vault_path in "[a/]{0,6}/creds/[a/]{1,3}") {
            if let Ok(address) = address(&format!("http://vault/{prefix}")) {
                prop_assert!(!address.ends_with('/') && !address.trim_start_matches("http://").contains("//"));
            }
            if let Ok(path) = path(&vault_path) {
                prop_assert!(!path.starts_with('/') && !path.ends_with('/') && !path.contains("//"));
            }
        }
    }
}
