use std::time::Duration;

use fastrand::Rng;

use crate::measure::rounds::*;

#[test]
fn order_is_of_the_seed_and_has_everything_once() {
    let order = |seed| shuffled(20, &mut Rng::with_seed(seed));
    assert_eq!(order(7), order(7));
    assert_ne!(order(7), order(8));
    let mut sorted = order(7);
    sorted.sort_unstable();
    assert_eq!(sorted, (0..20).collect::<Vec<_>>());
}

#[test]
fn rest_is_as_slow_as_what_was_done() {
    let secs = Duration::from_secs;
    assert_eq!(left(0, 10, secs(5)), None);
    assert_eq!(left(4, 10, secs(20)), Some(secs(30)));
    assert_eq!(left(10, 10, secs(20)), Some(secs(0)));
    assert_eq!([span(secs(95)), span(secs(601))], ["95 s", "11 min"]);
}
