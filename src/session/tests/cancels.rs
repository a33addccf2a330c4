//! Cancels of whole sessions: each reaches its own, in turn, and a guess reaches nobody.

use tokio::task::JoinSet;

use super::*;

/// BackendKeyData's body: one pid for all sessions, as different upstreams may give it.
pub(super) fn upstream_key(secret: u32) -> Vec<u8> {
    [&KEY[5..9], &secret.to_be_bytes()].concat()
}

/// Begins a session whose upstream has given it this secret; gives its ends and the key that its client got.
pub(super) async fn begin(
    proxy: &Proxy,
    server: &Server,
    sessions: &mut JoinSet<()>,
    secret: u32,
) -> (DuplexStream, TcpStream, Vec<u8>) {
    begin_on("wizard", proxy, server, sessions, secret).await
}

async fn begin_on(
    database: &str,
    proxy: &Proxy,
    server: &Server,
    sessions: &mut JoinSet<()>,
    secret: u32,
) -> (DuplexStream, TcpStream, Vec<u8>) {
    let (session, mut client) = proxy.connect();
    sessions.spawn(session);
    client.write_all(&startup_for(database)).await.unwrap();
    let (mut upstream, _) = server.accept().await;
    let key = [b"K\0\0\0\x0c", &upstream_key(secret)[..]].concat();
    upstream.write_all(&[AUTHENTICATION_OK, STATUS, &key, READY].concat()).await.unwrap();
    let ours = read_greeting(&mut client).await;
    (client, upstream, [&KEY[5..9], &ours].concat())
}

/// Asks for a cancel with this key; gives the client's end, which is told nothing but the end.
async fn ask(proxy: &Proxy, connections: &mut JoinSet<()>, key: &[u8]) -> DuplexStream {
    let (connection, mut client) = proxy.connect();
    connections.spawn(connection);
    client.write_all(&packet(80_877_102, key)).await.unwrap();
    client
}

fn count(proxy: &Proxy, result: &'static str) -> u64 {
    proxy.shared.metrics.cancel_requests.get_or_create(&crate::telemetry::ResultLabels { result }).get()
}

/// Lets every task run until it waits.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn cancel_reaches_the_upstream_of_its_session_with_the_key_that_is_good_there() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        let mut stream = server.let_in().await;
        let secret = read_greeting(&mut client).await;
        let pid = &KEY[5..9];

        // No seat is left, and none is needed.
        let request = packet(80_877_102, &[pid, &secret].concat());
        let (told, ()) = tokio::join!(proxy.told(&request), async {
            let (_, cancel) = server.accept().await;
            assert_eq!(cancel, packet(80_877_102, &KEY[5..]));
        });
        assert!(told.is_empty());

        let guess = packet(80_877_102, &KEY[5..]);
        assert!(proxy.told(&guess).await.is_empty());
        drop(client);
        expect_end(&mut stream).await;
        drop(stream);
        request
    };
    let ((), request) = tokio::join!(session, talk);
    assert!(proxy.told(&request).await.is_empty(), "the key is gone with its session");
    let text = proxy.shared.metrics.encode().unwrap();
    assert!(text.contains("cancel_requests_total{result=\"delivered\"} 1\n"));
    assert!(text.contains("cancel_requests_total{result=\"miss\"} 2\n"));
}

#[tokio::test]
async fn client_that_hangs_up_in_a_drain_has_its_statement_cancelled() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let (session, mut client) = proxy.connect();
    let talk = async {
        client.write_all(&startup()).await.unwrap();
        let mut stream = server.let_in().await;
        read_greeting(&mut client).await;
        client.write_all(QUERY).await.unwrap();
        expect(&mut stream, QUERY).await;
        drop(client);
        expect_end(&mut stream).await;
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        proxy.drain.begin(
            crate::config::DrainConfig {
                accept_for: second,
                grace: second,
                deadline: minute,
                strict_exit: false,
            },
            Instant::now(),
        );
        let (_, cancel) = server.accept().await;
        assert_eq!(cancel, packet(80_877_102, &KEY[5..]));
        drop(stream);
    };
    tokio::join!(session, talk);
    assert!(proxy.ended("hung_up"));
}

