//! The chain of a static role.

use secrecy::ExposeSecret;

use super::fakes::Mood;
use super::*;
use crate::credential::Revocation;
use crate::ids::GenerationId;
use crate::vault::TokenKind;

impl Rig {
    /// A static role whose password is `first` and changes in so many seconds, on offer.
    async fn offering(ttl: u64) -> Self {
        let rig = Self::start_static(|_, upstream| upstream.set_password("first"));
        rig.vault_knows("first", ttl);
        drop(rig.hold().await);
        rig
    }

    fn vault_knows(&self, password: &'static str, ttl: u64) {
        self.vault.set(|vault| vault.password = (password, Instant::now() + secs(ttl)));
    }

    /// What a session logs in with that comes now, and knows what PostgreSQL knows: tries twice, as it does.
    async fn log_in(&self) -> Option<(GenerationId, String)> {
        let hold = self.hold().await;
        let accepts = |hold: &Hold| self.upstream.accepts(&hold.credential().password);
        let hold = if accepts(&hold) {
            hold
        } else {
            time::timeout(secs(10), self.source.replace(hold)).await.ok()?.unwrap()
        };
        let credential = hold.credential();
        let password = credential.password.expose_secret().to_owned();
        accepts(&hold).then_some((credential.generation, password))
    }

    fn reads(&self) -> usize {
        self.vault.count(Operation::ReadStaticCreds)
    }
}

#[tokio::test(start_paused = true)]
async fn password_is_read_proven_and_offered_once() {
    let rig = Rig::offering(3_600).await;
    time::sleep(secs(600)).await;
    assert_eq!(rig.log_in().await, Some((GenerationId(1), "first".to_owned())));
    assert!(rig.source.was_proven());
    assert_eq!((rig.reads(), rig.upstream.probes()), (1, 1));
    assert_eq!((rig.vault.count(Operation::Login), rig.vault.count(Operation::ReadCreds)), (1, 0));
    assert_eq!(rig.hold().await.credential().lease, None);
}

#[tokio::test(start_paused = true)]
async fn password_is_read_again_when_vault_has_changed_it_and_no_session_is_told() {
    let rig = Rig::offering(20).await;
    let held = rig.hold().await;
    let mut standing = held.standing();
    time::sleep(secs(20)).await;
    // Vault tells PostgreSQL first, and serves the old password for a second more.
    rig.upstream.set_password("second");
    time::sleep(ms(900)).await;
    rig.vault_knows("second", 20);
    time::sleep(ms(1_300)).await;
    assert_eq!(rig.log_in().await, Some((GenerationId(2), "second".to_owned())));
    assert!(rig.reads() <= 4, "{}", rig.reads());
    assert_eq!(rig.metric("pglease_rotations_total{trigger=\"planned\",result=\"ok\"}"), 1);
    assert!(!standing.has_changed().unwrap());
    assert_eq!(*standing.borrow_and_update(), Standing::Kept);
    time::sleep(secs(2)).await;
    let sessions = "pglease_sessions{vault_path=\"database/creds/db-app\",generation=\"superseded\"}";
    assert_eq!(rig.metric(sessions), 1);
    drop(held);
    time::sleep(secs(2)).await;
    assert_eq!(rig.metric(sessions), 0);
}

#[tokio::test(start_paused = true)]
async fn login_each_second_never_fails_while_passwords_change() {
    let rig = Rig::offering(20).await;
    let passwords = ["second", "third", "fourth", "fifth"];
    let rotate = async {
        for password in passwords {
            time::sleep(secs(20)).await;
            rig.upstream.set_password(password);
            time::sleep(ms(800)).await;
            rig.vault_knows(password, 20);
        }
    };
    let log_in = async {
        for second in 0..85 {
            assert!(rig.log_in().await.is_some(), "at {second} s");
            time::sleep(secs(1)).await;
        }
    };
    tokio::join!(rotate, log_in);
    let reads = rig.vault.requests(Operation::ReadStaticCreds);
    assert!(reads.windows(3).all(|three| three[2] - three[0] >= secs(1)), "{reads:?}");
    assert!(reads.len() <= 1 + 4 * 5, "{}", reads.len());
}

