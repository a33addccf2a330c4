//! Poolers between the check and PostgreSQL: one that refuses as they do, and `PgBouncer` where the machine has it.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use super::Patient;
use super::front::{Does, Front};
use crate::support::install::{Install, give};
use crate::support::postgres::PostgresOptions;
use crate::support::process::{Folder, Process, Spawn};
use crate::support::say_skipped;
use crate::{PATIENCE, until};

/// A route by it, with the owner as `startup_role`.
fn route(patient: &Patient<'_>, port: u16, keywords: &str) -> String {
    let upstream = format!("postgresql://localhost:{port}/{}?{keywords}", patient.world.database());
    let (vault_path, owner) = (patient.world.vault_path("db-app"), patient.world.group("app_owner"));
    format!(
        "{}[[route]]\nupstream = {upstream:?}\nvault_path = {vault_path:?}\nstartup_role = {owner:?}\n",
        patient.world.settings()
    )
}

/// Does what the cure says to a route that a pooler does not take.
async fn without_startup_role(patient: &mut Patient<'_>, cure: &str) {
    assert!(cure.starts_with("take startup_role out of the route, say at_lease_end = \"leave\""), "{cure}");
    let startup_role = format!("startup_role = {:?}\n", patient.world.group("app_owner"));
    patient.settings = patient.settings.replace(&startup_role, "at_lease_end = \"leave\"\n");
    let creation: Vec<_> = cure.lines().skip(1).collect();
    let role = format!("{}/roles/db-app", patient.world.engine());
    patient.world.write(&role, json!({ "creation_statements": creation })).await;
    let checked = patient.cured("postgres.startup_role", "pooler-refuses-role").await;
    assert_eq!(checked.failed(), Vec::<&str>::new(), "{:#}", checked.document);
    let acts_as = checked.step("postgres.startup_role")["found"].as_str().unwrap();
    assert!(acts_as.contains("makes sessions act as"), "{acts_as}");
}

#[tokio::test]
async fn pooler_that_refuses_the_startup_role_is_gone_round_by_what_is_printed() {
    let mut patient = Patient::new().await;
    let pooler = Front::that(Does::RefuseRole(patient.world.servers.postgres.port())).await;
    patient.settings = route(&patient, pooler.port(), "sslmode=disable");
    let cure = patient.finds("postgres.startup_role", "pooler-refuses-role").await;
    without_startup_role(&mut patient, &cure).await;
}

#[tokio::test]
async fn pgbouncer_is_known_by_what_it_does_and_made_to_work_by_what_is_printed() {
    let program = Path::new("/usr/sbin/pgbouncer");
    if !program.exists() {
        say_skipped("PgBouncer", "it is not installed");
        return;
    }
    let mut patient = Patient::new().await;
    let bouncer = Bouncer::start(&patient, program).await;
    let ca_file = patient.world.servers.postgres.ca_file().display().to_string();
    let tls = format!("sslmode=verify-full&sslrootcert={ca_file}");

    // It knows one user, and asks nobody for others.
    patient.settings = route(&patient, bouncer.port, &tls);
    let cure = patient.finds("postgres.login", "pooler-refuses-startup").await;
    assert!(cure.contains("auth_query and auth_user"), "{cure}");
    bouncer.ask_the_server("");
    until(async || patient.check().await.step("postgres.login")["outcome"] == "warning").await;
    let cure = patient.finds_beside_others("postgres.login", "pooler").await;
    assert!(cure.contains("pool_mode = session"), "{cure}");

    let cure = patient.finds("postgres.startup_role", "pooler-refuses-role").await;
    without_startup_role(&mut patient, &cure).await;

    let cure = patient.finds("postgres.parameters", "pooler-refuses-keys").await;
    let line = cure.lines().find(|line| line.starts_with("ignore_startup_parameters = ")).unwrap();
    assert_eq!(line, "ignore_startup_parameters = extra_float_digits, options");
    bouncer.ask_the_server("ignore_startup_parameters = options\n");
    until(async || {
        let checked = patient.check().await;
        let cure = checked.step("postgres.parameters")["cure"].as_str().unwrap();
        cure.contains("ignore_startup_parameters = extra_float_digits\n")
    })
    .await;
    bouncer.ask_the_server(&format!("{line}\n"));
    until(async || patient.check().await.step("postgres.parameters")["outcome"] == "passed").await;
    patient.cured("postgres.parameters", "pooler-refuses-keys").await;

    patient.settings = patient.settings.replace("?sslmode", "?channel_binding=require&sslmode");
    let cure = patient.finds("postgres.login", "binding-not-offered").await;
    assert!(cure.contains("channel_binding=prefer"), "{cure}");
    patient.settings = patient.settings.replace("=require&", "=prefer&");
    let cure = patient.finds("postgres.login", "pooler").await;
    assert!(cure.starts_with("connect to PostgreSQL itself"), "{cure}");
    let ports =
        [bouncer.port, patient.world.servers.postgres.port()].map(|port| format!("localhost:{port}/"));
    patient.settings = patient.settings.replace(&ports[0], &ports[1]);
    let checked = patient.cured("postgres.login", "pooler").await;
    checked.cured("postgres.login", "pooler-refuses-startup");
    checked.cured("postgres.login", "binding-not-offered");
}

