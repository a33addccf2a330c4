//! Leases and tokens that are renewed, or that cannot be renewed for long: nobody notices.

use std::time::Duration;

use tokio::time;

use super::{assert_nothing_was_forbidden, gaps, granted, of};
use crate::support::audit::Request;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{pglease_for, pglease_with, until, user_of};

#[tokio::test]
async fn scenario_01_one_session_works_on_one_lease_that_is_renewed_in_time() {
    let world =
        World::shared(of(VaultRole { default_ttl: "20s", max_ttl: "1h", ..VaultRole::default() })).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;

    let renewals = || granted(&world, |request| request.path == "sys/leases/renew");
    while renewals().len() < 5 {
        assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
        assert_eq!(user_of(&session).await, user);
        time::sleep(Duration::from_secs(1)).await;
    }
    let mut requests = granted(&world, Request::is_creds);
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests.extend(renewals());
    let gaps = gaps(&requests);
    // From 10 %, and from half of its life on; OpenBao may take note of the one before late, on a busy machine. That none
    // came too late is known by the user name.
    assert!(gaps[0] >= Duration::from_millis(500), "{gaps:?}");
    assert!(gaps[1..].iter().all(|&gap| gap >= Duration::from_secs(7)), "{gaps:?}");

    assert_eq!(world.leased_roles().await.len(), 1);
    assert_nothing_was_forbidden(&world, &pglease).await;
}

#[tokio::test]
async fn scenario_04_token_that_may_not_live_long_is_replaced_before_its_end() {
    let options = WorldOptions { token_ttl: "20s", token_max_ttl: "40s", ..WorldOptions::default() };
    let world = World::shared(options).await;
    // Nothing is to be learnt with a throw-away credential.
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;

    let logins = || granted(&world, Request::is_login);
    let connecting = async {
        while logins().len() < 3 {
            user_of(&pglease.connect("app").await.unwrap()).await;
            time::sleep(Duration::from_secs(1)).await;
        }
    };
    let counting = async {
        loop {
            let leases = format!("sys/leases/lookup/{}", world.vault_path("db-app"));
            let leases = world.servers.openbao.list(&leases).await;
            assert!(leases.len() <= 2, "{leases:?}");
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = connecting => {}
        () = counting => {}
    }

    let logins = logins();
    let is_revoked = |token: &str| {
        let revoked = granted(&world, |request| request.path == "auth/token/revoke-self");
        revoked.iter().any(|request| request.token == token)
    };
    until(async || logins[..2].iter().all(|login| is_revoked(&login.token))).await;
    assert_nothing_was_forbidden(&world, &pglease).await;
}
