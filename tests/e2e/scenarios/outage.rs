//! Vault, the API server or the database is away for a while.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::time::{self, Instant};
use tokio_postgres::error::SqlState;

use super::{assert_nothing_was_forbidden, gaps, of};
use crate::support::Servers;
use crate::support::audit::Request;
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::postgres::Database;
use crate::support::tokenreview::Answer;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_for, start, until, until_alive, until_served, user_of};

#[tokio::test]
async fn scenario_06_vault_sealed_for_a_while_of_the_lease_is_seen_by_nobody() {
    let servers = Servers::start().await;
    let world = World::create(&servers, of(VaultRole { default_ttl: "60s", ..VaultRole::default() })).await;
    let pglease = pglease_for(&world).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    servers.openbao.seal().await;
    // Beside a Vault that is slow to answer on a busy machine.
    until(async || pglease.events("lease.renew_failed").iter().any(|failed| failed["code"] == 503)).await;
    let sealed_until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < sealed_until {
        assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
        assert_eq!(pglease.get("/readyz").await.0, 200);
        time::sleep(Duration::from_secs(1)).await;
    }
    let before = pglease.events("lease.renewed").len();

    servers.openbao.unseal().await;
    let renewed = pglease.wait_for_events("lease.renewed", before + 1, PATIENCE).await;
    assert_eq!(renewed["db_role"], user.as_str(), "{renewed}");
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    assert_eq!(world.leased_roles().await.len(), 1);
    assert_nothing_was_forbidden(&world, &pglease).await;
}

/// pglease with a session of an application, where something is to happen to its Vault.
struct Pod<'a> {
    world: World<'a>,
    pglease: Pglease,
    held: Database,
}

impl<'a> Pod<'a> {
    /// On leases of 10 s, by way of `vault` (`http://…`, `https://…`); its clients wait for 2 s.
    async fn start(
        servers: &'a Servers,
        vault: &str,
        revocation: Revocation,
        token_ttl: &'static str,
    ) -> Self {
        let vault_role = VaultRole { default_ttl: "10s", revocation, ..VaultRole::default() };
        let world = World::create(servers, WorldOptions { token_ttl, ..of(vault_role) }).await;
        let settings = world.settings_with("debug", vault, "connect_wait = \"2s\"") + &world.route("db-app");
        let ca_file = json!(servers.openbao.ca_file());
        let pglease = if vault.starts_with("https:") {
            start(&settings.replacen("[vault]\n", &format!("[vault]\nca_file = {ca_file}\n"), 1)).await
        } else {
            start(&settings).await
        };
        pglease.wait_ready().await;
        let held = until_served(&pglease, "app").await;
        Self { world, pglease, held }
    }

