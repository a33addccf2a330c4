//! Real sockets and real time: what is tried here is the kernel's part.

use std::net::IpAddr;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::{AtLeaseEnd, AuthConfig, DrainConfig, RouteConfig, UpstreamConfig};
use crate::credential::{self, Credential, DerivedKeys, Issued};
use crate::drain::Drain;
use crate::ids::{GenerationId, LeaseId};
use crate::session::auth::Auth;
use crate::session::route::Route;
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

pub(crate) const STARTUP: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";
pub(crate) const GREETING: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
const QUERY: &[u8] = b"Q\0\0\0\x06;\0";

pub(crate) fn config(addresses: &[ListenAddress]) -> ListenConfig {
    ListenConfig {
        addresses: addresses.to_vec(),
        auth: AuthConfig::Trust,
        unix_socket: None,
        tls: None,
        max_sessions: 10,
        threads: 1,
        connect_wait: Duration::from_secs(10),
    }
}

/// A proxy in front of `upstream_port`, with its drain and its credential.
pub(crate) fn shared(upstream_port: u16) -> (Arc<Shared>, Drain, Issued) {
    let (publisher, source) = credential::channel();
    let issued = publisher.promote(Credential {
        user: "v-1".to_owned(),
        password: SecretString::from("secret"),
        lease: Some(LeaseId::from("lease")),
        generation: GenerationId(1),
        keys: DerivedKeys::default(),
        granted: credential::Granted::default(),
    });
    let config = RouteConfig {
        database: None,
        user: None,
        upstream: UpstreamConfig::plain(&Ipv4Addr::LOCALHOST.to_string(), upstream_port),
        vault_path: "database/creds/db-app".to_owned(),
        startup_role: None,
        at_lease_end: AtLeaseEnd::Auto,
        max_session_age: None,
        warm: 0,
        optional: false,
    };
    let upstream = Arc::new(Upstream::load(&config.upstream).unwrap());
    let drain = Drain::default();
    let wait = Duration::from_mins(1);
    let routes = vec![Route::to_stay(config, upstream, source)];
    let shared = Shared::new(routes, Auth::Trust, Arc::new(Metrics::new()), drain.subscribe(), wait, 100);
    (Arc::new(shared), drain, issued)
}

async fn expect(stream: &mut TcpStream, expected: &[u8]) {
    let mut buf = vec![0; expected.len()];
    stream.read_exact(&mut buf).await.unwrap();
    assert_eq!(buf, expected);
}

/// Accepts one session and lets it in.
pub(crate) async fn let_in(upstream: &TcpListener) -> TcpStream {
    let (mut stream, _) = upstream.accept().await.unwrap();
    let len = stream.read_u32().await.unwrap();
    stream.read_exact(&mut vec![0; len as usize - 4]).await.unwrap();
    stream.write_all(GREETING).await.unwrap();
    stream
}

#[test]
fn localhost_is_both_loopback_addresses_on_one_port() {
    let listeners = bind(&config(&[ListenAddress::Localhost { port: 0 }])).unwrap();
    let addresses = listeners.addresses();
    assert!(addresses.iter().all(|address| address.ip().is_loopback()));
    assert!(addresses.iter().all(|address| address.port() == addresses[0].port() && address.port() != 0));
    let has_ipv6 = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    assert_eq!(addresses.len(), if has_ipv6 { 2 } else { 1 });
}

#[test]
fn localhost_is_one_address_where_the_machine_has_no_other() {
    use rustix::io::Errno;
    let without = |absent: fn(SocketAddr) -> bool, errno: Errno| {
        bind_localhost(0, move |address| {
            if absent(address) {
                Err(BindError::Bind { address, source: errno.into() })
            } else {
                Ok((StdListener::bind("127.0.0.1:0").unwrap(), address))
            }
        })
    };
    let ips = |bound: Result<(Vec<Bound>, Option<Absent>), BindError>| {
        let (bound, absent) = bound.unwrap();
        assert_eq!(bound.len(), 1);
        [bound[0].1, absent.unwrap().address].map(|address| address.ip())
    };
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    for errno in [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT] {
        assert_eq!(ips(without(|address| address.is_ipv6(), errno)), [v4, v6]);
        assert_eq!(ips(without(|address| address.is_ipv4(), errno)), [v6, v4]);
        assert!(matches!(without(|_| true, errno), Err(BindError::NoLoopback { .. })));
    }
    // Something is wrong with an address that is there.
    let refused = without(|address| address.is_ipv6(), Errno::ACCESS);
    assert!(matches!(refused, Err(BindError::Bind { address, .. }) if address.is_ipv6()));
}

