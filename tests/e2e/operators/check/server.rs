//! Faults of a server as a whole: TLS on both sides, `pg_hba.conf`, how passwords are stored, no room, its stop.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Signal, getrlimit};

use super::user::User;
use super::{Patient, run};
use crate::support::Servers;
use crate::support::install::give;
use crate::support::pki::{Authority, Issued};
use crate::support::postgres::Postgres;
use crate::support::process::{Folder, freeze};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, until, until_without_session};

/// The server shows this certificate, which the CA file vouches for.
async fn show(postgres: &Postgres, shown: &Issued, ca: &str) {
    fs::write(postgres.ca_file(), ca).unwrap();
    postgres.write_data(&[("server.crt", &shown.certificate), ("server.key", &shown.key)]).await;
}

/// What a client shows, for libpq's keywords.
fn keywords(folder: &Path, name: &str, client: &Issued) -> String {
    let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    fs::write(&cert, &client.certificate).unwrap();
    fs::write(&key, &client.key).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&key, mode).unwrap();
    format!("sslcert={}&sslkey={}", cert.display(), key.display())
}

async fn patient(servers: &Servers) -> Patient<'_> {
    Patient::of(World::create(servers, WorldOptions { is_alone: true, ..WorldOptions::default() }).await)
}

#[tokio::test]
async fn tls_that_comes_to_nothing_on_either_side_is_told_with_what_helps() {
    let servers = Servers::start().await;
    let mut patient = patient(&servers).await;
    let postgres = &servers.postgres;
    let folder = patient.world.folder().to_owned();
    let well = patient.settings.clone();
    let with = |keywords: &str| well.replacen("?sslmode=", &format!("?{keywords}&sslmode="), 1);
    let step = "postgres.tls";

    postgres.set("ssl_max_protocol_version", "TLSv1.2").await;
    patient.settings = with("ssl_min_protocol_version=TLSv1.3");
    let cure = patient.finds(step, "postgres-tls-version").await;
    patient.run(&cure).await;
    // The reload that it prints, waited for.
    postgres.write_data(&[]).await;
    patient.cured(step, "postgres-tls-version").await;
    patient.settings.clone_from(&well);

    let ca = Authority::create();
    let good = ca.issue(&["localhost"]);
    let p521 = Issued {
        certificate: include_str!("../../../fixtures/servers/p521.pem").to_owned(),
        key: include_str!("../../../fixtures/servers/p521.key").to_owned(),
    };
    let of_p521 = p521.certificate.clone();
    for (shown, ca_pem, fault) in [
        (p521, of_p521, "postgres-tls-disagreed"),
        (ca.issue_to_client(&["localhost"]), ca.pem(), "postgres-certificate-unusable"),
        (ca.issue_for(&["localhost"], (2900, 2901)), ca.pem(), "postgres-certificate-too-early"),
    ] {
        show(postgres, &shown, &ca_pem).await;
        let cure = patient.finds(step, fault).await;
        assert!(!cure.is_empty());
        show(postgres, &good, &ca.pem()).await;
        patient.cured(step, fault).await;
    }

    // Lists of revoked certificates: one that has it, and one of another CA.
    show(postgres, &ca.issue_numbered(&["localhost"], Some(7)), &ca.pem()).await;
    let list = folder.join("crl.pem");
    patient.settings = with(&format!("sslcrl={}", list.display()));
    fs::write(&list, ca.revocation_list(&[7])).unwrap();
    let cure = patient.finds(step, "postgres-certificate-revoked").await;
    assert!(cure.starts_with("put a new certificate in the place of"), "{cure}");
    show(postgres, &ca.issue_numbered(&["localhost"], Some(8)), &ca.pem()).await;
    patient.cured(step, "postgres-certificate-revoked").await;
    fs::write(&list, Authority::create().revocation_list(&[])).unwrap();
    let cure = patient.finds(step, "revocation-list-unusable").await;
    assert!(cure.starts_with("put there a list of each CA"), "{cure}");
    fs::write(&list, ca.revocation_list(&[7])).unwrap();
    patient.cured(step, "revocation-list-unusable").await;

    // The client's: not asked for, of another CA, of another name.
    let clients = Authority::create();
    let known = keywords(&folder, "client", &clients.issue_to("pglease"));
    patient.settings = with(&format!("sslcertmode=require&{known}"));
    let cure = patient.finds(step, "client-certificate-not-asked").await;
    assert!(cure.starts_with("set ssl_ca_file"), "{cure}");
    postgres.write_data(&[("clients.pem", &clients.pem())]).await;
    postgres.set("ssl_ca_file", "clients.pem").await;
    patient.cured(step, "client-certificate-not-asked").await;
    patient.settings = with(&keywords(&folder, "stranger", &Authority::create().issue_to("pglease")));
    let cure = patient.finds("postgres.login", "postgres-client-certificate").await;
    assert!(cure.starts_with("set sslcert and sslkey"), "{cure}");
    patient.settings = with(&known);
    patient.cured("postgres.login", "postgres-client-certificate").await;
    postgres.write_hba("hostssl all +app_owner all scram-sha-256 clientcert=verify-full").await;
    postgres.write_data(&[]).await;
    let cure = patient.finds("postgres.login", "client-certificate-name").await;
    assert!(cure.contains("clientcert=verify-ca"), "{cure}");
    postgres.write_hba("hostssl all +app_owner all scram-sha-256 clientcert=verify-ca").await;
    postgres.write_data(&[]).await;
    patient.cured("postgres.login", "client-certificate-name").await;
}

