//! Case C06: messages that nobody asked for, in front of, within and behind a login.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;

use super::tags;
use crate::check::check;
use crate::raw::{Message, Raw};
use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_for, pglease_with};

#[tokio::test]
async fn case_c06_settings_warnings_and_notifications_that_nobody_asked_for_upset_nothing() {
    let servers = Servers::start().await;
    let ending = VaultRole { default_ttl: "20s", max_ttl: "30s", ..VaultRole::default() };
    let ending = WorldOptions { vault_roles: vec![ending], ..WorldOptions::default() };
    let (lasting, ending) =
        tokio::join!(World::create(&servers, WorldOptions::default()), World::create(&servers, ending));
    for world in [&lasting, &ending] {
        warn_at_each_login(world).await;
    }

    let (pause_ms, is_over) = (AtomicU64::new(20), AtomicBool::new(false));
    let working = async {
        let logging_in = async {
            clients_log_in(&lasting).await;
            pause_ms.store(500, Ordering::Relaxed);
        };
        tokio::join!(
            logging_in,
            notified_session_ends_idle(&ending),
            inquiry_is_made(&ending),
            check_succeeds(&lasting)
        );
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(reload_until(&lasting, &pause_ms, &is_over), working);
}

/// From PostgreSQL 17 on, of any length.
async fn warn_at_each_login(world: &World<'_>) {
    if world.servers.postgres.major() < 17 {
        return;
    }
    let sql = "CREATE FUNCTION warn() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE WARNING 'welcome';
             RAISE WARNING '%', repeat('w', 9216);
         END $$;
         CREATE EVENT TRIGGER warned ON login EXECUTE FUNCTION warn();
         ALTER EVENT TRIGGER warned ENABLE ALWAYS;";
    world.superuser.batch_execute(sql).await.unwrap();
}

/// A setting that is reported changes for everyone all the time.
async fn reload_until(world: &World<'_>, pause_ms: &AtomicU64, is_over: &AtomicBool) {
    let styles = ["German", "ISO", "SQL", "Postgres"];
    for style in styles.iter().cycle() {
        world.superuser.batch_execute(&format!("ALTER SYSTEM SET datestyle = '{style}'")).await.unwrap();
        world.superuser.rows("SELECT pg_reload_conf()").await;
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        time::sleep(Duration::from_millis(pause_ms.load(Ordering::Relaxed))).await;
    }
}

/// All of them while settings change and credentials are proven. What each was told last is what holds.
async fn clients_log_in(world: &World<'_>) {
    let pglease = pglease_for(world).await;
    let directly = greeting_of_a_direct_session(world).await;
    let mut clients = JoinSet::new();
    let at_once = Arc::new(Semaphore::new(32));
    for _ in 0..200 {
        let address = pglease.addresses()[0];
        let (directly, at_once) = (directly.clone(), Arc::clone(&at_once));
        clients.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            let (mut raw, greeting) = Raw::log_in(address, &[("user", "app"), ("database", "app")], "").await;
            assert_eq!(unasked(&greeting), directly);
            let mut told = greeting;
            // A session takes note of a reload between two statements, and tells of it in front of ReadyForQuery.
            for _ in 0..5 {
                raw.query("SHOW datestyle").await;
                told.extend(raw.up_to(b'Z').await);
            }
            assert!(told.iter().all(|message| message.tag != b'E'), "{told:?}");
            let shown = told.iter().rfind(|message| message.tag == b'D').unwrap().body[6..].to_vec();
            let reported = told.iter().rfind(|message| message.body.starts_with(b"DateStyle\0")).unwrap();
            let reported = &reported.body[10..reported.body.len() - 1];
            assert_eq!(shown, reported);
            raw
        });
    }
    rotate_twice(&pglease).await;
    let mut sessions = Vec::new();
    while let Some(client) = clients.join_next().await {
        sessions.push(client.unwrap());
    }
    assert!(pglease.events("session.refused").is_empty());
    assert!(pglease.metric("pglease_upstream_auth_rejects_total", "").await < 1.0);

    // All are idle, whatever has been said to them.
    pglease.sigterm();
    for mut raw in sessions {
        let told = raw.up_to(b'E').await.pop().unwrap();
        assert!(told.fields().iter().any(|(_, text)| text.ends_with("the session was idle.")), "{told:?}");
    }
    assert!(pglease.wait_exit(PATIENCE).await.success());
}

