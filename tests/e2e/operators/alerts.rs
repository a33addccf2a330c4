//! `deploy/monitoring` by Prometheus's own tool: each alert fires and stays silent as `tests/monitoring/alerts.yaml`
//! has it, and every expression is valid.

use super::promtool::{Promtool, root};

/// What stands for the variables of the dashboard.
const VARIABLES: &[(&str, &str)] =
    &[("$__rate_interval", "5m"), ("$namespace", "shop"), ("$pod", "web-1"), ("${datasource}", "p")];

#[test]
fn every_alert_fires_where_it_should_and_nowhere_else() {
    let Some(promtool) = Promtool::find() else { return };
    for arguments in [
        ["check", "rules", "deploy/monitoring/alerts.yaml"],
        ["test", "rules", "tests/monitoring/alerts.yaml"],
    ] {
        let done = promtool.run(&arguments, root(), "");
        assert!(done.status.success(), "{done:?}");
    }
}

#[test]
fn every_expression_of_the_dashboard_is_valid() {
    let Some(promtool) = Promtool::find() else { return };
    let dashboard = std::fs::read_to_string(root().join("deploy/monitoring/dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let rules = targets.map(|target| {
        let expression = target["expr"].as_str().unwrap();
        let expression =
            VARIABLES.iter().fold(expression.to_owned(), |text, (from, to)| text.replace(from, to));
        format!("  - record: panel\n    expr: {}\n", serde_json::to_string(&expression).unwrap())
    });
    // The tool takes two rules of the same name for a mistake.
    let rules = rules
        .zip(0..)
        .map(|(rule, number)| rule.replace("record: panel", &format!("record: panel_{number}")));
    let folder = tempfile::tempdir().unwrap();
    let text = format!("groups:\n- name: dashboard\n  rules:\n{}", rules.collect::<String>());
    std::fs::write(folder.path().join("rules.yaml"), text).unwrap();
    let done = promtool.run(&["check", "rules", "rules.yaml"], folder.path(), "");
    assert!(done.status.success(), "{done:?}");
}
