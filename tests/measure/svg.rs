use crate::measure::spread::Spread;
use crate::measure::svg::*;

#[test]
fn lines_are_as_long_as_their_figures() {
    let rows = [("direct", 100.0), ("pglease", 50.0)]
        .map(|(way, median)| (way.to_owned(), Spread { min: median / 2.0, median, max: median }));
    let svg = plot("select <c1>", "a second", &rows);
    assert!(svg.contains("select &lt;c1&gt;"), "{svg}");
    for mark in ["cx=\"570.0\"", "cx=\"360.0\"", "x1=\"255.0\"", ">100</text>", ">50.0</text>"] {
        assert!(svg.contains(mark), "{mark} in {svg}");
    }
    assert_eq!(svg.matches("<circle").count(), 2);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
}

#[test]
fn plot_of_nothing_is_one() {
    let none = Spread { min: 0.0, median: 0.0, max: 0.0 };
    assert!(plot("x", "y", &[("direct".to_owned(), none)]).contains("cx=\"150.0\""));
    assert!(plot("x", "y", &[]).ends_with("</svg>\n"));
}
