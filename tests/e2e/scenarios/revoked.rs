//! Credentials that somebody ends before their time: Vault's operator, whose order it is, or PostgreSQL's.

use serde_json::json;
use tokio::time;
use tokio_postgres::error::SqlState;

use super::of;
use crate::support::world::{Revocation, VaultRole, World};
use crate::{PATIENCE, pglease_with, until, until_revoked, user_of};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// `ALTER ROLE … NOLOGIN`, by PostgreSQL's administrator.
    NoLogin,
    RevokedLease,
    RevokedToken,
    /// `DROP ROLE`, by PostgreSQL's administrator.
    Drop,
}

#[tokio::test]
async fn scenario_10_revoked_early_where_the_revocation_is_nologin() {
    play(Revocation::NoLogin, false).await;
}

#[tokio::test]
async fn scenario_10_revoked_early_where_the_revocation_is_nologin_with_a_startup_role() {
    play(Revocation::NoLogin, true).await;
}

#[tokio::test]
async fn scenario_10_revoked_early_where_the_revocation_drops_the_role() {
    play(Revocation::Drop, false).await;
}

#[tokio::test]
async fn scenario_10_revoked_early_where_the_revocation_drops_the_role_with_a_startup_role() {
    play(Revocation::Drop, true).await;
}

async fn play(revocation: Revocation, with_startup_role: bool) {
    let world = World::shared(of(VaultRole { revocation, ..VaultRole::default() })).await;
    // The role last: what an engine cannot revoke it tries for ever.
    for by in [By::NoLogin, By::RevokedLease, By::RevokedToken, By::Drop] {
        let startup_role = if with_startup_role { &world.group("app_owner") } else { "" };
        let route = world.route("db-app") + &format!("startup_role = {startup_role:?}\n");
        let pglease = pglease_with(&(world.settings() + &route)).await;
        let held = pglease.connect("app").await.unwrap();
        let user = user_of(&held).await;
        end(&world, &user, by).await;
        until(async || !world.living_roles().await.contains(&user)).await;

        let fresh = pglease.connect("app").await.unwrap();
        assert_ne!(user_of(&fresh).await, user, "{by:?}");
        match by {
            By::RevokedLease | By::RevokedToken => {
                let told = time::timeout(PATIENCE, held.last_words()).await.unwrap().unwrap();
                assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{by:?} {told:?}");
                assert_eq!(pglease.logged("lease.revoked_early").await.len(), 1, "{by:?}");
            }
            By::NoLogin | By::Drop => {
                let checked = pglease.wait_for_event("lease.checked", PATIENCE).await;
                assert_eq!(checked["verdict"], "login_rejected", "{by:?}");
                held.batch_execute("SELECT 1").await.unwrap();
                assert_eq!(pglease.events("lease.revoked_early").len(), 0, "{by:?}");
            }
        }
        pglease.wait_for_event("rotation.done", PATIENCE).await;
        assert_eq!(pglease.logged("rotation.done").await.len(), 1, "{by:?}");
        pglease.sigterm();
        assert!(pglease.wait_exit(PATIENCE).await.success(), "{by:?}");
        until_revoked(&world, &pglease).await;
    }
}

async fn end(world: &World<'_>, user: &str, by: By) {
    let prefix = match by {
        By::NoLogin => {
            return world.superuser.batch_execute(&format!("ALTER ROLE \"{user}\" NOLOGIN")).await.unwrap();
        }
        By::Drop => {
            let sql = format!("DROP OWNED BY \"{user}\"; DROP ROLE \"{user}\"");
            return world.superuser.batch_execute(&sql).await.unwrap();
        }
        By::RevokedLease => world.vault_path("db-app"),
        By::RevokedToken => format!("auth/{}/login", world.auth()),
    };
    let path = format!("sys/leases/revoke-prefix/{prefix}");
    world.servers.openbao.write(&path, json!({ "sync": true })).await;
}

/// Nobody logs in anew: a renewal meets it.
#[tokio::test]
async fn revoked_lease_ends_its_sessions_though_nobody_logs_in() {
    let world = World::shared(of(VaultRole { default_ttl: "20s", ..VaultRole::default() })).await;
    for by in [By::RevokedLease, By::RevokedToken] {
        let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;
        let held = pglease.connect("app").await.unwrap();
        let user = user_of(&held).await;
        end(&world, &user, by).await;
        let told = time::timeout(PATIENCE, held.last_words()).await.unwrap().unwrap();
        assert_eq!(told.code(), &SqlState::ADMIN_SHUTDOWN, "{by:?} {told:?}");
        let rotated = pglease.wait_for_event("rotation.done", PATIENCE).await;
        assert_eq!(rotated["trigger"], "revoked", "{by:?}");
        assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, user, "{by:?}");
    }
}
