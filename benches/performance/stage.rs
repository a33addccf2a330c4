//! The servers, and each way to them, started when it is first gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::process::Command;
use std::sync::Arc;

use rustix::process::Pid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::peers::{self, Absent, Peer};
use super::scenarios::{Load, Tls, Way};
use super::shipped::PROGRAM;
use super::support::pglease::Pglease;
use super::support::pki::{Authority, Issued};
use super::support::world::{World, WorldOptions};

/// One world for everything but what has its own.
pub(crate) struct Stage {
    pub(crate) world: World<'static>,
    /// Of pglease and PgBouncer towards clients.
    issued: Issued,
    ca: String,
    ways: HashMap<(Way, Tls), Result<Proxy, Absent>>,
}

enum Proxy {
    None,
    Pglease(Pglease),
    Peer(Peer),
}

/// Where a client goes, and whose work is counted.
#[derive(Clone)]
pub(crate) struct Target {
    /// For libpq and tokio-postgres.
    pub(crate) url: String,
    pub(crate) proxy: Option<Pid>,
}

impl Stage {
    pub(crate) async fn set_up(load: Load) -> Self {
        let world = World::shared(WorldOptions::default()).await;
        let authority = Authority::create();
        let issued = authority.issue(&["localhost", "127.0.0.1", "::1"]);
        let folder = world.folder();
        let ca = folder.join("tls-ca.pem").display().to_string();
        std::fs::write(&ca, authority.pem()).unwrap();
        std::fs::write(folder.join("tls.pem"), &issued.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &issued.key).unwrap();
        let stage = Self { world, issued, ca, ways: HashMap::new() };
        match load {
            Load::Pgbench { .. } | Load::Script { .. } | Load::Calls => stage.make_accounts().await,
            Load::CopyOut | Load::CopyIn => stage.make_wide().await,
            Load::Connects { .. }
            | Load::Burst { .. }
            | Load::Sealed { .. }
            | Load::Idle { .. }
            | Load::Rotation
            | Load::Start => {}
        }
        stage
    }

    /// pgbench's tables, of half a million accounts.
    async fn make_accounts(&self) {
        let postgres = &self.world.servers.postgres;
        let url =
            format!("postgresql://postgres:postgres@127.0.0.1:{}/{}", postgres.port(), self.world.database());
        let mut pgbench = Command::new(postgres.bin().join("pgbench"));
        pgbench.args(["-i", "-q", "-s", "5", "-I", "dtGvp", &url]);
        let made = tokio::task::spawn_blocking(move || pgbench.output().unwrap()).await.unwrap();
        assert!(made.status.success(), "{made:?}");
        let sql = "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC";
        self.world.superuser.batch_execute(sql).await.unwrap();
    }

    /// A table of 64 MiB, and one that takes its like.
    async fn make_wide(&self) {
        let sql = "CREATE UNLOGGED TABLE wide (body text);
            INSERT INTO wide SELECT repeat('x', 1023) FROM generate_series(1, 65536);
            CREATE UNLOGGED TABLE sink (body text);
            GRANT ALL ON wide, sink TO PUBLIC;";
        self.world.superuser.batch_execute(sql).await.unwrap();
        self.world.superuser.batch_execute("VACUUM wide").await.unwrap();
    }

    /// A way to the database, or why there is none.
    pub(crate) async fn target(&mut self, way: Way, tls: Tls) -> Result<Target, Absent> {
        // Neither cares.
        let key = if matches!(way, Way::Direct | Way::Haproxy) { (way, Tls::None) } else { (way, tls) };
        if let Entry::Vacant(_) = self.ways.entry(key) {
            let proxy = self.start(way, tls).await;
            self.ways.insert(key, proxy);
        }
        let postgres = &self.world.servers.postgres;
        let (database, ca) = (self.world.database(), postgres.ca_file().display().to_string());
        let url = |user: &str, port: u16, ca: Option<&str>| {
            let tls = ca.map_or("disable".to_owned(), |ca| format!("require&sslrootcert={ca}"));
            format!("postgresql://{user}@127.0.0.1:{port}/{database}?sslmode={tls}")
        };
        let server_ca = (tls != Tls::None).then_some(ca.as_str());
        let client_ca = tls.of_client().then_some(self.ca.as_str());
        Ok(match self.ways.get(&key).unwrap() {
            Err(absent) => return Err(absent.clone()),
            Ok(Proxy::None) => {
                Target { url: url("postgres:postgres", postgres.port(), server_ca), proxy: None }
            }
            Ok(Proxy::Pglease(pglease)) => {
                Target { url: url("app", pglease.port(), client_ca), proxy: Some(pglease.process().pid()) }
            }
            Ok(Proxy::Peer(peer)) => {
                let ca = if way == Way::Haproxy { server_ca } else { client_ca };
                Target { url: url("postgres:postgres", peer.port, ca), proxy: Some(peer.process.pid()) }
            }
        })
    }

