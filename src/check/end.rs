//! When what Vault has given ends by itself, as far as its answers tell. Pure, but for the clock.

use std::fmt;
use std::time::{Duration, SystemTime};

/// An end. What is lengthened by a request that nobody has answered ends at some time up to the later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    At(SystemTime),
    /// Then or earlier.
    By(SystemTime),
    /// When Vault lengthens it no further, or earlier.
    ByMaxTtl,
    Never,
}

impl End {
    /// Of what was granted just now.
    pub(crate) fn in_a(ttl: Option<Duration>) -> Self {
        ttl.map_or(Self::Never, |ttl| Self::At(SystemTime::now() + ttl))
    }

    /// This one, or that of a renewal now, if it is later; `longest` is as in [`in_a`](Self::in_a), `None` what Vault
    /// allows at most.
    pub(crate) fn or_later(self, longest: Option<Duration>) -> Self {
        let Some(longest) = longest else {
            return if self == Self::Never { Self::Never } else { Self::ByMaxTtl };
        };
        let renewed = SystemTime::now() + longest;
        match self {
            Self::At(end) | Self::By(end) => Self::By(end.max(renewed)),
            Self::ByMaxTtl | Self::Never => self,
        }
    }

    /// The earlier of this one and another.
    pub(crate) fn or_with(self, other: Self) -> Self {
        match (self, other) {
            (Self::At(one), Self::At(other)) => Self::At(one.min(other)),
            (Self::At(one) | Self::By(one), Self::At(other) | Self::By(other)) => Self::By(one.min(other)),
            (Self::ByMaxTtl, Self::At(end) | Self::By(end))
            | (Self::At(end) | Self::By(end), Self::ByMaxTtl) => Self::By(end),
            (Self::Never, end) | (end, Self::Never) => end,
            (Self::ByMaxTtl, Self::ByMaxTtl) => Self::ByMaxTtl,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds;
        match self {
            Self::At(end) => write!(f, "ends at {}", time(*end)),
            Self::By(end) => write!(f, "ends at {} at the latest", time(*end)),
            Self::ByMaxTtl => f.write_str("ends with its max_ttl at the latest"),
            Self::Never => f.write_str("does not end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::End::{At, By, ByMaxTtl, Never};
    use super::*;

    #[test]
    fn of_two_ends_the_earlier_counts_and_is_as_sure_as_both() {
        let [soon, late] = [1000, 2000].map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (one, other, expected) in [
            (At(soon), At(late), At(soon)),
            (At(soon), By(late), By(soon)),
            (By(late), At(soon), By(soon)),
            (By(late), By(soon), By(soon)),
            (ByMaxTtl, At(soon), By(soon)),
            (By(late), ByMaxTtl, By(late)),
            (Never, At(soon), At(soon)),
            (ByMaxTtl, Never, ByMaxTtl),
            (ByMaxTtl, ByMaxTtl, ByMaxTtl),
            (Never, Never, Never),
        ] {
            assert_eq!(one.or_with(other), expected, "{one:?} {other:?}");
            assert_eq!(other.or_with(one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn renewal_without_an_answer_may_have_made_it_later_and_not_earlier() {
        let hour = Duration::from_hours(1);
        let far = SystemTime::now() + hour * 24;
        assert_eq!(At(far).or_later(Some(hour)), By(far));
        assert_eq!(At(far).or_later(None), ByMaxTtl);
        assert_eq!(ByMaxTtl.or_later(Some(hour)), ByMaxTtl);
        assert_eq!([Never.or_later(Some(hour)), Never.or_later(None)], [Never; 2]);
        let By(renewed) = At(SystemTime::UNIX_EPOCH).or_later(Some(hour)) else { panic!("it is not known") };
        assert!(renewed > SystemTime::now());
        assert_eq!(By(SystemTime::UNIX_EPOCH).to_string(), "ends at 1970-01-01T00:00:00Z at the latest");
    }
}
