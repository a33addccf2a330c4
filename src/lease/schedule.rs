//! When to renew, rotate, retry and give up. Pure: random numbers `u`, uniform in 0–1, come from the caller.
//!
//! Points in time are on the boot clock; D is the duration that was granted, R what is left of it.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::vault::Answer;

/// From a grant to the first renewal: D·(0.10 + 0.50u), so that a fleet which started together is spread out from the
/// first round on.
pub(super) fn first_renewal(granted: Duration, u: f64) -> Duration {
    granted.mul_f64(0.10 + 0.50 * unit(u)).max(LEAST_BETWEEN_RENEWALS)
}

/// From a grant to the next renewal: D·(0.50 + 0.10u). Later leaves no room for the stalls of more than 10 s that
/// Vault's one lock per database brings.
pub(super) fn next_renewal(granted: Duration, u: f64) -> Duration {
    granted.mul_f64(0.50 + 0.10 * unit(u)).max(LEAST_BETWEEN_RENEWALS)
}

/// From the grant of what cannot be renewed to its rotation: D·(0.60 + 0.15u).
pub(super) fn rotation_of_unrenewable(granted: Duration, u: f64) -> Duration {
    granted.mul_f64(0.60 + 0.15 * unit(u))
}

/// Whether a grant is cut short by a maximum, seen against the longest of before.
pub(super) fn is_capped(granted: Duration, nominal: Duration) -> bool {
    granted < nominal.mul_f64(0.9)
}

/// How long the rotation of what is capped may wait: not at all where R < 2w, else a random part of the time until R is
/// max(w, R/2); w = min(5 min, D/2). All of that time is used, as leases that were issued together are capped together.
pub(super) fn wait_before_rotation(nominal: Duration, left: Duration, u: f64) -> Duration {
    let lead = (nominal / 2).min(MAX_ROTATION_LEAD);
    if left < lead * 2 {
        return Duration::ZERO;
    }
    left.saturating_sub(lead.max(left / 2)).mul_f64(1.0 - unit(u))
}

/// The age at which a credential is replaced although it could be renewed, if there is one.
///
/// What a fleet got together ends together: a `max_ttl` that shows only when it cuts a grant, and a JWT. To replace all
/// of them within their last hour takes several times the requests of a calm one. So the first credential of a process
/// is replaced after D·24ᵘ, and one whose JWT was good for [`LONG_JWT`] after J·(0.82 + 0.13u): the kubelet has
/// put a new one in its place by then. Leases of less than [`LEAST_SPREAD`] are left alone.
pub(super) fn early_rotation(
    is_first: bool,
    granted: Duration,
    jwt_left: Option<Duration>,
    u: f64,
) -> Option<Duration> {
    let by_age = (is_first && granted >= LEAST_SPREAD).then(|| granted.mul_f64(24_f64.powf(unit(u))));
    let by_jwt = jwt_left.filter(|&left| left >= LONG_JWT).map(|left| left.mul_f64(0.82 + 0.13 * unit(u)));
    by_age.into_iter().chain(by_jwt).min()
}

/// The pause after a renewal that was refused for a reason that stays: half of what is left.
pub(super) fn retry_of_refused(left: Duration) -> Duration {
    (left / 2).max(LEAST_BETWEEN_RENEWALS)
}

/// The pause after a renewal that failed: full jitter up to min(30 s, R/4), at least 1 s, and what Vault asked for
/// where that still leaves room.
pub(super) fn renewal_retry(backoff: &mut Backoff, left: Duration, answer: Answer, u: f64) -> Duration {
    let pause = backoff.next((left / 4).min(MAX_RETRY), u).max(LEAST_BETWEEN_RENEWALS);
    pause.max(asked_for(answer, left / 4))
}

/// The pause before the next renewal while the database is away: u·min(10 s, R/4), at least 1 s. So a fleet comes back
/// soon after it, and not all at once.
pub(super) fn renewal_after_outage(left: Duration, u: f64) -> Duration {
    (left / 4).min(MAX_AFTER_OUTAGE).mul_f64(unit(u)).max(LEAST_BETWEEN_RENEWALS)
}

