//! A primary and its standby: which of them serves, and what a failover is to sessions and to those who come.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::addresses::{address, forward, write_hosts};
use crate::namespace::pglease_with;
use crate::raw::Raw;
use crate::support::Servers;
use crate::support::openbao::OpenBao;
use crate::support::pglease::Pglease;
use crate::support::postgres::{Database, Postgres, PostgresOptions};
use crate::support::world::{World, WorldOptions};
use crate::{BINARY, rotate, until};

#[tokio::test]
async fn hosts_are_chosen_by_what_they_are_and_a_failover_needs_no_restart() {
    // In its data folder, as its path is known to both.
    let settings = vec![("unix_socket_directories", ".".to_owned())];
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    let (postgres, openbao) = tokio::join!(Postgres::start(options), OpenBao::start());
    let servers = Servers { postgres, openbao };
    let standby = servers.postgres.standby().await;
    let world = World::create(&servers, WorldOptions { is_alone: true, ..WorldOptions::default() }).await;
    let hosts = Hosts { primary: servers.postgres.port(), standby: standby.port() };
    let one_name = OneName::of(&hosts, &world).await;
    let (program, route) = one_name
        .as_ref()
        .map_or((Path::new(BINARY), ""), |one_name| (one_name.program.as_path(), one_name.route.as_str()));
    let pglease = Pglease::start(program, &(world.settings() + &hosts.routes(&world) + route)).await;
    pglease.wait_ready().await;

    hosts.are_chosen_by_what_they_are(&pglease).await;
    if one_name.is_some() {
        hosts.expect(&pglease, "one-name", hosts.primary).await;
    }
    hosts.all_serve_where_it_is_left_to_chance(&pglease).await;
    unix_socket_serves(&pglease).await;
    replica_that_lags_is_waited_for(&hosts, &world, &standby, &pglease).await;
    failover_needs_no_restart(&hosts, &servers, &standby, &pglease).await;
}

struct Hosts {
    primary: u16,
    standby: u16,
}

const ATTRS: [&str; 6] = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];

impl Hosts {
    /// One for each value of `target_session_attrs` and each order of the hosts, as user `value-ps`, say; and further
    /// ones.
    fn routes(&self, world: &World<'_>) -> String {
        let ca_file = world.servers.postgres.ca_file();
        let vault_path = world.vault_path("db-app");
        let route = |user: &str, hosts: &str, more: &str| {
            let upstream = format!(
                "postgresql://{hosts}/app?sslmode=verify-full&sslrootcert={}&{more}",
                ca_file.display()
            );
            format!("[[route]]\nuser = {user:?}\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n")
        };
        let (primary, standby) = (self.primary, self.standby);
        let orders = [
            ("ps", format!("localhost:{primary},127.0.0.1:{standby}")),
            ("sp", format!("localhost:{standby},127.0.0.1:{primary}")),
        ];
        let mut routes = String::new();
        for attrs in ATTRS {
            for (name, hosts) in &orders {
                let more = format!("target_session_attrs={attrs}");
                routes += &route(&format!("{attrs}-{name}"), hosts, &more);
            }
        }
        routes += &route("random", &orders[0].1, "load_balance_hosts=random");
        let socket = world.servers.postgres.data().display().to_string().replace('/', "%2F");
        routes += &route("socket", &format!("{socket}:{primary}"), "");
        routes
    }

    async fn expect(&self, pglease: &Pglease, user: &str, port: u16) -> Database {
        let session = pglease.connect_as("app", user).await;
        let session = session.unwrap_or_else(|error| panic!("{user}: {error:?}"));
        assert_eq!(port_of(&session).await, Some(port), "{user}");
        session
    }

    async fn are_chosen_by_what_they_are(&self, pglease: &Pglease) {
        for (attrs, ps, sp) in [
            ("any", self.primary, self.standby),
            ("read-write", self.primary, self.primary),
            ("primary", self.primary, self.primary),
            ("read-only", self.standby, self.standby),
            ("standby", self.standby, self.standby),
            ("prefer-standby", self.standby, self.standby),
        ] {
            self.expect(pglease, &format!("{attrs}-ps"), ps).await;
            self.expect(pglease, &format!("{attrs}-sp"), sp).await;
        }
        let start = pglease.logged("session.start").await.pop().unwrap();
        assert_eq!(start["upstream"], format!("localhost:{}", self.standby), "{start}");
        assert!(start["address"].as_str().unwrap().ends_with(&format!(":{}", self.standby)), "{start}");
        assert_eq!(pglease.events("session.refused"), [] as [serde_json::Value; 0]);
    }

    async fn all_serve_where_it_is_left_to_chance(&self, pglease: &Pglease) {
        for port in [self.primary, self.standby] {
            until(async || {
                let session = pglease.connect_as("app", "random").await.unwrap();
                port_of(&session).await == Some(port)
            })
            .await;
        }
    }
}

/// Case C38: one name for both servers, the standby's address first.
struct OneName {
    program: PathBuf,
    route: String,
    _forwarding: JoinSet<()>,
}

impl OneName {
    /// `None` where this system does not let one have that.
    async fn of(hosts: &Hosts, world: &World<'_>) -> Option<Self> {
        let file = world.folder().join("hosts");
        write_hosts(&file, &[2, 3]);
        let program = pglease_with(world.folder(), &file, "/etc/hosts")?;
        let (first, second, port) = loop {
            let first = TcpListener::bind("127.0.0.2:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            if let Ok(second) = TcpListener::bind(address(3, port)).await {
                break (first, second, port);
            }
        };
        let mut forwarding = JoinSet::new();
        forwarding.spawn(forward(first, hosts.standby, Arc::default()));
        forwarding.spawn(forward(second, hosts.primary, Arc::default()));
        let route = format!(
            "[[route]]\nuser = \"one-name\"\nvault_path = {:?}\noptional = true\n\
             upstream = \"postgresql://pg-several:{port}/app?sslmode=disable&target_session_attrs=read-write\"\n",
            world.vault_path("db-app")
        );
        Some(Self { program, route, _forwarding: forwarding })
    }
}

