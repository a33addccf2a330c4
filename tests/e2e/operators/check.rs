//! What `pglease check` says of faults on the way to Vault and at it: each is made, named, and gone once its cure is
//! followed as it is printed.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time;

use crate::check::{Checked, check};
use crate::support::openbao::OpenBao;
use crate::support::tokenreview::{Answer, TokenReview};
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, until};

/// A check of a world whose settings a fault may be in.
struct Patient {
    world: World<'static>,
    settings: String,
}

impl Patient {
    async fn new() -> Self {
        let world = World::shared(WorldOptions::default()).await;
        let settings = world.settings() + &world.route("db-app");
        Self { world, settings }
    }

    fn role(&self) -> String {
        format!("auth/{}/role/web", self.world.auth())
    }

    async fn check(&self) -> Checked {
        check(&self.world, &self.settings, &[]).await
    }

    /// Finds this step so, with these words in its cause, and `code`; gives its cure.
    async fn finds(&self, name: &str, outcome: &str, cause: &str, code: i32) -> String {
        let checked = self.check().await;
        let step = checked.step(name);
        assert_eq!((step["outcome"].as_str(), checked.code), (Some(outcome), code), "{name}: {step:#}");
        assert!(step["cause"].as_str().unwrap().contains(cause), "{cause}: {step:#}");
        step["cure"].as_str().unwrap().to_owned()
    }

    /// Follows a cure, and finds the step well.
    async fn is_cured(&self, name: &str, cure: &str) {
        self.follow(cure).await;
        let checked = self.check().await;
        assert_eq!(checked.step(name)["outcome"], "passed", "{cure}\n{:#}", checked.document);
    }

    /// Runs the commands of a cure, and adds its lines to the policy.
    async fn follow(&self, cure: &str) {
        let openbao = &self.world.servers.openbao;
        for line in cure.lines() {
            if let Some(arguments) = line.strip_prefix("vault ") {
                // On the command line of OpenBao, which is Vault's.
                let mut command = Command::new(openbao.program());
                command.args(arguments.split(' ')).env_clear().stdin(Stdio::null()).kill_on_drop(true);
                command
                    .env("BAO_ADDR", openbao.address())
                    .env("BAO_TOKEN", "root")
                    .env("HOME", self.world.folder());
                let output = time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
                assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            } else if line.starts_with("path ") {
                self.change_policy(|policy| format!("{policy}{line}\n")).await;
            }
        }
    }

    async fn change_policy(&self, change: impl FnOnce(String) -> String) {
        let openbao = &self.world.servers.openbao;
        let path = format!("sys/policies/acl/{}", self.world.group("db-app"));
        let policy = openbao.read(&path).await["policy"].as_str().unwrap().to_owned();
        openbao.write(&path, json!({ "policy": change(policy) })).await;
    }

    async fn set_role(&self, fields: Value) {
        self.world.write(&self.role(), fields).await;
    }
}

#[tokio::test]
async fn login_that_is_refused_is_told_why_and_what_helps() {
    let mut patient = Patient::new().await;
    for (fields, cause) in [
        (json!({ "audience": "vault" }), "audience"),
        (json!({ "bound_service_account_names": "other" }), "not for the ServiceAccount web"),
        (json!({ "bound_service_account_namespaces": "other" }), "not for the Kubernetes namespace default"),
    ] {
        patient.set_role(fields).await;
        let cure = patient.finds("vault.login", "failed", cause, 77).await;
        patient.is_cured("vault.login", &cure).await;
    }

    patient.set_role(json!({ "token_num_uses": 9 })).await;
    let cure = patient.finds("vault.login", "failed", "each request is a use", 78).await;
    patient.is_cured("vault.login", &cure).await;
    patient.set_role(json!({ "token_type": "batch" })).await;
    let cure = patient.finds("vault.token", "warning", "neither renewed nor revoked", 0).await;
    patient.is_cured("vault.token", &cure).await;

    patient.world.token_review.set_answer(Answer::Status(500));
    let cure = patient.finds("vault.login", "failed", "API server did not vouch", 77).await;
    patient.follow(&cure).await;
    patient.world.token_review.set_answer(Answer::Honest);
    assert_eq!(patient.check().await.code, 0);

    patient.world.write_jwt(-120);
    patient.finds("vault.identity", "failed", "the file is not replaced", 78).await;
    patient.finds("vault.login", "failed", "the JWT is over", 78).await;
    std::fs::write(patient.world.jwt_file(), "no JWT").unwrap();
    patient.finds("vault.identity", "failed", "something else", 78).await;
    let jwt = TokenReview::jwt_for("https://kubernetes.default.svc", "default", "web", 3600);
    std::fs::write(patient.world.jwt_file(), jwt).unwrap();
    // The role takes another audience by now.
    patient.finds("vault.identity", "warning", "the API server itself", 77).await;
    patient.world.write_jwt(600);
    let cure = patient.finds("vault.rotation", "warning", "each new credential is a login", 0).await;
    assert!(cure.contains("pglease.dev/token-expiration"), "{cure}");
    patient.world.write_jwt(3600);

    // What the settings have wrong.
    let settings = patient.settings.clone();
    let auth = format!("mount = {:?}", patient.world.auth());
    for (from, to, cause, code) in [
        (&*auth, "mount = \"nowhere\"", "no auth method at nowhere", 77),
        ("role = \"web\"", "role = \"nobody\"", "no role nobody", 78),
        ("namespace = \"\"", "namespace = \"nowhere\"", "no namespace nowhere", 78),
    ] {
        patient.settings = settings.replacen(from, to, 1);
        let cure = patient.finds("vault.login", "failed", cause, code).await;
        if to.contains("nobody") {
            patient.is_cured("vault.login", &cure).await;
        }
    }
    patient.settings = settings;
    assert_eq!(patient.check().await.failed(), Vec::<&str>::new());
}

