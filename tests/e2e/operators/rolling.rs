//! A rolling restart, in Kubernetes' order, of an application with a pool and a sidecar: nobody who asks it notices.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::Value;
use tokio::task::{JoinSet, spawn_blocking};

use crate::clients::install;
use crate::support::http_client;
use crate::support::pglease::Pglease;
use crate::support::process::{Process, Spawn};
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_for, until, until_revoked};

/// An application and its sidecar.
struct Pod {
    pglease: Pglease,
    application: Process,
    endpoint: Arc<Endpoint>,
}

/// Where it is asked.
struct Endpoint {
    url: String,
    under_way: AtomicU64,
    answered: AtomicU64,
}

impl Pod {
    async fn start(world: &World<'_>, python: &Value) -> Self {
        let pglease = pglease_for(world).await;
        let url = pglease.database_url("app");
        let of_python = python["env"].as_object().unwrap().iter();
        let mut environment: Vec<_> =
            of_python.map(|(name, value)| (&name[..], value.as_str().unwrap())).collect();
        environment.push(("DATABASE_URL", &url));
        let application = Process::spawn(&Spawn {
            program: Path::new(python["argv"][0].as_str().unwrap()),
            arguments: &[concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/operators/rolling.py").to_owned()],
            environment: &environment,
            folder: world.folder(),
            uid: None,
            stop: Signal::KILL,
        });
        let port =
            |lines: &[String]| lines.iter().find_map(|line| Some(line.strip_prefix("serves ")?.to_owned()));
        let port = application.lines().wait_for(PATIENCE, port).await;
        let port = port.unwrap_or_else(|| panic!("{}", application.lines().tail()));
        let url = format!("http://127.0.0.1:{port}/");
        let endpoint = Endpoint { url, under_way: AtomicU64::new(0), answered: AtomicU64::new(0) };
        Self { pglease, application, endpoint: Arc::new(endpoint) }
    }

    /// As Kubernetes ends one whose sidecar is native, once nobody is sent to it any more: the application first.
    async fn end(self) -> Pglease {
        until(async || self.endpoint.under_way.load(Ordering::SeqCst) == 0).await;
        self.application.signal(Signal::TERM);
        assert_eq!(self.application.wait_exit(PATIENCE).await.code(), Some(0));
        self.pglease.sigterm();
        assert_eq!(self.pglease.wait_exit(PATIENCE).await.code(), Some(0));
        let reasons = self.pglease.events("session.end").into_iter().map(|end| end["reason"].clone());
        let reasons: Vec<_> = reasons.filter(|reason| reason != "client_closed").collect();
        assert!(reasons.is_empty(), "{reasons:?}");
        self.pglease
    }
}

/// What a Service sends requests to, in turn.
#[derive(Default)]
struct Service {
    endpoints: Mutex<Vec<Arc<Endpoint>>>,
    asked: AtomicU64,
    is_over: AtomicBool,
}

impl Service {
    /// Asks on and on; says what was not answered as it should be.
    async fn ask(self: Arc<Self>) -> Vec<String> {
        let (client, mut failed) = (http_client(), Vec::new());
        while !self.is_over.load(Ordering::SeqCst) {
            let number = self.asked.fetch_add(1, Ordering::SeqCst);
            let endpoint = {
                let endpoints = self.endpoints.lock().unwrap();
                let endpoint = &endpoints[usize::try_from(number).unwrap() % endpoints.len()];
                endpoint.under_way.fetch_add(1, Ordering::SeqCst);
                Arc::clone(endpoint)
            };
            match client.get(&endpoint.url).send().await {
                Ok(answer) if answer.status().is_success() => {
                    endpoint.answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(answer) => failed.push(answer.text().await.unwrap_or_default()),
                Err(error) => failed.push(format!("{error:?}")),
            }
            endpoint.under_way.fetch_sub(1, Ordering::SeqCst);
        }
        failed
    }

    fn add(&self, pod: &Pod) {
        self.endpoints.lock().unwrap().push(Arc::clone(&pod.endpoint));
    }

    fn remove(&self, pod: &Pod) {
        self.endpoints.lock().unwrap().retain(|endpoint| !Arc::ptr_eq(endpoint, &pod.endpoint));
    }
}

#[tokio::test]
async fn rolling_restart_of_an_application_with_its_pool_fails_no_request() {
    let world = World::shared(WorldOptions::default()).await;
    let found = spawn_blocking(|| install("python")).await.unwrap();
    let python = &found["programs"]["psycopg3"];
    let service = Arc::new(Service::default());
    let (one, other) = tokio::join!(Pod::start(&world, python), Pod::start(&world, python));
    let mut pods = vec![one, other];
    for pod in &pods {
        service.add(pod);
    }
    let mut asking = JoinSet::new();
    for _ in 0..6 {
        asking.spawn(Arc::clone(&service).ask());
    }

    let mut ended = Vec::new();
    for _ in 0..2 {
        let new = Pod::start(&world, python).await;
        service.add(&new);
        until(async || new.endpoint.answered.load(Ordering::SeqCst) >= 20).await;
        let old = pods.remove(0);
        service.remove(&old);
        pods.push(new);
        ended.push(old.end().await);
    }
    service.is_over.store(true, Ordering::SeqCst);
    let failed: Vec<String> = asking.join_all().await.concat();
    assert!(failed.is_empty(), "{failed:?}");
    for pod in pods {
        ended.push(pod.end().await);
    }
    for pglease in &ended {
        until_revoked(&world, pglease).await;
    }
    let left =
        format!("SELECT 1 FROM pg_stat_activity WHERE starts_with(usename, '{}')", world.role_prefix());
    until(async || world.superuser.rows(&left).await.is_empty()).await;
}
