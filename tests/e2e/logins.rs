//! How pglease logs in to real servers: by which method, over which TLS, with which certificates on either side.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::support::Servers;
use crate::support::pglease::Pglease;
use crate::support::pki::{Authority, Issued, self_signed};
use crate::support::postgres::Database;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{pglease_with, until};

/// Routes to one server, each for the database of its own name.
struct Routes<'a> {
    world: &'a World<'a>,
    settings: String,
}

impl<'a> Routes<'a> {
    /// With one that clients take who ask for the database `plain`, and that is proven at.
    fn new(world: &'a World<'a>, vault_role: &str) -> Self {
        let mut routes = Self { world, settings: world.settings() };
        let ca_file = world.servers.postgres.ca_file();
        routes.write("plain", "localhost", &format!("sslrootcert={}", ca_file.display()), vault_role);
        routes
    }

    fn write(&mut self, name: &str, host: &str, keywords: &str, vault_role: &str) {
        let (port, database) = (self.world.servers.postgres.port(), self.world.database());
        let upstream = format!("host={host} port={port} dbname={database} {keywords}");
        let vault_path = self.world.vault_path(vault_role);
        let route =
            format!("[[route]]\ndatabase = {name:?}\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n");
        self.settings += &route;
    }

    /// One that nobody waits for.
    fn add(&mut self, name: &str, keywords: &str) {
        self.add_at(name, "localhost", keywords);
    }

    fn add_at(&mut self, name: &str, host: &str, keywords: &str) {
        self.write(name, host, keywords, "db-app");
        self.settings += "optional = true\n";
    }
}

/// Whether TLS was done, and by which version, as the session's server says.
async fn tls_version(session: &Database) -> String {
    let sql = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    session.query_one(sql, &[]).await.unwrap().get(0)
}

/// Why the last session did not begin, which its client was told as 08001.
async fn refusal(pglease: &Pglease, database: &str) -> String {
    let seen = pglease.logged("session.refused").await.len();
    let refused = pglease.connect(database).await.err().expect(database);
    assert_eq!(refused.code(), Some(&SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION), "{refused:?}");
    let event = pglease.wait_for_events("session.refused", seen + 1, crate::PATIENCE).await;
    event["error"].as_str().unwrap().to_owned()
}

async fn assert_refused(pglease: &Pglease, database: &str, said: &str) {
    let error = refusal(pglease, database).await;
    assert!(error.contains(said), "{database}: {error}");
}

async fn assert_served(pglease: &Pglease, databases: &[&str]) {
    for database in databases {
        let session = pglease.connect(database).await.unwrap_or_else(|error| {
            panic!("{database}: {error:?}, {:?}", pglease.events("session.refused").last())
        });
        session.batch_execute("SELECT 1").await.unwrap();
    }
}

/// Has what sleeps cancelled.
async fn assert_cancels(world: &World<'_>, pglease: &Pglease, database: &str) {
    let session = pglease.connect(database).await.unwrap();
    let cancel = session.cancel_token();
    let sleep = format!("SELECT pg_sleep(600) AS {database}");
    let sleeping = session.batch_execute(&sleep);
    let cancelling = async {
        let sql = format!("SELECT 1 FROM pg_stat_activity WHERE query = '{sleep}' AND state = 'active'");
        until(async || !world.superuser.rows(&sql).await.is_empty()).await;
        cancel.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleeping, cancelling);
    assert_eq!(slept.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
}

/// Puts a file in the place of the one that is there, as an operator or the kubelet does.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(next, path).unwrap();
}

