//! What was written, with its places: the three ways laid over each other, and how values are taken from the result.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::error::{ConfigError, Place, Problem, Written, shown};
use super::keys::{self, Key, Kind, Preset, Reads};
use super::value;

/// A key, what somebody wrote for it, and where.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) key: &'static Key,
    /// One item where the key is no list.
    pub(crate) items: Vec<String>,
    pub(crate) place: Place,
}

impl Setting {
    /// From text outside the file, where commas separate the items of a list.
    pub(crate) fn from_text(key: &'static Key, text: &str, place: Place) -> Self {
        Self { key, items: items_of(key, text), place }
    }

    pub(crate) fn written(&self) -> Written {
        let shown: Vec<String> = self.items.iter().map(|item| shown(self.key, item)).collect();
        let value = shown.join(", ");
        let value = if self.key.kind == Kind::List { format!("[{value}]") } else { value };
        Written { key: self.key.name.to_owned(), value, place: self.place.clone() }
    }

    /// The value of a key that is no list.
    fn text(&self) -> &str {
        self.items.first().map(String::as_str).unwrap_or_default()
    }
}

fn items_of(key: &Key, text: &str) -> Vec<String> {
    if key.kind != Kind::List {
        return vec![text.to_owned()];
    }
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// Somebody may have written a secret where none belongs.
impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setting({})", self.written())
    }
}

/// What one way brings, in any order.
pub(crate) type Layer = Vec<Setting>;

/// What a file brings.
#[derive(Debug, Default)]
pub(crate) struct FileSettings {
    pub(crate) settings: Layer,
    pub(crate) routes: Vec<OneOf>,
    pub(crate) files: Vec<OneOf>,
}

/// One `[[route]]` or `[[file]]`.
#[derive(Debug)]
pub(crate) struct OneOf {
    pub(crate) place: Place,
    pub(crate) settings: Layer,
}

/// What holds by key.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    by_key: BTreeMap<&'static str, Setting>,
    /// Of the `[[route]]` or `[[file]]`, where these are one's.
    pub(crate) table: Option<Place>,
}

/// What holds of all that was written.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// What is neither a route's nor a file's.
    pub(crate) settings: Settings,
    pub(crate) routes: Vec<Settings>,
    pub(crate) files: Vec<Settings>,
}

impl Settings {
    /// What is written for a key that is no list.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.by_key.get(name).map(Setting::text)
    }

    /// What is written for a key, or its default, without what is nothing.
    pub(crate) fn items(&self, key: &Key) -> Vec<String> {
        let written = self.by_key.get(key.name).map(|setting| setting.items.clone());
        let mut items = written.unwrap_or_else(|| items_of(key, preset(key).unwrap_or_default()));
        items.retain(|item| !item.is_empty());
        items
    }

    fn lay(&mut self, layer: Layer) {
        self.by_key.extend(layer.into_iter().map(|setting| (setting.key.name, setting)));
    }
}

/// Lays `above`, highest last, over what the file says, without what `command` does not read. Of the file's routes none
/// may be changed from outside but an only one; where the file has none, what is outside makes one.
pub(crate) fn merge(
    command: Reads,
    file: FileSettings,
    above: impl IntoIterator<Item = Layer>,
    errors: &mut Vec<ConfigError>,
) -> Merged {
    let mut settings = Settings::default();
    let mut outside = Settings::default();
    let is_read = |setting: &Setting| setting.key.is_read_by(command);
    settings.lay(file.settings.into_iter().filter(is_read).collect());
    for layer in above {
        let layer = layer.into_iter().filter(is_read);
        let (of_route, others) = layer.partition(|setting| setting.key.is_of_route());
        settings.lay(others);
        outside.lay(of_route);
    }

    let mut routes: Vec<Settings> = file.routes.into_iter().map(of_table).collect();
    match routes.as_mut_slice() {
        [] if outside.by_key.is_empty() => {}
        [] => routes.push(outside),
        [route] => route.by_key.extend(outside.by_key),
        [..] => {
            let problem = Problem::SeveralRoutes { routes: routes.len() };
            errors.extend(
                outside.by_key.values().map(|setting| ConfigError::Value {
                    written: setting.written(),
                    problem: problem.clone(),
                }),
            );
        }
    }
    Merged { settings, routes, files: file.files.into_iter().map(of_table).collect() }
}

fn of_table(table: OneOf) -> Settings {
    let mut one = Settings { table: Some(table.place), ..Settings::default() };
    one.lay(table.settings);
    one
}

/// What says whether a file is of use.
pub(crate) type Check = fn(&str) -> Result<PathBuf, Problem>;

impl Files {
    fn check(self, check: Check) -> Check {
        match self {
            Self::Here => check,
            Self::Elsewhere => value::path,
        }
    }
}

/// Takes values from settings and keeps what is wrong with them, for the caller to look at in the end: a value that is
/// wrong comes out as `None`.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    settings: &'a Settings,
    errors: &'a mut Vec<ConfigError>,
    files: Files,
}

