//! The five commands of README.md, from servers that nobody has set up to an application without a password.

use std::fs;
use std::os::unix::fs::symlink;

use crate::chart::succeed;
use crate::control_plane::ControlPlane;
use crate::manifests::root;
use crate::node::Node;
use crate::patience::until;
use crate::site::{container, create_namespace, reviewer, variable};
use crate::steps::user_of;
use crate::support::Servers;
use crate::support::pages::{self, adapted, blocks};
use crate::support::process::Folder;

/// What is otherwise here than in the README's cluster: names of machines; a port that nobody but root need open; and
/// other tests have webhooks beside this one, on a machine that may be slow.
struct Here {
    servers: &'static Servers,
    control_plane: &'static ControlPlane,
    /// Of the injector. `pglease` is other tests'.
    namespace: String,
}

impl Here {
    fn of_vault(&self) -> [(&'static str, String); 1] {
        let (url, ca_file) = (self.control_plane.url(), self.control_plane.ca_file());
        [("DB_HOST=postgres ", pages::addresses(self.servers, &url, &ca_file))]
    }

    fn of_helm(&self) -> [(&'static str, String); 3] {
        let only = "webhook.namespaceSelector.matchLabels.kubernetes\\\\.io/metadata\\\\.name=default";
        [
            ("--namespace pglease ", format!("--namespace {} ", self.namespace)),
            ("--wait ", format!("--wait --set service.port=8443,webhook.timeoutSeconds=30,{only} ")),
            ("https://vault.vault.svc:8200", self.servers.openbao.tls_address()),
        ]
    }

    fn of_application(&self) -> [(&'static str, String); 1] {
        [("//postgres:5432/", format!("//localhost:{}/", self.servers.postgres.port()))]
    }
}

#[tokio::test]
async fn five_commands_lead_to_an_application_without_a_password() {
    let (servers, control_plane) = tokio::join!(Servers::shared(), ControlPlane::shared());
    let api = control_plane.api();
    let here = Here { servers, control_plane, namespace: create_namespace(&api).await };
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let commands = blocks(&readme).into_iter().find(|(_, text)| text.contains("helm install")).unwrap().1;
    let (of_servers, rest) = commands.split_once("# The injector.\n").unwrap();
    let (of_injector, of_application) = rest.split_once("# The application.\n").unwrap();
    let (_, rest) = readme.split_once("a ConfigMap `ca` with the CAs of both (`").unwrap();
    let of_cas = rest.split_once("`)").unwrap().0;

    let folder = prepared(&here).await;
    let shell = async |lines: &str| {
        let variables = pages::variables(folder.path(), servers);
        succeed(&control_plane.script(lines, folder.path(), &variables).await);
    };
    let (_injectors, node) = (Node::of(control_plane, &here.namespace), Node::of(control_plane, "default"));
    shell(of_cas).await;
    shell(&adapted(of_servers, &here.of_vault())).await;
    shell(&adapted(of_injector, &here.of_helm())).await;
    shell(of_application).await;

    let mut pods = Vec::new();
    until(async || {
        pods = api.list("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb").await;
        pods.len() == 2
    })
    .await;
    let mut users = Vec::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        node.ready(name).await;
        let url = variable(container(&pod, "web").unwrap(), "DATABASE_URL").unwrap();
        let sidecar = node.container(name, "pglease").await;
        let session = sidecar.connect(url["value"].as_str().unwrap()).await.unwrap();
        users.push(user_of(&session).await);
    }
    users.dedup();
    assert!(users.len() == 2 && users.iter().all(|user| user.starts_with("v-")), "{users:?}");
}

/// A clone of the project to work in, with the CAs; the database is there, and the API server has a reviewer.
async fn prepared(here: &Here) -> Folder {
    let Servers { postgres, openbao } = here.servers;
    postgres.query("postgres", "CREATE DATABASE wizard").await;
    let folder = Folder::create(None);
    let path = |name: &str| folder.path().join(name);
    symlink(openbao.program(), path("vault")).unwrap();
    fs::copy(openbao.ca_file(), path("vault.pem")).unwrap();
    fs::copy(postgres.ca_file(), path("postgres.pem")).unwrap();
    fs::write(path("reviewer"), reviewer(&here.control_plane.api()).await).unwrap();

    fs::create_dir_all(path("deploy/examples")).unwrap();
    for name in ["helm", "postgres", "vault"] {
        symlink(root().join("deploy").join(name), path("deploy").join(name)).unwrap();
    }
    let application = fs::read_to_string(root().join("deploy/examples/web.yaml")).unwrap();
    fs::write(path("deploy/examples/web.yaml"), adapted(&application, &here.of_application())).unwrap();
    folder
}