#[tokio::test]
async fn tls_is_done_as_the_keywords_say_and_by_the_files_of_now() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let postgres = &servers.postgres;
    let file = |name: &str| world.folder().join(name);
    let (authority, clients) = (Authority::create(), Authority::create());
    let server = authority.issue_numbered(&["localhost"], Some(7));
    replace(&file("ca.pem"), &authority.pem());
    replace(&file("crl.pem"), &authority.revocation_list(&[]));
    let client = clients.issue_to("pglease");
    replace(&file("client.pem"), &client.certificate);
    replace(&file("client.key"), &client.key);
    postgres.write_data(&[("server.crt", &server.certificate), ("server.key", &server.key)]).await;

    let ca = format!("sslrootcert={}", file("ca.pem").display());
    let shown =
        format!("{ca} sslcert={} sslkey={}", file("client.pem").display(), file("client.key").display());
    let mut routes = Routes::new(&world, "db-app");
    routes.settings = routes
        .settings
        .replace(&postgres.ca_file().display().to_string(), &file("ca.pem").display().to_string());
    routes.add_at("wrong_name", "other.example hostaddr=127.0.0.1", &ca);
    routes.add_at("any_name", "other.example hostaddr=127.0.0.1", &format!("{ca} sslmode=verify-ca"));
    routes.add("no_sni", &format!("{ca} sslsni=0"));
    routes.add("old", &format!("{ca} ssl_max_protocol_version=TLSv1.2"));
    routes.add("new", &format!("{ca} ssl_min_protocol_version=TLSv1.3"));
    routes.add("direct", &format!("{ca} sslnegotiation=direct channel_binding=require"));
    routes.add("revocable", &format!("{ca} sslcrl={}", file("crl.pem").display()));
    routes.add("must_ask", &format!("{shown} sslcertmode=require"));
    routes.add("latest", &format!("{ca} max_protocol_version=latest"));
    routes.add("newest", &format!("{ca} min_protocol_version=3.2"));
    let pglease = pglease_with(&routes.settings).await;

    assert_served(&pglease, &["plain", "any_name", "no_sni", "revocable", "latest"]).await;
    assert_refused(&pglease, "wrong_name", "not valid for name").await;
    assert_eq!(tls_version(&pglease.connect("old").await.unwrap()).await, "TLSv1.2");
    assert_eq!(tls_version(&pglease.connect("new").await.unwrap()).await, "TLSv1.3");
    assert_cancels(&world, &pglease, "latest").await;
    if postgres.major() >= 18 {
        assert_served(&pglease, &["newest"]).await;
    } else {
        assert_refused(&pglease, "newest", "protocol 3.0 is the newest that upstream speaks").await;
    }
    if postgres.major() >= 17 {
        assert_cancels(&world, &pglease, "direct").await;
    } else {
        assert_refused(&pglease, "direct", "before PostgreSQL 17").await;
    }

    // A server that wants less than we do.
    postgres.set("ssl_max_protocol_version", "TLSv1.2").await;
    assert_refused(&pglease, "new", "TLS handshake with upstream failed").await;
    assert_served(&pglease, &["plain"]).await;
    postgres.set("ssl_max_protocol_version", "").await;

    // The client's certificate: not asked for, asked for, replaced by one that will not do, and by a good one.
    assert_refused(&pglease, "must_ask", "sslcertmode=require").await;
    postgres.write_data(&[("clients.pem", &clients.pem())]).await;
    postgres.set("ssl_ca_file", "clients.pem").await;
    assert_served(&pglease, &["must_ask", "plain"]).await;
    fs::set_permissions(file("client.key"), fs::Permissions::from_mode(0o644)).unwrap();
    replace(&file("client.pem"), "broken");
    // Who logs in has the files looked at, once a second.
    until(async || {
        assert_served(&pglease, &["must_ask"]).await;
        !pglease.events("upstream.tls_reload_failed").is_empty()
    })
    .await;
    let failed = pglease.wait_for_event("upstream.tls_reload_failed", crate::PATIENCE).await;
    assert!(failed["error"].as_str().unwrap().contains("others may read the key"), "{failed}");
    let stranger = Authority::create().issue_to("pglease");
    replace(&file("client.pem"), &stranger.certificate);
    replace(&file("client.key"), &stranger.key);
    until(async || pglease.connect("must_ask").await.is_err()).await;
    until(async || {
        refusal(&pglease, "must_ask").await;
        let verdict = pglease.status().await["verdict"].clone();
        let is_ours = |finding: &Value| {
            finding["fault"] == "settings"
                && finding["says"].as_str().unwrap().contains("did not take pglease's certificate")
        };
        verdict.as_array().unwrap().iter().any(is_ours)
    })
    .await;
    pglease.wait_for_event("upstream.tls_reloaded", crate::PATIENCE).await;
    let next = clients.issue_to("pglease");
    replace(&file("client.pem"), &next.certificate);
    replace(&file("client.key"), &next.key);
    until(async || pglease.connect("must_ask").await.is_ok()).await;
    assert_served(&pglease, &["must_ask"]).await;

    // The server's certificate is revoked, and then replaced.
    replace(&file("crl.pem"), &authority.revocation_list(&[7]));
    until(async || pglease.connect("revocable").await.is_err()).await;
    assert_refused(&pglease, "revocable", "Revoked").await;
    assert_served(&pglease, &["plain"]).await;
    let server = authority.issue_numbered(&["localhost"], Some(8));
    postgres.write_data(&[("server.crt", &server.certificate), ("server.key", &server.key)]).await;
    assert_served(&pglease, &["revocable"]).await;

    // The CA is another: first the server has it, then we.
    let other = Authority::create();
    let server = other.issue(&["localhost"]);
    postgres.write_data(&[("server.crt", &server.certificate), ("server.key", &server.key)]).await;
    assert_refused(&pglease, "plain", "invalid peer certificate").await;
    replace(&file("ca.pem"), &(authority.pem() + &other.pem()));
    until(async || pglease.connect("plain").await.is_ok()).await;
    assert_served(&pglease, &["plain"]).await;
    assert_eq!(world.leased_roles().await.len(), 1, "none of it was held against the credential");
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Good {
    /// Verified and bound.
    Bound,
    /// Verified, without a hash to bind to.
    Unbound,
    /// TLS cannot be done with it.
    Nothing,
}

