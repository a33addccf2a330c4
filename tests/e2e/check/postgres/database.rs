//! What the way, the server and the database allow.

use std::fs;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{
    NO_LOGIN, as_owner, cure, cured, found, run, settings_for, statement, step, trouble, write_role,
};
use crate::check::check;
use crate::support::pki::Authority;
use crate::support::world::{VaultRole, World, WorldOptions};

#[tokio::test]
async fn database_that_is_closed_or_missing_is_opened_by_what_is_printed() {
    let world = World::shared(WorldOptions::default()).await;
    let (settings, database) = (as_owner(&world), world.database());
    let execute = async |sql: String| world.superuser.batch_execute(&sql).await.unwrap();

    // Vault's user has its right from everybody's.
    let admin = world.group("vault_admin");
    execute(format!("GRANT CONNECT ON DATABASE {database} TO {admin}")).await;
    execute(format!("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")).await;
    let refused = trouble(&world, &settings, "postgres.login", "connect-not-allowed").await;
    assert!(cure(&refused).starts_with(&format!("GRANT CONNECT ON DATABASE {database} TO ")), "{refused}");
    run(&world, cure(&refused)).await;
    cured(&world, &settings, "postgres.login", "connect-not-allowed").await;

    execute(format!("ALTER DATABASE {database} CONNECTION LIMIT 20")).await;
    run(&world, cure(&trouble(&world, &settings, "postgres.connections", "database-limit").await)).await;
    let many = settings.replace("max_sessions = 20", "max_sessions = 9000");
    let warned = trouble(&world, &many, "postgres.connections", "server-small").await;
    assert!(cure(&warned).contains("set listen.max_sessions to what this pod needs"), "{warned}");
    // What else is on the server is not this test's; its own limit is.
    let few = settings.replace("max_sessions = 20", "max_sessions = 1");
    let checked = check(&world, &few, &[]).await;
    checked.cured("postgres.connections", "database-limit");
    checked.cured("postgres.connections", "server-small");

    let missing = format!("{database}_not_yet");
    let settings = settings.replace(&format!("/{database}?"), &format!("/{missing}?"));
    let refused = trouble(&world, &settings, "postgres.login", "database-missing").await;
    assert!(refused["cause"].as_str().unwrap().contains(&database), "{refused}");
    run(&world, cure(&refused)).await;
    cured(&world, &settings, "postgres.login", "database-missing").await;
}

#[tokio::test]
async fn limits_of_a_leased_role_are_lifted_by_what_is_printed() {
    let limited = |attributes| VaultRole { attributes, ..VaultRole::default() };
    let world = World::shared(WorldOptions::default()).await;
    let settings = as_owner(&world).replace("max_sessions = 20", "max_sessions = 1");

    world.write_vault_role(&limited("CONNECTION LIMIT 0")).await;
    let refused = trouble(&world, &settings, "postgres.login", "role-limit-reached").await;
    let creation = statement(cure(&refused)).to_owned();
    world.write_vault_role(&limited("CONNECTION LIMIT 1")).await;
    let warned = trouble(&world, &settings, "postgres.connections", "role-limit").await;
    assert_eq!(statement(cure(&warned)), creation);
    write_role(&world, &[&creation], NO_LOGIN).await;
    let checked = check(&world, &settings, &[]).await;
    checked.cured("postgres.login", "role-limit-reached");
    checked.cured("postgres.connections", "role-limit");

    write_role(&world, &[&creation.replace(" LOGIN ", " NOLOGIN ")], NO_LOGIN).await;
    let refused = trouble(&world, &settings, "postgres.login", "role-no-login").await;
    assert!(found(&refused).contains("28000"), "{refused}");
    write_role(&world, &[statement(cure(&refused))], NO_LOGIN).await;
    cured(&world, &settings, "postgres.login", "role-no-login").await;

    write_role(&world, &[&creation.replace("VALID UNTIL '{{expiration}}' ", "")], NO_LOGIN).await;
    let warned = trouble(&world, &settings, "postgres.valid_until", "valid-for-ever").await;
    assert!(cure(&warned).contains("VALID UNTIL '{{expiration}}'"), "{warned}");
    write_role(&world, &[&creation.replace("{{expiration}}", "2001-01-01")], NO_LOGIN).await;
    let refused = trouble(&world, &settings, "postgres.login", "role-unknown").await;
    assert!(found(&refused).contains("28P01"), "{refused}");
    // Which says VALID UNTIL '{{expiration}}' again.
    write_role(&world, &[statement(cure(&refused))], NO_LOGIN).await;
    let checked = check(&world, &settings, &[]).await;
    checked.cured("postgres.valid_until", "valid-for-ever");
    checked.cured("postgres.login", "role-unknown");
}

