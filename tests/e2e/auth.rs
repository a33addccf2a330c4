//! How clients prove who they are.

mod answers;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    SignatureAlgorithm,
};
use rustix::process::geteuid;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;
use tokio_rustls::TlsConnector;

use answers::{LAST_ANSWERS, SCRAM, first_answers, initial, message};

use crate::raw::{Message, Raw, packet, startup};
use crate::support::pglease::Pglease;
use crate::support::postgres::{Database, Postgres};
use crate::support::process::Folder;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

const SECURITY: &str = include_str!("../../docs/security.md");

/// Runs the command of docs/security.md that writes a file of users, as the superuser.
async fn write_users(postgres: &Postgres, file: &Path, roles: &[&str]) {
    let (_, rest) = SECURITY.split_once("```sh\npsql ").unwrap();
    let (command, _) = rest.split_once("```").unwrap();
    let quoted = roles.iter().map(|role| format!("'{role}'")).collect::<Vec<_>>().join(", ");
    for part in ["/etc/pglease/users", "'app', 'reports'"] {
        assert!(command.contains(part), "{command}");
    }
    let command = command
        .replace("/etc/pglease/users", &file.display().to_string())
        .replace("'app', 'reports'", &quoted);

    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{}/psql {command}", postgres.bin().display())]).env_clear().envs([
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &postgres.port().to_string()),
        ("PGUSER", "postgres"),
        ("PGPASSWORD", "postgres"),
    ]);
    let output = spawn_blocking(move || shell.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Keys of `[listen]`.
fn by_password(file: &Path) -> String {
    let file = file.display().to_string();
    format!("auth = \"password\"\nauth_file = {file:?}")
}

/// pglease that lets in who has a password in `file`.
async fn pglease_asking(world: &World<'_>, file: &Path) -> Pglease {
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &by_password(file));
    pglease_with(&(settings + &world.route("db-app"))).await
}

async fn connect(pglease: &Pglease, user: &str, password: &str) -> Result<Database, Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("localhost").port(pglease.port()).dbname("app").user(user).password(password);
    Database::open(&config).await
}

#[track_caller]
fn assert_refused(refused: Result<Database, Error>, user: &str) {
    let error = refused.err().unwrap();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code(), &SqlState::INVALID_PASSWORD);
    assert_eq!(error.message(), format!("password authentication failed for user \"{user}\""));
    assert_eq!((error.severity(), error.detail(), error.hint()), ("FATAL", None, None));
}

