//! What routes, databases and roles have wrong, on a server that others use as well.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::Patient;
use crate::PATIENCE;
use crate::support::world::VaultRole;

/// With a route whose upstream is changed.
fn at(patient: &Patient<'_>, from: &str, to: &str) -> String {
    assert!(patient.settings.contains(from), "{from}");
    patient.settings.replacen(from, to, 1)
}

#[tokio::test]
async fn hosts_that_cannot_be_reached_are_told_apart() {
    let mut patient = Patient::new().await;
    let well = patient.settings.clone();
    let postgres = &patient.world.servers.postgres;
    let host = format!("localhost:{}", postgres.port());
    patient.settings = at(&patient, &host, "255.255.255.255:5432");
    let cure = patient.finds("postgres.reach", "postgres-no-way").await;
    assert!(cure.starts_with("correct the host in `upstream`"), "{cure}");
    patient.settings.clone_from(&well);
    let has_direct_tls = postgres.major() >= 17;
    if has_direct_tls {
        // Believed by nobody: which of both it is, is said without `sslnegotiation`.
        let ca = postgres.ca_file().display().to_string();
        let other = patient.world.servers.openbao.ca_file().display().to_string();
        patient.settings = at(
            &patient,
            &format!("?sslmode=verify-full&sslrootcert={ca}"),
            &format!("?sslnegotiation=direct&sslmode=verify-full&sslrootcert={other}"),
        );
        let cure = patient.finds("postgres.tls", "not-tls-at-once").await;
        assert!(cure.starts_with("take sslnegotiation=direct out"), "{cure}");
        patient.settings = at(&patient, "sslnegotiation=direct&", "");
        let cure = patient.finds("postgres.tls", "postgres-ca-unknown").await;
        let named = cure.split([' ', ';']).find(|word| word.starts_with("sslrootcert=")).unwrap();
        let named = named.replace("/path/ca.pem", &ca);
        patient.settings = at(&patient, &format!("sslrootcert={other}"), &named);
    }
    let checked = patient.cured("postgres.reach", "postgres-no-way").await;
    if has_direct_tls {
        checked.cured("postgres.tls", "not-tls-at-once");
        checked.cured("postgres.tls", "postgres-ca-unknown");
    }
}

#[tokio::test]
async fn database_without_room_and_clocks_that_differ_are_told_of() {
    let patient = Patient::new().await;
    let (world, database) = (&patient.world, patient.world.database());
    let execute = async |sql: &str| world.superuser.batch_execute(sql).await.unwrap();

    // OpenBao has one connection to it, kept from before.
    world.lease("db-app").await;
    execute(&format!("ALTER DATABASE {database} CONNECTION LIMIT 1")).await;
    let cure = patient.finds("postgres.login", "database-limit-reached").await;
    patient.run(&cure).await;
    patient.cured("postgres.login", "database-limit-reached").await;

    // A file of the database is lost, which those who are in it do not need again.
    let oid = "SELECT oid FROM pg_database WHERE datname = current_database()";
    let oid = world.superuser.rows(oid).await[0][0].clone().unwrap();
    let map = world.servers.postgres.data().join("base").join(oid).join("pg_filenode.map");
    let lost = map.with_extension("lost");
    fs::rename(&map, &lost).unwrap();
    let checked = patient.check().await;
    let found = checked.only_trouble("postgres.login", "server-in-trouble");
    assert_eq!(found["cure"], "see the server's log");
    let log = world.servers.postgres.process().lines().clone();
    let said = |lines: &[String]| {
        let line = lines.iter().rev().find(|line| line.contains("FATAL") && line.contains("pg_filenode.map"));
        line.map(drop)
    };
    log.wait_for(PATIENCE, said).await.expect("the server's word on it");
    fs::rename(&lost, &map).unwrap();
    patient.cured("postgres.login", "server-in-trouble").await;

    // The server is real, and the function that tells its time is the test's.
    execute(
        "SET allow_system_table_mods = on;
         ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock_timestamp;
         CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql
            AS $$ SELECT pg_catalog.true_clock_timestamp() + interval '1 hour' $$",
    )
    .await;
    let cure = patient.finds("postgres.clock", "postgres-clock").await;
    assert!(cure.contains("NTP"), "{cure}");
    execute(
        "DROP FUNCTION pg_catalog.clock_timestamp();
         ALTER FUNCTION pg_catalog.true_clock_timestamp() RENAME TO clock_timestamp",
    )
    .await;
    patient.cured("postgres.clock", "postgres-clock").await;
}

