//! The steps of `pglease check` at PostgreSQL: each fault is made on a real server, and the cure, followed as it is
//! printed, makes the step pass.

mod database;
mod roles;
mod revocation;
mod hosts;

use serde_json::{Value, json};

use super::{Checked, check};
use crate::support::world::World;

/// Checks, and gives the first step of this name that ended so; fails where there is none.
async fn step(world: &World<'_>, settings: &str, name: &str, outcome: &str) -> Value {
    let checked = check(world, settings, &[]).await;
    step_of(&checked, name, outcome)
}

fn step_of(checked: &Checked, name: &str, outcome: &str) -> Value {
    let is_it = |step: &&Value| step["name"] == name && step["outcome"] == outcome;
    let found = checked.steps().iter().find(is_it);
    found.unwrap_or_else(|| panic!("no {name} that is {outcome} in {:#}", checked.document)).clone()
}

/// The step that has found this fault or warning; the exit code is that of the fault.
async fn trouble(world: &World<'_>, settings: &str, name: &str, fault: &str) -> Value {
    check(world, settings, &[]).await.only_trouble(name, fault).clone()
}

/// Finds the step well that was not, by this fault or warning.
async fn cured(world: &World<'_>, settings: &str, name: &str, fault: &str) {
    check(world, settings, &[]).await.cured(name, fault);
}

fn cure(step: &Value) -> &str {
    step["cure"].as_str().unwrap_or_else(|| panic!("no cure in {step}"))
}

fn found(step: &Value) -> &str {
    step["found"].as_str().unwrap()
}

/// Runs what the cure says, as a superuser, but for its comments.
async fn run(world: &World<'_>, cure: &str) {
    let sql: Vec<_> = cure.lines().filter(|line| line.ends_with(';')).collect();
    assert!(!sql.is_empty(), "no SQL in {cure}");
    for statement in sql {
        world
            .superuser
            .batch_execute(statement)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// The statement of the cure that makes leased roles.
fn statement(cure: &str) -> &str {
    let is_it = |line: &&str| line.starts_with("CREATE ROLE \"{{name}}\"");
    cure.lines().find(is_it).unwrap_or_else(|| panic!("no creation_statements in {cure}"))
}

/// Writes the `vault_role` db-app with these statements.
async fn write_role(world: &World<'_>, creation: &[&str], revocation: &[&str]) {
    let definition = json!({
        "db_name": "pg",
        "default_ttl": "1h",
        "max_ttl": "24h",
        "creation_statements": creation,
        "revocation_statements": revocation,
    });
    world.write(&format!("{}/roles/db-app", world.engine()), definition).await;
}

const NO_LOGIN: &[&str] = &["ALTER ROLE \"{{name}}\" NOLOGIN;"];

/// Settings with a route for all, with further keys of it, and as few sessions as the server has room for.
fn settings(world: &World<'_>, keys: &str) -> String {
    settings_for(world, &(world.route("db-app") + keys))
}

fn settings_for(world: &World<'_>, route: &str) -> String {
    world.settings_with("error", &world.servers.openbao.address(), "max_sessions = 20") + route
}

/// The route's `startup_role` is the world's owner.
fn as_owner(world: &World<'_>) -> String {
    settings(world, &format!("startup_role = {:?}\n", world.group("app_owner")))
}
