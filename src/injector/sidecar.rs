//! The container `pglease` and its volumes.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::annotations::{Annotations, Notes, PREFIX};
use super::proxy::{Proxy, TOKEN_DIRECTORY};
use super::{agent, files, pod};
use crate::config::{
    ProjectedToken, SidecarConfig, is_cpu, is_memory, memory_mib, parse_quantity, token_expiration,
};

/// What a pod gets.
#[derive(Debug)]
pub(super) struct Sidecar {
    pub(super) container: Value,
    /// All that the container mounts.
    pub(super) volumes: Vec<Value>,
}

/// The container's name.
pub(super) const NAME: &str = "pglease";
pub(super) const SOCKET_VOLUME: &str = "pglease-socket";
const TOKEN_VOLUME: &str = "pglease-token";

impl Sidecar {
    /// What is wrong is then among the faults.
    pub(super) fn make(
        pod: &Value,
        annotations: &Annotations,
        proxy: &Proxy,
        defaults: &SidecarConfig,
        notes: &mut Notes,
    ) -> Self {
        let image = annotations.parse("image", notes, image).unwrap_or_else(|| defaults.image.clone());
        let token = token(annotations, &defaults.token, notes);
        let mut container = json!({
            "name": NAME,
            "image": image,
            "args": ["proxy"],
            "env": env(pod, proxy),
            "ports": [{ "name": HTTP_PORT, "containerPort": http_port(proxy), "protocol": "TCP" }],
            "resources": resources(annotations, proxy, defaults, notes),
            "securityContext": security(pod, annotations, notes),
            "startupProbe": probe(proxy, "/startup", 1, 5, i32::MAX),
            "livenessProbe": probe(proxy, "/livez", 10, 5, 3),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": mounts(proxy),
        });
        if let Some(container) = container.as_object_mut() {
            if let Some(policy) = defaults.image_pull_policy {
                container.insert("imagePullPolicy".to_owned(), json!(policy));
            }
            if defaults.native {
                container.insert("restartPolicy".to_owned(), json!("Always"));
            }
            if annotations.is_true("readiness-probe", notes) {
                container.insert("readinessProbe".to_owned(), probe(proxy, "/readyz", 5, 5, 1));
            }
        }
        Self { container, volumes: volumes(proxy, &token) }
    }
}

fn image(text: &str) -> Result<String, String> {
    if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err("has a blank in it; write the image's name and tag".to_owned());
    }
    Ok(text.to_owned())
}

/// The `ServiceAccount` token that the sidecar logs in with.
struct Token {
    /// `None`: the API server's own.
    audience: Option<String>,
    expiration: Duration,
}

fn token(annotations: &Annotations, default: &ProjectedToken, notes: &mut Notes) -> Token {
    let own = annotations.text("token-audience").map(str::to_owned);
    let audience = match own {
        // The role takes the token that the Vault Agent logged in with, and may take no other.
        None if agent::is_role_taken(annotations) => {
            notes.warn(format!(
                "the token is for the API server, as the Vault Agent's; see {PREFIX}token-audience"
            ));
            None
        }
        own => Some(own.unwrap_or_else(|| default.audience.clone())),
    };
    let expiration = annotations.parse("token-expiration", notes, |text| {
        token_expiration(text).map_err(|problem| problem.to_string())
    });
    Token { audience, expiration: expiration.unwrap_or(default.expiration) }
}

/// Settings, and what the downward API knows.
fn env(pod: &Value, proxy: &Proxy) -> Vec<Value> {
    let settings =
        proxy.variables.iter().map(|(name, value)| json!({ "name": name, "value": literal(value) }));
    let grace = format!("{}s", pod::termination_grace(pod));
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let of_pod = [
        field("PGLEASE_POD_NAME", "metadata.name"),
        field("PGLEASE_POD_NAMESPACE", "metadata.namespace"),
        field("PGLEASE_POD_UID", "metadata.uid"),
        json!({
            "name": "PGLEASE_POD_MEMORY_LIMIT",
            "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } },
        }),
        json!({ "name": "PGLEASE_POD_TERMINATION_GRACE", "value": grace }),
    ];
    settings.chain(of_pod).collect()
}

/// `text` as the value of a variable in which Kubernetes looks for `$(NAME)`.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn http_port(proxy: &Proxy) -> u16 {
    proxy.config.http.address.port()
}

fn probe(proxy: &Proxy, path: &str, period: u32, timeout: u32, failures: i32) -> Value {
    json!({
        "httpGet": { "path": path, "port": http_port(proxy) },
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    })
}