/// New credentials are proven while all that goes on. Each command waits for half a minute.
async fn rotate_twice(pglease: &Pglease) {
    let mut said = Vec::new();
    for _ in 0..6 {
        if pglease.metric("pglease_rotations_total", "result=\"ok\"").await >= 2.0 {
            return;
        }
        said = pglease.run_command(&["rotate"]).await.stdout;
    }
    panic!("{}; the last lines:\n{}", String::from_utf8_lossy(&said), pglease.lines().tail());
}

/// The doctor's sessions are told of settings as well. A machine that does much else may have it wait for too long.
async fn check_succeeds(world: &World<'_>) {
    let settings = world.settings() + &world.route("db-app");
    let mut checked = check(world, &settings, &[]).await;
    for _ in 0..5 {
        if checked.code == 0 {
            break;
        }
        checked = check(world, &settings, &[]).await;
    }
    assert_eq!(checked.failed(), Vec::<&str>::new(), "{:#}", checked.document);
    checked.assert_passed("postgres.login");
    checked.assert_passed("postgres.revocation");
}

/// Which messages come unasked, and where.
fn unasked(greeting: &[Message]) -> (String, Vec<Vec<u8>>) {
    // Behind authentication; some drivers' parameters differ in number.
    let kinds = tags(greeting).trim_start_matches(['R', 'S']).to_owned();
    let notices = greeting.iter().filter(|message| message.tag == b'N');
    (kinds, notices.map(|notice| notice.body.clone()).collect())
}

async fn greeting_of_a_direct_session(world: &World<'_>) -> (String, Vec<Vec<u8>>) {
    let leased = world.lease("db-app").await;
    let address = ([127, 0, 0, 1], world.servers.postgres.port()).into();
    let parameters = [("user", leased.user.as_str()), ("database", &world.database())];
    let (_, greeting) = Raw::log_in(address, &parameters, &leased.password).await;
    let expected = if world.servers.postgres.major() < 17 { "KZ" } else { "KNNZ" };
    let unasked = unasked(&greeting);
    assert_eq!(unasked.0, expected);
    unasked
}

/// Notifications are no use of a session: it is idle, and ended before its lease is.
async fn notified_session_ends_idle(world: &World<'_>) {
    let route = world.route("db-app") + "at_lease_end = \"close\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let (mut raw, _) = Raw::log_in(pglease.addresses()[0], &[("user", "app"), ("database", "app")], "").await;
    raw.query("LISTEN told").await;
    raw.up_to(b'Z').await;

    let notifier = world.servers.postgres.connect(&world.database()).await;
    let notifier_pid = notifier.rows("SELECT pg_backend_pid()").await[0][0].clone().unwrap();
    let is_told = AtomicBool::new(false);
    let notifying = async {
        let mut sent = 0_u32;
        while !is_told.load(Ordering::Relaxed) {
            notifier.batch_execute(&format!("NOTIFY told, '{sent}'")).await.unwrap();
            sent += 1;
            time::sleep(Duration::from_millis(100)).await;
        }
        sent
    };
    let listening = async {
        let told = raw.up_to(b'E').await;
        is_told.store(true, Ordering::Relaxed);
        told
    };
    let (sent, mut told) = tokio::join!(notifying, listening);
    let goodbye = told.pop().unwrap();
    assert!(goodbye.fields().contains(&('C', "57P01".to_owned())), "{goodbye:?}");
    let end = pglease.wait_for_event("session.end", PATIENCE).await;
    assert_eq!(end["reason"], "lease_ends", "{end}");

    let notifications: Vec<_> = told.iter().filter(|message| message.tag == b'A').collect();
    assert!(notifications.len() > 10 && notifications.len() <= usize::try_from(sent).unwrap());
    for (number, notification) in notifications.iter().enumerate() {
        let pid: i32 = notifier_pid.parse().unwrap();
        let expected = [&pid.to_be_bytes()[..], b"told\0", number.to_string().as_bytes(), b"\0"].concat();
        assert_eq!(notification.body, expected);
    }
}

/// What pglease asks for itself, it hears: the inquiry into what a revocation does. Each lease that ends under a session
/// is an occasion.
async fn inquiry_is_made(world: &World<'_>) {
    let pglease = pglease_for(world).await;
    let mut sessions = Vec::new();
    for _ in 0..60 {
        sessions.push(pglease.connect("app").await);
        let learned = |lines: &[String]| {
            lines.iter().any(|line| line.contains("lease.revocation_learned")).then_some(())
        };
        if pglease.lines().wait_for(Duration::from_secs(5), learned).await.is_some() {
            break;
        }
    }
    let learned = pglease.wait_for_event("lease.revocation_learned", PATIENCE).await;
    assert_eq!(learned["saw"], "nologin", "{learned}");
}