/// What `Retry-After` asks for, where it is at most `limit`; a second where it asks for more or nothing.
pub(super) fn asked_for(answer: Answer, limit: Duration) -> Duration {
    match answer {
        Answer::TryLater { retry_after } => retry_after
            .filter(|&pause| pause <= limit)
            .unwrap_or(LEAST_AFTER_TRY_LATER)
            .max(LEAST_AFTER_TRY_LATER),
        Answer::NotSent
        | Answer::Lost
        | Answer::Malformed
        | Answer::Redirect
        | Answer::BadRequest
        | Answer::Denied
        | Answer::NotFound
        | Answer::Unexpected
        | Answer::Unavailable => Duration::ZERO,
    }
}

/// From the read of a static role's password to the next: a second or two after its `ttl`, as Vault changes it not
/// quite at its end.
pub(super) fn next_static_read(ttl: Duration, u: f64) -> Duration {
    ttl + Duration::from_secs(1).mul_f64(1.0 + unit(u))
}

/// The limit of one renewal: R/3 within 5 s to 30 s.
pub(super) fn renewal_timeout(left: Duration) -> Duration {
    (left / 3).clamp(Duration::from_secs(5), Duration::from_secs(30))
}

/// The limit of a creds read: 60 s, since a shorter one makes orphans, but over before the token is, since a token that
/// ends during the read leaves one too.
pub(super) fn creds_timeout(token_left: Option<Duration>) -> Duration {
    token_left.map_or(MAX_CREDS_TIMEOUT, |left| {
        left.saturating_sub(Duration::from_secs(1)).clamp(MIN_CREDS_TIMEOUT, MAX_CREDS_TIMEOUT)
    })
}

/// When the sessions of a lease that ends for good are told, on the boot clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) idle_from: Duration,
    pub(super) boundary_from: Duration,
    pub(super) cut_at: Duration,
}

/// The window before `end`. It opens a tenth of the whole life before it, within 5 s to 10 min and at most D/4; from
/// min(5 s, D/8) before it nobody is spared for being busy.
pub(super) fn window(issued: Duration, end: Duration, nominal: Duration) -> Window {
    let life = end.saturating_sub(issued);
    let margin = (life / 10).clamp(Duration::from_secs(5), Duration::from_mins(10)).min(nominal / 4);
    let last = Duration::from_secs(5).min(nominal / 8);
    Window { idle_from: end.saturating_sub(margin), boundary_from: end.saturating_sub(last), cut_at: end }
}

fn unit(u: f64) -> f64 {
    u.clamp(0.0, 1.0)
}

/// Ceiling of every pause while a credential serves.
pub(super) const MAX_RETRY: Duration = Duration::from_secs(30);

/// A lease of a few seconds is not renewed more often.
pub(super) const LEAST_BETWEEN_RENEWALS: Duration = Duration::from_secs(1);

const MAX_AFTER_OUTAGE: Duration = Duration::from_secs(10);

const LEAST_AFTER_TRY_LATER: Duration = Duration::from_secs(1);

const LEAST_SPREAD: Duration = Duration::from_mins(5);

/// A shorter one would have Vault, which renews without it, make many more credentials than it has to.
const LONG_JWT: Duration = Duration::from_hours(8);

const MAX_ROTATION_LEAD: Duration = Duration::from_mins(5);

const MAX_CREDS_TIMEOUT: Duration = Duration::from_mins(1);