#[tokio::test]
async fn case_c06_login_trigger_that_warns_is_no_fault_and_one_that_refuses_is_told_of() {
    let world = World::shared(WorldOptions::default()).await;
    // Login triggers came with 17.
    if world.servers.postgres.major() < 17 {
        return;
    }
    let settings = as_owner(&world);
    let greet = async |action: &str| {
        let sql = format!(
            "CREATE OR REPLACE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN IF session_user LIKE 'v%' THEN {action}; END IF; END $$"
        );
        world.superuser.batch_execute(&sql).await.unwrap();
    };
    greet("RAISE WARNING '%', repeat('x', 9000)").await;
    run(&world, "CREATE EVENT TRIGGER greeting ON login EXECUTE FUNCTION greet();").await;
    step(&world, &settings, "postgres.login", "passed").await;

    greet("RAISE EXCEPTION 'closed on Thursdays'").await;
    let refused = trouble(&world, &settings, "postgres.login", "session-refused").await;
    assert!(found(&refused).contains("closed on Thursdays"), "{refused}");
    let (_, query) = cure(&refused).split_once("17 and later):\n").unwrap();
    let triggers = world.superuser.rows(query).await;
    let [trigger] = &triggers[..] else { panic!("{triggers:?}") };
    run(&world, &format!("DROP EVENT TRIGGER {};", trigger[0].as_ref().unwrap())).await;
    cured(&world, &settings, "postgres.login", "session-refused").await;
}

/// What answers everything as an HTTP server does that has not understood it.
async fn web_server() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The check closes its first connection unused.
            let _ = stream.read(&mut [0; 64]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    (address, serving)
}

#[tokio::test]
async fn address_without_a_server_and_a_server_that_is_another_are_told_apart() {
    let world = World::shared(WorldOptions::default()).await;
    let vault_path = world.vault_path("db-app");
    let upstream = world.servers.postgres.url(&world.database());
    let port = format!("localhost:{}", world.servers.postgres.port());
    let to = |upstream: &str| {
        settings_for(&world, &format!("[[route]]\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n"))
    };
    // tcpmux, which nobody has.
    let nobody = trouble(
        &world,
        &to(&upstream.replace(&port, "127.0.0.1:1")),
        "postgres.reach",
        "postgres-nothing-listens",
    )
    .await;
    assert!(cure(&nobody).contains("listen_addresses"), "{nobody}");
    let (web, _serving) = web_server().await;
    let other = trouble(&world, &to(&upstream.replace(&port, &web)), "postgres.tls", "not-postgres").await;
    assert!(other["cause"].as_str().unwrap().contains("not PostgreSQL"), "{other}");

    let stranger = world.folder().join("stranger.pem");
    fs::write(&stranger, Authority::create().pem()).unwrap();
    let ca_file = world.servers.postgres.ca_file().display().to_string();
    let unknown = to(&upstream.replace(&ca_file, &stranger.display().to_string()));
    let unknown = trouble(&world, &unknown, "postgres.tls", "postgres-ca-unknown").await;
    assert!(cure(&unknown).contains("sslrootcert=/path/ca.pem"), "{unknown}");

    let (address, _) = upstream.split_once("?sslmode=").unwrap();
    for (mode, warning) in [("require", "postgres-unverified"), ("disable", "postgres-plain")] {
        let warned =
            trouble(&world, &to(&format!("{address}?sslmode={mode}")), "postgres.tls", warning).await;
        let verified = cure(&warned).split_whitespace().find(|word| word.starts_with("sslmode=")).unwrap();
        assert_eq!(format!("{address}?{}", verified.replace("/path/ca.pem", &ca_file)), upstream);
    }
    let is_old = world.servers.postgres.major() < 18;
    if is_old {
        let newest = to(&format!("{upstream}&min_protocol_version=3.2"));
        let refused = trouble(&world, &newest, "postgres.login", "protocol-version").await;
        assert!(cure(&refused).starts_with("take min_protocol_version and max_protocol_version out"));
    }

    let checked = check(&world, &to(&upstream), &[]).await;
    if is_old {
        checked.cured("postgres.login", "protocol-version");
    }
    for (name, fault) in [
        ("postgres.reach", "postgres-nothing-listens"),
        ("postgres.tls", "not-postgres"),
        ("postgres.tls", "postgres-ca-unknown"),
        ("postgres.tls", "postgres-unverified"),
        ("postgres.tls", "postgres-plain"),
    ] {
        checked.cured(name, fault);
    }
}
