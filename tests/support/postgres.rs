//! A PostgreSQL server: TLS and SCRAM as in production, no fsync.

mod standby;

use std::fmt::Write;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::PATIENCE;
use super::install::{Install, copy_folder, give};
use super::pki::Authority;
use super::process::{Folder, Process, Spawn, copy_program, is_open_to_all};

/// What differs between servers.
pub(crate) struct PostgresOptions {
    /// 14 to 18.
    pub(crate) major: u16,
    pub(crate) max_connections: u16,
    /// Further lines of `postgresql.conf`.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Default for PostgresOptions {
    /// The major that `PGLEASE_TEST_PG` says, else 18.
    fn default() -> Self {
        let major = super::env("PGLEASE_TEST_PG")
            .map_or(18, |major| major.parse().expect("PGLEASE_TEST_PG is 14 to 18"));
        Self { major, max_connections: 2000, settings: Vec::new() }
    }
}

/// A server of its own on its own port. Its superuser is `postgres`, with that password.
pub(crate) struct Postgres {
    process: Mutex<Option<Arc<Process>>>,
    folder: Folder,
    bin: PathBuf,
    uid: Option<u32>,
    port: u16,
    major: u16,
}

impl Postgres {
    pub(crate) async fn start(options: PostgresOptions) -> Self {
        let install = Install::of(options.major);
        let uid = install.postgres_uid;
        let folder = Folder::create(uid);
        let bin = if uid.is_none() || is_open_to_all(&install.postgres) {
            install.postgres.join("bin")
        } else {
            copy_program(&install.postgres, &folder.path().join("install"));
            folder.path().join("install/bin")
        };
        copy_folder(&install.cluster, &folder.path().join("data"), uid);
        write_certificates(folder.path(), uid);
        write_settings(folder.path(), &options);

        let mut postgres =
            Self { process: Mutex::default(), folder, bin, uid, port: 0, major: options.major };
        postgres.launch_somewhere().await;
        postgres
    }

    /// Starts it on a free port.
    async fn launch_somewhere(&mut self) {
        for _ in 0..20 {
            self.port = super::free_ports(1);
            match self.launch().await {
                Ok(()) => return,
                Err(log) if log.contains("could not bind") => {}
                Err(log) => panic!("PostgreSQL does not start:\n{log}"),
            }
        }
        panic!("PostgreSQL finds no free port");
    }

    /// The port, on 127.0.0.1 and, where the machine has it, `::1`.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn major(&self) -> u16 {
        self.major
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where psql, pgbench and the others are.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    /// PEM of the CA that vouches for the server as `localhost`, `127.0.0.1` and `::1`.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A URL without user and password, TLS verified.
    pub(crate) fn url(&self, database: &str) -> String {
        let ca_file = self.ca_file();
        format!(
            "postgresql://localhost:{}/{database}?sslmode=verify-full&sslrootcert={}",
            self.port,
            ca_file.display()
        )
    }

    /// The superuser, in this database.
    pub(crate) async fn connect(&self, database: &str) -> Database {
        self.connect_as(database, "postgres", "postgres").await.expect("superuser's connection")
    }

