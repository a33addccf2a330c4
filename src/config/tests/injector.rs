//! `pglease injector`: what holds, and the exact words for what does not.

use super::*;

/// What is required, by variables.
fn minimum() -> Given {
    Given::nothing()
        .variable("PGLEASE_INJECTOR_TLS_CERT_FILE", "DIR/ca.pem")
        .variable("PGLEASE_INJECTOR_TLS_KEY_FILE", "DIR/key.pem")
        .variable("PGLEASE_INJECTOR_IMAGE", "pglease:1")
}

#[test]
fn defaults_hold_where_nobody_wrote_anything() {
    let given = minimum();
    let expected = InjectorConfig {
        address: "[::]:8443".parse().unwrap(),
        explicit: false,
        tls: ServerCert {
            cert_file: given.dir.path().join("ca.pem"),
            key_file: given.dir.path().join("key.pem"),
        },
        sidecar: SidecarConfig {
            image: "pglease:1".to_owned(),
            image_pull_policy: None,
            settings: vec![],
            vault_ca: None,
            token: ProjectedToken { audience: "vault".to_owned(), expiration: Duration::from_hours(24) },
            native: true,
            resources: Resources {
                cpu_request: "10m".to_owned(),
                memory_request: "16Mi".to_owned(),
                cpu_limit: None,
                memory_limit: None,
            },
            conflict: Conflict::Keep,
        },
        http: HttpConfig { address: "[::]:9632".parse().unwrap(), explicit: false },
        log: LogConfig { format: LogFormat::Json, level: Level::INFO },
    };
    assert_eq!(given.load_injector(), Ok(expected));
}

#[test]
fn one_file_and_one_environment_serve_both_commands() {
    let file = format!(
        "{MINIMAL_FILE}[injector]\nimage = \"pglease:1\"\ntls_cert_file = \"DIR/ca.pem\"\ntls_key_file = \"DIR/key.pem\"\n\
         [http]\naddress = \"[::]:1\"\n"
    );
    let given = Given::nothing().file(&file).variable("PGLEASE_INJECTOR_CONFLICT", "reject");
    assert_eq!(given.config().http.address.port(), 1);
    let config = given.load_injector().unwrap();
    assert_eq!((config.http.address.port(), config.sidecar.conflict), (1, Conflict::Reject));

    // What the other reads is not judged, but must be a key.
    let given = Given::nothing().file(&file.replace("[http]", "threads = 2\n[http]"));
    assert_eq!(
        given.errors(),
        "injector.threads: unknown key (pglease.toml:13); did you mean listen.threads?"
    );
    let given = minimum().file("[listen]\nthreads = 2\nmax_sessions = 0\n[[route]]\n[[route]]\n");
    assert!(given.variable("PGLEASE_UPSTREAM", "nonsense").load_injector().is_ok());
    let given = Given::minimum().variable("PGLEASE_INJECTOR_ADDRESS", "nonsense");
    assert!(given.load().is_ok());
}

#[test]
fn neither_command_has_the_flags_of_the_other() {
    for (flags, flag) in [(flags(), "--injector-image=x"), (injector_flags(), "--vault-address=https://v")] {
        let parsed = Command::new("pglease").args(flags).try_get_matches_from(["pglease", flag]);
        assert_eq!(parsed.unwrap_err().kind(), clap::error::ErrorKind::UnknownArgument, "{flag}");
    }
}

