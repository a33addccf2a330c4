//! The three ways together: what holds, and the exact words for what does not.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use proptest::prelude::*;
use tempfile::TempDir;
use tracing::Level;

use super::error::ConfigErrors;
use super::keys::{KEYS, Kind, Preset, Reads};
use super::*;

/// What a test writes in the three ways. `DIR` stands for a directory with the files `token`, `ca.pem`, `key.pem`
/// and `empty`.
struct Given {
    dir: TempDir,
    file: Option<String>,
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Given {
    fn nothing() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "eyJhbGciOi").unwrap();
        std::fs::write(dir.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        std::fs::write(dir.path().join("key.pem"), "-----BEGIN PRIVATE KEY-----\n").unwrap();
        std::fs::write(dir.path().join("empty"), "").unwrap();
        Self { dir, file: None, variables: Vec::new(), arguments: Vec::new() }
    }

    /// One route and all else that is required, by variables.
    fn minimum() -> Self {
        Self::nothing()
            .variable("PGLEASE_VAULT_ADDRESS", "https://vault:8200")
            .variable("PGLEASE_VAULT_LOGIN_ROLE", "web")
            .variable("PGLEASE_VAULT_LOGIN_JWT_FILE", "DIR/token")
            .variable("PGLEASE_UPSTREAM", "postgresql://db/app")
            .variable("PGLEASE_VAULT_PATH", "database/creds/db-app")
    }

    /// The same by a file, on lines 1 to 8, then `more`.
    fn minimal_file(more: &str) -> Self {
        Self::nothing().file(&format!("{MINIMAL_FILE}{more}"))
    }

