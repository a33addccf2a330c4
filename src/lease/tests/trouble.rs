//! What happens when Vault, an upstream, a clock or an operator is in the way.

use super::fakes::{Mood, OPERATIONS};
use super::*;

#[tokio::test(start_paused = true)]
async fn vault_away_at_start_is_waited_for() {
    for fault in [Fault::Unreachable, Fault::Status(503), Fault::Status(403), Fault::Silence] {
        let rig = Rig::start(|vault, _| vault.fail_all(fault));
        time::sleep(secs(60)).await;
        assert!(!rig.source.is_ready());
        let logins = rig.vault.count(Operation::Login);
        assert!((3..=40).contains(&logins), "{fault:?} {logins}");

        // A client that waits shortens the pause.
        rig.vault.recover();
        let back = Instant::now();
        drop(rig.hold().await);
        let limit = if fault == Fault::Silence { secs(20) } else { secs(5) };
        assert!(back.elapsed() < limit, "{fault:?} {:?}", back.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn fifty_rejections_bring_one_new_credential() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.delay = ms(200))).await;
    let mut sessions = JoinSet::new();
    for _ in 0..50 {
        let (source, hold) = (rig.source.clone(), rig.hold().await);
        sessions.spawn(async move { source.replace(hold).await.unwrap().credential().user.clone() });
    }
    let users = sessions.join_all().await;
    assert!(users.iter().all(|user| user == "v-2"), "{users:?}");
    time::sleep(secs(60)).await;
    assert_eq!(rig.vault.count(Operation::ReadCreds), 2);
    assert_eq!(rig.metric(r#"pglease_rotations_total{trigger="rejected",result="ok"}"#), 1);
}

#[tokio::test(start_paused = true)]
async fn no_stream_of_rejections_makes_credentials_faster_than_the_budget() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    let mut sessions = JoinSet::new();
    for _ in 0..600 {
        if rig.source.is_ready() {
            let (source, hold) = (rig.source.clone(), rig.hold().await);
            sessions.spawn(async move { drop(source.replace(hold).await) });
        }
        time::sleep(ms(100)).await;
    }
    let creds = rig.vault.count(Operation::ReadCreds);
    assert!((3..=10).contains(&creds), "{creds}");
}

#[tokio::test(start_paused = true)]
async fn credential_that_every_upstream_rejects_is_not_offered_and_not_made_in_a_loop() {
    let rig = Rig::start(|_, upstream| upstream.set(Mood::Rejects));
    let waiting = rig.source.clone();
    let mut client = JoinSet::new();
    client.spawn(async move { drop(waiting.hold().await) });
    time::sleep(secs(600)).await;

    assert!(!rig.source.is_ready());
    let creds = rig.vault.count(Operation::ReadCreds);
    assert!((5..=63).contains(&creds), "{creds}");
    assert!(rig.vault.living_leases() <= 1);
    rig.upstream.set(Mood::Accepts);
    time::sleep(secs(31)).await;
    assert!(rig.source.is_ready());
}

#[tokio::test(start_paused = true)]
async fn upstream_away_at_start_leaves_the_verdict_to_the_clients_logins() {
    for mood in [Mood::Unreachable, Mood::Refuses("57P03"), Mood::Refuses("28000"), Mood::Silent] {
        let rig = Rig::start(|_, upstream| upstream.set(mood));
        let began = Instant::now();
        assert_eq!(rig.user().await, "v-1");
        assert!(began.elapsed() > secs(5) && began.elapsed() < secs(6), "{mood:?}");
        // It is proven later on, and only then counts as a start.
        assert!(!rig.source.was_proven(), "{mood:?}");
        rig.upstream.set(Mood::Accepts);
        time::sleep(secs(10)).await;
        assert!(rig.source.was_proven(), "{mood:?}");
        let probes = rig.upstream.probes();
        time::sleep(secs(60)).await;
        assert_eq!(rig.upstream.probes(), probes);
        assert_eq!(rig.vault.count(Operation::ReadCreds), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn doubtful_credential_is_looked_into_now_and_then_and_kept_while_its_lease_lives() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 3_600)).await;
    rig.upstream.set(Mood::Refuses("28000"));
    let user = rig.user().await;
    for _ in 0..600 {
        rig.hold().await.doubt();
        time::sleep(secs(1)).await;
        assert!(rig.source.is_usable());
    }
    let lookups = rig.vault.count(Operation::LookUpLease);
    assert!((50..=61).contains(&lookups), "{lookups}");
    assert_eq!((rig.user().await, rig.vault.count(Operation::ReadCreds)), (user, 1));

    rig.vault.revoke_all();
    rig.hold().await.doubt();
    time::sleep(secs(20)).await;
    assert_eq!(rig.vault.count(Operation::ReadCreds), 2);
}

#[tokio::test(start_paused = true)]
async fn successor_that_nobody_refused_is_offered_before_the_current_one_ends() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_max = 25)).await;
    rig.upstream.set(Mood::Unreachable);
    for _ in 0..600 {
        assert!(rig.source.is_ready());
        time::sleep(ms(100)).await;
    }
    assert!(rig.metric(r#"pglease_rotations_total{trigger="planned",result="unproven"}"#) >= 1);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_told_of_an_end_only_when_the_successor_is_proven() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_max = 25)).await;
    let held = rig.hold().await;
    rig.upstream.set(Mood::Unreachable);
    time::sleep(secs(40)).await;
    assert_ne!(rig.user().await, held.credential().user);
    assert_eq!(*held.standing().borrow(), Standing::Kept);

    rig.upstream.set(Mood::Accepts);
    time::sleep(secs(10)).await;
    let Standing::Ending(end) = *held.standing().borrow() else { panic!("not told") };
    assert!(end.cut_at <= Instant::now());
}

#[tokio::test(start_paused = true)]
async fn sealed_vault_costs_nothing_while_the_lease_lasts() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
    let user = rig.user().await;
    time::sleep(secs(61)).await;
    rig.vault.fail_all(Fault::Status(503));
    time::sleep(secs(20)).await;
    rig.vault.recover();
    for _ in 0..120 {
        assert!(rig.source.is_ready());
        time::sleep(secs(1)).await;
    }
    assert_eq!(rig.user().await, user);
    assert_eq!(rig.vault.count(Operation::ReadCreds), 1);
}

