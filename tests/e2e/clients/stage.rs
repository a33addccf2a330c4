//! Plays two rotations and a lease end to all programs of a language at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::task;
use tokio::time::Instant;

use super::Client;
use crate::support::pglease::Pglease;
use crate::support::process::{Process, Spawn};
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

/// What came of it.
pub(crate) enum Played {
    /// A line about the toolchain that is not installed.
    Missing(String),
    /// By the name of the program.
    Done(BTreeMap<&'static str, Result<(), String>>),
}

/// Installs the language's clients where they are not yet, and plays.
pub(crate) async fn play(language: &'static str, clients: &'static [Client]) -> Played {
    let found = task::spawn_blocking(|| install(language)).await.unwrap();
    if let Some(missing) = found["missing"].as_str() {
        return Played::Missing(missing.to_owned());
    }
    Played::Done(Stage::set(clients, &found["programs"]).await.play().await)
}

pub(crate) fn install(language: &str) -> Value {
    let mut install = Command::new("python3");
    install.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/install.py")).arg(language);
    install.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = install.output().expect("python3, to run tests/clients/install.py");
    assert!(output.status.success(), "the clients of {language} are not there: see above");
    serde_json::from_slice(&output.stdout).expect("JSON of install.py")
}

/// pglease on leases that are renewed for as long as is wanted, and the programs.
struct Stage {
    world: World<'static>,
    pglease: Pglease,
    /// Before the first lease began.
    began: Instant,
    programs: Vec<Program>,
}

struct Program {
    name: &'static str,
    process: Process,
    /// Why it is out.
    failure: Option<String>,
    steps: &'static [&'static str],
}

impl Stage {
    async fn set(clients: &'static [Client], found: &Value) -> Self {
        let options = WorldOptions { vault_roles: vec![vault_role("1h")], ..WorldOptions::default() };
        let world = World::shared(options).await;
        let sql = format!(
            "CREATE TABLE client_rows (client text, id int, note text, PRIMARY KEY (client, id));
             GRANT SELECT, INSERT, UPDATE, DELETE ON client_rows TO {}",
            world.group("app_rw")
        );
        world.superuser.batch_execute(&sql).await.unwrap();

        let began = Instant::now();
        let route = world.route("db-app") + "at_lease_end = \"close\"\n";
        let pglease = pglease_with(&(world.settings() + &route)).await;
        let start = |&(name, steps): &Client| {
            let environment = [
                ("DATABASE_URL", pglease.database_url("app")),
                ("CLIENT", name.to_owned()),
                ("PGBIN", world.servers.postgres.bin().display().to_string()),
                ("PATH", crate::support::env("PATH").unwrap_or_default()),
                ("HOME", world.folder().display().to_string()),
            ];
            let process = spawn(&found[name], &environment, world.folder());
            Program { name, process, failure: None, steps }
        };
        let programs = clients.iter().map(start).collect();
        Self { world, pglease, began, programs }
    }

    async fn play(mut self) -> BTreeMap<&'static str, Result<(), String>> {
        // The steps come before it.
        self.wait_for("ok pool").await;
        self.check_steps();

        self.tell("busy", "ok busy").await;
        let told_before = self.told().len();
        for number in 1..=2 {
            self.pglease.run_command(&["rotate"]).await;
            self.pglease.wait_for_events("rotation.done", number, PATIENCE).await;
        }
        self.tell("idle", "ok idle").await;
        assert_eq!(self.told().len(), told_before, "a rotation leaves sessions alone");