#[tokio::test]
async fn server_that_asks_otherwise_is_full_or_stops_is_told_with_what_helps() {
    let user = User::of_postgresql();
    let sockets = Folder::create(user.uid);
    give(sockets.path(), user.uid);
    let directory = sockets.path().display().to_string();
    let servers = Servers::with(vec![
        ("unix_socket_directories", directory.clone()),
        ("unix_socket_permissions", "0000".to_owned()),
    ])
    .await;
    let mut patient = patient(&servers).await;
    let postgres = &servers.postgres;
    let url = postgres.url("app");
    let by_socket = |directory: &str| {
        let port = postgres.port();
        patient.settings.replace(&url, &format!("host={directory} port={port} dbname=app"))
    };
    let (nowhere, by_socket) = (by_socket("/nowhere"), by_socket(&directory));
    let checked = user.check(&patient, &nowhere).await;
    let step = checked.only_trouble("postgres.reach", "socket-missing");
    assert!(step["cure"].as_str().unwrap().contains("it is one of `unix_socket_directories`"), "{step}");
    let shown = postgres.query("postgres", "SHOW unix_socket_directories").await;
    assert_eq!(shown, [[Some(directory)]]);
    let checked = user.check(&patient, &by_socket).await;
    let step = checked.only_trouble("postgres.reach", "socket-forbidden");
    assert!(step["cure"].as_str().unwrap().contains("`unix_socket_permissions`"), "{step}");
    let login = "postgres.login";
    let rest = "host all postgres all scram-sha-256\nhost all vault_admin all scram-sha-256\n";
    let hba = async |line: &str| {
        postgres
            .write_data(&[("pg_hba.conf", &format!("{line}\n{rest}host all all all scram-sha-256"))])
            .await;
    };

    postgres.set("password_encryption", "md5").await;
    hba("hostssl all +app_owner all md5").await;
    let cure = patient.finds(login, "auth-method").await;
    patient.run(cure.lines().next().unwrap()).await;
    hba(cure.lines().nth(2).unwrap()).await;
    patient.cured(login, "auth-method").await;

    hba("hostssl all +app_owner all password").await;
    let cure = patient.finds(login, "auth-method").await;
    hba(cure.lines().nth(2).unwrap()).await;
    patient.cured(login, "auth-method").await;

    if postgres.major() >= 16 {
        postgres.set("scram_iterations", "1000000").await;
        let cure = patient.finds(login, "scram-rounds").await;
        patient.run(&cure).await;
        postgres.write_data(&[]).await;
        patient.cured(login, "scram-rounds").await;
    }

    // It hangs, and is woken.
    freeze(postgres.process().pid()).await;
    let cure = patient.finds("postgres.tls", "postgres-silent").await;
    assert!(cure.contains("look at the server"), "{cure}");
    postgres.process().signal(Signal::CONT);
    patient.cured("postgres.tls", "postgres-silent").await;

    roles_pile_up(&patient).await;

    may_not_make_a_process(&patient, postgres, &user).await;

    // Full, but for superusers; OpenBao has its connection already.
    for setting in ["unix_socket_permissions = '0777'", "max_connections = 20"] {
        postgres.query("postgres", &format!("ALTER SYSTEM SET {setting}")).await;
    }
    postgres.restart().await;
    // OpenBao's connection of before is gone, which it learns by using it.
    until(async || patient.check().await.step("vault.creds")["outcome"] == "passed").await;
    let checked = user.check(&patient, &by_socket).await;
    checked.cured("postgres.reach", "socket-missing");
    checked.cured("postgres.reach", "socket-forbidden");

    is_full(&mut patient, postgres).await;

    // Told to stop, it waits for those who are there.
    let waited_for = postgres.connect("app").await;
    let process = postgres.process();
    process.signal(Signal::TERM);
    let stopping = |lines: &[String]| {
        lines.iter().any(|line| line.contains("received smart shutdown request")).then_some(())
    };
    process.lines().wait_for(PATIENCE, stopping).await.unwrap();
    let cure = patient.finds(login, "server-starting").await;
    assert!(cure.starts_with("wait until it is up"), "{cure}");
    drop(waited_for);
    postgres.stop().await;
    postgres.start_again().await;
    until(async || patient.check().await.step("vault.creds")["outcome"] == "passed").await;
    patient.cured(login, "server-starting").await;
}

