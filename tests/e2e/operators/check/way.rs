//! The way to Vault, and Vault's own state.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use super::super::black_hole;
use super::Patient;
use super::front::{Does, Front, acceptor};
use crate::check::{Checked, check, promised};
use crate::support::install::Install;
use crate::support::openbao::OpenBao;
use crate::support::pki::Authority;
use crate::support::postgres::PostgresOptions;
use crate::support::process::{Folder, Process, Spawn};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, until};

/// Settings that log in with a token of root, so that nothing needs to be set up.
struct Root<'a> {
    world: &'a World<'a>,
}

impl<'a> Root<'a> {
    fn of(world: &'a World<'a>) -> Self {
        fs::write(world.folder().join("root"), "root").unwrap();
        Self { world }
    }

    async fn check(&self, address: &str, further: &str) -> Checked {
        let token = json!(self.world.folder().join("root"));
        let login = format!("[vault.login]\nmethod = \"token_file\"\ntoken_file = {token}\n");
        let route = self.world.route("db-app");
        let settings = format!("[vault]\naddress = {address:?}\n{further}\n{login}{route}");
        check(self.world, &settings, &[]).await
    }

    /// Finds this fault, and nothing behind it tried; gives its cure.
    async fn finds(&self, address: &str, further: &str, name: &str, fault: &str) -> String {
        let checked = self.check(address, further).await;
        let step = checked.trouble(name, fault);
        assert_eq!(checked.code, promised(fault), "{:#}", checked.document);
        assert_eq!(checked.step("vault.login")["outcome"], "skipped");
        step["cure"].as_str().unwrap().to_owned()
    }

    async fn well(&self, address: &str, further: &str) -> Checked {
        let checked = self.check(address, further).await;
        for name in
            ["vault.resolve", "vault.connect", "vault.tls", "vault.health", "vault.clock", "vault.login"]
        {
            assert_eq!(checked.step(name)["outcome"], "passed", "{name}: {:#}", checked.document);
        }
        checked
    }
}

