use super::*;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Times are seconds after this.
fn at(start: Instant, secs: u64) -> Instant {
    start + Duration::from_secs(secs)
}

/// Idle from 100, boundaries from 200, cut at 205.
fn lease_end(start: Instant) -> LeaseEnd {
    LeaseEnd {
        idle_from: at(start, 100),
        boundary_from: at(start, 200),
        cut_at: at(start, 205),
        harmless: false,
    }
}

fn outlook(standing: Standing, phase: Phase) -> Outlook {
    let at_lease_end = AtLeaseEnd::Auto;
    let (removed, aged_from) = (None, None);
    Outlook { standing, phase, at_lease_end, removed, aged_from, has_credential: true, seed: 0.5 }
}

/// To be judged again after so many seconds, and whenever it does something else.
fn look(start: Instant, secs: u64) -> Verdict {
    Verdict::Stay(Look::closely_until(at(start, secs)))
}

const CALM: Verdict = Verdict::Stay(Look { at: None, closely: false });

const BETWEEN: Doing = Doing { idle_since: None, is_running: false, hung_up: false };
const RUNNING: Doing = Doing { is_running: true, ..BETWEEN };

fn idle_since(start: Instant, secs: u64) -> Doing {
    Doing { idle_since: Some(at(start, secs)), ..BETWEEN }
}

#[tokio::test(start_paused = true)]
async fn nothing_happens_while_nothing_is_scheduled() {
    let start = Instant::now();
    let calm = outlook(Standing::Kept, Phase::Serving);
    for doing in [RUNNING, BETWEEN, idle_since(start, 0)] {
        assert_eq!(calm.judge(doing, start), CALM);
    }
}

