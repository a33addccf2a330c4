//! The figures of `docs/performance.md`, between two marks of the page.

/// `page` with this between its marks.
pub(crate) fn filled(page: &str, figures: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", figures.trim()))
}

pub(crate) const BEGIN: &str = "<!-- figures: make bench-doc -->";
pub(crate) const END: &str = "<!-- end of figures -->";