#[tokio::test]
async fn roles_that_can_do_everything_or_end_early_and_lists_that_grow_are_told_of() {
    let mut patient = Patient::new().await;
    let world = &patient.world;
    let owner = world.group("app_owner");
    let role = format!("{}/roles/db-app", world.engine());
    let execute = async |sql: String| world.superuser.batch_execute(&sql).await.unwrap();
    let as_owner = format!("{}startup_role = {owner:?}\n", patient.settings);
    let without = std::mem::replace(&mut patient.settings, as_owner);

    let soon = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_mins(10));
    let creation = format!(
        "CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{soon}' IN ROLE {owner};"
    );
    world.write(&role, json!({ "creation_statements": [creation] })).await;
    let cure = patient.finds("postgres.valid_until", "valid-too-short").await;
    let valid = cure.split('\'').nth(1).unwrap();
    world.write(&role, json!({ "creation_statements": [creation.replace(&soon.to_string(), valid)] })).await;
    patient.cured("postgres.valid_until", "valid-too-short").await;

    // Event triggers act as who made them.
    execute(
        "CREATE FUNCTION give() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
         DECLARE made record;
         BEGIN FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table'
             LOOP EXECUTE format('ALTER TABLE %s OWNER TO postgres', made.object_identity); END LOOP; END $$;
         CREATE EVENT TRIGGER giving ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION give()"
            .to_owned(),
    )
    .await;
    let cure = patient.finds("postgres.ownership", "owned-by-other").await;
    patient.run(&cure).await;
    execute("DROP EVENT TRIGGER giving".to_owned()).await;
    patient.cured("postgres.ownership", "owned-by-other").await;

    let prefix = world.group("granted");
    execute(format!(
        "DO $$ BEGIN FOR i IN 1..1000 LOOP
             EXECUTE format('CREATE ROLE {prefix}_%s', i); EXECUTE format('GRANT SELECT ON t TO {prefix}_%s', i);
         END LOOP; END $$"
    ))
    .await;
    let cure = patient.finds("postgres.grants", "access-list-long").await;
    let (queries, dropping) = cure.rsplit_once('\n').unwrap();
    patient.run(queries).await;
    for number in 1..=1000 {
        let sql = dropping.replace('…', &format!("{prefix}_{number}"));
        execute(format!("{sql} DROP ROLE {prefix}_{number}")).await;
    }
    patient.cured("postgres.grants", "access-list-long").await;

    // Only a superuser makes others.
    execute(format!("ALTER ROLE {} SUPERUSER; ALTER ROLE {owner} SUPERUSER", world.group("vault_admin")))
        .await;
    let cure = patient.finds("postgres.startup_role", "startup-role-superuser").await;
    assert!(cure.contains("without SUPERUSER"), "{cure}");
    execute(format!("ALTER ROLE {owner} NOSUPERUSER")).await;
    patient.cured("postgres.startup_role", "startup-role-superuser").await;
    let all_mighty = VaultRole { attributes: "SUPERUSER", ..VaultRole::default() };
    world.write_vault_role(&all_mighty).await;
    patient.settings = without;
    let cure = patient.finds("postgres.startup_role", "acts-as-superuser").await;
    assert!(cure.contains("without SUPERUSER"), "{cure}");
    patient.world.write_vault_role(&VaultRole::default()).await;
    patient.cured("postgres.startup_role", "acts-as-superuser").await;
}
