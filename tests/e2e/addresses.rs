//! One name with several addresses, some of which nobody is at.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_postgres::error::SqlState;

use crate::namespace::pglease_with;
use crate::support::dns::NameServer;
use crate::support::pglease::Pglease;
use crate::support::say_skipped;
use crate::support::world::{World, WorldOptions};
use crate::until;

/// Of an address that is not PostgreSQL's.
#[derive(Clone, Copy, Debug)]
enum Other {
    /// Takes connections and says nothing.
    Silent,
    /// Takes no connection and does not say so: the queue is full, and each SYN is dropped.
    Deaf,
    /// Refuses.
    Closed,
}

/// 127.0.0.2 is `other`, 127.0.0.3 and 127.0.0.4 lead to PostgreSQL, all on one port.
struct Addresses {
    port: u16,
    /// Connections that 127.0.0.2 and 127.0.0.4 have taken.
    taken: [Arc<AtomicUsize>; 2],
    _tasks: JoinSet<()>,
    _kept: Vec<TcpStream>,
}

impl Addresses {
    async fn of(other: Other, postgres: u16) -> Self {
        let (third, port, other_at) = loop {
            let third = TcpListener::bind("127.0.0.3:0").await.unwrap();
            let port = third.local_addr().unwrap().port();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            if socket.bind(address(2, port)).is_ok() {
                break (third, port, socket);
            }
        };
        let fourth = TcpListener::bind(address(4, port)).await.unwrap();
        let taken = [Arc::default(), Arc::default()];
        let (mut tasks, mut kept) = (JoinSet::new(), Vec::new());
        tasks.spawn(forward(third, postgres, Arc::default()));
        tasks.spawn(forward(fourth, postgres, Arc::clone(&taken[1])));
        match other {
            Other::Closed => drop(other_at),
            Other::Silent => {
                tasks.spawn(be_silent(other_at.listen(16).unwrap(), Arc::clone(&taken[0])));
            }
            Other::Deaf => {
                let listener = other_at.listen(0).unwrap();
                kept.push(TcpStream::connect(address(2, port)).await.unwrap());
                // The queue holds one, and it is taken: nobody else is let in.
                tasks.spawn(async move {
                    let _listener = listener;
                    std::future::pending::<()>().await;
                });
            }
        }
        Self { port, taken, _tasks: tasks, _kept: kept }
    }
}

pub(crate) fn address(last: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(127, 0, 0, last), port).into()
}

