//! A plot of one figure: for each way a line from the least to the most of its rounds, and a dot at the median.

use std::fmt::Write;

use super::spread::{Spread, figure};

/// An SVG that stands alone. Lines begin at 0, so that lengths compare.
pub(crate) fn plot(title: &str, unit: &str, rows: &[(String, Spread)]) -> String {
    let most = rows.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
    let scale = if most > 0.0 { WIDTH / most } else { 0.0 };
    let height = rows.iter().fold(TOP, |height, _| height + ROW) + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-weight=\"bold\">{}</text>\n\
         <text x=\"10\" y=\"40\" fill=\"#555\">{}: median, least and most of the rounds</text>\n",
        LEFT + WIDTH + RIGHT,
        escaped(title),
        escaped(unit),
    );
    let mut y = TOP;
    for (way, spread) in rows {
        let at = |value: f64| LEFT + value * scale;
        let color = if way.starts_with("pglease") { "#0b6e4f" } else { "#555" };
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\" fill=\"{color}\">{}</text>\n\
             <line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#ddd\"/>\n\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{color}\" stroke-width=\"3\"/>\n\
             <circle cx=\"{:.1}\" cy=\"{y}\" r=\"5\" fill=\"{color}\"/>\n\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{color}\">{}</text>",
            LEFT - 10.0,
            y + 4.0,
            escaped(way),
            at(most),
            at(spread.min),
            at(spread.max),
            at(spread.median),
            at(spread.max) + 10.0,
            y + 4.0,
            figure(spread.median),
        );
        y += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const LEFT: f64 = 150.0;
const WIDTH: f64 = 420.0;
/// For the figure behind the longest line.
const RIGHT: f64 = 90.0;
const TOP: f64 = 66.0;
const ROW: f64 = 26.0;
