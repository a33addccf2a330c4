//! What answers at a host and is no PostgreSQL, or hides what is behind it.

use std::fs;

use super::Patient;
use super::front::{Does, Front, acceptor};
use crate::support::pki::Authority;

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