/// What psql prints that is asked with this password and these further parts of a conninfo string.
async fn psql(world: &World<'_>, pglease: &Pglease, user: &str, password: &str, more: &str) -> String {
    let conninfo = format!("host=localhost port={} dbname=app user='{user}' {more}", pglease.port());
    let mut psql = Command::new(world.servers.postgres.bin().join("psql"));
    psql.args(["-XAtwc", "SELECT 'served'", &conninfo]).env_clear().env("PGPASSWORD", password);
    let output = spawn_blocking(move || psql.output().unwrap()).await.unwrap();
    [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat()
}

#[tokio::test]
async fn users_of_pg_authid_get_in_with_their_passwords_and_nobody_else_does() {
    let world = World::shared(WorldOptions::default()).await;
    let (ann, bob) = (world.group("ann"), format!("{} \"B\"", world.group("bob")));
    let sql = format!(
        "CREATE ROLE \"{ann}\" PASSWORD 'one secret'; CREATE ROLE \"{}\" PASSWORD 'other secret'",
        bob.replace('"', "\"\"")
    );
    world.superuser.batch_execute(&sql).await.unwrap();
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&ann, &bob]).await;
    let pglease = pglease_asking(&world, &file).await;

    for (user, password) in [(&ann, "one secret"), (&bob, "other secret")] {
        let session = connect(&pglease, user, password).await.unwrap();
        let session_user = crate::user_of(&session).await;
        assert!(session_user.starts_with(&world.role_prefix()), "{session_user}");
        assert_eq!(psql(&world, &pglease, user, password, "").await, "served\n");
    }
    for (user, password) in
        [(&ann, "other secret"), (&ann, ""), (&bob, "one secret"), (&world.group("nobody"), "one secret")]
    {
        assert_refused(connect(&pglease, user, password).await, user);
        let said = psql(&world, &pglease, user, &format!("{password}."), "").await;
        let expected = format!("FATAL:  password authentication failed for user \"{user}\"\n");
        assert!(said.ends_with(&expected), "{said}");
    }
    let said = psql(&world, &pglease, &ann, "one secret", "channel_binding=require").await;
    assert!(said.contains("channel binding"), "{said}");
    if world.servers.postgres.major() >= 16 {
        let said = psql(&world, &pglease, &ann, "one secret", "require_auth=scram-sha-256").await;
        assert_eq!(said, "served\n");
        let said = psql(&world, &pglease, &ann, "one secret", "require_auth=none").await;
        assert!(said.contains("server requested SASL authentication"), "{said}");
    }
    // The log tells what the client is not told.
    let refused = pglease.logged("session.refused").await;
    for reason in ["wrong password of user", "listen.auth_file has no user"] {
        let has_reason = |event: &serde_json::Value| event["error"].as_str().unwrap().contains(reason);
        assert!(refused.iter().any(has_reason), "{refused:?}");
    }

    let users = fs::read_to_string(&file).unwrap();
    replace(&file, "\"app\" \"in clear\"\n");
    // Who is asked has the file looked at, once a second.
    until(async || {
        connect(&pglease, &ann, "one secret").await.unwrap();
        !pglease.events("auth_file.reload_failed").is_empty()
    })
    .await;
    let failed = pglease.wait_for_event("auth_file.reload_failed", PATIENCE).await;
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("line 1: no SCRAM verifier") && !error.contains("in clear"), "{error}");
    let (bobs, anns): (Vec<_>, Vec<_>) = users.lines().partition(|line| line.contains("\"\""));
    assert_eq!((bobs.len(), anns.len()), (1, 1));
    replace(&file, bobs[0]);
    until(async || {
        connect(&pglease, &bob, "other secret").await.unwrap();
        !pglease.events("auth_file.reloaded").is_empty()
    })
    .await;
    assert_refused(connect(&pglease, &ann, "one secret").await, &ann);
    connect(&pglease, &bob, "other secret").await.unwrap();
    assert_eq!(pglease.wait_for_event("auth_file.reloaded", PATIENCE).await["users"], 1);
}

/// As an operator's tools do.
fn replace(file: &Path, text: &str) {
    let next = PathBuf::from(format!("{}.next", file.display()));
    fs::write(&next, text).unwrap();
    fs::rename(&next, file).unwrap();
}

/// Messages without what differs each time: fields F, L and R of an error are places in PostgreSQL's source; salt and
/// nonce are new.
fn comparable(told: &[Message]) -> Vec<String> {
    let line = |message: &Message| match (message.tag, message.body.as_slice()) {
        (b'E', _) => {
            let mut fields = message.fields();
            fields.retain(|(name, _)| !"FLR".contains(*name));
            format!("E {fields:?}")
        }
        (b'R', [0, 0, 0, 11, data @ ..]) if !data.is_empty() => "R salt and nonce".to_owned(),
        _ => format!("{message:?}"),
    };
    told.iter().map(line).collect()
}

/// Who plays a malformed exchange with whom.
struct Play<'a> {
    address: SocketAddr,
    /// PEM of the CA behind it, for TLS.
    ca_file: Option<&'a Path>,
    hello: &'a [u8],
}

impl Play<'_> {
    async fn ask(&self) -> (Raw, Vec<Message>) {
        let mut raw = match self.ca_file {
            Some(ca_file) => over_tls(self.address, ca_file).await,
            None => Raw::connect(self.address).await,
        };
        raw.send(self.hello).await;
        let asked = raw.up_to(b'R').await;
        (raw, asked)
    }

    /// All that is said to a client that answers with `sent`.
    async fn first(&self, sent: &[u8]) -> Vec<String> {
        let (mut raw, mut told) = self.ask().await;
        raw.send(sent).await;
        raw.finish().await;
        told.extend(raw.rest().await);
        comparable(&told)
    }

    /// All that is said to a client that answers with `initial`, and then by `template`.
    async fn last(&self, initial: &[u8], template: &str) -> Vec<String> {
        let (mut raw, mut told) = self.ask().await;
        raw.send(initial).await;
        let asked = raw.message().await.unwrap();
        let text = String::from_utf8(asked.body[4..].to_vec()).unwrap();
        let nonce = text.split([',', '=']).nth(1).unwrap().to_owned();
        assert_eq!(text.split(',').count(), 3, "{text}");
        let proof = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
        let last = template.replace("NONCE", &nonce).replace("PROOF", proof);
        told.push(asked);
        raw.send(&message(b'p', last.as_bytes())).await;
        raw.finish().await;
        told.extend(raw.rest().await);
        comparable(&told)
    }
}

