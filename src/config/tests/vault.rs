//! Where Vault is, and how one logs in to it.

use super::*;

#[test]
fn service_account_token_is_where_kubernetes_mounts_it() {
    let jwt_file = keys::find("vault.login.jwt_file").unwrap();
    assert_eq!(jwt_file.default, Preset::Value("/var/run/secrets/kubernetes.io/serviceaccount/token"));
}

#[test]
fn each_method_has_its_keys_and_its_mount() {
    let given = |method: &str, more: &str| {
        let file = MINIMAL_FILE.replace("role = \"web\"\njwt_file = \"DIR/token\"\n", more);
        Given::nothing()
            .file(&file.replace("[vault.login]\n", &format!("[vault.login]\nmethod = {method:?}\n")))
    };
    let method = |given: &Given| given.config().vault.login.method;
    let token = |given: &Given| given.dir.path().join("token");

    let jwt = given("jwt", "role = \"web\"\njwt_file = \"DIR/token\"\n");
    let (mount, role, jwt_file) = ("jwt".to_owned(), "web".to_owned(), token(&jwt));
    assert_eq!(method(&jwt), LoginMethod::Jwt { mount, role, jwt_file });

    let text = "mount = \"apps\"\nrole_id = \"r\"\nsecret_id_file = \"DIR/token\"\n";
    for (more, wrapped) in [("", false), ("secret_id_wrapped = true\n", true)] {
        let approle = given("approle", &format!("{text}{more}"));
        let (mount, role_id, secret_id_file) = ("apps".to_owned(), "r".to_owned(), token(&approle));
        assert_eq!(method(&approle), LoginMethod::AppRole { mount, role_id, secret_id_file, wrapped });
    }

    for (more, role) in [("", None), ("role = \"web\"\n", Some("web".to_owned()))] {
        let cert = given("cert", more)
            .variable("VAULT_CLIENT_CERT", "DIR/ca.pem")
            .variable("VAULT_CLIENT_KEY", "DIR/key.pem");
        assert_eq!(method(&cert), LoginMethod::Cert { mount: "cert".to_owned(), role });
    }

    let file = given("token_file", "token_file = \"DIR/token\"\n");
    assert_eq!(method(&file), LoginMethod::TokenFile { token_file: token(&file) });
}

#[test]
fn login_is_in_the_namespace_of_the_secrets_unless_it_has_its_own() {
    let given = Given::minimum().variable("VAULT_NAMESPACE", "team/");
    assert_eq!(given.config().vault.login.namespace.as_deref(), Some("team"));
    let given = given.variable("PGLEASE_VAULT_LOGIN_NAMESPACE", "pods");
    let VaultConfig { namespace, login, .. } = given.config().vault;
    assert_eq!((namespace.as_deref(), login.namespace.as_deref()), (Some("team"), Some("pods")));
    let given = given.variable("PGLEASE_VAULT_LOGIN_NAMESPACE", "/");
    assert_eq!(given.config().vault.login.namespace, None);
}

#[test]
fn vaults_own_variables_mean_what_they_mean_elsewhere() {
    let config = Given::minimum()
        .variable("VAULT_CAPATH", "DIR")
        .variable("VAULT_TLS_SERVER_NAME", "10.0.0.1")
        .variable("VAULT_SKIP_VERIFY", "1")
        .variable("VAULT_PROXY_ADDR", "http://one:3128")
        .variable("VAULT_HTTP_PROXY", "http://other:3128")
        .variable("HTTPS_PROXY", "http://pods:3128")
        .config();
    assert!(matches!(config.vault.tls.ca, Ca::Dir(_)) && config.vault.tls.skip_verify);
    assert_eq!(config.vault.tls.server_name.as_deref(), Some("10.0.0.1"));
    assert_eq!(config.vault.proxy.as_deref(), Some("http://one:3128"));
    let config =
        Given::minimum().variable("VAULT_CAPATH", "DIR").variable("VAULT_CACERT", "DIR/ca.pem").config();
    assert!(matches!(config.vault.tls.ca, Ca::File(_)));
}

#[test]
fn keys_of_another_login_method_name_it() {
    variable_says(
        "PGLEASE_VAULT_LOGIN_SECRET_ID_FILE",
        "DIR/token",
        "vault.login.secret_id_file = \"token\" (PGLEASE_VAULT_LOGIN_SECRET_ID_FILE): no key of vault.login.method = \
         \"kubernetes\" (default); remove one of them",
    );
    flag_says(
        "--vault-login-secret-id-wrapped",
        "vault.login.secret_id_wrapped = true (--vault-login-secret-id-wrapped): no key of vault.login.method = \
         \"kubernetes\" (default); remove one of them",
    );
    let login = |text: &str| {
        let (before, _) = MINIMAL_FILE.split_once("role = ").unwrap();
        let (_, after) = MINIMAL_FILE.split_once("jwt_file = \"DIR/token\"\n").unwrap();
        Given::nothing().file(&format!("{before}{text}{after}")).errors()
    };
    assert_eq!(
        login("method = \"approle\"\nrole = \"web\"\nrole_id = \"r\"\nsecret_id_file = \"DIR/token\"\n"),
        "vault.login.role = \"web\" (pglease.toml:5): no key of vault.login.method = \"approle\" (pglease.toml:4); \
         remove one of them"
    );
    assert_eq!(
        login("method = \"token_file\"\nmount = \"x\"\ntoken_file = \"DIR/token\"\n"),
        "vault.login.mount = \"x\" (pglease.toml:5): no key of vault.login.method = \"token_file\" \
         (pglease.toml:4); remove one of them"
    );
    let missing = |method: &str| {
        let errors = login(&format!("method = {method:?}\n"));
        errors.lines().map(|line| line.split_once(": not set").unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(missing("approle"), ["vault.login.role_id", "vault.login.secret_id_file"]);
    assert_eq!(missing("token_file"), ["vault.login.token_file"]);
    assert_eq!(missing("cert"), ["vault.client_cert_file"]);
}

#[test]
fn certificates_towards_vault_come_whole_and_over_tls() {
    variable_says(
        "VAULT_CLIENT_CERT",
        "DIR/ca.pem",
        "vault.client_key_file: not set; set --vault-client-key-file or PGLEASE_VAULT_CLIENT_KEY_FILE, or \
         client_key_file in the file's [vault]",
    );
    variable_says(
        "VAULT_SKIP_VERIFY",
        "yes",
        "vault.skip_verify = \"yes\" (VAULT_SKIP_VERIFY): neither true nor false; write one of them",
    );
    let mut given = Given::minimum()
        .variable("VAULT_CLIENT_CERT", "DIR/ca.pem")
        .variable("VAULT_CLIENT_KEY", "DIR/ca.pem");
    assert_eq!(
        given.errors(),
        "vault.client_key_file = \"ca.pem\" (VAULT_CLIENT_KEY): the file holds no private key; name a PEM file with \
         one, unencrypted"
    );
    given = given
        .variable("VAULT_CLIENT_KEY", "DIR/key.pem")
        .variable("PGLEASE_VAULT_ADDRESS", "http://vault:8200")
        .variable("PGLEASE_VAULT_LOGIN_METHOD", "cert");
    given.variables.retain(|(name, _)| name != "PGLEASE_VAULT_LOGIN_JWT_FILE");
    assert_eq!(
        given.errors(),
        "vault.address = \"http://vault:8200\" (PGLEASE_VAULT_ADDRESS): plain HTTP, and the login method \"cert\" is \
         a certificate of TLS; use https://"
    );
}
