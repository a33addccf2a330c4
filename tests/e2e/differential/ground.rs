//! The two legs: straight to a server over its Unix socket, and through pglease.
//!
//! Over its Unix socket PostgreSQL declines both kinds of encryption, as pglease does without a certificate, and
//! `pg_hba.conf` trusts, as pglease does. Both legs are sessions of the very same role: the direct one logs in
//! under the name that pglease has leased.

use std::future::pending;
use std::thread;

use tokio::runtime;
use tokio::sync::{OnceCell, oneshot};

use super::play::{Address, Leg};
use super::script::Names;
use crate::support::Servers;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_with, until, user_of};

/// Where scripts are played.
pub(super) struct Ground {
    pub(super) direct: Leg,
    pub(super) through: Leg,
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
        let anywhere = world.route("db-app").replace(&format!("/{}?", world.database()), "/?");
        let pglease =
            pglease_with(&(world.settings_with("info", &servers.openbao.address(), "") + &anywhere)).await;
        let leased = user_of(&pglease.connect(&world.database()).await.unwrap()).await;

        let owner = world.group("app_owner");
        world
            .superuser
            .batch_execute(&format!("ALTER ROLE {leased:?} REPLICATION; {OBJECTS}"))
            .await
            .unwrap();
        world.superuser.batch_execute(&format!("GRANT ALL ON pairs TO {owner}")).await.unwrap();

        let socket = postgres.ca_file().with_file_name(format!("data/.s.PGSQL.{}", postgres.port()));
        until(async || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        let names =
            |user: &str| Names { user: user.to_owned(), database: world.database(), major: postgres.major() };
        let leg = |address, user| Leg { address, names: names(user), port: postgres.port() };
        let ground = Self {
            direct: leg(Address::Unix(socket), &leased),
            through: leg(Address::Tcp(pglease.addresses()[0]), "app"),
        };
        if sender.send(ground).is_ok() {
            pending::<()>().await;
        }
    }
}

const HBA: &str = "local all all trust
local replication all trust
host replication all 127.0.0.1/32 scram-sha-256
host replication all ::1/128 scram-sha-256";

const OBJECTS: &str = "
    CREATE TABLE pairs (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO pairs VALUES (1, 0), (2, 0);
    -- So that it is known who looks for a deadlock first.
    CREATE FUNCTION look_for_deadlocks_after(wait text) RETURNS text LANGUAGE sql SECURITY DEFINER
        RETURN set_config('deadlock_timeout', wait, false);
";
