//! Faults of a server as a whole: TLS on both sides, `pg_hba.conf`, how passwords are stored, no room, its stop.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use super::Patient;
use crate::support::Servers;
use crate::support::pki::{Authority, Issued};
use crate::support::postgres::Postgres;
use crate::support::process::freeze;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, until};

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
    patient.is_well(step).await;
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
        patient.is_well(step).await;
    }

    // Lists of revoked certificates: with it, without it, of another CA.
    show(postgres, &ca.issue_numbered(&["localhost"], Some(7)), &ca.pem()).await;
    let list = folder.join("crl.pem");
    patient.settings = with(&format!("sslcrl={}", list.display()));
    for (text, fault) in [
        (ca.revocation_list(&[7]), "postgres-certificate-revoked"),
        (Authority::create().revocation_list(&[]), "revocation-list-unusable"),
    ] {
        fs::write(&list, text).unwrap();
        patient.finds(step, fault).await;
        fs::write(&list, ca.revocation_list(&[])).unwrap();
        patient.is_well(step).await;
    }

    // The client's: not asked for, of another CA, of another name.
    let clients = Authority::create();
    let known = keywords(&folder, "client", &clients.issue_to("pglease"));
    patient.settings = with(&format!("sslcertmode=require&{known}"));
    let cure = patient.finds(step, "client-certificate-not-asked").await;
    assert!(cure.starts_with("set ssl_ca_file"), "{cure}");
    postgres.write_data(&[("clients.pem", &clients.pem())]).await;
    postgres.set("ssl_ca_file", "clients.pem").await;
    patient.is_well(step).await;
    patient.settings = with(&keywords(&folder, "stranger", &Authority::create().issue_to("pglease")));
    let cure = patient.finds("postgres.login", "postgres-client-certificate").await;
    assert!(cure.starts_with("set sslcert and sslkey"), "{cure}");
    patient.settings = with(&known);
    patient.is_well("postgres.login").await;
    postgres.write_hba("hostssl all +app_owner all scram-sha-256 clientcert=verify-full").await;
    postgres.write_data(&[]).await;
    let cure = patient.finds("postgres.login", "client-certificate-name").await;
    assert!(cure.contains("clientcert=verify-ca"), "{cure}");
    postgres.write_hba("hostssl all +app_owner all scram-sha-256 clientcert=verify-ca").await;
    postgres.write_data(&[]).await;
    patient.is_well("postgres.login").await;
}

#[tokio::test]
async fn server_that_asks_otherwise_is_full_or_stops_is_told_with_what_helps() {
    let servers = Servers::start().await;
    let patient = patient(&servers).await;
    let postgres = &servers.postgres;
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
    patient.is_well(login).await;

    hba("hostssl all +app_owner all password").await;
    let cure = patient.finds(login, "auth-method").await;
    hba(cure.lines().nth(2).unwrap()).await;
    patient.is_well(login).await;

    if postgres.major() >= 16 {
        postgres.set("scram_iterations", "1000000").await;
        let cure = patient.finds(login, "scram-rounds").await;
        patient.run(&cure).await;
        postgres.write_data(&[]).await;
        patient.is_well(login).await;
    }

    // It hangs, and is woken.
    freeze(postgres.process().pid()).await;
    let cure = patient.finds("postgres.tls", "postgres-silent").await;
    assert!(cure.contains("look at the server"), "{cure}");
    postgres.process().signal(Signal::CONT);
    patient.is_well(login).await;

    // Full, but for superusers; OpenBao has its connection already.
    patient.world.superuser.batch_execute("ALTER SYSTEM SET max_connections = 20").await.unwrap();
    postgres.restart().await;
    // OpenBao's connection of before is gone, which it learns by using it.
    until(async || patient.check().await.step("vault.creds")["outcome"] == "passed").await;
    let leased = patient.world.lease("db-app").await;
    let mut held = Vec::new();
    while let Ok(session) = postgres.connect_as("app", &leased.user, &leased.password).await {
        held.push(session);
    }
    let cure = patient.finds(login, "server-full").await;
    let superuser = postgres.connect("app").await;
    let lines: Vec<_> = cure.lines().filter(|line| !line.starts_with("--")).collect();
    for statement in lines.join("\n").split_inclusive(';') {
        superuser.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    drop((held, superuser));
    postgres.restart().await;
    until(async || patient.check().await.step("vault.creds")["outcome"] == "passed").await;
    patient.is_well(login).await;

    // Told to stop, it waits for those who are there.
    let waited_for = postgres.connect("app").await;
    let process = postgres.process();
    process.signal(Signal::TERM);
    let stopping = |lines: &[String]| {
        lines.iter().any(|line| line.contains("received smart shutdown request")).then_some(())
    };
    process.lines().wait_for(PATIENCE, stopping).await.unwrap();
    patient.finds(login, "server-starting").await;
    drop(waited_for);
    postgres.stop().await;
    postgres.start_again().await;
    until(async || patient.check().await.step("vault.creds")["outcome"] == "passed").await;
    patient.is_well(login).await;
}
