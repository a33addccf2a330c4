//! Cancels of whole sessions: each reaches its own, in turn, and a guess reaches nobody.

use tokio::task::JoinSet;

use super::*;

/// BackendKeyData's body: one pid for all sessions, as different upstreams may give it.
fn upstream_key(secret: u32) -> Vec<u8> {
    [&KEY[5..9], &secret.to_be_bytes()].concat()
}

/// Begins a session whose upstream has given it this secret; gives its ends and the key that its client got.
async fn begin(
    proxy: &Proxy,
    server: &Server,
    sessions: &mut JoinSet<()>,
    secret: u32,
) -> (DuplexStream, TcpStream, Vec<u8>) {
    let (session, mut client) = proxy.connect();
    sessions.spawn(session);
    client.write_all(&startup()).await.unwrap();
    let (mut upstream, _) = server.accept().await;
    let key = [b"K\0\0\0\x0c", &upstream_key(secret)[..]].concat();
    upstream.write_all(&[login::AUTHENTICATION_OK, STATUS, &key, READY].concat()).await.unwrap();
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
