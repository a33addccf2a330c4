//! What answers at a host and is no PostgreSQL, or hides what is behind it.

use std::fs;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::Patient;
use super::front::{Does, Front, acceptor};
use crate::check::check;
use crate::impostor::{Attack, OK, WRONG, attack};
use crate::support::pki::Authority;
use crate::support::world::{World, WorldOptions};

/// What a cure comes to.
enum Mended<'a> {
    /// The route leads to the server itself.
    ByThePort,
    /// The route gets these keywords instead.
    ByKeywords(&'a str),
    /// Who stands there passes on to the server.
    Behind,
}

#[tokio::test]
async fn who_is_no_postgresql_or_hides_it_is_told_apart_and_what_is_printed_leads_to_the_server() {
    let mut patient = Patient::new().await;
    let (without_route, vault_path) = (patient.world.settings(), patient.world.vault_path("db-app"));
    let postgres = &patient.world.servers.postgres;
    let (server, database) = (postgres.port(), patient.world.database());
    let authority = Authority::create();
    let ca_file = patient.world.folder().join("both.pem");
    fs::write(&ca_file, authority.pem() + &fs::read_to_string(postgres.ca_file()).unwrap()).unwrap();
    let acceptor = acceptor(&authority.issue(&["localhost"]));
    let end_tls = |at_once| Does::EndTls { acceptor: acceptor.clone(), at_once, port: server };

    let plain = "sslmode=disable".to_owned();
    let tls = format!("sslmode=verify-full&sslrootcert={}", ca_file.display());
    let (direct, bound) = (format!("sslnegotiation=direct&{tls}"), format!("channel_binding=require&{tls}"));
    let preferred = bound.replace("=require", "=prefer");
    let of_route = |port: u16, keywords: &str| {
        let upstream = format!("postgresql://localhost:{port}/{database}?{keywords}");
        format!("{without_route}[[route]]\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n")
    };
    let (port, see_log) = ("correct host and port", "see the log of what answers at this address");
    for (does, keywords, name, fault, cure, mended) in [
        (
            end_tls(true),
            &tls,
            "postgres.tls",
            "tls-at-once",
            "sslnegotiation=direct",
            Mended::ByKeywords(&direct),
        ),
        (Does::Say(b"H"), &tls, "postgres.tls", "not-postgres", port, Mended::ByThePort),
        (Does::Say(b""), &tls, "postgres.tls", "postgres-handshake-broken", see_log, Mended::Behind),
        (
            end_tls(false),
            &bound,
            "postgres.login",
            "binding-not-offered",
            "channel_binding=prefer",
            Mended::ByKeywords(&preferred),
        ),
        (
            Does::ProveNothing,
            &plain,
            "postgres.login",
            "server-not-proven",
            "find out who answers at this address",
            Mended::ByThePort,
        ),
        (
            Does::Say(b""),
            &plain,
            "postgres.login",
            "login-broken",
            "see the server's log, and that of what is in between",
            Mended::Behind,
        ),
        (Does::Say(NO_HTTP), &plain, "postgres.login", "protocol-unknown", port, Mended::ByThePort),
        (
            Does::Say(NO_SUCH_USER),
            &plain,
            "postgres.login",
            "pooler-refuses-startup",
            "connect to PostgreSQL itself",
            Mended::ByThePort,
        ),
    ] {
        let front = Front::that(does).await;
        patient.settings = of_route(front.port(), keywords);
        let said = patient.finds(name, fault).await;
        assert!(said.contains(cure), "{cure}: {said}");
        match mended {
            Mended::ByThePort => patient.settings = of_route(server, keywords),
            Mended::ByKeywords(keywords) => patient.settings = of_route(front.port(), keywords),
            Mended::Behind => front.now(Does::PassOn(server)),
        }
        patient.cured(name, fault).await;
    }
}

