//! `deploy/monitoring` against `docs/metrics.md`, whose table another test holds against the code, and against
//! `docs/runbook.md`. That each alert fires is `tests/e2e/operators/alerts.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;
use serde_json::Value;

use crate::pages::{self, Page};

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
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RuleTests {
    tests: Vec<RuleTest>,
}

#[derive(Deserialize)]
struct RuleTest {
    input_series: Vec<Series>,
    alert_rule_test: Vec<Expected>,
}

#[derive(Deserialize)]
struct Series {
    series: String,
}

#[derive(Deserialize)]
struct Expected {
    alertname: String,
    exp_alerts: Vec<Value>,
}

fn rules() -> Vec<Rule> {
    let text = fs::read_to_string(pages::root().join("deploy/monitoring/alerts.yaml")).unwrap();
    let rules: Rules = serde_saphyr::from_str(&text).unwrap();
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

fn dashboard() -> Value {
    let text = fs::read_to_string(pages::root().join("deploy/monitoring/dashboard.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// But for the rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row").collect()
}

fn expressions(panel: &Value) -> Vec<&str> {
    panel["targets"].as_array().unwrap().iter().map(|target| target["expr"].as_str().unwrap()).collect()
}

/// Every name that samples may have, with the labels of the metric.
fn samples() -> BTreeMap<String, BTreeSet<String>> {
    let mut names = BTreeMap::from([("up".to_owned(), BTreeSet::new())]);
    for row in Page::of("docs/metrics.md").text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> =
            row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        let [name, kind, labels, ..] = cells[..] else { continue };
        let labels: BTreeSet<_> =
            labels.split(", ").map(|label| label.trim_matches('`').to_owned()).collect();
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_count", "_sum"] } else { &[""] };
        for suffix in suffixes {
            names.insert(format!("{name}{suffix}"), labels.clone());
        }
    }
    names
}

/// The metrics that a text names.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pglease_") || word.starts_with("process_")).collect()
}

/// Faults of a `PromQL` expression: names that are not scraped, and labels that the metric has not.
fn faults(expression: &str) -> Vec<String> {
    let samples = samples();
    let mut faults = Vec::new();
    for name in metrics_in(expression) {
        let Some(labels) = samples.get(name) else {
            faults.push(format!("no metric {name}"));
            continue;
        };
        for rest in expression.split(name).skip(1).filter_map(|rest| rest.strip_prefix('{')) {
            let (matchers, _) = rest.split_once('}').unwrap();
            for matcher in matchers.split(", ") {
                let label = matcher.split(['=', '!']).next().unwrap().trim();
                if !labels.contains(label) && !OF_PROMETHEUS.contains(&label) {
                    faults.push(format!("{name} has no label {label}"));
                }
            }
        }
    }
    faults
}

/// Labels of a target.
const OF_PROMETHEUS: &[&str] = &["namespace", "pod", "job", "instance"];

#[test]
fn every_alert_says_what_is_wrong_and_has_its_paragraph() {
    let runbook = Page::of("docs/runbook.md");
    let headings: BTreeSet<_> =
        runbook.headings().into_iter().filter(|of| of.starts_with("Pglease")).collect();
    let rules = rules();
    let alerts: BTreeSet<_> = rules.iter().map(|rule| rule.alert.clone()).collect();
    assert_eq!(headings, alerts, "docs/runbook.md against deploy/monitoring/alerts.yaml");
    assert_eq!(alerts.len(), rules.len());
    for Rule { alert, labels, annotations, .. } in &rules {
        assert!(["critical", "warning", "info"].contains(&labels["severity"].as_str()), "{alert}");
        for text in ["summary", "description"] {
            assert!(annotations[text].ends_with('.'), "{alert}: {text}");
        }
        assert_eq!(annotations["runbook_url"], format!("docs/runbook.md#{}", alert.to_lowercase()));
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_to_stay_silent() {
    let text = fs::read_to_string(pages::root().join("tests/monitoring/alerts.yaml")).unwrap();
    let tests: RuleTests = serde_saphyr::from_str(&text).unwrap();
    for rule in rules() {
        let fires = tests.tests.iter().any(|test| {
            let of_rule = test.alert_rule_test.iter().filter(|of| of.alertname == rule.alert);
            let most = of_rule.map(|of| of.exp_alerts.len()).max().unwrap_or(0);
            let targets: BTreeSet<_> =
                test.input_series.iter().map(|of| label(&of.series, "instance")).collect();
            most > 0 && targets.len() > most
        });
        assert!(fires, "tests/monitoring/alerts.yaml: {} for one target, and not for another", rule.alert);
    }
}

fn label<'a>(series: &'a str, name: &str) -> &'a str {
    let value = series.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
    value.unwrap_or_else(|| panic!("{series} has no {name}"))
}

