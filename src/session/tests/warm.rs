//! Sessions that are logged in ahead of their clients.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use tokio::runtime::Builder;

use super::log::Lines;
use super::*;
use crate::config::DrainConfig;
use crate::session::warm::Warm;
use crate::telemetry::{ResultLabels, RouteLabels};
use crate::wire::startup::StartupParameters;
use crate::wire::status::bug;

const ONE_MORE: &[u8] = b"S\0\0\0\x0aTimeZ\0";
const NO_ROOM: &[u8] = b"E\0\0\0\x13SFATAL\0C53300\0\0";

/// A proxy whose one route keeps `size` sessions ready.
fn warm_proxy(server: &Server, size: usize) -> (Proxy, credential::Issued) {
    let proxy = proxy(server.port(), 10);
    proxy.shared.change(|rules| {
        let route = &mut rules.routes[0];
        route.config.warm = size;
        route.warm = Warm::new(&route.config, Arc::clone(&proxy.shared.metrics)).map(Arc::new);
    });
    let issued = proxy.promote(1);
    (proxy, issued)
}

/// The whole of a session whose upstream `serve` is.
async fn session<T>(proxy: &Proxy, sent: &[u8], serve: impl Future<Output = T>) -> T {
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(sent).await.unwrap();
        read_greeting(&mut client).await;
        client.write_all(TERMINATE).await.unwrap();
        drop(client);
    };
    tokio::join!(session, talk, serve).2
}

/// On a connection of its own; its StartupMessage.
async fn logged_in(server: &Server) -> Vec<u8> {
    let (mut stream, first) = server.accept().await;
    greet(&mut stream).await;
    ended(stream).await;
    first
}

/// Said goodbye to.
async fn ended(mut stream: TcpStream) {
    expect(&mut stream, TERMINATE).await;
    expect_end(&mut stream).await;
}

/// The next connection is one that is made ready; the proxy knows that it is, when this returns.
async fn made_ready(proxy: &Proxy, server: &Server) -> (TcpStream, Vec<u8>) {
    let (mut stream, first) = server.accept().await;
    let before = ready(proxy);
    greet(&mut stream).await;
    until(|| ready(proxy) == before + 1).await;
    (stream, first)
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        time::sleep(Duration::from_millis(1)).await;
    }
}

fn ready(proxy: &Proxy) -> i64 {
    let label = RouteLabels { database: "wizard".to_owned(), user: "*".to_owned() };
    proxy.shared.metrics.warm_sessions.get_or_create(&label).get()
}

fn counted(proxy: &Proxy, result: &'static str) -> u64 {
    proxy.shared.metrics.warm.get_or_create(&ResultLabels { result }).get()
}

/// One session is ready, after two with the same packet.
async fn one_ready(server: &Server) -> (Proxy, credential::Issued, TcpStream) {
    let (proxy, issued) = warm_proxy(server, 1);
    for _ in 0..2 {
        session(&proxy, &startup(), logged_in(server)).await;
    }
    let (stream, _) = made_ready(&proxy, server).await;
    (proxy, issued, stream)
}

#[tokio::test]
async fn client_with_the_same_packet_has_the_session_that_was_made_ready_and_no_other_has_it() {
    let server = Server::bind().await;
    let (proxy, _issued) = warm_proxy(&server, 1);
    let own = session(&proxy, &startup(), logged_in(&server)).await;
    assert_eq!((ready(&proxy), counted(&proxy, "miss")), (0, 1));
    session(&proxy, &startup(), logged_in(&server)).await;
    let (stream, first) = made_ready(&proxy, &server).await;
    assert_eq!(first, own);

    session(&proxy, &startup(), ended(stream)).await;
    assert_eq!((ready(&proxy), counted(&proxy, "hit"), counted(&proxy, "miss")), (0, 1, 2));
    // Another one takes its place.
    let (stream, _) = made_ready(&proxy, &server).await;
    drop(stream);
}

#[tokio::test]
async fn packet_that_is_not_the_same_is_of_a_session_of_its_own() {
    let server = Server::bind().await;
    let (proxy, _issued, stream) = one_ready(&server).await;
    for other in [
        &b"user\0app\0database\0wizard\0application_name\0x\0\0"[..],
        b"user\0app\0database\0wizard\0replication\0database\0\0",
        b"user\0app\0database\0wizard\0replication\0database\0\0",
        b"user\0app\0database\0wizard\0replication\0database\0\0",
    ] {
        session(&proxy, &packet(0x0003_0000, other), logged_in(&server)).await;
    }
    // By another name and another version, which do not go there.
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&packet(0x0003_0002, b"user\0other\0database\0wizard\0\0")).await.unwrap();
        expect(&mut client, &[AUTHENTICATION_OK, STATUS].concat()).await;
        client.write_all(TERMINATE).await.unwrap();
        drop(client);
    };
    tokio::join!(session, talk, ended(stream));
    assert_eq!(counted(&proxy, "hit"), 1);
}

#[tokio::test]
async fn what_upstream_says_meanwhile_is_heard_behind_the_greeting() {
    let server = Server::bind().await;
    let (proxy, _issued, mut stream) = one_ready(&server).await;
    stream.write_all(ONE_MORE).await.unwrap();
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        read_greeting(&mut client).await;
        expect(&mut client, ONE_MORE).await;
        client.write_all(TERMINATE).await.unwrap();
        drop(client);
    };
    tokio::join!(session, talk, ended(stream));
}

