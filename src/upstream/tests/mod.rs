//! Logins against scripted servers: `one` at one address, `several` at several hosts.

mod one;
mod several;
mod setup;
