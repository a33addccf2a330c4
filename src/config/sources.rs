//! The three ways as they were at start, to be read again while the process runs: flags and environment stay, the file
//! may change.

use std::ffi::OsString;
use std::fmt;

use clap::ArgMatches;

use super::file::Content;
use super::{ConfigErrors, InjectorConfig, Loaded, env, flags, load};

/// Where settings come from.
#[derive(Clone)]
pub(crate) struct Sources {
    matches: ArgMatches,
    variables: Vec<(OsString, OsString)>,
}

impl Sources {
    pub(crate) fn new(
        matches: &ArgMatches,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        Self { matches: matches.clone(), variables: variables.into_iter().collect() }
    }

    pub(super) fn matches(&self) -> &ArgMatches {
        &self.matches
    }

    pub(super) fn variables(&self) -> &[(OsString, OsString)] {
        &self.variables
    }

    /// Path of the file, where one is named.
    pub(crate) fn path(&self) -> Option<String> {
        let in_environment = || env::read(self.variables.clone(), &mut Vec::new()).config_file;
        flags::read(&self.matches).config_file.or_else(in_environment)
    }

    /// What the file holds now. Blocks on the disk.
    pub(crate) fn read(&self) -> Option<Content> {
        self.path().map(|path| Content::read(&path))
    }

    /// The settings, with this in the file. Blocks on the files that they name.
    pub(crate) fn load(&self, content: Option<&Content>) -> Result<Loaded, ConfigErrors> {
        load::load_with(self, content)
    }

    /// The same for those of `pglease injector`.
    pub(crate) fn load_injector(
        &self,
        content: Option<&Content>,
    ) -> Result<Loaded<InjectorConfig>, ConfigErrors> {
        load::load_injector_with(self, content)
    }
}

/// What is in the environment is for nobody to see.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("path", &self.path()).finish_non_exhaustive()
    }
}
