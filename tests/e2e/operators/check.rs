//! What `pglease check` says of faults: each is made, named, and gone once its cure is followed as it is printed.

mod login;
mod engine;
mod way;
mod interrupted;
mod pod;
mod upstream;
mod files;
mod server;
mod front;
mod impostor;
mod pooler;
mod user;
mod resolver;

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time;

use crate::PATIENCE;
use crate::check::{Checked, check};
use crate::support::postgres::Database;
use crate::support::world::{World, WorldOptions};

/// A check of a world whose settings a fault may be in.
struct Patient<'a> {
    world: World<'a>,
    settings: String,
}

impl Patient<'static> {
    async fn new() -> Self {
        Self::of(World::shared(WorldOptions::default()).await)
    }
}

impl<'a> Patient<'a> {
    fn of(world: World<'a>) -> Self {
        let settings = world.settings() + &world.route("db-app");
        Self { world, settings }
    }

    fn role(&self) -> String {
        format!("auth/{}/role/web", self.world.auth())
    }

    async fn check(&self) -> Checked {
        check(&self.world, &self.settings, &[]).await
    }

    /// Finds this fault or warning at a step; gives its cure.
    async fn finds(&self, name: &str, fault: &str) -> String {
        let checked = self.check().await;
        let step = checked.only_trouble(name, fault);
        step["cure"].as_str().unwrap().to_owned()
    }

    /// The same where other steps fail, which the exit code follows.
    async fn finds_beside_others(&self, name: &str, fault: &str) -> String {
        let checked = self.check().await;
        assert!(!checked.failed().is_empty(), "{:#}", checked.document);
        checked.trouble(name, fault)["cure"].as_str().unwrap().to_owned()
    }

    /// Follows a cure, and finds the step well.
    async fn is_cured(&self, cure: &str, name: &str, fault: &str) -> Checked {
        self.follow(cure).await;
        self.cured(name, fault).await
    }

    /// Finds the step well that was not, by this fault or warning.
    async fn cured(&self, name: &str, fault: &str) -> Checked {
        let checked = self.check().await;
        checked.cured(name, fault);
        checked
    }

    /// Runs the commands of a cure, and adds its lines to the policy. Gives what the commands have said.
    async fn follow(&self, cure: &str) -> Vec<String> {
        let openbao = &self.world.servers.openbao;
        let mut said = Vec::new();
        for line in cure.lines() {
            if let Some(arguments) = line.strip_prefix("vault ") {
                // On the command line of OpenBao, which is Vault's.
                let mut command = Command::new(openbao.program());
                command.args(arguments.split(' ')).env_clear().stdin(Stdio::null()).kill_on_drop(true);
                command
                    .current_dir(self.world.folder())
                    .env("BAO_ADDR", openbao.address())
                    .env("BAO_TOKEN", "root")
                    .env("HOME", self.world.folder());
                let output = time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
                assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
                said.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
            } else if line.starts_with("path ") {
                self.change_policy(|policy| format!("{policy}{line}\n")).await;
            }
        }
        said
    }

    async fn change_policy(&self, change: impl FnOnce(String) -> String) {
        let openbao = &self.world.servers.openbao;
        let path = format!("sys/policies/acl/{}", self.world.group("db-app"));
        let policy = openbao.read(&path).await["policy"].as_str().unwrap().to_owned();
        openbao.write(&path, json!({ "policy": change(policy) })).await;
    }

    async fn set_role(&self, fields: Value) {
        self.world.write(&self.role(), fields).await;
    }

    /// The settings with this in place of the login.
    fn with_login(&self, login: &str) -> String {
        let (before, rest) = self.settings.split_once("[vault.login]\n").unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        format!("{before}[vault.login]\n{login}\n\n{after}")
    }

    /// Runs the SQL of a cure, as a superuser.
    async fn run(&self, cure: &str) {
        run(&self.world.superuser, cure).await;
    }
}

/// Runs the SQL of a cure.
async fn run(superuser: &Database, cure: &str) {
    let lines = cure.lines().filter(|line| !line.starts_with("--"));
    let sql = lines.collect::<Vec<_>>().join("\n");
    let statements: Vec<_> = sql.split_inclusive(';').filter(|sql| sql.trim().ends_with(';')).collect();
    assert!(!statements.is_empty(), "no SQL in {cure}");
    for statement in statements {
        superuser.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}
