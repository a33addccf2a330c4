//! End to end: real servers, the real program, real client libraries.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches and the demo use other parts of it")]
mod support;

mod servers;

use std::time::Duration;

use tokio::time;

/// Waits for what no event tells.
async fn until(mut done: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !done().await {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let is_done = time::timeout(PATIENCE, polled).await.is_ok();
    assert!(is_done, "it does not come true within {PATIENCE:?}");
}

/// For what takes its time on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(40);
