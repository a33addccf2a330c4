//! `[[file]]`: which credentials are written where, in what shape, and who is told.

use std::path::{Path, PathBuf};

use url::{Host, Url};

use super::error::{ConfigError, Place, Problem};
use super::keys::FILE_TABLE;
use super::settings::{Files, Reader, Settings};
use super::value::{self, is_loopback};
use super::{
    FileConfig, FileSignal, FormatConfig, OnChange, TargetConfig, TemplateSource, UpstreamConfig, conninfo,
    routes, upstream, vault,
};

/// All files in their order; one that is wrong is missing, and why is kept.
pub(crate) fn read(
    files: &[Settings],
    routes: &[Settings],
    on: Files,
    errors: &mut Vec<ConfigError>,
) -> Vec<FileConfig> {
    let mut read = Vec::with_capacity(files.len());
    let mut paths: Vec<(PathBuf, Option<Place>)> = Vec::with_capacity(files.len());
    for settings in files {
        let mut reader = Reader::new(settings, errors, on);
        let Some(file) = file(&mut reader, routes) else { continue };
        let place = real_path(&file.path);
        match paths.iter().find(|(earlier, _)| *earlier == place) {
            Some((_, other)) => {
                let other = other.clone().unwrap_or(Place::Default);
                reader.fault(PATH, Problem::SamePath { other });
            }
            None => paths.push((place, settings.table.clone())),
        }
        read.push(file);
    }
    read
}

/// What settings give up.
pub(crate) fn warnings(files: &[FileConfig]) -> Vec<String> {
    let is_open = |file: &&FileConfig| file.mode & OTHERS_READ != 0;
    let warning = |file: &FileConfig| {
        format!(
            "{FILE_TABLE}.mode {:04o} of {} lets every user of the machine or container read a credential; use 0640, \
             or 0600",
            file.mode,
            file.path.display()
        )
    };
    files.iter().filter(is_open).map(warning).collect()
}

/// Where the path leads, by whatever links.
fn real_path(path: &Path) -> PathBuf {
    let directory = path.parent().map(|parent| parent.canonicalize().unwrap_or_else(|_| parent.to_owned()));
    let name = path.file_name();
    directory.zip(name).map_or_else(|| path.to_owned(), |(directory, name)| directory.join(name))
}

fn file(reader: &mut Reader<'_>, routes: &[Settings]) -> Option<FileConfig> {
    let path = path(reader);
    let vault_path = reader.value("file.vault_path", vault::path);
    let format = format(reader);
    let mode = reader.value("file.mode", value::file_mode);
    let keep = reader.optional("file.keep", value::duration);
    let optional = reader.value("file.optional", value::boolean);
    let on_change = on_change(reader);
    let upstream = reader.optional(UPSTREAM, value::text);
    let own = match &upstream {
        Some(text) => Some(routes::upstream_of(reader, UPSTREAM, text)?),
        None => None,
    };
    let (vault_path, format) = (vault_path?, format?);
    if reader.is_given(SERVICE) && format != FormatConfig::PgService {
        reader.fault(SERVICE, Problem::OfAnotherFormat { format: "pg_service" });
    }
    let target = match (upstream, format.tells()) {
        (_, Tells::Nothing) => None,
        (Some(text), tells) => Some(target(reader, &text, own.as_ref(), None, tells)?),
        (None, tells) => target_of_route(reader, routes, &vault_path, tells)?,
    };
    Some(FileConfig {
        path: path?,
        vault_path,
        format,
        mode: mode?,
        upstream: own,
        target,
        keep,
        on_change: on_change?,
        optional: optional?,
    })
}

/// A path without surprises: what is there would be replaced.
fn path(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let path = reader.path(PATH, value::replaceable_file)?;
    let problem = if !path.is_absolute() {
        Problem::NotAbsolute
    } else if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        Problem::NoFileName
    } else {
        return Some(path);
    };
    reader.fault(PATH, problem);
    None
}

