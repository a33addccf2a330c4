//! The program under test.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time;

use super::PATIENCE;
use super::postgres::Database;
use super::process::{Folder, Lines, Process, Spawn};

/// A running `pglease proxy`, or injector. Killed on drop.
pub(crate) struct Pglease {
    // Dropped in this order.
    process: Process,
    folder: Folder,
    addresses: Vec<SocketAddr>,
    binary: PathBuf,
    http: String,
    admin: Option<String>,
}

impl Pglease {
    /// Starts `binary` on these settings and waits until it listens, which is before it has a credential.
    pub(crate) async fn start(binary: &Path, settings: &str) -> Self {
        let folder = Folder::create(None);
        let file = folder.path().join("pglease.toml");
        fs::write(&file, settings).unwrap();
        let arguments = ["proxy".to_owned(), "--config-file".to_owned(), file.display().to_string()];
        Self::spawn(folder, binary, &arguments).await
    }

    /// The same after these commands of a shell, as `ulimit -n 300`.
    ///
    /// A script would have to be written first, and may not be run while a child that another test is just starting
    /// has a copy of the descriptor that it was written through.
    pub(crate) async fn start_after(commands: &str, binary: &Path, settings: &str) -> Self {
        let folder = Folder::create(None);
        let file = folder.path().join("pglease.toml");
        fs::write(&file, settings).unwrap();
        let script = format!("{commands} && exec \"$@\"");
        let program = [&binary.display().to_string(), "proxy", "--config-file", &file.display().to_string()];
        let arguments = ["-c", &script, "sh"].into_iter().chain(program).map(str::to_owned);
        let shell = Path::new("/bin/sh");
        Self { binary: binary.to_owned(), ..Self::spawn(folder, shell, &arguments.collect::<Vec<_>>()).await }
    }

    /// The same with `root` as its root directory, in which `program` is, and as the user that the image names. Needs
    /// root.
    pub(crate) async fn start_in(root: &Path, program: &str, settings: &str) -> Self {
        fs::write(root.join("pglease.toml"), settings).unwrap();
        let root = root.display().to_string();
        let arguments = ["--userspec=65532:65532", &root, program, "proxy", "--config-file", "/pglease.toml"];
        let arguments = arguments.map(str::to_owned);
        Self::spawn(Folder::create(None), Path::new("/usr/sbin/chroot"), &arguments).await
    }

    /// Starts `pglease injector` of `binary` on these settings, with `folder` as its working directory.
    pub(crate) async fn start_injector(binary: &Path, folder: Folder, settings: &str) -> Self {
        fs::write(folder.path().join("pglease.toml"), settings).unwrap();
        let arguments = ["injector", "--config-file", "pglease.toml"].map(str::to_owned);
        Self::spawn(folder, binary, &arguments).await
    }

    async fn spawn(folder: Folder, binary: &Path, arguments: &[String]) -> Self {
        let process = Process::spawn(&Spawn {
            program: binary,
            arguments,
            environment: &[("RUST_BACKTRACE", "1")],
            folder: folder.path(),
            uid: None,
            stop: Signal::KILL,
        });

        let ready = process.lines().wait_for(PATIENCE, |lines| nth_event(lines, "listen.ready", 1)).await;
        let ready = ready.unwrap_or_else(|| panic!("pglease does not listen:\n{}", process.lines().tail()));
        let addresses = ready["addresses"].as_str().unwrap();
        let addresses = addresses.split(',').filter(|address| !address.is_empty()).map(parse).collect();
        let http = format!("http://{}", parse(ready["http"].as_str().unwrap()));
        let admin = ready["admin"].as_str().map(|admin| parse(admin).to_string());
        Self { process, folder, addresses, binary: binary.to_owned(), http, admin }
    }

    /// Where its settings are, in `pglease.toml`.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where applications connect.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The port of the first of them.
    pub(crate) fn port(&self) -> u16 {
        self.addresses[0].port()
    }

    /// What an application is given: no password.
    pub(crate) fn database_url(&self, database: &str) -> String {
        format!("postgresql://app@localhost:{}/{database}?sslmode=disable", self.port())
    }

    /// URL of an endpoint for kubelet and Prometheus.
    pub(crate) fn http_url(&self, path: &str) -> String {
        format!("{}{path}", self.http)
    }

    /// Its `admin.address`.
    pub(crate) fn admin(&self) -> &str {
        self.admin.as_deref().expect("it has an admin address")
    }

    /// Runs a command of it that asks the running one, to its end.
    pub(crate) async fn run_command(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(arguments).args(["--admin-address", self.admin()]).env_clear();
        command.kill_on_drop(true);
        for _ in 0..10 {
            let output = time::timeout(PATIENCE, command.output());
            let output = output.await.expect("the command ends").expect("the command starts");
            // It gives what is answered at once 5 s for that, which a machine that does much else may need.
            if !String::from_utf8_lossy(&output.stderr).contains("no answer from admin.address") {
                return output;
            }
        }
        panic!("{arguments:?} is not answered; the last lines:\n{}", self.lines().tail())
    }

