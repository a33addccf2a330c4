//! etcd, kube-apiserver and kube-controller-manager on loopback, and the programs kubectl and Helm.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rcgen::KeyPair;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;
use tokio::time;

use crate::api::Api;
use crate::patience::PATIENCE;
use crate::support;
use crate::support::pki::Authority;
use crate::support::process::{Folder, Process, Spawn};

/// One that knows no node. Its only user is `admin`, who may do everything.
pub(crate) struct ControlPlane {
    // Dropped in this order.
    _controllers: Process,
    _apiserver: Process,
    _etcd: Process,
    folder: Folder,
    programs: Programs,
    port: u16,
    ca: String,
    token: String,
}

impl ControlPlane {
    /// The one that the tests of this process share.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let programs = Programs::find();
        for _ in 0..5 {
            match Self::launch(&programs).await {
                Ok(control_plane) => return control_plane,
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("the control plane does not start:\n{log}"),
            }
        }
        panic!("the control plane finds no free ports");
    }

    async fn launch(programs: &Programs) -> Result<Self, String> {
        let ports = Ports::from(support::free_ports(4));
        let folder = Folder::create(None);
        let ca = Authority::create();
        let token = format!("{:032x}", fastrand::u128(..));
        write_files(folder.path(), &ca, &token, &ports);

        let spawn = |part: &str, flags: String| programs.spawn(part, &flags, folder.path());
        let etcd = spawn("etcd", etcd_flags(&ports));
        let apiserver = spawn("kube-apiserver", apiserver_flags(&ports));
        let api = Api::new(ports.api, &ca.pem(), &token);
        until_answers(&api, "/readyz", &[&etcd, &apiserver]).await?;
        let controllers = spawn("kube-controller-manager", controllers_flags(&ports));
        // The first thing that they make.
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        until_answers(&api, account, &[&etcd, &apiserver, &controllers]).await?;

        Ok(Self {
            _controllers: controllers,
            _apiserver: apiserver,
            _etcd: etcd,
            folder,
            programs: programs.clone(),
            port: ports.api,
            ca: ca.pem(),
            token,
        })
    }

    /// A client for the API as `admin`. Belongs to the runtime that it is first used on.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.port, &self.ca, &self.token)
    }

    /// `https://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The PEM file of the CA that vouches for the API server.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// PEM of that CA.
    pub(crate) fn ca(&self) -> &str {
        &self.ca
    }

    /// kubectl as `admin`, with this on its standard input; to its end.
    pub(crate) async fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let arguments = [&["kubectl"], arguments].concat();
        self.get_through(&self.programs.control_plane, &arguments, input).await
    }

    /// What a line of a shell says, in which `kubectl` is the one above.
    pub(crate) async fn shell(&self, line: &str) -> String {
        text(&self.script(line, self.folder.path(), &[]).await)
    }

    /// Lines of a shell, in this folder and with these further variables; `kubectl` and `helm` are those above.
    pub(crate) async fn script(&self, lines: &str, folder: &Path, variables: &[(&str, String)]) -> Output {
        let (kubectl, helm) = (json!(self.programs.control_plane), json!(self.programs.helm()));
        let programs = format!("kubectl() {{ {kubectl} kubectl \"$@\"; }}\nhelm() {{ {helm} \"$@\"; }}\n");
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-euc", &(programs + lines)]).current_dir(folder);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        self.run(command, "").await
    }

    /// Helm as `admin`, likewise.
    pub(crate) async fn helm(&self, arguments: &[&str]) -> Output {
        self.get_through(self.programs.helm(), arguments, "").await
    }

    /// Runs a program again that has not got as far as a connection: both have 10 s of patience with a machine that
    /// does much else, and no flag for more.
    async fn get_through(&self, program: &Path, arguments: &[&str], input: &str) -> Output {
        for _ in 0..10 {
            let mut command = self.command(program);
            command.args(arguments);
            let output = self.run(command, input).await;
            if output.status.success() || !text(&output).contains("TLS handshake timeout") {
                return output;
            }
        }
        panic!("{} does not get through: {arguments:?}", program.display())
    }

    /// As `admin`, in an environment of its own.
    fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        let home = self.folder.path().join("home");
        command.env_clear().env("HOME", &home).env("KUBECONFIG", self.folder.path().join("kubeconfig"));
        command
    }

    async fn run(&self, mut command: tokio::process::Command, input: &str) -> Output {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("a program of the control plane starts");
        let mut stdin = child.stdin.take().unwrap();
        let done = async {
            // One that does not read it to its end says why.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await.unwrap()
        };
        time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("{command:?} does not end"))
    }
}

/// What the output of a program says, on both ways.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Where `build.py` has put them.
#[derive(Clone)]
struct Programs {
    control_plane: PathBuf,
    /// Built when it is first asked for.
    helm: OnceLock<PathBuf>,
}

fn program(name: &str) -> PathBuf {
    let mut build = Command::new("python3");
    build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/build.py")).arg(name);
    build.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = build.output().expect("python3, to run tests/kubernetes/build.py");
    assert!(output.status.success(), "{name} is not there: see above");
    let places: Value = serde_json::from_slice(&output.stdout).expect("JSON of build.py");
    PathBuf::from(places[name].as_str().unwrap())
}

