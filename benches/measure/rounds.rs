//! In which order things are measured, and how long that takes.

use std::time::Duration;

use fastrand::Rng;

/// Every one of `0..len` once, in an order that `rng` chooses.
pub(crate) fn shuffled(len: usize, rng: &mut Rng) -> Vec<usize> {
    let mut order: Vec<_> = (0..len).collect();
    rng.shuffle(&mut order);
    order
}

/// What is left, as what was done so far lets expect: `done` of `all` in `spent`.
pub(crate) fn left(done: u32, all: u32, spent: Duration) -> Option<Duration> {
    (done > 0).then(|| spent * all.saturating_sub(done) / done)
}

/// `95 s`, `12 min`.
pub(crate) fn span(span: Duration) -> String {
    let secs = span.as_secs();
    if secs < 120 { format!("{secs} s") } else { format!("{} min", secs.div_ceil(60)) }
}
