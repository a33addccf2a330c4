//! A credential that is refused at login brings one new one, and never a loop of them.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::{assert_nothing_was_forbidden, of};
use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World};
use crate::{PATIENCE, pglease_with, start, until, until_served, user_of};

/// Credentials that pods of the world have had made.
fn made(world: &World<'_>) -> usize {
    let requests = world.requests();
    requests.iter().filter(|request| request.is_creds() && request.was_granted()).count()
}

/// Clients that try again at once, as a pool that is restarted does, for so long, and until a credential was rejected
/// and another one made, however slow the machine is. All are told to come later, by one
/// of two codes: a login may be under way when their time is up. None is told that its credential is wrong.
async fn storm(world: &World<'_>, pglease: &Pglease, span: Duration) {
    let began = Instant::now();
    let client = async || {
        while began.elapsed() < span || made(world) < 2 && began.elapsed() < PATIENCE {
            let refused = pglease.connect("app").await.err().unwrap();
            let later =
                [&SqlState::CANNOT_CONNECT_NOW, &SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION];
            // Nothing is said to who has said nothing for 10 s, on a busy machine.
            assert!(
                refused.is_closed() || refused.code().is_some_and(|code| later.contains(&code)),
                "{refused:?}"
            );
        }
    };
    tokio::join!(client(), client(), client(), client(), client(), client(), client(), client());
}

/// From here on its engine makes roles with a password that it does not tell.
async fn make_useless(world: &World<'_>) {
    let definition = json!({
        "db_name": "pg",
        "default_ttl": "1h",
        "creation_statements": ["CREATE ROLE \"{{name}}\" LOGIN PASSWORD 'another'"],
        "revocation_statements": ["ALTER ROLE \"{{name}}\" NOLOGIN"],
    });
    world.write(&format!("{}/roles/db-app", world.engine()), definition).await;
}

#[tokio::test]
async fn server_that_rejects_every_credential_has_few_of_them_made() {
    let servers = Servers::start().await;
    let serving = World::create(&servers, of(VaultRole::default())).await;
    let starting = World::create(&servers, of(VaultRole::default())).await;
    let settings = |world: &World<'_>| {
        let settings = world.settings_with("debug", &servers.openbao.address(), "connect_wait = \"2s\"");
        settings + &world.route("db-app")
    };
    let was_ready = pglease_with(&settings(&serving)).await;
    let user = user_of(&until_served(&was_ready, "app").await).await;

    make_useless(&serving).await;
    make_useless(&starting).await;
    let sql = format!("ALTER ROLE \"{user}\" PASSWORD 'another'");
    serving.superuser.batch_execute(&sql).await.unwrap();
    let never_ready = start(&settings(&starting)).await;
    let span = Duration::from_secs(25);
    let begun = Instant::now();
    tokio::join!(storm(&serving, &was_ready, span), storm(&starting, &never_ready, span));

    // One that was good, then three at once and one per 10 s: pauses that grow make that fewer.
    let allowed = 1 + 3 + usize::try_from(begun.elapsed().as_secs() / 10).unwrap();
    for (world, pglease) in [(&serving, &was_ready), (&starting, &never_ready)] {
        let made = made(world);
        assert!((2..=allowed).contains(&made), "{made} of {allowed}");
        // Each is given back when upstream has refused it for 5 s.
        until(async || world.living_roles().await.len() <= 2).await;
        assert_nothing_was_forbidden(world, pglease).await;
    }

    for (world, pglease) in [(&serving, &was_ready), (&starting, &never_ready)] {
        world.write_vault_role(&VaultRole::default()).await;
        until(async || pglease.connect("app").await.is_ok()).await;
    }
}

#[tokio::test]
async fn pg_hba_that_has_no_line_for_leased_roles_has_none_of_them_made() {
    let servers = Servers::start().await;
    let serving = World::create(&servers, of(VaultRole::default())).await;
    let starting = World::create(&servers, of(VaultRole::default())).await;
    let settings = |world: &World<'_>| world.settings() + &world.route("db-app");
    let was_ready = pglease_with(&settings(&serving)).await;
    let served = user_of(&was_ready.connect("app").await.unwrap()).await;

    let knowing = |world: &World<'_>| {
        let (engine, leased) = (world.group("vault_admin"), world.group("app_rw"));
        format!("host all {engine} all scram-sha-256\nhost all +{leased} all reject\n")
    };
    let hba = knowing(&serving) + &knowing(&starting) + "host all all all scram-sha-256\n";
    servers.postgres.write_data(&[("pg_hba.conf", &hba)]).await;
    let never_ready = start(&settings(&starting)).await;
    for (world, pglease) in [(&serving, &was_ready), (&starting, &never_ready)] {
        for _ in 0..20 {
            let refused = pglease.connect("app").await.err().unwrap();
            let refused = refused.as_db_error().unwrap();
            assert_eq!(refused.code(), &SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
            assert!(refused.message().starts_with("pg_hba.conf rejects connection"), "{refused:?}");
        }
        assert_eq!(made(world), 1);
        assert_nothing_was_forbidden(world, pglease).await;
    }
    // What could not be proven is not started.
    assert_eq!(never_ready.get("/startup").await.0, 503);

    servers.postgres.write_hba("").await;
    never_ready.wait_ready().await;
    assert_eq!(user_of(&was_ready.connect("app").await.unwrap()).await, served);
    never_ready.connect("app").await.unwrap();
    assert_eq!((made(&serving), made(&starting)), (1, 1));
}
