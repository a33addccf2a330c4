//! End to end: real servers, the real program, real client libraries.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what fails here fails the test"
)]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches and the demo use other parts of it")]
mod support;

mod steps;

mod servers;
mod namespace;
mod raw;
mod goodbye;
mod start;
mod machine;
mod wire;
mod pressure;
mod replication;
mod stream;
mod tls;
mod encryption;
mod records;
mod hosts;
mod failover;
mod addresses;
mod logins;
mod impostor;
mod refusals;
mod rotation;
mod replay;
mod scenarios;
mod trouble;
mod drain;
mod admin;
mod operators;
mod check;
mod setup;
mod deploy;
mod injector;
mod mounts;
mod pgbench;
mod clients;
mod secrets;
mod errors;
mod hostile;
mod floods;
mod auth;
mod protocol;
mod differential;
mod isolation;

use steps::{
    BINARY, PATIENCE, expect_rest, pglease_for, pglease_with, refused_revocations, rotate, start, until,
    until_alive, until_revoked, until_served, until_without_session, user_of,
};
