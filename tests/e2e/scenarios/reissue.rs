//! A credential that is refused at login brings one new one, and never a loop of them.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::{assert_nothing_was_forbidden, of};
use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World};
use crate::{pglease_with, start, until};

/// Credentials that pods of the world have had made.
fn made(world: &World<'_>) -> usize {
    let requests = world.requests();
    requests.iter().filter(|request| request.is_creds() && request.was_granted()).count()
}

/// Clients that try again at once, as a pool that is restarted does, for so long. All are told to come later, by one
/// of two codes: a login may be under way when their time is up. None is told that its credential is wrong.
async fn storm(pglease: &Pglease, span: Duration) {
    let until = Instant::now() + span;
    let client = async || {
        while Instant::now() < until {
            let refused = pglease.connect("app").await.err().unwrap();
            let later =
                [&SqlState::CANNOT_CONNECT_NOW, &SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION];
            assert!(refused.code().is_some_and(|code| later.contains(&code)), "{refused:?}");
        }
    };
    tokio::join!(client(), client(), client(), client(), client(), client(), client(), client());
}

#[tokio::test]
async fn pg_hba_that_refuses_leased_roles_has_few_of_them_made() {
    let servers = Servers::start().await;
    let serving = World::create(&servers, of(VaultRole::default())).await;
    let starting = World::create(&servers, of(VaultRole::default())).await;
    let settings = |world: &World<'_>| {
        let settings = world.settings_with("debug", &servers.openbao.address(), "connect_wait = \"2s\"");
        settings + &world.route("db-app")
    };
    let was_ready = pglease_with(&settings(&serving)).await;
    was_ready.connect("app").await.unwrap();

    let rejecting = |world: &World<'_>| {
        let (engine, leased) = (world.group("vault_admin"), world.group("app_rw"));
        format!("host all {engine} all scram-sha-256\nhost all +{leased} all reject\n")
    };
    let rejected = [rejecting(&serving), rejecting(&starting)];
    servers.postgres.write_hba(&rejected.concat()).await;
    until(async || was_ready.connect("app").await.is_err()).await;
    let never_ready = start(&settings(&starting)).await;
    let span = Duration::from_secs(25);
    let begun = Instant::now();
    tokio::join!(storm(&was_ready, span), storm(&never_ready, span));

    // One that was good, then three at once and one per 10 s: pauses that grow make that fewer.
    let allowed = 1 + 3 + usize::try_from(begun.elapsed().as_secs() / 10).unwrap();
    for (world, pglease) in [(&serving, &was_ready), (&starting, &never_ready)] {
        let made = made(world);
        assert!((2..=allowed).contains(&made), "{made} of {allowed}");
        // Each was given back when upstream had refused it for 5 s.
        assert!(world.living_roles().await.len() <= 2);
        assert_nothing_was_forbidden(world, pglease).await;
    }

    servers.postgres.write_hba("").await;
    for pglease in [&was_ready, &never_ready] {
        until(async || pglease.connect("app").await.is_ok()).await;
    }
}