#[test]
fn what_alerts_and_dashboard_ask_for_is_scraped() {
    let dashboard = dashboard();
    let of_dashboard = panels(&dashboard).into_iter().flat_map(expressions).map(str::to_owned);
    for expression in rules().into_iter().map(|rule| rule.expr).chain(of_dashboard) {
        assert_eq!(faults(&expression), Vec::<String>::new(), "{expression}");
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["definition"].as_str().unwrap_or_default();
        assert_eq!(faults(query), Vec::<String>::new(), "{query}");
    }
}

#[test]
fn every_metric_that_a_page_names_is_there() {
    let samples = samples();
    let families: BTreeSet<_> = Page::of("docs/metrics.md")
        .text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned()))
        .collect();
    for page in pages::all() {
        for name in metrics_in(&page.text) {
            // `pglease_lease_…` stands for all that begin so.
            let is_there = |of: &String| of == name || name.ends_with('_') && of.starts_with(name);
            assert!(samples.keys().any(is_there) || families.iter().any(is_there), "{}: {name}", page.path);
        }
    }
}

#[test]
fn wrong_expressions_are_found() {
    assert_eq!(faults("rate(pglease_no_such_total[5m])"), ["no metric pglease_no_such_total"]);
    assert_eq!(faults("pglease_sessions{user=\"x\", pod=~\"$pod\"}"), ["pglease_sessions has no label user"]);
    assert_eq!(faults("pglease_session_seconds"), ["no metric pglease_session_seconds"]);
    assert!(faults("pglease_vault_requests_total{code!~\"2..\", op=\"renew\"}").is_empty());
}

#[test]
fn panels_of_the_dashboard_explain_themselves_and_do_not_overlap() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        assert!(panel["description"].as_str().unwrap().ends_with('.'), "{title}");
        assert!(!panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap().is_empty(), "{title}");
        assert!(!expressions(panel).is_empty(), "{title}");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(x < 24 && taken.insert((x, y)), "{title} overlaps");
            }
        }
    }
    assert!(ids.len() > 20);
}

#[test]
fn every_metric_is_on_the_dashboard_or_watched() {
    let dashboard = dashboard();
    let of_dashboard = panels(&dashboard).into_iter().flat_map(expressions).map(str::to_owned);
    let asked: Vec<_> = rules().into_iter().map(|rule| rule.expr).chain(of_dashboard).collect();
    let asked: BTreeSet<_> = asked.iter().flat_map(|expression| metrics_in(expression)).collect();
    for row in Page::of("docs/metrics.md").text.lines().filter(|line| line.starts_with("| `")) {
        let name = row.trim_start_matches("| `").split('`').next().unwrap();
        let is_metric = row
            .split(" | ")
            .nth(1)
            .is_some_and(|kind| ["gauge", "counter", "histogram", "info"].contains(&kind));
        let is_asked = || {
            asked
                .iter()
                .any(|of| *of == name || of.strip_prefix(name).is_some_and(|rest| rest.starts_with('_')))
        };
        assert!(!is_metric || is_asked(), "{name} is neither on the dashboard nor in an alert");
    }
}
