//! End to end, and longer than a minute: `make test-all` runs them, or `cargo test --test long`.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the other tests use other parts of it")]
mod support;
#[path = "../e2e/steps.rs"]
#[expect(dead_code, reason = "the other tests use other parts of it")]
mod steps;
#[path = "../e2e/raw.rs"]
#[expect(dead_code, reason = "the other tests use other parts of it")]
mod raw;
#[path = "../e2e/goodbye.rs"]
mod goodbye;

#[path = "../e2e/stream/large.rs"]
mod large;

mod load;
mod report;

mod coupled;
mod crash;
mod demo;
mod fleet;
mod inserts;
mod rotations;
mod soak;
mod stalled;
mod vanished;

use steps::{PATIENCE, pglease_with, until};