    async fn start(&self, way: Way, tls: Tls) -> Result<Proxy, Absent> {
        let port = self.world.servers.postgres.port();
        match way {
            Way::Direct => Ok(Proxy::None),
            Way::Haproxy => peers::haproxy(port, 2000).await.map(Proxy::Peer),
            Way::Pgbouncer => {
                peers::pgbouncer(port, &self.world.database(), tls, &self.issued).await.map(Proxy::Peer)
            }
            Way::Pglease => Ok(self.pglease(tls, "", "").await),
            Way::PgleaseWarm => Ok(self.pglease(tls, "", "warm = 16\n").await),
            Way::PgleaseThreads => Ok(self.pglease(tls, "threads = 2\n", "").await),
        }
    }

    /// The certificate for clients, as keys of `listen`.
    pub(crate) fn listen(&self, tls: Tls) -> String {
        let file = |name: &str| self.world.folder().join(name).display().to_string();
        if tls.of_client() {
            format!("tls_cert_file = {:?}\ntls_key_file = {:?}\n", file("tls.pem"), file("tls.key"))
        } else {
            String::new()
        }
    }

    /// For a server of ours, of that certificate.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let chain = CertificateDer::from_pem_slice(self.issued.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.issued.key.as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        // As PostgreSQL.
        config.send_tls13_tickets = 0;
        TlsAcceptor::from(Arc::new(config))
    }

    /// For its clients.
    pub(crate) fn connector(&self) -> TlsConnector {
        self.connector_with(ring::default_provider())
    }

    /// For clients that have these ciphers.
    pub(crate) fn connector_with(&self, provider: CryptoProvider) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    /// pglease before a scripted upstream, with these keys of `listen`.
    pub(crate) async fn before_scripted(&self, upstream: u16, tls: Tls, listen: &str) -> Pglease {
        let world = &self.world;
        let listen = format!("{listen}{}", self.listen(tls));
        let settings = world.settings_with("info", &world.servers.openbao.address(), &listen);
        let route = format!(
            "[[route]]\nupstream = \"postgresql://127.0.0.1:{upstream}/app?sslmode={}\"\nvault_path = {:?}\n",
            if tls.of_upstream() { "require" } else { "disable" },
            world.vault_path("db-app")
        );
        started(&(settings + &route)).await
    }

    async fn pglease(&self, tls: Tls, listen: &str, of_route: &str) -> Proxy {
        Proxy::Pglease(started(&self.settings(tls, listen, of_route)).await)
    }

    fn settings(&self, tls: Tls, listen: &str, of_route: &str) -> String {
        let listen = format!("max_sessions = 2000\n{}{listen}", self.listen(tls));
        let vault = self.world.servers.openbao.address();
        let settings = self.world.settings_with("info", &vault, &listen);
        format!("{settings}{}{of_route}", self.route(tls.of_upstream()))
    }

    /// To the world's database, with TLS or without.
    pub(crate) fn route(&self, tls: bool) -> String {
        let world = &self.world;
        if tls {
            return world.route("db-app");
        }
        let upstream = format!(
            "postgresql://127.0.0.1:{}/{}?sslmode=disable",
            world.servers.postgres.port(),
            world.database()
        );
        format!("[[route]]\nupstream = {upstream:?}\nvault_path = {:?}\n", world.vault_path("db-app"))
    }
}

/// pglease on these settings, ready.
async fn started(settings: &str) -> Pglease {
    let pglease = Pglease::start(&PROGRAM, settings).await;
    pglease.wait_ready().await;
    pglease
}