async fn over_tls(address: SocketAddr, ca_file: &Path) -> Raw {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&packet(80_877_103, b"")).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'S');
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    Raw::over(connector.connect("localhost".try_into().unwrap(), stream).await.unwrap())
}

#[tokio::test]
async fn malformed_proofs_are_answered_as_postgresql_answers_them() {
    let world = World::shared(WorldOptions::default()).await;
    let user = world.group("hostile");
    world.superuser.batch_execute(&format!("CREATE ROLE {user} LOGIN PASSWORD 'secret'")).await.unwrap();
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&user]).await;
    let pglease = pglease_asking(&world, &file).await;

    for user in [&user, &world.group("unknown")] {
        let hello = startup(&[("user", user), ("database", &world.database())]);
        let play = |address| Play { address, ca_file: None, hello: &hello };
        let theirs = play(([127, 0, 0, 1], world.servers.postgres.port()).into());
        let ours = play(pglease.addresses()[0]);
        for (name, sent) in first_answers() {
            assert_eq!(ours.first(&sent).await, theirs.first(&sent).await, "{name}, {user}");
        }
        let initial = initial(SCRAM, b"n,,n=,r=theirs");
        for template in LAST_ANSWERS {
            let (ours, theirs) = (ours.last(&initial, template).await, theirs.last(&initial, template).await);
            assert_eq!(ours, theirs, "{}, {user}", template.escape_default());
        }
    }
}

/// Writes a certificate for `localhost` and its CA's; gives the keys of `[listen]` and the CA's file.
fn write_certificate(world: &World<'_>, algorithm: &'static SignatureAlgorithm) -> (String, PathBuf) {
    let [ca_file, cert_file, key_file] =
        ["client-ca.pem", "listen.pem", "listen.key"].map(|name| world.folder().join(name));
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(&ca_file, certificate.pem()).unwrap();
    fs::write(&cert_file, certificate.pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    let [cert, key] = [cert_file, key_file].map(|file| file.display().to_string());
    (format!("\ntls_cert_file = {cert:?}\ntls_key_file = {key:?}"), ca_file)
}

#[tokio::test]
async fn malformed_bound_proofs_are_answered_as_postgresql_answers_them() {
    let world = World::shared(WorldOptions::default()).await;
    let user = world.group("bound");
    world.superuser.batch_execute(&format!("CREATE ROLE {user} LOGIN PASSWORD 'secret'")).await.unwrap();
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&user]).await;
    let (tls, ca_file) = write_certificate(&world, &PKCS_ECDSA_P256_SHA256);
    let listen = by_password(&file) + &tls;
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;

    let hello = startup(&[("user", &user), ("database", &world.database())]);
    let their_ca_file = world.servers.postgres.ca_file();
    let play = |address, ca_file| Play { address, ca_file: Some(ca_file), hello: &hello };
    let theirs = play(([127, 0, 0, 1], world.servers.postgres.port()).into(), their_ca_file.as_path());
    let ours = play(pglease.addresses()[0], ca_file.as_path());

    let bound = |data: &[u8]| initial("SCRAM-SHA-256-PLUS", data);
    let good = bound(b"p=tls-server-end-point,,n=,r=theirs");
    for (name, sent) in [
        ("nothing", Vec::new()),
        ("good, then nothing", good.clone()),
        ("good, then garbage", [&good[..], b"garbage"].concat()),
        ("PLUS that is not bound", bound(b"n,,n=,r=theirs")),
        ("PLUS that was not offered", bound(b"y,,n=,r=theirs")),
        ("no type", bound(b"p")),
        ("empty type", bound(b"p=,,n=,r=theirs")),
        ("another type", bound(b"p=tls-unique,,n=,r=theirs")),
        ("type of another alphabet", bound(b"p=tls\xff\x01,,n=,r=theirs")),
        ("long type", bound(&[b"p=", &[b'x'; 900][..]].concat())),
        ("authorization identity", bound(b"p=tls-server-end-point,a=x,n=,r=theirs")),
        ("bound by name alone", initial(SCRAM, b"p=tls-server-end-point,,n=,r=theirs")),
        ("offer taken away on the way", initial(SCRAM, b"y,,n=,r=theirs")),
        ("not bound", initial(SCRAM, b"n,,n=,r=theirs")),
    ] {
        assert_eq!(ours.first(&sent).await, theirs.first(&sent).await, "{name}");
    }
    for template in [
        "c=biws,r=NONCE,p=PROOF",
        "c=,r=NONCE,p=PROOF",
        // The header alone; with a hash of nothing.
        "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCws,r=NONCE,p=PROOF",
        "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=,r=NONCE,p=PROOF",
        "r=NONCE,p=PROOF",
    ] {
        assert_eq!(ours.last(&good, template).await, theirs.last(&good, template).await, "{template}");
    }
}

