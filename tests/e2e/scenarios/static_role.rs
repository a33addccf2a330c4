//! Static roles: the `db_role` stays, and Vault changes its password.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::time::{self, Instant};

use super::{assert_nothing_was_forbidden, granted};
use crate::support::audit::Request;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until, user_of};

fn is_static_read(request: &Request) -> bool {
    request.path.contains("/static-creds/")
}

#[tokio::test]
async fn scenario_16_password_of_a_static_role_changes_and_nobody_notices() {
    let world = World::shared(WorldOptions::default()).await;
    let (db_role, vault_path) = world.add_static_role(30).await;
    let settings = world.settings_with("trace", &world.servers.openbao.address(), "");
    let pglease = pglease_with(&(settings + &world.route_on(&vault_path))).await;
    let held = pglease.connect("app").await.unwrap();
    held.batch_execute("BEGIN; INSERT INTO t VALUES (1001)").await.unwrap();

    let rotated = AtomicBool::new(false);
    let connecting = async {
        while !rotated.load(Ordering::Relaxed) {
            let began = Instant::now();
            assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, db_role);
            assert_eq!(user_of(&held).await, db_role);
            time::sleep_until(began + Duration::from_secs(1)).await;
        }
    };
    let rotate = format!("{}/rotate-role/st", world.engine());
    let rotations = async {
        // Nobody is told of a rotation by hand: the next login finds out.
        world.servers.openbao.write(&rotate, json!({})).await;
        let by_hand = pglease.wait_for_event("rotation.done", PATIENCE).await;
        assert_eq!(by_hand["trigger"], "rejected", "{by_hand}");
        pglease.wait_for_events("rotation.done", 2, PATIENCE).await;
        rotated.store(true, Ordering::Relaxed);
    };
    tokio::join!(rotations, connecting);

    let reads = granted(&world, is_static_read);
    // Each half a second behind the one before; OpenBao may take note of that one late, on a busy machine.
    let four_in_a_second = |four: &[Request]| four[3].at.saturating_sub(four[0].at) < Duration::from_secs(1);
    assert!(reads.len() >= 3 && !reads.windows(4).any(four_in_a_second), "{reads:?}");
    held.batch_execute("INSERT INTO t VALUES (1002); COMMIT").await.unwrap();
    assert!(pglease.events("session.end").iter().all(|end| end["reason"] == "client_closed"));
    assert_eq!(pglease.metrics().await.iter().filter(|(name, _)| name.contains("lease_expiry")).count(), 0);
    assert_nothing_was_forbidden(&world, &pglease).await;
    let creds = world.servers.openbao.read(&vault_path).await;
    let password = creds["password"].as_str().unwrap();
    assert!(!pglease.lines().all().iter().any(|line| line.contains(password)));

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    let is_revocation = |request: &Request| request.path == "auth/token/revoke-self";
    until(async || granted(&world, is_revocation).len() == 1).await;
    let can_log_in = format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{db_role}'");
    assert_eq!(world.superuser.rows(&can_log_in).await, [[Some("t".to_owned())]]);
}
