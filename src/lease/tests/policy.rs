//! The error policy of facts: every request's every kind of answer, over the pure tables.

use super::super::chain::{Attempt, Failure, Trigger};
use super::super::check::{Finding, Findings, Known, Verdict};
use super::super::keeper::{Keeper, Kind, Renewal};
use super::super::term::Term;
use super::super::token::{LiveToken, Revocation};
use super::super::{proof, schedule};
use super::*;
use crate::vault::{Answer, Grant, Token, TokenKind};

/// What becomes of the token that a creds read failed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Creds {
    /// The next attempt reads with it.
    SameToken,
    /// So does the next, but not the one after.
    OnceMore,
    /// It is revoked, with what may have been made under it.
    NewLogin,
    /// What lookup-self says: the same token where it lives, else a new login.
    AsLookupSays,
}

/// What a failed renewal brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renew {
    /// The end is as it was, and the next try comes after a pause.
    Degraded,
    /// The same, and the credential is looked into.
    Checking,
    /// The same, and a successor is planned for.
    Planned,
}

struct Row {
    answer: Answer,
    creds: Creds,
    renew_lease: Renew,
    renew_self: Renew,
    /// While lookup-self works; while it never has.
    revoke_self: [Revocation; 2],
}

const fn row(
    answer: Answer,
    creds: Creds,
    renew_lease: Renew,
    renew_self: Renew,
    revoke_self: [Revocation; 2],
) -> Row {
    Row { answer, creds, renew_lease, renew_self, revoke_self }
}

/// One of each row of the policy; a login is tried again after every one of them.
fn policy() -> [Row; 11] {
    use Renew::{Checking, Degraded, Planned};
    use Revocation::{Done, Refused, TryAgain};
    let later = |seconds: Option<u64>| Answer::TryLater { retry_after: seconds.map(secs) };
    [
        row(Answer::NotSent, Creds::SameToken, Degraded, Degraded, [TryAgain; 2]),
        row(Answer::Lost, Creds::OnceMore, Degraded, Degraded, [TryAgain; 2]),
        row(Answer::Malformed, Creds::NewLogin, Degraded, Degraded, [Done; 2]),
        row(Answer::Redirect, Creds::SameToken, Degraded, Degraded, [TryAgain; 2]),
        row(Answer::BadRequest, Creds::SameToken, Checking, Planned, [Done; 2]),
        row(Answer::Denied, Creds::AsLookupSays, Checking, Checking, [Done, Refused]),
        row(Answer::NotFound, Creds::SameToken, Checking, Planned, [Done; 2]),
        row(Answer::Unexpected, Creds::SameToken, Degraded, Degraded, [Done; 2]),
        row(later(None), Creds::SameToken, Degraded, Degraded, [TryAgain; 2]),
        row(later(Some(2)), Creds::SameToken, Degraded, Degraded, [TryAgain; 2]),
        // A renew-self that fails so for long is looked into as well: its auth role may be gone.
        row(Answer::Unavailable, Creds::SameToken, Degraded, Checking, [TryAgain; 2]),
    ]
}

fn at(seconds: u64) -> Now {
    Now { boot: secs(1_000 + seconds), wall: secs(1_000_000 + seconds) }
}

/// Lease and token of 40 s, at half of it.
fn family() -> Keeper {
    let term = Term::new(at(0), secs(40), true, 0.0);
    Keeper::new(term, Some(term), None, at(0))
}

fn token(kind: TokenKind) -> LiveToken {
    LiveToken::new(Token::from_text("s.1"), kind)
}

#[test]
fn login_is_tried_again_after_every_answer_and_after_a_pause() {
    for Row { answer, .. } in policy() {
        let left = secs(20);
        let view = |now: Duration| View { now, left, clients_wait: false, u: 1.0 };
        for served in [false, true] {
            let (mut state, _) = ChainState::default().on(ChainEvent::Started, view(secs(1_000)));
            let mut pauses = Vec::new();
            if served {
                state = state.on(ChainEvent::SuccessorReady, view(secs(1_000))).0;
                state = state.on(ChainEvent::RotationDue(Trigger::Planned), view(secs(1_000))).0;
            }
            for round in 0..8 {
                let now = secs(2_000 + 100 * round);
                let (failed, actions) =
                    state.on(ChainEvent::AttemptFailed(Failure::Vault(answer)), view(now));
                assert_eq!(actions, [], "{answer:?}");
                assert!(
                    matches!(
                        failed.phase(),
                        Phase::Fetch { attempt: Attempt::Waiting, .. }
                            | Phase::Rotating { attempt: Attempt::Waiting, .. }
                    ),
                    "{answer:?}"
                );
                let due = failed.attempt_at().unwrap();
                pauses.push(due.saturating_sub(now).as_secs());
                let (begun, actions) = failed.on(ChainEvent::Tick, view(due));
                assert_eq!(actions, [ChainAction::Begin], "{answer:?}");
                state = begun;
            }
            // Doubling up to 10 s where nothing serves, up to R/4 where something does.
            let least = if answer == (Answer::TryLater { retry_after: Some(secs(2)) }) { 2 } else { 1 };
            let most = if served { 5 } else { 10 };
            let expected = [1, 1, 2, 4, 8, 16, 16, 16].map(|pause: u64| pause.clamp(least, most));
            assert_eq!(pauses, expected, "{answer:?} {served}");
        }
    }
}

#[test]
fn creds_read_that_failed_keeps_or_ends_its_token() {
    for Row { answer, creds, .. } in policy() {
        let reads = |is_dead| {
            let token = token(TokenKind::Service);
            [token.serves_after(answer, is_dead), token.serves_after(answer, is_dead)]
        };
        let expected = match creds {
            Creds::SameToken => [[true; 2]; 2],
            Creds::OnceMore => [[true, false]; 2],
            Creds::NewLogin => [[false; 2]; 2],
            Creds::AsLookupSays => [[true; 2], [false; 2]],
        };
        assert_eq!([reads(false), reads(true)], expected, "{answer:?}");
    }
}