/// A server whose system lets it make no process more.
async fn may_not_make_a_process(patient: &Patient<'_>, postgres: &Postgres, user: &User) {
    let pid = postgres.process().pid().to_string();
    let limit = |processes: &str| {
        let arguments = ["--pid", &pid, &format!("--nproc={processes}:")];
        let limited = user.command("prlimit").args(arguments).status().unwrap();
        assert!(limited.success(), "{processes}");
    };
    let before = getrlimit(Resource::Nproc).current.map_or("unlimited".to_owned(), |all| all.to_string());
    limit("0");
    let cure = patient.finds("postgres.tls", "postgres-cannot-begin").await;
    assert_eq!(cure, "see the server's log");
    let said = |lines: &[String]| {
        lines.iter().any(|line| line.contains("could not fork new process for connection")).then_some(())
    };
    postgres.process().lines().wait_for(PATIENCE, said).await.unwrap();
    limit(&before);
    patient.cured("postgres.tls", "postgres-cannot-begin").await;
}

/// A server for 20, of which others have many, and then all.
async fn is_full(patient: &mut Patient<'_>, postgres: &Postgres) {
    let leased = patient.world.lease("db-app").await;
    let session = async || postgres.connect_as("app", &leased.user, &leased.password).await;
    let well = patient.settings.clone();
    patient.settings = well.replacen("[listen]\n", "[listen]\nmax_sessions = 9\n", 1);
    let mut held = Vec::new();
    while held.len() < 8 {
        held.push(session().await.unwrap());
    }
    let cure = patient.finds("postgres.connections", "server-busy").await;
    let superuser = postgres.connect("app").await;
    run(&superuser, &cure).await;
    held.clear();
    until_without_session(&superuser, &leased.user).await;
    patient.cured("postgres.connections", "server-busy").await;
    patient.settings = well;
    while let Ok(session) = session().await {
        held.push(session);
    }
    let cure = patient.finds("postgres.login", "server-full").await;
    run(&superuser, &cure).await;
    drop((held, superuser));
    postgres.restart().await;
    until(async || patient.check().await.step("vault.creds")["outcome"] == "passed").await;
    patient.cured("postgres.login", "server-full").await;
}

/// Roles that nobody drops, until the reaper is there.
async fn roles_pile_up(patient: &Patient<'_>) {
    let superuser = &patient.world.superuser;
    // As OpenBao's user makes them.
    let making = "SET ROLE vault_admin;
         DO $$ BEGIN FOR i IN 1..100 LOOP
             EXECUTE format('CREATE ROLE %I NOLOGIN IN ROLE app_owner',
                 'v-kubernet-db-app-Abcdefghij0123456789-' || 1700000000 + i);
         END LOOP; END $$;
         RESET ROLE";
    superuser.batch_execute(making).await.unwrap();
    let cure = patient.finds("postgres.stale_roles", "roles-pile-up").await;
    for line in cure.lines().filter(|line| !line.starts_with("--")) {
        let sql = if line == "\\i deploy/postgres/reaper.sql" { REAPER } else { line };
        superuser.batch_execute(sql).await.unwrap();
    }
    patient.cured("postgres.stale_roles", "roles-pile-up").await;
}

const REAPER: &str = include_str!("../../../../deploy/postgres/reaper.sql");
