//! Clients that wait for a session, and those that get none.

use super::*;

#[tokio::test(start_paused = true)]
async fn client_is_told_when_no_credential_comes_in_time() {
    let proxy = proxy(1, 10);
    let began = Instant::now();
    let told = proxy.told(&startup()).await;
    assert_eq!(code(&told), "57P03");
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert!(proxy.ended("no_credential"));
}

#[tokio::test(start_paused = true)]
async fn client_that_goes_away_while_it_waits_frees_its_place() {
    for early in [&b""[..], TERMINATE] {
        let proxy = proxy(1, 1);
        let (session, mut client) = proxy.connect();
        let began = Instant::now();
        let talk = async {
            client.write_all(&startup()).await.unwrap();
            time::sleep(Duration::from_secs(3)).await;
            let metrics = &proxy.shared.metrics;
            assert_eq!((proxy.source.waiting(), metrics.clients_waiting.get()), (1, 1));
            assert!(proxy.shared.seats().take().is_none());
            client.write_all(early).await.unwrap();
            drop(client);
        };
        tokio::join!(session, talk);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        assert_eq!((proxy.source.waiting(), proxy.shared.metrics.clients_waiting.get()), (0, 0));
        assert!(proxy.shared.seats().take().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn clients_are_refused_as_the_server_would() {
    let proxy = proxy(1, 1);
    let seat = proxy.shared.seats().take();
    assert_eq!(code(&proxy.told(&startup()).await), "53300");
    drop(seat);
    let asking = |body: &[u8]| packet(0x0003_0000, body);
    assert_eq!(code(&proxy.told(&asking(b"database\0wizard\0\0")).await), "28000");
    assert_eq!(code(&proxy.told(&asking(b"user\0app\0\0")).await), "3D000");
    assert_eq!(code(&proxy.told(&asking(b"user\0app")).await), "08P01");
    assert_eq!(code(&proxy.told(&packet(0x0004_0000, b"\0")).await), "0A000");
    assert_eq!(proxy.told(&packet(0x0002_0000, b"\0")).await.first_chunk(), Some(b"EFATAL:  "));
    assert!(proxy.told(b"GET / HTTP/1.1\r\n\r\n").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn sessions_that_have_not_begun_are_told_of_the_drain() {
    let proxy = proxy(1, 1);
    let [accept_for, grace, deadline] = [1, 2, 3].map(Duration::from_secs);
    let begun = Instant::now();
    proxy.drain.begin(crate::config::DrainConfig { accept_for, grace, deadline, strict_exit: false }, begun);
    // Still let in: it waits for a credential, as an idle session would wait for a statement.
    assert_eq!(code(&proxy.told(&startup()).await), "57P03");
    assert_eq!(begun.elapsed(), grace);
    assert_eq!(code(&proxy.told(&startup()).await), "57P03");
    assert_eq!(begun.elapsed(), grace);
}

#[tokio::test(start_paused = true)]
async fn connection_without_a_place_ends_whatever_it_is_about() {
    let proxy = proxy(1, 1);
    let seat = proxy.shared.seats().take();
    // Silent; half-way; told no, and still to close.
    for sent in [&b""[..], &startup()[..9], &startup()] {
        let (session, mut client) = proxy.connect();
        let talk = async {
            client.write_all(sent).await.unwrap();
            time::sleep(Duration::from_millis(1)).await;
            proxy.shared.places().clear();
        };
        let began = Instant::now();
        tokio::join!(session, talk);
        assert_eq!(began.elapsed(), Duration::from_millis(1));
        drop(client);
    }
    drop(seat);
    // With a seat there is no place to lose.
    let (session, mut client) = proxy.connect();
    let began = Instant::now();
    tokio::join!(session, async {
        client.write_all(&startup()).await.unwrap();
        time::sleep(Duration::from_millis(1)).await;
        proxy.shared.places().clear();
        time::sleep(Duration::from_secs(1)).await;
        drop(client);
    });
    assert!(began.elapsed() > Duration::from_secs(1));
}
