//! The two legs: straight to a server over its Unix socket, and through pglease.
//!
//! Over its Unix socket PostgreSQL declines both kinds of encryption, as pglease does without a certificate, and
//! `pg_hba.conf` trusts, as pglease does. Both legs are sessions of the very same role: the direct one logs in
//! under the name that pglease has leased.

use std::fs;
use std::future::pending;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

use serde_json::json;
use tokio::runtime;
use tokio::sync::{OnceCell, oneshot};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::play::{Address, Leg};
use super::script::Names;
use super::scripts::authentication::PASSWORD;
use crate::support::Servers;
use crate::support::pki::Authority;
use crate::support::process::Folder;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_with, until, user_of};

/// Where scripts are played.
pub(super) struct Ground {
    /// Over the Unix socket, trusted.
    pub(super) direct: Leg,
    /// Over TCP, trusted.
    pub(super) through: Leg,
    /// Over TCP, asked for a password.
    pub(super) direct_asked: Leg,
    pub(super) through_asked: Leg,
    /// The same with TLS from the start.
    pub(super) through_tls: Leg,
    /// Over pglease's own Unix socket, trusted.
    pub(super) through_unix: Leg,
}

impl Ground {
    /// The one that all tests of this process use.
    pub(super) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Ground> = OnceCell::const_new();
        SHARED
            .get_or_init(async || {
                let (sender, receiver) = oneshot::channel();
                // What it owns is bound to a runtime that outlives the test which came first.
                thread::spawn(move || {
                    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(Self::keep(sender));
                });
                receiver.await.expect("the servers of the two legs")
            })
            .await
    }

    async fn keep(sender: oneshot::Sender<Self>) {
        let settings =
            [("unix_socket_directories", "."), ("wal_level", "logical"), ("max_prepared_transactions", "20")];
        let settings = settings.map(|(name, value)| (name, value.to_owned()));
        let servers = Servers::with(settings.to_vec()).await;
        let postgres = &servers.postgres;
        postgres.write_hba(HBA).await;
        let world = World::create(&servers, WorldOptions::default()).await;
        let postgres_user = world.group("scripted");
        let anywhere = world.route("db-app").replace(&format!("/{}?", world.database()), "/?");
        let vault = servers.openbao.address();
        let sockets = Folder::create(None);
        let on_socket = format!("unix_socket = {}", json!(sockets.path()));
        let trusting = pglease_with(&(world.settings_with("info", &vault, &on_socket) + &anywhere)).await;
        let own_socket = sockets.path().join(format!(".s.PGSQL.{}", trusting.port()));
        let leased = user_of(&trusting.connect(&world.database()).await.unwrap()).await;

        let owner = world.group("app_owner");
        let sql = format!(
            "{OBJECTS} GRANT ALL ON pairs, marks TO {owner}; ALTER ROLE {leased:?} REPLICATION;
             CREATE ROLE {postgres_user} LOGIN PASSWORD '{PASSWORD}'"
        );
        world.superuser.batch_execute(&sql).await.unwrap();
        if postgres.major() >= 17 {
            world.superuser.batch_execute(TURNED_AWAY).await.unwrap();
        }
        let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{postgres_user}'");
        let verifier = world.superuser.rows(&sql).await[0][0].clone().unwrap();
        let users = world.folder().join("users");
        fs::write(&users, format!("\"{postgres_user}\" \"{verifier}\"\n")).unwrap();
        fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).unwrap();
        let (certificate, key) = (world.folder().join("tls.crt"), world.folder().join("tls.key"));
        let ca = Authority::create();
        let issued = ca.issue(&["localhost"]);
        fs::write(&certificate, issued.certificate).unwrap();
        fs::write(&key, issued.key).unwrap();
        // A string of JSON is one of TOML.
        let by_password = format!(
            "auth = \"password\"\nauth_file = {}\ntls_cert_file = {}\ntls_key_file = {}",
            json!(users),
            json!(certificate),
            json!(key)
        );
        let asking = pglease_with(&(world.settings_with("info", &vault, &by_password) + &anywhere)).await;

        let socket = postgres.ca_file().with_file_name(format!("data/.s.PGSQL.{}", postgres.port()));
        let leg = |address, user: &str| Leg {
            address,
            names: Names { user: user.to_owned(), database: world.database(), major: postgres.major() },
            password: None,
            trust: None,
            port: postgres.port(),
        };
        let asked = |address, trust: &str| Leg {
            password: Some(PASSWORD),
            trust: Some(trusting_in(trust)),
            ..leg(address, &postgres_user)
        };
        let ca_of_postgres = fs::read_to_string(postgres.ca_file()).unwrap();
        let asking_at = asking.addresses()[0];
        let ground = Self {
            direct: leg(Address::Unix(socket), &leased),
            through: leg(Address::Tcp(trusting.addresses()[0]), "app"),
            direct_asked: asked(
                Address::Tcp(SocketAddr::from(([127, 0, 0, 1], postgres.port()))),
                &ca_of_postgres,
            ),
            through_asked: asked(Address::Tcp(asking_at), &ca.pem()),
            through_tls: asked(Address::Tls(asking_at), &ca.pem()),
            through_unix: leg(Address::Unix(own_socket), "app"),
        };
        // In force once the server has read them.
        until(async || ground.direct.lets_in().await).await;
        if sender.send(ground).is_ok() {
            pending::<()>().await;
        }
    }
}

/// Whom this CA vouches for.
fn trusting_in(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

const HBA: &str = "local all all trust
local replication all trust
host replication all 127.0.0.1/32 scram-sha-256
host replication all ::1/128 scram-sha-256";

/// Sessions that ask for it.
const TURNED_AWAY: &str = "
    CREATE FUNCTION turned_away() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('turned.away', true) <> '' THEN
            RAISE NOTICE 'not this one';
            RAISE EXCEPTION 'turned away' USING ERRCODE = current_setting('turned.away');
        END IF;
    END $$;
    CREATE EVENT TRIGGER turned_away ON login EXECUTE FUNCTION turned_away();
";

const OBJECTS: &str = "
    CREATE TABLE pairs (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO pairs VALUES (1, 0), (2, 0);
    -- Others read the table t, in which nobody may leave anything for a moment.
    CREATE TABLE marks (id int PRIMARY KEY);
    -- So that it is known who looks for a deadlock first.
    CREATE FUNCTION look_for_deadlocks_after(wait text) RETURNS text LANGUAGE sql SECURITY DEFINER
        RETURN set_config('deadlock_timeout', wait, false);
";