fn resources(annotations: &Annotations, proxy: &Proxy, defaults: &SidecarConfig, notes: &mut Notes) -> Value {
    let defaults = &defaults.resources;
    let cpu = |name, notes: &mut Notes| annotations.parse(name, notes, cpu);
    let memory = |name, notes: &mut Notes| annotations.parse(name, notes, memory);
    let cpu_request =
        cpu("resources-cpu-request", notes).unwrap_or_else(|| Some(defaults.cpu_request.clone()));
    let memory_request =
        memory("resources-memory-request", notes).unwrap_or_else(|| Some(defaults.memory_request.clone()));
    let cpu_limit = cpu("resources-cpu-limit", notes).unwrap_or_else(|| defaults.cpu_limit.clone());
    let derived = || {
        let sessions = if proxy.listens() { proxy.config.listen.max_sessions } else { 0 };
        let limit = format!("{}Mi", memory_mib(sessions));
        // Who asks for more shall have it.
        if exceeds(memory_request.as_ref(), &limit) { memory_request.clone() } else { Some(limit) }
    };
    let memory_limit = memory("resources-memory-limit", notes)
        .unwrap_or_else(|| defaults.memory_limit.clone().or_else(derived));
    for (kind, request, limit) in
        [("cpu", &cpu_request, &cpu_limit), ("memory", &memory_request, &memory_limit)]
    {
        if let Some(limit) = limit
            && exceeds(request.as_ref(), limit)
        {
            let request = request.as_deref().unwrap_or_default();
            notes.fault(format!(
                "pglease.dev/resources-{kind}-limit: the limit {limit} is less than the request {request}; set both, \
                 with pglease.dev/resources-{kind}-request"
            ));
        }
    }
    json!({ "requests": quantities(cpu_request, memory_request), "limits": quantities(cpu_limit, memory_limit) })
}

fn exceeds(request: Option<&String>, limit: &str) -> bool {
    let request = request.and_then(|request| parse_quantity(request));
    matches!((request, parse_quantity(limit)), (Some(request), Some(limit)) if request > limit)
}

fn quantities(cpu: Option<String>, memory: Option<String>) -> Value {
    let quantities = [("cpu", cpu), ("memory", memory)];
    let given = quantities.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?))));
    Value::Object(given.collect::<Map<_, _>>())
}

/// `None` is none.
fn cpu(text: &str) -> Result<Option<String>, String> {
    match text {
        "none" => Ok(None),
        text if is_cpu(text) => Ok(Some(text.to_owned())),
        _ => Err("not a quantity of CPU; write it like \"50m\"".to_owned()),
    }
}

fn memory(text: &str) -> Result<Option<String>, String> {
    match text {
        "none" => Ok(None),
        text if is_memory(text) => Ok(Some(text.to_owned())),
        _ => Err("not a quantity of memory; write it like \"64Mi\"".to_owned()),
    }
}

fn security(pod: &Value, annotations: &Annotations, notes: &mut Notes) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let of_pod = pod.pointer("/spec/securityContext/runAsUser").and_then(Value::as_i64);
    let default = of_pod.filter(|user| *user != 0).unwrap_or(USER);
    let user = annotations.parse("run-as-user", notes, run_as_user).unwrap_or(Some(default));
    if let (Some(user), Some(context)) = (user, context.as_object_mut()) {
        context.insert("runAsUser".to_owned(), json!(user));
    }
    context
}

/// `None` leaves it to others.
fn run_as_user(text: &str) -> Result<Option<i64>, String> {
    if text == "none" {
        return Ok(None);
    }
    let user = text.parse::<i32>().ok().filter(|user| *user > 0);
    user.map(|user| Some(user.into())).ok_or_else(|| {
        "not the id of a user other than root; write a number from 1 to 2147483647, or none".to_owned()
    })
}

fn mounts(proxy: &Proxy) -> Vec<Value> {
    let read_only = |name: &str, path: &str| json!({ "name": name, "mountPath": path, "readOnly": true });
    let token = proxy.has_token.then(|| read_only(TOKEN_VOLUME, TOKEN_DIRECTORY));
    let files = proxy.files.iter().map(|file| read_only(file.volume, file.directory));
    let socket = proxy.socket.iter().map(|path| socket_mount(path));
    let written = proxy.credential_files.volumes().map(|(name, path)| files::mount(&name, path, false));
    token.into_iter().chain(files).chain(socket).chain(written).collect()
}

/// A socket is connected to by writing to it.
pub(super) fn socket_mount(directory: &str) -> Value {
    json!({ "name": SOCKET_VOLUME, "mountPath": directory })
}

fn volumes(proxy: &Proxy, token: &Token) -> Vec<Value> {
    let mut source = json!({ "expirationSeconds": token.expiration.as_secs(), "path": "token" });
    if let (Some(audience), Some(source)) = (&token.audience, source.as_object_mut()) {
        source.insert("audience".to_owned(), json!(audience));
    }
    let token = json!({
        "name": TOKEN_VOLUME,
        "projected": { "sources": [{ "serviceAccountToken": source }] },
    });
    let files = proxy.files.iter().map(|file| named(file.volume, file.source()));
    let socket = json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } });
    let socket = proxy.socket.iter().map(|_| named(SOCKET_VOLUME, socket.clone()));
    let written = proxy.credential_files.volumes().map(|(name, _)| files::volume(&name));
    proxy.has_token.then_some(token).into_iter().chain(files).chain(socket).chain(written).collect()
}

fn named(name: &str, mut source: Value) -> Value {
    if let Some(source) = source.as_object_mut() {
        source.insert("name".to_owned(), json!(name));
    }
    source
}

/// Of the image, where neither pod nor annotation says otherwise.
const USER: i64 = 65532;
/// Where Prometheus finds the metrics.
const HTTP_PORT: &str = "pglease-http";