#[tokio::test]
async fn what_policies_and_vault_roles_lack_is_told_with_the_lines_that_give_it() {
    let mut patient = Patient::new().await;
    let world_path = patient.world.vault_path("db-app");
    let role = format!("{}/roles/db-app", patient.world.engine());

    // Without the policy default, and without the path.
    patient.set_role(json!({ "token_no_default_policy": true })).await;
    patient.change_policy(|policy| policy.replace(&world_path, "database/creds/other")).await;
    let cure = patient.finds("vault.creds", "failed", "no policy of the token", 77).await;
    patient.is_cured("vault.creds", &cure).await;
    let left = patient.check().await;
    let left = left.step("vault.revoke")["found"].as_str().unwrap();
    assert!(left.starts_with("not revoked: the login of ") && left.contains(" ends at "), "{left}");
    let cure = patient.finds("vault.policy", "failed", "replaced each time", 77).await;
    patient.follow(&cure).await;
    // This one is known to be missing only when it is tried.
    let cure = patient.finds("vault.revoke", "failed", "may not revoke itself", 77).await;
    patient.is_cured("vault.revoke", &cure).await;
    let well = patient.check().await;
    let warnings = well.ended("warning").into_iter().filter(|name| name.starts_with("vault."));
    assert_eq!((well.code, warnings.collect()), (0, Vec::<&str>::new()), "{:#}", well.document);
    // Where the token may ask, each missing line is known at once.
    patient
        .change_policy(|policy| {
            let policy = policy.replace("sys/leases/renew", "sys/leases/nothing");
            format!("{policy}path \"sys/capabilities-self\" {{ capabilities = [\"update\"] }}\n")
        })
        .await;
    let cure = patient.finds("vault.policy", "failed", "replaced each time", 77).await;
    patient.is_cured("vault.policy", &cure).await;

    for (fields, name, cause) in [
        (json!({ "default_ttl": "768h", "max_ttl": "768h" }), "vault.lease", "lives as long"),
        (json!({ "default_ttl": "50s", "max_ttl": "24h" }), "vault.lease", "takes 10 s and more"),
        (
            json!({ "default_ttl": "1h", "max_ttl": "1h" }),
            "vault.lease",
            "replaced each time instead of renewed",
        ),
        (
            json!({ "default_ttl": "2m", "max_ttl": "10m" }),
            "vault.rotation",
            "each new credential is a login",
        ),
        (json!({ "renew_statements": "SELECT 1/0" }), "vault.lease", "could not move VALID UNTIL"),
    ] {
        patient.world.write(&role, fields).await;
        let cure = patient.finds(name, "warning", cause, 0).await;
        patient.is_cured(name, &cure).await;
        patient.world.write(&role, json!({ "default_ttl": "1h", "max_ttl": "24h" })).await;
    }

    patient.world.write(&role, json!({ "creation_statements": "SELECT 1/0" })).await;
    patient.finds("vault.creds", "failed", "its creation_statements do", 69).await;
    patient.world.write_vault_role(&VaultRole::default()).await;
    let config = format!("{}/config/pg", patient.world.engine());
    patient.world.write(&config, json!({ "allowed_roles": "other" })).await;
    let cure = patient.finds("vault.creds", "failed", "does not allow it", 69).await;
    assert!(cure.contains(&role), "{cure}");
    patient.is_cured("vault.creds", &cure.replace("<connection>", "pg")).await;

    let settings = patient.settings.clone();
    let engine = patient.world.engine();
    let kv = format!("kv{}", engine.strip_prefix("database").unwrap());
    patient.world.write(&format!("sys/mounts/{kv}"), json!({ "type": "kv" })).await;
    patient.world.write(&format!("{kv}/creds/db-app"), json!({ "note": "no credential" })).await;
    for (path, cause) in [
        (format!("{kv}/creds/db-app"), "of another secrets engine"),
        (format!("{engine}/creds/nobody"), "has no role nobody"),
        (format!("{engine}/static-creds/db-app"), "has no role db-app"),
    ] {
        patient.world.permit(&path).await;
        patient.settings = settings.replace(&world_path, &path);
        patient.finds("vault.creds", "failed", cause, 78).await;
    }
    patient.world.write(&config, json!({ "allowed_roles": "*" })).await;
    let (db_role, path) = patient.world.add_static_role(86_400).await;
    patient.settings = settings.replace(&world_path, &path);
    let checked = patient.check().await;
    let found = checked.step("vault.creds")["found"].as_str().unwrap();
    assert!(found.starts_with(&format!("{db_role}, of a static role")), "{found}");
    assert_eq!(checked.code, 0, "{:#}", checked.document);
}