    fn file(mut self, text: &str) -> Self {
        self.file = Some(text.to_owned());
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    fn load(&self) -> Result<Loaded, String> {
        self.load_by(load)
    }

    fn load_admin(&self) -> Result<AdminConfig, String> {
        self.load_by(load_admin)
    }

    fn load_injector(&self) -> Result<InjectorConfig, String> {
        self.load_with(injector_flags(), load_injector).map(|loaded| loaded.config)
    }

    fn load_by<T>(
        &self,
        load: impl FnOnce(&ArgMatches, Vec<(OsString, OsString)>) -> Result<T, ConfigErrors>,
    ) -> Result<T, String> {
        self.load_with(flags(), load)
    }

    fn load_with<T>(
        &self,
        flags: Vec<Arg>,
        load: impl FnOnce(&ArgMatches, Vec<(OsString, OsString)>) -> Result<T, ConfigErrors>,
    ) -> Result<T, String> {
        let dir = self.dir.path().to_str().unwrap();
        let mut arguments = vec!["proxy".to_owned()];
        arguments.extend(self.arguments.iter().map(|argument| argument.replace("DIR", dir)));
        let file = self.dir.path().join("pglease.toml");
        if let Some(text) = &self.file {
            std::fs::write(&file, text.replace("DIR", dir)).unwrap();
            arguments.extend(["--config-file".to_owned(), file.to_str().unwrap().to_owned()]);
        }
        let variables = self.variables.iter();
        let variables =
            variables.map(|(name, value)| (name.into(), value.replace("DIR", dir).into())).collect();

        let matches = Command::new("proxy").args(flags).try_get_matches_from(arguments).unwrap();
        load(&matches, variables).map_err(|errors| errors.to_string().replace(&format!("{dir}/"), ""))
    }

    fn config(&self) -> Config {
        self.load().unwrap().config
    }

    fn errors(&self) -> String {
        self.load().unwrap_err()
    }
}

/// Settings that hold, for tests of what goes by them.
pub(crate) fn example() -> Config {
    Given::minimum().config()
}

/// The same by this file.
pub(crate) fn example_of(file: &str) -> Config {
    Given::nothing().file(file).config()
}

const MINIMAL_FILE: &str = r#"[vault]
address = "https://vault:8200"
[vault.login]
role = "web"
jwt_file = "DIR/token"
[[route]]
upstream = "postgresql://db/app"
vault_path = "database/creds/db-app"
"#;

/// Each line of `more` begins at line 9 of the file.
#[track_caller]
fn file_says(more: &str, expected: &str) {
    assert_eq!(Given::minimal_file(more).errors(), expected, "{more}");
}

#[track_caller]
fn flag_says(argument: &str, expected: &str) {
    assert_eq!(Given::minimum().arguments(&[argument]).errors(), expected, "{argument}");
}

#[track_caller]
fn variable_says(name: &str, value: &str, expected: &str) {
    assert_eq!(Given::minimum().variable(name, value).errors(), expected, "{name}");
}

#[test]
fn defaults_hold_where_nobody_wrote_anything() {
    let given = Given::minimum();
    let expected = Config {
        vault: VaultConfig {
            address: "https://vault:8200".to_owned(),
            namespace: None,
            tls: VaultTls::default(),
            redirect_hosts: vec![],
            proxy: None,
            state_dir: None,
            login: LoginConfig {
                namespace: None,
                method: LoginMethod::Kubernetes {
                    mount: "kubernetes".to_owned(),
                    role: "web".to_owned(),
                    jwt_file: given.dir.path().join("token"),
                },
            },
        },
        listen: ListenConfig {
            unix_socket: None,
            tls: None,
            addresses: vec![ListenAddress::Localhost { port: 5432 }],
            auth: AuthConfig::Trust,
            max_sessions: 1000,
            threads: 1,
            connect_wait: Duration::from_secs(10),
        },
        files: vec![],
        routes: vec![RouteConfig {
            database: None,
            user: None,
            upstream: UpstreamConfig { database: Some("app".to_owned()), ..UpstreamConfig::at("db", 5432) },
            vault_path: "database/creds/db-app".to_owned(),
            startup_role: None,
            at_lease_end: AtLeaseEnd::Auto,
            max_session_age: None,
            warm: 0,
            optional: false,
        }],
        drain: DrainConfig {
            accept_for: Duration::ZERO,
            grace: Duration::ZERO,
            deadline: Duration::from_secs(20),
            strict_exit: false,
        },
        http: HttpConfig { address: "[::]:9632".parse().unwrap(), explicit: false },
        admin: AdminConfig {
            address: Some("127.0.0.1:9633".parse().unwrap()),
            explicit: false,
            control: false,
        },
        log: LogConfig { format: LogFormat::Json, level: Level::INFO },
        pod: PodConfig::default(),
    };

    let loaded = given.load().unwrap();
    assert_eq!((&loaded.config, loaded.warnings.as_slice()), (&expected, [].as_slice()));
    let by_file = Given::minimal_file("");
    let mut config = by_file.config();
    config.vault.login.clone_from(&expected.vault.login);
    assert_eq!(config, expected);
}

#[test]
fn flags_win_over_variables_over_vaults_own_over_the_file() {
    let given = Given::minimal_file("[drain]\ngrace = \"1s\"\n");
    assert_eq!(given.config().drain.grace, Duration::from_secs(1));
    assert_eq!(given.config().vault.address, "https://vault:8200");

    let given =
        given.variable("PGLEASE_DRAIN_GRACE", "2s").variable("VAULT_ADDR", "https://vaults-own:8200/");
    assert_eq!(given.config().drain.grace, Duration::from_secs(2));
    assert_eq!(given.config().vault.address, "https://vaults-own:8200");

    let given = given.variable("PGLEASE_VAULT_ADDRESS", "https://variable:8200");
    assert_eq!(given.config().vault.address, "https://variable:8200");

    let given = given.arguments(&["--drain-grace", "3s", "--vault-address=https://flag:8200"]);
    assert_eq!(given.config().drain.grace, Duration::from_secs(3));
    assert_eq!(given.config().vault.address, "https://flag:8200");
}

#[test]
fn the_file_is_named_by_flag_before_variable() {
    let given = Given::minimal_file("").variable("PGLEASE_CONFIG_FILE", "/nowhere");
    assert_eq!(given.config().routes.len(), 1);

    let given = Given::minimum().variable("PGLEASE_CONFIG_FILE", "/nowhere");
    let expected = "config_file = \"/nowhere\" (PGLEASE_CONFIG_FILE): cannot be read: No such file or directory (os \
                    error 2); name a file that is there and that this user may read";
    assert_eq!(given.errors(), expected);
}

#[test]
fn every_value_arrives_where_it_belongs() {
    let given = Given::nothing().file(
        r#"
        [vault]
        address = "http://127.0.0.1:8200/prefix/v1/"
        namespace = "/team/"
        ca_file = "DIR/ca.pem"
        ca_dir = "DIR"
        client_cert_file = "DIR/ca.pem"
        client_key_file = "DIR/key.pem"
        tls_server_name = "vault.example.com"
        skip_verify = false
        redirect_hosts = ["vault-1.example.com", "::1"]
        proxy = "http://proxy:3128/"
        [vault.login]
        method = "kubernetes"
        namespace = "/"
        mount = "k8s/prod-1/"
        role = "web"
        jwt_file = "DIR/token"
        [listen]
        addresses = ["localhost:15432", "127.0.0.2:0"]
        auth = "trust"
        max_sessions = 0x10
        threads = 3
        connect_wait = "1m 30s"
        [[route]]
        database = "wizard"
        user = "*"
        upstream = "host=::1 port=5433 dbname='my db' sslmode=require channel_binding=require connect_timeout=1"
        vault_path = "/database/creds/db-app/"
        startup_role = "app_owner"
        at_lease_end = "leave"
        max_session_age = "1h"
        warm = 5
        optional = true
        [[route]]
        user = "reporting"
        upstream = "postgres://db.example.com?sslrootcert=DIR/ca.pem"
        vault_path = "database/creds/read"
        at_lease_end = "close"
        [drain]
        accept_for = "1s"
        grace = "2s"
        deadline = "2s"
        [http]
        address = "[::]:9632"
        [log]
        format = "text"
        level = "trace"
        "#,
    );
    let ca_file = given.dir.path().join("ca.pem");
    let config = given.config();

    assert_eq!(config.vault.address, "http://127.0.0.1:8200/prefix");
    assert_eq!(config.vault.namespace.as_deref(), Some("team"));
    let client = ClientCert { cert_file: ca_file.clone(), key_file: given.dir.path().join("key.pem") };
    assert_eq!(
        config.vault.tls,
        VaultTls {
            ca: Ca::File(ca_file.clone()),
            client: Some(client),
            server_name: Some("vault.example.com".to_owned()),
            skip_verify: false,
        }
    );
    assert_eq!(config.vault.redirect_hosts, ["vault-1.example.com", "[::1]"]);
    assert_eq!(config.vault.proxy.as_deref(), Some("http://proxy:3128"));
    assert_eq!(config.vault.login.namespace, None);
    assert!(
        matches!(config.vault.login.method, LoginMethod::Kubernetes { mount, .. } if mount == "k8s/prod-1")
    );
    let second: SocketAddr = "127.0.0.2:0".parse().unwrap();
    let addresses = vec![ListenAddress::Localhost { port: 15432 }, ListenAddress::Socket(second)];
    assert_eq!(
        config.listen,
        ListenConfig {
            addresses,
            unix_socket: None,
            tls: None,
            auth: AuthConfig::Trust,
            max_sessions: 16,
            threads: 3,
            connect_wait: Duration::from_secs(90)
        }
    );
    let [wizard, reporting] = config.routes.as_slice() else { panic!("two routes") };
    assert_eq!((wizard.database.as_deref(), wizard.user.as_deref()), (Some("wizard"), None));
    let upstream = &wizard.upstream;
    assert_eq!((upstream.to_string().as_str(), upstream.database.as_deref()), ("[::1]:5433", Some("my db")));
    assert_eq!((upstream.ssl_mode, upstream.channel_binding), (SslMode::Require, ChannelBinding::Require));
    assert_eq!(wizard.upstream.connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(wizard.vault_path, "database/creds/db-app");
    assert_eq!(wizard.startup_role.as_deref(), Some("app_owner"));
    assert_eq!((wizard.at_lease_end, wizard.optional), (AtLeaseEnd::Leave, true));
    assert_eq!((wizard.max_session_age, wizard.warm), (Some(Duration::from_hours(1)), 5));
    assert_eq!((reporting.database.as_deref(), reporting.user.as_deref()), (None, Some("reporting")));
    assert_eq!(reporting.upstream.ssl_root_cert, Some(ca_file));
    assert_eq!((reporting.upstream.database.clone(), reporting.at_lease_end), (None, AtLeaseEnd::Close));
    assert_eq!((config.drain.grace, config.http.explicit), (Duration::from_secs(2), true));
    assert_eq!(config.log, LogConfig { format: LogFormat::Text, level: Level::TRACE });
}

#[test]
fn commands_that_ask_need_no_more_than_the_address_and_the_default_yields() {
    let given = |given: Given| given.load_admin();
    let address = |text: &str| Some(text.parse().unwrap());
    let default = AdminConfig { address: address("127.0.0.1:9633"), explicit: false, control: false };
    assert_eq!(given(Given::nothing()), Ok(default));
    let file = "[admin]\naddress = \"[::1]:1\"\ncontrol = true\n[vault]\naddress = \"nonsense\"\n";
    let written = AdminConfig { address: address("[::1]:1"), explicit: true, control: true };
    assert_eq!(given(Given::nothing().file(file)), Ok(written));
    // In the form by which it is asked.
    let mapped = given(Given::minimum().arguments(&["--admin-address=[::ffff:127.0.0.1]:9000"])).unwrap();
    assert_eq!(mapped.address, address("127.0.0.1:9000"));
    let off = given(Given::minimum().arguments(&["--admin-address="])).unwrap();
    assert_eq!((off.address, off.explicit), (None, true));
    assert!(given(Given::nothing().variable("PGLEASE_ADMIN_ADDRESS", "here")).is_err());

    assert!(Given::minimum().arguments(&["--http-address=127.0.0.1:9633"]).load().is_ok());
}

#[test]
fn empty_variables_are_none_and_empty_optional_values_are_off() {
    let given = Given::minimum()
        .variable("PGLEASE_DRAIN_GRACE", "")
        .variable("PGLEASE_NONSENSE", "")
        .variable("VAULT_CAPATH", "")
        .variable("VAULT_SKIP_VERIFY", "false")
        .arguments(&["--vault-namespace=", "--vault-ca-file=", "--startup-role="]);
    let config = given.config();

    assert_eq!((config.vault.namespace, config.vault.tls), (None, VaultTls::default()));
    assert_eq!(config.routes[0].startup_role, None);
}

#[test]
fn pod_is_what_kubernetes_says_and_its_grace_is_to_outlast_the_drain() {
    let given = Given::minimum()
        .variable("PGLEASE_POD_NAME", "web-5d9f")
        .variable("PGLEASE_POD_NAMESPACE", "shop")
        .variable("PGLEASE_POD_UID", "b1c2")
        .variable("PGLEASE_POD_MEMORY_LIMIT", "67108864")
        .variable("PGLEASE_POD_TERMINATION_GRACE", "21s");
    let loaded = given.load().unwrap();
    let pod = PodConfig {
        name: Some("web-5d9f".to_owned()),
        namespace: Some("shop".to_owned()),
        uid: Some("b1c2".to_owned()),
        memory_limit: Some(64 << 20),
        termination_grace: Some(Duration::from_secs(21)),
    };
    assert_eq!((loaded.config.pod, loaded.warnings.len()), (pod, 0));

    let warnings = given.arguments(&["--drain-deadline=21s"]).load().unwrap().warnings;
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(
        warning.starts_with("drain.deadline 21s is not below the pod's terminationGracePeriodSeconds, 21s")
    );
}

#[test]
fn what_asks_for_nothing_may_be_written() {
    let given = Given::minimal_file(
        r#"
        [listen]
        unix_socket = ""
        unix_socket_mode = "0660"
        peer_uids = []
        tls_cert_file = ""
        threads = 1
        "#,
    )
    .variable("VAULT_CLIENT_CERT", "");

    assert_eq!(given.load().map(|loaded| loaded.config.routes.len()), Ok(1));
}

#[test]
fn threads_are_as_many_as_is_written_or_as_there_are_processors() {
    let threads =
        |written: &str| Given::minimum().variable("PGLEASE_LISTEN_THREADS", written).config().listen.threads;
    assert_eq!(["1", " 3", "64"].map(threads), [1, 3, 64]);
    assert!((1..=64).contains(&threads("auto")));
    assert_eq!(Given::minimum().config().listen.threads, 1);
}

#[test]
fn every_key_is_read() {
    for key in KEYS.iter().filter(|key| key.is_read_by(Reads::Proxy) && !key.is_of_file()) {
        for given in [
            Given::minimum().variable(&key.variable(), "\u{1}"),
            Given::minimum().arguments(&[&format!("--{}=\u{1}", key.flag())]),
        ] {
            let errors = given.errors();
            assert!(errors.starts_with(key.name) && !errors.contains('\n'), "{}: {errors}", key.name);
        }
    }
}

#[test]
fn every_value_in_the_file_has_the_type_of_its_key() {
    for key in KEYS {
        let (table, leaf) = key.table_and_leaf();
        let header = match table {
            "route" | "file" => format!("[[{table}]]"),
            "file.on_change" => format!("[[file]]\n[{table}]"),
            _ => format!("[{table}]"),
        };
        let value = if key.kind == Kind::Boolean { "[]" } else { "true" };
        let errors = Given::nothing().file(&format!("{header}\n{leaf} = {value}\n")).errors();
        let problem = format!("where {} is expected; write it like", key.kind.expected());
        assert!(
            errors
                .lines()
                .any(|line| line.starts_with(&format!("{} = ", key.name)) && line.contains(&problem)),
            "{}: {errors}",
            key.name
        );
    }
}

mod clients;
mod docs;
mod errors;
mod files;
mod injector;
mod routes;
mod running;
mod vault;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_value_panics(index in 0..KEYS.len(), value in ".{0,40}") {
        let given = Given::minimum().variable(&KEYS[index].variable(), &value.replace('\0', ""));
        let _ = given.load();
    }

    #[test]
    fn no_file_panics(text in ".*", toml in "(\\[{1,2}(route|vault|listen\\.x)\\]{1,2}\n|[a-z_.]{1,9} = (1|\"a\"|\\[1, \\{\\}\\]|\\{a = 1\\}|1979-05-27|nan)\n){0,8}") {
        let mut errors = Vec::new();
        let _ = (file::parse("x", &text, &mut errors), file::parse("x", &toml, &mut errors));
        let _ = ConfigErrors::new(errors).to_string();
    }
}
