//! The page for people, in a real browser: `make test-browser`, or `cargo test --test browser`.
//!
//! Debian's Chromium, driven by `WebDriver`, shows the page of a real pglease with sessions, on a phone and on a desk,
//! light and dark. Where there is no browser the tests are skipped, and fail where `PGLEASE_TEST_BROWSER` is
//! `required`. The pictures stay in `target/browser`.

#![expect(
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

mod driver;
mod looks;

mod page;

use steps::{PATIENCE, pglease_for, rotate, start, until};
