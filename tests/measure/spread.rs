use crate::measure::spread::*;

#[test]
fn spread_has_the_middle_and_both_ends() {
    let of = |figures: &[f64]| Spread::of(figures.iter().copied());
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[f64::NAN]), None);
    assert_eq!(of(&[3.0]), Some(Spread { min: 3.0, median: 3.0, max: 3.0 }));
    assert_eq!(of(&[9.0, 1.0, 4.0]), Some(Spread { min: 1.0, median: 4.0, max: 9.0 }));
    assert_eq!(of(&[9.0, 1.0, 4.0, 5.0]), Some(Spread { min: 1.0, median: 4.5, max: 9.0 }));
}

#[test]
fn figures_have_three_digits_that_count() {
    let cases = [
        (0.0, "0"),
        (0.0123, "0.0123"),
        (0.5, "0.50"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (1_234_567.0, "1,234,567"),
        (-1234.0, "-1,234"),
    ];
    for (value, text) in cases {
        assert_eq!(figure(value), text);
    }
    let spread = Spread { min: 0.9, median: 1.0, max: 1234.0 };
    assert_eq!(spread.to_string(), "1.00 (0.90–1,234)");
}

#[test]
fn quantiles_are_of_what_was_measured() {
    let hundred: Vec<_> = (1..=100).map(f64::from).collect();
    for (share, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (1.0, 100.0)] {
        assert_eq!(quantile(&hundred, share), Some(expected), "{share}");
    }
    assert_eq!(quantile(&[7.0], 0.5), Some(7.0));
    assert_eq!(quantile(&[], 0.5), None);
}