fn format(reader: &mut Reader<'_>) -> Option<FormatConfig> {
    let word = reader.word(
        FORMAT,
        &[
            ("username-password", Shape::Fixed(&FormatConfig::UsernamePassword)),
            ("json", Shape::Fixed(&FormatConfig::Json)),
            ("env", Shape::Fixed(&FormatConfig::Env)),
            ("pgpass", Shape::Fixed(&FormatConfig::Pgpass)),
            ("pg_service", Shape::Fixed(&FormatConfig::PgService)),
            ("uri", Shape::Fixed(&FormatConfig::Uri)),
            ("properties", Shape::Fixed(&FormatConfig::Properties)),
            ("template", Shape::Template),
        ],
    );
    let text = reader.optional(TEMPLATE, value::lines);
    let file = reader.optional_path(TEMPLATE_FILE, value::readable_file);
    match word? {
        Shape::Fixed(format) => {
            for name in [TEMPLATE, TEMPLATE_FILE] {
                if reader.is_given(name) {
                    reader.fault(name, Problem::OfAnotherFormat { format: "template" });
                }
            }
            Some(format.clone())
        }
        Shape::Template => {
            if reader.is_given(TEMPLATE)
                && reader.is_given(TEMPLATE_FILE)
                && let Some(other) = reader.written(TEMPLATE_FILE)
            {
                reader.fault(TEMPLATE, Problem::OneOfTwo { other });
            } else if !reader.is_given(TEMPLATE) && !reader.is_given(TEMPLATE_FILE) {
                reader.fault(FORMAT, Problem::NoTemplate);
            }
            let source = text.map(TemplateSource::Inline).or(file.map(TemplateSource::File));
            source.map(FormatConfig::Template)
        }
    }
}

/// What a word for a format stands for.
#[derive(Clone, Copy)]
enum Shape {
    Fixed(&'static FormatConfig),
    Template,
}

impl FormatConfig {
    /// What it tells of the server that the credential is for.
    fn tells(&self) -> Tells {
        match self {
            Self::PgService | Self::Uri => Tells::Database,
            Self::Pgpass => Tells::Host,
            Self::Json | Self::Env | Self::Properties => Tells::WhatIsKnown,
            Self::UsernamePassword | Self::Template(_) => Tells::Nothing,
        }
    }

    /// The word in settings.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::UsernamePassword => "username-password",
            Self::Json => "json",
            Self::Env => "env",
            Self::Pgpass => "pgpass",
            Self::PgService => "pg_service",
            Self::Uri => "uri",
            Self::Properties => "properties",
            Self::Template(_) => "template",
        }
    }
}

/// What a format tells of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    Nothing,
    /// Where it is known.
    WhatIsKnown,
    /// It is of no use without.
    Host,
    /// Neither without the database: libpq would take the user's name for it.
    Database,
}

/// Where the only route with this `vault_path` leads; the inner one is `None` where that is not known and not needed.
#[expect(clippy::option_option, reason = "wrong or absent")]
fn target_of_route(
    reader: &mut Reader<'_>,
    routes: &[Settings],
    vault_path: &str,
    tells: Tells,
) -> Option<Option<TargetConfig>> {
    let text = |route: &Settings, name| route.text(name).map(str::to_owned);
    let is_same = |route: &&Settings| {
        text(route, "route.vault_path")
            .is_some_and(|path| vault::path(&path).is_ok_and(|path| path == vault_path))
    };
    let same: Vec<_> = routes.iter().filter(is_same).collect();
    let [route] = same.as_slice() else {
        if tells == Tells::WhatIsKnown {
            return Some(None);
        }
        reader.fault(FORMAT, Problem::NoUpstream { routes: same.len() });
        return None;
    };
    let upstream_text = text(route, "route.upstream")?;
    // What is wrong with it is said of the route.
    let upstream = upstream::parse(&upstream_text).ok()?;
    let database = text(route, "route.database").filter(|database| database != "*");
    target(reader, &upstream_text, Some(&upstream), database, tells).map(Some)
}

/// What `text` says to those who connect by themselves; `database` is for where it names none.
fn target(
    reader: &mut Reader<'_>,
    text: &str,
    upstream: Option<&UpstreamConfig>,
    database: Option<String>,
    tells: Tells,
) -> Option<TargetConfig> {
    let service = reader.value(SERVICE, value::text)?;
    let (upstream, pairs) = (upstream?, conninfo::parse(text).ok()?);
    let database = upstream.database.clone().or(database);
    if database.is_none() && tells == Tells::Database {
        reader.fault(FORMAT, Problem::NoDatabase);
        return None;
    }
    let database = database.unwrap_or_default();
    let last =
        |wanted: &str| pairs.iter().rev().find(|(keyword, _)| keyword == wanted).map(|(_, value)| value);
    let ssl_mode = last("sslmode").filter(|mode| !mode.is_empty()).map_or("verify-full", String::as_str);
    let mut options = vec![("sslmode".to_owned(), ssl_mode.to_owned())];
    for (keyword, _) in &pairs {
        let is_told =
            !ELSEWHERE.contains(&keyword.as_str()) && !options.iter().any(|(told, _)| told == keyword);
        if let Some(value) = last(keyword).filter(|value| is_told && !value.is_empty()) {
            options.push((keyword.clone(), value.clone()));
        }
    }
    let hosts = upstream.hosts.iter().map(|host| (host.name.clone(), host.port)).collect();
    Some(TargetConfig { hosts, database, options, service })
}

