//! What is forwarded is answered, and what is not answered was not forwarded, however a session ends.

use std::time::Duration;

use serde_json::json;

use super::of;
use crate::goodbye::{Clients, Pace};
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_for, pglease_with, rotate};

/// One statement after the other.
const RESTLESS: Pace = Pace { pause: Duration::ZERO, jitter: Duration::from_millis(10), attempts: 0 };

#[tokio::test]
async fn case_c18_insert_that_meets_the_end_of_its_lease_is_answered_or_not_done() {
    // Boundaries are looked for from 5 s before the end on.
    let vault_role = VaultRole {
        default_ttl: "40s",
        max_ttl: "50s",
        revocation: Revocation::Drop,
        ..VaultRole::default()
    };
    let world = World::shared(of(vault_role)).await;
    let route = world.route("db-app") + "at_lease_end = \"close\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    // A session that is idle for two seconds may end.
    let (pause, jitter) = (Duration::from_millis(1900), Duration::from_millis(400));
    let clients = Clients::start(&world, &pglease, 50, Pace { pause, jitter, attempts: 0 }).await;
    let told = clients.finish(&world).await;
    assert!(told.attempts() >= 150, "{}", told.attempts());
    let ends = pglease.logged("session.end").await;
    // Over, where a statement takes longer than 5 s on a busy machine.
    let by_the_lease = |reason: &serde_json::Value| reason == "lease_ends" || reason == "lease_over";
    assert!(ends.iter().all(|end| by_the_lease(&end["reason"])), "{ends:?}");
}

#[tokio::test]
async fn case_c18_insert_that_meets_a_drain_is_answered_or_not_done() {
    let world = World::shared(of(VaultRole::default())).await;
    for _ in 0..4 {
        let settings = world.settings() + "[drain]\ndeadline = \"50s\"\n\n" + &world.route("db-app");
        let pglease = pglease_with(&settings).await;
        let clients = Clients::start(&world, &pglease, 50, RESTLESS).await;
        pglease.sigterm();
        let told = clients.finish(&world).await;
        assert!(told.unknown.is_empty(), "{:?}", told.unknown);
        assert!(pglease.wait_exit(PATIENCE).await.success());
        let ends = pglease.events("session.end");
        assert!(ends.iter().all(|end| end["reason"] == "drain"), "{ends:?}");
    }
}

#[tokio::test]
async fn case_c18_insert_that_meets_a_revocation_is_answered_or_not_done() {
    let world = World::shared(of(VaultRole::default())).await;
    let pglease = pglease_for(&world).await;
    for (by_operator, reason) in [(true, "rotate_close"), (false, "revoked")] {
        let clients = Clients::start(&world, &pglease, 50, RESTLESS).await;
        if by_operator {
            rotate(&pglease, &["--close"]).await;
        } else {
            let leases = format!("sys/leases/revoke-prefix/{}", world.vault_path("db-app"));
            world.servers.openbao.write(&leases, json!({ "sync": true })).await;
            // Somebody has to meet it.
            pglease.connect("app").await.unwrap();
        }
        clients.finish(&world).await;
        let ends = pglease.logged("session.end").await;
        assert_eq!(ends.iter().filter(|end| end["reason"] == reason).count(), 50, "{reason}");
    }
}