    /// What it does while Vault says nothing for `span`, which is longer than its lease: it serves to the end, and
    /// then says that it does not, but leaves the session that it has alone.
    async fn endures(&self, span: Duration) {
        let away_until = Instant::now() + span;
        // PostgreSQL lets its role in for 5 s more; a busy machine may need longer than 2 s for a login.
        let refused_at = loop {
            let asked_at = SystemTime::now();
            match self.pglease.connect("app").await {
                Ok(session) => drop(user_of(&session).await),
                Err(error) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => break asked_at,
                Err(error) => {
                    let late = Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
                    assert_eq!(error.code(), late, "{error:?}");
                }
            }
            time::sleep(Duration::from_millis(500)).await;
        };
        assert!(refused_at >= self.end_of_the_lease(), "{refused_at:?}");
        until(async || self.pglease.get("/readyz").await.0 == 503).await;
        while Instant::now() < away_until {
            let asked_at = Instant::now();
            let refused = self.pglease.connect("app").await.err().unwrap();
            assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
            assert!(asked_at.elapsed() >= Duration::from_secs(2), "{:?}", asked_at.elapsed());
            until_alive(&self.pglease).await;
            assert_eq!(self.pglease.get("/readyz").await.0, 503);
            assert_eq!(self.held.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
        }
    }

    /// Of the one that it has or of its token, as it was told last by Vault, which counts in whole seconds.
    fn end_of_the_lease(&self) -> SystemTime {
        let names = ["lease.issued", "lease.renewed", "token.renewed"];
        let events = names.map(|event| self.pglease.events(event)).concat();
        let end = |ttl: &str| {
            let told = events.iter().filter_map(|event| {
                let at = humantime::parse_rfc3339(event["timestamp"].as_str()?).ok()?;
                Some(at + Duration::from_secs(event[ttl].as_u64()?))
            });
            told.max().unwrap()
        };
        end("ttl_seconds").min(end("token_ttl_seconds")) - Duration::from_secs(3)
    }

    /// Vault is back since `back_at`, and there is a new credential. How soon it is asked again is a matter of
    /// [`lease::chain`], whose tests have a clock of their own.
    async fn recovers(&self, back_at: Duration) {
        until_served(&self.pglease, "app").await;
        let requests = self.world.requests();
        let mut logins = requests.iter().filter(|request| request.is_login() && request.was_granted());
        assert!(logins.any(|request| request.at >= back_at), "{back_at:?} {requests:?}");
        until(async || self.pglease.get("/readyz").await.0 == 200).await;
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[tokio::test]
async fn scenario_07_vault_stopped_for_four_leases_ends_no_session() {
    let servers = Servers::start().await;
    let gate = Gate::to(servers.openbao.port()).await;
    let vault = format!("http://{}", gate.address());
    let (keeps, drops) = tokio::join!(
        Pod::start(&servers, &vault, Revocation::NoLogin, "1h"),
        Pod::start(&servers, &vault, Revocation::Drop, "1h"),
    );

    // A server that forgets nothing while it is away: it does nothing, and refuses connections.
    gate.close().await;
    servers.openbao.pause().await;
    let away = Duration::from_secs(40);
    tokio::join!(keeps.endures(away), drops.endures(away));

    let back_at = unix_now();
    servers.openbao.resume();
    gate.open().await;
    tokio::join!(keeps.recovers(back_at), drops.recovers(back_at));
    tokio::join!(
        assert_nothing_was_forbidden(&keeps.world, &keeps.pglease),
        assert_nothing_was_forbidden(&drops.world, &drops.pglease),
    );
}

#[tokio::test]
async fn case_c12_vault_frozen_past_the_end_of_the_token_is_asked_for_a_new_one() {
    let servers = Servers::start().await;
    let (plain, secured) = (servers.openbao.address(), servers.openbao.tls_address());
    let (keeps, drops, over_tls) = tokio::join!(
        Pod::start(&servers, &plain, Revocation::NoLogin, "12s"),
        Pod::start(&servers, &plain, Revocation::Drop, "12s"),
        Pod::start(&servers, &secured, Revocation::NoLogin, "12s"),
    );
    let pods = [&keeps, &drops, &over_tls];

    // It takes connections and answers nothing.
    let paused_at = Instant::now();
    servers.openbao.pause().await;
    let frozen = Duration::from_secs(27);
    tokio::join!(keeps.endures(frozen), drops.endures(frozen), over_tls.endures(frozen));
    let ends = pods.map(|pod| {
        let renewed = ["lease.renewed", "token.renewed"].map(|event| pod.pglease.events(event).len());
        (renewed, pod.pglease.events("vault.login").len())
    });
    // Each takes 5 s, and none is sent beside another of its kind.
    let most = 2.0 + paused_at.elapsed().as_secs_f64() / 5.0;
    for pod in pods {
        for op in ["renew", "renew_self", "login", "creds"] {
            let lost = format!("op=\"{op}\",code=\"none\"");
            let lost = pod.pglease.metric("pglease_vault_requests_total", &lost).await;
            assert!(lost <= most, "{op}: {lost} of {most}");
        }
    }

    let back_at = unix_now();
    servers.openbao.resume();
    tokio::join!(keeps.recovers(back_at), drops.recovers(back_at), over_tls.recovers(back_at));
    for (pod, (renewed, logins)) in pods.into_iter().zip(ends) {
        // Of a login that was answered after its request had waited for longer than a token lives, one more; and of
        // each that comes to its end before it is noticed that it has begun.
        let new_logins = pod.pglease.logged("vault.login").await.len() - logins;
        assert!((1..=4).contains(&new_logins), "{new_logins}");
        let first = &pod.pglease.events("lease.issued")[0]["generation"];
        let of_old = |event: &str| {
            let events = pod.pglease.events(event).into_iter();
            events.filter(|event| event["generation"] == *first).count()
        };
        assert_eq!(["lease.renewed", "token.renewed"].map(of_old), renewed);
    }
}

#[tokio::test]
async fn scenario_08_api_server_that_fails_at_the_start_is_waited_for() {
    let world = World::shared(WorldOptions::default()).await;
    world.token_review.set_answer(Answer::Status(500));
    let settings = world.settings_with("debug", &world.servers.openbao.address(), "connect_wait = \"1s\"");
    let pglease = start(&(settings + &world.route("db-app"))).await;

    let logins = || {
        let requests = world.requests().into_iter();
        requests.filter(Request::is_login).collect::<Vec<_>>()
    };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(18) || logins().len() < 6 && began.elapsed() < PATIENCE {
        let refused = pglease.connect("app").await.err().unwrap();
        assert_eq!(refused.code(), Some(&SqlState::CANNOT_CONNECT_NOW), "{refused:?}");
        until_alive(&pglease).await;
    }
    let failed = pglease.wait_for_event("login.failed", PATIENCE).await;
    assert_eq!(failed.get("code"), Some(&json!(403)), "{failed}");
    // Pauses are random: at most 0.5 s and 1 s at first, up to 4 s later on.
    let gaps = gaps(&logins());
    let most = 2 * usize::try_from(began.elapsed().as_secs()).unwrap() + 4;
    assert!((4..most).contains(&gaps.len()), "{gaps:?}");
    assert!(gaps[2..].iter().any(|&gap| gap > gaps[0].min(gaps[1])), "{gaps:?}");
    assert!(gaps[2..].iter().any(|&gap| gap > Duration::from_secs(1)), "{gaps:?}");

    world.token_review.set_answer(Answer::Honest);
    until_served(&pglease, "app").await;
    assert!(logins().iter().any(Request::was_granted));
}

#[tokio::test]
async fn scenario_22_database_away_when_the_lease_is_to_be_renewed_costs_no_new_role() {
    let servers = Servers::start().await;
    let world = World::create(&servers, of(VaultRole { default_ttl: "60s", ..VaultRole::default() })).await;
    let pglease = pglease_for(&world).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    servers.postgres.stop().await;
    // Beside a Vault that is slow to answer on a busy machine.
    until(async || pglease.events("lease.renew_failed").iter().any(|failed| failed["code"] == 400)).await;
    let away_until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < away_until {
        let refused = pglease.connect("app").await.err().unwrap();
        let unable = Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
        assert_eq!(refused.code(), unable, "{refused:?}");
        time::sleep(Duration::from_millis(500)).await;
    }
    servers.postgres.start_again().await;

    let renewed = pglease.wait_for_event("lease.renewed", PATIENCE).await;
    assert_eq!(renewed["db_role"], user.as_str(), "{renewed}");
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    let roles =
        servers.postgres.query(&world.database(), "SELECT FROM pg_roles WHERE rolname LIKE 'v%-%-%'").await;
    assert_eq!(roles.len(), 1);
    assert!(pglease.metric("pglease_upstream_auth_rejects_total", "").await < 1.0);
    assert_nothing_was_forbidden(&world, &pglease).await;
}
