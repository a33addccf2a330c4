//! What `docs/runbook.md` has people look at.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use reqwest::Method;
use serde_json::json;
use tokio::process::Command;
use tokio::time;

use super::text;
use crate::support::Servers;
use crate::support::pages::{self, blocks};
use crate::support::process::write_program;
use crate::support::world::{World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_for, pglease_with, until, user_of};

const RUNBOOK: &str = include_str!("../../../docs/runbook.md");

/// The statement that begins so.
fn sql(begins: &str) -> String {
    let (_, rest) = RUNBOOK.split_once(&format!("```sql\n{begins}")).expect("the runbook has it");
    format!("{begins}{}", rest.split_once("```").unwrap().0)
}

#[tokio::test]
async fn sql_of_the_runbook_shows_the_role_and_what_it_owns() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let session = pglease.connect("app").await.unwrap();
    let user = user_of(&session).await;

    // Roles of this world have a prefix of their own.
    let sql = |begins: &str| sql(begins).replace("'v-%'", &format!("'{}%'", world.role_prefix()));
    let roles = world.superuser.rows(&sql("SELECT rolname, rolcanlogin")).await;
    let role = roles.iter().find(|row| row[0].as_deref() == Some(&user)).expect("the role is shown");
    // Can log in, and is valid.
    assert_eq!((role[1].as_deref(), role[3].as_deref()), (Some("t"), Some("t")), "{role:?}");

    let owned = async || {
        let rows = world.superuser.rows(&sql("SELECT r.rolname, d.deptype")).await;
        rows.into_iter().filter(|row| row[0].as_deref() == Some(&user)).collect::<Vec<_>>()
    };
    assert!(owned().await.is_empty(), "{:?}", owned().await);
    session.batch_execute("CREATE TABLE owned ()").await.unwrap();
    let rows = owned().await;
    let kinds: Vec<_> = rows.iter().map(|row| (row[1].as_deref(), row[2].as_deref())).collect();
    assert!(kinds.contains(&(Some("o"), Some("pg_class"))), "{kinds:?}");

    // The cure, while nobody uses the role.
    drop(session);
    let cure = RUNBOOK.split('`').find(|span| span.starts_with("REASSIGN OWNED BY")).unwrap();
    let (reassign, _) = cure.split_once(" DROP ROLE").unwrap();
    let reassign = reassign.replace("v-…", &user).replace("app_owner", &world.group("app_owner"));
    world.superuser.batch_execute(&reassign).await.unwrap();
    assert!(owned().await.is_empty(), "{:?}", owned().await);
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'owned'";
    assert_eq!(world.superuser.rows(owner).await[0][0].as_deref(), Some(&*world.group("app_owner")));
}

/// What kubectl has the kubelet do, done here: `exec` runs the command, and the log of the pod is a file.
const KUBECTL: &str = r#"#!/bin/sh
case "$1 $2" in
    "exec deploy/web") while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
    "logs deploy/web") exec cat "$LOG" ;;
esac
exit 64
"#;

#[tokio::test]
async fn first_minute_of_the_runbook_tells_what_is_wrong() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + &world.route("db-app");
    let pglease = pglease_with(&settings).await;
    pglease.write_settings("of no use");
    pglease.wait_for_event("config.rejected", PATIENCE).await;

    let path = |name: &str| world.folder().join(name);
    write_program(&path("kubectl"), KUBECTL);
    symlink(BINARY, path("pglease")).unwrap();
    fs::write(path("pod.log"), pglease.lines().all().join("\n") + "\n").unwrap();
    fs::write(path("pod.toml"), settings).unwrap();
    let (_, commands) = blocks(RUNBOOK)[0];
    let of_install = include_str!("../../../docs/kubernetes.md");
    assert!(of_install.contains("```sh\nkubectl exec deploy/web -c pglease -- pglease check\n```"));
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-euc", commands])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", world.folder().display()))
        .env("LOG", path("pod.log"))
        .env("PGLEASE_CONFIG_FILE", path("pod.toml"))
        .env("PGLEASE_ADMIN_ADDRESS", pglease.admin())
        .kill_on_drop(true);
    let output = time::timeout(PATIENCE * 3, shell.output()).await.expect("they end").expect("sh");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for part in ["Settings: look at it\n", "\"event\":\"config.rejected\"", "\n✓ vault.revoke "] {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
    assert!(!said.contains("\"level\":\"INFO\""), "{said}");
}

/// The commands of the text that begin so, each once.
fn commands(begin: &str) -> BTreeSet<&'static str> {
    let prose = RUNBOOK.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2)).filter(|span| span.starts_with(begin)).collect()
}

/// The commands of the text for Vault, and a part of what each says.
const OF_VAULT: [(&str, &str); 8] = [
    ("vault lease revoke -prefix database/creds/db-app", "revocation"),
    ("vault list sys/quotas/rate-limit", "all"),
    ("vault operator unseal", "Sealed"),
    ("vault policy read db-app", "path \"database/creds/db-app\""),
    ("vault read auth/kubernetes/config", "kubernetes_host"),
    ("vault read auth/kubernetes/role/web", "bound_service_account_names"),
    ("vault read database/config/wizard", "connection_details"),
    ("vault status", "Sealed"),
];

/// Runs what the runbook says in its text, in `folder`, on servers that are set up as documented and that nobody needs
/// any more.
pub(crate) async fn run_what_the_text_says(folder: &Path, servers: &Servers) {
    let Servers { postgres, openbao } = servers;
    let superuser = postgres.connect("wizard").await;
    let shell = async |command: &str| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-euc", command]).current_dir(folder).env_clear().envs(pages::variables(folder, servers));
        time::timeout(PATIENCE, shell.kill_on_drop(true).output()).await.expect("it ends").expect("sh")
    };
    let leased = async || {
        let (status, answer) = openbao.call(Method::GET, "database/creds/db-app", "root", None).await;
        assert_eq!(status, 200, "{answer}");
        answer["data"]["username"].as_str().unwrap().to_owned()
    };
    let can_login = async |role: &str| {
        superuser.rows(&format!("SELECT rolcanlogin FROM pg_roles WHERE rolname = '{role}'")).await
    };
    let no_longer = [[Some("f".to_owned())]];

    let role = leased().await;
    openbao.write("sys/quotas/rate-limit/all", json!({ "rate": 10_000 })).await;
    openbao.seal().await;
    assert_eq!(shell("vault status").await.status.code(), Some(2), "it is sealed");
    assert_eq!(commands("vault "), OF_VAULT.map(|(command, _)| command).into());
    // In an order in which each can do its work; the key is asked for where there is a terminal.
    for (command, says) in [OF_VAULT[2]].into_iter().chain(OF_VAULT) {
        let key = if command.ends_with("unseal") { openbao.unseal_key() } else { "" };
        let output = shell(&format!("{command} {key}")).await;
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains(says), "{command}: {said}{}", text(&output.stderr));
    }
    until(async || can_login(&role).await == no_longer).await;

    let role = leased().await;
    for (begin, left) in [("ALTER ROLE \"v-…", &no_longer[..]), ("REASSIGN OWNED BY \"v-…", &[])] {
        let sql: Vec<_> = commands(begin).into_iter().collect();
        let [sql] = sql[..] else { panic!("{begin}: {sql:?}") };
        superuser.batch_execute(&sql.replace("v-…", &role)).await.unwrap();
        assert_eq!(can_login(&role).await, left, "{sql}");
    }
}
