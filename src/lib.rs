//! PostgreSQL-wire authentication proxy: applications reach PostgreSQL without a password, on short-lived credentials
//! leased from Vault or OpenBao.

#![expect(dead_code, unused_imports, reason = "called by what comes next")]

mod listener;
mod session;
mod upstream;
mod credential;
mod lease;
mod vault;
mod wire;
mod net;
mod tls;
mod config;
mod drain;
mod backoff;
mod ids;
mod telemetry;
