//! What is played, by family.

#![expect(clippy::too_many_lines, reason = "they are tables")]

pub(super) mod startup;
pub(super) mod parameters;
pub(super) mod authentication;
pub(super) mod tls;
pub(super) mod simple;
pub(super) mod extended;
pub(super) mod values;
pub(super) mod transactions;
pub(super) mod copy;
pub(super) mod others;
pub(super) mod ends;
pub(super) mod replication;