/// By a token of root in a file, so that nothing needs to be set up.
#[tokio::test]
async fn way_to_vault_is_gone_step_by_step() {
    let mut openbao = OpenBao::start().await;
    let world = World::shared(WorldOptions::default()).await;
    let token = world.folder().join("root");
    std::fs::write(&token, "root").unwrap();
    let settings = |address: &str, further: &str| {
        format!(
            "[vault]\naddress = {address:?}\n{further}\n[vault.login]\nmethod = \"token_file\"\ntoken_file = {}\n{}",
            json!(token),
            world.route("db-app"),
        )
    };
    let ca = format!("ca_file = {}", json!(openbao.ca_file()));
    let other_ca = format!("ca_file = {}", json!(world.servers.postgres.ca_file()));
    let (plain, tls) = (openbao.address(), openbao.tls_address());
    let by_name = tls.replace("127.0.0.1", "localhost");
    let nobody = format!("http://127.0.0.1:{}", crate::support::free_ports(1));
    let swapped = [tls.replace("https", "http"), plain.replace("http", "https")];
    for (address, further, name, cause, cure, code) in [
        ("http://nowhere.invalid:8200", "", "vault.resolve", "no name server knows", "vault.address", 78),
        (&nobody, "", "vault.connect", "nothing listens there", "vault.address", 69),
        (&swapped[0], "", "vault.health", "speaks TLS", &*format!("vault.address = {tls:?}"), 78),
        (&swapped[1], &ca, "vault.tls", "does not speak TLS", "http://", 78),
        (&tls, &other_ca, "vault.tls", "issued by a CA", "vault.ca_file", 78),
        (&by_name, &ca, "vault.tls", "is for 127.0.0.1", "vault.tls_server_name", 78),
    ] {
        let checked = check(&world, &settings(address, further), &[]).await;
        let step = checked.step(name);
        assert_eq!((step["outcome"].as_str(), checked.code), (Some("failed"), code), "{address}: {step:#}");
        assert!(step["cause"].as_str().unwrap().contains(cause), "{cause}: {step:#}");
        assert!(step["cure"].as_str().unwrap().contains(cure), "{cure}: {step:#}");
        assert_eq!(checked.step("vault.login")["outcome"], "skipped");
    }
    // The cures of the last three: Vault's name, its CA, and its scheme.
    let by_its_name = format!("{ca}\ntls_server_name = \"127.0.0.1\"");
    for (address, further) in [(&by_name, &by_its_name), (&tls, &ca), (&plain, &String::new())] {
        let checked = check(&world, &settings(address, further), &[]).await;
        for name in ["vault.resolve", "vault.tls", "vault.health", "vault.clock", "vault.login"] {
            assert_eq!(checked.step(name)["outcome"], "passed", "{name}: {:#}", checked.document);
        }
        assert_eq!(checked.step("vault.token")["outcome"], "passed", "{:#}", checked.document);
    }
    let skipping = check(&world, &settings(&tls, "skip_verify = true"), &[]).await;
    assert_eq!(skipping.step("vault.tls")["outcome"], "warning");

    openbao.seal().await;
    let checked = check(&world, &settings(&plain, ""), &[]).await;
    let health = checked.step("vault.health");
    assert_eq!((health["found"].as_str(), checked.code), (Some("Vault is sealed"), 69), "{health:#}");
    assert!(health["cure"].as_str().unwrap().starts_with("vault operator unseal"), "{health:#}");
    openbao.unseal().await;
    let checked = check(&world, &settings(&plain, ""), &[]).await;
    assert_eq!(checked.step("vault.health")["outcome"], "passed");
    openbao.stop().await;
}

