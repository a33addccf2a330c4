use ChainAction as A;
use ChainEvent as E;
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1_000);

const VIEW: View = View { now: NOW, left: Duration::from_hours(1), clients_wait: false, u: 1.0 };

const fn fetch(trigger: Option<Trigger>, attempt: Attempt) -> Phase {
    Phase::Fetch { trigger, attempt }
}

const fn rotating(trigger: Trigger, attempt: Attempt) -> Phase {
    Phase::Rotating { trigger, attempt }
}

/// A chain whose next attempt, if it waits for one, is not due.
fn chain(phase: Phase) -> ChainState {
    let waits = phase.attempt() == Some(Attempt::Waiting);
    ChainState {
        phase,
        not_before: if waits { NOW + Duration::from_secs(20) } else { Duration::ZERO },
        hurried: NOW + Duration::from_secs(4),
        renewing_until: NOW + Duration::from_secs(2),
        ..ChainState::default()
    }
}

const UNAVAILABLE: Failure = Failure::Vault(Answer::Unavailable);

const EVENTS: [ChainEvent; 17] = [
    E::Started,
    E::Tick,
    E::RenewalAsked,
    E::Renewed,
    E::RenewalFailed,
    E::RotationDue(Trigger::Planned),
    E::RotationDue(Trigger::Degraded),
    E::RotationDue(Trigger::Asked),
    E::Rejected,
    E::DatabaseAway,
    E::Revoked,
    E::Expired,
    E::CredentialMade,
    E::AttemptFailed(UNAVAILABLE),
    E::SuccessorReady,
    E::ClientWaits,
    E::Stopped,
];

/// What `state` does on those events that do something; on all others of [`EVENTS`] it must stay and do nothing.
fn assert_row(state: Phase, row: &[(ChainEvent, Phase, &[ChainAction])]) {
    for event in EVENTS {
        let (after, actions) = chain(state).on(event, VIEW);
        let stopped: (_, _, &[ChainAction]) = (E::Stopped, Phase::Ended, &[A::Withdraw, A::Abandon]);
        let expected = row.iter().copied().chain([stopped]).find(|(of, _, _)| *of == event);
        let (phase, to_do) = expected.map_or((state, &[][..]), |(_, phase, to_do)| (phase, to_do));
        assert_eq!((after.phase, actions.as_slice()), (phase, to_do), "{event:?} in {state:?}");
    }
}

#[test]
fn boot_and_fetch_get_the_first_credential() {
    use Attempt::{Running, Waiting};
    assert_row(Phase::Boot, &[(E::Started, fetch(None, Running), &[A::Begin])]);
    for trigger in [None, Some(Trigger::Revoked), Some(Trigger::Expired)] {
        assert_row(
            fetch(trigger, Running),
            &[
                (E::AttemptFailed(UNAVAILABLE), fetch(trigger, Waiting), &[]),
                (E::SuccessorReady, Phase::Serving, &[A::Promote]),
            ],
        );
        assert_row(fetch(trigger, Waiting), &[]);
    }
}

#[test]
fn serving_renewing_and_degraded_rotate_for_the_same_reasons() {
    let begun = |trigger| rotating(trigger, Attempt::Running);
    for (state, asked) in [
        (Phase::Serving, Phase::Renewing),
        (Phase::Renewing, Phase::Renewing),
        (Phase::Degraded, Phase::Degraded),
    ] {
        assert_row(
            state,
            &[
                (E::RenewalAsked, asked, &[]),
                (E::Renewed, Phase::Serving, &[]),
                (E::RenewalFailed, Phase::Degraded, &[]),
                (E::RotationDue(Trigger::Planned), begun(Trigger::Planned), &[A::Begin]),
                (
                    E::RotationDue(Trigger::Degraded),
                    rotating(Trigger::Degraded, Attempt::Renewing),
                    &[A::Renew],
                ),
                (E::RotationDue(Trigger::Asked), begun(Trigger::Asked), &[A::Begin]),
                (E::Rejected, begun(Trigger::Rejected), &[A::Begin]),
                (E::Revoked, fetch(Some(Trigger::Revoked), Attempt::Running), &[A::Withdraw, A::Begin]),
                (E::Expired, fetch(Some(Trigger::Expired), Attempt::Running), &[A::Withdraw, A::Begin]),
            ],
        );
    }
}

