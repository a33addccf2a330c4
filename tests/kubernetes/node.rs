//! Stands for kubelet and kube-proxy, which cannot run here: takes the pods of a namespace, runs the containers of
//! pglease's image as the pods say, and tells the API server what becomes of them.
//!
//! A container's paths, in arguments, environment and `ConfigMap`s, become those of folders here, and its ports free
//! ones: there is no namespace of files and no network of its own. Containers of other images have no program: they run
//! until the test says that they have [ended](Node::end). All else is as a kubelet does it: native sidecars in order,
//! each once the startup probe of the one before has succeeded; SIGTERM to them when the others have ended.

mod container;
mod pod;
mod service;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;

use crate::api::Api;
use crate::control_plane::ControlPlane;
use crate::patience::PATIENCE;
use crate::site::path_in;

pub(crate) use container::Container;

/// Takes every pod of a namespace, from now until it is dropped, which kills what it runs.
pub(crate) struct Node {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// What the tasks of a node share.
struct Shared {
    api: Api,
    control_plane: &'static ControlPlane,
    namespace: String,
    /// All pods of the namespace, by uid, as the API server had them a moment ago.
    pods: watch::Sender<BTreeMap<String, Value>>,
    /// Those that run or have run, by pod and container.
    containers: watch::Sender<BTreeMap<Name, Arc<Container>>>,
    /// Exit codes of containers that have ended.
    exits: watch::Sender<BTreeMap<Name, i32>>,
    /// The pods that are ready, for services.
    ready: watch::Sender<BTreeMap<String, Value>>,
}

/// Of the pod, and of the container.
type Name = (String, String);

impl Node {
    pub(crate) fn of(control_plane: &'static ControlPlane, namespace: &str) -> Self {
        let shared = Arc::new(Shared {
            api: control_plane.api(),
            control_plane,
            namespace: namespace.to_owned(),
            pods: watch::Sender::default(),
            containers: watch::Sender::default(),
            exits: watch::Sender::default(),
            ready: watch::Sender::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(take_pods(Arc::clone(&shared)));
        tasks.spawn(service::relay_all(Arc::clone(&shared)));
        Self { shared, _tasks: tasks }
    }

    /// A container of pglease's image, once it has been started.
    pub(crate) async fn container(&self, pod: &str, container: &str) -> Arc<Container> {
        let name = (pod.to_owned(), container.to_owned());
        let mut containers = self.shared.containers.subscribe();
        let found = time::timeout(PATIENCE, containers.wait_for(|all| all.contains_key(&name))).await;
        let found = found.unwrap_or_else(|_| panic!("{name:?} is not started")).unwrap();
        Arc::clone(&found[&name])
    }

    /// The author's container ends.
    pub(crate) fn end(&self, pod: &str, container: &str, code: i32) {
        let name = (pod.to_owned(), container.to_owned());
        self.shared.exits.send_modify(|exits| {
            exits.insert(name, code);
        });
    }

    /// The exit code of a container, once it has ended.
    pub(crate) async fn exit(&self, pod: &str, container: &str) -> i32 {
        let name = (pod.to_owned(), container.to_owned());
        let mut exits = self.shared.exits.subscribe();
        let found = time::timeout(PATIENCE, exits.wait_for(|all| all.contains_key(&name))).await;
        found.unwrap_or_else(|_| panic!("{name:?} does not end")).unwrap()[&name]
    }

    /// The pod, once it is ready.
    pub(crate) async fn ready(&self, pod: &str) -> Value {
        let mut ready = self.shared.ready.subscribe();
        let found = time::timeout(PATIENCE, ready.wait_for(|all| all.contains_key(pod))).await;
        found.unwrap_or_else(|_| panic!("{pod} is not ready")).unwrap()[pod].clone()
    }
}

/// Follows the pods of the namespace, each in a task of its own.
async fn take_pods(shared: Arc<Shared>) {
    let mut running = JoinSet::new();
    let mut taken = BTreeSet::new();
    let path = path_in(&shared.namespace, "pods");
    create_machine(&shared.api).await;
    loop {
        let pods = shared.api.list(&path).await;
        let by_uid: BTreeMap<_, _> =
            pods.into_iter().map(|pod| (pod["metadata"]["uid"].as_str().unwrap().to_owned(), pod)).collect();
        shared.pods.send_if_modified(|known| {
            let is_news = *known != by_uid;
            known.clone_from(&by_uid);
            is_news
        });
        for (uid, pod) in by_uid {
            let has_ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            if !has_ended && taken.insert(uid.clone()) {
                running.spawn(pod::run(Arc::clone(&shared), uid, pod));
            }
        }
        while let Some(done) = running.try_join_next() {
            done.expect("a pod's task");
        }
        time::sleep(SYNC).await;
    }
}

/// The node that all pods are bound to, and that every `DaemonSet` has a pod on.
async fn create_machine(api: &Api) {
    let machine = json!({ "metadata": { "name": MACHINE }, "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    // Another namespace's may have been first.
    let reply = api.try_create("/api/v1/nodes", &machine).await;
    assert!(reply.is_ok() || reply.status == 409, "{}", reply.body);
    // It comes with the taint of one that is not ready, which nobody here takes away.
    let untainted = json!({ "spec": { "taints": null } });
    api.merge(&format!("/api/v1/nodes/{MACHINE}"), &untainted).await.object();
}

const MACHINE: &str = "machine";

/// How often a node looks at its pods, and at the objects that they mount.
const SYNC: Duration = Duration::from_millis(100);