#[test]
fn every_key_is_read() {
    for key in KEYS.iter().filter(|key| key.is_read_by(Reads::Injector)) {
        for given in [
            minimum().variable(&key.variable(), "\u{1}"),
            minimum().arguments(&[&format!("--{}=\u{1}", key.flag())]),
        ] {
            let errors = given.load_injector().unwrap_err();
            assert!(errors.starts_with(key.name) && !errors.contains('\n'), "{}: {errors}", key.name);
        }
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_place_and_cure() {
    let given = Given::nothing()
        .file("[injector]\nsettings = [\"listen.max_sesions=3\", \"drain.grace=soon\", \"x\"]\nconflict = \"ask\"\n")
        .variable("PGLEASE_INJECTOR_TOKEN_EXPIRATION", "9m")
        .variable("PGLEASE_INJECTOR_VAULT_CA", "configmap/")
        .variable("PGLEASE_INJECTOR_MEMORY_LIMIT", "16MB")
        .arguments(&["--injector-address=0.0.0.0:9632", "--injector-tls-key-file=DIR/ca.pem"]);
    assert_eq!(
        given.load_injector().unwrap_err(),
        "injector.settings = [\"listen.max_sesions=3\", \"drain.grace=soon\", \"x\"] (pglease.toml:2): drain.grace: not a \
         duration; write one like \"30s\", \"5m\" or \"1h 30m\"\n\
         injector.settings = [\"listen.max_sesions=3\", \"drain.grace=soon\", \"x\"] (pglease.toml:2): listen.max_sesions: \
         no setting of pglease proxy; did you mean listen.max_sessions?\n\
         injector.settings = [\"listen.max_sesions=3\", \"drain.grace=soon\", \"x\"] (pglease.toml:2): not key=value; \
         write it like \"vault.address=https://vault.vault.svc:8200\"\n\
         injector.conflict = \"ask\" (pglease.toml:3): no such choice; use \"keep\" or \"reject\"\n\
         injector.memory_limit = \"16MB\" (PGLEASE_INJECTOR_MEMORY_LIMIT): not a quantity of Kubernetes; write it like \
         \"10m\" or \"16Mi\"\n\
         injector.token_expiration = \"9m\" (PGLEASE_INJECTOR_TOKEN_EXPIRATION): shorter than 10m, which is the least \
         that Kubernetes gives; make it longer\n\
         injector.vault_ca = \"configmap/\" (PGLEASE_INJECTOR_VAULT_CA): not configmap/NAME[/KEY] or \
         secret/NAME[/KEY]; write it so, with names as Kubernetes has them\n\
         injector.tls_key_file = \"ca.pem\" (--injector-tls-key-file): the file holds no private key; name a PEM file \
         with one, unencrypted\n\
         http.address = \"[::]:9632\" (default): the port of injector.address = \"0.0.0.0:9632\" (--injector-address) as \
         well; choose another\n\
         injector.image: not set; set --injector-image or PGLEASE_INJECTOR_IMAGE, or image in the file's [injector]\n\
         injector.tls_cert_file: not set; set --injector-tls-cert-file or PGLEASE_INJECTOR_TLS_CERT_FILE, or \
         tls_cert_file in the file's [injector]"
    );
}

#[test]
fn settings_of_the_sidecar_are_the_proxys() {
    let settings = |text: &str| {
        let given = minimum().arguments(&[&format!("--injector-settings={text}")]);
        given.load_injector().map(|config| {
            let pairs = config.sidecar.settings.into_iter();
            pairs.map(|setting| format!("{}={}", setting.variable, setting.value)).collect::<Vec<_>>()
        })
    };
    assert_eq!(
        settings(
            "vault.address=https://one:8200, route.at_lease_end=leave,vault.address = https://other:8200"
        ),
        Ok(vec![
            "PGLEASE_AT_LEASE_END=leave".to_owned(),
            "PGLEASE_VAULT_ADDRESS=https://other:8200".to_owned()
        ])
    );
    for (text, said) in [
        ("vault.addres=x", "vault.addres: no setting of pglease proxy; did you mean vault.address?"),
        ("injector.image=x", "injector.image: no setting of pglease proxy"),
        ("vault.address", "not key=value; write it like"),
        ("vault.address=vault", "vault.address: not an address of Vault"),
        ("vault.namespace=", "vault.namespace: empty"),
        ("listen.threads=0", "listen.threads: neither a whole number"),
        ("listen.max_sessions=0", "listen.max_sessions: not a whole number"),
        ("listen.addresses=db:1", "listen.addresses: \"db:1\" is neither localhost"),
        ("route.at_lease_end=never", "route.at_lease_end: no such choice"),
        ("route.vault_path=app", "route.vault_path: not of the form"),
        ("route.upstream=postgresql://u:p@db/app", "route.upstream: "),
        ("admin.control=yes", "admin.control: neither true nor false"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    // Files are the pod's.
    assert!(settings("vault.ca_file=/gone/ca.crt").is_ok());
}

#[test]
fn files_of_objects_are_named_as_kubernetes_has_them() {
    let parsed = |text| ObjectFile::parse(text).ok().map(|file| (file.kind, file.name, file.key));
    let file = |kind, name: &str, key: &str| Some((kind, name.to_owned(), key.to_owned()));
    assert_eq!(parsed("configmap/vault-ca"), file(ObjectKind::ConfigMap, "vault-ca", "ca.crt"));
    assert_eq!(parsed("secret/a.b/tls.crt"), file(ObjectKind::Secret, "a.b", "tls.crt"));
    for text in [
        "",
        "vault-ca",
        "configmap",
        "configmap/",
        "configmap/A",
        "configmap/-a",
        "configmap/a/",
        "pod/a",
        "secret/a/../b",
        "secret/a/..",
        "secret/a/b/c",
        "secret/a..b",
    ] {
        assert_eq!(parsed(text), None, "{text}");
    }
}
