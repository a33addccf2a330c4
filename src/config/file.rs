//! The TOML file: every value with its line, what is no key or of the wrong shape refused.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use ring::digest;
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::error::{ConfigError, Place, Problem, Written, quoted, shown};
use super::keys::{self, FILE_TABLE, Key, Kind, ON_CHANGE_TABLE, ROUTE_TABLE};
use super::settings::{FileSettings, OneOf, Setting};
use super::value;

/// What a file holds, or why that is of no use.
#[derive(Clone)]
pub(crate) struct Content {
    text: Result<String, Problem>,
    print: Print,
}

/// Tells one content from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Print {
    /// In hexadecimal digits, as `sha256sum` prints it.
    Sha256(String),
    /// What cannot be read to its end.
    Unreadable(Problem),
}

impl Content {
    /// Reads the file. Blocks on the disk.
    pub(crate) fn read(path: &str) -> Self {
        match read_bytes(path) {
            Ok(bytes) => Self { print: Print::Sha256(sha256(&bytes)), text: text(bytes) },
            Err(problem) => Self { print: Print::Unreadable(problem.clone()), text: Err(problem) },
        }
    }

    pub(crate) fn print(&self) -> &Print {
        &self.print
    }
}

/// What is written may be private.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Content").field(&self.print).finish()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

/// Judges what the file that `named` names at its place holds. `None`: nothing that can be judged, and why is kept.
pub(crate) fn judge(
    named: &str,
    place: Place,
    content: &Content,
    errors: &mut Vec<ConfigError>,
) -> Option<FileSettings> {
    match &content.text {
        Ok(text) => parse(named, text, errors),
        Err(problem) => {
            let written = Written { key: "config_file".to_owned(), value: quoted(named), place };
            errors.push(ConfigError::Value { written, problem: problem.clone() });
            None
        }
    }
}

fn read_bytes(named: &str) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let file = value::open_file(Path::new(named))?;
    let read = file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes).map_err(value::unreadable)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE_LEN) {
        return Err(Problem::FileTooLarge { max_len: MAX_FILE_LEN });
    }
    Ok(bytes)
}

fn text(bytes: Vec<u8>) -> Result<String, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Problem::EmptyFile);
    }
    String::from_utf8(bytes).map_err(|_| Problem::FileNotUtf8)
}

/// Judges the `[[file]]` tables in the variable `name`, which has no others.
pub(crate) fn parse_files(name: &str, text: &str, errors: &mut Vec<ConfigError>) -> Vec<OneOf> {
    let Some(FileSettings { settings, routes, files }) = parse(name, text, errors) else { return Vec::new() };
    let others = settings.iter().map(|setting| (setting.key.name, &setting.place));
    for (key, place) in others.chain(routes.iter().map(|route| (ROUTE_TABLE, &route.place))) {
        let written = Written { key: key.to_owned(), value: "…".to_owned(), place: place.clone() };
        errors.push(ConfigError::Value { written, problem: Problem::NotAFileTable });
    }
    files
}

/// Judges the text of a file called `path`.
pub(crate) fn parse(path: &str, text: &str, errors: &mut Vec<ConfigError>) -> Option<FileSettings> {
    let mut walk = Walk { path, text, errors, file: FileSettings::default() };
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    if syntax_errors.is_empty() {
        walk.table("", document.get_ref());
        return Some(walk.file);
    }
    for error in syntax_errors {
        let place = walk.place(&error.span().unwrap_or_default());
        let message = error.message().replace('\n', ", ");
        walk.errors.push(ConfigError::Syntax { place, message });
    }
    None
}

/// A walk over a document.
struct Walk<'a> {
    path: &'a str,
    text: &'a str,
    errors: &'a mut Vec<ConfigError>,
    file: FileSettings,
}