/// Where the files are that settings name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// On this machine: they are looked at.
    Here,
    /// Where the settings will hold. What stands here under the same path is no business of whoever wrote them.
    Elsewhere,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(settings: &'a Settings, errors: &'a mut Vec<ConfigError>, files: Files) -> Self {
        Self { settings, errors, files }
    }

    /// The value, or the default. The key has one, or is required.
    pub(crate) fn value<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let Some(text) = self.text(name) else {
            return self.missing(name);
        };
        parse(&text).map_err(|problem| self.fault(name, problem)).ok()
    }

    /// The value, if there is one: nothing written and nothing between the quotes are the same.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let text = self.text(name).filter(|text| !text.is_empty())?;
        parse(&text).map_err(|problem| self.fault(name, problem)).ok()
    }

    /// As [`Self::value`], for a path: `check` looks at what is there, where that is this machine.
    pub(crate) fn path(&mut self, name: &'static str, check: Check) -> Option<PathBuf> {
        self.value(name, self.files.check(check))
    }

    /// As [`Self::optional`], for a path.
    pub(crate) fn optional_path(&mut self, name: &'static str, check: Check) -> Option<PathBuf> {
        self.optional(name, self.files.check(check))
    }

    /// What says whether a path is of use.
    pub(crate) fn check(&self, check: Check) -> Check {
        self.files.check(check)
    }

    /// The whole number, within the key's bounds.
    pub(crate) fn integer(&mut self, name: &'static str) -> Option<usize> {
        let Kind::Integer { min, max } = keys::find(name)?.kind else { return None };
        self.value(name, |text| value::integer(text, min, max))
    }

    /// The same, or what `word` gives for the key's word, as far as the bounds go.
    pub(crate) fn integer_or(&mut self, name: &'static str, word: impl FnOnce() -> usize) -> Option<usize> {
        let Kind::IntegerOr { min, max, word: known } = keys::find(name)?.kind else { return None };
        let most = usize::try_from(max).unwrap_or(usize::MAX);
        self.value(name, |text| value::integer_or(text, min, max, known))
            .map(|number| number.unwrap_or_else(|| word().min(most)))
    }

    /// What `words` gives for the word that is written; they are those of the key.
    pub(crate) fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let Kind::Word(known) = keys::find(name)?.kind else { return None };
        self.value(name, |text| match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => Err(Problem::NotAWord { known }),
        })
    }

    /// Every item of the list, or of its default.
    pub(crate) fn list<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Vec<T>> {
        let items = match self.settings.by_key.get(name) {
            Some(setting) => setting.items.clone(),
            None => keys::find(name).map(|key| items_of(key, preset(key).unwrap_or_default()))?,
        };
        let parsed: Vec<Option<T>> =
            items.iter().map(|item| parse(item).map_err(|problem| self.fault(name, problem)).ok()).collect();
        // Only now, so that an item that is wrong does not hide the next.
        parsed.into_iter().collect()
    }

    /// Keeps that something is wrong with what is written for a key, or with its default.
    pub(crate) fn fault(&mut self, name: &'static str, problem: Problem) {
        if let Some(written) = self.written(name) {
            self.push(written, problem);
        }
    }

    /// Keeps that nobody wrote a key that is needed.
    pub(crate) fn missing<T>(&mut self, name: &'static str) -> Option<T> {
        // What is written wrongly in the file did not get here, and is not missing.
        if !self.errors.iter().any(|error| error.is_about(name)) {
            self.errors.push(ConfigError::Missing { key: name, table: self.settings.table.clone() });
        }
        None
    }

    /// The key with its value, as it is shown. `None` where there is neither value nor default.
    pub(crate) fn written(&self, name: &str) -> Option<Written> {
        if let Some(setting) = self.settings.by_key.get(name) {
            return Some(setting.written());
        }
        let key = keys::find(name)?;
        Some(Setting::from_text(key, preset(key)?, Place::Default).written())
    }

    /// Whether somebody wrote it.
    pub(crate) fn is_written(&self, name: &str) -> bool {
        self.settings.by_key.contains_key(name)
    }

    /// Whether somebody asked for something with it: for other than nothing, and than what holds anyway.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        let Some(setting) = self.settings.by_key.get(name) else { return false };
        let text = setting.text();
        let is_preset = || keys::find(name).and_then(preset) == Some(text);
        setting.items.len() > 1 || !text.is_empty() && !is_preset()
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.settings.by_key.get(name) {
            Some(setting) => Some(setting.text().to_owned()),
            None => keys::find(name).and_then(preset).map(str::to_owned),
        }
    }

    fn push(&mut self, written: Written, problem: Problem) {
        self.errors.push(ConfigError::Value { written, problem });
    }
}

fn preset(key: &Key) -> Option<&'static str> {
    match key.default {
        Preset::Value(text) => Some(text),
        Preset::Required | Preset::Absent(_) => None,
    }
}