fn fixture(certificate: &str, key: &str) -> Issued {
    Issued { certificate: certificate.to_owned(), key: key.to_owned() }
}

/// Case C50.
#[tokio::test]
async fn case_c50_logins_are_bound_to_certificates_of_every_kind_that_can_be() {
    const RSA: &str = include_str!("../fixtures/servers/rsa.key");
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let postgres = &servers.postgres;
    let ca_file = postgres.ca_file();
    let ca = format!("sslrootcert={}", ca_file.display());
    let mut routes = Routes::new(&world, "db-app");
    for binding in ["disable", "prefer", "require"] {
        routes.add(binding, &format!("{ca} channel_binding={binding}"));
    }
    routes.add("unverified", "sslmode=require channel_binding=require");
    let pglease = pglease_with(&routes.settings).await;

    for (kind, issued, good) in [
        ("ECDSA P-256", self_signed(&rcgen::PKCS_ECDSA_P256_SHA256), Good::Bound),
        ("ECDSA P-384", self_signed(&rcgen::PKCS_ECDSA_P384_SHA384), Good::Bound),
        ("RSA", fixture(include_str!("../fixtures/servers/rsa_sha256.pem"), RSA), Good::Bound),
        ("RSA, SHA-1", fixture(include_str!("../fixtures/servers/rsa_sha1.pem"), RSA), Good::Bound),
        ("PSS, SHA-256", fixture(include_str!("../fixtures/servers/rsa_pss_sha256.pem"), RSA), Good::Bound),
        ("PSS, SHA-384", fixture(include_str!("../fixtures/servers/rsa_pss_sha384.pem"), RSA), Good::Bound),
        ("PSS, SHA-512", fixture(include_str!("../fixtures/servers/rsa_pss_sha512.pem"), RSA), Good::Bound),
        (
            "PSS, long salt",
            fixture(include_str!("../fixtures/servers/rsa_pss_long_salt.pem"), RSA),
            Good::Bound,
        ),
        (
            "Ed25519",
            // OpenSSL 3.0 does not read the form of PKCS#8 that ring writes such a key in.
            fixture(
                include_str!("../fixtures/servers/ed25519.pem"),
                include_str!("../fixtures/servers/ed25519.key"),
            ),
            Good::Unbound,
        ),
        (
            "Ed448",
            fixture(
                include_str!("../fixtures/servers/ed448.pem"),
                include_str!("../fixtures/servers/ed448.key"),
            ),
            Good::Nothing,
        ),
        (
            "ECDSA P-521",
            fixture(
                include_str!("../fixtures/servers/p521.pem"),
                include_str!("../fixtures/servers/p521.key"),
            ),
            Good::Nothing,
        ),
        (
            "a key for PSS alone",
            fixture(
                include_str!("../fixtures/servers/rsa_pss_key.pem"),
                include_str!("../fixtures/servers/rsa_pss_key.key"),
            ),
            Good::Nothing,
        ),
    ] {
        postgres.write_data(&[("server.crt", &issued.certificate), ("server.key", &issued.key)]).await;
        replace(&ca_file, &issued.certificate);
        // Who logs in has the files looked at, once a second; each route has its own.
        let served = async |routes: &[&str]| {
            for route in routes {
                until(async || pglease.connect(route).await.is_ok()).await;
            }
            assert_served(&pglease, routes).await;
        };
        let refused = async |route: &str, said: &str| {
            until(async || {
                let error = refusal(&pglease, route).await;
                let is_of_before = error.contains("UnknownIssuer");
                assert!(is_of_before || error.contains(said), "{kind}, {route}: {error}");
                !is_of_before
            })
            .await;
        };
        match good {
            Good::Bound => served(&["disable", "prefer", "require", "unverified"]).await,
            Good::Unbound => {
                served(&["disable", "prefer", "prefer"]).await;
                refused("require", "signed with id-Ed25519").await;
                refused("unverified", "signed with id-Ed25519").await;
            }
            Good::Nothing => {
                for route in ["disable", "prefer", "require", "unverified"] {
                    refused(route, "no certificate that can be verified here").await;
                }
            }
        }
    }
    let said = pglease.logged("upstream.no_channel_binding").await;
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(world.leased_roles().await.len(), 1);
}