#[tokio::test(start_paused = true)]
async fn session_outlives_its_lease_by_the_word_of_its_route_or_of_the_chain() {
    let start = Instant::now();
    for (at_lease_end, harmless, outlives) in [
        (AtLeaseEnd::Leave, false, true),
        (AtLeaseEnd::Leave, true, true),
        (AtLeaseEnd::Auto, false, false),
        (AtLeaseEnd::Auto, true, true),
        (AtLeaseEnd::Close, false, false),
        (AtLeaseEnd::Close, true, false),
    ] {
        let end = LeaseEnd { harmless, ..lease_end(start) };
        let ending = Outlook { at_lease_end, ..outlook(Standing::Ending(end), Phase::Serving) };
        for doing in [RUNNING, BETWEEN, idle_since(start, 0)] {
            let verdict = ending.judge(doing, at(start, 1000));
            assert_eq!(verdict == CALM, outlives, "{at_lease_end:?}, harmless: {harmless}, {verdict:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn session_of_a_route_that_was_removed_ends_whatever_becomes_of_its_lease() {
    let start = Instant::now();
    let removed = Some(lease_end(start));
    let outlook = Outlook { removed, ..outlook(Standing::Kept, Phase::Serving) };
    let end = Verdict::End(Order::RouteRemoved);
    for at_lease_end in [AtLeaseEnd::Auto, AtLeaseEnd::Leave, AtLeaseEnd::Close] {
        let outlook = Outlook { at_lease_end, ..outlook };
        assert_eq!(outlook.judge(RUNNING, at(start, 204)), look(start, 205));
        assert_eq!(outlook.judge(BETWEEN, at(start, 199)), look(start, 200));
        for (doing, when) in [(BETWEEN, 200), (RUNNING, 205), (idle_since(start, 0), 200)] {
            assert_eq!(outlook.judge(doing, at(start, when)), end, "{doing:?}");
        }
        assert!(matches!(outlook.judge(idle_since(start, 0), at(start, 100)), Verdict::Stay(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn age_ends_a_session_at_an_idle_point_while_there_is_a_credential() {
    let start = Instant::now();
    let aged = Outlook { aged_from: Some(at(start, 100)), ..outlook(Standing::Kept, Phase::Serving) };
    let without = Outlook { has_credential: false, ..aged };
    let stay = |at, closely| Verdict::Stay(Look { at, closely });
    let table = [
        // Until then nothing that the session does is looked at.
        (aged, idle_since(start, 0), 99, stay(Some(at(start, 100)), false)),
        (aged, RUNNING, 99, stay(Some(at(start, 100)), false)),
        (aged, idle_since(start, 0), 100, Verdict::End(Order::MaxAge)),
        (aged, idle_since(start, 500), 500, Verdict::End(Order::MaxAge)),
        (aged, RUNNING, 1000, stay(None, true)),
        (aged, BETWEEN, 1000, stay(None, true)),
        (without, idle_since(start, 0), 100, stay(Some(at(start, 101)), false)),
        (without, RUNNING, 100, stay(Some(at(start, 101)), false)),
    ];
    for (outlook, doing, now, expected) in table {
        assert_eq!(outlook.judge(doing, at(start, now)), expected, "{doing:?} at {now}");
    }
    let harmless = LeaseEnd { harmless: true, ..lease_end(start) };
    let young_lease = Outlook { standing: Standing::Ending(harmless), ..aged };
    assert_eq!(young_lease.judge(idle_since(start, 0), at(start, 100)), Verdict::End(Order::MaxAge));
}

#[tokio::test(start_paused = true)]
async fn ages_vary_by_a_tenth() {
    let start = Instant::now();
    for (seed, secs) in [(0.0, 90), (0.5, 100), (1.0, 110)] {
        let aged = aged_from(start, Duration::from_secs(100), seed);
        assert_eq!(aged.duration_since(start).as_millis(), secs * 1000);
    }
}

#[tokio::test(start_paused = true)]
async fn lease_ends_sessions_by_what_they_do() {
    let start = Instant::now();
    let ending = outlook(Standing::Ending(lease_end(start)), Phase::Serving);
    let look = |secs| look(start, secs);
    let ends = Verdict::End(Order::LeaseEnds);
    let table = [
        (RUNNING, 0, look(200)),
        (RUNNING, 200, look(205)),
        (RUNNING, 205, Verdict::End(Order::LeaseOver)),
        (BETWEEN, 199, look(200)),
        (BETWEEN, 200, ends),
        // Just used: position (1 + 0.5) / 2. Idle for a minute: (0.5 + 0.5) / 2.
        (idle_since(start, 100), 100, look(175)),
        (idle_since(start, 40), 0, look(150)),
        (idle_since(start, 40), 149, look(150)),
        (idle_since(start, 40), 150, ends),
        // Used late in the window: two seconds to settle, unless the boundary comes first.
        (idle_since(start, 190), 190, look(192)),
        (idle_since(start, 190), 192, ends),
        (idle_since(start, 199), 199, look(200)),
        (idle_since(start, 199), 200, ends),
    ];
    for (doing, now, expected) in table {
        assert_eq!(ending.judge(doing, at(start, now)), expected, "{doing:?} at {now}");
    }
}

#[tokio::test(start_paused = true)]
async fn longest_idle_goes_first_and_all_within_the_window() {
    let start = Instant::now() + secs(10_000);
    let end = lease_end(start);
    for seed in [0.0, 0.3, 1.0] {
        let due: Vec<_> =
            [0, 1, 10, 60, 600, 9_000].map(|idle| idle_due(end, end.idle_from - secs(idle), seed)).to_vec();
        assert!(due.is_sorted_by(|earlier, later| earlier > later), "{due:?}");
        assert!(due.iter().all(|due| (end.idle_from..=end.boundary_from).contains(due)));
    }
}

#[tokio::test(start_paused = true)]
async fn drain_ends_idle_sessions_first_and_the_rest_at_the_cut() {
    let start = Instant::now();
    let phase = Phase::Draining { accept_until: start, idle_from: at(start, 5), cut_at: at(start, 20) };
    let drain = outlook(Standing::Kept, phase);
    let look = |secs| look(start, secs);
    let hung_up = Doing { hung_up: true, ..RUNNING };
    let table = [
        (idle_since(start, 0), 0, look(5)),
        (idle_since(start, 5), 5, Verdict::End(Order::Draining)),
        (BETWEEN, 19, look(20)),
        (RUNNING, 19, look(20)),
        (RUNNING, 20, Verdict::End(Order::Cut)),
        (idle_since(start, 5), 20, Verdict::End(Order::Cut)),
        (hung_up, 1, Verdict::End(Order::HungUp)),
        (Doing { is_running: false, ..hung_up }, 1, look(20)),
    ];
    for (doing, now, expected) in table {
        assert_eq!(drain.judge(doing, at(start, now)), expected, "{doing:?} at {now}");
    }
    assert_eq!(outlook(Standing::Kept, Phase::Cut).judge(RUNNING, start), Verdict::End(Order::Cut));
}

#[tokio::test(start_paused = true)]
async fn revocation_ends_all_at_once_even_those_that_outlive_their_lease() {
    for by in [Revocation::ByVault, Revocation::ByOperator] {
        let revoked =
            Outlook { at_lease_end: AtLeaseEnd::Leave, ..outlook(Standing::Revoked(by), Phase::Serving) };
        for doing in [RUNNING, BETWEEN] {
            assert_eq!(revoked.judge(doing, Instant::now()), Verdict::End(Order::Revoked(by)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn earlier_of_two_schedules_counts() {
    let start = Instant::now();
    let phase = Phase::Draining { accept_until: start, idle_from: at(start, 5), cut_at: at(start, 20) };
    let both = outlook(Standing::Ending(lease_end(start)), phase);
    assert_eq!(both.judge(RUNNING, start), look(start, 20));
    assert_eq!(both.judge(idle_since(start, 0), at(start, 5)), Verdict::End(Order::Draining));
}

/// Message, detail and hint of a `57P01`.
fn told(order: Order, is_running: bool) -> [String; 3] {
    match order.client_error(is_running) {
        ClientError::Own { code, message, detail: Some(detail), hint: Some(hint) }
            if code == SqlState::ADMIN_SHUTDOWN =>
        {
            [message, detail, hint]
        }
        other @ (ClientError::Own { .. } | ClientError::Verbatim(_)) => panic!("{other:?}"),
    }
}

#[test]
fn client_is_told_what_happened_and_what_to_set() {
    let table = [
        (Order::LeaseEnds, "lease of its database credential ends", "about to be dropped", "startup_role"),
        (Order::LeaseEnds, "terminating connection", "leased database role", "at_lease_end = \"leave\""),
        (Order::LeaseOver, "has ended", "still busy", "max_ttl"),
        (Order::Revoked(Revocation::ByVault), "was revoked", "before its time", "audit log"),
        (Order::Revoked(Revocation::ByOperator), "operator", "pglease rotate --close", "Without --close"),
        (Order::MaxAge, "as old as", "max_session_age", "max_session_age = \"0s\""),
        (Order::Draining, "shutting down", "idle", "drain.grace"),
        (Order::Cut, "shutting down", "still busy", "drain.deadline"),
        (Order::HungUp, "shutting down", "still busy", "drain.deadline"),
    ];
    for (order, message, detail, hint) in table {
        let told = told(order, false);
        for (text, part) in told.iter().zip([message, detail, hint]) {
            assert!(text.contains(part), "{order:?}: {text:?} has no {part:?}");
            assert!(!text.contains("  ") && !text.contains("not known"), "{text:?}");
        }
        assert!(told[2].starts_with("Connect again"), "{order:?}");
    }
}

#[test]
fn client_is_told_when_the_fate_of_a_statement_is_unknown() {
    assert!(told(Order::Cut, true)[1].ends_with("whether it took effect is not known."));
}