pub(crate) async fn forward(listener: TcpListener, port: u16, taken: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        taken.fetch_add(1, Ordering::SeqCst);
        connections.spawn(async move {
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

async fn be_silent(listener: TcpListener, taken: Arc<AtomicUsize>) {
    let mut kept = Vec::new();
    while let Ok((client, _)) = listener.accept().await {
        taken.fetch_add(1, Ordering::SeqCst);
        kept.push(client);
    }
}

/// `addresses` are those of `pg-several`, by their last number. 127.0.0.2 alone is `pg-lost`.
pub(crate) fn write_hosts(file: &Path, addresses: &[u8]) {
    let line = |last: &u8| format!("127.0.0.{last} pg-several\n");
    let lines: String = addresses.iter().map(line).collect();
    fs::write(file, format!("127.0.0.1 localhost\n{lines}127.0.0.2 pg-lost\n")).unwrap();
}

async fn good_address_is_reached_behind(other: Other) {
    let world = World::shared(WorldOptions::default()).await;
    let addresses = Addresses::of(other, world.servers.postgres.port()).await;
    let hosts = world.folder().join("hosts");
    write_hosts(&hosts, &[2, 3]);
    let Some(program) = pglease_with(world.folder(), &hosts, "/etc/hosts") else { return };
    let route = |user: &str, host: &str, parameters: &str| {
        format!(
            "[[route]]\nuser = {user:?}\nvault_path = {:?}\noptional = true\n\
             upstream = \"postgresql://{host}:{}/{}?sslmode=disable{parameters}\"\n",
            world.vault_path("db-app"),
            addresses.port,
            world.database()
        )
    };
    let settings =
        world.settings_with("debug", &world.servers.openbao.address(), &format!("connect_wait = {WAIT:?}"))
            + &route("unset", "pg-several", "")
            + &route("zero", "pg-several", "&connect_timeout=0")
            + &route("ten", "pg-several", "&connect_timeout=10")
            + &route("random", "pg-several", "&load_balance_hosts=random")
            + &route("lost", "pg-lost", "");
    let pglease = Pglease::start(&program, &settings).await;
    // It is proven by then, by the same addresses.
    pglease.wait_for_event("lease.serving", crate::PATIENCE).await;

    let session = async |user: &'static str| {
        let session =
            pglease.connect_as("app", user).await.unwrap_or_else(|error| panic!("{user}: {error:?}"));
        session.rows("SELECT count(*) FROM t").await;
    };
    let lost = async {
        let asked = Instant::now();
        let refused = pglease.connect_as("app", "lost").await.err().unwrap();
        (refused, asked.elapsed())
    };
    let (.., (refused, waited)) =
        tokio::join!(session("unset"), session("zero"), session("ten"), session("random"), lost);
    assert_eq!(refused.code(), Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION), "{refused:?}");
    // And not when the kernel gives up, which is after two minutes and more.
    assert!(waited < Duration::from_secs(110), "{waited:?}");
    if matches!(other, Other::Silent) {
        assert!(addresses.taken[0].load(Ordering::SeqCst) > 0, "it was not tried");
    }

    // The name is looked up for each login.
    assert_eq!(addresses.taken[1].load(Ordering::SeqCst), 0);
    write_hosts(&hosts, &[4]);
    session("unset").await;
    until(async || addresses.taken[1].load(Ordering::SeqCst) > 0).await;
}

/// Time enough for a share of it at a silent address, and a login on a machine that does much else.
const WAIT: &str = "40s";

#[tokio::test]
async fn case_c38_address_that_says_nothing_is_passed_over() {
    good_address_is_reached_behind(Other::Silent).await;
}

#[tokio::test]
async fn case_c38_address_that_drops_every_packet_is_passed_over() {
    good_address_is_reached_behind(Other::Deaf).await;
}

#[tokio::test]
async fn case_c38_address_that_refuses_is_passed_over() {
    good_address_is_reached_behind(Other::Closed).await;
}

#[tokio::test]
async fn case_c38_resolver_that_says_nothing_holds_up_nobody_but_who_waits_for_it() {
    let world = World::shared(WorldOptions::default()).await;
    let names = match NameServer::start() {
        Ok(names) => names,
        Err(error) => return say_skipped("addresses:: with a silent resolver", &format!("port 53: {error}")),
    };
    names.know("servers.test");
    let file = world.folder().join("resolv.conf");
    // As patient as it may be: two minutes and a half.
    fs::write(&file, format!("nameserver {}\noptions timeout:30 attempts:5\n", names.address)).unwrap();
    let Some(program) = pglease_with(world.folder(), &file, "/etc/resolv.conf") else { return };

    let route = world.route("db-app");
    let named = route.replacen("//localhost:", "//servers.test:", 1);
    let named = named.replacen("sslmode=verify-full", "sslmode=verify-ca", 1) + "user = \"named\"\n";
    let listen = "connect_wait = \"10m\"";
    let settings = world.settings_with("debug", &world.servers.openbao.address(), listen) + &named + &route;
    let pglease = Pglease::start(&program, &settings).await;
    pglease.wait_ready().await;
    let session = pglease.connect("app").await.unwrap();
    pglease.connect_as("app", "named").await.unwrap().rows("SELECT 1").await;

    names.hush();
    let before = names.asked().len();
    let meanwhile = async {
        until(async || names.asked().len() > before).await;
        let trips = async {
            for _ in 0..100 {
                session.rows("SELECT 1").await;
            }
            pglease.connect("app").await.unwrap();
        };
        // Sooner than the resolver gives up.
        time::timeout(Duration::from_secs(100), trips).await.expect("nobody else waits for it");
        names.know("servers.test");
    };
    let (served, ()) = tokio::join!(pglease.connect_as("app", "named"), meanwhile);
    served.unwrap().rows("SELECT 1").await;
}