#[tokio::test]
async fn clients_bind_themselves_to_the_certificate_where_it_can_be_bound_to() {
    let world = World::shared(WorldOptions::default()).await;
    let user = world.group("careful");
    world.superuser.batch_execute(&format!("CREATE ROLE {user} PASSWORD 'secret'")).await.unwrap();
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&user]).await;
    for (algorithm, can_be_bound) in
        [(&PKCS_ECDSA_P256_SHA256, true), (&PKCS_ECDSA_P384_SHA384, true), (&PKCS_ED25519, false)]
    {
        let (tls, ca_file) = write_certificate(&world, algorithm);
        let listen = by_password(&file) + &tls;
        let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
        let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
        let verified = format!("sslmode=verify-full sslrootcert={}", ca_file.display());

        for (more, password, served) in [
            ("channel_binding=require", "secret", can_be_bound),
            ("channel_binding=prefer", "secret", true),
            ("channel_binding=disable", "secret", true),
            ("channel_binding=prefer", "other", false),
        ] {
            let said = psql(&world, &pglease, &user, password, &format!("{verified} {more}")).await;
            assert_eq!(said == "served\n", served, "{algorithm:?} {more}: {said}");
        }
        // Without TLS there is nothing to be bound to.
        assert_eq!(psql(&world, &pglease, &user, "secret", "sslmode=disable").await, "served\n");
    }
}

/// Nonce, salt and rounds that a client is given who names `user`.
async fn asked(pglease: &Pglease, user: &str) -> (String, String, String) {
    let mut raw = Raw::connect(pglease.addresses()[0]).await;
    raw.send(&startup(&[("user", user), ("database", "app")])).await;
    raw.up_to(b'R').await;
    raw.send(&initial(SCRAM, b"n,,n=,r=theirs")).await;
    let text = String::from_utf8(raw.message().await.unwrap().body[4..].to_vec()).unwrap();
    let mut parts = text.split(',').map(|part| part[2..].to_owned());
    (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
}

#[tokio::test]
async fn user_that_there_is_not_looks_like_any_other() {
    let world = World::shared(WorldOptions::default()).await;
    let users = ["one", "two", "three"].map(|name| world.group(name));
    for user in &users {
        let sql = format!("CREATE ROLE {user} PASSWORD 'secret'");
        world.superuser.batch_execute(&sql).await.unwrap();
    }
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&users[0], &users[1], &users[2]]).await;
    let mut before = None;
    for _ in 0..2 {
        let pglease = pglease_asking(&world, &file).await;
        let (nonce, salt, rounds) = asked(&pglease, &users[0]).await;
        let (other_nonce, other_salt, other_rounds) = asked(&pglease, "nobody").await;
        assert_eq!((salt.len(), &rounds), (other_salt.len(), &other_rounds));
        assert_ne!((&nonce, &salt), (&other_nonce, &other_salt));
        let (nonce_again, salt_again, _) = asked(&pglease, "nobody").await;
        assert_eq!(salt_again, other_salt);
        assert_ne!(nonce_again, other_nonce);
        assert_ne!(asked(&pglease, "nobody else").await.1, other_salt);
        // Nor does a restart tell one from the other.
        assert_eq!(before.replace(other_salt.clone()).unwrap_or(other_salt.clone()), other_salt);
    }
}

