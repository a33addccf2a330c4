//! The way to Vault: its namespaces, its certificates, and where it redirects to.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::of;
use crate::support::gate::Gate;
use crate::support::listen_again;
use crate::support::pglease::Pglease;
use crate::support::pki::{Authority, Issued};
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, refused_revocations, start, until, until_alive, until_revoked, user_of};

/// A world in a namespace whose leases can be renewed for long.
fn in_a_namespace() -> WorldOptions {
    WorldOptions { namespaces: &["team"], ..of(VaultRole { default_ttl: "20s", ..VaultRole::default() }) }
}

/// Ends it, and waits until nothing that can log in is left of it.
async fn assert_cleans_up(world: &World<'_>, pglease: &Pglease) {
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert_eq!(refused_revocations(pglease), 0);
    until_revoked(world, pglease).await;
}

#[tokio::test]
async fn scenario_18_namespace_serves_with_its_suffixed_lease_ids_and_a_wrong_one_is_named() {
    // Case C32: one within another, and with slashes around it.
    let world = World::shared(WorldOptions { namespaces: &["team", "sub"], ..in_a_namespace() }).await;
    let namespace = world.namespace();
    assert!(namespace.ends_with("/sub"), "{namespace}");
    let settings = world.settings() + &world.route("db-app");
    let slashed = settings.replace(namespace, &format!("/{namespace}/"));
    let pglease = pglease_with(&slashed).await;
    pglease.wait_for_event("lease.renewed", PATIENCE).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;
    assert_eq!(world.living_roles().await, [user]);
    let leases = format!("{namespace}/sys/leases/lookup/{}", world.vault_path("db-app"));
    let leases = world.servers.openbao.list(&leases).await;
    assert!(leases.len() == 1 && leases[0].contains('.'), "{leases:?}");
    assert_cleans_up(&world, &pglease).await;

    let wrong = settings.replace(namespace, "nowhere");
    let pglease = start(&wrong).await;
    let failed = pglease.wait_for_events("login.failed", 3, PATIENCE).await;
    assert_eq!(failed["code"], 404, "{failed}");
    assert!(failed["error"].as_str().unwrap().ends_with("in vault.namespace \"nowhere\""), "{failed}");
}

#[tokio::test]
async fn login_in_the_root_namespace_reads_and_gives_back_what_is_in_another() {
    let world = World::shared(in_a_namespace()).await;
    let (openbao, namespace) = (&world.servers.openbao, world.namespace());
    let (auth, policy) = (world.auth(), world.group("db-app"));
    let rights = format!(
        "path \"{namespace}/{}\" {{ capabilities = [\"read\"] }}\n\
         path \"{namespace}/sys/leases/renew\" {{ capabilities = [\"update\"] }}\n\
         path \"{namespace}/sys/leases/lookup\" {{ capabilities = [\"update\"] }}",
        world.vault_path("db-app")
    );
    openbao.write(&format!("sys/policies/acl/{policy}"), json!({ "policy": rights })).await;
    openbao.write(&format!("sys/auth/{auth}"), json!({ "type": "kubernetes" })).await;
    openbao.write(&format!("auth/{auth}/config"), world.api_server()).await;
    let role = json!({
        "bound_service_account_names": "web",
        "bound_service_account_namespaces": "default",
        "token_policies": policy,
    });
    openbao.write(&format!("auth/{auth}/role/web"), role).await;

    let settings = world.settings().replace("[vault.login]\n", "[vault.login]\nnamespace = \"/\"\n");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    pglease.wait_for_event("lease.renewed", PATIENCE).await;
    pglease.connect("app").await.unwrap();
    let forbidden = pglease.metric("pglease_vault_requests_total", "code=\"403\"").await;
    assert!(forbidden < 1.0, "{forbidden}");
    assert_cleans_up(&world, &pglease).await;
}

/// What ends TLS before Vault, with a certificate that can be changed.
struct TlsGate {
    address: SocketAddr,
    certificate: watch::Sender<Arc<ServerConfig>>,
    _tasks: JoinSet<()>,
}

impl TlsGate {
    async fn to(port: u16, certificate: &Issued) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (certificate, current) = watch::channel(server_config(certificate));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let mut current = current.clone();
                let acceptor = TlsAcceptor::from(Arc::clone(&current.borrow_and_update()));
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        // Connections that the old one vouched for end.
                        _ = current.changed() => {}
                    }
                });
            }
        });
        Self { address, certificate, _tasks: tasks }
    }

    fn set_certificate(&self, certificate: &Issued) {
        self.certificate.send_replace(server_config(certificate));
    }
}

