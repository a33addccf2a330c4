//! What ends a session, and when.

use super::*;
use crate::credential::{LeaseEnd, Revocation, Standing, Suspicion};
use crate::session::watch::MaxAge;

fn ending(idle_from: u64, boundary_from: u64, cut_at: u64) -> Standing {
    let now = Instant::now();
    Standing::Ending(LeaseEnd {
        idle_from: now + secs(idle_from),
        boundary_from: now + secs(boundary_from),
        cut_at: now + secs(cut_at),
        harmless: false,
    })
}

async fn statement(far: &mut Far, ready: &[u8]) {
    far.client.write_all(QUERY).await.unwrap();
    expect(&mut far.upstream, QUERY).await;
    far.upstream.write_all(ready).await.unwrap();
    expect(&mut far.client, ready).await;
}

#[tokio::test(start_paused = true)]
async fn idle_session_ends_within_the_window_of_its_lease() {
    let began = Instant::now();
    let (end, ..) = play(scene(1024).await, async |far: Far| {
        far.issued.set_standing(ending(100, 200, 205));
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::LeaseEnds)));
    assert!((secs(100)..secs(200)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn session_in_use_ends_two_seconds_after_or_at_the_boundary() {
    let began = Instant::now();
    let (end, _, (used_at, _far)) = play(scene(1024).await, async |mut far: Far| {
        far.issued.set_standing(ending(1, 100, 105));
        for _ in 0..60 {
            statement(&mut far, READY).await;
            time::sleep(Duration::from_millis(1500)).await;
            // No use of the session.
            far.upstream.write_all(NOTIFICATION).await.unwrap();
            expect(&mut far.client, NOTIFICATION).await;
        }
        statement(&mut far, READY).await;
        (began.elapsed(), far)
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::LeaseEnds)));
    assert_eq!(began.elapsed().as_secs(), (used_at + secs(2)).as_secs());
}

#[tokio::test(start_paused = true)]
async fn transaction_ends_at_the_boundary_and_a_statement_at_the_cut() {
    let began = Instant::now();
    let (end, relay, _) = play(scene(1024).await, async |mut far: Far| {
        far.issued.set_standing(ending(0, 100, 105));
        statement(&mut far, IN_TRANSACTION).await;
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::LeaseEnds)));
    assert!(!relay.tracker.is_running());
    assert_eq!(began.elapsed().as_secs(), 100);

    let began = Instant::now();
    let (end, relay, _) = play(scene(1024).await, async |mut far: Far| {
        far.issued.set_standing(ending(0, 100, 105));
        far.client.write_all(QUERY).await.unwrap();
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::LeaseOver)));
    assert!(relay.tracker.is_running());
    assert_eq!(began.elapsed().as_secs(), 105);
}

#[tokio::test(start_paused = true)]
async fn statement_that_is_under_way_in_a_drain_is_answered_before_the_session_ends() {
    let (end, relay, _) = play(scene(1024).await, async |mut far: Far| {
        far.client.write_all(QUERY).await.unwrap();
        let now = Instant::now();
        far.phase.send_replace(Phase::Draining { accept_until: now, idle_from: now, cut_at: now + secs(20) });
        expect(&mut far.upstream, QUERY).await;
        time::sleep(secs(10)).await;
        far.upstream.write_all(READY).await.unwrap();
        expect(&mut far.client, READY).await;
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::Draining)));
    assert!(relay.tracker.is_idle());
}

/// The order and the bytes come in one wake-up: whatever has been read has been forwarded.
#[tokio::test(start_paused = true)]
async fn bytes_that_come_with_the_order_are_forwarded_and_answered_first() {
    let (end, _, (answered_at, _far)) = play(scene(1024).await, async |mut far: Far| {
        time::sleep(secs(1)).await;
        let now = Instant::now();
        far.phase.send_replace(Phase::Draining { accept_until: now, idle_from: now, cut_at: now + secs(20) });
        far.client.write_all(QUERY).await.unwrap();
        expect(&mut far.upstream, QUERY).await;
        time::sleep(secs(5)).await;
        far.upstream.write_all(READY).await.unwrap();
        expect(&mut far.client, READY).await;
        (Instant::now(), far)
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::Draining)));
    assert_eq!(answered_at, Instant::now());
}