#[tokio::test]
async fn way_to_vault_is_gone_step_by_step() {
    let mut openbao = OpenBao::start().await;
    let world = World::shared(WorldOptions::default()).await;
    let root = Root::of(&world);
    let ca = format!("ca_file = {}", json!(openbao.ca_file()));
    let other_ca = format!("ca_file = {}", json!(world.servers.postgres.ca_file()));
    let (plain, tls) = (openbao.address(), openbao.tls_address());
    let (old, mutual) = (openbao.old_tls_address(), openbao.mutual_tls_address());
    let by_name = tls.replace("127.0.0.1", "localhost");
    let nobody = format!("http://127.0.0.1:{}", crate::support::free_ports(1));
    let swapped = [tls.replace("https", "http"), plain.replace("http", "https")];
    let (hole, _held) = black_hole().await;
    let hole = format!("http://{hole}");
    let closing = Front::that(Does::Say(b"")).await;
    let by_closing = format!("https://127.0.0.1:{}", closing.port());
    let proxy = Front::that(Does::Say(b"HTTP/1.1 403 Forbidden\r\n\r\n")).await;
    let by_proxy = format!("{ca}\nproxy = \"http://127.0.0.1:{}\"", proxy.port());
    for (address, further, name, fault, cure) in [
        (&*nobody, "", "vault.connect", "vault-nothing-listens", "vault.address"),
        (&hole, "", "vault.connect", "vault-silent", "let connections to this address and port through"),
        ("http://255.255.255.255:8200", "", "vault.connect", "vault-no-way", "vault.address"),
        (&swapped[0], "", "vault.health", "vault-not-vault", &*format!("vault.address = {tls:?}")),
        (&swapped[1], &ca, "vault.tls", "vault-no-tls", "http://"),
        (&tls, &other_ca, "vault.tls", "vault-ca-unknown", "vault.ca_file"),
        (&by_name, &ca, "vault.tls", "vault-certificate-name", "vault.tls_server_name"),
        (&old, &ca, "vault.tls", "vault-tls-disagreed", "TLS 1.2 and 1.3"),
        (&mutual, &ca, "vault.health", "vault-client-certificate", "vault.client_cert_file"),
        (&by_closing, &ca, "vault.tls", "vault-handshake-broken", "whether Vault is behind it"),
        (&tls, &by_proxy, "vault.tls", "vault-proxy", "CONNECT to vault.address"),
    ] {
        let said = root.finds(address, further, name, fault).await;
        assert!(said.contains(cure), "{cure}: {said}");
    }
    // The cures: Vault's name, its CA, its scheme, a client certificate.
    let by_its_name = format!("{ca}\ntls_server_name = \"127.0.0.1\"");
    let client = openbao.client();
    let (cert, key) = (world.folder().join("client.pem"), world.folder().join("client.key"));
    fs::write(&cert, &client.certificate).unwrap();
    fs::write(&key, &client.key).unwrap();
    let with_certificate = format!("{ca}\nclient_cert_file = {cert:?}\nclient_key_file = {key:?}");
    root.well(&by_name, &by_its_name).await.cured("vault.tls", "vault-certificate-name");
    root.well(&mutual, &with_certificate).await.cured("vault.health", "vault-client-certificate");
    let checked = root.well(&plain, "").await;
    for (name, fault) in [
        ("vault.connect", "vault-nothing-listens"),
        ("vault.connect", "vault-silent"),
        ("vault.connect", "vault-no-way"),
        ("vault.tls", "vault-no-tls"),
    ] {
        checked.cured(name, fault);
    }
    let unverified = root.check(&tls, "skip_verify = true").await;
    let cure = unverified.trouble("vault.tls", "vault-unverified")["cure"].as_str().unwrap();
    assert!(cure.contains("vault.skip_verify = false, and vault.ca_file"), "{cure}");
    let checked = root.well(&tls, &ca).await;
    for (name, fault) in [
        ("vault.health", "vault-not-vault"),
        ("vault.tls", "vault-ca-unknown"),
        ("vault.tls", "vault-tls-disagreed"),
        ("vault.tls", "vault-unverified"),
    ] {
        checked.cured(name, fault);
    }
    // And what is in between does its work.
    let port = tls.rsplit(':').next().unwrap().parse().unwrap();
    closing.now(Does::PassOn(port));
    root.well(&by_closing, &ca).await.cured("vault.tls", "vault-handshake-broken");
    proxy.now(Does::Connect);
    root.well(&tls, &by_proxy).await.cured("vault.tls", "vault-proxy");

    openbao.seal().await;
    let cure = root.finds(&plain, "", "vault.health", "vault-sealed").await;
    assert!(cure.starts_with("vault operator unseal"), "{cure}");
    openbao.unseal().await;
    root.well(&plain, "").await.cured("vault.health", "vault-sealed");

    // It is there, and answers nothing.
    openbao.pause().await;
    root.finds(&plain, "", "vault.health", "vault-no-answer").await;
    openbao.resume();
    root.well(&plain, "").await.cured("vault.health", "vault-no-answer");

    // What follows is shown by the same Vault, in the place of its certificate.
    let authority = Authority::create();
    let names = &["127.0.0.1"];
    for (shown, fault) in [
        (authority.issue_for(names, (2001, 2002)), "vault-certificate-expired"),
        (authority.issue_for(names, (2900, 2901)), "vault-certificate-too-early"),
        (authority.issue_to_client(names), "vault-certificate-unusable"),
    ] {
        openbao.show(&shown, &authority.pem());
        until(async || root.check(&tls, &ca).await.has("vault.tls", fault)).await;
        root.finds(&tls, &ca, "vault.tls", fault).await;
    }
    openbao.show(&authority.issue_living(names, std::time::Duration::from_hours(24)), &authority.pem());
    until(async || root.check(&tls, &ca).await.has("vault.tls", "vault-certificate-ends-soon")).await;
    openbao.show(&authority.issue(names), &authority.pem());
    until(async || root.check(&tls, &ca).await.step("vault.tls")["outcome"] == "passed").await;
    let checked = root.well(&tls, &ca).await;
    for (name, fault) in [
        ("vault.tls", "vault-certificate-expired"),
        ("vault.tls", "vault-certificate-too-early"),
        ("vault.tls", "vault-certificate-unusable"),
        ("vault.tls", "vault-certificate-ends-soon"),
    ] {
        checked.cured(name, fault);
    }
    openbao.stop().await;
}

