//! Prometheus's own tool on metrics and rules, where it is installed: `make test-monitoring` gets it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use serde_json::Value;

use crate::support::{env, say_skipped};

pub(crate) struct Promtool(PathBuf);

/// What was scraped, and when.
pub(crate) struct Scrape {
    /// Unix time.
    pub(crate) at: f64,
    pub(crate) samples: Vec<(String, f64)>,
}

impl Promtool {
    /// `None` where it is not installed, which is said on stderr; fails there where `PGLEASE_TEST_PROMTOOL` is
    /// `required`.
    pub(crate) fn find() -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/monitoring/promtool.py");
        let output = Command::new("python3").arg(script).stdin(Stdio::null()).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        if let Some(program) = found["program"].as_str() {
            return Some(Self(program.into()));
        }
        let missing = found["missing"].as_str().unwrap();
        assert!(env("PGLEASE_TEST_PROMTOOL").as_deref() != Some("required"), "{missing}");
        say_skipped("monitoring", missing);
        None
    }

    pub(crate) fn run(&self, arguments: &[&str], folder: &Path, input: &str) -> Output {
        let mut command = Command::new(&self.0);
        command.args(arguments).current_dir(folder).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end without having read all of it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Whether the expression has a result so many seconds after the last of these scrapes, a second apart or more, if
    /// all stays as it was in that one.
    pub(crate) fn holds(&self, expression: &str, scrapes: &[Scrape], later: u64) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let expression = serde_json::to_string(&format!("count({expression}) > bool 0")).unwrap();
        let at = u64::try_from(scrapes.len() - 1).unwrap() + later;
        let text = format!(
            "rule_files: []\nevaluation_interval: 1s\ntests:\n- interval: 1s\n  input_series:\n{}  \
             promql_expr_test:\n  - expr: {expression}\n    eval_time: {at}s\n    exp_samples:\n    \
             - labels: '{{}}'\n      value: 1\n",
            series(scrapes, later),
        );
        fs::write(folder.path().join("test.yaml"), text).unwrap();
        self.run(&["test", "rules", "test.yaml"], folder.path(), "").status.success()
    }
}

/// The scrapes as input: the tool's clock begins at 0 and a scrape is a second, so what is told as Unix time is moved
/// such that it is as far from each scrape's moment as it was.
fn series(scrapes: &[Scrape], later: u64) -> String {
    let mut text = String::new();
    let names = scrapes.iter().flat_map(|scrape| scrape.samples.iter().map(|(name, _)| name));
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let values = scrapes.iter().zip(0..).map(|(scrape, second)| {
            let value = scrape.samples.iter().find(|(of, _)| of == name).map(|(_, value)| *value);
            let is_time = name.contains("_timestamp_seconds") || name.contains("_start_time_seconds");
            let shift = if is_time { f64::from(second) - scrape.at } else { 0.0 };
            value.map_or_else(|| "_".to_owned(), |value| format!("{:.3}", value + shift))
        });
        let values = values.collect::<Vec<_>>().join(" ");
        let values = if values.ends_with('_') { values } else { format!("{values}x{later}") };
        let _ = writeln!(text, "  - series: {}\n    values: {values}", serde_json::to_string(name).unwrap());
    }
    text
}

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
}

/// The expression of this alert.
pub(crate) fn expression_of(alert: &str) -> String {
    let text = fs::read_to_string(root().join("deploy/monitoring/alerts.yaml")).unwrap();
    let rules: Rules = serde_saphyr::from_str(&text).unwrap();
    let mut rules = rules.groups.into_iter().flat_map(|group| group.rules);
    rules.find(|rule| rule.alert == alert).unwrap_or_else(|| panic!("no alert {alert}")).expr
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