    /// `/status`.
    pub(crate) async fn status(&self) -> Value {
        let url = format!("http://{}/status", self.admin());
        let answer = super::http_client().get(url).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    /// The page for people.
    pub(crate) async fn admin_page(&self) -> String {
        let url = format!("http://{}/", self.admin());
        super::http_client().get(url).send().await.unwrap().text().await.unwrap()
    }

    /// A session of an application, in this database.
    pub(crate) async fn connect(&self, database: &str) -> Result<Database, tokio_postgres::Error> {
        self.connect_as(database, "app").await
    }

    /// A session of an application that calls itself `user`.
    pub(crate) async fn connect_as(
        &self,
        database: &str,
        user: &str,
    ) -> Result<Database, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("localhost").port(self.port()).dbname(database).user(user);
        Database::open(&config).await
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// A size in its `/proc/PID/status`, in KiB: `VmRSS` is the memory it has, `VmHWM` the most it had.
    pub(crate) fn memory_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        size.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Time on a CPU so far, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap();
        // Behind the name, which may hold anything: utime and stime are the 14th and 15th field.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Its log.
    pub(crate) fn lines(&self) -> &Lines {
        self.process.lines()
    }

    /// Waits until every route has a proven credential.
    pub(crate) async fn wait_ready(&self) {
        let ready = async {
            while self.get("/startup").await.0 != 200 {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        let is_ready = time::timeout(PATIENCE, ready).await.is_ok();
        assert!(is_ready, "pglease has no credential; its last lines:\n{}", self.lines().tail());
    }

    /// Status and body of an endpoint; status 0 once the process has ended.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answering = async {
            loop {
                match super::http_client().get(self.http_url(path)).send().await {
                    Ok(response) => {
                        return (response.status().as_u16(), response.text().await.unwrap_or_default());
                    }
                    Err(_) if self.lines().have_ended() => return (0, String::new()),
                    // It gives each connection 10 s.
                    Err(_) => time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let answer = time::timeout(PATIENCE, answering).await;
        answer.unwrap_or_else(|_| panic!("{path} is not answered; the last lines:\n{}", self.lines().tail()))
    }

    /// Every sample of `/metrics` by its name with labels, as in `pglease_orphans_total` or
    /// `pglease_rotations_total{trigger="planned",result="ok"}`.
    pub(crate) async fn metrics(&self) -> Vec<(String, f64)> {
        let scraping = async {
            loop {
                // None is 0, so a scrape that failed must not be taken for one.
                match self.get("/metrics").await {
                    (200, text) => return text,
                    _ => time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let text = time::timeout(PATIENCE, scraping).await;
        let text = text.unwrap_or_else(|_| panic!("no metrics; the last lines:\n{}", self.lines().tail()));
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        samples.filter_map(sample).collect()
    }

    /// The sum of the samples of metric `name` whose labels contain `label`, as in `result="ok"`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let samples = self.metrics().await;
        let of_name = samples.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        of_name.filter(|(sample, _)| sample.contains(label)).map(|(_, value)| value).sum()
    }

    /// The first event of this name since the start.
    pub(crate) async fn wait_for_event(&self, event: &str, limit: Duration) -> Value {
        self.wait_for_events(event, 1, limit).await
    }

    /// The `count`th event of this name since the start.
    pub(crate) async fn wait_for_events(&self, event: &str, count: usize, limit: Duration) -> Value {
        let found = self.lines().wait_for(limit, |lines| nth_event(lines, event, count)).await;
        found.unwrap_or_else(|| {
            panic!("no {event} number {count} within {limit:?}; the last lines:\n{}", self.lines().tail())
        })
    }

    /// Every event of this name that has come so far. What has just been seen elsewhere may be logged and not have
    /// come yet.
    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        events(&self.lines().all(), event).collect()
    }

    /// Every event of this name that has been logged so far, of one that logs at `debug` or has ended.
    pub(crate) async fn logged(&self, event: &str) -> Vec<Value> {
        self.catch_up().await;
        self.events(event)
    }

    /// Waits for all that has been logged: lines come in order, and this leaves one.
    async fn catch_up(&self) {
        const MARK: &str = "http.connection_failed";
        let seen = self.events(MARK).len();
        let address = self.http.trim_start_matches("http://");
        let come = |lines: &[String]| nth_event(lines, MARK, seen + 1);
        let coming = async {
            loop {
                if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
                    let _ = stream.write_all(b"this is not HTTP\r\n\r\n").await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                // One that is late is cut off, which leaves another line.
                let has_come = self.lines().wait_for(Duration::from_secs(5), come).await.is_some();
                if has_come || self.lines().have_ended() {
                    return;
                }
            }
        };
        let has_come = time::timeout(PATIENCE, coming).await.is_ok();
        assert!(has_come, "the log stands still:\n{}", self.lines().tail());
    }

    /// Asks it to drain.
    pub(crate) fn sigterm(&self) {
        self.process.signal(Signal::TERM);
    }

    pub(crate) fn kill(&self) {
        self.process.signal(Signal::KILL);
    }

    /// Its exit, within `limit`, with all that it has logged.
    pub(crate) async fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let status = self.process.wait_exit(limit).await;
        self.lines().wait_for(PATIENCE, |_| None::<()>).await;
        status
    }
}

fn nth_event(lines: &[String], event: &str, count: usize) -> Option<Value> {
    events(lines, event).nth(count - 1)
}

fn events<'a>(lines: &'a [String], event: &'a str) -> impl Iterator<Item = Value> + 'a {
    // Most lines are another event's, and parsing is slow.
    let likely = lines.iter().filter(move |line| line.contains(event));
    let parsed = likely.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(move |line| line["event"] == event)
}

fn parse(address: &str) -> SocketAddr {
    address.trim().parse().unwrap_or_else(|error| panic!("{address}: {error}"))
}