#[tokio::test]
async fn web_server_that_knows_nothing_of_vault_is_told_from_it_with_tls_as_without() {
    let world = World::shared(WorldOptions::default()).await;
    let (root, authority) = (Root::of(&world), Authority::create());
    let web = Front::that(Does::Say(b"HTTP/1.1 404 Not Found\r\n\r\n<html>")).await;
    let acceptor = acceptor(&authority.issue(&["127.0.0.1"]));
    let with_tls = Front::that(Does::EndTls { acceptor, at_once: true, port: web.port() }).await;
    let ca_file = world.folder().join("web.pem");
    fs::write(&ca_file, authority.pem()).unwrap();
    let ca = format!("ca_file = {}", json!(ca_file));
    for (scheme, port, further, cure) in [
        ("http", web.port(), "", "or correct it"),
        ("https", with_tls.port(), &*ca, "correct vault.address"),
        // In which nobody has asked for anything.
        ("https", with_tls.port(), &format!("{ca}\nnamespace = \"team\""), "correct vault.address"),
    ] {
        let address = format!("{scheme}://127.0.0.1:{port}");
        let said = root.finds(&address, further, "vault.health", "vault-not-vault").await;
        assert!(said.contains(cure), "{cure}: {said}");
    }
    let checked = root.well(&world.servers.openbao.address(), "").await;
    checked.cured("vault.health", "vault-not-vault");
}

/// One that nobody has initialised: `bao server` without `-dev`.
#[tokio::test]
async fn vault_is_initialised_and_unsealed_by_what_is_printed() {
    let world = World::shared(WorldOptions::default()).await;
    let (root, program) = (Root::of(&world), Install::of(PostgresOptions::default().major).openbao);
    let folder = Folder::create(None);
    let (_process, address) = blank_openbao(&program, folder.path()).await;

    let cure = root.finds(&address, "", "vault.health", "vault-not-initialised").await;
    let init = vault(&program, folder.path(), &address, &format!("{cure} -key-shares=1 -key-threshold=1"));
    let key = init.lines().find_map(|line| line.strip_prefix("Unseal Key 1: ")).unwrap();
    let cure = root.finds(&address, "", "vault.health", "vault-sealed").await;
    vault(&program, folder.path(), &address, &format!("{} {key}", cure.lines().next().unwrap()));
    until(async || root.check(&address, "").await.step("vault.health")["outcome"] == "passed").await;
    let checked = root.check(&address, "").await;
    checked.cured("vault.health", "vault-not-initialised");
    checked.cured("vault.health", "vault-sealed");
}

async fn blank_openbao(program: &Path, folder: &Path) -> (Process, String) {
    loop {
        let address = format!("127.0.0.1:{}", crate::support::free_ports(2));
        let config = folder.join("blank.hcl");
        let listener = format!("listener \"tcp\" {{\n  address = {address:?}\n  tls_disable = true\n}}\n");
        fs::write(&config, format!("storage \"inmem\" {{}}\n{listener}")).unwrap();
        let process = Process::spawn(&Spawn {
            program,
            arguments: &["server".to_owned(), format!("-config={}", config.display())],
            environment: &[("HOME", &folder.display().to_string())],
            folder,
            uid: None,
            stop: Signal::KILL,
        });
        let started =
            |lines: &[String]| lines.iter().any(|line| line.contains("server started!")).then_some(());
        if process.lines().wait_for(PATIENCE, started).await.is_some() {
            return (process, format!("http://{address}"));
        }
        let log = process.lines().tail();
        assert!(log.contains("address already in use"), "OpenBao does not start:\n{log}");
    }
}

/// Runs a command of a cure on the command line.
fn vault(program: &Path, home: &Path, address: &str, command: &str) -> String {
    let arguments = command.strip_prefix("vault ").unwrap().split(' ');
    let mut command = std::process::Command::new(program);
    let output =
        command.args(arguments).env_clear().env("BAO_ADDR", address).env("HOME", home).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn rate_limit_of_vault_is_told_with_what_lifts_it() {
    let patient = Patient::new().await;
    let openbao = &patient.world.servers.openbao;
    let login = format!("auth/{}/login", patient.world.auth());
    let quota = patient.world.group("few");
    openbao
        .write(
            &format!("sys/quotas/rate-limit/{quota}"),
            json!({ "path": login, "rate": 1, "interval": "1h" }),
        )
        .await;
    while openbao.call(reqwest::Method::POST, &login, "", Some(json!({}))).await.0 != 429 {}
    let cure = patient.finds("vault.login", "vault-rate-limit").await;
    let cure: Vec<_> = cure.lines().filter(|line| !line.contains("lease-count")).collect();
    let said = patient.follow(&cure.join("\n").replace("<name>", &quota)).await;
    assert!(said[0].contains(&quota), "{said:?}");
    patient.cured("vault.login", "vault-rate-limit").await;
}