#[tokio::test(start_paused = true)]
async fn vault_away_for_longer_leaves_sessions_alone_and_serves_again_when_it_is_back() {
    let rig = Rig::serving(|_, _| {}).await;
    let held = rig.hold().await;
    rig.vault.fail_all(Fault::Unreachable);
    time::sleep(secs(9)).await;
    assert!(rig.source.is_ready());
    time::sleep(secs(31)).await;
    assert!(!rig.source.is_ready());
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    let renewals = rig.vault.count(Operation::RenewLease);
    assert!(renewals <= 12, "{renewals}");

    rig.vault.recover();
    let back = Instant::now();
    assert_eq!(rig.user().await, "v-2");
    assert!(back.elapsed() < secs(5), "{:?}", back.elapsed());
    assert!(rig.metric(r#"pglease_rotations_total{trigger="degraded",result="failed"}"#) > 0);
    time::sleep(secs(1)).await;
    assert!(matches!(*held.standing().borrow(), Standing::Ending(_)));
}

#[tokio::test(start_paused = true)]
async fn renewal_that_succeeds_at_last_makes_the_successor_needless() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
    time::sleep(secs(61)).await;
    let user = rig.user().await;
    rig.vault.fail(Operation::RenewLease, Fault::Status(500));
    rig.upstream.set(Mood::Unreachable);
    while rig.vault.count(Operation::ReadCreds) < 2 {
        time::sleep(ms(100)).await;
    }
    rig.vault.recover();
    time::sleep(secs(10)).await;

    assert_eq!(rig.user().await, user);
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::RevokeSelf)), (1, 1));
    assert_eq!(rig.metric(r#"pglease_rotations_total{trigger="degraded",result="abandoned"}"#), 1);
}

#[tokio::test(start_paused = true)]
async fn refused_renewal_is_no_reason_to_rotate_until_time_runs_low() {
    for status in [400, 404, 405] {
        let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
        let (user, issued) = (rig.user().await, Instant::now());
        rig.vault.fail(Operation::RenewLease, Fault::Status(status));
        while rig.vault.count(Operation::Login) == 1 {
            assert!(rig.source.is_ready());
            time::sleep(ms(100)).await;
        }
        assert!(issued.elapsed() > secs(39), "{status} {:?}", issued.elapsed());
        time::sleep(secs(10)).await;
        assert_ne!(rig.user().await, user, "{status}");
        assert_eq!(rig.vault.count(Operation::ReadCreds), 2, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn database_that_is_away_for_a_while_costs_no_new_credential() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
    let user = rig.user().await;
    rig.vault.fail(Operation::RenewLease, Fault::Status(400));
    rig.vault.fail(Operation::ReadCreds, Fault::Status(500));
    rig.upstream.set(Mood::Unreachable);
    while rig.vault.count(Operation::RenewLease) < 3 {
        time::sleep(ms(100)).await;
    }
    rig.vault.recover();
    rig.upstream.set(Mood::Accepts);
    time::sleep(secs(60)).await;
    assert_eq!((rig.user().await, rig.vault.count(Operation::Login)), (user, 1));
}

/// What Vault makes of the database's absence: 400 to renewals, 500 to creds reads.
#[tokio::test(start_paused = true)]
async fn database_away_brings_no_attempt_at_a_successor_and_a_renewal_soon_after() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
    rig.vault.fail(Operation::RenewLease, Fault::Status(400));
    rig.vault.fail(Operation::ReadCreds, Fault::Status(500));
    rig.upstream.set(Mood::Unreachable);
    while rig.vault.count(Operation::RenewLease) == 0 {
        time::sleep(ms(100)).await;
    }
    time::sleep(secs(20)).await;
    assert_eq!((rig.vault.count(Operation::Login), rig.vault.count(Operation::ReadCreds)), (1, 1));
    rig.vault.recover();
    rig.upstream.set(Mood::Accepts);
    let renewals = rig.vault.count(Operation::RenewLease);
    time::sleep(secs(5)).await;
    assert!(rig.vault.count(Operation::RenewLease) > renewals);
}

#[tokio::test(start_paused = true)]
async fn renewal_that_is_not_allowed_plans_a_rotation() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    rig.vault.fail(Operation::RenewLease, Fault::Status(403));
    while rig.vault.count(Operation::Login) == 1 {
        assert!(rig.source.is_ready());
        time::sleep(ms(100)).await;
    }
    assert_eq!(rig.vault.count(Operation::RenewLease), 1);
    time::sleep(secs(1)).await;
    assert_eq!(rig.metric(r#"pglease_rotations_total{trigger="planned",result="ok"}"#), 1);
}

/// Lease or token, met by a renewal or by a login.
#[tokio::test(start_paused = true)]
async fn what_an_operator_ended_is_replaced_and_its_sessions_end() {
    for (token, login) in [(false, false), (false, true), (true, false), (true, true)] {
        let rig = Rig::serving(|_, _| {}).await;
        let held = rig.hold().await;
        if token {
            rig.vault.revoke_all();
        } else {
            rig.vault.revoke_leases();
        }
        rig.upstream.reject("v-1");
        if login {
            let rejected = rig.hold().await;
            drop(rig.source.replace(rejected).await.unwrap());
        }
        let mut standing = held.standing();
        let revoked = standing.wait_for(|standing| *standing == Standing::Revoked(Revocation::ByVault));
        time::timeout(secs(8), revoked).await.unwrap().unwrap();
        assert_eq!(rig.user().await, "v-2", "{token} {login}");
        time::sleep(secs(60)).await;
        assert_eq!(*held.standing().borrow(), Standing::Revoked(Revocation::ByVault), "{token} {login}");
        assert_eq!(rig.vault.living_tokens(), 1, "{token} {login}");
        assert_eq!(rig.vault.count(Operation::ReadCreds), 2, "{token} {login}");
        assert_eq!(rig.metric("pglease_orphans_total"), 0, "{token} {login}");
        if !login {
            assert_eq!(rig.metric(r#"pglease_rotations_total{trigger="revoked",result="ok"}"#), 1);
        }
        drop(held);
        assert_eq!(rig.end().await, ChainEnd { revoked: 1, failed: 0 });
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_of_every_generation_end_when_an_operator_ended_them_all() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 3_600)).await;
    let (older, rejected) = (rig.hold().await, rig.hold().await);
    let newer = rig.source.replace(rejected).await.unwrap();
    rig.vault.revoke_all();
    for user in ["v-1", "v-2"] {
        rig.upstream.reject(user);
    }
    drop(rig.source.replace(rig.hold().await).await.unwrap());
    time::sleep(secs(2)).await;
    for held in [older, newer] {
        assert_eq!(*held.standing().borrow(), Standing::Revoked(Revocation::ByVault));
    }
}

/// A password that was changed, or NOLOGIN.
#[tokio::test(start_paused = true)]
async fn credential_that_only_upstream_rejects_is_replaced_and_its_sessions_live() {
    let rig = Rig::serving(|_, _| {}).await;
    let held = rig.hold().await;
    rig.upstream.reject("v-1");
    held.doubt();
    time::sleep(secs(1)).await;
    assert_eq!(rig.user().await, "v-2");
    time::sleep(secs(60)).await;
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::ReadCreds)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn doubts_without_a_reason_cost_a_look_each_ten_seconds() {
    let rig = Rig::serving(|_, _| {}).await;
    let held = rig.hold().await;
    for _ in 0..600 {
        held.doubt();
        time::sleep(ms(100)).await;
    }
    let looks = rig.vault.count(Operation::LookUpLease);
    assert!((5..=7).contains(&looks), "{looks}");
    assert_eq!((rig.user().await.as_str(), rig.vault.count(Operation::Login)), ("v-1", 1));
}

/// Something between us and Vault, or a policy that was changed.
#[tokio::test(start_paused = true)]
async fn token_that_is_denied_everything_ends_no_session_while_upstream_accepts_its_credential() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
    let held = rig.hold().await;
    rig.vault.fail_all(Fault::Status(403));
    time::sleep(secs(45)).await;
    rig.vault.recover();
    time::sleep(secs(120)).await;
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    assert_eq!((rig.user().await.as_str(), rig.vault.count(Operation::ReadCreds)), ("v-1", 1));
}

/// The revocation of its leases may fail, and then they let in for as long.
#[tokio::test(start_paused = true)]
async fn token_that_is_gone_while_others_live_was_revoked_whatever_upstream_says() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 60)).await;
    let held = rig.hold().await;
    rig.vault.revoke_all();
    let mut standing = held.standing();
    standing.wait_for(|standing| *standing == Standing::Revoked(Revocation::ByVault)).await.unwrap();
    assert_eq!(rig.user().await, "v-2");
    drop(held);
    time::sleep(secs(120)).await;
    assert_eq!(rig.vault.count(Operation::ReadCreds), 2);
}

