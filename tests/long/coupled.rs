//! A token that lives only while the pod's JWT does, and a JWT that is replaced again and again.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{self, Instant};

use crate::pglease_with;
use crate::report::report;
use crate::steps::user_of;
use crate::support::world::{VaultRole, World, WorldOptions};

#[tokio::test]
async fn scenario_23_end_of_each_jwt_is_seen_by_nobody() {
    let options = WorldOptions { token_ttl: "10s", ..WorldOptions::default() };
    let world = World::shared(WorldOptions { vault_roles: vec![VaultRole::default()], ..options }).await;
    world.write_jwt(JWT_LIFE);
    // Nothing is to be learnt with a throw-away credential.
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let held = pglease.connect("app").await.unwrap();
    let first = user_of(&held).await;
    let end = Instant::now() + Duration::from_mins(2);

    let replacing = async {
        loop {
            time::sleep(Duration::from_secs(20)).await;
            world.write_jwt(JWT_LIFE);
        }
    };
    let asking = async {
        while Instant::now() < end {
            assert_eq!(user_of(&held).await, first);
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    let connecting = async {
        let mut users = Vec::new();
        while Instant::now() < end {
            users.push(user_of(&pglease.connect("app").await.unwrap()).await);
            time::sleep(Duration::from_secs(1)).await;
        }
        users.into_iter().collect::<BTreeSet<_>>().len()
    };
    let counting = async {
        let leases = format!("sys/leases/lookup/{}", world.vault_path("db-app"));
        let mut most = 0;
        while Instant::now() < end {
            most = most.max(world.servers.openbao.list(&leases).await.len());
            time::sleep(Duration::from_millis(200)).await;
        }
        most
    };
    let at_work = async { tokio::join!(asking, connecting, counting) };
    let ((), users, most) = tokio::select! {
        done = at_work => done,
        () = replacing => unreachable!("it has no end"),
    };

    report("jwt", &format!("{users} users in 120 s, up to {most} leases at a time"));
    // A JWT has 5 s to 25 s left at a login, and the token outlives it by 10 s at most.
    assert!((4..=9).contains(&users), "{users}");
    assert!(most <= 2, "{most}");
}

/// In seconds.
const JWT_LIFE: i64 = 25;
