//! Tokens of every kind, and leases that share one.

use super::*;
use crate::vault::TokenKind;

fn planned(result: &str) -> String {
    format!(r#"pglease_rotations_total{{trigger="planned",result="{result}"}}"#)
}

/// No login: the API server is away, or Vault does not reach it, or a JWT that nobody replaces is over.
#[tokio::test(start_paused = true)]
async fn sibling_is_read_with_the_current_token_where_no_login_succeeds() {
    for fault in [Fault::Status(403), Fault::Status(500), Fault::Status(400), Fault::Unreachable] {
        let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_max = 25)).await;
        let held = rig.hold().await;
        rig.vault.fail(Operation::Login, fault);
        for _ in 0..600 {
            assert!(rig.source.is_ready(), "{fault:?}");
            assert!(rig.vault.living_leases() <= 3, "{fault:?}");
            time::sleep(ms(100)).await;
        }
        assert!(rig.metric(&planned("ok")) >= 2, "{fault:?}");
        // Each is ended without its token, which goes on.
        assert!(rig.vault.count(Operation::ExpireLease) >= 1, "{fault:?}");
        assert_eq!((rig.vault.count(Operation::RevokeSelf), rig.vault.living_tokens()), (0, 1));

        rig.vault.recover();
        drop(held);
        time::sleep(secs(60)).await;
        // The last that went on with it has revoked it.
        assert_eq!((rig.vault.living_tokens(), rig.vault.living_leases()), (1, 1), "{fault:?}");
        assert!(rig.vault.count(Operation::RevokeSelf) >= 1, "{fault:?}");
        assert_eq!(rig.metric("pglease_orphans_total"), 0, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn token_that_ends_soon_has_no_sibling() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| (vault.lease_ttl, vault.token_ttl, vault.token_max) = (3_600, 8, 20));
    })
    .await;
    rig.vault.fail(Operation::Login, Fault::Status(403));
    time::sleep(secs(30)).await;
    assert_eq!(rig.vault.count(Operation::ReadCreds), 1);
}

#[tokio::test(start_paused = true)]
async fn sibling_whose_read_is_not_answered_is_not_tried_twice_and_its_token_lives_on() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    let held = rig.hold().await;
    rig.vault.fail(Operation::Login, Fault::Status(403));
    rig.vault.fail(Operation::ReadCreds, Fault::Silence);
    rig.upstream.reject("v-1");
    held.doubt();
    time::sleep(secs(300)).await;
    assert_eq!(rig.vault.count(Operation::ReadCreds), 2);
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::RevokeSelf)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn generations_under_one_token_are_ended_with_it() {
    let rig = Rig::serving(|vault, _| vault.set(|vault| vault.lease_ttl = 600)).await;
    let held = rig.hold().await;
    rig.vault.fail(Operation::Login, Fault::Status(403));
    drop(rig.source.replace(rig.hold().await).await.unwrap());
    assert_eq!(rig.vault.living_leases(), 2);
    let vault = Arc::clone(&rig.vault);
    drop(held);
    assert_eq!(rig.end().await.failed, 0);
    assert_eq!((vault.living_tokens(), vault.living_leases()), (0, 0));
    assert_eq!(vault.count(Operation::RevokeSelf), 1);
}

#[tokio::test(start_paused = true)]
async fn batch_token_is_rotated_in_time_and_its_leases_are_ended_one_by_one() {
    let rig = Rig::serving(|vault, _| {
        vault.set(|vault| {
            (vault.token_kind, vault.lease_ttl, vault.token_ttl) = (TokenKind::Batch, 30, 100);
        });
    })
    .await;
    for _ in 0..6_000 {
        assert!(rig.source.is_ready());
        time::sleep(ms(100)).await;
    }
    let logins = rig.vault.requests(Operation::Login);
    for pair in logins.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap >= secs(59) && gap <= secs(77), "{gap:?}");
    }
    assert_eq!((rig.vault.count(Operation::RenewSelf), rig.vault.count(Operation::RevokeSelf)), (0, 0));
    assert!(rig.vault.count(Operation::RenewLease) > 30);
    assert_eq!(rig.vault.count(Operation::ExpireLease), logins.len() - 1);
    assert_eq!(rig.vault.living_leases(), 1);

    let vault = Arc::clone(&rig.vault);
    assert_eq!(rig.end().await, ChainEnd { revoked: 1, failed: 0 });
    time::sleep(secs(2)).await;
    assert_eq!(vault.living_leases(), 0);
}