        let all_told = self.playing().count() == 0 || self.end_leases().await;
        self.tell("use", "ok use").await;
        // What a program ends by itself shows nothing; unless it has died of what it was told.
        assert!(all_told || self.programs.iter().any(|program| program.failure.is_some()));
        self.tell("end", "ok end").await;
        self.wait_for_exit().await;
        let refused = self.pglease.events("session.refused").into_iter();
        let refused: Vec<_> = refused.filter(|refused| refused["blame"] != "client").collect();
        assert!(refused.is_empty(), "{refused:?}");
        let outcome = |program: Program| (program.name, program.failure.map_or(Ok(()), Err));
        self.programs.into_iter().map(outcome).collect()
    }

    /// Lets Vault extend the leases no further than a moment from now, and waits until the sessions that are open
    /// have ended. Whether all have been told why.
    async fn end_leases(&self) -> bool {
        let open: BTreeSet<_> = difference(&self.pglease, "session.start", "session.end");
        assert!(open.len() >= self.programs.iter().filter(|program| program.failure.is_none()).count());
        // No lease is older, and each is renewed once more before this.
        let max_ttl = self.began.elapsed() + D + D / 2;
        self.world.write_vault_role(&vault_role(format!("{}s", max_ttl.as_secs()).leak())).await;
        until(async || open.is_disjoint(&difference(&self.pglease, "session.start", "session.end"))).await;
        open.is_subset(&self.told().into_iter().collect())
    }

    /// Sessions that were ended by reason of their lease.
    fn told(&self) -> Vec<String> {
        let ends = self.pglease.events("session.end");
        ends.iter().filter(|end| end["reason"].as_str().unwrap().starts_with("lease")).map(session).collect()
    }

    /// Tells all and waits for everyone's answer.
    async fn tell(&mut self, command: &str, answer: &str) {
        for program in self.playing() {
            program.process.tell(command);
        }
        self.wait_for(answer).await;
    }

    async fn wait_for(&mut self, answer: &str) {
        let last_words = self.pglease.lines().clone();
        for program in self.playing() {
            let lines = program.process.lines();
            let said = lines.wait_for(LIMIT, |lines| said(lines, answer)).await;
            let log = || format!("{}\npglease:\n{}", lines.tail(), last_words.tail());
            program.failure = match said {
                Some(Ok(())) => None,
                Some(Err(failure)) => Some(format!("{failure}\n{}", log())),
                None => Some(format!("no \"{answer}\"; it said:\n{}", log())),
            };
        }
    }

    fn playing(&mut self) -> impl Iterator<Item = &mut Program> {
        self.programs.iter_mut().filter(|program| program.failure.is_none())
    }

    fn check_steps(&mut self) {
        for program in self.playing() {
            let lines = program.process.lines().all();
            let done: BTreeSet<_> = lines.iter().filter_map(|line| line.strip_prefix("ok ")).collect();
            let wanted: BTreeSet<_> = program.steps.iter().copied().chain(["pool"]).collect();
            if done != wanted {
                program.failure = Some(format!("it did {done:?}, and {wanted:?} is right"));
            }
        }
    }

    async fn wait_for_exit(&mut self) {
        for program in self.playing() {
            let status = program.process.wait_exit(LIMIT).await;
            if !status.success() {
                program.failure = Some(format!("{status}"));
            }
        }
    }
}

/// Sessions that have begun and not ended.
pub(super) fn difference(pglease: &Pglease, begin: &str, end: &str) -> BTreeSet<String> {
    let ended: BTreeSet<_> = pglease.events(end).iter().map(session).collect();
    pglease.events(begin).iter().map(session).filter(|session| !ended.contains(session)).collect()
}

pub(super) fn session(event: &Value) -> String {
    event["session"].to_string()
}

/// Whether the answer is there, or a failure is.
fn said(lines: &[String], answer: &str) -> Option<Result<(), String>> {
    let failure = lines.iter().find(|line| line.starts_with("failed "));
    if let Some(failure) = failure {
        return Some(Err(failure.clone()));
    }
    lines.iter().any(|line| line.starts_with(answer)).then_some(Ok(()))
}

pub(super) fn spawn(program: &Value, environment: &[(&str, String)], folder: &Path) -> Process {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let argv: Vec<_> = program["argv"].as_array().expect("it is installed").iter().map(text).collect();
    let own = program["env"].as_object().unwrap().iter();
    let own: Vec<_> = own.map(|(variable, value)| (variable.as_str(), text(value))).collect();
    let environment: Vec<_> =
        environment.iter().chain(&own).map(|(variable, value)| (*variable, value.as_str())).collect();
    Process::spawn_with_input(&Spawn {
        program: &PathBuf::from(&argv[0]),
        arguments: &argv[1..],
        environment: &environment,
        folder,
        uid: None,
        stop: Signal::KILL,
    })
}

/// Its leases are renewed each few seconds, so that a new `max_ttl` is heeded soon. The end of one takes nothing but
/// the right to log in: however late pglease is on a busy machine, nobody meets a role that is gone.
fn vault_role(max_ttl: &'static str) -> VaultRole {
    VaultRole { default_ttl: "20s", max_ttl, ..VaultRole::default() }
}

/// `default_ttl` of the role.
const D: Duration = Duration::from_secs(20);

/// For all steps of a program, beside those of the others, on a machine that does much else.
const LIMIT: Duration = PATIENCE.saturating_mul(3);
