//! Leased roles: what they may become, what they own, what they leave.

use super::{
    NO_LOGIN, as_owner, cure, cured, found, run, settings, statement, step, step_of, trouble, write_role,
};
use crate::check::check;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::until_without_session;

#[tokio::test]
async fn startup_role_that_leased_roles_cannot_become_is_told_with_the_grant_that_is_missing() {
    let world = World::shared(WorldOptions::default()).await;
    let stranger = world.group("stranger");
    let as_stranger = settings(&world, &format!("startup_role = {stranger:?}\n"));

    let missing = trouble(&world, &as_stranger, "postgres.startup_role", "startup-role-missing").await;
    run(&world, cure(&missing)).await;
    let refused = trouble(&world, &as_stranger, "postgres.startup_role", "startup-role-no-member").await;
    assert!(refused["cause"].as_str().unwrap().contains("no member"), "{refused}");
    // From 16 on, as the cure says; before that CREATEROLE was enough.
    run(&world, &format!("GRANT {stranger} TO {} WITH ADMIN OPTION;", world.group("vault_admin"))).await;
    write_role(&world, &[statement(cure(&refused))], NO_LOGIN).await;
    let checked = check(&world, &as_stranger, &[]).await;
    checked.cured("postgres.startup_role", "startup-role-missing");
    checked.cured("postgres.startup_role", "startup-role-no-member");
    let ownership = step_of(&checked, "postgres.ownership", "passed");
    assert!(found(&ownership).contains("in no schema"), "{ownership}");

    if world.servers.postgres.major() >= 16 {
        let login = statement(cure(&refused)).replace(&format!(" IN ROLE {stranger}"), "");
        let grant = format!("GRANT {stranger} TO \"{{{{name}}}}\" WITH SET FALSE;");
        write_role(&world, &[&login, &grant], NO_LOGIN).await;
        let refused = trouble(&world, &as_stranger, "postgres.startup_role", "startup-role-no-set").await;
        let granting = cure(&refused).lines().last().unwrap();
        write_role(&world, &[&login, &grant, granting], NO_LOGIN).await;
        cured(&world, &as_stranger, "postgres.startup_role", "startup-role-no-set").await;
    }
}

#[tokio::test]
async fn role_that_may_make_things_or_has_no_rights_is_told_which_startup_role_helps() {
    let world = World::shared(WorldOptions::default()).await;
    let startup_role = format!("startup_role = \"{}\"", world.group("app_owner"));
    let without = settings(&world, "");
    let warned = trouble(&world, &without, "postgres.ownership", "may-own").await;
    assert!(cure(&warned).contains(&startup_role), "{warned}");
    assert!(warned["cause"].as_str().unwrap().contains("2BP01"), "{warned}");
    let checked = check(&world, &as_owner(&world), &[]).await;
    checked.cured("postgres.ownership", "may-own");
    let ownership = checked.step("postgres.ownership");
    assert!(found(ownership).contains("rolled back"), "{ownership}");
    let left = world.superuser.rows("SELECT count(*) FROM pg_class WHERE relname ~ '^pglease_check'").await;
    assert_eq!(left, [[Some("0".to_owned())]]);

    world.write_vault_role(&VaultRole { attributes: "NOINHERIT", ..VaultRole::default() }).await;
    let warned = trouble(&world, &without, "postgres.startup_role", "inherits-nothing").await;
    assert!(cure(&warned).contains(&startup_role), "{warned}");
    cured(&world, &as_owner(&world), "postgres.startup_role", "inherits-nothing").await;

    // Everybody's right, as before PostgreSQL 15.
    world.write_vault_role(&VaultRole { groups: &["app_rw"], ..VaultRole::default() }).await;
    step(&world, &without, "postgres.ownership", "passed").await;
    run(&world, "GRANT CREATE ON SCHEMA public TO PUBLIC;").await;
    run(&world, cure(&trouble(&world, &without, "postgres.ownership", "may-own").await)).await;
    cured(&world, &without, "postgres.ownership", "may-own").await;
}

#[tokio::test]
async fn case_c17_what_leased_roles_own_is_told_with_what_clears_it_away() {
    let world = World::shared(WorldOptions::default()).await;
    let without = settings(&world, "");
    step(&world, &without, "postgres.belongings", "passed").await;

    run(
        &world,
        &format!(
            "CREATE EXTENSION postgres_fdw;\nCREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;\n\
             GRANT USAGE ON FOREIGN SERVER far TO {};",
            world.group("app_rw")
        ),
    )
    .await;
    let leased = world.lease("db-app").await;
    let postgres = &world.servers.postgres;
    let session = postgres.connect_as(&world.database(), &leased.user, &leased.password).await.unwrap();
    let making = format!(
        "CREATE TABLE made (id int);
         CREATE TEMP TABLE passing (id int);
         CREATE USER MAPPING FOR CURRENT_USER SERVER far;
         ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}",
        world.group("app_ro")
    );
    session.batch_execute(&making).await.unwrap();

    let warned = trouble(&world, &without, "postgres.belongings", "belongings").await;
    let what = "1 leased role: default privileges, tables, sequences or views, user mappings (3 in all)";
    assert_eq!(found(&warned), format!("things belong to {what}"));
    let blocks = warned["cause"].as_str().unwrap().contains("2BP01");
    assert!(blocks && cure(&warned).contains(&leased.user), "{warned}");
    drop(session);
    until_without_session(&world.superuser, &leased.user).await;
    run(&world, cure(&warned)).await;
    cured(&world, &without, "postgres.belongings", "belongings").await;
    let owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'made'";
    assert_eq!(world.superuser.rows(owner).await, [[Some(world.group("app_owner"))]]);
}

#[tokio::test]
async fn roles_and_grants_that_pile_up_are_told_of() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = as_owner(&world);
    let begin = format!("{}db-app-Ab0", world.role_prefix());
    run(&world, &format!("CREATE ROLE \"{begin}{:017}\" LOGIN VALID UNTIL '2001-01-01';", 1)).await;
    let warned = trouble(&world, &settings, "postgres.stale_roles", "roles-expired").await;
    let query: Vec<_> = cure(&warned).lines().skip(1).take(2).collect();
    let roles = world.superuser.rows(&query.join(" ")).await;
    let [role] = &roles[..] else { panic!("{roles:?}") };
    let dropping = cure(&warned).lines().last().unwrap().replace('…', role[0].as_ref().unwrap());
    run(&world, &dropping).await;
    cured(&world, &settings, "postgres.stale_roles", "roles-expired").await;

    run(&world, &format!("GRANT SELECT ON t TO {} WITH GRANT OPTION;", world.group("vault_admin"))).await;
    let creation = format!(
        "CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE {};",
        world.group("app_owner")
    );
    write_role(&world, &[&creation, "GRANT SELECT ON t TO \"{{name}}\";"], NO_LOGIN).await;
    let warned = trouble(&world, &settings, "postgres.grants", "grants-to-role").await;
    assert!(found(&warned).contains("granted to the leased role itself"), "{warned}");
    write_role(&world, &[statement(cure(&warned))], NO_LOGIN).await;
    cured(&world, &settings, "postgres.grants", "grants-to-role").await;
}
