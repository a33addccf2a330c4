//! Where the sidecar stands among init containers: behind a mesh's proxy, before all else.

use serde_json::Value;

use super::pod;

/// Whether a container is of a mesh, which puts it there itself, and has no use for a database.
pub(super) fn is_of_mesh(container: &Value) -> bool {
    let name = pod::name(container);
    PROXIES.contains(&name) || SET_UP.contains(&name)
}

/// The index among init containers at which the sidecar is to stand.
///
/// Behind the mesh's containers at the front, if its proxy is among them. Where the proxy is an ordinary container, it
/// runs only once the sidecar is up, and a set-up of the network before that would leave the sidecar without one: then
/// the sidecar is the first.
pub(super) fn position(pod: &Value) -> usize {
    let containers = pod::items(pod, pod::INIT_CONTAINERS);
    let at_front = containers.iter().take_while(|container| is_of_mesh(container));
    if at_front.clone().any(is_native_proxy) { at_front.count() } else { 0 }
}

/// What to know where nothing gets out of the pod before a proxy that starts after the sidecar: the network is set up
/// outside the pod (a CNI plugin), which these containers wait for.
pub(super) fn warning(pod: &Value) -> Option<String> {
    let init = pod::items(pod, pod::INIT_CONTAINERS);
    let waits = init.iter().find(|container| VALIDATIONS.contains(&pod::name(container)))?;
    if init.iter().any(is_native_proxy) {
        return None;
    }
    Some(format!(
        "{}: the mesh's proxy starts after pglease, which may wait for it: make it a native sidecar",
        pod::name(waits)
    ))
}

fn is_native_proxy(container: &Value) -> bool {
    PROXIES.contains(&pod::name(container)) && pod::is_native(container)
}

/// Istio, Linkerd, Kuma, Consul, Open Service Mesh and App Mesh.
const PROXIES: &[&str] =
    &["istio-proxy", "linkerd-proxy", "kuma-sidecar", "consul-dataplane", "envoy", "cilium-envoy"];
/// Those of the same that set the network up, or wait until it is.
const SET_UP: &[&str] = &[
    "istio-init",
    "istio-validation",
    "enable-core-dump",
    "linkerd-init",
    "linkerd-network-validator",
    "kuma-init",
    "kuma-validation",
    "consul-connect-inject-init",
    "osm-init",
    "proxyinit",
];
const VALIDATIONS: &[&str] = &["istio-validation", "linkerd-network-validator", "kuma-validation"];
