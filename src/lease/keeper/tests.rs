use super::super::proof;
use super::*;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn at(seconds: u64) -> Now {
    Now { boot: secs(1_000 + seconds), wall: secs(1_000_000 + seconds) }
}

/// Lease of 100 s, token of 300 s, JWT until 400 s.
fn family() -> Keeper {
    let lease = Term::new(at(0), secs(100), true, 0.0);
    let token = Term::new(at(0), secs(300), true, 0.0);
    Keeper::new(lease, Some(token), Some(at(400).wall), at(0))
}

fn grant(seconds: u64) -> Grant {
    Grant { ttl: Some(secs(seconds)), renewable: true }
}

#[test]
fn lease_and_token_are_renewed_each_in_its_own_time() {
    let mut keeper = family();
    assert_eq!(keeper.take_due(at(9)), []);
    assert_eq!(keeper.take_due(at(10)), [Kind::Lease]);
    assert_eq!(keeper.take_due(at(30)), [Kind::Token]);
    assert!(keeper.is_asked() && keeper.take_due(at(60)).is_empty());

    assert_eq!(
        keeper.answered(Kind::Lease, at(10), at(11), Ok(grant(100)), 0.0),
        Renewal::Granted { capped: false }
    );
    assert_eq!(
        keeper.answered(Kind::Token, at(30), at(31), Ok(grant(300)), 0.0),
        Renewal::Granted { capped: false }
    );
    assert_eq!((keeper.left(at(31)), keeper.token_left(at(31))), (secs(79), Some(secs(299))));
    assert!(!keeper.is_unwell());
}

/// Every kind of answer to either renewal: what it is taken for, and whether a successor of the token is wanted
/// at once. One of the lease never is.
#[test]
fn each_answer_is_taken_as_the_policy_says() {
    let later = Answer::TryLater { retry_after: None };
    let (failed, refused) = (Renewal::Failed, Renewal::Refused);
    for (answer, of_lease, of_token, planned) in [
        (Answer::NotSent, failed, failed, false),
        (Answer::Lost, failed, failed, false),
        (Answer::Malformed, failed, failed, false),
        (Answer::Redirect, failed, failed, false),
        (Answer::BadRequest, refused, refused, true),
        (Answer::Denied, refused, refused, false),
        (Answer::NotFound, refused, refused, true),
        (later, failed, failed, false),
        (Answer::Unexpected, failed, failed, false),
        (Answer::Unavailable, failed, failed, false),
    ] {
        let mut keeper = family();
        assert_eq!(keeper.answered(Kind::Lease, at(50), at(50), Err(answer), 0.0), of_lease, "{answer:?}");
        assert!(keeper.is_unwell(), "{answer:?}");
        assert_eq!(keeper.wants_rotation(at(50)), None, "{answer:?}");
        assert_eq!(keeper.left(at(50)), secs(50), "{answer:?}");

        let mut keeper = family();
        keeper.answered(Kind::Lease, at(150), at(150), Ok(grant(100)), 0.0);
        assert_eq!(keeper.answered(Kind::Token, at(150), at(150), Err(answer), 0.0), of_token, "{answer:?}");
        assert!(keeper.is_unwell(), "{answer:?}");
        assert_eq!(keeper.wants_rotation(at(150)).is_some(), planned, "{answer:?}");
    }
}

#[test]
fn refused_token_waits_for_a_third_while_its_jwt_holds() {
    let mut keeper = family();
    for seconds in [150, 160, 190] {
        keeper.answered(Kind::Lease, at(seconds), at(seconds), Ok(grant(100)), 0.0);
        keeper.answered(Kind::Token, at(seconds), at(seconds), Err(Answer::Denied), 0.0);
        assert_eq!(keeper.wants_rotation(at(seconds)), None);
    }
    assert_eq!(keeper.wants_rotation(at(201)), Some(Trigger::Degraded));
    keeper.answered(Kind::Token, at(201), at(201), Ok(grant(300)), 0.0);
    assert_eq!((keeper.wants_rotation(at(201)), keeper.is_unwell()), (None, false));
}

#[test]
fn refused_token_is_planned_for_once_its_jwt_is_over() {
    let mut keeper = family();
    keeper.answered(Kind::Lease, at(399), at(399), Ok(grant(3_600)), 0.0);
    keeper.answered(Kind::Token, at(250), at(250), Ok(grant(300)), 0.0);
    keeper.answered(Kind::Token, at(401), at(401), Err(Answer::Denied), 0.0);
    assert_eq!(keeper.wants_rotation(at(401)), Some(Trigger::Planned));
    // The reason is known, and stays.
    assert!(!keeper.is_doubtful(Kind::Token, at(401)));
    assert_eq!((keeper.take_due(at(474)), keeper.take_due(at(476))), (vec![], vec![Kind::Token]));
}

#[test]
fn first_generation_of_a_fleet_is_replaced_each_at_its_own_time() {
    let of_an_hour = |is_first, u| {
        let lease = Term::new(at(0), secs(3_600), true, 0.0);
        Keeper::new(lease, None, None, at(0)).spread(is_first, at(0), u)
    };
    let mut keeper = of_an_hour(true, 0.0);
    assert_eq!(keeper.next_due(at(400)), Some(at(3_600).boot));
    keeper.answered(Kind::Lease, at(3_000), at(3_000), Ok(grant(3_600)), 0.0);
    assert_eq!(keeper.wants_rotation(at(3_599)), None);
    assert_eq!((keeper.wants_rotation(at(3_600)), keeper.window()), (Some(Trigger::Planned), None));
    for (is_first, u) in [(true, 1.0), (false, 0.0)] {
        assert_eq!(of_an_hour(is_first, u).wants_rotation(at(3_599)), None);
    }
}

