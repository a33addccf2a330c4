//! What the end of a lease does, held against `at_lease_end`.

use super::{as_owner, cure, cured, found, run, settings, step, trouble};
use crate::check::check;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::until;

async fn world_with(revocation: Revocation) -> World<'static> {
    let vault_role = VaultRole { revocation, ..VaultRole::default() };
    World::shared(WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() }).await
}

#[tokio::test]
async fn sessions_that_a_revocation_harms_must_not_be_left_open() {
    let world = world_with(Revocation::NoLogin).await;
    let harmless = step(&world, &settings(&world, ""), "postgres.revocation", "passed").await;
    assert!(found(&harmless).contains("NOLOGIN") && found(&harmless).contains("works on"), "{harmless}");

    let world = world_with(Revocation::Drop).await;
    let leave = settings(&world, "at_lease_end = \"leave\"\n");
    let harmed = trouble(&world, &leave, "postgres.revocation", "sessions-harmed").await;
    // It is seen at one of the statements: the grants are gone first, then the role.
    assert!(found(&harmed).contains("42501"), "{harmed}");
    assert!(cure(&harmed).starts_with("say at_lease_end = \"auto\""), "{harmed}");
    let checked = check(&world, &leave.replace("\"leave\"", "\"auto\""), &[]).await;
    checked.cured("postgres.revocation", "sessions-harmed");
    let told = checked.step("postgres.revocation");
    assert!(found(told).contains("57P01 before that"), "{told}");
    run(&world, &format!("GRANT SELECT ON t TO {};", world.group("app_owner"))).await;
    let owners = step(&world, &as_owner(&world), "postgres.revocation", "passed").await;
    assert!(found(&owners).contains("works on"), "{owners}");
}

#[tokio::test]
async fn sessions_that_a_revocation_ends_are_to_be_told_before() {
    let world = world_with(Revocation::Statements(&[
        "ALTER ROLE \"{{name}}\" NOLOGIN;",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}';",
    ]))
    .await;
    run(&world, &format!("GRANT pg_signal_backend TO {};", world.group("vault_admin"))).await;
    let ended = trouble(&world, &as_owner(&world), "postgres.revocation", "sessions-harmed").await;
    assert!(found(&ended).contains("57P01"), "{ended}");
    assert!(cure(&ended).starts_with("say at_lease_end = \"close\""), "{ended}");
    let closing = as_owner(&world) + "at_lease_end = \"close\"\n";
    cured(&world, &closing, "postgres.revocation", "sessions-harmed").await;
}

#[tokio::test]
async fn revocation_that_is_blocked_is_told_of_with_one_that_cannot_be() {
    let world = world_with(Revocation::Drop).await;
    // The engine's own revocation has no right on it.
    run(&world, "CREATE SEQUENCE numbers;").await;
    let blocked = trouble(&world, &settings(&world, ""), "postgres.revocation", "revocation-blocked").await;
    assert!(found(&blocked).contains("can still log in"), "{blocked}");
    run(&world, cure(&blocked).lines().last().unwrap()).await;
    until(async || world.living_roles().await.is_empty()).await;

    world.write_vault_role(&VaultRole { revocation: Revocation::NoLogin, ..VaultRole::default() }).await;
    cured(&world, &settings(&world, ""), "postgres.revocation", "revocation-blocked").await;
}