impl Programs {
    fn find() -> Self {
        Self { control_plane: program("control-plane"), helm: OnceLock::new() }
    }

    fn helm(&self) -> &Path {
        self.helm.get_or_init(|| program("helm"))
    }

    /// Starts a part of the control plane in `folder`, which flags may name files of.
    fn spawn(&self, part: &str, flags: &str, folder: &Path) -> Process {
        let mut arguments = vec![part.to_owned()];
        arguments.extend(flags.split_whitespace().map(|flag| format!("--{flag}")));
        Process::spawn(&Spawn {
            program: &self.control_plane,
            arguments: &arguments,
            environment: &[("HOME", &folder.display().to_string())],
            folder,
            uid: None,
            // Nothing is kept, and an API server that is asked takes up to a minute.
            stop: Signal::KILL,
        })
    }
}

struct Ports {
    etcd: u16,
    etcd_peer: u16,
    api: u16,
    controllers: u16,
}

impl From<u16> for Ports {
    fn from(first: u16) -> Self {
        Self { etcd: first, etcd_peer: first + 1, api: first + 2, controllers: first + 3 }
    }
}

fn etcd_flags(ports: &Ports) -> String {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
    format!(
        "data-dir=etcd unsafe-no-fsync log-level=warn
         listen-client-urls={client} advertise-client-urls={client}
         listen-peer-urls={peer} initial-advertise-peer-urls={peer} initial-cluster=default={peer}"
    )
}

fn apiserver_flags(ports: &Ports) -> String {
    format!(
        "etcd-servers=http://127.0.0.1:{} bind-address=127.0.0.1 advertise-address=127.0.0.1 secure-port={}
         endpoint-reconciler-type=none service-cluster-ip-range={SERVICE_RANGE}
         tls-cert-file=server.pem tls-private-key-file=server.key
         token-auth-file=tokens.csv anonymous-auth=false authorization-mode=RBAC
         service-account-issuer=https://kubernetes.default.svc.cluster.local
         service-account-key-file=accounts.pub service-account-signing-key-file=accounts.key",
        ports.etcd, ports.api
    )
}

fn controllers_flags(ports: &Ports) -> String {
    let controllers = CONTROLLERS.map(|name| format!("{name}-controller")).join(",");
    format!(
        "kubeconfig=kubeconfig leader-elect=false use-service-account-credentials=false root-ca-file=ca.pem
         bind-address=127.0.0.1 secure-port={} cert-dir=controllers authentication-skip-lookup
         controllers={controllers}",
        ports.controllers
    )
}

/// Of the addresses of services, which the machine has without further ado. Endpoints may not be in it, services may.
const SERVICE_RANGE: &str = "127.96.0.0/16";

const CONTROLLERS: [&str; 11] = [
    "serviceaccount",
    "root-ca-certificate-publisher",
    "namespace",
    "garbage-collector",
    "deployment",
    "replicaset",
    "statefulset",
    "daemonset",
    "job",
    "cronjob",
    "resourcequota",
];

fn write_files(folder: &Path, ca: &Authority, token: &str, ports: &Ports) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"];
    let server = ca.issue(&names);
    write("server.pem", &server.certificate);
    write("server.key", &server.key);
    write("ca.pem", &ca.pem());
    // ServiceAccount tokens are signed with it.
    let accounts = KeyPair::generate().unwrap();
    write("accounts.key", &accounts.serialize_pem());
    write("accounts.pub", &accounts.public_key_pem());
    write("tokens.csv", &format!("{token},admin,admin,\"system:masters\"\n"));

    let mut kubeconfig = String::from("apiVersion: v1\nkind: Config\ncurrent-context: tests\n");
    let ca_file = json!(folder.join("ca.pem"));
    let cluster = format!("server: \"https://127.0.0.1:{}\", certificate-authority: {ca_file}", ports.api);
    writeln!(kubeconfig, "clusters: [{{name: tests, cluster: {{{cluster}}}}}]").unwrap();
    writeln!(kubeconfig, "users: [{{name: admin, user: {{token: {token}}}}}]").unwrap();
    writeln!(kubeconfig, "contexts: [{{name: tests, context: {{cluster: tests, user: admin}}}}]").unwrap();
    write("kubeconfig", &kubeconfig);
}

/// Waits until the API server has `path`; fails with a log where one of the processes has ended.
async fn until_answers(api: &Api, path: &str, processes: &[&Process]) -> Result<(), String> {
    let give_up = time::Instant::now() + PATIENCE;
    loop {
        if api.has(path).await {
            return Ok(());
        }
        let ended = processes.iter().find(|process| process.lines().have_ended());
        let late = (time::Instant::now() > give_up).then(|| processes.last()).flatten();
        if let Some(process) = ended.or(late) {
            return Err(process.lines().tail());
        }
        time::sleep(Duration::from_millis(50)).await;
    }
}
