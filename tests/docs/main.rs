//! What is written for operators holds together: links, commands, and the alerts and dashboards with the metrics and
//! the runbook. Starts nothing, and takes no time.

#![expect(clippy::panic, clippy::unwrap_used, reason = "what fails here fails the test")]

mod pages;
mod links;
mod commands;
mod faults;
mod monitoring;