#[tokio::test]
async fn sessions_with_one_pid_cancel_each_its_own_and_nothing_after_their_end() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 10);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let mut open = Vec::new();
    for secret in 1..=3 {
        open.push(begin(&proxy, &server, &mut tasks, secret).await);
    }

    for (secret, number) in [(2, 1), (1, 0), (3, 2), (2, 1)] {
        let mut canceller = ask(&proxy, &mut tasks, &open[number].2).await;
        let (_, cancel) = server.accept().await;
        assert_eq!(cancel, packet(80_877_102, &upstream_key(secret)));
        expect_end(&mut canceller).await;
    }
    assert_eq!((count(&proxy, "delivered"), count(&proxy, "miss")), (4, 0));

    // Keys that are not whole, a stranger's bytes behind the key, upstream's own secret.
    let key = open[1].2.clone();
    let guesses = [&key[..7], &[&key[..], b"\0"].concat(), &upstream_key(2), &[&key[..], &[0; 252]].concat()];
    for guess in guesses {
        expect_end(&mut ask(&proxy, &mut tasks, guess).await).await;
    }
    let (client, mut upstream, key) = open.remove(1);
    drop(client);
    expect_end(&mut upstream).await;
    drop(upstream);
    until_ended(&proxy, 1).await;
    expect_end(&mut ask(&proxy, &mut tasks, &key).await).await;
    assert_eq!((count(&proxy, "delivered"), count(&proxy, "miss")), (4, 5));

    // The others' keys are as good as before.
    let mut canceller = ask(&proxy, &mut tasks, &open[1].2).await;
    assert_eq!(server.accept().await.1, packet(80_877_102, &upstream_key(3)));
    expect_end(&mut canceller).await;
}

/// Waits until so many sessions have ended.
async fn until_ended(proxy: &Proxy, sessions: u64) {
    let ended = format!("pglease_session_seconds_count{{reason=\"client_closed\"}} {sessions}\n");
    let ended = async {
        while !proxy.shared.metrics.encode().unwrap().contains(&ended) {
            time::sleep(Duration::from_millis(1)).await;
        }
    };
    time::timeout(Duration::from_mins(1), ended).await.unwrap();
}

#[tokio::test]
async fn cancels_of_one_session_in_a_hurry_cost_upstream_two_and_keep_no_other_waiting() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 100);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let (_client, _upstream, key) = begin(&proxy, &server, &mut tasks, 1).await;
    let (_other_client, _other_upstream, other_key) = begin(&proxy, &server, &mut tasks, 2).await;

    let mut first = ask(&proxy, &mut tasks, &key).await;
    let (first_delivery, cancel) = server.accept().await;
    assert_eq!(cancel, packet(80_877_102, &upstream_key(1)));
    // Upstream has not acted upon it, so these may not be sure that it does for them, too.
    let mut hurried = Vec::new();
    for _ in 0..50 {
        hurried.push(ask(&proxy, &mut tasks, &key).await);
    }
    settle().await;
    let mut other = ask(&proxy, &mut tasks, &other_key).await;
    let (other_delivery, cancel) = server.accept().await;
    assert_eq!(cancel, packet(80_877_102, &upstream_key(2)));
    drop(other_delivery);
    expect_end(&mut other).await;
    assert_eq!(count(&proxy, "delivered"), 1);

    drop(first_delivery);
    expect_end(&mut first).await;
    let (second_delivery, cancel) = server.accept().await;
    assert_eq!(cancel, packet(80_877_102, &upstream_key(1)));
    drop(second_delivery);
    for hurried in &mut hurried {
        expect_end(hurried).await;
    }
    assert_eq!(count(&proxy, "delivered"), 52);
    assert!(time::timeout(Duration::from_millis(50), server.accept()).await.is_err(), "a third delivery");
}

#[tokio::test]
async fn cancel_that_waits_for_its_turn_is_a_miss_when_its_session_ends_before() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 100);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let (client, mut upstream, key) = begin(&proxy, &server, &mut tasks, 1).await;

    let mut first = ask(&proxy, &mut tasks, &key).await;
    let (delivery, _) = server.accept().await;
    let mut second = ask(&proxy, &mut tasks, &key).await;
    settle().await;
    drop(client);
    expect_end(&mut upstream).await;
    drop(upstream);
    until_ended(&proxy, 1).await;

    drop(delivery);
    expect_end(&mut first).await;
    expect_end(&mut second).await;
    assert_eq!((count(&proxy, "delivered"), count(&proxy, "miss")), (1, 1));
}

