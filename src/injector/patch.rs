//! A pod in, what becomes of it out: a JSON Patch, or why there is none. Nothing is asked of anybody, so that a dry run
//! is no different.

use serde_json::{Value, json};

use super::annotations::{Annotations, INJECTED, LABEL, Notes, PREFIX, STATUS};
use super::application::Application;
use super::draft::{Draft, Malformed};
use super::proxy::Proxy;
use super::sidecar::{self, Sidecar};
use super::{mesh, pod};
use crate::config::SidecarConfig;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Operations of a JSON Patch, one at least, and what the author should know.
    Patched {
        operations: Vec<Value>,
        warnings: Vec<String>,
    },
    /// It asks for nothing, or has it already.
    Unchanged {
        warnings: Vec<String>,
    },
    /// It asks, and is left alone.
    Skipped {
        reason: String,
    },
    Refused {
        reason: String,
        warnings: Vec<String>,
    },
}

/// Decides on a pod that is about to be created.
pub(super) fn decide(pod: &Value, defaults: &SidecarConfig) -> Decision {
    if pod::label(pod, &format!("{PREFIX}{LABEL}")) != Some("true") {
        return Decision::Unchanged { warnings: Vec::new() };
    }
    let mut notes = Notes::default();
    let annotations = Annotations::read(pod, &mut notes);
    if let Some(reason) = reason_to_skip(pod, &annotations) {
        return Decision::Skipped { reason };
    }
    let draft = draft(pod, &annotations, defaults, &mut notes);
    match draft {
        Ok(Some(draft)) if notes.faults.is_empty() => match draft.into_operations() {
            operations if operations.is_empty() => Decision::Unchanged { warnings: notes.warnings },
            operations => Decision::Patched { operations, warnings: notes.warnings },
        },
        Ok(_) => Decision::Refused { reason: notes.faults.join("\n"), warnings: notes.warnings },
        Err(malformed) => Decision::Refused { reason: malformed.to_string(), warnings: notes.warnings },
    }
}

fn reason_to_skip(pod: &Value, annotations: &Annotations) -> Option<String> {
    if pod::text(pod, "/spec/os/name") == Some("windows") {
        return Some("pglease runs on Linux, and the pod on Windows".to_owned());
    }
    if pod::is_true(pod, "/spec/hostNetwork") && annotations.text("host-network").is_none() {
        return Some(
            "with hostNetwork, localhost is the node's, and open to all of it; see pglease.dev/host-network"
                .to_owned(),
        );
    }
    None
}

/// `None` where there are faults.
fn draft(
    pod: &Value,
    annotations: &Annotations,
    defaults: &SidecarConfig,
    notes: &mut Notes,
) -> Result<Option<Draft>, Malformed> {
    let Some(proxy) = Proxy::read(pod, annotations, defaults, notes) else { return Ok(None) };
    let application = Application::read(annotations, &proxy, defaults.conflict, notes);
    let sidecar = Sidecar::make(pod, annotations, &proxy, defaults, notes);
    let has_files = !proxy.credential_files.is_empty();
    check_host_network(pod, annotations, &proxy, notes);
    check_ports(pod, &proxy, notes);

    let mut draft = Draft::new(pod);
    if !is_injected(pod) {
        check_names(pod, &sidecar, notes);
        add_sidecar(&mut draft, sidecar, defaults.native)?;
        warn(pod, defaults.native, notes);
        if !defaults.native && has_files {
            notes.warn("the application may start before its files: pglease is an ordinary container (injector.native_sidecar)");
        }
    }
    application.add(&mut draft, defaults.native, notes)?;
    Ok(notes.faults.is_empty().then_some(draft))
}

/// Whether this was done before: by the review before another webhook's change, or in the pod that this one was
/// copied from.
fn is_injected(pod: &Value) -> bool {
    let has_sidecar = pod::all_containers(pod).any(|container| pod::name(container) == sidecar::NAME);
    has_sidecar && pod::annotation(pod, &format!("{PREFIX}{STATUS}")) == Some(INJECTED)
}

fn add_sidecar(draft: &mut Draft, sidecar: Sidecar, native: bool) -> Result<(), Malformed> {
    for volume in sidecar.volumes {
        draft.append("/spec/volumes", volume)?;
    }
    if native {
        let position = mesh::position(draft.pod());
        draft.insert(pod::INIT_CONTAINERS, position, sidecar.container)?;
    } else {
        let first =
            pod::items(draft.pod(), pod::CONTAINERS).first().map(pod::name).unwrap_or_default().to_owned();
        draft.insert(pod::CONTAINERS, 0, sidecar.container)?;
        // kubectl takes the first container, where nobody says which.
        if pod::annotation(draft.pod(), DEFAULT_CONTAINER).is_none() {
            draft.set("/metadata/annotations", DEFAULT_CONTAINER, json!(first))?;
        }
    }
    draft.set("/metadata/annotations", &format!("{PREFIX}{STATUS}"), json!(INJECTED))
}

fn warn(pod: &Value, native: bool, notes: &mut Notes) {
    if native {
        notes.warnings.extend(mesh::warning(pod));
    } else if pod::text(pod, "/spec/restartPolicy").is_some_and(|policy| policy != "Always") {
        notes.warn(
            "the pod will not end by itself: pglease is an ordinary container (injector.native_sidecar)",
        );
    }
}

/// Who may be on the same network must prove who they are.
fn check_host_network(pod: &Value, annotations: &Annotations, proxy: &Proxy, notes: &mut Notes) {
    let allowed = annotations.word("host-network", &[("allow", ())], notes);
    if allowed.is_some() && pod::is_true(pod, "/spec/hostNetwork") && !proxy.has_auth() {
        notes.fault(
            "pglease.dev/host-network: every process on the node could log in; write pglease.dev/auth: password, or \
             peer with pglease.dev/unix-socket",
        );
    }
}

fn check_ports(pod: &Value, proxy: &Proxy, notes: &mut Notes) {
    for container in pod::all_containers(pod).filter(|container| pod::name(container) != sidecar::NAME) {
        for (port, annotation) in proxy.ports() {
            if pod::tcp_ports(container).any(|taken| taken == u64::from(port)) {
                notes.fault(format!(
                    "container {} has the port {port}, where pglease is to listen; choose another with \
                     {PREFIX}{annotation}",
                    pod::name(container)
                ));
            }
        }
    }
}

fn check_names(pod: &Value, sidecar: &Sidecar, notes: &mut Notes) {
    let containers = pod::all_containers(pod).chain(pod::items(pod, "/spec/ephemeralContainers"));
    if containers.into_iter().any(|container| pod::name(container) == sidecar::NAME) {
        notes.fault(format!(
            "the pod has a container {:?} that the injector did not add; rename it, or remove the label {PREFIX}{LABEL}",
            sidecar::NAME
        ));
    }
    let taken = |volume: &&Value| {
        pod::items(pod, "/spec/volumes").iter().any(|own| pod::name(own) == pod::name(volume))
    };
    for volume in sidecar.volumes.iter().filter(taken) {
        notes.fault(format!("the pod has a volume {:?} of its own; rename it", pod::name(volume)));
    }
}

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
