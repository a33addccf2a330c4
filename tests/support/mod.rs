//! The real parts that tests, benches and the demo run against: PostgreSQL, OpenBao, `pglease` itself; and two
//! that stand for the rest of a cluster, a TokenReview responder and a gate that is closed at will.
//!
//! Every server runs on a free loopback port and ends with the process that started it, also when that one is
//! killed: `process.rs`. What is missing is fetched on first use into `target/servers`.
//!
//! Included by `#[path]`, as there is no crate for tests to share.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

pub(crate) mod audit;
pub(crate) mod dns;
pub(crate) mod gate;
pub(crate) mod injector;
pub(crate) mod install;
pub(crate) mod openbao;
pub(crate) mod pages;
pub(crate) mod pglease;
pub(crate) mod pki;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod recorder;
pub(crate) mod replay;
pub(crate) mod tokenreview;
pub(crate) mod world;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

use openbao::OpenBao;
use postgres::{Postgres, PostgresOptions};

/// For what must happen, on a machine that does much else. Nothing of it is spent where it happens.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// The two servers that worlds live on.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) openbao: OpenBao,
}

impl Servers {
    /// Servers of one's own, to be stopped, sealed and killed.
    pub(crate) async fn start() -> Self {
        Self::with(Vec::new()).await
    }

    /// The same with further lines of `postgresql.conf`.
    pub(crate) async fn with(settings: Vec<(&'static str, String)>) -> Self {
        let options = PostgresOptions { settings, ..PostgresOptions::default() };
        let (postgres, openbao) = tokio::join!(Postgres::start(options), OpenBao::start());
        Self { postgres, openbao }
    }

    /// The servers that the tests of this process share, each in a world of its own: they are up all the
    /// time.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Servers> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }
}

/// A variable of the environment that tests are run in.
#[expect(
    clippy::disallowed_methods,
    reason = "config/env.rs is pglease's own; this is the environment of tests"
)]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Says that `what` was not tried on this system, and why, to the file that `PGLEASE_TEST_SKIPPED` names as well. Not by a
/// macro of printing: what these say the test runner shows of failed tests only.
pub(crate) fn say_skipped(what: &str, why: &str) {
    let line = format!("{what}: {}\n", why.trim().replace('\n', " "));
    std::io::stderr().write_all(format!("skipped: {line}").as_bytes()).expect("standard error");
    if let Some(list) = env("PGLEASE_TEST_SKIPPED") {
        let list = OpenOptions::new().append(true).create(true).open(&list);
        list.and_then(|mut list| list.write_all(line.as_bytes())).expect("the list of what was skipped");
    }
}

/// A client for Vault's API and pglease's endpoints. Belongs to the runtime that it is first used on.
pub(crate) fn http_client() -> reqwest::Client {
    // Somebody else may have been first, with the same provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // It speaks plain HTTP: reading the system's certificates takes a thousand times longer than all the rest.
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("HTTP client")
}

/// One that speaks HTTPS with servers whose certificates are of this CA.
pub(crate) fn http_client_believing(ca: reqwest::Certificate) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().expect("HTTPS client")
}

/// The first of `count` adjacent ports that nobody listens on, on any loopback address of the machine.
///
/// From below the range that connections take their own ports from, so that a server which stops finds its port
/// free when it starts again. No two callers of this process get the same, nor does one of the process that tests run
/// of themselves, which says so by [`HELD`]. Another process may take it before the caller does, who then asks again.
pub(crate) fn free_ports(count: u16) -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    let range = if env(HELD).is_some() { 10_000..20_000 } else { 20_000..32_000 };
    let candidates = std::iter::repeat_with(|| fastrand::u16(range.clone())).take(1000);
    let mut free = candidates.filter(|first| {
        let mut ports = *first..*first + count;
        ports.clone().all(|port| !given.contains(&port)) && ports.all(is_free)
    });
    let first = free.next().expect("a free port");
    given.extend(first..first + count);
    first
}

/// Variable of a process of tests that another one has started, to be killed.
pub(crate) const HELD: &str = "PGLEASE_TEST_HOLD";

/// Whether nobody listens on it, found out without listening: that would keep others off for a moment, and for
/// longer where a child that is being started has a copy of the socket.
fn is_free(port: u16) -> bool {
    let bound = |socket: std::io::Result<TcpSocket>, address: SocketAddr| {
        let socket = socket?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)
    };
    bound(TcpSocket::new_v4(), (Ipv4Addr::LOCALHOST, port).into()).is_ok()
        && (!has_ipv6() || bound(TcpSocket::new_v6(), (Ipv6Addr::LOCALHOST, port).into()).is_ok())
}

/// Listens on a port of this process's own that may have been listened on a moment ago.
///
/// A child that another test is just starting has a copy of every socket until its program begins: the port of one
/// that is closed here stays taken for as long.
pub(crate) async fn listen_again(address: SocketAddr) -> tokio::net::TcpListener {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tokio::time::Instant::now() < give_up => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            listener => return listener.unwrap_or_else(|error| panic!("listening on {address}: {error}")),
        }
    }
}

/// Whether the machine has `::1`.
pub(crate) fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}