fn server_config(issued: &Issued) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

#[tokio::test]
async fn private_ca_is_read_again_and_vaults_certificate_may_have_another_name() {
    let world = World::shared(of(VaultRole { default_ttl: "20s", ..VaultRole::default() })).await;
    let (old, new) = (Authority::create(), Authority::create());
    let gate = TlsGate::to(world.servers.openbao.port(), &old.issue(&["vault.example.com"])).await;
    let ca_file = world.folder().join("vault-ca.pem");
    fs::write(&ca_file, old.pem()).unwrap();
    let with = |more: &str| {
        let settings = world.settings_with("debug", &format!("https://{}", gate.address), "");
        let settings = settings.replace("[vault]\n", &format!("[vault]\nca_file = {ca_file:?}\n{more}"));
        settings + &world.route("db-app")
    };

    let nameless = start(&with("")).await;
    let failed = nameless.wait_for_event("login.failed", PATIENCE).await;
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("certificate") && error.contains(&gate.address.to_string()), "{failed}");
    drop(nameless);

    let pglease = pglease_with(&with("tls_server_name = \"vault.example.com\"\n")).await;
    gate.set_certificate(&new.issue(&["vault.example.com"]));
    pglease.wait_for_event("lease.renew_failed", PATIENCE).await;
    // Half of it is written first.
    fs::write(&ca_file, &new.pem()[..100]).unwrap();
    let kept = pglease.wait_for_event("vault.tls_reload_failed", PATIENCE).await;
    assert!(kept["error"].as_str().unwrap().contains("vault-ca.pem"), "{kept}");
    replace(&ca_file, &new.pem());
    pglease.wait_for_event("vault.tls_reloaded", PATIENCE).await;
    until(async || pglease.connect("app").await.is_ok()).await;
    let renewed = pglease.events("lease.renewed").len();
    pglease.wait_for_events("lease.renewed", renewed + 1, PATIENCE).await;
}

/// As the kubelet does: a new file in the place of the old one.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

/// A standby that redirects every request, on an address that was something else's before.
struct Standby(JoinSet<()>);

impl Standby {
    async fn at(address: SocketAddr, leader: String) -> Self {
        let listener = listen_again(address).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let _ = redirect(client, &leader).await;
            }
        });
        Self(tasks)
    }

    async fn end(mut self) {
        self.0.shutdown().await;
    }
}

/// Answers 307 with the request's own path at `leader`.
async fn redirect(client: TcpStream, leader: &str) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).unwrap_or_default();
    let head =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {leader}{path}\r\ncontent-length: 0\r\n");
    client.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await?;
    client.shutdown().await?;
    // What is left unread at a close would be a reset.
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop)
}

#[tokio::test]
async fn scenario_19_redirects_cost_bounded_time_and_lead_to_no_stranger() {
    let world = World::shared(of(VaultRole { default_ttl: "20s", ..VaultRole::default() })).await;
    let openbao = &world.servers.openbao;
    let gate = Gate::to(openbao.port()).await;
    let vault = format!("http://{}", gate.address());
    let settings = world.settings_with("debug", &vault, "") + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    // A stranger on another host, the own host with another scheme, and a leader that takes connections and is dead.
    let stranger = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let other_scheme = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    gate.close().await;
    for (leader, why) in [
        (
            format!("http://{}", stranger.local_addr().unwrap()),
            "a host that vault.redirect_hosts does not name",
        ),
        (format!("https://{}", other_scheme.local_addr().unwrap()), "another scheme"),
        (format!("http://{}", dead.local_addr().unwrap()), "no answer from Vault"),
    ] {
        let standby = Standby::at(gate.address(), leader).await;
        // Whichever request is due.
        until(async || pglease.lines().all().iter().any(|line| line.contains(why))).await;
        if why.starts_with("no answer") {
            // So may one be told of that came before.
            until(async || !pending(&dead).await).await;
        }
        standby.end().await;
    }
    assert!(pending(&stranger).await && pending(&other_scheme).await);
    until_alive(&pglease).await;

    // A leader that lives.
    let standby = Standby::at(gate.address(), openbao.address()).await;
    let granted = async || pglease.metric("pglease_vault_requests_total", "code=\"200\"").await;
    let before = granted().await;
    until(async || granted().await > before).await;
    standby.end().await;
    gate.open().await;
    pglease.connect("app").await.unwrap();
}

/// Whether nobody has connected to it.
async fn pending(listener: &TcpListener) -> bool {
    tokio::time::timeout(std::time::Duration::from_millis(1), listener.accept()).await.is_err()
}