#[test]
fn rotating_serves_on_and_ends_with_a_successor_a_renewal_or_the_end() {
    use Attempt::{Renewing, Running, Waiting};
    for trigger in [Trigger::Planned, Trigger::Degraded, Trigger::Asked, Trigger::Rejected] {
        for attempt in [Running, Waiting] {
            let raised = |to: Trigger| rotating(trigger.max(to), attempt);
            let mut row: Vec<(ChainEvent, Phase, &[ChainAction])> = vec![
                (E::RotationDue(Trigger::Planned), raised(Trigger::Planned), &[]),
                (E::RotationDue(Trigger::Degraded), raised(Trigger::Degraded), &[]),
                (E::RotationDue(Trigger::Asked), raised(Trigger::Asked), &[]),
                (E::Rejected, raised(Trigger::Rejected), &[]),
                (E::Revoked, fetch(Some(Trigger::Revoked), attempt), &[A::Withdraw]),
                (E::Expired, fetch(Some(Trigger::Expired), attempt), &[A::Withdraw]),
            ];
            if attempt == Running {
                row.push((E::AttemptFailed(UNAVAILABLE), rotating(trigger, Waiting), &[]));
                row.push((E::SuccessorReady, Phase::Serving, &[A::Promote]));
            }
            if trigger.ends_with_a_renewal() {
                row.push((E::Renewed, Phase::Serving, &[A::Abandon]));
                row.push((E::DatabaseAway, Phase::Degraded, &[A::Abandon]));
            }
            assert_row(rotating(trigger, attempt), &row);
        }
    }
    assert_row(
        rotating(Trigger::Degraded, Renewing),
        &[
            (E::Renewed, Phase::Serving, &[A::Abandon]),
            (E::RenewalFailed, rotating(Trigger::Degraded, Running), &[A::Begin]),
            (E::DatabaseAway, Phase::Degraded, &[A::Abandon]),
            (E::Revoked, fetch(Some(Trigger::Revoked), Running), &[A::Withdraw, A::Begin]),
            (E::RotationDue(Trigger::Asked), rotating(Trigger::Asked, Running), &[A::Begin]),
            (E::Rejected, rotating(Trigger::Rejected, Running), &[A::Begin]),
            (E::Expired, fetch(Some(Trigger::Expired), Running), &[A::Withdraw, A::Begin]),
        ],
    );
}

#[test]
fn renewal_goes_before_an_attempt_that_it_can_save() {
    let (state, actions) = chain(Phase::Degraded).on(E::RotationDue(Trigger::Degraded), VIEW);
    assert_eq!(actions, [A::Renew]);
    let hung = View { now: NOW + Duration::from_secs(2), ..VIEW };
    assert_eq!(state.on(E::Tick, hung).1, [A::Begin]);

    let waiting = ChainState { not_before: NOW, ..chain(rotating(Trigger::Degraded, Attempt::Waiting)) };
    assert_eq!(waiting.on(E::Tick, VIEW).1, [A::Renew]);
    assert_eq!(waiting.on(E::RenewalFailed, VIEW).1, [A::Begin]);
    let waiting = ChainState { not_before: NOW, ..chain(rotating(Trigger::Rejected, Attempt::Waiting)) };
    assert_eq!(waiting.on(E::Tick, VIEW).1, [A::Begin]);
}

#[test]
fn ended_does_nothing_any_more() {
    for event in EVENTS {
        let (after, actions) = chain(Phase::Ended).on(event, VIEW);
        assert_eq!(after.phase, Phase::Ended);
        assert!(actions.is_empty() || event == E::Stopped, "{event:?}");
    }
}

/// Fails one attempt and tells the pause after it.
fn pause_after(phase: Phase, failure: Failure, view: View) -> Duration {
    let mut state = chain(phase);
    for _ in 0..20 {
        state.backoff.next(NOW, 0.0);
    }
    state.on(E::AttemptFailed(failure), view).0.attempt_at().unwrap().saturating_sub(view.now)
}

#[test]
fn pauses_depend_on_who_waits() {
    let unserved = fetch(None, Attempt::Running);
    let serving = rotating(Trigger::Planned, Attempt::Running);
    let rejected = rotating(Trigger::Rejected, Attempt::Running);
    let later =
        |seconds| Failure::Vault(Answer::TryLater { retry_after: Some(Duration::from_secs(seconds)) });
    let low = Duration::from_secs(20);
    for (phase, failure, left, clients_wait, seconds) in [
        (unserved, UNAVAILABLE, Duration::ZERO, false, 10),
        (unserved, UNAVAILABLE, Duration::ZERO, true, 4),
        (unserved, Failure::SuccessorRejected, Duration::ZERO, true, 30),
        (unserved, later(15), Duration::ZERO, true, 15),
        (serving, UNAVAILABLE, VIEW.left, true, 30),
        (serving, UNAVAILABLE, low, false, 5),
        (serving, later(4), low, false, 5),
        (serving, later(60), VIEW.left, false, 60),
        (serving, Failure::SuccessorRejected, VIEW.left, false, 300),
        (rejected, UNAVAILABLE, VIEW.left, true, 4),
        (rejected, UNAVAILABLE, VIEW.left, false, 30),
    ] {
        let view = View { left, clients_wait, ..VIEW };
        let pause = pause_after(phase, failure, view);
        assert_eq!(pause.as_secs(), seconds, "{phase:?} {failure:?} {left:?} {clients_wait}");
    }
}

