use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::measure::results::*;
use crate::measure::spread::Spread;

/// Two rounds of three ways.
pub(crate) fn example() -> Results {
    let round = |tps: [f64; 3], cpu: [f64; 2]| {
        let of = |tps: f64, cpu: Option<f64>| {
            let cpu = cpu.map(|cpu| ("cpu_us".to_owned(), cpu));
            [("tps".to_owned(), tps)].into_iter().chain(cpu).collect::<Figures>()
        };
        BTreeMap::from([
            ("direct".to_owned(), of(tps[0], None)),
            ("pglease".to_owned(), of(tps[1], Some(cpu[0]))),
            ("haproxy".to_owned(), of(tps[2], Some(cpu[1]))),
        ])
    };
    Results {
        name: "select-c1".to_owned(),
        what: "`SELECT` by primary key".to_owned(),
        under: "2 rounds".to_owned(),
        build: "0".to_owned(),
        ways: ["direct", "pglease", "haproxy"].map(str::to_owned).to_vec(),
        absent: BTreeMap::from([("pgbouncer".to_owned(), "not installed".to_owned())]),
        rounds: vec![
            round([1000.0, 500.0, 700.0], [20.0, 40.0]),
            round([2000.0, 1500.0, 1000.0], [30.0, 40.0]),
        ],
    }
}

#[test]
fn what_is_kept_comes_back() {
    let results = example();
    assert_eq!(Results::from_json(&results.to_json()), Some(results));
    assert_eq!(Results::from_json(&json!({ "name": "x" })), None);
    assert_eq!(Results::from_json(&Value::Null), None);
}

#[test]
fn ratios_are_of_the_same_round() {
    let results = example();
    let spread = |min, median, max| Some(Spread { min, median, max });
    assert_eq!(results.spread("pglease", "tps"), spread(500.0, 1000.0, 1500.0));
    assert_eq!(results.ratio("pglease", "direct", "tps"), spread(0.5, 0.625, 0.75));
    assert_eq!(results.ratio("pglease", "direct", "cpu_us"), None);
    assert_eq!(
        results.ratio_to_best("pglease", &["haproxy", "pgbouncer"], "cpu_us", true),
        spread(0.5, 0.625, 0.75)
    );
    assert_eq!(results.ratio_to_best("pglease", &["pgbouncer"], "cpu_us", true), None);
    // Also in the round in which the other one was better.
    let best = |least| results.ratio_to_best("direct", &["pglease", "haproxy"], "tps", least);
    assert_eq!(best(false), results.ratio("direct", "pglease", "tps"));
    assert_eq!(best(true), results.ratio("direct", "haproxy", "tps"));
    assert_eq!(results.figures(), ["cpu_us", "tps"]);
}
