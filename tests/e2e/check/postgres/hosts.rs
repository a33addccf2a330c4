//! Servers of one's own: their `pg_hba.conf`, their certificates, a standby that is behind.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use super::{as_owner, cure, cured, found, run, settings_for, step, step_of, trouble};
use crate::check::check;
use crate::support::Servers;
use crate::support::pki::{Authority, Issued, self_signed};
use crate::support::postgres::Postgres;
use crate::support::world::{World, WorldOptions};
use crate::until;

/// The server shows this certificate, which a CA file vouches for.
async fn show(postgres: &Postgres, shown: &Issued, ca: &str) {
    fs::write(postgres.ca_file(), ca).unwrap();
    postgres.write_data(&[("server.crt", &shown.certificate), ("server.key", &shown.key)]).await;
}

fn with_binding(settings: &str) -> String {
    settings.replace("sslmode=verify-full", "channel_binding=require&sslmode=verify-full")
}

#[tokio::test]
async fn server_that_does_not_let_us_in_is_opened_by_the_lines_that_are_printed() {
    let servers = Servers::start().await;
    let postgres = &servers.postgres;
    let world = World::create(&servers, WorldOptions { is_alone: true, ..WorldOptions::default() }).await;
    let settings = as_owner(&world);
    let rest = "host all postgres all scram-sha-256\nhost all vault_admin all scram-sha-256\n";
    let set = async |lines: &str| postgres.write_data(&[("pg_hba.conf", &format!("{lines}\n{rest}"))]).await;

    set("").await;
    let refused = trouble(&world, &settings, "postgres.login", "pg-hba").await;
    let line = cure(&refused).lines().nth(1).unwrap().to_owned();
    assert!(line.starts_with("hostssl app all "), "{refused}");
    set(&line).await;
    cured(&world, &settings, "postgres.login", "pg-hba").await;

    set(&line.replace("scram-sha-256", "trust")).await;
    if postgres.major() >= 16 {
        let warned = trouble(&world, &settings, "postgres.login", "trust").await;
        assert!(found(&warned).contains("without a password"), "{warned}");
    }
    let strict = settings.replace("sslmode=", "require_auth=scram-sha-256&sslmode=");
    let refused = trouble(&world, &strict, "postgres.login", "auth-trust").await;
    assert_eq!(cure(&refused).lines().nth(1).unwrap(), line);
    // C47: where binding is required, none of that is a login.
    let refused = trouble(&world, &with_binding(&settings), "postgres.login", "not-bound").await;
    assert!(refused["cause"].as_str().unwrap().contains("channel_binding=require"), "{refused}");
    set(cure(&refused).lines().nth(1).unwrap()).await;
    let checked = check(&world, &with_binding(&strict), &[]).await;
    checked.cured("postgres.login", "auth-trust");
    checked.cured("postgres.login", "not-bound");

    let seeing = "GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO app_rw;\nGRANT SELECT ON pg_hba_file_rules TO app_rw;";
    run(&world, seeing).await;
    set(&format!("{line}\nhost all all all nonsense")).await;
    let warned = trouble(&world, &settings, "postgres.pg_hba", "pg-hba-unreadable").await;
    assert!(found(&warned).starts_with("line 2 of pg_hba.conf"), "{warned}");
    set(&line).await;
    let checked = check(&world, &settings, &[]).await;
    checked.cured("postgres.pg_hba", "pg-hba-unreadable");
    if postgres.major() >= 16 {
        checked.cured("postgres.login", "trust");
    }
}

#[tokio::test]
async fn certificate_of_a_server_is_judged_and_another_one_helps() {
    let servers = Servers::start().await;
    let postgres = &servers.postgres;
    let world = World::create(&servers, WorldOptions { is_alone: true, ..WorldOptions::default() }).await;
    let ca = Authority::create();
    let settings = as_owner(&world);

    show(postgres, &ca.issue(&["pg.internal"]), &ca.pem()).await;
    let other = trouble(&world, &settings, "postgres.tls", "postgres-certificate-name").await;
    assert!(other["cause"].as_str().unwrap().contains("is for pg.internal"), "{other}");
    let named = settings.replace("//localhost:", "//pg.internal:").replace("?ssl", "?hostaddr=127.0.0.1&ssl");
    cured(&world, &named, "postgres.tls", "postgres-certificate-name").await;

    show(postgres, &ca.issue_for(&["localhost"], (2001, 2002)), &ca.pem()).await;
    let expired = trouble(&world, &settings, "postgres.tls", "postgres-certificate-expired").await;
    assert!(cure(&expired).ends_with("SELECT pg_reload_conf();"), "{expired}");
    show(postgres, &ca.issue_living(&["localhost"], Duration::from_hours(24)), &ca.pem()).await;
    trouble(&world, &settings, "postgres.tls", "postgres-certificate-ends-soon").await;
    show(postgres, &ca.issue(&["localhost"]), &ca.pem()).await;
    let checked = check(&world, &settings, &[]).await;
    checked.cured("postgres.tls", "postgres-certificate-expired");
    checked.cured("postgres.tls", "postgres-certificate-ends-soon");

    // C47: nothing to bind to.
    let unbound = Issued {
        certificate: include_str!("../../../fixtures/servers/ed25519.pem").to_owned(),
        key: include_str!("../../../fixtures/servers/ed25519.key").to_owned(),
    };
    show(postgres, &unbound, &unbound.certificate).await;
    let warned = trouble(&world, &settings, "postgres.tls", "postgres-unbound").await;
    assert!(cure(&warned).contains("RSA or ECDSA"), "{warned}");
    let refused = trouble(&world, &with_binding(&settings), "postgres.tls", "nothing-to-bind-to").await;
    assert!(cure(&refused).contains("RSA or ECDSA"), "{refused}");
    let bound = self_signed(&rcgen::PKCS_ECDSA_P256_SHA256);
    show(postgres, &bound, &bound.certificate).await;
    let checked = check(&world, &with_binding(&settings), &[]).await;
    checked.cured("postgres.tls", "postgres-unbound");
    checked.cured("postgres.tls", "nothing-to-bind-to");

    postgres.set("ssl", "off").await;
    let plain = trouble(&world, &settings, "postgres.tls", "postgres-no-tls").await;
    run(&world, cure(&plain).lines().find(|line| line.contains("ssl = on")).unwrap()).await;
    // The reload that it prints, and waits for.
    postgres.write_data(&[]).await;
    cured(&world, &settings, "postgres.tls", "postgres-no-tls").await;
}

