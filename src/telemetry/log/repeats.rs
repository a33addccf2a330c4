//! Which lines of trouble are written, and which are only counted. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Level;

use super::fields::Fields;

/// What is wrong, by which one line is known as the same as another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Trouble {
    pub(super) level: Level,
    /// By name, each cut to a length.
    fields: BTreeMap<&'static str, String>,
}

/// What was only counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) trouble: Trouble,
    pub(super) times: u64,
    pub(super) within: Duration,
}

/// The troubles of the last while.
#[derive(Debug, Default)]
pub(super) struct Repeats(BTreeMap<Trouble, Window>);

/// Since a trouble was written, or counts of it were said.
#[derive(Debug)]
struct Window {
    since: Instant,
    times: u64,
}

impl Trouble {
    /// What `fields` say is wrong; `None` where each line of it has its own worth.
    pub(super) fn of(level: Level, fields: &Fields) -> Option<Self> {
        let event = fields.event();
        if level > Level::WARN || ALWAYS_WRITTEN.contains(&event) {
            return None;
        }
        let is_of_it = |name: &str| !VARYING.contains(&name) && (name != "message" || !event.contains('.'));
        let mut by_name = BTreeMap::new();
        for (name, value) in fields.iter().filter(|(name, _)| is_of_it(name)) {
            let end = value.floor_char_boundary(MAX_VALUE_LEN);
            by_name.insert(name, value.get(..end).unwrap_or_default().to_owned());
        }
        Some(Self { level, fields: by_name })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

impl Repeats {
    /// Whether it is to be written; else it is counted. Above the limit everything is written.
    pub(super) fn is_news(&mut self, trouble: Trouble, now: Instant) -> bool {
        if let Some(window) = self.0.get_mut(&trouble) {
            // What is over and has a count is said before the next line.
            if window.times > 0 || now < window.since + WINDOW {
                window.times += 1;
                return false;
            }
            window.since = now;
            return true;
        }
        if self.0.len() >= MAX_TROUBLES {
            self.0.retain(|_, window| window.times > 0 || now < window.since + WINDOW);
        }
        if self.0.len() < MAX_TROUBLES {
            self.0.insert(trouble, Window { since: now, times: 0 });
        }
        true
    }

    /// The counts whose time is over; what goes on is only counted anew. What was not repeated is forgotten.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Repeated> {
        let mut over = Vec::new();
        self.0.retain(|trouble, Window { since, times }| {
            if now < *since + WINDOW {
                return true;
            }
            let counted = std::mem::take(times);
            if counted > 0 {
                over.push(Repeated { trouble: trouble.clone(), times: counted, within: now - *since });
                *since = now;
            }
            counted > 0
        });
        over
    }

    /// All counts, and none is left.
    pub(super) fn all(&mut self, now: Instant) -> Vec<Repeated> {
        let all = std::mem::take(&mut self.0).into_iter();
        let counted = all.filter(|(_, window)| window.times > 0);
        counted
            .map(|(trouble, Window { since, times })| Repeated { trouble, times, within: now - since })
            .collect()
    }
}

/// Events of which each line has its own worth: what somebody waits for who has asked, and a count itself.
const ALWAYS_WRITTEN: &[&str] =
    &["config.rejected", "config.needs_restart", "config.warning", "session.panic", "log.repeated"];
/// Fields by which two lines differ that say the same.
const VARYING: &[&str] = &["session", "ttl_seconds", "token_ttl_seconds"];
/// A trouble that goes on has a line so often.
const WINDOW: Duration = Duration::from_mins(1);
/// Different ones at a time.
const MAX_TROUBLES: usize = 128;
/// In bytes. What differs behind that is the same.
const MAX_VALUE_LEN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(event: &str, fields: &[(&'static str, &str)]) -> Trouble {
        let fields = Fields::new(&[&[("event", event)], fields].concat());
        Trouble::of(Level::WARN, &fields).unwrap()
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn lines_are_the_same_that_say_the_same_of_the_same() {
        let renewal = [("vault_path", "a/creds/b"), ("lease", "1f"), ("code", "503"), ("ttl_seconds", "9")];
        let with = |name: &'static str, value: &'static str| {
            renewal.map(|(known, old)| (known, if known == name { value } else { old }))
        };
        let first = trouble("lease.renew_failed", &renewal);
        for (name, value, same) in [
            ("ttl_seconds", "5", true),
            ("vault_path", "a/creds/c", false),
            ("lease", "20", false),
            ("code", "429", false),
        ] {
            let other = trouble("lease.renew_failed", &with(name, value));
            assert_eq!(other == first, same, "{name}");
        }
        assert_ne!(trouble("token.renew_failed", &renewal), first);
        let errors = Trouble::of(Level::ERROR, &Fields::new(&[("event", "lease.renew_failed")]));
        assert_ne!(errors, Some(trouble("lease.renew_failed", &[])));

        let refused = |session, error| {
            trouble("session.refused", &[("session", session), ("reason", "vault"), ("error", error)])
        };
        assert_eq!(refused("s1", "no credential"), refused("s2", "no credential"));
        assert_ne!(refused("s1", "no credential"), refused("s1", "no host"));
        let (long, longer) = ("ä".repeat(200), "ä".repeat(201));
        assert_eq!(refused("s1", &long), refused("s1", &longer));
    }

    #[test]
    fn words_tell_libraries_lines_apart_and_not_ours() {
        let of = |fields: &[(&'static str, &str)]| Trouble::of(Level::WARN, &Fields::new(fields));
        let library = |message| of(&[("message", message), ("log.target", "rustls")]);
        assert_ne!(library("one"), library("other"));
        let ours = |message| of(&[("event", "a.b"), ("message", message)]);
        assert_eq!(ours("one"), ours("other"));
    }

    #[test]
    fn only_trouble_is_counted_and_not_all_of_it() {
        for (level, event, is_counted) in [
            (Level::ERROR, "accept.exhausted", true),
            (Level::WARN, "session.refused", true),
            (Level::INFO, "session.refused", false),
            (Level::INFO, "session.start", false),
            (Level::INFO, "session.end", false),
            (Level::ERROR, "session.panic", false),
            (Level::ERROR, "config.rejected", false),
            (Level::WARN, "log.repeated", false),
            (Level::DEBUG, "cancel.failed", false),
        ] {
            let trouble = Trouble::of(level, &Fields::new(&[("event", event)]));
            assert_eq!(trouble.is_some(), is_counted, "{level} {event}");
        }
    }

    /// What happens at a second: whether a line is written, or the counts that are said, with what time they are of.
    enum At {
        Line(&'static str, bool),
        Over(&'static [(&'static str, u64, u64)]),
        End(&'static [(&'static str, u64, u64)]),
    }

    #[tokio::test(start_paused = true)]
    async fn first_is_written_and_the_rest_is_counted_and_said() {
        use At::{End, Line, Over};
        for (name, story) in [
            (
                "nothing is said of what comes once",
                &[(0, Line("a", true)), (60, Over(&[])), (61, End(&[]))][..],
            ),
            (
                "what goes on is one line a minute",
                &[
                    (0, Line("a", true)),
                    (10, Line("a", false)),
                    (59, Line("a", false)),
                    (59, Over(&[])),
                    (60, Over(&[("a", 2, 60)])),
                    (61, Line("a", false)),
                    (118, Over(&[])),
                    (123, Over(&[("a", 1, 63)])),
                    (183, Over(&[])),
                    (184, Line("a", true)),
                ],
            ),
            (
                "what comes after the window and before its count is said is counted with it",
                &[
                    (0, Line("a", true)),
                    (1, Line("a", false)),
                    (62, Line("a", false)),
                    (63, Over(&[("a", 2, 63)])),
                ],
            ),
            (
                "what comes again after a quiet minute is news without a look between",
                &[
                    (0, Line("a", true)),
                    (60, Line("a", true)),
                    (119, Line("a", false)),
                    (120, Over(&[("a", 1, 60)])),
                ],
            ),
            (
                "each has its own count",
                &[
                    (0, Line("a", true)),
                    (30, Line("b", true)),
                    (31, Line("b", false)),
                    (32, Line("a", false)),
                    (60, Over(&[("a", 1, 60)])),
                    (90, Over(&[("b", 1, 60)])),
                ],
            ),
            (
                "no count is lost at the end",
                &[
                    (0, Line("a", true)),
                    (1, Line("b", true)),
                    (2, Line("a", false)),
                    (3, End(&[("a", 1, 3)])),
                    (3, End(&[])),
                    (4, Line("a", true)),
                ],
            ),
        ] {
            let (mut repeats, begin) = (Repeats::default(), Instant::now());
            for (second, at) in story {
                let now = begin + secs(*second);
                let (said, expected) = match at {
                    Line(event, is_news) => {
                        let found = repeats.is_news(trouble(event, &[]), now);
                        assert_eq!(found, *is_news, "{name}, second {second}");
                        continue;
                    }
                    Over(expected) => (repeats.over(now), expected),
                    End(expected) => (repeats.all(now), expected),
                };
                let said: Vec<_> = said
                    .iter()
                    .map(|said| (said.trouble.get("event").unwrap(), said.times, said.within.as_secs()))
                    .collect();
                assert_eq!(said, *expected, "{name}, second {second}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn troubles_are_limited_and_those_above_are_written() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let numbered = |number: usize| trouble("a.b", &[("path", &number.to_string())]);
        for number in 0..MAX_TROUBLES {
            assert!(repeats.is_news(numbered(number), now));
        }
        for _ in 0..2 {
            assert!(repeats.is_news(numbered(MAX_TROUBLES), now));
        }
        assert!(!repeats.is_news(numbered(0), now));
        assert_eq!(repeats.0.len(), MAX_TROUBLES);
        // Those that have been quiet make room; those that have a count do not.
        let later = now + WINDOW;
        assert!(repeats.is_news(numbered(MAX_TROUBLES), later));
        assert!(!repeats.is_news(numbered(MAX_TROUBLES), later));
        assert_eq!(repeats.0.len(), 2);
    }
}