/// Keywords that are no option of a target.
const ELSEWHERE: &[&str] = &["host", "hostaddr", "port", "dbname"];

/// At most one way.
fn on_change(reader: &mut Reader<'_>) -> Option<OnChange> {
    let given: Vec<_> = [SIGNAL, URL, COMMAND].into_iter().filter(|name| reader.is_given(name)).collect();
    if let [one, other, ..] = given.as_slice()
        && let Some(other) = reader.written(other)
    {
        reader.fault(one, Problem::OneOfTwo { other });
        return None;
    }
    let process = reader.optional(PROCESS, process);
    let timeout = reader.value(TIMEOUT, value::positive_duration)?;
    let takes_time = matches!(given.as_slice(), [URL | COMMAND]);
    if reader.is_given(TIMEOUT) && !takes_time {
        reader.fault(TIMEOUT, Problem::NothingToTime);
    }
    if reader.is_given(PROCESS) && given != [SIGNAL] {
        return reader.missing(SIGNAL);
    }
    match given.as_slice() {
        [SIGNAL] => {
            let signal = reader.word(SIGNAL, SIGNALS)?;
            if !reader.is_given(PROCESS) {
                return reader.missing(PROCESS);
            }
            Some(OnChange::Signal { signal, name: process? })
        }
        [URL] => Some(OnChange::Http { url: reader.value(URL, loopback_url)?, timeout }),
        [COMMAND] => {
            let mut words = reader.list(COMMAND, word)?.into_iter();
            let program = words.next().filter(|program| !program.is_empty());
            let Some(program) = program else {
                reader.fault(COMMAND, Problem::NoProgram);
                return None;
            };
            Some(OnChange::Command { program, arguments: words.collect(), timeout })
        }
        _ => Some(OnChange::Nothing),
    }
}

/// One argument: anything that a program can be given.
fn word(text: &str) -> Result<String, Problem> {
    if text.contains('\0') { Err(Problem::ControlCharacter) } else { Ok(text.to_owned()) }
}

fn process(text: &str) -> Result<String, Problem> {
    let name = value::text(text)?;
    if name.contains('/') { Err(Problem::NotAProcess) } else { Ok(name) }
}

fn loopback_url(text: &str) -> Result<Url, Problem> {
    let url = Url::parse(text).map_err(|_| Problem::NotLoopbackUrl)?;
    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => is_loopback(ip.into()),
        Some(Host::Ipv6(ip)) => is_loopback(ip.into()),
        None => false,
    };
    let is_plain = url.scheme() == "http" && url.username().is_empty() && url.password().is_none();
    if is_local && is_plain { Ok(url) } else { Err(Problem::NotLoopbackUrl) }
}

const SIGNALS: &[(&str, FileSignal)] = &[
    ("SIGHUP", FileSignal::Hangup),
    ("SIGINT", FileSignal::Interrupt),
    ("SIGQUIT", FileSignal::Quit),
    ("SIGUSR1", FileSignal::User1),
    ("SIGUSR2", FileSignal::User2),
    ("SIGTERM", FileSignal::Terminate),
    ("SIGWINCH", FileSignal::WindowChange),
];

const PATH: &str = "file.path";
const FORMAT: &str = "file.format";
const TEMPLATE: &str = "file.template";
const TEMPLATE_FILE: &str = "file.template_file";
const UPSTREAM: &str = "file.upstream";
const SERVICE: &str = "file.service";
const SIGNAL: &str = "file.on_change.signal";
const PROCESS: &str = "file.on_change.process";
const URL: &str = "file.on_change.url";
const COMMAND: &str = "file.on_change.command";
const TIMEOUT: &str = "file.on_change.timeout";
/// `S_IROTH` of chmod(2).
const OTHERS_READ: u32 = 0o004;
