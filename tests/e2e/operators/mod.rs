//! What operators look at. Which PostgreSQL is behind does not matter: the tests run on one of them.

mod check;
mod promtool;
mod alerts;
mod trouble;
mod cardinality;
mod runbook;
mod ports;