#[tokio::test(start_paused = true)]
async fn refused_token_renewals_pass_without_a_rotation() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| (vault.token_ttl, vault.jwt_life) = (60, Some(3_600)));
    })
    .await;
    rig.vault.fail(Operation::RenewSelf, Fault::Status(403));
    while rig.vault.count(Operation::RenewSelf) < 3 {
        time::sleep(ms(100)).await;
    }
    rig.vault.recover();
    time::sleep(secs(120)).await;
    assert_eq!((rig.user().await.as_str(), rig.vault.count(Operation::Login)), ("v-1", 1));
}

#[tokio::test(start_paused = true)]
async fn jwt_that_ends_sets_the_rhythm_where_vault_asks_for_it() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| {
            (vault.lease_ttl, vault.token_ttl, vault.jwt_life) = (3_600, 10, Some(25));
        });
    })
    .await;
    for _ in 0..1_200 {
        assert!(rig.source.is_ready() && rig.vault.living_leases() <= 2);
        time::sleep(ms(100)).await;
    }
    let logins = rig.vault.count(Operation::Login);
    assert!((4..=6).contains(&logins), "{logins}");
}

#[tokio::test(start_paused = true)]
async fn scenario_14_wall_clock_that_is_set_brings_a_renewal_and_no_rotation() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| (vault.lease_ttl, vault.lease_max) = (240, 86_400));
    })
    .await;
    let hour = Duration::from_hours(1);
    rig.wall_ahead.store(hour.as_secs(), Ordering::Relaxed);
    for _ in 0..3_600 {
        assert!(rig.source.is_ready());
        time::sleep(secs(1)).await;
    }
    rig.wall_ahead.store(0, Ordering::Relaxed);
    time::sleep(Duration::from_mins(50)).await;
    assert_eq!((rig.user().await.as_str(), rig.vault.count(Operation::Login)), ("v-1", 1));
    let renewals = rig.vault.count(Operation::RenewLease);
    assert!(renewals < 60, "{renewals}");
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_task_costs_a_pause() {
    let rig = Rig::start(|_, upstream| upstream.set(Mood::Panics));
    time::sleep(secs(1)).await;
    rig.upstream.set(Mood::Accepts);
    assert_eq!(rig.user().await, "v-1");
}