#[test]
fn port_that_is_taken_on_the_other_address_is_chosen_anew_only_where_it_was_chosen() {
    use std::cell::Cell;
    let tries = Cell::new(0);
    let taken_twice = |address: SocketAddr| {
        if address.is_ipv6() {
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                let source = rustix::io::Errno::ADDRINUSE.into();
                return Err(BindError::Bind { address, source });
            }
        }
        Ok((StdListener::bind("127.0.0.1:0").unwrap(), address))
    };
    assert_eq!(bind_localhost(0, taken_twice).unwrap().0.len(), 2);
    tries.set(0);
    assert!(matches!(bind_localhost(5432, taken_twice), Err(BindError::Bind { .. })));
}

#[test]
fn address_in_use_is_named_with_the_key_and_the_reason() {
    let taken = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    for wanted in [ListenAddress::Socket(address), ListenAddress::Localhost { port: address.port() }] {
        let error = bind(&config(&[wanted])).unwrap_err();
        assert_eq!(error.to_string(), format!("listen.addresses: binding {address}"));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("in use"), "{source}");
    }
}

#[test]
fn address_that_the_machine_does_not_have_is_an_error_where_it_was_named() {
    let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
    assert!(matches!(bind(&config(&[ListenAddress::Socket(foreign)])), Err(BindError::Bind { .. })));
}

#[tokio::test]
async fn drain_ends_idle_sessions_then_the_accept_loop_and_clients_read_why() {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (shared, drain, issued) = shared(upstream.local_addr().unwrap().port());
    let listeners = bind(&config(&[ListenAddress::Localhost { port: 0 }])).unwrap();
    let address = listeners.addresses()[0];

    let script = async {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(SSL_REQUEST).await.unwrap();
        expect(&mut client, b"N").await;
        client.write_all(STARTUP).await.unwrap();
        let mut busy = let_in(&upstream).await;
        expect(&mut client, GREETING).await;
        client.write_all(QUERY).await.unwrap();
        expect(&mut busy, QUERY).await;

        let mut silent = TcpStream::connect(address).await.unwrap();
        let drained = DrainConfig {
            accept_for: Duration::ZERO,
            grace: Duration::ZERO,
            deadline: Duration::from_mins(1),
            strict_exit: false,
        };
        drain.begin(drained, time::Instant::now());

        // A new session is turned away in frame, behind the answer to SSLRequest.
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(SSL_REQUEST).await.unwrap();
        expect(&mut late, b"N").await;
        late.write_all(STARTUP).await.unwrap();
        let mut told = Vec::new();
        late.read_to_end(&mut told).await.unwrap();
        assert!(told.escape_ascii().to_string().contains("C57P03"));

        // The busy one has its answer before it is told.
        busy.write_all(b"Z\0\0\0\x05I").await.unwrap();
        expect(&mut client, b"Z\0\0\0\x05I").await;
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert!(told.escape_ascii().to_string().contains("C57P01"));
        expect(&mut busy, b"X\0\0\0\x04").await;
        drop((client, busy));
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "nobody waits for the silent");
    };
    let (served, ()) = tokio::join!(serve(listeners, Threads::new(Vec::new()), shared), script);
    served.unwrap();
    assert_eq!(*issued.holds().borrow(), 0);
}

/// With input of the client's unread, a close would be a reset, and the words before it lost.
#[tokio::test]
async fn client_that_sends_on_reads_the_last_words_and_a_clean_end() {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (shared, drain, _issued) = shared(upstream.local_addr().unwrap().port());
    let listeners =
        bind(&config(&[ListenAddress::Socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))])).unwrap();
    let address = listeners.addresses()[0];

    let script = async {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(STARTUP).await.unwrap();
        let stalled = let_in(&upstream).await;
        expect(&mut client, GREETING).await;
        // More than upstream's socket takes: the relay stops reading.
        let (mut reader, mut writer) = client.into_split();
        let flood = async {
            let frame = [&b"Q\x01\0\0\x04"[..], &vec![b' '; 64 * 1024]].concat();
            while let Ok(Ok(())) = time::timeout(Duration::from_millis(200), writer.write_all(&frame)).await {
            }
        };
        flood.await;
        drain.cut();
        let mut told = Vec::new();
        reader.read_to_end(&mut told).await.unwrap();
        assert!(told.escape_ascii().to_string().contains("C57P01"), "{}", told.escape_ascii());
        drop((reader, writer, stalled));
    };
    let (served, ()) = tokio::join!(serve(listeners, Threads::new(Vec::new()), shared), script);
    served.unwrap();
}
