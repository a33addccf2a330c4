//! Settings that are read again while the process runs: when the file is looked at, what of it takes effect, and what is
//! said of that. Pure: `app::reload` does it.

mod looks;
mod plan;

use serde::Serialize;

pub(crate) use looks::{Looks, Why};
pub(crate) use plan::{Plan, Routes};

use crate::config::{Origin, Print};

/// What is known of the settings, for `/status`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Status {
    /// None where there is no file: the settings then hold to the end.
    file: Option<String>,
    /// Of the file as it is in effect.
    sha256: Option<String>,
    /// When that was read: Unix time.
    loaded_at: u64,
    /// What is wrong with the file as it is now, if it is not the one in effect.
    last_error: Option<LastError>,
    /// Keys of which the file has other values than the process was started with.
    needs_restart: Vec<&'static str>,
}

/// A file that was of no use.
#[derive(Clone, Debug, Serialize)]
struct LastError {
    error: String,
    /// Unix time.
    at: u64,
}

impl Status {
    /// Of a file that was of use once.
    #[cfg(test)]
    pub(crate) fn example(file: &str) -> Self {
        Self {
            file: Some(file.to_owned()),
            sha256: Some("5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".to_owned()),
            loaded_at: 1_764_113_410,
            last_error: Some(LastError { error: "no <key>".to_owned(), at: 1_764_114_610 }),
            needs_restart: vec!["vault.address", "log.format"],
        }
    }

    /// Of a start at `now`.
    pub(crate) fn new(origin: &Origin, now: u64) -> Self {
        let mut status = Self { file: origin.sources.path(), ..Self::default() };
        status.loaded(origin, Vec::new(), now);
        status
    }

    /// Takes note of what is in effect from `now` on.
    pub(crate) fn loaded(&mut self, origin: &Origin, needs_restart: Vec<&'static str>, now: u64) {
        let sha256 = match &origin.print {
            Some(Print::Sha256(digits)) => Some(digits.clone()),
            Some(Print::Unreadable(_)) | None => None,
        };
        *self = Self { file: self.file.take(), sha256, loaded_at: now, last_error: None, needs_restart };
    }

    /// Takes note that what is in effect is what the file holds.
    pub(crate) fn unchanged(&mut self) {
        self.last_error = None;
    }

    /// Takes note that the file is of no use.
    pub(crate) fn rejected(&mut self, error: &str, now: u64) {
        self.last_error = Some(LastError { error: error.to_owned(), at: now });
    }

    pub(crate) fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    pub(crate) fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// When what is in effect was read: Unix time.
    pub(crate) fn loaded_at(&self) -> u64 {
        self.loaded_at
    }

    /// What is wrong with the file as it is now, and since when.
    pub(crate) fn last_error(&self) -> Option<(&str, u64)> {
        self.last_error.as_ref().map(|last| (last.error.as_str(), last.at))
    }

    /// Keys that change with a restart only.
    pub(crate) fn needs_restart(&self) -> &[&'static str] {
        &self.needs_restart
    }
}
