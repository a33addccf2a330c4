//! Clocks, and what they decide: until when PostgreSQL takes the password of a leased role. Pure.

use std::time::Duration;

use crate::check::certificate::span;
use crate::check::fault::Warning;
use crate::check::report::Found;

/// How far PostgreSQL's clock is ahead of ours, in seconds, give or take half the time that it took to ask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ahead {
    pub(super) seconds: f64,
    pub(super) uncertain: f64,
}

impl Ahead {
    /// From its word, and from our clock before and after, each in seconds since 1970.
    pub(super) fn of(theirs: f64, before: f64, after: f64) -> Self {
        Self { seconds: theirs - f64::midpoint(before, after), uncertain: (after - before).abs() / 2.0 }
    }
}

pub(super) fn judge_clock(ahead: Ahead) -> Found {
    let Ahead { seconds, uncertain } = ahead;
    let direction = if seconds < 0.0 { "behind" } else { "ahead of" };
    let found = format!("PostgreSQL's clock is {:.1} s {direction} this machine's", seconds.abs());
    if seconds.abs() - uncertain <= MAX_SKEW {
        return Found::fine(found);
    }
    Found::warning(
        Warning::PostgresClock,
        found,
        "Vault sets VALID UNTIL by its own clock, five seconds after the end of a lease, and PostgreSQL goes by its own: \
         a credential may be over before its lease, or live on after it; `vault.clock` has Vault's",
        "have the machines of PostgreSQL and Vault, and this one, keep time (NTP: chrony, systemd-timesyncd)",
    )
}

/// Until when a role's password is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ValidUntil {
    /// For ever.
    None,
    /// For so many seconds by the server's clock; over where negative.
    Left(f64),
}

/// Judges the role's against what is left of its lease.
pub(super) fn judge_valid_until(valid: ValidUntil, lease_left: Duration, vault_path: &str) -> Found {
    let vault_role = vault_path.replacen("/creds/", "/roles/", 1);
    let cure = format!(
        "say VALID UNTIL '{{{{expiration}}}}' in the creation_statements of {vault_role}, and leave its \
         renew_statements empty"
    );
    match valid {
        ValidUntil::None => Found::warning(
            Warning::ValidForEver,
            "the leased role has no VALID UNTIL",
            "where its revocation fails, or Vault is gone for good, its password is good for ever",
            cure,
        ),
        ValidUntil::Left(left) if left < lease_left.as_secs_f64() - SLACK => {
            let left = Duration::try_from_secs_f64(left).unwrap_or_default();
            Found::warning(
                Warning::ValidTooShort,
                format!("VALID UNTIL is over in {}, and the lease in {}", span(left), span(lease_left)),
                "from then on nobody can log in with a credential that Vault takes for living; either the statements set \
                 another time, or the clocks differ",
                cure,
            )
        }
        ValidUntil::Left(left) => {
            let left = Duration::try_from_secs_f64(left).unwrap_or_default();
            Found::fine(format!("VALID UNTIL is over in {}, not before the lease", span(left)))
        }
    }
}

/// Vault's allowance: a larger difference shows.
const MAX_SKEW: f64 = 5.0;
/// Between reading a lease and asking after its role.
const SLACK: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;

    #[test]
    fn clocks_may_differ_by_what_vault_allows_for() {
        for (theirs, before, after, expected) in [
            (100.0, 100.0, 100.2, Outcome::Passed),
            (104.0, 100.0, 100.0, Outcome::Passed),
            (106.0, 100.0, 100.0, Outcome::Warning),
            (94.0, 100.0, 100.0, Outcome::Warning),
            (106.0, 100.0, 104.0, Outcome::Passed),
        ] {
            let found = judge_clock(Ahead::of(theirs, before, after));
            assert_eq!(found.outcome(), expected, "{theirs}: {found:?}");
        }
        assert!(judge_clock(Ahead { seconds: -9.0, uncertain: 0.0 }).found().contains("9.0 s behind"));
    }

    #[test]
    fn password_is_to_be_good_for_as_long_as_the_lease() {
        let hour = Duration::from_hours(1);
        for (valid, expected) in [
            (ValidUntil::None, Outcome::Warning),
            (ValidUntil::Left(3605.0), Outcome::Passed),
            (ValidUntil::Left(3598.5), Outcome::Passed),
            (ValidUntil::Left(3500.0), Outcome::Warning),
            (ValidUntil::Left(-1.0), Outcome::Warning),
            (ValidUntil::Left(1e12), Outcome::Passed),
        ] {
            let found = judge_valid_until(valid, hour, "database/creds/db-app");
            assert_eq!(found.outcome(), expected, "{valid:?}");
            let names_role = found.cure().is_none_or(|cure| cure.contains("of database/roles/db-app"));
            assert!(names_role, "{found:?}");
        }
    }
}