const MIN_CREDS_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn renewals_fall_where_the_formulas_say() {
        for (u, first, next) in [(0.0, 360, 1_800), (0.5, 1_260, 1_980), (1.0, 2_160, 2_160)] {
            assert_eq!(first_renewal(secs(3_600), u).as_secs(), first);
            assert_eq!(next_renewal(secs(3_600), u).as_secs(), next);
        }
        assert_eq!(first_renewal(secs(3), 0.0), secs(1));
        assert_eq!(rotation_of_unrenewable(secs(100), 1.0), secs(75));
    }

    #[test]
    fn capped_grants_rotate_now_or_half_way() {
        for (nominal, left, u, wait) in [
            (10, 7, 0.0, 0),
            (10, 9, 1.0, 0),
            (10, 10, 0.0, 5),
            (3_600, 599, 0.5, 0),
            (3_600, 1_800, 0.0, 900),
            (3_600, 1_800, 1.0, 0),
            (3_600, 600, 0.0, 300),
            (3_600, 600, 0.5, 150),
        ] {
            assert_eq!(
                wait_before_rotation(secs(nominal), secs(left), u),
                secs(wait),
                "{nominal} {left} {u}"
            );
        }
        assert!(is_capped(secs(7), secs(10)) && !is_capped(secs(9), secs(10)));
    }

    #[test]
    fn what_a_fleet_got_together_is_replaced_at_its_own_time() {
        let (hours, minutes) = (|hours: u64| secs(hours * 3_600), |minutes: u64| secs(minutes * 60));
        for (is_first, granted, jwt_left, u, age) in [
            (true, hours(1), None, 0.0, Some(hours(1))),
            (true, hours(1), None, 0.5, Some(secs(17_636))),
            (true, hours(1), None, 1.0, Some(hours(24))),
            (true, minutes(15), None, 1.0, Some(hours(6))),
            (true, minutes(4), None, 0.5, None),
            (false, hours(1), None, 0.5, None),
            (false, hours(1), Some(hours(1)), 0.5, None),
            (false, hours(1), Some(hours(24)), 0.0, Some(minutes(1_180) + secs(48))),
            (true, hours(1), Some(hours(24)), 1.0, Some(minutes(1_368))),
        ] {
            let planned = early_rotation(is_first, granted, jwt_left, u).map(|age| secs(age.as_secs()));
            assert_eq!(planned, age, "{is_first} {granted:?} {jwt_left:?}");
        }
    }

    #[test]
    fn retry_after_is_honoured_as_far_as_there_is_time() {
        let later = |pause: Option<u64>| Answer::TryLater { retry_after: pause.map(secs) };
        for (answer, limit, least) in [
            (later(Some(9)), 10, 9),
            (later(Some(9)), 8, 1),
            (later(Some(0)), 8, 1),
            (later(None), 8, 1),
            (Answer::Unavailable, 8, 0),
        ] {
            assert_eq!(asked_for(answer, secs(limit)), secs(least), "{answer:?}");
        }
    }

    #[test]
    fn limits_of_requests_follow_what_is_left() {
        for (left, limit) in [(0, 5), (15, 5), (60, 20), (3_600, 30)] {
            assert_eq!(renewal_timeout(secs(left)), secs(limit));
        }
        for (left, limit) in [(None, 60), (Some(3_600), 60), (Some(8), 7), (Some(1), 1)] {
            assert_eq!(creds_timeout(left.map(secs)), secs(limit));
        }
    }

    #[test]
    fn window_is_a_tenth_of_the_life_within_bounds() {
        for (life, nominal, margin, last) in [
            (25, 10, 2_500, 1_250),
            (86_400, 3_600, 600_000, 5_000),
            (3_600, 900, 225_000, 5_000),
            (600, 300, 60_000, 5_000),
            (25, 60, 5_000, 5_000),
        ] {
            let end = secs(100_000);
            let window = window(secs(100_000 - life), end, secs(nominal));
            assert_eq!(end.saturating_sub(window.idle_from).as_millis(), margin, "{life} {nominal}");
            assert_eq!(end.saturating_sub(window.boundary_from).as_millis(), last, "{life} {nominal}");
            assert_eq!(window.cut_at, end);
        }
    }

    proptest! {
        #[test]
        fn renewals_are_never_at_once_and_never_after_the_end(ms in 2_000_u64..100_000_000, u in 0.0..=1.0) {
            let granted = Duration::from_millis(ms);
            for wait in [first_renewal(granted, u), next_renewal(granted, u), rotation_of_unrenewable(granted, u)] {
                prop_assert!(wait >= secs(1) && wait < granted, "{wait:?}");
            }
        }

        #[test]
        fn rotations_begin_before_the_end(nominal in 0_u64..10_000_000, left in 0_u64..10_000_000, u in 0.0..=1.0) {
            let wait = wait_before_rotation(secs(nominal), secs(left), u);
            prop_assert!(wait <= secs(left) / 2);
        }

        #[test]
        fn retries_pause_and_end_within_bounds(left in 0_u64..10_000_000, fails in 0_u32..40, u in -1.0..=2.0) {
            let mut backoff = Backoff::default();
            for _ in 0..=fails {
                let pause = renewal_retry(&mut backoff, secs(left), Answer::Unavailable, u);
                prop_assert!(pause >= secs(1) && pause <= secs(30).min(secs(left) / 4).max(secs(1)));
            }
        }

        #[test]
        fn windows_are_in_order(issued in 0_u64..1_000, life in 0_u64..10_000_000, nominal in 0_u64..10_000_000) {
            let Window { idle_from, boundary_from, cut_at } =
                window(secs(issued), secs(issued + life), secs(nominal));
            prop_assert!(idle_from <= boundary_from && boundary_from <= cut_at);
        }
    }
}