const NO_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\r\n";
const NO_SUCH_USER: &[u8] = b"E\0\0\0\x28SFATAL\0VFATAL\0C08P01\0Mno such user\0\0";

/// Case C47, of `check`: nothing that a false server does is a login, each is told of by its name, and nothing is held
/// against the credential.
#[tokio::test]
async fn case_c47_false_server_is_not_trusted_by_a_check_and_costs_no_credential() {
    const NOT_PROVEN: [&str; 3] = ["server-not-proven"; 3];
    const OTHER_METHOD: [&str; 3] = ["auth-method"; 3];
    const TOO_MANY: [&str; 3] = ["scram-rounds"; 3];
    let world = World::shared(WorldOptions::default()).await;
    let authority = Authority::create();
    let acceptor = acceptor(&authority.issue(&["localhost"]));
    let ca_file = world.folder().join("impostor.pem");
    fs::write(&ca_file, authority.pem()).unwrap();
    let (vault_path, mut settings) = (world.vault_path("db-app"), world.settings());
    let (mut impostors, mut expected) = (JoinSet::new(), Vec::new());
    for (script, faults) in [
        (Attack::Ask(b"R\0\0\0\x08\0\0\0\x03"), &OTHER_METHOD[..]),
        (Attack::Ask(b"R\0\0\0\x0c\0\0\0\x05salt"), &OTHER_METHOD),
        (Attack::Ask(b"R\0\0\0\x0f\0\0\0\x0cv=abcde"), &NOT_PROVEN),
        (Attack::Continue("r=theirs,s=c2FsdA==,i=4096"), &NOT_PROVEN),
        (Attack::Continue("m=ext,r={}x,s=c2FsdA==,i=4096"), &NOT_PROVEN),
        (Attack::Continue("r={}x,s=c2FsdA==,i=2147483647"), &TOO_MANY),
        (Attack::Final(OK), &NOT_PROVEN),
        (Attack::Final(WRONG), &NOT_PROVEN),
        (Attack::Final(b"R\0\0\0\x0a\0\0\0\x0cv="), &NOT_PROVEN),
        (Attack::Final(b"R\0\0\0\x15\0\0\0\x0ce=other-error"), &NOT_PROVEN),
        (Attack::Final(b"R\0\0\0\x0b\0\0\0\x0br=x"), &NOT_PROVEN),
        // Where nothing is asked, `none` of require_auth and a binding that is not required let it pass.
        (Attack::Ask(OK), &["not-bound"]),
        (Attack::Ask(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"), &["binding-not-offered"]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = acceptor.clone();
        impostors.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // The check hangs up on it, and closes its first connections unused.
                let _ = attack(stream, &acceptor, script).await;
            }
        });
        for (binding, fault) in ["require", "prefer", "disable"].iter().zip(faults.iter().rev()) {
            let upstream = format!(
                "postgresql://localhost:{port}/x?hostaddr=127.0.0.1&channel_binding={binding}&sslrootcert={}",
                ca_file.display()
            );
            let database = format!("database = \"x{}\"", expected.len());
            let route =
                format!("[[route]]\n{database}\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n");
            settings += &route;
            expected.push((format!("localhost:{port}"), *fault, format!("{script:?} {binding}")));
        }
    }
    let checked = check(&world, &settings, &[]).await;
    let logins: Vec<_> = checked.steps().iter().filter(|step| step["name"] == "postgres.login").collect();
    assert_eq!(logins.len(), expected.len(), "{:#}", checked.document);
    for (login, (host, fault, what)) in logins.iter().zip(&expected) {
        let said = (login["subject"].as_str().unwrap(), login["fault"].as_str().unwrap_or_default());
        assert_eq!(said, (host.as_str(), *fault), "{what}: {login:#}");
    }
    assert!(impostors.try_join_next().is_none(), "one has met what it did not expect");
    assert_eq!(world.leased_roles().await.len(), 1);
    assert_eq!(checked.step("vault.revoke")["outcome"], "passed");
}