/// A real one, which sessions keep a connection of.
struct Bouncer {
    process: Process,
    folder: Folder,
    port: u16,
    server: u16,
    database: String,
    uid: Option<u32>,
}

impl Bouncer {
    async fn start(patient: &Patient<'_>, program: &Path) -> Self {
        let uid = Install::of(PostgresOptions::default().major).postgres_uid;
        let folder = Folder::create(uid);
        let postgres = &patient.world.servers.postgres;
        for (name, from) in [("server.crt", "server.crt"), ("server.key", "server.key")] {
            let text = fs::read_to_string(postgres.data().join(from)).unwrap();
            fs::write(folder.path().join(name), text).unwrap();
            give(&folder.path().join(name), uid);
        }
        let file = folder.path().join("users.txt");
        fs::write(&file, "\"postgres\" \"postgres\"\n").unwrap();
        give(&file, uid);
        loop {
            let port = crate::support::free_ports(1);
            let database = patient.world.database();
            let (server, config) = (postgres.port(), folder.path().join("pgbouncer.ini"));
            write_config(
                folder.path(),
                uid,
                port,
                &format!("{database} = host=127.0.0.1 port={server}\n"),
                "",
            );
            let process = Process::spawn(&Spawn {
                program,
                arguments: &[config.display().to_string()],
                environment: &[],
                folder: folder.path(),
                uid,
                stop: Signal::KILL,
            });
            let up = |lines: &[String]| lines.iter().any(|line| line.contains("process up")).then_some(());
            if process.lines().wait_for(PATIENCE, up).await.is_some() {
                return Self { process, folder, port, server, database, uid };
            }
            let log = process.lines().tail();
            assert!(log.contains("in use"), "PgBouncer does not start:\n{log}");
        }
    }

    /// What the cure says, with `more` of the kind; from soon on.
    fn ask_the_server(&self, more: &str) {
        let database =
            format!("{} = host=127.0.0.1 port={} auth_user=postgres\n", self.database, self.server);
        let query = "auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename=$1\n";
        write_config(self.folder.path(), self.uid, self.port, &database, &format!("{query}{more}"));
        self.process.signal(Signal::HUP);
    }
}

fn write_config(folder: &Path, uid: Option<u32>, port: u16, database: &str, more: &str) {
    let file = folder.join("pgbouncer.ini");
    let path = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[databases]\n{database}[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = scram-sha-256\nauth_file = {}\npool_mode = session\nclient_tls_sslmode = require\n\
         client_tls_cert_file = {}\nclient_tls_key_file = {}\n{more}",
        path("users.txt"),
        path("server.crt"),
        path("server.key")
    );
    fs::write(&file, text).unwrap();
    give(&file, uid);
}
