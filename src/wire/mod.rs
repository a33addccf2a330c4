//! PostgreSQL's protocol 3 as bytes: parsers and writers of messages, without any I/O.

pub(crate) mod message;
pub(crate) mod frame;
pub(crate) mod startup;
pub(crate) mod negotiation;
pub(crate) mod authentication;
pub(crate) mod scram;
pub(crate) mod binding;
pub(crate) mod sasl;
pub(crate) mod scram_server;
pub(crate) mod verifier;
pub(crate) mod error;
mod sqlstate;
pub(crate) mod query;
pub(crate) mod status;
