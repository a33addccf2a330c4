//! The load generator that operators size a fleet with.

use std::path::Path;

use serde_json::Value;
use tokio::process::Command;
use tokio::time;

use crate::support::world::{World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_for};

#[tokio::test]
async fn load_generator_tells_what_a_rate_on_some_sessions_takes() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let url = pglease.database_url(&world.database());
    let arguments = ["--sessions", "3", "--rate", "100", "--duration", "1s", "--life", "7", "--json"];
    let (code, summary) =
        load(&[&["--url", &url][..], &arguments, &["--query", "3:SELECT 1"]].concat()).await;
    assert_eq!(code, Some(0), "{summary}");
    // All that were due, however late.
    assert_eq!(summary["statements"]["count"], 100, "{summary}");
    assert!(summary["connects"]["count"].as_u64().unwrap() >= 100 / 7, "{summary}");
    let [p50, longest] = ["p50_ms", "longest_ms"].map(|name| summary["statements"][name].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= longest, "{summary}");

    let failing = [
        "--url",
        &url,
        "--sessions",
        "1",
        "--rate",
        "20",
        "--duration",
        "500ms",
        "--json",
        "--query",
        "SELECT 1/0",
    ];
    let (code, summary) = load(&failing).await;
    assert_eq!(code, Some(1), "{summary}");
    assert_eq!(summary["statements"]["errors"]["22012 division by zero"], 10, "{summary}");
}

async fn load(arguments: &[&str]) -> (Option<i32>, Value) {
    let profile = Path::new(BINARY).parent().unwrap();
    let program = profile.join("examples/load");
    // `cargo test` has built it; `cargo test --test e2e` has not.
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--example", "load", "--target-dir"]);
        build.arg(profile.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().await.unwrap().success(), "the load generator is built");
    }
    let mut command = Command::new(program);
    command.args(arguments).env_clear().kill_on_drop(true);
    let output = time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    (output.status.code(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}")))
}
