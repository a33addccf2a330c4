//! A container of pglease's image: the program of this build, started as its pod says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time;

use super::volumes::{field_of, items, values_of};
use crate::api::Api;
use crate::site::path_in;
use crate::steps::BINARY;
use crate::support;
use crate::support::postgres::Database;
use crate::support::process::{Process, Spawn};

/// A running one, or one that has ended.
pub(crate) struct Container {
    pub(crate) process: Process,
    /// As the container sees it.
    pub(crate) environment: BTreeMap<String, String>,
    spec: Value,
    mounts: Vec<(String, PathBuf)>,
}

/// What else a container is started with than its spec.
pub(super) struct Surroundings<'a> {
    pub(super) api: &'a Api,
    pub(super) api_port: u16,
    pub(super) pod: &'a Value,
    pub(super) mounts: &'a [(String, PathBuf)],
    pub(super) folder: &'a Path,
    /// The pod's containers that were started before.
    pub(super) beside: &'a [Arc<Container>],
}

impl Container {
    pub(super) async fn start(spec: &Value, surroundings: &Surroundings<'_>) -> Self {
        assert!(spec["command"].is_null(), "the image says what is run: {spec}");
        let environment = environment(spec, surroundings).await;
        let localise = |text: &str| localise(text, surroundings.mounts);
        let mut arguments: Vec<_> =
            items(&spec["args"]).iter().map(|argument| localise(argument.as_str().unwrap())).collect();
        let mut local: BTreeMap<_, _> =
            environment.iter().map(|(name, value)| (name.clone(), localise(value))).collect();
        for (name, address) in free_ports(&arguments) {
            local.insert((*name).to_owned(), (*address).to_owned());
        }
        if let [command] = &arguments[..]
            && command == "status"
        {
            // Its sidecar's port, which is another than in a pod.
            let admin = surroundings.beside.iter().find_map(|container| container.admin());
            local.extend(admin.map(|admin| ("PGLEASE_ADMIN_ADDRESS".to_owned(), admin)));
        }
        point_to_account(&mut arguments, surroundings.mounts);
        let local: Vec<_> = local.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let process = Process::spawn(&Spawn {
            program: Path::new(BINARY),
            arguments: &arguments,
            environment: &local,
            folder: surroundings.folder,
            uid: None,
            stop: Signal::KILL,
        });
        Self { process, environment, spec: spec.clone(), mounts: surroundings.mounts.to_vec() }
    }

    /// Where a file of its volumes is here.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(localise(path, &self.mounts))
    }

    pub(super) fn name(&self) -> &str {
        self.spec["name"].as_str().unwrap()
    }

    /// The log's first event that says where it listens; `None` before that.
    fn listening(&self) -> Option<Value> {
        let lines = self.process.lines().all();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["event"] == "listen.ready")
    }

    fn admin(&self) -> Option<String> {
        Some(self.listening()?["admin"].as_str()?.to_owned())
    }

    /// Where a port of the container, by its name or number, is here. Ports that probes and Prometheus ask are those
    /// of HTTP.
    pub(crate) fn address(&self, port: &Value) -> Option<SocketAddr> {
        let ready = self.listening()?;
        let named = |wanted: &Value| items(&self.spec["ports"]).iter().find(|port| port["name"] == *wanted);
        let number = if port.is_string() { &named(port)?["containerPort"] } else { port };
        let is_http = *number == self.http_port();
        let addresses = if is_http { &ready["http"] } else { &ready["addresses"] };
        Some(addresses.as_str()?.split(',').next()?.trim().parse().unwrap())
    }

    /// The port of its own `http.address`.
    fn http_port(&self) -> Value {
        let address = self.environment.get("PGLEASE_HTTP_ADDRESS");
        let port = address.and_then(|address| address.rsplit(':').next()?.parse::<u16>().ok());
        Value::from(port.unwrap_or(9632))
    }

    /// Whether one of its probes succeeds, or is not there.
    pub(super) async fn probe(&self, kind: &str) -> bool {
        let get = &self.spec[kind]["httpGet"];
        if get.is_null() {
            assert!(self.spec[kind].is_null(), "no probe that this node knows: {}", self.spec[kind]);
            return true;
        }
        let Some(address) = self.address(&get["port"]) else { return false };
        let url = format!("http://{address}{}", get["path"].as_str().unwrap());
        let answer = support::http_client().get(url).timeout(Duration::from_secs(1)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// A session of an application in its pod, which has this in `DATABASE_URL`.
    pub(crate) async fn connect(&self, database_url: &str) -> Result<Database, tokio_postgres::Error> {
        let mut config: tokio_postgres::Config = database_url.parse().unwrap();
        let said = config.get_ports()[0];
        let here = self.address(&Value::from(said)).expect("it listens");
        assert_eq!(said, self.listen_port(), "{database_url}");
        let mut local = tokio_postgres::Config::new();
        local.host(here.ip().to_string()).port(here.port());
        local.dbname(config.get_dbname().unwrap()).user(config.get_user().unwrap());
        config = local;
        Database::open(&config).await
    }

    fn listen_port(&self) -> u16 {
        let addresses = self.environment.get("PGLEASE_LISTEN_ADDRESSES");
        let port = addresses.and_then(|addresses| addresses.rsplit(':').next()?.parse().ok());
        port.unwrap_or(5432)
    }

    /// SIGTERM, and SIGKILL after the pod's grace period; its exit code.
    pub(super) async fn stop(&self, grace: Duration) -> i32 {
        self.process.signal(Signal::TERM);
        let killed = async {
            time::sleep(grace).await;
            self.process.signal(Signal::KILL);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            code = self.exit(grace * 2) => code,
            () = killed => unreachable!("it has no end"),
        }
    }

    async fn exit(&self, limit: Duration) -> i32 {
        let status = self.process.wait_exit(limit).await;
        status.code().unwrap_or(137)
    }

    /// Its exit code, if it has ended.
    pub(super) async fn exit_by_now(&self) -> Option<i32> {
        if self.process.lines().have_ended() { Some(self.exit(Duration::from_secs(5)).await) } else { None }
    }
}

/// As a kubelet puts it together.
async fn environment(spec: &Value, surroundings: &Surroundings<'_>) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("KUBERNETES_SERVICE_HOST".to_owned(), "127.0.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), surroundings.api_port.to_string()),
    ]);
    for variable in items(&spec["env"]) {
        let name = variable["name"].as_str().unwrap().to_owned();
        let source = &variable["valueFrom"];
        let value = if source.is_null() {
            expanded(variable["value"].as_str().unwrap_or_default(), &environment)
        } else {
            value_from(spec, source, surroundings).await
        };
        environment.insert(name, value);
    }
    environment
}