/// Of the server that a session is on; `None` on a Unix socket.
async fn port_of(session: &Database) -> Option<u16> {
    let port: Option<i32> = session.query_one("SELECT inet_server_port()", &[]).await.unwrap().get(0);
    port.map(|port| u16::try_from(port).unwrap())
}

async fn unix_socket_serves(pglease: &Pglease) {
    let session = pglease.connect_as("app", "socket").await.unwrap();
    assert_eq!(port_of(&session).await, None);
    expect_cancel(&session).await;
}

async fn expect_cancel(session: &Database) {
    let cancel = session.cancel_token();
    let sleep = session.batch_execute("SELECT pg_sleep(600)");
    let mut sleep = std::pin::pin!(sleep);
    // One that comes before the statement has begun hits nothing.
    let slept = loop {
        tokio::select! {
            slept = &mut sleep => break slept,
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => cancel.cancel_query(NoTls).await.unwrap(),
        }
    };
    assert_eq!(slept.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
}

/// A credential that the standby has not heard of costs no other one.
async fn replica_that_lags_is_waited_for(
    hosts: &Hosts,
    world: &World<'_>,
    standby: &Postgres,
    pglease: &Pglease,
) {
    assert_eq!(world.leased_roles().await.len(), 1);
    standby.query("postgres", "SELECT pg_wal_replay_pause()").await;
    rotate(pglease, &[]).await;
    // Whoever may be served by the primary is.
    hosts.expect(pglease, "any-sp", hosts.primary).await;
    hosts.expect(pglease, "prefer-standby-sp", hosts.primary).await;

    let before = failures(pglease, hosts.standby, "auth_rejected");
    let waiting = pglease.connect_as("app", "standby-ps");
    let resuming = async {
        until(async || failures(pglease, hosts.standby, "auth_rejected") > before).await;
        standby.query("postgres", "SELECT pg_wal_replay_resume()").await;
    };
    let (session, ()) = tokio::join!(waiting, resuming);
    assert_eq!(port_of(&session.unwrap()).await, Some(hosts.standby));
    assert_eq!(world.leased_roles().await.len(), 2);
}

/// Failures of a host that the log has, loudly or not.
fn failures(pglease: &Pglease, port: u16, reason: &str) -> usize {
    let is_of_host = |event: &serde_json::Value| {
        event["upstream"].as_str().unwrap().ends_with(&format!(":{port}")) && event["reason"] == reason
    };
    pglease.events("upstream.host_failed").iter().filter(|event| is_of_host(event)).count()
}

async fn failover_needs_no_restart(hosts: &Hosts, servers: &Servers, standby: &Postgres, pglease: &Pglease) {
    let parameters = [("user", "read-write-ps"), ("database", "app")];
    let (mut held, _) = Raw::log_in(pglease.addresses()[0], &parameters, "").await;
    servers.postgres.stop().await;
    // Its own last words.
    let last = held.rest().await;
    let [last] = &last[..] else { panic!("{last:?}") };
    let fields = last.fields();
    let words = [('C', "57P01"), ('M', "terminating connection due to administrator command")];
    assert!(words.iter().all(|(name, word)| fields.contains(&(*name, (*word).to_owned()))), "{fields:?}");
    hosts.expect(pglease, "any-ps", hosts.standby).await;
    for (user, reason) in
        [("read-write-ps", "session is read-only"), ("primary-sp", "server is in hot standby mode")]
    {
        let refused = pglease.connect_as("app", user).await.err().unwrap();
        let refused = refused.as_db_error().unwrap();
        assert_eq!(refused.code(), &SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
        let attrs = user.strip_suffix("-ps").or(user.strip_suffix("-sp")).unwrap();
        assert_eq!(refused.message(), format!("no upstream server for target_session_attrs={attrs}"));
        let detail = refused.detail().unwrap();
        let told = |port: u16, what: &str| {
            detail.lines().any(|line| line.contains(&port.to_string()) && line.ends_with(what))
        };
        assert!(told(hosts.primary, ": connection refused") && told(hosts.standby, reason), "{detail}");
    }

    standby.promote().await;
    for user in ["read-write-ps", "read-write-sp", "primary-ps", "prefer-standby-sp", "any-ps"] {
        let session = hosts.expect(pglease, user, hosts.standby).await;
        session.batch_execute("INSERT INTO visits (visitor) VALUES ('after the failover')").await.unwrap();
        if user == "read-write-ps" {
            expect_cancel(&session).await;
        }
    }
    let refused = pglease.connect_as("app", "standby-ps").await.err().unwrap();
    let detail = refused.as_db_error().unwrap().detail().unwrap();
    assert!(detail.contains("server is not in hot standby mode"), "{detail}");

    // A host is told of when it begins to fail, and counted each time.
    let host = format!("host=\"localhost:{}\"", hosts.primary);
    assert!(pglease.metric("pglease_upstream_host_failures_total", &host).await >= 3.0);
    let warned = pglease
        .lines()
        .all()
        .iter()
        .any(|line| line.contains("\"WARN\"") && line.contains("upstream.host_failed"));
    assert!(warned);
}