#[tokio::test]
async fn methods_are_used_where_require_auth_names_them() {
    let servers = Servers::start().await;
    // Hashed by the server that Vault creates the role at.
    let prelude = "SET LOCAL password_encryption = 'md5'; ";
    let vault_roles = vec![VaultRole { prelude, ..VaultRole::default() }];
    let world = World::create(&servers, WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let postgres = &servers.postgres;
    let file = |name: &str| world.folder().join(name);
    let clients = Authority::create();
    let client = clients.issue_to("pglease");
    replace(&file("client.pem"), &client.certificate);
    replace(&file("client.key"), &client.key);
    postgres.write_data(&[("clients.pem", &clients.pem())]).await;
    postgres.set("ssl_ca_file", "clients.pem").await;

    let ca = format!("sslrootcert={}", postgres.ca_file().display());
    let mut routes = Routes::new(&world, "db-app");
    routes.settings = routes.settings.replace("sslrootcert=", "require_auth=md5 sslrootcert=");
    routes.add("strict", &ca);
    routes.add("asked", &format!("{ca} require_auth=!none"));
    routes.add("clear", &format!("{ca} require_auth=password"));
    routes.add("bound", &format!("{ca} require_auth=scram-sha-256,md5,password channel_binding=require"));
    let shown =
        format!("{ca} sslcert={} sslkey={}", file("client.pem").display(), file("client.key").display());
    routes.add("shown", &shown);
    // Vault's own connection and the superuser's are without TLS.
    let write_hba = async |method: &str| {
        let plain = "host all all all scram-sha-256\n";
        let hba = format!("hostssl all all all {method}\n{plain}");
        let ident = world.living_roles().await.into_iter().map(|role| format!("any pglease {role}\n"));
        let ident: String = ident.collect();
        postgres.write_data(&[("pg_hba.conf", &hba), ("pg_ident.conf", &ident)]).await;
    };

    write_hba("md5").await;
    let pglease = pglease_with(&routes.settings).await;
    assert_served(&pglease, &["plain"]).await;
    assert_refused(&pglease, "strict", "asks for an MD5 password, and require_auth is scram-sha-256,none")
        .await;
    assert_refused(&pglease, "clear", "asks for an MD5 password, and require_auth is password").await;
    assert_refused(&pglease, "bound", "asks for an MD5 password, and channel binding is required").await;

    write_hba("password").await;
    assert_served(&pglease, &["clear"]).await;
    assert_refused(&pglease, "plain", "asks for the password in clear, and require_auth is md5").await;
    assert_refused(&pglease, "strict", "asks for the password in clear").await;
    assert_refused(&pglease, "bound", "and channel binding is required").await;

    write_hba("trust").await;
    assert_served(&pglease, &["strict"]).await;
    assert_refused(&pglease, "asked", "asks for nothing, and require_auth is scram-sha-256").await;
    assert_refused(&pglease, "bound", "asks for nothing, and channel binding is required").await;

    write_hba("cert map=any").await;
    assert_served(&pglease, &["shown"]).await;
    let rejects = pglease.metric("pglease_upstream_auth_rejects_total", "").await;
    assert_eq!((world.leased_roles().await.len(), rejects.to_string()), (1, "0".to_owned()));
}