impl Walk<'_> {
    /// Keys of the table `name`, and the tables in it.
    fn table(&mut self, name: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let place = self.place(&key.span());
            let name = join(name, key.get_ref());
            let value = value.get_ref();
            if key.get_ref().contains('.') {
                self.unknown(name, place);
            } else if let Some(array) = [ROUTE_TABLE, FILE_TABLE].into_iter().find(|array| *array == name) {
                self.array(array, value, place);
            } else if !keys::is_table(&name) {
                let setting = self.setting(name, value, place);
                self.file.settings.extend(setting);
            } else if let DeValue::Table(table) = value {
                self.table(&name, table);
            } else {
                let problem = Problem::NotATable { table: name.clone() };
                self.refuse(name, rendered(None, value), place, problem);
            }
        }
    }

    /// The tables of the array `name`.
    fn array(&mut self, name: &'static str, tables: &DeValue<'_>, place: Place) {
        let DeValue::Array(tables) = tables else {
            let value = rendered(None, tables);
            return self.refuse(name.to_owned(), value, place, Problem::NotTables { table: name });
        };
        for item in tables {
            let place = self.place(&item.span());
            if let DeValue::Table(table) = item.get_ref() {
                let mut settings = Vec::new();
                self.one_of(name, table, &mut settings);
                let one = OneOf { place, settings };
                (if name == FILE_TABLE { &mut self.file.files } else { &mut self.file.routes }).push(one);
            } else {
                let value = rendered(None, item.get_ref());
                self.refuse(name.to_owned(), value, place, Problem::NotTables { table: name });
            }
        }
    }

    /// The keys of one table of an array.
    fn one_of(&mut self, name: &str, table: &DeTable<'_>, settings: &mut Vec<Setting>) {
        for (key, value) in table {
            let place = self.place(&key.span());
            match (join(name, key.get_ref()), value.get_ref()) {
                (inner, DeValue::Table(table)) if inner == ON_CHANGE_TABLE => {
                    self.one_of(&inner, table, settings);
                }
                (inner, value) if inner == ON_CHANGE_TABLE => {
                    let problem = Problem::NotATable { table: inner.clone() };
                    self.refuse(inner, rendered(None, value), place, problem);
                }
                (key, value) => settings.extend(self.setting(key, value, place)),
            }
        }
    }

    /// What is written for one key, if there is such a key and it may be written so.
    fn setting(&mut self, name: String, value: &DeValue<'_>, place: Place) -> Option<Setting> {
        let Some(key) = keys::find(&name) else {
            self.unknown(name, place);
            return None;
        };
        if let Some(items) = items(key, value) {
            return Some(Setting { key, items, place });
        }
        let (found, expected, example) = (described(value), key.kind.expected(), key.kind.example());
        self.refuse(name, rendered(Some(key), value), place, Problem::WrongType { found, expected, example });
        None
    }

    fn unknown(&mut self, key: String, place: Place) {
        let nearest = keys::nearest_key(&key);
        self.errors.push(ConfigError::UnknownKey { key, place, nearest });
    }

    fn refuse(&mut self, key: String, value: String, place: Place, problem: Problem) {
        self.errors.push(ConfigError::Value { written: Written { key, value, place }, problem });
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        Place::File { path: self.path.to_owned(), line: before.matches('\n').count() + 1 }
    }
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// The value as text, where its TOML type is one that the key takes.
fn items(key: &Key, value: &DeValue<'_>) -> Option<Vec<String>> {
    let one = match (&key.kind, value) {
        (Kind::List, DeValue::Array(items)) => return list(items),
        (Kind::Integer { .. } | Kind::IntegerOr { .. }, DeValue::Integer(number)) => decimal(number),
        (Kind::Boolean, DeValue::Boolean(value)) => value.to_string(),
        (
            Kind::Text
            | Kind::Path
            | Kind::Url
            | Kind::Address
            | Kind::Upstream
            | Kind::Duration
            | Kind::IntegerOr { .. }
            | Kind::Word(_),
            DeValue::String(text),
        ) => text.clone().into_owned(),
        _ => return None,
    };
    Some(vec![one])
}

fn list(items: &DeArray<'_>) -> Option<Vec<String>> {
    items
        .iter()
        .map(Spanned::get_ref)
        .map(|item| match item {
            DeValue::String(text) => Some(text.clone().into_owned()),
            DeValue::Integer(number) => Some(decimal(number)),
            DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        })
        .collect()
}

/// In decimal, or as written where that is too large for any use.
fn decimal(number: &DeInteger<'_>) -> String {
    i128::from_str_radix(number.as_str(), number.radix())
        .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string())
}

fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A value of the wrong type, as it is shown; what is within arrays and tables is not.
fn rendered(key: Option<&Key>, value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => key.map_or_else(|| "\"…\"".to_owned(), |key| shown(key, text)),
        DeValue::Integer(number) => decimal(number),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(_) => "[…]".to_owned(),
        DeValue::Table(_) => "{…}".to_owned(),
    }
}

/// Settings are a page or two; more is some other file.
const MAX_FILE_LEN: u64 = 1024 * 1024;
