//! Tokens that cannot be renewed, or cannot be had for a while.

use serde_json::json;

use super::{granted, of};
use crate::support::audit::Request;
use crate::support::tokenreview::Answer;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, refused_revocations, until_revoked, user_of};

/// Settings with a route whose sessions have nothing to learn.
fn settings(world: &World<'_>) -> String {
    world.settings() + &world.route("db-app") + "at_lease_end = \"leave\"\n"
}

#[tokio::test]
async fn scenario_05_token_without_the_default_policy_is_only_rotated() {
    let world = World::shared(of(VaultRole { default_ttl: "24s", ..VaultRole::default() })).await;
    world.write(&format!("auth/{}/role/web", world.auth()), json!({ "token_no_default_policy": true })).await;
    let pglease = pglease_with(&settings(&world)).await;
    pglease.wait_for_event("token.without_default_policy", PATIENCE).await;

    while pglease.events("rotation.done").len() < 2 {
        pglease.connect("app").await.unwrap();
    }
    assert!(pglease.metric("pglease_vault_requests_total", "op=\"renew").await < 1.0);
    let rotations = pglease.events("rotation.done");
    assert!(rotations.iter().all(|done| done["trigger"] == "planned"), "{rotations:?}");
    let creds = granted(&world, Request::is_creds).len();
    assert_eq!(creds, rotations.len() + 1);
}

#[tokio::test]
async fn scenario_24_api_server_that_fails_for_three_renewals_of_the_token_costs_no_rotation() {
    let options = WorldOptions {
        token_ttl: "60s",
        ..of(VaultRole { default_ttl: "40s", max_ttl: "1h", ..VaultRole::default() })
    };
    let world = World::shared(options).await;
    let pglease = pglease_with(&settings(&world)).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    world.token_review.set_answer(Answer::Status(500));
    let refused = pglease.wait_for_events("token.renew_failed", 3, PATIENCE).await;
    assert_eq!(refused["code"], 403, "{refused}");
    world.token_review.set_answer(Answer::Honest);
    pglease.wait_for_event("token.renewed", PATIENCE).await;
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    assert_eq!(pglease.events("rotation.start").len(), 0);
    assert_eq!(granted(&world, Request::is_login).len(), 1);
    pglease.wait_for_event("lease.renewed", PATIENCE).await;
    assert_eq!(world.leased_roles().await.len(), 1);
}

#[tokio::test]
async fn successor_is_read_with_the_old_token_where_the_api_server_is_away() {
    let world =
        World::shared(of(VaultRole { default_ttl: "20s", max_ttl: "30s", ..VaultRole::default() })).await;
    let pglease = pglease_with(&settings(&world)).await;
    let held = pglease.connect("app").await.unwrap();
    let user = user_of(&held).await;

    world.token_review.set_answer(Answer::Status(500));
    while pglease.events("rotation.done").is_empty() {
        pglease.connect("app").await.unwrap();
    }
    assert!(!pglease.events("creds.sibling").is_empty());
    assert_eq!(granted(&world, Request::is_login).len(), 1);
    assert_ne!(user_of(&pglease.connect("app").await.unwrap()).await, user);
    held.query("SELECT count(*) FROM t", &[]).await.unwrap();

    world.token_review.set_answer(Answer::Honest);
    pglease.sigterm();
    drop(held);
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_revoked(&world, &pglease).await;
}

#[tokio::test]
async fn batch_token_is_served_and_leaves_no_role_behind() {
    let options = WorldOptions { token_ttl: "24s", ..WorldOptions::default() };
    let world = World::shared(options).await;
    world.write(&format!("auth/{}/role/web", world.auth()), json!({ "token_type": "batch" })).await;
    let pglease = pglease_with(&settings(&world)).await;
    pglease.wait_for_event("token.batch", PATIENCE).await;
    while pglease.events("rotation.done").is_empty() {
        pglease.connect("app").await.unwrap();
    }
    for op in ["renew_self", "revoke_self"] {
        assert!(pglease.metric("pglease_vault_requests_total", &format!("op=\"{op}\"")).await < 1.0, "{op}");
    }
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    // Each lease was ended alone, long before the token's end.
    until_revoked(&world, &pglease).await;
    assert_eq!(refused_revocations(&pglease), 0);
}
