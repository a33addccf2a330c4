//! The Vault Agent's templates, as far as they render a database credential: Consul-template's language, byte for
//! byte, and every other word of it refused at start with the nearest thing that works.
//!
//! Text goes to tokens (`lexer`), to nodes whose every value has a known type (`parser`, `expression`), and with a
//! credential to bytes (`evaluate`). What is accepted can only fail by growing too long.

mod error;
mod evaluate;
mod expression;
mod function;
mod lexer;
mod parser;
mod types;

#[cfg(test)]
mod tests;

use zeroize::Zeroizing;

use super::buffer::Buffer;
use super::{RenderError, Secret};

pub(crate) use error::TemplateError;

/// A template that can be rendered for any credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    nodes: Vec<evaluate::Node>,
    slots: usize,
}

impl Template {
    /// The template that `text` is, where all that it reads is `vault_path`.
    pub(crate) fn parse(text: &str, vault_path: &str) -> Result<Self, TemplateError> {
        match parser::parse(text, vault_path) {
            Ok(parser::Parsed { nodes, slots }) => Ok(Self { nodes, slots }),
            Err((at, fault)) => Err(TemplateError::new(text, at, fault)),
        }
    }

    /// The paths that `text` reads, in their order; none where it is no template at all.
    pub(crate) fn paths(text: &str) -> Vec<String> {
        lexer::paths(text)
    }

    pub(super) fn render(&self, secret: &Secret<'_>) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        let mut out = Buffer::default();
        evaluate::write(&self.nodes, self.slots, secret, &mut out);
        out.finish()
    }
}
