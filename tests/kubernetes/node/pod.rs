//! The life of one pod on its node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time;

use super::container::{Container, Surroundings};
use super::volumes::{Volumes, items};
use super::{MACHINE, SYNC, Shared};
use crate::site::path_in;
use crate::support::process::Folder;

/// From its binding to its end.
pub(super) async fn run(shared: Arc<Shared>, uid: String, pod: Value) {
    let mut pod = Running {
        path: path_in(&shared.namespace, &format!("pods/{}", pod["metadata"]["name"].as_str().unwrap())),
        name: pod["metadata"]["name"].as_str().unwrap().to_owned(),
        volumes: Volumes::of(&pod, &std::path::PathBuf::new()),
        folder: Folder::create(None),
        shared,
        uid,
        pod,
        mine: Vec::new(),
        logs: Vec::new(),
    };
    pod.volumes = Volumes::of(&pod.pod, &pod.folder.path().join("volumes"));
    if pod.bind().await && pod.start().await {
        pod.keep().await;
    }
    pod.end().await;
}

struct Running {
    shared: Arc<Shared>,
    uid: String,
    name: String,
    path: String,
    pod: Value,
    /// Outlives the processes.
    mine: Vec<Arc<Container>>,
    /// The last lines of those that have ended.
    logs: Vec<String>,
    volumes: Volumes,
    folder: Folder,
}

