//! What is read from a pod. Nothing is taken for granted: what is not what Kubernetes has there counts as absent.

use serde_json::Value;

/// Where containers stand.
pub(super) const CONTAINERS: &str = "/spec/containers";
pub(super) const INIT_CONTAINERS: &str = "/spec/initContainers";

/// The items of the list at `path`; none where there is no list.
pub(super) fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The text at `path`, if there is some.
pub(super) fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty())
}

pub(super) fn is_true(value: &Value, path: &str) -> bool {
    value.pointer(path).and_then(Value::as_bool) == Some(true)
}

/// Of a container or volume.
pub(super) fn name(item: &Value) -> &str {
    text(item, "/name").unwrap_or_default()
}

/// Those that run side by side, and those that run before them.
pub(super) fn all_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    items(pod, INIT_CONTAINERS).iter().chain(items(pod, CONTAINERS))
}

/// Whether an init container is a native sidecar.
pub(super) fn is_native(container: &Value) -> bool {
    text(container, "/restartPolicy") == Some("Always")
}

pub(super) fn label<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.pointer("/metadata/labels")?.get(name)?.as_str()
}

pub(super) fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.pointer("/metadata/annotations")?.get(name)?.as_str()
}

/// By name; those that are no text are left out.
pub(super) fn annotations(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    let map = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}

/// TCP ports that a container says it listens on.
pub(super) fn tcp_ports(container: &Value) -> impl Iterator<Item = u64> {
    let is_tcp = |port: &&Value| matches!(text(port, "/protocol"), None | Some("TCP"));
    items(container, "/ports").iter().filter(is_tcp).filter_map(|port| port.get("containerPort")?.as_u64())
}

/// In seconds, ten years at most; Kubernetes' default where nobody wrote one.
pub(super) fn termination_grace(pod: &Value) -> u64 {
    let written = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    written.unwrap_or(30).min(10 * 365 * 24 * 60 * 60)
}