#[test]
fn renewal_that_failed_never_moves_the_end_and_never_rotates_by_itself() {
    for Row { answer, renew_lease, renew_self, .. } in policy() {
        for (kind, cell) in [(Kind::Lease, renew_lease), (Kind::Token, renew_self)] {
            let mut keeper = family();
            assert_eq!(keeper.take_due(at(20)), [Kind::Lease, Kind::Token]);
            let other = if kind == Kind::Lease { Kind::Token } else { Kind::Lease };
            let good = Grant { ttl: Some(secs(40)), renewable: true };
            keeper.answered(other, at(20), at(20), Ok(good), 0.0);
            let renewal = keeper.answered(kind, at(20), at(20), Err(answer), 1.0);
            let refused = matches!(answer, Answer::BadRequest | Answer::Denied | Answer::NotFound);
            assert_eq!(
                renewal,
                if refused { Renewal::Refused } else { Renewal::Failed },
                "{kind:?} {answer:?}"
            );

            assert_eq!(keeper.left(at(20)), secs(20), "{kind:?} {answer:?}");
            assert!(keeper.is_unwell(), "{kind:?} {answer:?}");
            assert_eq!(keeper.is_doubtful(kind, at(20)), cell == Renew::Checking, "{kind:?} {answer:?}");
            let planned = (cell == Renew::Planned).then_some(Trigger::Planned);
            assert_eq!(keeper.wants_rotation(at(20)), planned, "{kind:?} {answer:?}");
            // Nothing more of that kind before a second, or before what Vault asked for within R/4 = 5 s.
            let pause = if answer == (Answer::TryLater { retry_after: Some(secs(2)) }) { 2 } else { 1 };
            // What is planned for is hardly asked for again: when half of the rest is gone.
            let pause = if cell == Renew::Planned { 10 } else { pause };
            let due = keeper.next_due(at(20)).unwrap();
            assert_eq!(due.saturating_sub(at(20).boot), secs(pause), "{kind:?} {answer:?}");
            // Less than a third is left: a successor as well, whatever the answer was.
            assert!(keeper.wants_rotation(at(27)).is_some(), "{kind:?} {answer:?}");
        }
    }
}

#[test]
fn renewal_that_was_granted_moves_the_end_and_a_capped_one_plans() {
    for kind in [Kind::Lease, Kind::Token] {
        for (ttl, capped) in [(40, false), (36, false), (35, true)] {
            let mut keeper = family();
            let grant = Grant { ttl: Some(secs(ttl)), renewable: true };
            let renewal = keeper.answered(kind, at(20), at(21), Ok(grant), 0.0);
            assert_eq!(renewal, Renewal::Granted { capped }, "{kind:?} {ttl}");
            let left =
                if kind == Kind::Lease { Some(keeper.lease_left(at(20))) } else { keeper.token_left(at(20)) };
            assert_eq!(left, Some(secs(ttl)), "{kind:?}");
            assert_eq!(keeper.wants_rotation(at(21)).is_some(), capped, "{kind:?} {ttl}");
        }
    }
}

/// The cells of 401 and 403 that lookup-self decides.
#[test]
fn denied_renewal_is_what_lookup_self_makes_of_it() {
    let known = Known { token_was_seen: true, others_are_seen: false, is_well_before_end: true };
    let found = |token| Findings { lease: Finding::Denied, token, login: proof::Verdict::Accepted };
    for (kind, token, verdict, planned) in [
        (Kind::Lease, Finding::Alive, Verdict::Alive, true),
        (Kind::Lease, Finding::Denied, Verdict::TokenDenied, false),
        (Kind::Token, Finding::Alive, Verdict::Alive, false),
        (Kind::Token, Finding::Denied, Verdict::TokenDenied, false),
    ] {
        let mut keeper = family();
        keeper.answered(kind, at(20), at(20), Err(Answer::Denied), 0.0);
        let of = found(token).judge(known);
        assert_eq!(of, verdict, "{kind:?} {token:?}");
        if of == Verdict::Alive {
            keeper.found_alive(found(token), at(20), 0.0);
        }
        assert_eq!(keeper.wants_rotation(at(20)).is_some(), planned, "{kind:?} {token:?}");
    }
}

#[tokio::test]
async fn revocation_is_tried_again_where_that_can_help() {
    let vault = FakeVault::default();
    for Row { answer, revoke_self, .. } in policy() {
        for (works, expected) in [true, false].into_iter().zip(revoke_self) {
            if works {
                vault.recover();
            } else {
                vault.fail(Operation::LookUpSelf, Fault::Status(403));
            }
            vault.set(|vault| vault.delay = Duration::ZERO);
            let login = vault.log_in().await.unwrap();
            let token = LiveToken::new(login.token, TokenKind::Service);
            token.look_up_once(&vault).await;
            assert_eq!(token.judge(answer), expected, "{answer:?} {works}");
        }
    }
}

/// `Retry-After` counts up to a quarter of what is left; more of it, or none, is a second.
#[test]
fn try_later_is_heeded_as_far_as_there_is_time() {
    for (asked, left, pause) in [(Some(4), 20, 4), (Some(9), 20, 1), (None, 20, 1), (Some(0), 20, 1)] {
        let answer = Answer::TryLater { retry_after: asked.map(secs) };
        let got = schedule::renewal_retry(&mut crate::backoff::Backoff::default(), secs(left), answer, 0.0);
        assert_eq!(got, secs(pause), "{asked:?}");
    }
}
