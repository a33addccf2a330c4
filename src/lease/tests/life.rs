//! What happens when nothing is wrong.

use super::fakes::Mood;
use super::*;

/// Gaps between moments, in D of `ttl` seconds.
fn gaps(moments: &[Instant], ttl: f64) -> Vec<f64> {
    moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() / ttl).collect()
}

#[tokio::test(start_paused = true)]
async fn lease_and_token_are_renewed_at_half_of_their_lives_for_good() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.token_ttl = 20)).await;
    let issued = rig.vault.requests(Operation::ReadCreds)[0];
    let user = rig.user().await;
    time::sleep(secs(300)).await;

    for (operation, ttl) in [(Operation::RenewLease, 10.0), (Operation::RenewSelf, 20.0)] {
        let renewals = rig.vault.requests(operation);
        let first = (renewals[0] - issued).as_secs_f64() / ttl;
        assert!((0.09..0.61).contains(&first), "{operation} {first}");
        for gap in gaps(&renewals, ttl) {
            assert!((0.49..0.61).contains(&gap), "{operation} {gap}");
        }
    }
    assert_eq!((rig.vault.count(Operation::Login), rig.vault.count(Operation::ReadCreds)), (1, 1));
    assert_eq!(rig.user().await, user);
}

#[tokio::test(start_paused = true)]
async fn lease_is_rotated_before_its_maximum_and_the_old_one_revoked() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_max = 25)).await;
    let mut users = Vec::new();
    for _ in 0..1_200 {
        assert!(rig.source.is_ready());
        let user = rig.user().await;
        if users.last() != Some(&user) {
            users.push(user);
        }
        assert!(rig.vault.living_leases() <= 2);
        time::sleep(ms(100)).await;
    }

    assert!((5..=10).contains(&users.len()), "{users:?}");
    assert!(rig.metric(r#"pglease_rotations_total{trigger="planned",result="ok"}"#) >= 4);
    assert_eq!(rig.vault.count(Operation::RevokeSelf), users.len() - 1);
    assert_eq!((rig.vault.living_tokens(), rig.metric("pglease_orphans_total")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn token_is_rotated_before_its_maximum() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| {
            (vault.lease_ttl, vault.token_ttl, vault.token_max) = (3_600, 8, 20);
        });
    })
    .await;
    for _ in 0..600 {
        assert!(rig.source.is_ready() && rig.vault.living_leases() <= 2);
        time::sleep(ms(100)).await;
    }
    let logins = rig.vault.requests(Operation::Login);
    assert!(gaps(&logins, 20.0).into_iter().all(|gap| gap <= 1.0), "{logins:?}");
    assert!(logins.len() <= 7, "{logins:?}");
}

#[tokio::test(start_paused = true)]
async fn held_generation_is_renewed_after_its_rotation_and_revoked_after_the_last_hold() {
    let rig = Rig::serving(|_, _| {}).await;
    let (held, rejected) = (rig.hold().await, rig.hold().await);
    let newer = rig.source.replace(rejected).await.unwrap();
    assert_ne!(newer.credential().user, held.credential().user);

    time::sleep(secs(100)).await;
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::RevokeSelf)), (2, 0));
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    let line = r#"pglease_sessions{vault_path="database/creds/db-app",generation="superseded"}"#;
    assert_eq!(rig.metric(line), 1);

    drop(held);
    time::sleep(ms(100)).await;
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::RevokeSelf)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn sessions_of_an_ending_lease_are_told_and_outlive_it_if_they_like() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_max = 25)).await;
    let held = rig.hold().await;
    let issued = Instant::now();
    let mut standing = held.standing();

    let told = standing.wait_for(|standing| *standing != Standing::Kept).await.unwrap();
    let Standing::Ending(end) = *told else { panic!("{told:?}") };
    drop(told);
    assert!(rig.user().await != held.credential().user);
    let life = (end.cut_at - issued).as_secs_f64();
    assert!((23.0..25.1).contains(&life), "{life}");
    assert_eq!((end.cut_at - end.idle_from, end.cut_at - end.boundary_from), (ms(2_500), ms(1_250)));

    let outlived = r#"pglease_sessions_outlived_lease{vault_path="database/creds/db-app"}"#;
    assert_eq!(rig.metric(outlived), 0);
    time::sleep_until(end.cut_at + secs(60)).await;
    assert!(matches!(*held.standing().borrow(), Standing::Ending(_)));
    assert_eq!((rig.vault.living_tokens(), rig.metric(outlived)), (1, 1));
    drop(held);
    time::sleep(secs(1)).await;
    let line = r#"pglease_sessions{vault_path="database/creds/db-app",generation="superseded"}"#;
    assert_eq!((rig.metric(line), rig.metric(outlived)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn raised_maximum_takes_the_announcement_back() {
    let rig =
        Rig::serving(|vault, _| vault.set(|vault| (vault.lease_ttl, vault.lease_max) = (60, 150))).await;
    let held = rig.hold().await;
    let mut standing = held.standing();
    drop(standing.wait_for(|standing| *standing != Standing::Kept).await.unwrap());
    assert_ne!(rig.user().await, held.credential().user);

    rig.vault.set(|vault| vault.lease_max = 3_600);
    drop(standing.wait_for(|standing| *standing == Standing::Kept).await.unwrap());
    time::sleep(secs(600)).await;
    assert_eq!(*standing.borrow(), Standing::Kept);
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::ReadCreds)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn only_eight_superseded_generations_are_renewed() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        let rejected = rig.hold().await;
        held.push(rig.hold().await);
        drop(rig.source.replace(rejected).await.unwrap());
    }
    time::sleep(secs(1)).await;
    let ending = held.iter().filter(|hold| matches!(*hold.standing().borrow(), Standing::Ending(_))).count();
    assert_eq!(ending, 2);
    assert!(matches!(*held[1].standing().borrow(), Standing::Ending(_)));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_renewed_is_rotated_in_time() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| (vault.renewable, vault.lease_ttl) = (false, 60));
    })
    .await;
    for _ in 0..600 {
        assert!(rig.source.is_ready() && rig.vault.living_leases() <= 2);
        time::sleep(secs(1)).await;
    }
    assert_eq!(rig.vault.count(Operation::RenewLease), 0);
    let creds = rig.vault.count(Operation::ReadCreds);
    assert!((12..=18).contains(&creds), "{creds}");
}

