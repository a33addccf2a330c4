//! The report as people and as CI read it. Pure.

use std::time::Duration;

use serde::Serialize;

use super::name::Name;
use super::report::{Outcome, Remedy, Report, Step};

/// A step's line, and below it cause and cure where something is wrong.
pub(crate) fn line(step: &Step) -> String {
    let Step { name, subject, took, outcome, found, remedy } = step;
    let (mark, found) = (mark(*outcome), one_line(found));
    let took = if *outcome == Outcome::Skipped { String::new() } else { duration(*took) };
    let subject = one_line(subject);
    let line = format!("{mark} {name:NAME_WIDTH$}  {subject:SUBJECT_WIDTH$}  {took:>TIME_WIDTH$}  {found}");
    let Some(Remedy { cause, cure, .. }) = remedy else { return line.trim_end().to_owned() };
    let cause = indented("cause: ", cause);
    let cure = indented("cure:  ", cure);
    format!("{}\n{cause}\n{cure}", line.trim_end())
}

/// The last line.
pub(crate) fn summary(report: &Report) -> String {
    let count = |outcome| report.count(outcome);
    let (passed, warnings, failed, skipped) =
        (count("passed"), count("warning"), count("failed"), count("skipped"));
    let took = duration(report.took);
    let mut parts = vec![format!("{passed} passed")];
    for (count, one, several) in
        [(warnings, "warning", "warnings"), (failed, "failed", "failed"), (skipped, "skipped", "skipped")]
    {
        if count > 0 {
            parts.push(format!("{count} {}", if count == 1 { one } else { several }));
        }
    }
    format!("{} in {took}", parts.join(", "))
}

/// The whole report as one JSON document, of the shape that docs/check.md has.
pub(crate) fn json(report: &Report) -> String {
    let steps = report.steps.iter().map(|step| StepJson {
        name: step.name.as_str(),
        subject: &step.subject,
        outcome: step.outcome.as_str(),
        seconds: step.took.as_secs_f64(),
        found: &step.found,
        fault: step.remedy.as_ref().map(|remedy| remedy.name),
        cause: step.remedy.as_ref().map(|remedy| remedy.cause.as_str()),
        cure: step.remedy.as_ref().map(|remedy| remedy.cure.as_str()),
    });
    let exit_code = report.exit_code();
    let document = ReportJson {
        version: env!("CARGO_PKG_VERSION"),
        ok: exit_code == 0,
        exit_code,
        seconds: report.took.as_secs_f64(),
        steps: steps.collect(),
    };
    // No type of ours fails to become JSON.
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

/// The JSON Schema of [`json`]'s document. Further keys may be added.
pub(crate) const SCHEMA: &str = include_str!("schema.json");

#[derive(Serialize)]
struct ReportJson<'a> {
    version: &'static str,
    ok: bool,
    exit_code: u8,
    seconds: f64,
    steps: Vec<StepJson<'a>>,
}

#[derive(Serialize)]
struct StepJson<'a> {
    name: &'static str,
    subject: &'a str,
    outcome: &'static str,
    seconds: f64,
    found: &'a str,
    fault: Option<&'static str>,
    cause: Option<&'a str>,
    cure: Option<&'a str>,
}

fn mark(outcome: Outcome) -> char {
    match outcome {
        Outcome::Passed => '✓',
        Outcome::Warning => '!',
        Outcome::Failed(_) => '✗',
        Outcome::Skipped => '–',
    }
}

/// Three digits are enough.
fn duration(took: Duration) -> String {
    let millis = took.as_millis();
    if millis < 1000 { format!("{millis} ms") } else { format!("{:.1} s", took.as_secs_f64()) }
}

/// What others have written may hold what moves a terminal's cursor.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Further lines stand below the first.
fn indented(label: &str, text: &str) -> String {
    let mut lines = text.lines().map(one_line);
    let first = format!("{INDENT}{label}{}", lines.next().unwrap_or_default());
    let further = lines.map(|line| format!("{INDENT}{}{line}", " ".repeat(label.len())));
    [first].into_iter().chain(further).collect::<Vec<_>>().join("\n")
}

const INDENT: &str = "    ";

/// Of the longest name.
const NAME_WIDTH: usize = {
    let (mut index, mut width) = (0, 0);
    while index < Name::ALL.len() {
        #[expect(clippy::indexing_slicing, reason = "at compile time, and there is no iterator there")]
        let len = Name::ALL[index].as_str().len();
        if len > width {
            width = len;
        }
        index += 1;
    }
    width
};

/// Of most subjects; a longer one moves what is behind it.
const SUBJECT_WIDTH: usize = 24;

const TIME_WIDTH: usize = 6;

#[cfg(test)]
mod tests {
    use super::super::report::Class;
    use super::*;

    fn step(name: Name, outcome: Outcome, remedy: Option<(&str, &str)>) -> Step {
        let fault = "creds-not-allowed";
        let remedy = remedy.map(|(cause, cure)| Remedy {
            name: fault,
            cause: cause.to_owned(),
            cure: cure.to_owned(),
        });
        let (subject, found) = ("database/creds/db-app".to_owned(), "read\u{1b}[2J".to_owned());
        Step { name, subject, took: Duration::from_micros(12_345), outcome, found, remedy }
    }

    #[test]
    fn lines_are_aligned_and_commands_stand_below_each_other() {
        let failed =
            step(Name::VaultCreds, Outcome::Failed(Class::Permission), Some(("no", "first\n  second")));
        let lines = [
            line(&step(Name::ConfigSettings, Outcome::Passed, None)),
            line(&failed),
            line(&step(Name::VaultLogin, Outcome::Skipped, None)),
        ];
        let (found, pad) = ("read [2J", NAME_WIDTH);
        assert_eq!(
            lines.join("\n"),
            format!(
                "✓ {:pad$}  database/creds/db-app      12 ms  {found}\n\
                 ✗ {:pad$}  database/creds/db-app      12 ms  {found}\n    \
                     cause: no\n    \
                     cure:  first\n             \
                              second\n\
                 – {:pad$}  database/creds/db-app             {found}",
                "config.settings", "vault.creds", "vault.login",
            )
        );
    }

    #[test]
    fn summary_counts_and_json_has_all() {
        let failed = step(Name::VaultCreds, Outcome::Failed(Class::Permission), Some(("no", "a\nb")));
        let steps = vec![
            step(Name::VaultLogin, Outcome::Passed, None),
            step(Name::VaultLogin, Outcome::Warning, None),
            failed,
        ];
        let report = Report { steps, took: Duration::from_millis(1234) };
        assert_eq!(summary(&report), "1 passed, 1 warning, 1 failed in 1.2 s");

        let parsed: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
        assert_eq!((&parsed["ok"], &parsed["exit_code"]), (&false.into(), &77.into()));
        let last = &parsed["steps"][2];
        assert_eq!((&last["name"], &last["outcome"]), (&"vault.creds".into(), &"failed".into()));
        assert_eq!(last["fault"], "creds-not-allowed");
        assert_eq!((&last["cause"], &last["cure"]), (&"no".into(), &"a\nb".into()));
        assert_eq!(parsed["steps"][0]["cure"], serde_json::Value::Null);
    }
}
