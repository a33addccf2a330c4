//! What a server that refuses a login says of the credential: by the point of the login at which it refuses, and never
//! by its words.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tokio_postgres::error::DbError;

use crate::support::Servers;
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::pki::Authority;
use crate::support::postgres::{Postgres, PostgresOptions};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until, user_of};

async fn refusal(pglease: &Pglease, database: &str) -> DbError {
    let refused = pglease.connect(database).await.err().expect(database);
    refused.as_db_error().unwrap_or_else(|| panic!("{refused:?}")).clone()
}

/// That it is the same one still, and that nobody has made another or counted it as rejected.
async fn assert_kept(world: &World<'_>, pglease: &Pglease) {
    let rejects = pglease.metric("pglease_upstream_auth_rejects_total", "").await;
    assert_eq!((world.leased_roles().await.len(), rejects.to_string()), (1, "0".to_owned()));
    assert_eq!(pglease.events("upstream.credential_rejected"), [] as [serde_json::Value; 0]);
}

#[tokio::test]
async fn refusal_that_is_not_of_the_credential_is_told_as_it_is_and_costs_no_credential() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let (postgres, leased) = (&servers.postgres, world.group("app_rw"));
    let file = |name: &str| world.folder().join(name).display().to_string();
    let clients = Authority::create();
    // Of a role that there is not.
    let other = clients.issue_to("somebody");
    fs::write(file("client.pem"), &other.certificate).unwrap();
    fs::write(file("client.key"), &other.key).unwrap();
    fs::set_permissions(file("client.key"), fs::Permissions::from_mode(0o600)).unwrap();
    postgres.write_data(&[("clients.pem", &clients.pem())]).await;
    postgres.set("ssl_ca_file", "clients.pem").await;
    let route = world.route("db-app");
    let shown = format!("?sslcert={}&sslkey={}&", file("client.pem"), file("client.key"));
    let settings = world.settings()
        + &route
        + "database = \"app\"\n"
        + &route.replace('?', &shown)
        + "database = \"shown\"\noptional = true\n";
    let pglease = pglease_with(&settings).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    let before = "host all all all scram-sha-256\n";
    for (line, database, code, said) in [
        ("host all +<leased> all reject", "app", "28000", "pg_hba.conf rejects connection"),
        (
            "hostssl all +<leased> all scram-sha-256 clientcert=verify-ca",
            "app",
            "28000",
            "connection requires a valid client certificate",
        ),
        ("hostssl all +<leased> all cert", "shown", "28000", "certificate authentication failed"),
        (
            "hostssl all +<leased> all scram-sha-256 clientcert=verify-full",
            "shown",
            "28P01",
            "password authentication failed",
        ),
    ] {
        let hba = format!("{}\n{before}", line.replace("<leased>", &leased));
        postgres.write_data(&[("pg_hba.conf", &hba)]).await;
        let error = refusal(&pglease, database).await;
        assert_eq!((error.code().code(), error.severity()), (code, "FATAL"), "{line}: {error:?}");
        assert!(error.message().starts_with(said), "{line}: {error:?}");
        // The server's own.
        assert!(error.file().is_some(), "{line}: {error:?}");
    }
    postgres.write_data(&[("pg_hba.conf", before)]).await;
    if postgres.major() >= 17 {
        for code in ["28000", "28P01"] {
            let sql = format!(
                "CREATE FUNCTION turn_away() RETURNS event_trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'password authentication failed' USING ERRCODE = '{code}'; END $$;
                 CREATE EVENT TRIGGER turn_away ON login EXECUTE FUNCTION turn_away();"
            );
            world.superuser.batch_execute(&sql).await.unwrap();
            assert_eq!(refusal(&pglease, "app").await.code().code(), code);
            world.superuser.batch_execute("DROP FUNCTION turn_away CASCADE").await.unwrap();
        }
    }
    // Which was only looked into.
    let checked = pglease.wait_for_event("lease.checked", PATIENCE).await;
    assert!(["alive", "database_away"].iter().any(|verdict| checked["verdict"] == *verdict), "{checked}");
    assert_kept(&world, &pglease).await;
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);
}

#[tokio::test]
async fn refusal_of_role_or_password_brings_a_new_credential_for_the_client_that_met_it() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let pglease = pglease_with(&(world.settings() + &world.route("db-app"))).await;
    let mut user = user_of(&pglease.connect("app").await.unwrap()).await;
    for (count, sql) in [
        "ALTER ROLE \"<user>\" NOLOGIN",
        "ALTER ROLE \"<user>\" PASSWORD 'by hand'",
        "ALTER ROLE \"<user>\" VALID UNTIL '2001-01-01'",
        "DROP ROLE \"<user>\"",
    ]
    .into_iter()
    .enumerate()
    {
        world.superuser.batch_execute(&sql.replace("<user>", &user)).await.unwrap();
        let next = user_of(&pglease.connect("app").await.unwrap()).await;
        assert_ne!(next, user, "{sql}");
        user = next;
        let rejects = pglease.metric("pglease_upstream_auth_rejects_total", "").await;
        assert_eq!(rejects.to_string(), (count + 1).to_string(), "{sql}");
    }
}

#[tokio::test]
async fn host_that_does_not_know_the_role_beside_one_that_is_away_costs_no_credential() {
    let (servers, other) = tokio::join!(Servers::start(), Postgres::start(PostgresOptions::default()));
    let world = World::create(&servers, WorldOptions::default()).await;
    let gate = Gate::to(servers.postgres.port()).await;
    other.query("postgres", &format!("CREATE DATABASE {}", world.database())).await;
    let hosts = format!("{},127.0.0.1:{}", gate.address(), other.port());
    let upstream = format!("postgresql://{hosts}/{}?sslmode=disable", world.database());
    let route =
        format!("[[route]]\nupstream = {upstream:?}\nvault_path = {:?}\n", world.vault_path("db-app"));
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let user = user_of(&pglease.connect("app").await.unwrap()).await;

    gate.close().await;
    for _ in 0..5 {
        let error = refusal(&pglease, "app").await;
        assert_eq!(error.code().code(), "08001", "{error:?}");
        let detail = error.detail().unwrap();
        let expected = format!(
            "{}: connection refused\n127.0.0.1:{}: credential not accepted",
            gate.address(),
            other.port()
        );
        assert_eq!(detail, expected);
    }
    let checked = pglease.wait_for_event("lease.checked", PATIENCE).await;
    assert_eq!(checked["verdict"], json!("database_away"), "{checked}");
    assert_kept(&world, &pglease).await;
    gate.open().await;
    assert_eq!(user_of(&pglease.connect("app").await.unwrap()).await, user);

    // Both answer, and neither knows it.
    world.superuser.batch_execute(&format!("ALTER ROLE \"{user}\" NOLOGIN")).await.unwrap();
    let mut next = None;
    until(async || {
        next = pglease.connect("app").await.ok();
        next.is_some()
    })
    .await;
    assert_ne!(user_of(&next.unwrap()).await, user);
}