#[tokio::test]
async fn standby_that_is_behind_is_told_of_by_itself_and_the_host_that_serves_is_named() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions { is_alone: true, ..WorldOptions::default() }).await;
    let standby = servers.postgres.standby().await;
    let (primary, behind) =
        (format!("localhost:{}", servers.postgres.port()), format!("localhost:{}", standby.port()));
    let at = |hosts: &str, wanted: &str| {
        let upstream = servers.postgres.url("app").replace(&primary, hosts);
        let upstream = upstream.replace('?', &format!("?target_session_attrs={wanted}&"));
        let route =
            format!("[[route]]\nupstream = {upstream:?}\nvault_path = {:?}\n", world.vault_path("db-app"));
        settings_for(&world, &(route + "startup_role = \"app_owner\"\n"))
    };
    let both = format!("{behind},{primary}");

    // A role is there a moment later. It is waited for, on a busy machine not for long enough.
    let settled = async |settings: &str| {
        let mut checked = check(&world, settings, &[]).await;
        until(async || {
            let logged_in = checked.failed().is_empty();
            if !logged_in {
                checked = check(&world, settings, &[]).await;
            }
            logged_in
        })
        .await;
        checked
    };
    let checked = settled(&at(&both, "primary")).await;
    let choice = step_of(&checked, "postgres.choice", "passed");
    assert!(found(&choice).starts_with(&format!("{primary} serves")), "{choice}");
    let is_login = |step: &&serde_json::Value| step["name"] == "postgres.login";
    let kinds: Vec<_> = checked.steps().iter().filter(is_login).map(found).collect();
    assert!(kinds[0].contains("standby") && kinds[1].contains("primary"), "{kinds:?}");
    // In any order, it is the one that is wanted all the same.
    let balanced = at(&both, "primary").replace('?', "?load_balance_hosts=random&");
    let checked = settled(&balanced).await;
    let choice = step_of(&checked, "postgres.choice", "passed");
    let says = format!("{primary} serves this time: load_balance_hosts=random takes them in any order");
    assert!(found(&choice).starts_with(&says), "{choice}");
    let logins: BTreeSet<_> =
        checked.steps().iter().filter(is_login).map(|step| step["subject"].as_str()).collect();
    assert_eq!(logins, BTreeSet::from([Some(&*behind), Some(&*primary)]));
    let checked = settled(&at(&both, "standby")).await;
    let choice = step_of(&checked, "postgres.choice", "passed");
    assert!(found(&choice).starts_with(&format!("{behind} serves")), "{choice}");
    assert!(found(&step_of(&checked, "postgres.ownership", "skipped")).contains("read-only"));
    let unfit = trouble(&world, &at(&primary, "standby"), "postgres.choice", "no-host-of-that-kind").await;
    assert!(cure(&unfit).contains("target_session_attrs=any"), "{unfit}");
    step(&world, &at(&primary, "any"), "postgres.login", "passed").await;

    standby.query("postgres", "SELECT pg_wal_replay_pause()").await;
    let late = trouble(&world, &at(&both, "any"), "postgres.login", "role-unknown-here").await;
    assert_eq!(late["subject"], behind, "{late}");
    let lag: Vec<_> = cure(&late).lines().skip(1).take(2).collect();
    assert_eq!(servers.postgres.query("postgres", &lag.join(" ")).await.len(), 1);
    standby.query("postgres", "SELECT pg_wal_replay_resume()").await;
    let checked = settled(&at(&both, "any")).await;
    checked.cured("postgres.login", "role-unknown-here");
    // Asking for any, of one host, is no choice.
    checked.cured("postgres.choice", "no-host-of-that-kind");
}
