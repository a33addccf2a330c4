//! PostgreSQL-wire authentication proxy: applications reach PostgreSQL without a password, on short-lived credentials
//! leased from Vault or OpenBao.
//!
//! To read it, follow one session from accept to close, one file per step:
//!
//! 1. `listener` accepts a connection of an application and gives it a task;
//! 2. `session::startup` reads what it wants: TLS, a cancel, or a session with a database and a user;
//! 3. `session::auth` asks who it is, `session::route` where it goes and on which `vault_path`;
//! 4. `session::login` takes a hold on the current credential of that path (`credential`) and logs in with it
//!    (`upstream`);
//! 5. `session::relay` moves bytes both ways until one side, the lease or a drain ends it;
//! 6. `session::close` tells each side what it needs to know, and the hold is given back.
//!
//! Beside the path, on a thread of its own, `lease` fetches credentials from `vault`, proves and publishes them, and
//! keeps each one alive while a session holds it. The two sides meet in `credential` only.

mod cli;
mod app;
mod listener;
mod session;
mod upstream;
mod credential;
mod roster;
mod lease;
mod file;
mod render;
mod vault;
mod wire;
mod net;
mod tls;
mod config;
mod reload;
mod drain;
mod backoff;
mod ids;
mod telemetry;
mod http;
mod admin;
mod check;
mod injector;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;

pub use cli::run;

/// For `benches/micro.rs`.
#[doc(hidden)]
pub mod micro;

/// For `benches/fleet.rs`.
#[doc(hidden)]
pub mod simulation {
    pub use crate::lease::simulation::{Request, Rules, live};
}