impl Running {
    /// Binds it to the node; `false` where it has gone by then.
    async fn bind(&mut self) -> bool {
        if self.pod["spec"]["nodeName"].is_string() {
            return true;
        }
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": self.name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": MACHINE },
        });
        self.shared.api.try_create(&format!("{}/binding", self.path), &binding).await.is_ok()
    }

    /// Starts its containers in their order; `false` where it is to end before that is done.
    async fn start(&mut self) -> bool {
        while let Err(missing) = self.volumes.update(&self.shared.api).await {
            if self.is_to_end() {
                return false;
            }
            // The kubelet waits for it as well.
            self.report("Pending", false, Some(&missing)).await;
            time::sleep(SYNC).await;
        }
        let spec = self.pod["spec"].clone();
        for container in items(&spec["initContainers"]) {
            let is_sidecar = container["restartPolicy"] == "Always";
            if !is_mine(container) {
                continue;
            }
            assert!(is_sidecar, "an init container of pglease's that ends: {container}");
            let sidecar = self.launch(container).await;
            while !sidecar.probe("startupProbe").await {
                if self.is_to_end() {
                    return false;
                }
                time::sleep(SYNC).await;
            }
        }
        for container in items(&spec["containers"]) {
            if is_mine(container) {
                self.launch(container).await;
            }
        }
        true
    }

    async fn launch(&mut self, spec: &Value) -> Arc<Container> {
        let mounts = self.volumes.mounts(spec);
        let surroundings = Surroundings {
            api: &self.shared.api,
            api_port: self.shared.control_plane.port(),
            pod: &self.pod,
            mounts: &mounts,
            folder: self.folder.path(),
            beside: &self.mine,
        };
        let container = Arc::new(Container::start(spec, &surroundings).await);
        let name = (self.name.clone(), container.name().to_owned());
        self.mine.push(Arc::clone(&container));
        self.shared.containers.send_modify(|containers| {
            containers.insert(name, Arc::clone(&container));
        });
        container
    }

    /// Until its containers but the sidecars have ended, or it is to end: probes, status, files.
    async fn keep(&mut self) {
        let mut reported = None;
        while !self.is_to_end() && !self.is_done().await {
            let _ = self.volumes.update(&self.shared.api).await;
            let is_ready = self.are_probes_well("readinessProbe").await;
            if reported != Some(is_ready) {
                self.report("Running", is_ready, None).await;
                reported = Some(is_ready);
            }
            self.set_ready(is_ready);
            time::sleep(SYNC).await;
        }
    }

    async fn are_probes_well(&self, kind: &str) -> bool {
        for container in &self.mine {
            if !container.probe(kind).await || !container.probe("livenessProbe").await {
                return false;
            }
        }
        true
    }

    fn set_ready(&self, is_ready: bool) {
        self.shared.ready.send_modify(|ready| {
            if is_ready {
                ready.insert(self.name.clone(), self.pod.clone());
            } else {
                ready.remove(&self.name);
            }
        });
    }

    /// Whether it was deleted.
    fn is_to_end(&self) -> bool {
        let pods = self.shared.pods.borrow();
        pods.get(&self.uid).is_none_or(|pod| pod["metadata"]["deletionTimestamp"].is_string())
    }

    /// Whether every container but the sidecars has ended.
    async fn is_done(&self) -> bool {
        for container in &self.mine {
            if let Some(code) = container.exit_by_now().await {
                self.note_exit(container.name(), code);
            }
        }
        let names = items(&self.pod["spec"]["containers"]);
        let exits = self.shared.exits.borrow();
        names.iter().all(|container| exits.contains_key(&self.key(container["name"].as_str().unwrap())))
    }

    /// Containers first, then the sidecars, the last started first.
    async fn end(&mut self) {
        let grace = self.pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        let was_deleted = self.is_to_end();
        while let Some(container) = self.mine.pop() {
            let code = container.stop(Duration::from_secs(grace)).await;
            self.logs.push(container.process.lines().tail());
            self.note_exit(container.name(), code);
            // kube-proxy hears of it a while after the container does.
            self.set_ready(false);
        }
        self.set_ready(false);
        if was_deleted {
            self.shared.api.delete_now(&self.path).await;
            return;
        }
        let codes = self.codes();
        let is_to_stay = self.pod["spec"]["restartPolicy"] == "Always";
        assert!(!is_to_stay, "{} ends with {codes:?}:\n{}", self.name, self.logs.join("\n"));
        let has_failed = items(&self.pod["spec"]["containers"])
            .iter()
            .any(|container| codes[container["name"].as_str().unwrap()] != 0);
        self.report(if has_failed { "Failed" } else { "Succeeded" }, false, None).await;
    }

    fn note_exit(&self, container: &str, code: i32) {
        let name = self.key(container);
        self.shared.exits.send_if_modified(|exits| exits.insert(name, code).is_none());
    }

    fn codes(&self) -> BTreeMap<String, i32> {
        let exits = self.shared.exits.borrow();
        exits
            .iter()
            .filter(|((pod, _), _)| *pod == self.name)
            .map(|((_, name), code)| (name.clone(), *code))
            .collect()
    }

    fn key(&self, container: &str) -> (String, String) {
        (self.name.clone(), container.to_owned())
    }

    async fn report(&self, phase: &str, is_ready: bool, message: Option<&str>) {
        let ready = if is_ready { "True" } else { "False" };
        let codes = self.codes();
        let status = |container: &Value| {
            let name = container["name"].as_str().unwrap();
            let state = match codes.get(name) {
                Some(code) => json!({ "terminated": { "exitCode": code } }),
                None if phase == "Pending" => json!({ "waiting": { "reason": "ContainerCreating" } }),
                None => json!({ "running": {} }),
            };
            json!({
                "name": name, "image": container["image"], "imageID": "", "restartCount": 0,
                "ready": is_ready && !codes.contains_key(name), "state": state,
            })
        };
        let statuses = |list: &str| items(&self.pod["spec"][list]).iter().map(status).collect::<Vec<_>>();
        let patch = json!({ "status": {
            "phase": phase,
            "message": message,
            "conditions": [{ "type": "Ready", "status": ready }, { "type": "ContainersReady", "status": ready }],
            "containerStatuses": statuses("containers"),
            "initContainerStatuses": statuses("initContainers"),
        } });
        // One that is gone needs none.
        let reply = self.shared.api.merge(&format!("{}/status", self.path), &patch).await;
        assert!(reply.is_ok() || reply.status == 404 || reply.status == 409, "{}", reply.body);
    }
}

/// Whether it is of pglease's image.
fn is_mine(container: &Value) -> bool {
    container["image"].as_str().unwrap().contains("pglease")
}