fn foreign(vault: &FakeVault) {
    vault.set(|vault| {
        (vault.token_kind, vault.lease_ttl, vault.token_ttl) = (TokenKind::Foreign, 3_600, 100);
        vault.lease_max = 86_400;
    });
}

#[tokio::test(start_paused = true)]
async fn token_of_somebody_else_is_never_renewed_or_revoked_and_serves_while_its_keeper_renews_it() {
    let rig = Rig::serving(|vault, _| foreign(vault)).await;
    for _ in 0..100 {
        time::sleep(secs(60)).await;
        assert!(rig.source.is_ready());
        rig.vault.renew_tokens();
    }
    assert_eq!((rig.vault.count(Operation::RenewSelf), rig.vault.count(Operation::ReadCreds)), (0, 1));
    let vault = Arc::clone(&rig.vault);
    assert_eq!(rig.end().await, ChainEnd { revoked: 1, failed: 0 });
    time::sleep(secs(2)).await;
    assert_eq!((vault.living_leases(), vault.living_tokens()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn token_that_its_keeper_replaces_brings_a_rotation() {
    let rig = Rig::serving(|vault, _| foreign(vault)).await;
    time::sleep(secs(20)).await;
    rig.vault.set(|vault| vault.foreign = 2);
    time::sleep(secs(75)).await;
    assert_eq!((rig.user().await.as_str(), rig.metric(&planned("ok"))), ("v-2", 1));
    assert_eq!(rig.vault.count(Operation::ExpireLease), 1);
    time::sleep(secs(3)).await;
    assert_eq!(rig.vault.living_leases(), 1);
}

#[tokio::test(start_paused = true)]
async fn token_that_nobody_renews_is_not_read_with_again_for_nothing() {
    let rig = Rig::serving(|vault, _| foreign(vault)).await;
    time::sleep(secs(104)).await;
    assert!(rig.source.is_ready());
    assert_eq!(rig.vault.count(Operation::ReadCreds), 1);
    assert!(rig.vault.count(Operation::Login) < 50);
    time::sleep(secs(10)).await;
    assert!(!rig.source.is_ready());
    rig.vault.set(|vault| vault.foreign = 2);
    assert_eq!(rig.user().await, "v-2");
}

#[tokio::test(start_paused = true)]
async fn leases_under_one_token_of_somebody_else_are_ended_one_by_one() {
    let rig = Rig::serving(|vault, _| {
        foreign(vault);
        vault.set(|vault| (vault.lease_ttl, vault.token_ttl) = (600, 3_600));
    })
    .await;
    let held = rig.hold().await;
    drop(rig.source.replace(rig.hold().await).await.unwrap());
    assert_eq!((rig.vault.living_leases(), rig.vault.living_tokens()), (2, 1));
    drop(held);
    time::sleep(secs(2)).await;
    assert_eq!((rig.vault.living_leases(), rig.vault.count(Operation::ExpireLease)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn lease_that_is_made_after_the_attempt_ended_is_ended() {
    let rig = Rig::start(|vault, _| {
        foreign(vault);
        vault.set(|vault| vault.delay = secs(1));
    });
    while rig.vault.count(Operation::ReadCreds) == 0 {
        time::sleep(ms(10)).await;
    }
    let vault = Arc::clone(&rig.vault);
    assert_eq!(rig.end().await, ChainEnd { revoked: 1, failed: 0 });
    time::sleep(secs(2)).await;
    assert_eq!((vault.living_leases(), vault.count(Operation::ExpireLease)), (0, 1));
}

/// Vault does not end a lease while the database is away.
#[tokio::test(start_paused = true)]
async fn lease_that_cannot_be_ended_is_an_orphan() {
    let rig = Rig::serving(|vault, _| {
        foreign(vault);
        vault.set(|vault| (vault.lease_ttl, vault.token_ttl) = (600, 3_600));
    })
    .await;
    rig.vault.fail(Operation::ExpireLease, Fault::Status(400));
    drop(rig.source.replace(rig.hold().await).await.unwrap());
    time::sleep(secs(10)).await;
    assert_eq!((rig.vault.count(Operation::ExpireLease), rig.metric("pglease_orphans_total")), (3, 1));
}