#[test]
fn client_that_comes_shortens_the_pause_but_does_not_end_it() {
    let waits = |now: Duration| View { now, clients_wait: true, ..VIEW };
    let state = chain(fetch(None, Attempt::Waiting));
    let (state, _) = state.on(E::ClientWaits, waits(NOW));
    assert_eq!(state.attempt_at(), Some(NOW + Duration::from_secs(4)));

    let late = NOW + Duration::from_secs(9);
    let (state, actions) = chain(fetch(None, Attempt::Waiting)).on(E::ClientWaits, waits(late));
    assert_eq!((state.attempt_at(), actions), (Some(late + LEAST_PAUSE), vec![]));
    // More of them do not put it off.
    let (state, _) = state.on(E::ClientWaits, waits(late + LEAST_PAUSE / 2));
    assert_eq!(state.attempt_at(), Some(late + LEAST_PAUSE));

    let (served, _) = chain(rotating(Trigger::Planned, Attempt::Waiting)).on(E::ClientWaits, waits(NOW));
    assert_eq!(served.attempt_at(), Some(NOW + Duration::from_secs(20)));
}

#[test]
fn operator_who_asks_shortens_any_pause_to_a_second_and_no_further() {
    for phase in [fetch(None, Attempt::Waiting), rotating(Trigger::Rejected, Attempt::Waiting)] {
        let (mut state, second) = (chain(phase), Duration::from_secs(1));
        for ms in [0, 300, 600, 900] {
            let view = View { now: NOW + Duration::from_millis(ms), ..VIEW };
            state = state.on(E::RotationDue(Trigger::Asked), view).0;
            assert_eq!(state.attempt_at(), Some(NOW + second), "{phase:?}");
        }
        assert_eq!(state.on(E::Tick, View { now: NOW + second, ..VIEW }).1, [A::Begin]);
    }
}

#[test]
fn spent_budget_puts_an_attempt_off() {
    let mut state = chain(Phase::Serving);
    for _ in 0..3 {
        state = state.on(E::CredentialMade, VIEW).0;
    }
    let (state, actions) = state.on(E::Rejected, VIEW);
    assert_eq!((state.phase, actions), (rotating(Trigger::Rejected, Attempt::Waiting), vec![]));
    assert_eq!(state.attempt_at(), Some(NOW + Duration::from_secs(10)));

    let view = View { now: NOW + Duration::from_secs(10), ..VIEW };
    assert_eq!(state.on(E::Tick, view).1, [A::Begin]);
}

#[test]
fn promotion_forgets_failures() {
    let mut state = chain(fetch(None, Attempt::Running));
    state.backoff.next(NOW, 1.0);
    assert_eq!(state.on(E::SuccessorReady, VIEW).0.backoff, Backoff::default());
}

fn any_event() -> impl Strategy<Value = ChainEvent> {
    let failures = [UNAVAILABLE, Failure::SuccessorRejected, Failure::Vault(Answer::Lost)];
    prop_oneof![
        prop::sample::select(EVENTS.to_vec()).prop_filter("goes on", |event| *event != E::Stopped),
        prop::sample::select(failures.to_vec()).prop_map(E::AttemptFailed),
    ]
}

proptest! {
    /// Whatever happens in whatever order: attempts follow each other with a pause, a credential is promoted only
    /// from an attempt, and nothing is offered while nothing is there.
    #[test]
    fn no_order_of_events_breaks_the_rules(
        steps in prop::collection::vec((any_event(), 0_u64..3_000, any::<bool>(), 0.0..=1.0), 1..200),
    ) {
        let (mut state, mut now, mut offered, mut failed_at) = (ChainState::default(), NOW, false, None);
        for (event, ms, clients_wait, u) in steps {
            now += Duration::from_millis(ms);
            let before = state.phase;
            let left = if offered { Duration::from_mins(1) } else { Duration::ZERO };
            let (after, actions) = state.on(event, View { now, left, clients_wait, u });
            let was_running = before.attempt() == Some(Attempt::Running);
            if was_running && matches!(event, E::AttemptFailed(_)) {
                failed_at = Some(now);
                prop_assert!(!actions.contains(&A::Begin));
            }
            for action in &actions {
                match action {
                    A::Begin => {
                        prop_assert!(failed_at.is_none_or(|at| now >= at + LEAST_PAUSE));
                        prop_assert_eq!(after.phase.attempt(), Some(Attempt::Running));
                    }
                    A::Promote => {
                        prop_assert!(was_running && event == E::SuccessorReady);
                        offered = true;
                    }
                    A::Withdraw => offered = false,
                    A::Abandon => prop_assert!(before.attempt().is_some()),
                    A::Renew => prop_assert!(offered),
                }
            }
            let serves = !matches!(after.phase, Phase::Boot | Phase::Fetch { .. } | Phase::Ended);
            prop_assert_eq!(serves, offered);
            state = after;
        }
    }
}