#[tokio::test(start_paused = true)]
async fn rejected_login_brings_one_read_for_any_number_of_clients() {
    let rig = Arc::new(Rig::offering(3_600).await);
    time::sleep(secs(60)).await;
    rig.upstream.set_password("by hand");
    rig.vault_knows("by hand", 3_600);
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let rig = Arc::clone(&rig);
        clients.spawn(async move { rig.log_in().await });
    }
    let users = clients.join_all().await;
    assert!(users.iter().all(|user| *user == Some((GenerationId(2), "by hand".to_owned()))), "{users:?}");
    assert_eq!(rig.reads(), 2);
    assert_eq!(rig.metric("pglease_rotations_total{trigger=\"rejected\",result=\"ok\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn password_that_upstream_knows_before_vault_does_is_found_within_a_second() {
    let rig = Rig::offering(3_600).await;
    time::sleep(secs(60)).await;
    rig.upstream.set_password("second");
    let later = async {
        time::sleep(secs(1)).await;
        rig.vault_knows("second", 3_600);
    };
    let began = Instant::now();
    let (user, ()) = tokio::join!(rig.log_in(), later);
    assert_eq!(user.unwrap().1, "second");
    assert!(began.elapsed() < ms(2_500), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn password_that_vault_knows_before_upstream_does_is_tried_for_five_seconds() {
    let rig = Rig::offering(20).await;
    time::sleep(secs(20)).await;
    rig.vault_knows("second", 20);
    time::sleep(secs(4)).await;
    assert_eq!(rig.log_in().await.unwrap().1, "first");
    rig.upstream.set_password("second");
    time::sleep(ms(1_100)).await;
    assert_eq!(rig.log_in().await.unwrap().1, "second");
}

#[tokio::test(start_paused = true)]
async fn wrong_password_in_vault_is_asked_for_ever_more_slowly() {
    let rig = Rig::offering(3_600).await;
    rig.upstream.set_password("by hand");
    for _ in 0..300 {
        let _ = time::timeout(secs(1), rig.log_in()).await;
    }
    // A client is always there.
    let reads = rig.reads();
    assert!((100..200).contains(&reads), "{reads}");
    time::sleep(secs(60)).await;
    let before = rig.reads();
    time::sleep(secs(600)).await;
    assert!(rig.reads() - before < 60, "{}", rig.reads() - before);

    assert!(rig.source.is_ready() && !rig.source.is_usable());
    rig.vault_knows("by hand", 3_600);
    assert_eq!(rig.log_in().await.unwrap().1, "by hand");
    assert!(rig.source.is_usable());
}

#[tokio::test(start_paused = true)]
async fn false_alarm_ends_with_the_same_password_proven_anew() {
    let rig = Rig::offering(3_600).await;
    time::sleep(secs(60)).await;
    let rejected = rig.hold().await;
    let hold = time::timeout(secs(1), rig.source.replace(rejected)).await.unwrap().unwrap();
    assert_eq!(hold.credential().password.expose_secret(), "first");
    assert_eq!((rig.reads(), rig.upstream.probes()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn doubt_has_the_password_read_once_in_ten_seconds_and_goes_on_offering_it() {
    let rig = Rig::offering(3_600).await;
    time::sleep(secs(60)).await;
    for (after, reads) in [(0, 2), (1, 2), (8, 2), (2, 3)] {
        time::sleep(secs(after)).await;
        rig.hold().await.doubt();
        time::sleep(ms(100)).await;
        assert_eq!(rig.reads(), reads);
    }
    assert!(rig.source.is_usable());
    // Somebody has changed it.
    rig.upstream.set_password("by hand");
    rig.vault_knows("by hand", 3_600);
    time::sleep(secs(10)).await;
    rig.hold().await.doubt();
    time::sleep(secs(1)).await;
    assert_eq!(rig.log_in().await.unwrap().1, "by hand");
}

#[tokio::test(start_paused = true)]
async fn last_password_is_offered_however_long_vault_is_away() {
    let rig = Rig::offering(20).await;
    rig.vault.fail_all(Fault::Unreachable);
    for _ in 0..600 {
        time::sleep(secs(10)).await;
        assert_eq!(rig.log_in().await.unwrap().1, "first");
    }
    // The token of an hour is over.
    assert_eq!(rig.vault.living_tokens(), 0);
    rig.upstream.set_password("second");
    rig.vault_knows("second", 3_600);
    rig.vault.recover();
    assert_eq!(rig.log_in().await.unwrap().1, "second");
}

#[tokio::test(start_paused = true)]
async fn token_is_renewed_and_replaced_before_it_ends_and_one_lives_at_a_time() {
    let rig = Rig::start_static(|vault, _| {
        vault.set(|vault| (vault.token_ttl, vault.token_max) = (10, 60));
    });
    let mut most = 0;
    for _ in 0..600 {
        time::sleep(ms(500)).await;
        most = most.max(rig.vault.living_tokens());
        assert!(rig.vault.living_tokens() >= 1);
    }
    let logins = rig.vault.count(Operation::Login);
    assert!((5..=8).contains(&logins), "{logins}");
    assert!(most <= 2, "{most}");
    assert!(rig.vault.count(Operation::RenewSelf) > 30);
    assert_eq!(rig.reads(), 1);
}

#[tokio::test(start_paused = true)]
async fn token_that_an_operator_revoked_is_replaced() {
    let rig = Rig::offering(20).await;
    rig.vault.revoke_all();
    time::sleep(secs(20)).await;
    rig.upstream.set_password("second");
    rig.vault_knows("second", 20);
    time::sleep(secs(4)).await;
    assert_eq!(rig.log_in().await.unwrap().1, "second");
    assert_eq!(rig.vault.count(Operation::Login), 2);
}

#[tokio::test(start_paused = true)]
async fn start_goes_on_until_there_is_a_password_and_clients_hasten_it() {
    for fault in [Fault::Unreachable, Fault::Status(403), Fault::Status(500), Fault::Malformed] {
        for operation in [Operation::Login, Operation::ReadStaticCreds] {
            let rig = Rig::start_static(|vault, _| vault.fail(operation, fault));
            time::sleep(secs(120)).await;
            let tries = rig.vault.count(operation);
            assert!((12..60).contains(&tries), "{operation} {fault:?}: {tries}");
            rig.vault.recover();
            let began = Instant::now();
            drop(rig.hold().await);
            assert!(began.elapsed() < secs(5), "{operation} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn password_is_offered_unproven_where_upstream_says_nothing() {
    let rig = Rig::start_static(|_, upstream| upstream.set(Mood::Unreachable));
    let began = Instant::now();
    drop(rig.hold().await);
    assert!((secs(5)..secs(6)).contains(&began.elapsed()));
    assert!(!rig.source.was_proven());
    rig.upstream.set(Mood::Accepts);
    time::sleep(secs(5)).await;
    assert!(rig.source.was_proven());
}

#[tokio::test(start_paused = true)]
async fn clock_that_jumped_has_the_password_read() {
    let rig = Rig::offering(3_600).await;
    time::sleep(secs(10)).await;
    rig.wall_ahead.store(7_200, Ordering::Relaxed);
    time::sleep(secs(3)).await;
    assert_eq!(rig.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn panic_in_a_request_is_survived() {
    let rig = Rig::start_static(|_, upstream| upstream.set(Mood::Panics));
    time::sleep(secs(10)).await;
    rig.upstream.set(Mood::Accepts);
    let began = Instant::now();
    drop(rig.hold().await);
    assert!(began.elapsed() < secs(5));
}

#[tokio::test(start_paused = true)]
async fn end_revokes_the_token_and_nothing_else_where_it_is_ours_and_can_be_revoked() {
    for (kind, revoked) in [(TokenKind::Service, 1), (TokenKind::Batch, 0), (TokenKind::Foreign, 0)] {
        let rig = Rig::start_static(|vault, _| vault.set(|vault| vault.token_kind = kind));
        drop(rig.hold().await);
        let (vault, source) = (Arc::clone(&rig.vault), rig.source.clone());
        assert_eq!(rig.end().await, ChainEnd { revoked, failed: 0 });
        assert_eq!(vault.count(Operation::RevokeSelf), revoked);
        assert!(source.hold().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn end_waits_for_a_login_and_is_over_in_time_whatever_vault_does() {
    let rig = Rig::start_static(|vault, _| vault.set(|vault| vault.delay = ms(800)));
    time::sleep(ms(400)).await;
    let vault = Arc::clone(&rig.vault);
    assert_eq!(rig.end().await, ChainEnd { revoked: 1, failed: 0 });
    assert_eq!(vault.living_tokens(), 0);

    for fault in [Fault::Silence, Fault::Unreachable, Fault::Status(500)] {
        let rig = Rig::offering(3_600).await;
        rig.vault.fail_all(fault);
        let began = Instant::now();
        assert_eq!(rig.end().await, ChainEnd { revoked: 0, failed: 1 }, "{fault:?}");
        assert!(began.elapsed() <= secs(5));
    }
}

#[tokio::test(start_paused = true)]
async fn operator_who_asks_has_the_password_read_now_and_with_close_the_sessions_on_the_old_one_end() {
    let rig = Rig::offering(3_600).await;
    let held = rig.hold().await;
    let (reads, same) = (rig.reads(), rig.rotate(true).await.unwrap());
    assert_eq!((same.generation, same.db_role.as_str(), rig.reads()), (GenerationId(1), "st", reads + 1));
    assert_eq!(*held.standing().borrow(), Standing::Kept);

    rig.upstream.set_password("second");
    rig.vault_knows("second", 3_600);
    assert_eq!(rig.rotate(false).await.unwrap().generation, GenerationId(2));
    assert_eq!(*held.standing().borrow(), Standing::Kept);
    let status = rig.status().await;
    assert_eq!((status.kind, status.state, status.current.as_deref()), ("static", "serving", Some("g2")));
    let told: Vec<_> =
        status.generations.iter().map(|of| (of.state, of.holders, of.lease.as_deref())).collect();
    assert_eq!(told, [("superseded", 1, None), ("current", 0, None)]);
    assert_eq!(rig.metric("pglease_rotations_total{trigger=\"asked\",result=\"ok\"}"), 1);

    let closed = async {
        let revoked = Standing::Revoked(Revocation::ByOperator);
        held.standing().wait_for(|standing| *standing == revoked).await.unwrap();
        time::sleep(secs(3)).await;
        drop(held);
    };
    assert_eq!(tokio::join!(rig.rotate(true), closed).0.unwrap().generation, GenerationId(2));
    assert_eq!(*rig.hold().await.standing().borrow(), Standing::Kept);
}

#[tokio::test(start_paused = true)]
async fn read_that_fails_or_is_refused_upstream_is_not_the_answer() {
    let rig = Rig::offering(3_600).await;
    rig.vault.fail(Operation::ReadStaticCreds, Fault::Status(500));
    assert_eq!(rig.rotate(false).await, Err(NoAnswer::NotYet));
    let error = rig.status().await.last_error.unwrap();
    assert_eq!(
        (error.operation, error.kind, error.code.as_deref()),
        ("static_creds", "unavailable", Some("500"))
    );

    rig.vault.recover();
    rig.vault_knows("second", 3_600);
    assert_eq!(rig.rotate(false).await, Err(NoAnswer::NotYet));
    rig.upstream.set_password("second");
    assert!(rig.rotate(false).await.unwrap().generation > GenerationId(1));
}
