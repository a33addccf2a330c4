//! The log for people: one line an event, `time level event  name=value …  words`.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::SystemTime;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::Fields;

/// The format.
pub(super) struct ForPeople;

impl<S, N> FormatEvent<S, N> for ForPeople
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let is_coloured = writer.has_ansi_escapes();
        write_line(&mut writer, SystemTime::now(), *event.metadata().level(), &Fields::of(event), is_coloured)
    }
}

/// In UTC. What is not plain stands in quotes, with all that a terminal might obey written out: who chooses a name
/// cannot make it look like another field, or another line.
fn write_line(
    out: &mut impl Write,
    at: SystemTime,
    level: Level,
    fields: &Fields,
    is_coloured: bool,
) -> fmt::Result {
    let (on, off) = if is_coloured { (colour(level), "\x1b[0m") } else { ("", "") };
    let time = humantime::format_rfc3339_millis(at);
    let event = fields.event();
    write!(out, "{time} {on}{:<5}{off} ", level.as_str())?;
    let is_last = fields.rest().next().is_none() && fields.message().is_none();
    let width = if is_last { 0 } else { EVENT_WIDTH };
    write!(out, "{event:<width$}")?;
    for (name, value) in fields.rest() {
        write!(out, " {name}={}", shown(value))?;
    }
    if let Some(message) = fields.message() {
        let before = if fields.rest().next().is_some() { "  " } else { " " };
        let is_control = |letter: char| letter.is_control() && letter != '\t';
        write!(out, "{before}{}", message.replace(is_control, " "))?;
    }
    out.write_char('\n')
}

fn shown(value: &str) -> Cow<'_, str> {
    let is_plain =
        |letter: char| !(letter.is_whitespace() || letter.is_control() || "\"'=\\".contains(letter));
    let escaped = || format!("{value:?}");
    // What is no letter of any script is escaped, too.
    if !value.is_empty() && value.chars().all(is_plain) && escaped().len() == value.len() + 2 {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(escaped())
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[1;31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

/// Most names are no longer.
const EVENT_WIDTH: usize = 22;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(level: Level, fields: &[(&'static str, &str)], is_coloured: bool) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_115_200_042);
        let mut line = String::new();
        write_line(&mut line, at, level, &Fields::new(fields), is_coloured).unwrap();
        line
    }

    #[test]
    fn line_is_time_level_event_fields_and_words() {
        for (level, fields, expected) in [
            (Level::INFO, &[("event", "listen.end")][..], "INFO  listen.end"),
            (
                Level::INFO,
                &[("event", "lease.renewed"), ("vault_path", "database/creds/db-app"), ("capped", "false")],
                "INFO  lease.renewed          vault_path=database/creds/db-app capped=false",
            ),
            (
                Level::WARN,
                &[
                    ("message", "sessions end"),
                    ("event", "lease.revoked_early"),
                    ("lease", "1f"),
                    ("error", "connecting: refused"),
                ],
                "WARN  lease.revoked_early    lease=1f error=\"connecting: refused\"  sessions end",
            ),
            (
                Level::ERROR,
                &[("message", "a bug"), ("event", "lease.fault")],
                "ERROR lease.fault            a bug",
            ),
            (
                Level::DEBUG,
                &[("event", "injector.certificate_reload_failed"), ("error", "")],
                "DEBUG injector.certificate_reload_failed error=\"\"",
            ),
            (
                Level::WARN,
                &[("message", "no\nmore\u{1b}[2J"), ("log.target", "rustls::x")],
                "WARN  rustls::x              no more [2J",
            ),
        ] {
            assert_eq!(line(level, fields, false), format!("2025-11-26T00:00:00.042Z {expected}\n"));
        }
    }

    #[test]
    fn value_that_could_be_taken_for_more_is_quoted() {
        for (value, shown) in [
            ("web", "web"),
            ("[::1]:5432,10.0.0.1:5432", "[::1]:5432,10.0.0.1:5432"),
            ("büro", "büro"),
            ("a b", "\"a b\""),
            ("", "\"\""),
            ("a=b", "\"a=b\""),
            ("it's", "\"it's\""),
            ("x\nERROR lease.fault", r#""x\nERROR lease.fault""#),
            ("\u{1b}[2J", r#""\u{1b}[2J""#),
            ("a\u{202e}b", r#""a\u{202e}b""#),
            ("say \"x\"", r#""say \"x\"""#),
            ("c:\\d", r#""c:\\d""#),
        ] {
            assert_eq!(super::shown(value), shown, "{value:?}");
        }
    }

    #[test]
    fn terminal_has_the_level_in_colour_and_nothing_else() {
        let fields = [("event", "lease.renewed"), ("capped", "false")];
        for (level, colour) in
            [(Level::ERROR, "1;31"), (Level::WARN, "33"), (Level::INFO, "32"), (Level::TRACE, "2")]
        {
            let coloured = line(level, &fields, true);
            let word = format!("{:<5}", level.as_str());
            assert!(
                coloured.contains(&format!(" \x1b[{colour}m{word}\x1b[0m lease.renewed ")),
                "{coloured:?}"
            );
            assert_eq!(
                coloured.replace(&format!("\x1b[{colour}m"), "").replace("\x1b[0m", ""),
                line(level, &fields, false)
            );
        }
    }
}