/// Takes a connection if one comes soon.
pub(super) async fn soon(server: &Server) -> Option<(TcpStream, Vec<u8>)> {
    time::timeout(Duration::from_millis(50), server.accept()).await.ok()
}

#[tokio::test]
async fn upstream_that_answers_no_cancel_keeps_those_of_another_waiting_for_nothing() {
    let (dead, lively) = (Server::bind().await, Server::bind().await);
    let proxy = proxy_to(Auth::Trust, &[("wizard", dead.port()), ("other", lively.port())], 100);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let (mut open, mut asking) = (Vec::new(), Vec::new());
    for secret in 1..=40 {
        let session = begin(&proxy, &dead, &mut tasks, secret).await;
        asking.push(ask(&proxy, &mut tasks, &session.2).await);
        // Each of the first has its turn, and upstream leaves it there.
        let delivery = if secret <= 8 { Some(dead.accept().await) } else { None };
        open.push((session, delivery));
    }
    settle().await;
    assert!(soon(&dead).await.is_none(), "a ninth at one address");

    let (_client, _upstream, key) = begin_on("other", &proxy, &lively, &mut tasks, 41).await;
    let mut other = ask(&proxy, &mut tasks, &key).await;
    assert_eq!(lively.accept().await.1, packet(80_877_102, &upstream_key(41)));
    expect_end(&mut other).await;
    assert_eq!(count(&proxy, "delivered"), 1);
}

#[tokio::test]
async fn statements_that_a_drain_cuts_off_are_cancelled_in_turn() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 100);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let mut open = Vec::new();
    for secret in 1..=40 {
        let (mut client, mut upstream, _) = begin(&proxy, &server, &mut tasks, secret).await;
        client.write_all(QUERY).await.unwrap();
        expect(&mut upstream, QUERY).await;
        open.push((client, upstream));
    }
    let [accept_for, grace, deadline] = [Duration::ZERO; 3];
    proxy.drain.begin(
        crate::config::DrainConfig { accept_for, grace, deadline, strict_exit: false },
        Instant::now(),
    );
    let mut cancels = Vec::new();
    for _ in 0..8 {
        cancels.push(server.accept().await);
    }
    assert!(cancels.iter().all(|(_, request)| request[4..8] == 80_877_102_u32.to_be_bytes()));
    settle().await;
    assert!(soon(&server).await.is_none(), "a ninth connection");
    drop((cancels, open));
    while tasks.join_next().await.is_some() {}
}

#[tokio::test]
async fn delivery_that_has_begun_loses_its_place_to_no_flood_and_what_waits_takes_over() {
    let server = Server::bind().await;
    let proxy = proxy(server.port(), 1);
    let _issued = proxy.promote(1);
    let mut tasks = JoinSet::new();
    let (_client, _upstream, key) = begin(&proxy, &server, &mut tasks, 1).await;

    let mut first = ask(&proxy, &mut tasks, &key).await;
    let (delivery, _) = server.accept().await;
    let mut silent = Vec::new();
    for _ in 0..2 * SPARE_PLACES {
        let (connection, client) = proxy.connect();
        tasks.spawn(connection);
        silent.push(client);
        tokio::task::yield_now().await;
    }
    let mut second = ask(&proxy, &mut tasks, &key).await;
    settle().await;
    drop(delivery);
    expect_end(&mut first).await;
    drop(server.accept().await);
    expect_end(&mut second).await;
    assert_eq!(count(&proxy, "delivered"), 2);
}

#[tokio::test(start_paused = true)]
async fn guesses_wait_but_keep_neither_place_nor_newcomer() {
    let proxy = proxy(1, 1);
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    // Somebody who takes his time over a StartupMessage, and is the oldest.
    let (slow, mut slow_client) = proxy.connect();
    tasks.spawn(slow);
    slow_client.write_all(&startup()[..9]).await.unwrap();
    let mut guessing = Vec::new();
    for number in 0..300_u32 {
        guessing.push(ask(&proxy, &mut tasks, &upstream_key(number)).await);
        settle().await;
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(count(&proxy, "miss"), 300);
    // His place is still his: he is told what everybody is told without a credential.
    slow_client.write_all(&startup()[9..]).await.unwrap();
    let mut told = Vec::new();
    slow_client.read_to_end(&mut told).await.unwrap();
    assert_eq!(code(&told), "57P03");
    for guess in &mut guessing {
        expect_end(guess).await;
    }
}
