//! An OpenBao in development mode: in memory, unsealed, with the root token `root`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{self, Instant};

use super::PATIENCE;
use super::audit::{self, Request};
use super::install::Install;
use super::pki::{Authority, Issued};
use super::postgres::PostgresOptions;
use super::process::{Folder, Process, Spawn, freeze};

/// A server of its own on its own port and the four above it: one for its cluster, three for TLS.
pub(crate) struct OpenBao {
    // Dropped in this order.
    process: Option<Process>,
    folder: Folder,
    program: PathBuf,
    port: u16,
    unseal_key: String,
}

impl OpenBao {
    pub(crate) async fn start() -> Self {
        let program = Install::of(PostgresOptions::default().major).openbao;
        let mut openbao =
            Self { process: None, folder: Folder::create(None), program, port: 0, unseal_key: String::new() };
        for _ in 0..20 {
            openbao.port = super::free_ports(5);
            match openbao.launch().await {
                Ok(()) => return openbao,
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("OpenBao does not start:\n{log}"),
            }
        }
        panic!("OpenBao finds no free ports");
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `https://127.0.0.1:PORT`. Asks clients for a certificate, and takes those that have none.
    pub(crate) fn tls_address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port + 2)
    }

    /// One that speaks no TLS that is safe: 1.1 and older.
    pub(crate) fn old_tls_address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port + 3)
    }

    /// One that takes only clients with a certificate of the CA of [`ca_file`](Self::ca_file).
    pub(crate) fn mutual_tls_address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port + 4)
    }

    /// What a client shows there.
    pub(crate) fn client(&self) -> Issued {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap();
        Issued { certificate: read("client.pem"), key: read("client.key") }
    }

    /// Shows this certificate from soon on; the CA file becomes what is given.
    pub(crate) fn show(&self, shown: &Issued, ca: &str) {
        let path = |name: &str| self.folder.path().join(name);
        fs::write(self.ca_file(), ca).unwrap();
        fs::write(path("server.pem"), &shown.certificate).unwrap();
        fs::write(path("server.key"), &shown.key).unwrap();
        self.process().signal(Signal::HUP);
    }

    /// PEM of the CA that vouches for it there, as `127.0.0.1`.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What it is unsealed with.
    pub(crate) fn unseal_key(&self) -> &str {
        &self.unseal_key
    }

    /// The program, which is the command line as well.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The running server, to be sent signals and asked for its log.
    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().expect("OpenBao runs")
    }

    /// POST as root; the answer's `data`, or the whole of it where there is none. Fails the test unless the
    /// status is 2xx.
    pub(crate) async fn write(&self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// GET as root, like [`write`](Self::write).
    pub(crate) async fn read(&self, path: &str) -> Value {
        self.ask(Method::GET, path, None).await
    }

    /// The keys below `path`, none where it is not there.
    pub(crate) async fn list(&self, path: &str) -> Vec<String> {
        let (status, answer) = self.call(Method::GET, &format!("{path}?list=true"), "root", None).await;
        assert!(status == 200 || status == 404, "LIST {path}: {status} {answer}");
        let keys = answer["data"]["keys"].as_array().cloned().unwrap_or_default();
        keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn delete(&self, path: &str) {
        self.ask(Method::DELETE, path, None).await;
    }

    /// Status and body of any request; `token` is left out where it is empty.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut request =
            super::http_client().request(method.clone(), format!("{}/v1/{path}", self.address()));
        if !token.is_empty() {
            request = request.header("X-Vault-Token", token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        // It gives a request 10 s to come, which a busy machine may need longer for: it has not seen it then.
        let again = request.try_clone().filter(|_| method == Method::GET);
        let response = match (request.send().await, again) {
            (Err(_), Some(again)) => again.send().await,
            (response, _) => response,
        };
        let response = response.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (mut status, mut answer) = self.call(method.clone(), path, "root", body.clone()).await;
        // A login of its own at PostgreSQL has not come to its end in time.
        while status == 400 && answer.to_string().contains("driver: bad connection") {
            (status, answer) = self.call(method.clone(), path, "root", body.clone()).await;
        }
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        match answer.get_mut("data").map(Value::take) {
            None | Some(Value::Null) => answer,
            Some(data) => data,
        }
    }

    /// Every request that it has been sent while it was not sealed, oldest first.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests_of("")
    }

    /// Those whose lines in the audit log have `word` in them.
    pub(crate) fn requests_of(&self, word: &str) -> Vec<Request> {
        audit::requests(&self.audit_log(), word)
    }

    /// The file of its audit log.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// Every request is 503 from here.
    pub(crate) async fn seal(&self) {
        self.write("sys/seal", json!({})).await;
    }

    pub(crate) async fn unseal(&self) {
        self.write("sys/unseal", json!({ "key": self.unseal_key })).await;
    }

    /// Takes connections and answers nothing from here.
    pub(crate) async fn pause(&self) {
        freeze(self.process().pid()).await;
    }

    pub(crate) fn resume(&self) {
        self.process().signal(Signal::CONT);
    }

    /// Ends it. All it knew is lost.
    pub(crate) async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal(Signal::KILL);
            process.wait_exit(PATIENCE).await;
        }
    }

    /// Starts one that knows nothing, on the same ports.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.launch().await {
                Ok(()) => return,
                Err(log) if log.contains("address already in use") && Instant::now() < give_up => {
                    time::sleep(Duration::from_millis(100)).await;
                }
                Err(log) => panic!("OpenBao does not start again:\n{log}"),
            }
        }
    }

    fn tls_settings(&self) -> String {
        let ca = Authority::create();
        let (server, client) = (ca.issue(&["127.0.0.1"]), ca.issue(&["client"]));
        let path = |name: &str| self.folder.path().join(name);
        fs::write(self.ca_file(), ca.pem()).unwrap();
        fs::write(path("server.pem"), server.certificate).unwrap();
        fs::write(path("server.key"), server.key).unwrap();
        fs::write(path("client.pem"), client.certificate).unwrap();
        fs::write(path("client.key"), client.key).unwrap();
        let mutual = format!(
            "tls_require_and_verify_client_cert = true\n  tls_client_ca_file = {}",
            json!(self.ca_file())
        );
        let old = "tls_min_version = \"tls10\"\n  tls_max_version = \"tls11\"";
        let listeners = [(2, ""), (3, old), (4, &mutual)].map(|(offset, more)| {
            format!(
                "listener \"tcp\" {{\n  address = \"127.0.0.1:{}\"\n  tls_cert_file = {}\n  tls_key_file = {}\n  {more}\n}}\n",
                self.port + offset,
                json!(path("server.pem")),
                json!(path("server.key"))
            )
        });
        listeners.concat()
    }

    fn audit_settings(&self) -> String {
        // A string of JSON is one of HCL.
        let file = json!(self.audit_log());
        format!(
            "audit \"file\" \"file\" {{\n  options {{\n    file_path = {file}\n    hmac_accessor = \"false\"\n  }}\n}}\n"
        )
    }

    /// Starts the server on `port`; fails with its log.
    async fn launch(&mut self) -> Result<(), String> {
        let home = self.folder.path();
        let arguments =
            ["server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token", "-log-level=warn"];
        let mut arguments = arguments.map(str::to_owned).to_vec();
        arguments.push(format!("-dev-listen-address=127.0.0.1:{}", self.port));
        let config = home.join("openbao.hcl");
        fs::write(&config, self.audit_settings() + &self.tls_settings()).unwrap();
        arguments.push(format!("-config={}", config.display()));
        let process = Process::spawn(&Spawn {
            program: &self.program,
            arguments: &arguments,
            environment: &[("HOME", &home.display().to_string())],
            folder: home,
            uid: None,
            stop: Signal::KILL,
        });
        let key = |lines: &[String]| {
            let after = |start: &str| lines.iter().find_map(|line| line.strip_prefix(start));
            after("Root Token: ").and(after("Unseal Key: ")).map(str::to_owned)
        };
        let Some(key) = process.lines().wait_for(PATIENCE, key).await else {
            return Err(process.lines().tail());
        };
        self.unseal_key = key;
        self.process = Some(process);
        Ok(())
    }
}