#[tokio::test]
async fn session_that_upstream_ends_is_nobodys() {
    let server = Server::bind().await;
    for last_words in [NO_ROOM, b"A\0\0\0\x04", b""] {
        let (proxy, _issued, mut stream) = one_ready(&server).await;
        stream.write_all(last_words).await.unwrap();
        drop(stream);
        until(|| counted(&proxy, "closed") == 1 && ready(&proxy) == 0).await;
        // Another one takes its place.
        made_ready(&proxy, &server).await;
    }
}

#[tokio::test]
async fn rotation_ends_what_is_ready_and_the_next_is_of_the_newest_credential() {
    let server = Server::bind().await;
    let (proxy, first, stream) = one_ready(&server).await;
    assert_eq!(*first.holds().borrow(), 1);
    let _second = proxy.promote(2);
    ended(stream).await;
    first.holds().wait_for(|holds| *holds == 0).await.unwrap();
    let (stream, packet) = made_ready(&proxy, &server).await;
    assert!(packet.windows(4).any(|part| part == b"v-2\0"), "{}", packet.escape_ascii());
    session(&proxy, &startup(), ended(stream)).await;
    assert_eq!(counted(&proxy, "hit"), 1);
}

#[tokio::test]
async fn session_of_a_credential_that_was_revoked_is_nobodys() {
    let server = Server::bind().await;
    let (proxy, issued, stream) = one_ready(&server).await;
    issued.set_standing(credential::Standing::Revoked(credential::Revocation::ByVault));
    let fresh = async {
        let (mut fresh, _) = server.accept().await;
        greet(&mut fresh).await;
        fresh
    };
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        read_greeting(&mut client).await;
        drop(client);
    };
    tokio::join!(session, talk, fresh);
    assert_eq!(counted(&proxy, "hit"), 0);
    drop(stream);
}

#[tokio::test]
async fn session_is_ready_for_a_minute_at_most() {
    let server = Server::bind().await;
    let (proxy, _issued, stream) = one_ready(&server).await;
    time::pause();
    time::advance(Duration::from_secs(30)).await;
    time::resume();
    assert_eq!(counted(&proxy, "expired"), 0);
    time::pause();
    time::advance(Duration::from_secs(31)).await;
    time::resume();
    ended(stream).await;
    assert_eq!(counted(&proxy, "expired"), 1);
    made_ready(&proxy, &server).await;
}

#[tokio::test]
async fn panic_ends_what_is_ready_and_the_next_is_made_ready_a_minute_later() {
    let server = Server::bind().await;
    let (proxy, issued, mut stream) = one_ready(&server).await;
    let (lines, _logging) = Lines::begin();
    bug::make(ONE_MORE);
    stream.write_all(ONE_MORE).await.unwrap();
    ended(stream).await;
    issued.holds().wait_for(|holds| *holds == 0).await.unwrap();
    assert_eq!((ready(&proxy), counted(&proxy, "flushed")), (0, 1));

    time::pause();
    time::advance(Duration::from_mins(1)).await;
    time::resume();
    let (stream, _) = made_ready(&proxy, &server).await;
    session(&proxy, &startup(), ended(stream)).await;
    assert_eq!(["hit", "panic", "failed"].map(|result| counted(&proxy, result)), [1, 1, 0]);
    let faults = lines.of("warm.fault");
    assert_eq!(faults.len(), 1);
    assert_eq!((&faults[0]["level"], &faults[0]["database"]), (&"ERROR".into(), &"wizard".into()));
}

#[tokio::test]
async fn drain_and_the_end_of_the_route_leave_nothing() {
    let server = Server::bind().await;
    let (proxy, issued, stream) = one_ready(&server).await;
    let config = DrainConfig {
        accept_for: Duration::ZERO,
        grace: Duration::ZERO,
        deadline: Duration::from_mins(1),
        strict_exit: false,
    };
    proxy.drain.begin(config, Instant::now());
    tokio::join!(ended(stream), proxy.shared.none_ready());
    assert_eq!((*issued.holds().borrow(), ready(&proxy)), (0, 0));

    let (proxy, issued, stream) = one_ready(&server).await;
    proxy.shared.change(|rules| rules.routes[0].warm = None);
    tokio::join!(ended(stream), proxy.shared.none_ready());
    assert_eq!((*issued.holds().borrow(), ready(&proxy)), (0, 0));
}

#[tokio::test]
async fn session_that_cannot_come_to_the_thread_of_its_client_is_said_goodbye_to() {
    let server = Server::bind().await;
    let (proxy, issued, stream) = one_ready(&server).await;
    // Nobody looks after a connection there.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let over = runtime.handle().clone();
    runtime.shutdown_background();
    let (rules, source) = (proxy.shared.rules(), proxy.source.clone());
    let takes = move || {
        let _there = over.enter();
        let mut packet = StartupParameters::default();
        packet.push("database", "wizard");
        packet.push("role", "app_owner");
        let mut take = pin!(rules.routes[0].warm.as_ref().unwrap().take(&packet, &source));
        let taken = take.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(taken, Poll::Ready(None)));
    };
    thread::spawn(takes).join().unwrap();
    ended(stream).await;
    assert_eq!(["stuck", "miss", "failed"].map(|result| counted(&proxy, result)), [1, 3, 0]);
    drop((proxy, issued));
}

#[tokio::test]
async fn what_is_ready_makes_room_for_a_client() {
    let server = Server::bind().await;
    let (proxy, _issued, stream) = one_ready(&server).await;
    let other = packet(0x0003_0000, b"user\0app\0database\0wizard\0application_name\0x\0\0");
    let serve = async {
        let (mut refused, _) = server.accept().await;
        refused.write_all(NO_ROOM).await.unwrap();
        ended(stream).await;
        logged_in(&server).await;
    };
    session(&proxy, &other, serve).await;
    assert_eq!(counted(&proxy, "flushed"), 1);
}