async fn value_from(spec: &Value, source: &Value, surroundings: &Surroundings<'_>) -> String {
    let pod = surroundings.pod;
    if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
        return field_of(pod, path);
    }
    if let Some(resource) = source["resourceFieldRef"]["resource"].as_str() {
        let quantity = resource.split('.').fold(&spec["resources"], |value, name| &value[name]);
        return bytes(quantity.as_str().unwrap_or_else(|| panic!("no {resource} in {spec}"))).to_string();
    }
    let namespace = pod["metadata"]["namespace"].as_str().unwrap();
    for (kind, collection) in [("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")] {
        let reference = &source[kind];
        if let Some(name) = reference["name"].as_str() {
            let object = surroundings.api.get(&path_in(namespace, &format!("{collection}/{name}"))).await;
            let mut values = values_of(&object).filter(|(key, _)| reference["key"] == **key);
            return String::from_utf8(values.next().expect("the key is there").1).unwrap();
        }
    }
    panic!("a source that this node does not know: {source}")
}

/// With `$(NAME)` of variables that came before.
fn expanded(value: &str, environment: &BTreeMap<String, String>) -> String {
    environment
        .iter()
        .fold(value.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

/// A quantity of memory: `64Mi`.
fn bytes(quantity: &str) -> u64 {
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("k", 1000), ("M", 1_000_000)];
    let unit = units.iter().find_map(|(unit, size)| Some((quantity.strip_suffix(unit)?, *size)));
    let (number, size) = unit.unwrap_or((quantity, 1));
    number.parse::<u64>().unwrap() * size
}

/// The text with the container's paths replaced by those here.
pub(super) fn localise(text: &str, mounts: &[(String, PathBuf)]) -> String {
    mounts.iter().fold(text.to_owned(), |text, (path, folder)| {
        text.replace(&format!("{path}/"), &format!("{}/", folder.display()))
    })
}

/// Pods share this machine's ports.
fn free_ports(arguments: &[String]) -> &'static [(&'static str, &'static str)] {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["proxy", ..] => &[
            ("PGLEASE_LISTEN_ADDRESSES", "localhost:0"),
            ("PGLEASE_HTTP_ADDRESS", "127.0.0.1:0"),
            ("PGLEASE_ADMIN_ADDRESS", "127.0.0.1:0"),
        ],
        ["injector", "certificate", ..] => &[],
        ["injector", ..] => {
            &[("PGLEASE_INJECTOR_ADDRESS", "127.0.0.1:0"), ("PGLEASE_HTTP_ADDRESS", "127.0.0.1:0")]
        }
        _ => &[],
    }
}

/// Who talks to the API server finds its account at a path that is the same in every pod.
fn point_to_account(arguments: &mut Vec<String>, mounts: &[(String, PathBuf)]) {
    if !arguments.starts_with(&["injector".to_owned(), "certificate".to_owned()]) {
        return;
    }
    let (_, account) = mounts.iter().find(|(path, _)| path == ACCOUNT).expect("the pod has a token");
    arguments.push(format!("--token-file={}", account.join("token").display()));
    arguments.push(format!("--ca-file={}", account.join("ca.crt").display()));
}

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
