//! What an event says, as text.

use std::fmt::{self, Write as _};

use tracing::Event;
use tracing::field::{Field, Visit};

/// The fields of an event, in their order; without those that bridge from the `log` crate, but for the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        if fields.get(EVENT).is_none() && fields.get(BRIDGED).is_none() {
            fields.0.push((BRIDGED, event.metadata().target().to_owned()));
        }
        fields.0.retain(|(name, _)| *name == BRIDGED || !name.starts_with("log."));
        fields
    }

    #[cfg(test)]
    pub(super) fn new(fields: &[(&'static str, &str)]) -> Self {
        Self(fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Its stable name; of a library's line who has said it.
    pub(super) fn event(&self) -> &str {
        self.get(EVENT).or_else(|| self.get(BRIDGED)).unwrap_or_default()
    }

    /// The words for people.
    pub(super) fn message(&self) -> Option<&str> {
        self.get(MESSAGE)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Those beside the event's name and the words.
    pub(super) fn rest(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.iter().filter(|(name, _)| ![EVENT, BRIDGED, MESSAGE].contains(name))
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // To a string it does not fail.
        let _ = write!(text, "{value:?}");
        self.0.push((field.name(), text));
    }
}

const EVENT: &str = "event";
const MESSAGE: &str = "message";
/// Whose line it is, where it came by the `log` crate.
const BRIDGED: &str = "log.target";