#[tokio::test(start_paused = true)]
async fn client_that_hangs_up_during_a_statement_is_let_go_in_a_drain_only() {
    let (end, relay, _) = play(scene(1024).await, async |mut far: Far| {
        far.client.write_all(QUERY).await.unwrap();
        far.client.shutdown().await.unwrap();
        expect(&mut far.upstream, QUERY).await;
        expect_end(&mut far.upstream).await;
        time::sleep(secs(30)).await;
        let now = Instant::now();
        let later = now + secs(20);
        far.phase.send_replace(Phase::Draining { accept_until: now, idle_from: later, cut_at: later });
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::HungUp)));
    assert!(relay.tracker.is_running() && !relay.can_speak_to_upstream());
}

#[tokio::test(start_paused = true)]
async fn revocation_and_cut_end_a_busy_session_at_once() {
    for (standing, phase, expected) in [
        (Standing::Revoked(Revocation::ByVault), Phase::Serving, Order::Revoked(Revocation::ByVault)),
        (Standing::Kept, Phase::Cut, Order::Cut),
    ] {
        let began = Instant::now();
        let (end, ..) = play(scene(1024).await, async |mut far: Far| {
            far.client.write_all(QUERY).await.unwrap();
            time::sleep(secs(1)).await;
            far.issued.set_standing(standing);
            far.phase.send_replace(phase);
            far
        })
        .await;
        assert!(matches!(end, RelayEnd::Ordered(order) if order == expected));
        assert_eq!(began.elapsed(), secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_session_is_cut_in_time_and_may_not_be_spoken_to_within_a_frame() {
    let began = Instant::now();
    let (end, relay, _) = play(scene(64).await, async |mut far: Far| {
        let now = Instant::now();
        far.phase.send_replace(Phase::Draining { accept_until: now, idle_from: now, cut_at: now + secs(20) });
        // A frame of which the end never comes, and more of it than the client takes.
        far.upstream.write_all(b"D\0\x01\0\0").await.unwrap();
        far.upstream.write_all(&[7; 150]).await.unwrap();
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::Cut)));
    assert_eq!(began.elapsed(), secs(20));
    assert!(!relay.can_speak_to_client() && !relay.backend.stash.is_empty());
}

#[tokio::test(start_paused = true)]
async fn sign_that_the_role_is_gone_is_reported_while_the_session_goes_on_and_when_it_ends() {
    let fields = |code: &str| format!("SFATAL\0VFATAL\0C{code}\0Mwords\0\0");
    let error = |code: &str| {
        let fields = fields(code);
        [b"E", &u32::try_from(fields.len() + 4).unwrap().to_be_bytes()[..], fields.as_bytes()].concat()
    };
    let (end, ..) = play(scene(1024).await, async |mut far: Far| {
        let doubted = Some(Suspicion::Doubted(GenerationId(1)));
        statement(&mut far, &[error("42704"), READY.to_vec()].concat()).await;
        assert_eq!(far.publisher.suspicion().await, doubted);
        time::sleep(secs(5)).await;
        statement(&mut far, READY).await;
        // The last that upstream says.
        far.upstream.write_all(&error("57P01")).await.unwrap();
        far.upstream.shutdown().await.unwrap();
        assert_eq!(far.publisher.suspicion().await, doubted);
        far
    })
    .await;
    assert!(matches!(end, RelayEnd::UpstreamClosed));
}

#[tokio::test(start_paused = true)]
async fn session_that_gets_too_old_ends_when_it_is_idle_and_there_is_another_credential() {
    let began = Instant::now();
    let mut scene = scene(1024).await;
    let (aged_from, source) = (began + secs(100), scene.far.source.clone());
    scene.watch.max_age = Some(Box::new(MaxAge { aged_from, source }));
    let (end, ..) = play(scene, async |mut far: Far| {
        for _ in 0..20 {
            statement(&mut far, IN_TRANSACTION).await;
            time::sleep(secs(10)).await;
        }
        far.publisher.withdraw();
        statement(&mut far, READY).await;
        time::sleep(secs(100)).await;
        far.client.write_all(QUERY).await.unwrap();
        expect(&mut far.upstream, QUERY).await;
        let issued = far.publisher.promote(credential(2));
        time::sleep(secs(50)).await;
        far.upstream.write_all(READY).await.unwrap();
        expect(&mut far.client, READY).await;
        (issued, far)
    })
    .await;
    assert!(matches!(end, RelayEnd::Ordered(Order::MaxAge)));
    assert_eq!(began.elapsed(), secs(350));
}