/// For every kind of request and every kind of failure: ten minutes of it.
#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_without_a_pause() {
    let faults = [
        Fault::Unreachable,
        Fault::Silence,
        Fault::Malformed,
        Fault::Status(307),
        Fault::Status(400),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(405),
        Fault::Status(412),
        Fault::Status(429),
        Fault::Status(473),
        Fault::Status(500),
        Fault::Status(503),
    ];
    for operation in OPERATIONS {
        for fault in faults {
            let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 30)).await;
            rig.vault.fail(operation, fault);
            time::sleep(Duration::from_mins(10)).await;
            for of in OPERATIONS {
                let requests = rig.vault.requests(of);
                // At worst a renewal each second towards the end of each lease, else a pause of 2 s on average.
                assert!(requests.len() < 300, "{} of {of} with {fault:?} for {operation}", requests.len());
                let creds = rig.vault.count(Operation::ReadCreds);
                if !matches!(operation, Operation::ReadCreds) {
                    assert!(creds <= 3 + 60, "{creds} with {fault:?} for {operation}");
                }
            }
            rig.vault.recover();
            drop(rig.hold().await);
            time::sleep(secs(90)).await;
            assert!(rig.source.is_ready(), "{fault:?} for {operation}");
            assert_eq!(rig.vault.living_leases(), 1, "{fault:?} for {operation}");
        }
    }
}

