//! How much longer a pod takes to start: from pglease's start to its first 200 on `/startup`, as the startup probe of
//! the sidecar asks. With a login, a credential and its proof on real servers. `make bench-ready`.

#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a figure for people; what fails here fails the bench"
)]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests use other parts of it")]
mod support;

mod shipped;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{self, Instant};

use support::pglease::Pglease;
use support::world::{World, WorldOptions};
use support::{http_client, process};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let world = World::shared(WorldOptions::default()).await;
    let openbao = &world.servers.openbao;
    let settings = world.settings_with("info", &openbao.tls_address(), "") + &world.route("db-app");
    let ca_file = openbao.ca_file().display().to_string();
    let settings = settings.replacen("[vault]\n", &format!("[vault]\nca_file = {ca_file:?}\n"), 1);
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        let pglease = Pglease::start(&shipped::PROGRAM, &settings).await;
        let startup = pglease.http_url("/startup");
        while http_client().get(&startup).send().await.unwrap().status() != 200 {
            time::sleep(Duration::from_millis(1)).await;
        }
        took.push(began.elapsed());
    }
    took.sort();
    println!(
        "start to /startup, {RUNS} runs, in ms: shortest {}, median {}, longest {}",
        took[0].as_millis(),
        took[RUNS / 2].as_millis(),
        took[RUNS - 1].as_millis()
    );
    drop(world);
    process::finish();
    ExitCode::SUCCESS
}

const RUNS: usize = 20;
