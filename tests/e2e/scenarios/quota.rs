//! Vault has been asked too often, and says so with 429.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::{gaps, of};
use crate::support::Servers;
use crate::support::openbao::OpenBao;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_for, start, until, user_of};

/// From here one request in `interval` is answered, of this `path` or, where it is empty, of all but this quota's own;
/// that one is spent already.
async fn limit(openbao: &OpenBao, path: &str, interval: &str, with_retry_after: bool) {
    let config = json!({
        "enable_rate_limit_audit_logging": true,
        "enable_rate_limit_response_headers": with_retry_after,
        "rate_limit_exempt_paths": [QUOTA],
    });
    openbao.write("sys/quotas/config", config).await;
    openbao.write(QUOTA, json!({ "path": path, "rate": 1, "interval": interval })).await;
    let spending = if path.is_empty() { "sys/leases/renew" } else { path };
    while openbao.call(Method::POST, spending, "", Some(json!({}))).await.0 != 429 {}
}

#[tokio::test]
async fn scenario_15_lease_survives_429_to_its_renewals() {
    let servers = Servers::start().await;
    let world = World::create(&servers, of(VaultRole { default_ttl: "60s", ..VaultRole::default() })).await;
    let pglease = pglease_for(&world).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    limit(&servers.openbao, "", "1h", false).await;
    let limited_from = servers.openbao.requests().len();
    // Beside a Vault that is slow to answer on a busy machine.
    let tried = || servers.openbao.requests().len() - limited_from;
    until(async || pglease.events("lease.renew_failed").iter().any(|failed| failed["code"] == 429)).await;
    // More than a third of it is left at the end: no successor is looked for.
    until(async || {
        assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
        tried() >= 3
    })
    .await;
    let requests = servers.openbao.requests();
    servers.openbao.delete(QUOTA).await;

    let gaps = gaps(&requests[limited_from..]);
    assert!(gaps.iter().all(|&gap| gap > Duration::from_millis(900)), "{gaps:?}");
    let renewed = pglease.wait_for_event("lease.renewed", PATIENCE).await;
    assert_eq!(renewed["db_role"], user.as_str(), "{renewed}");
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    assert_eq!(world.leased_roles().await.len(), 1);
}

#[tokio::test]
async fn scenario_15_retry_after_is_waited_for() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let login = format!("auth/{}/login", world.auth());

    // Longer than a start takes on a busy machine, and no longer than is waited for.
    limit(&servers.openbao, &login, "25s", true).await;
    let limited_from = servers.openbao.requests();
    let limited_at = limited_from.last().unwrap().at;
    let pglease = start(&(world.settings() + &world.route("db-app"))).await;
    // One who waits makes nothing go faster.
    pglease.connect("app").await.unwrap();

    let requests = servers.openbao.requests();
    let mut logins = requests[limited_from.len()..].iter().filter(|request| request.is_login());
    let (first, second) = (logins.next().unwrap(), logins.next().unwrap());
    assert!(!first.was_granted());
    // OpenBao says it in whole seconds, rounded down: the second login may be a moment early, the third is not.
    assert!(second.at > limited_at + Duration::from_millis(23_500), "{limited_at:?} {second:?}");
    assert!(logins.count() <= 1);
    let failed = pglease.events("login.failed");
    assert!(failed.iter().all(|failed| failed["code"] == 429), "{failed:?}");
}

const QUOTA: &str = "sys/quotas/rate-limit/all";