#[tokio::test]
async fn a_byte_at_a_time_gets_in_as_well_and_what_follows_the_proof_is_kept() {
    let world = World::shared(WorldOptions::default()).await;
    let user = world.group("slow");
    world.superuser.batch_execute(&format!("CREATE ROLE {user} PASSWORD 'secret'")).await.unwrap();
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&user]).await;
    let pglease = pglease_asking(&world, &file).await;

    let mut scram = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    let mut raw = Raw::connect(pglease.addresses()[0]).await;
    raw.send(&startup(&[("user", &user), ("database", "app")])).await;
    raw.up_to(b'R').await;
    for byte in message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff") {
        raw.send(&[byte]).await;
    }
    assert_eq!(raw.message().await.unwrap().body, [0, 0, 0, 11], "asks for the first message");
    for byte in message(b'p', scram.message()) {
        raw.send(&[byte]).await;
    }
    scram.update(&raw.message().await.unwrap().body[4..]).unwrap();
    let last = message(b'p', scram.message());
    let (most, rest) = last.split_at(last.len() - 1);
    for byte in most {
        raw.send(&[*byte]).await;
    }
    let mut query = BytesMut::new();
    postgres_protocol::message::frontend::query("SELECT 'early'", &mut query).unwrap();
    raw.send(&[rest, &query].concat()).await;

    let proof = raw.message().await.unwrap();
    scram.finish(&proof.body[4..]).unwrap();
    assert_eq!(raw.message().await.unwrap().body, [0, 0, 0, 0], "AuthenticationOk");
    raw.up_to(b'Z').await;
    let answer = raw.up_to(b'Z').await;
    assert!(answer[1].body.ends_with(b"early"), "{answer:?}");
}

#[tokio::test]
async fn refusal_of_upstream_comes_behind_our_own_proof() {
    let world = World::shared(WorldOptions::default()).await;
    let user = world.group("elsewhere");
    world.superuser.batch_execute(&format!("CREATE ROLE {user} PASSWORD 'secret'")).await.unwrap();
    let file = world.folder().join("users");
    write_users(&world.servers.postgres, &file, &[&user]).await;
    let anywhere = world.route("db-app").replace(&format!("/{}?", world.database()), "/?");
    let settings = world.settings_with("debug", &world.servers.openbao.address(), &by_password(&file));
    let pglease = pglease_with(&(settings + &anywhere + "database = \"no_such_database\"\n")).await;

    let parameters = [("user", user.as_str()), ("database", "no_such_database")];
    for (database, code) in [("no_such_database", "3D000"), ("no route", "3D000")] {
        let mut raw = Raw::connect(pglease.addresses()[0]).await;
        raw.send(&startup(&[parameters[0], ("database", database)])).await;
        raw.authenticate("secret").await;
        let rest = raw.rest().await;
        let [.., last @ Message { tag: b'E', .. }] = &rest[..] else { panic!("{rest:?}") };
        assert!(last.fields().contains(&('C', code.to_owned())), "{rest:?}");
    }
}

#[tokio::test]
async fn peers_are_who_the_kernel_says_they_are() {
    let world = World::shared(WorldOptions::default()).await;
    let uid = geteuid().as_raw();
    for (uids, is_served) in [(vec![uid], true), (vec![uid + 1, uid + 2], false)] {
        let folder = Folder::create(None);
        let listen = format!("auth = \"peer\"\npeer_uids = {uids:?}\nunix_socket = {:?}", folder.path());
        let settings = world.settings_with("debug", &world.servers.openbao.address(), &listen);
        let settings = settings.replace("addresses = [\"localhost:0\"]", "addresses = []");
        let pglease = pglease_with(&(settings + &world.route("db-app"))).await;

        let mut psql = Command::new(world.servers.postgres.bin().join("psql"));
        let conninfo = format!("host={} port=5432 dbname=app user=anyone", folder.path().display());
        psql.args(["-XAtwc", "SELECT 'served'", &conninfo]).env_clear();
        let output = spawn_blocking(move || psql.output().unwrap()).await.unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        if is_served {
            assert_eq!(said, "served\n");
        } else {
            assert!(said.ends_with("FATAL:  Peer authentication failed for user \"anyone\"\n"), "{said}");
            let refused = pglease.wait_for_event("session.refused", PATIENCE).await;
            let error = refused["error"].as_str().unwrap();
            assert!(error.contains(&format!("user id {uid} is not in listen.peer_uids")), "{error}");
        }
    }
}
