//! pglease beside no proxy, HAProxy and PgBouncer, on real servers: `make bench`, `make bench-quick`.
//!
//! What is measured is the table in `scenarios.rs`. The ways to the database of a scenario are measured in turn, in
//! random order, round by round, and are compared within a round: what else the machine does meets all of them. Each
//! scenario that is done stays in `target/bench`, and is not measured again unless asked for.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tables for people; what fails here fails the bench"
)]

#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use other parts of it")]
mod support;

#[path = "../measure/mod.rs"]
mod measure;

#[path = "../shipped.rs"]
mod shipped;

#[path = "../load/database.rs"]
mod database;
#[path = "../load/engine.rs"]
mod engine;

mod options;
mod scenarios;
mod peers;
mod stage;
mod accounting;
mod programs;
mod connects;
mod idle;
mod scripted;
mod sealed;
mod rotation;
mod start;
mod runner;
mod kept;

use std::process::ExitCode;

use options::{Options, Task};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let options = Options::parse();
    match options.task {
        Task::List => {
            for scenario in scenarios::chosen(&options) {
                println!("{:24} {}", scenario.name, scenario.what);
            }
        }
        Task::Fill => return kept::fill_page(),
        Task::Measure => {
            let is_well = runner::run(options).await;
            support::process::finish();
            return if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    }
    ExitCode::SUCCESS
}
