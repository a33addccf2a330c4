//! How long to wait for what is to come.

use std::time::Duration;

use tokio::time;

/// Waits until it is so.
pub(crate) async fn until(mut done: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !done().await {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    let is_done = time::timeout(PATIENCE, polled).await.is_ok();
    assert!(is_done, "it does not come true within {PATIENCE:?}");
}

/// On a machine that does much else, with controllers that take turns, and programs of 100 MB to load.
pub(crate) const PATIENCE: Duration = Duration::from_mins(10);
