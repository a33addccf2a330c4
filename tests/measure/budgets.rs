use crate::measure::budgets::*;
use crate::measure::results::Results;
use crate::measure::spread::Spread;
use crate::results::example;

#[test]
fn verdict_is_by_the_median() {
    let of = |median| Spread { min: 0.0, median, max: 100.0 };
    assert!(Bound::AtMost(0.9, "").holds(of(0.9)) && !Bound::AtMost(0.9, "").holds(of(0.91)));
    assert!(Bound::AtLeast(1.0, "").holds(of(1.0)) && !Bound::AtLeast(1.0, "").holds(of(0.99)));
}

#[test]
fn table_has_every_promise_and_says_what_was_not_measured() {
    let results = Results { name: "select-c1-simple".to_owned(), ..example() };
    let table = table(&All::from([(results.name.clone(), results)]));
    assert_eq!(table.lines().count(), BUDGETS.len() + 2);
    assert!(table.contains("PgBouncer, c = 1 | ≤ 0.9 | 0.62 (0.50–0.75) | held |\n"), "{table}");
    assert!(table.contains("better of the two, c = 1 | ≥ 1 | 1.11 (0.71–1.50) | held |\n"), "{table}");
    assert!(table.contains("| COPY out ÷ direct | ≥ 0.95 | – | not measured |\n"), "{table}");
}
