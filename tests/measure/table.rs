use std::collections::BTreeSet;

use crate::measure::table::*;
use crate::results::example;

#[test]
fn row_of_each_way_has_median_and_both_ends() {
    let expected = "\
### select-c1

`SELECT` by primary key; 2 rounds.

| | a second | CPU of the proxy each, µs | ÷ direct |
| --- | --- | --- | --- |
| direct | 1,500 (1,000–2,000) | – | – |
| pglease | 1,000 (500–1,500) | 25.0 (20.0–30.0) | 0.62 (0.50–0.75) |
| haproxy | 850 (700–1,000) | 40.0 (40.0–40.0) | 0.60 (0.50–0.70) |

pgbouncer: not measured, not installed.
";
    assert_eq!(table(&example()), expected);
}

#[test]
fn figures_are_told_apart() {
    let names: BTreeSet<_> = FIGURES.iter().map(|figure| figure.name).collect();
    assert_eq!(names.len(), FIGURES.len());
}