#[tokio::test]
async fn check_that_is_cut_short_gives_back_what_it_has_begun() {
    // Its role is not made before the test allows it.
    let slow = VaultRole { prelude: "SELECT pg_advisory_xact_lock(41);", ..VaultRole::default() };
    let world = World::shared(WorldOptions { vault_roles: vec![slow], ..WorldOptions::default() }).await;
    let settings = world.settings() + &world.route("db-app");
    let file = world.folder().join("stopped.toml");
    std::fs::write(&file, &settings).unwrap();
    let read =
        || world.requests().iter().filter(|request| request.path == world.vault_path("db-app")).count();

    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let before = read();
        world.superuser.batch_execute("SELECT pg_advisory_lock(41)").await.unwrap();
        let mut command = Command::new(BINARY);
        command.args(["check", "--json", "--config-file"]).arg(&file).env_clear().kill_on_drop(true);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        until(async || read() > before).await;
        let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        world.superuser.batch_execute("SELECT pg_advisory_unlock(41)").await.unwrap();
        let output = time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checked = Checked { code: output.status.code().unwrap(), document };
        let end = checked.step("check.end");
        assert_eq!((end["outcome"].as_str(), checked.code), (Some("failed"), 1), "{:#}", checked.document);
        assert!(end["found"].as_str().unwrap().starts_with("stopped by SIG"), "{end:#}");
        assert_eq!(checked.step("vault.revoke")["outcome"], "passed", "{:#}", checked.document);
        until(async || world.living_roles().await.is_empty()).await;
    }

    let checked = check(&world, &settings, &["--max", "1ms"]).await;
    assert_eq!(checked.step("check.end")["found"], "not done within 1ms");
    assert_eq!(checked.code, 1);
    until(async || world.living_roles().await.is_empty()).await;
}

#[tokio::test]
async fn settings_and_limits_of_the_pod_are_told_with_what_to_set() {
    let mut patient = Patient::new().await;
    let settings = patient.settings.clone();
    let pod = |pod: &str, listen: &str| {
        let settings = settings.replacen("[listen]\n", &format!("[listen]\n{listen}\n"), 1);
        format!("[pod]\n{pod}\n[drain]\ndeadline = \"20s\"\n{settings}")
    };
    patient.settings = pod("termination_grace = \"20s\"", "");
    let cure = patient.finds("pod.deadline", "failed", "before it has revoked", 78).await;
    assert!(cure.contains("drain.deadline = \"15s\""), "{cure}");
    patient.settings = patient.settings.replace("\"20s\"\n[vault]", "\"15s\"\n[vault]");
    patient.is_cured("pod.deadline", "").await;
    patient.settings = pod("termination_grace = \"22s\"", "");
    patient.finds("pod.deadline", "warning", "in the middle of it", 0).await;

    patient.settings = pod("memory_limit = \"64Mi\"", "max_sessions = 1000");
    let cure = patient.finds("pod.memory", "warning", "the kernel kills", 0).await;
    assert!(cure.contains("157Mi"), "{cure}");
    patient.settings = pod("memory_limit = \"157Mi\"", "max_sessions = 1000");
    patient.is_cured("pod.memory", "").await;
    // The cure is the second round.
    for (sessions, outcome) in [(1000, "warning"), (100, "passed")] {
        let file = patient.world.folder().join("limited.toml");
        std::fs::write(&file, pod("", &format!("max_sessions = {sessions}"))).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "ulimit -n 500 && exec \"$@\"", "sh", BINARY, "check", "--json", "--config-file"]);
        let output = shell.arg(&file).env_clear().kill_on_drop(true).output();
        let output = time::timeout(PATIENCE, output).await.unwrap().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checked = Checked { code: output.status.code().unwrap(), document };
        let step = checked.step("pod.descriptors");
        assert_eq!((step["outcome"].as_str(), checked.code), (Some(outcome), 0), "{step:#}");
        let cure = step["cure"].as_str().unwrap_or("set listen.max_sessions = 100,");
        assert!(cure.starts_with("set listen.max_sessions = 100,"), "{cure}");
    }

    patient.settings =
        settings.replacen("role = \"web\"", "", 1).replacen("[listen]", "[listen]\nmax_sesions = 7", 1);
    let checked = check(&patient.world, &patient.settings, &["--offline"]).await;
    assert_eq!((checked.code, checked.failed()), (78, vec!["config.settings"; 2]), "{:#}", checked.document);
    let cures: Vec<_> =
        checked.steps().iter().map(|step| step["cure"].as_str().unwrap_or_default()).collect();
    assert!(cures.iter().any(|cure| cure.contains("max_sessions")), "{cures:?}");
    assert!(cures.iter().any(|cure| cure.contains("--vault-login-role")), "{cures:?}");
}
