//! What operators look at. Which PostgreSQL is behind does not matter: the tests run on one of them.

mod files;
mod reload;
mod check;
mod promtool;
mod alerts;
mod trouble;
mod cardinality;
mod runbook;
mod ports;
mod audit;
mod commands;
mod drain;
mod log;
mod rolling;
mod schema;
mod formats;
mod calls;
mod load;
mod warm;

use std::process::Output;

use tokio::process::Command;
use tokio::time;

use crate::{BINARY, PATIENCE};

/// Runs pglease with these arguments, without any variable, to its end.
async fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().kill_on_drop(true);
    time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}
