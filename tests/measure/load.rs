use std::time::Duration;

use crate::summary::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn example() -> Summary {
    let mut summary = Summary::new(8, Some(50.0));
    (1..=100).for_each(|number| summary.statements.add(ms(number), None));
    summary.connects.add(ms(5), None);
    summary
}

#[test]
fn summary_has_every_quantile_to_three_digits() {
    let json = example().to_json(Duration::from_secs(2));
    let close = |pointer: &str, expected: f64| {
        let value = json.pointer(pointer).unwrap().as_f64().unwrap();
        assert!((value - expected).abs() <= expected / 500.0, "{pointer}: {value}");
    };
    for (name, expected) in
        [("p50_ms", 50.0), ("p90_ms", 90.0), ("p99_ms", 99.0), ("p999_ms", 100.0), ("longest_ms", 100.0)]
    {
        close(&format!("/statements/{name}"), expected);
    }
    close("/statements/per_second", 50.0);
    close("/connects/longest_ms", 5.0);
    assert_eq!((&json["statements"]["count"], &json["sessions"]), (&100.into(), &8.into()));
}

#[test]
fn failures_are_counted_by_what_they_said_and_end_badly() {
    let mut summary = example();
    assert!(summary.is_well());
    summary.statements.add(ms(1), Some("57P01 going".to_owned()));
    summary.statements.add(ms(1), Some("57P01 going".to_owned()));
    assert!(!summary.is_well());
    let text = summary.to_text(Duration::from_secs(2));
    assert!(text.contains("2 × 57P01 going\n"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("statements ") && line.contains("102")), "{text}");
    assert!(!Summary::new(1, None).is_well(), "nothing was done");
}

#[test]
fn time_beyond_the_scale_is_its_end() {
    let mut summary = Summary::new(1, None);
    summary.statements.add(Duration::from_hours(1000), None);
    summary.statements.add(Duration::ZERO, None);
    let json = summary.to_json(Duration::from_secs(1));
    assert_eq!(json["statements"]["count"], 2);
    assert!(json["statements"]["longest_ms"].as_f64().unwrap() >= 3_590_000.0, "{json}");
}