    /// Anyone, without TLS.
    pub(crate) async fn connect_as(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<Database, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).dbname(database).user(user).password(password);
        Database::open(&config).await
    }

    /// What the superuser sees: rows of text.
    pub(crate) async fn query(&self, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        self.connect(database).await.rows(sql).await
    }

    /// Puts these lines before those of `pg_hba.conf` that let everyone in with a password. They hold from the moment
    /// that the server has read them, which is soon.
    pub(crate) async fn write_hba(&self, first: &str) {
        let file = self.folder.path().join("data/pg_hba.conf");
        let all = "host all all 127.0.0.1/32 scram-sha-256\nhost all all ::1/128 scram-sha-256\n";
        fs::write(file, format!("{first}\n{all}")).unwrap();
        self.query("postgres", "SELECT pg_reload_conf()").await;
    }

    /// Writes a file of the data folder, in place, and has the server read its files again; returns once it has done
    /// so, and every connection that comes later is by them.
    pub(crate) async fn write_data(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(self.folder.path().join("data").join(name), text).unwrap();
        }
        let process = self.process();
        let reloads = |lines: &[String]| lines.iter().filter(|line| line.contains("received SIGHUP")).count();
        let before = reloads(&process.lines().all());
        self.query("postgres", "SELECT pg_reload_conf()").await;
        let is_done = |lines: &[String]| (reloads(lines) > before).then_some(());
        process.lines().wait_for(PATIENCE, is_done).await.expect("PostgreSQL reads its files again");
    }

    /// Changes a setting that a reload is enough for.
    pub(crate) async fn set(&self, name: &str, value: &str) {
        self.query("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'")).await;
        self.write_data(&[]).await;
    }

    /// Stops it as an operator would: sessions get 57P01.
    pub(crate) async fn stop(&self) {
        self.end(Signal::INT).await;
    }

    /// Stops it "immediate": sessions get no FATAL, and the next start recovers.
    pub(crate) async fn stop_at_once(&self) {
        self.end(Signal::QUIT).await;
    }

    /// Starts it again, on the same port with the same data.
    pub(crate) async fn start_again(&self) {
        assert!(self.process.lock().unwrap().is_none(), "it runs");
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.launch().await {
                Ok(()) => return,
                // After a crash its processes may be a moment behind it, with its memory and its port.
                Err(log) if LEFT_OVER.iter().any(|left| log.contains(left)) && Instant::now() < give_up => {
                    tokio::time::sleep(MOMENT).await;
                }
                Err(log) => panic!("PostgreSQL does not start again:\n{log}"),
            }
        }
    }

    pub(crate) async fn restart(&self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Crashes it.
    pub(crate) async fn kill(&self) {
        self.end(Signal::KILL).await;
    }

    async fn end(&self, signal: Signal) {
        let process = self.process.lock().unwrap().take();
        if let Some(process) = process {
            process.signal(signal);
            process.wait_exit(PATIENCE).await;
        }
    }

    /// The running server, to be sent signals and asked for its log.
    pub(crate) fn process(&self) -> Arc<Process> {
        self.process.lock().unwrap().clone().expect("PostgreSQL runs")
    }

    /// Starts the server on `port`; fails with its log.
    async fn launch(&self) -> Result<(), String> {
        let data = self.folder.path().join("data");
        // Modules that are clients themselves, as postgres_fdw is, look for a libpq of their own age.
        let libraries = self.bin.parent().unwrap().join("lib");
        let libraries = libraries.display().to_string();
        let process = Process::spawn(&Spawn {
            program: &self.bin.join("postgres"),
            arguments: &["-D".to_owned(), data.display().to_string(), "-p".to_owned(), self.port.to_string()],
            environment: &[("LC_ALL", "C"), ("TZ", "UTC"), ("LD_LIBRARY_PATH", &libraries)],
            folder: &data,
            uid: self.uid,
            // "Immediate": there is nothing to keep.
            stop: Signal::QUIT,
        });
        let lines = process.lines();
        let ready = |lines: &[String]| {
            let is_ready = |line: &String| {
                line.contains("ready to accept connections") || line.contains("ready to accept read-only")
            };
            lines.iter().any(is_ready).then_some(())
        };
        let is_ready = lines.wait_for(PATIENCE, ready).await.is_some();
        // It is content with one address of two; we are not.
        let log = lines.all().join("\n");
        if !is_ready || log.contains("could not bind") {
            return Err(log);
        }
        *self.process.lock().unwrap() = Some(Arc::new(process));
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Stops it, whereupon it puts its files and its shared memory away. After a crash somebody else must.
        drop(self.process.lock().unwrap_or_else(PoisonError::into_inner).take());
        let lock_file =
            fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(segment) = lock_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", segment]).status();
        }
    }
}

/// A connection, and what drives it.
pub(crate) struct Database {
    client: Client,
    driver: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl Database {
    /// One without TLS.
    pub(crate) async fn open(config: &Config) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { client, driver })
    }

    /// What the server says when it ends the connection, once it has.
    pub(crate) async fn last_words(mut self) -> Option<DbError> {
        let end = self.driver.join_next().await?.expect("a connection that does not panic");
        end.err()?.as_db_error().cloned()
    }

    /// The rows of a statement without parameters, as text.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = self.client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let rows = messages
            .iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
        rows.map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()).collect()
    }
}

impl Deref for Database {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A CA and a server certificate.
fn write_certificates(folder: &Path, uid: Option<u32>) {
    let ca = Authority::create();
    let server = ca.issue(&["localhost", "127.0.0.1", "::1"]);

    fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    let (certificate, key) = (folder.join("data/server.crt"), folder.join("data/server.key"));
    fs::write(&certificate, server.certificate).unwrap();
    fs::write(&key, server.key).unwrap();
    // PostgreSQL takes no key that others could read.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    give(&certificate, uid);
    give(&key, uid);
}

fn write_settings(folder: &Path, options: &PostgresOptions) {
    let addresses = if super::has_ipv6() { "127.0.0.1,::1" } else { "127.0.0.1" };
    let mut settings = vec![
        ("listen_addresses", addresses.to_owned()),
        ("unix_socket_directories", String::new()),
        ("max_connections", options.max_connections.to_string()),
        ("ssl", "on".to_owned()),
        ("fsync", "off".to_owned()),
        ("synchronous_commit", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("shared_buffers", "32MB".to_owned()),
        // In the data folder, so that a crash leaves nothing in /dev/shm.
        ("dynamic_shared_memory_type", "mmap".to_owned()),
        // The launcher of 14 stays for 20 s after a crash.
        ("autovacuum", "off".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("timezone", "UTC".to_owned()),
    ];
    settings.extend(options.settings.iter().cloned());

    let file = folder.join("data/postgresql.conf");
    let mut text = fs::read_to_string(&file).unwrap();
    for (name, value) in settings {
        // Of two lines for one setting the later holds.
        writeln!(text, "{name} = '{}'", value.replace('\'', "''")).unwrap();
    }
    fs::write(file, text).unwrap();
}

const MOMENT: Duration = Duration::from_millis(100);

/// What a server says that does not start for what is left of the one before it.
const LEFT_OVER: [&str; 2] = ["is still in use", "could not bind"];