/// What was refused and is alive all the same.
#[test]
fn what_is_found_alive_is_not_given_up_without_need() {
    let alive = Findings { lease: Finding::Alive, token: Finding::Alive, login: proof::Verdict::Accepted };
    let unknown = Findings { token: Finding::Unknown, ..alive };
    for (kind, answer, found, doubtful, planned) in [
        (Kind::Lease, Answer::BadRequest, alive, true, false),
        (Kind::Lease, Answer::NotFound, alive, true, false),
        (Kind::Lease, Answer::Denied, alive, true, true),
        (Kind::Lease, Answer::Denied, unknown, true, false),
        (Kind::Lease, Answer::Unavailable, alive, false, false),
        (Kind::Token, Answer::Denied, alive, true, false),
        (Kind::Token, Answer::Unavailable, alive, true, true),
        (Kind::Token, Answer::Unavailable, unknown, true, false),
        (Kind::Token, Answer::Lost, alive, false, false),
    ] {
        let term = Term::new(at(0), secs(400), true, 0.0);
        let mut keeper = Keeper::new(term, Some(term), None, at(0));
        let now = at(200);
        keeper.answered(kind, now, now, Err(answer), 0.0);
        assert_eq!(keeper.is_doubtful(kind, now), doubtful, "{kind:?} {answer:?}");
        keeper.found_alive(found, now, 0.0);
        let later = at(230);
        keeper.found_alive(found, later, 0.0);
        assert_eq!(keeper.wants_rotation(later).is_some(), planned, "{kind:?} {answer:?} {found:?}");
    }
}

#[test]
fn window_opens_only_where_an_end_is_final() {
    let mut keeper = family();
    assert_eq!(keeper.window(), None);
    keeper.answered(Kind::Lease, at(60), at(60), Err(Answer::Unavailable), 0.0);
    assert_eq!(keeper.window(), None);
    keeper.answered(Kind::Lease, at(60), at(60), Ok(grant(40)), 0.0);
    let (end, window) = keeper.window().unwrap();
    assert_eq!((end.boot, window.cut_at), (at(100).boot, at(100).boot));
    keeper.answered(Kind::Lease, at(70), at(70), Ok(grant(100)), 0.0);
    assert_eq!(keeper.window(), None);

    keeper.stop_renewing();
    assert_eq!(keeper.window().unwrap().1.cut_at, at(170).boot);
    assert_eq!(keeper.take_due(at(169)), []);
}

#[test]
fn generation_is_over_with_the_first_of_its_ends() {
    let mut keeper = family();
    keeper.answered(Kind::Lease, at(0), at(0), Ok(grant(1_000)), 0.0);
    assert!(!keeper.is_over(at(304), secs(5)) && keeper.is_over(at(305), secs(5)));
    assert!(keeper.has_living_token(at(299)) && !keeper.has_living_token(at(300)));
}

#[test]
fn token_has_a_lease_to_spare_for_half_a_generation() {
    let mut keeper = family();
    assert_eq!(keeper.spare_login(at(250)), Some((grant(50), Some(at(400).wall))));
    assert_eq!(keeper.spare_login(at(251)), None);
    keeper.answered(Kind::Lease, at(50), at(50), Ok(grant(1_000)), 0.0);
    assert!(keeper.spare_login(at(150)).is_some() && keeper.spare_login(at(151)).is_none());

    let keeper = Keeper::new(Term::new(at(0), secs(100), true, 0.0), None, None, at(0));
    assert_eq!(keeper.spare_login(at(9_999)), Some((Grant { ttl: None, renewable: false }, None)));
}

#[test]
fn token_that_somebody_else_keeps_is_watched() {
    let lease = Term::new(at(0), secs(3_600), true, 0.0);
    let token = Term::new(at(0), secs(600), false, 0.0).observed();
    let mut keeper = Keeper::new(lease, Some(token), None, at(0));
    assert_eq!(keeper.take_due(at(60)), [Kind::Token]);
    // Older, renewed by its keeper, older.
    for (seconds, left) in [(60, 540), (330, 270), (470, 600), (770, 300), (920, 200)] {
        keeper.answered(Kind::Token, at(seconds), at(seconds), Ok(grant(left)), 0.0);
        assert_eq!((keeper.wants_rotation(at(seconds)), keeper.window()), (None, None), "{seconds}");
        assert_eq!(keeper.token_left(at(seconds)), Some(secs(left)));
    }
    keeper.answered(Kind::Token, at(1_000), at(1_000), Ok(grant(120)), 0.0);
    assert_eq!(keeper.wants_rotation(at(1_000)), Some(Trigger::Planned));
    assert!(keeper.wants_another_token(at(1_000)) && keeper.window().is_some());
    keeper.answered(Kind::Token, at(1_060), at(1_060), Ok(grant(600)), 0.0);
    assert_eq!(keeper.wants_rotation(at(1_060)), None);

    keeper.token_replaced(at(1_360), 0.0);
    assert_eq!(keeper.wants_rotation(at(1_360)), Some(Trigger::Planned));
    assert_eq!(keeper.take_due(at(1_659)), [Kind::Lease]);
}

#[test]
fn token_without_an_end_is_left_alone() {
    let lease = Term::new(at(0), secs(100), true, 0.0);
    let mut keeper = Keeper::new(lease, None, None, at(0));
    assert_eq!(keeper.take_due(at(50)), [Kind::Lease]);
    assert_eq!((keeper.token_left(at(0)), keeper.has_living_token(at(9_999))), (None, true));
}