#[tokio::test(start_paused = true)]
async fn token_without_the_default_policy_is_never_asked_to_be_renewed() {
    let rig = Rig::serving(|vault, _| {
        for operation in
            [Operation::LookUpSelf, Operation::RenewLease, Operation::RenewSelf, Operation::RevokeSelf]
        {
            vault.fail(operation, Fault::Status(403));
        }
        vault.set(|vault| vault.lease_ttl = 12);
    })
    .await;
    for _ in 0..400 {
        assert!(rig.source.is_ready());
        time::sleep(ms(100)).await;
    }
    assert_eq!(rig.vault.count(Operation::RenewLease) + rig.vault.count(Operation::RenewSelf), 0);
    let rotations = rig.vault.count(Operation::ReadCreds) - 1;
    assert_eq!(rig.metric("pglease_orphans_total"), u64::try_from(rotations).unwrap());
    assert!((3..=6).contains(&rotations), "{rotations}");
}

#[tokio::test(start_paused = true)]
async fn credential_is_proven_before_it_is_offered() {
    let rig = Rig::start(|_, upstream| upstream.set(Mood::Rejects));
    time::sleep(secs(4)).await;
    assert!(!rig.source.is_ready() && rig.upstream.probes() > 3);
    rig.upstream.set(Mood::Refuses("3D000"));
    time::sleep(secs(1)).await;
    assert_eq!(rig.user().await, "v-1");
}

#[tokio::test(start_paused = true)]
async fn end_revokes_everything_side_by_side() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    let (held, rejected) = (rig.hold().await, rig.hold().await);
    drop(rig.source.replace(rejected).await.unwrap());
    assert_eq!(rig.vault.living_leases(), 2);
    rig.vault.set(|vault| vault.delay = ms(1_500));

    let (vault, source, began) = (Arc::clone(&rig.vault), rig.source.clone(), Instant::now());
    let late = async {
        time::sleep(ms(500)).await;
        drop(held);
    };
    assert_eq!(tokio::join!(rig.end(), late).0, ChainEnd { revoked: 2, failed: 0 });
    assert!(began.elapsed() < secs(2));
    assert_eq!((vault.living_tokens(), vault.count(Operation::RevokeSelf)), (0, 2));
    assert!(source.hold().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn end_waits_for_what_is_being_fetched_and_revokes_it() {
    // While the login is under way, and while the creds are read.
    for (after, revoked) in [(500, 1), (2_500, 1)] {
        let rig = Rig::start(|vault, _| vault.set(|vault| vault.delay = ms(1_000)));
        time::sleep(ms(after)).await;
        let (vault, began) = (Arc::clone(&rig.vault), Instant::now());
        assert_eq!(rig.end().await, ChainEnd { revoked, failed: 0 });
        assert!(began.elapsed() <= secs(5));
        assert_eq!(vault.living_tokens(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn end_is_over_in_five_seconds_whatever_vault_does() {
    for fault in [Fault::Silence, Fault::Unreachable, Fault::Status(500)] {
        let rig = Rig::serving(|_, _| {}).await;
        rig.vault.fail_all(fault);
        time::sleep(secs(7)).await;
        let (metrics, began) = (Arc::clone(&rig.metrics), Instant::now());
        assert_eq!(rig.end().await, ChainEnd { revoked: 0, failed: 1 }, "{fault:?}");
        assert!(began.elapsed() <= secs(5));
        assert!(metrics.encode().unwrap().contains("pglease_orphans_total 1\n"));
    }
}
