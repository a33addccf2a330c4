//! How a chain learns what the revocation of its leases does to open sessions.

use super::fakes::{Fate, Mood};
use super::*;
use crate::credential::LeaseEnd;

/// Leases of 10 s up to 25 s, with roles that end so.
async fn learning(fate: Fate) -> Rig {
    learning_from(|vault, upstream| {
        vault.set(|vault| vault.lease_max = 25);
        upstream.doom(fate);
    })
    .await
}

async fn learning_from(set_up: impl FnOnce(&FakeVault, &FakeUpstream)) -> Rig {
    let rig = Rig::start_with(true, set_up);
    drop(rig.hold().await);
    rig
}

/// Short of the first rotation of such leases, which no test needs to look out for yet.
async fn shortly_before_the_rotation() {
    time::sleep(secs(14)).await;
}

/// What the sessions of `held` are told first, and when.
async fn told(held: &Hold) -> (LeaseEnd, Instant) {
    let mut standing = held.standing();
    let told = *standing.wait_for(|standing| *standing != Standing::Kept).await.unwrap();
    let Standing::Ending(end) = told else { panic!("{told:?}") };
    (end, Instant::now())
}

#[tokio::test(start_paused = true)]
async fn every_fate_of_the_throw_away_is_judged_and_it_never_stays() {
    for (fate, harmless) in [
        (Fate::NoLogin, Some(true)),
        (Fate::NoLoginThenStripped, Some(false)),
        (Fate::Dropped, Some(false)),
        (Fate::Told("42501"), Some(false)),
        (Fate::Told("57P01"), Some(false)),
        (Fate::Told("57P02"), None),
        (Fate::ConnectionLost, None),
        (Fate::Untouched, None),
    ] {
        let rig = learning(fate).await;
        let held = rig.hold().await;
        let (end, at) = told(&held).await;
        assert_eq!(end.harmless, harmless == Some(true), "{fate:?}");
        assert!(at <= end.boundary_from + ms(10), "{fate:?}");
        time::sleep_until(end.cut_at + secs(4)).await;
        // The current one alone, whatever was learned.
        assert_eq!((rig.vault.living_tokens(), rig.vault.living_leases()), (1, 1), "{fate:?}");
        assert_eq!(rig.upstream.witnesses(), 1, "{fate:?}");
        assert_eq!(rig.metric("pglease_orphans_total"), 0, "{fate:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_throw_away_is_made_and_what_it_taught_holds_for_every_later_end() {
    let rig = learning(Fate::NoLogin).await;
    let mut users = vec![rig.user().await];
    // Nobody would be told, as long as nobody has a session.
    time::sleep(secs(60)).await;
    assert_eq!(rig.upstream.witnesses(), 0);

    for _ in 0..4 {
        let held = rig.hold().await;
        assert!(told(&held).await.0.harmless);
        users.push(held.credential().user.clone());
    }
    assert_eq!(rig.upstream.witnesses(), 1);
    users.dedup();
    assert_eq!(users.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_learned_where_no_session_depends_on_it() {
    let rig = Rig::serving(|vault, upstream| {
        vault.set(|vault| vault.lease_max = 25);
        upstream.doom(Fate::NoLogin);
    })
    .await;
    let held = rig.hold().await;
    assert!(!told(&held).await.0.harmless);
    time::sleep(secs(60)).await;
    assert_eq!(rig.upstream.witnesses(), 0);
}

#[tokio::test(start_paused = true)]
async fn role_that_is_revoked_late_is_waited_for_until_nobody_can_be_spared() {
    let rig =
        learning_from(|vault, _| vault.set(|vault| (vault.lease_ttl, vault.lease_max) = (600, 1_500))).await;
    let held = rig.hold().await;
    while rig.upstream.witnesses() == 0 {
        time::sleep(ms(100)).await;
    }
    // As behind another revocation that is slow.
    time::sleep(secs(12)).await;
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    rig.upstream.doom(Fate::NoLogin);
    assert!(told(&held).await.0.harmless);
}

#[tokio::test(start_paused = true)]
async fn sessions_wait_for_a_verdict_up_to_the_last_moment() {
    let rig = learning(Fate::Untouched).await;
    let held = rig.hold().await;
    let (end, at) = told(&held).await;
    assert!(!end.harmless && end.boundary_from <= at && at < end.boundary_from + ms(10));
    // One that comes late still spares those that run a statement.
    rig.upstream.doom(Fate::NoLogin);
    time::sleep(secs(2)).await;
    let Standing::Ending(end) = *held.standing().borrow() else { panic!("not told") };
    assert!(end.harmless);
}

#[tokio::test(start_paused = true)]
async fn without_a_verdict_the_next_end_is_tried() {
    let rig =
        learning_from(|vault, _| vault.set(|vault| (vault.lease_ttl, vault.lease_max) = (600, 1_500))).await;
    for tried in 1..=2 {
        let held = rig.hold().await;
        let (end, at) = told(&held).await;
        assert!(!end.harmless && at < end.boundary_from);
        assert_eq!(rig.upstream.witnesses(), tried);
        time::sleep_until(end.cut_at).await;
    }
    rig.upstream.doom(Fate::NoLogin);
    let held = rig.hold().await;
    assert!(told(&held).await.0.harmless);
    assert_eq!(rig.upstream.witnesses(), 3);
}

#[tokio::test(start_paused = true)]
async fn trouble_on_the_way_to_a_verdict_is_no_verdict_and_leaves_nothing() {
    for (operation, fault, orphans) in [
        (Operation::Login, Fault::Status(503), 0),
        (Operation::ReadCreds, Fault::Status(500), 0),
        (Operation::ReadCreds, Fault::Malformed, 0),
        // The throw-away's and the old generation's.
        (Operation::RevokeSelf, Fault::Status(500), 1),
    ] {
        let rig = learning_from(|vault, upstream| {
            vault.set(|vault| vault.lease_max = 25);
            upstream.doom(Fate::NoLogin);
        })
        .await;
        let held = rig.hold().await;
        shortly_before_the_rotation().await;
        // The successor's own are under way or done.
        while rig.vault.count(Operation::ReadCreds) < 2 {
            time::sleep(ms(1)).await;
        }
        rig.vault.fail(operation, fault);
        let (end, _) = told(&held).await;
        assert!(!end.harmless, "{operation} {fault:?}");
        let label = "pglease_orphans_total";
        assert_eq!(rig.metric(label), orphans, "{operation} {fault:?}");
        rig.vault.recover();

        let held = rig.hold().await;
        assert!(told(&held).await.0.harmless, "{operation} {fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_that_is_away_or_late_is_no_verdict() {
    for (mood, harmless) in [
        (Mood::Unreachable, false),
        (Mood::Rejects, false),
        (Mood::Refuses("53300"), false),
        (Mood::Accepts, true),
    ] {
        let rig = learning(Fate::NoLogin).await;
        let held = rig.hold().await;
        shortly_before_the_rotation().await;
        while rig.user().await == held.credential().user {
            time::sleep(ms(1)).await;
        }
        rig.upstream.set(mood);
        time::sleep(ms(200)).await;
        assert_eq!(told(&held).await.0.harmless, harmless, "{mood:?}");
        time::sleep(secs(10)).await;
        assert_eq!(rig.vault.living_tokens(), 1, "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn session_that_a_stopping_server_ends_is_no_verdict() {
    let rig = learning(Fate::Untouched).await;
    let held = rig.hold().await;
    shortly_before_the_rotation().await;
    while rig.upstream.witnesses() == 0 {
        time::sleep(ms(1)).await;
    }
    rig.upstream.doom(Fate::Told("57P01"));
    rig.upstream.set(Mood::Refuses("57P03"));
    let (end, at) = told(&held).await;
    assert!(!end.harmless && at < end.boundary_from);
    rig.upstream.set(Mood::Accepts);
    rig.upstream.doom(Fate::NoLogin);
    let held = rig.hold().await;
    assert!(told(&held).await.0.harmless);
}

#[tokio::test(start_paused = true)]
async fn end_revokes_the_throw_away_wherever_it_is() {
    for after in [1, 6, 11, 16, 21, 100, 2_000] {
        let rig = learning(Fate::Untouched).await;
        let held = rig.hold().await;
        let logins = rig.vault.count(Operation::Login);
        shortly_before_the_rotation().await;
        while rig.vault.count(Operation::Login) < logins + 2 {
            time::sleep(ms(1)).await;
        }
        time::sleep(ms(after)).await;
        drop(held);
        let (vault, metrics, began) = (Arc::clone(&rig.vault), Arc::clone(&rig.metrics), Instant::now());
        let end = rig.end().await;
        assert_eq!((end.failed, vault.living_tokens()), (0, 0), "{after}");
        assert!(began.elapsed() < secs(1), "{after}");
        assert!(metrics.encode().unwrap().contains("pglease_orphans_total 0\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn end_does_not_wait_for_a_throw_away_beyond_its_limit() {
    for (operation, fault) in [
        (Operation::Login, Fault::Silence),
        (Operation::ReadCreds, Fault::Silence),
        (Operation::RevokeSelf, Fault::Silence),
    ] {
        let rig = learning(Fate::Untouched).await;
        let held = rig.hold().await;
        shortly_before_the_rotation().await;
        while rig.user().await == held.credential().user {
            time::sleep(ms(1)).await;
        }
        rig.vault.fail(operation, fault);
        time::sleep(secs(1)).await;
        let began = Instant::now();
        rig.end().await;
        assert!(began.elapsed() <= secs(5), "{operation} {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn panic_while_learning_costs_one_occasion() {
    let rig = learning(Fate::Panics).await;
    let held = rig.hold().await;
    assert!(!told(&held).await.0.harmless);
    assert_eq!(rig.metric("pglease_orphans_total"), 1);
    rig.upstream.doom(Fate::NoLogin);
    let held = rig.hold().await;
    assert!(told(&held).await.0.harmless);
}

#[tokio::test(start_paused = true)]
async fn lease_under_a_token_that_cannot_be_revoked_is_ended_by_itself() {
    use crate::vault::TokenKind;
    let rig = learning_from(|vault, upstream| {
        vault.set(|vault| (vault.lease_max, vault.token_kind) = (25, TokenKind::Batch));
        upstream.doom(Fate::NoLogin);
    })
    .await;
    let held = rig.hold().await;
    assert!(told(&held).await.0.harmless);
    assert_eq!(rig.vault.count(Operation::ExpireLease), 1);
}

#[tokio::test(start_paused = true)]
async fn token_that_may_not_end_itself_makes_no_throw_away() {
    let rig = learning_from(|vault, upstream| {
        for operation in
            [Operation::LookUpSelf, Operation::RenewLease, Operation::RenewSelf, Operation::RevokeSelf]
        {
            vault.fail(operation, Fault::Status(403));
        }
        vault.set(|vault| vault.lease_ttl = 30);
        upstream.doom(Fate::NoLogin);
    })
    .await;
    let held = rig.hold().await;
    assert!(!told(&held).await.0.harmless);
    time::sleep(secs(60)).await;
    assert_eq!(rig.upstream.witnesses(), 0);
}