/// Also in the last seconds of what serves, and of what nobody can replace.
#[tokio::test(start_paused = true)]
async fn attempts_are_a_second_apart_while_vault_is_away() {
    let rig = Rig::serving(|_, _| {}).await;
    rig.vault.fail_all(Fault::Unreachable);
    let mut clients = JoinSet::new();
    for _ in 0..120 {
        let source = rig.source.clone();
        clients.spawn(async move { drop(time::timeout(secs(10), source.hold()).await) });
        time::sleep(secs(1)).await;
    }
    let logins = rig.vault.requests(Operation::Login);
    assert!(logins.len() > 30, "{}", logins.len());
    for pair in logins[1..].windows(2) {
        assert!(pair[1] - pair[0] >= secs(1), "{:?}", pair[1] - pair[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn lease_that_vault_cannot_revoke_is_seen_and_one_that_it_can_is_not() {
    for blocked in [false, true] {
        let rig = Rig::serving(|vault, _| {
            vault.set(|vault| (vault.lease_max, vault.revocation_is_blocked) = (25, blocked));
        })
        .await;
        time::sleep(secs(60)).await;
        let revoked = u64::try_from(rig.vault.count(Operation::RevokeSelf)).unwrap();
        let seen = rig.metric("pglease_lease_revocations_blocked_total");
        assert!(revoked >= 2 && if blocked { seen >= revoked - 1 } else { seen == 0 }, "{seen} of {revoked}");
        // Once each.
        assert!(rig.vault.count(Operation::LookUpLease) <= rig.vault.count(Operation::RevokeSelf));
    }
}

#[tokio::test(start_paused = true)]
async fn chain_whose_every_credential_is_rejected_is_not_ready() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    rig.upstream.set(Mood::Rejects);
    rig.hold().await.doubt();
    time::sleep(secs(1)).await;
    assert!(rig.source.is_usable(), "the successor is being proven");
    time::sleep(secs(10)).await;
    assert!(rig.source.is_ready() && !rig.source.is_usable());
    rig.upstream.set(Mood::Accepts);
    time::sleep(secs(400)).await;
    assert!(rig.source.is_usable());
}
