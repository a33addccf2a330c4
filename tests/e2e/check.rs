//! `pglease check` on real servers: how it is run here, and how it goes where all is well.

mod postgres;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tokio::process::Command;
use tokio::time;

use crate::support::world::{World, WorldOptions};
use crate::{BINARY, PATIENCE, until};

#[tokio::test]
async fn healthy_way_is_gone_to_its_end_and_nothing_is_left_of_it() {
    let world = World::shared(WorldOptions::default()).await;
    let settings = world.settings() + &world.route("db-app");

    let checked = check(&world, &settings, &[]).await;
    assert_eq!((checked.code, checked.failed()), (0, Vec::new()), "{}", checked.document);
    let revoked = checked.step("vault.revoke");
    assert_eq!(revoked["outcome"], "passed", "{revoked}");
    assert!(!revoked["found"].as_str().unwrap().is_empty());
    assert_eq!(world.leased_roles().await.len(), 1);
    // Vault accepts a revocation before it is done.
    until(async || world.living_roles().await.is_empty()).await;

    let output = run(&world, &settings, &[]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("✓ config.settings ") && text.contains("✓ vault.revoke "), "{text}");
    assert!(text.lines().last().unwrap().contains(" passed"), "{text}");

    let jwt = fs::read_to_string(world.jwt_file()).unwrap();
    let lease = format!("{}/", world.vault_path("db-app"));
    for secret in [jwt.as_str(), lease.as_str(), "hvs."] {
        assert!(!text.contains(secret) && !checked.document.to_string().contains(secret), "{text}");
    }

    let before = world.requests().len();
    let offline = check(&world, &settings, &["--offline"]).await;
    assert_eq!((offline.code, offline.names()), (0, vec!["config.settings", "config.files"]));
    assert_eq!(world.requests().len(), before);
}

/// What a check has said as JSON.
pub(crate) struct Checked {
    pub(crate) code: i32,
    pub(crate) document: Value,
}

thread_local! {
    /// What the test has found, each fault at its step. A test has a thread to itself.
    static FOUND: RefCell<BTreeSet<(String, String)>> = const { RefCell::new(BTreeSet::new()) };
}

impl Checked {
    pub(crate) fn of(output: &Output) -> Self {
        let [said, errors] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        let document = serde_json::from_str(&said).unwrap_or_else(|_| panic!("not JSON: {said}{errors}"));
        Self { code: output.status.code().unwrap(), document }
    }

    pub(crate) fn steps(&self) -> &[Value] {
        self.document["steps"].as_array().unwrap()
    }

    /// The first of this name.
    pub(crate) fn step(&self, name: &str) -> &Value {
        let step = self.steps().iter().find(|step| step["name"] == name);
        step.unwrap_or_else(|| panic!("no {name} in {:#}", self.document))
    }

    /// The step that has found this fault or warning.
    pub(crate) fn trouble(&self, name: &str, fault: &str) -> &Value {
        self.find(name, fault).unwrap_or_else(|| panic!("no {fault} at {name} in {:#}", self.document))
    }

    /// Whether there is such a step.
    pub(crate) fn has(&self, name: &str, fault: &str) -> bool {
        self.find(name, fault).is_some()
    }

    fn find(&self, name: &str, fault: &str) -> Option<&Value> {
        let found = self.steps().iter().find(|step| step["name"] == name && step["fault"] == fault);
        if found.is_some() {
            FOUND.with_borrow_mut(|all| all.insert((name.to_owned(), fault.to_owned())));
        }
        found
    }

    /// Fails where the test has not found this fault or warning before, or its step is not well now.
    pub(crate) fn cured(&self, name: &str, fault: &str) {
        let was_found = FOUND.with_borrow(|all| all.contains(&(name.to_owned(), fault.to_owned())));
        assert!(was_found, "nobody has found {fault} at {name}");
        // There is such a step only where the check was broken off.
        if name == "check.end" {
            assert!(!self.names().contains(&name), "{:#}", self.document);
        } else {
            self.assert_passed(name);
        }
    }

    /// The step that has found this fault or warning, alone: the exit code is the fault's, and 0 for a warning.
    pub(crate) fn only_trouble(&self, name: &str, fault: &str) -> &Value {
        let step = self.trouble(name, fault);
        let code = if step["outcome"] == "warning" { 0 } else { promised(fault) };
        assert_eq!(self.code, code, "{:#}", self.document);
        step
    }

    /// Fails where there is no step of this name, or one that has not passed.
    pub(crate) fn assert_passed(&self, name: &str) {
        let mut of_name = self.steps().iter().filter(|step| step["name"] == name).peekable();
        let all = of_name.peek().is_some() && of_name.all(|step| step["outcome"] == "passed");
        assert!(all, "{name}: {:#}", self.document);
    }

    /// Names in their order, each once.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.steps().iter().map(|step| step["name"].as_str().unwrap()).collect();
        names.dedup();
        names
    }

    /// Names of the steps that ended so.
    pub(crate) fn ended(&self, outcome: &str) -> Vec<&str> {
        let ended = self.steps().iter().filter(|step| step["outcome"] == outcome);
        ended.map(|step| step["name"].as_str().unwrap()).collect()
    }

    pub(crate) fn failed(&self) -> Vec<&str> {
        self.ended("failed")
    }
}

/// The exit code that the page has for this fault.
pub(crate) fn promised(fault: &str) -> i32 {
    let row = format!("| `{fault}` | ");
    let code = include_str!("../../docs/check.md").lines().find_map(|line| line.strip_prefix(&row));
    let code = code.unwrap_or_else(|| panic!("{fault} is not in docs/check.md"));
    code.split(' ').next().unwrap().parse().unwrap()
}

/// Runs `pglease check --json` on these settings, with further arguments.
pub(crate) async fn check(world: &World<'_>, settings: &str, arguments: &[&str]) -> Checked {
    let arguments: Vec<_> = ["--json"].iter().chain(arguments).copied().collect();
    Checked::of(&run(world, settings, &arguments).await)
}

/// Runs `pglease check` to its end.
pub(crate) async fn run(world: &World<'_>, settings: &str, arguments: &[&str]) -> Output {
    let file = world.folder().join("check.toml");
    fs::write(&file, settings).unwrap();
    run_by(Command::new(BINARY), &file, arguments).await
}

/// Runs a check on this file by a program that is pglease in the end.
pub(crate) async fn run_by(mut command: Command, file: &Path, arguments: &[&str]) -> Output {
    command.args(["check", "--config-file"]).arg(file).args(arguments).env_clear().kill_on_drop(true);
    time::timeout(PATIENCE * 3, command.output()).await.expect("the check ends").expect("it starts")
}
