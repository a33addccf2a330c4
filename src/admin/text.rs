//! Values of `/status` as people read them: for the page and for `pglease status`. Pure.

use std::fmt::{self, Display, Formatter, Write};

/// Who is at fault, in a few words: `fault` and `severity` as `/status` has them.
pub(crate) fn heading(fault: &str, severity: &str) -> String {
    let name = match fault {
        "none" => "Nobody",
        "vault" => "Vault",
        "kubernetes" => "Kubernetes",
        "postgresql" => "PostgreSQL",
        "network" => "Network",
        "application" => "Application",
        "settings" => "Settings",
        other => other,
    };
    match severity {
        "ok" => "All is well".to_owned(),
        "warning" => format!("{name}: look at it"),
        _ => format!("{name}: at fault"),
    }
}

/// For people: the largest two units at most.
pub(crate) fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(units.len() - 1);
    let part =
        |at: usize, seconds: u64| units.get(at).map(|(unit, name)| (seconds / unit, seconds % unit, *name));
    let Some((count, rest, name)) = part(first, seconds) else { return String::new() };
    let begin = format!("{count} {name}");
    // Beside days hours tell something, beside hours minutes; seconds beside a minute, up to ten of them.
    match part(first + 1, rest) {
        Some((count, _, name)) if count > 0 && !(600..3600).contains(&seconds) => {
            format!("{begin} {count} {name}")
        }
        _ => begin,
    }
}

/// Of something that ends, as of `now`: both in Unix time.
pub(crate) fn end_in_words(now: u64, ends_at: u64) -> String {
    if ends_at <= now {
        format!("ended {} ago", span(now - ends_at))
    } else {
        format!("ends in {}", span(ends_at - now))
    }
}

/// A number of bytes, with three digits that count.
pub(crate) struct Bytes(pub(crate) u64);

impl Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "three digits of it are shown")]
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = units[0];
        for larger in &units[1..] {
            if value < 1000.0 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        let digits = usize::from(value < 10.0);
        write!(f, "{value:.digits$} {unit}")
    }
}

/// Seconds, of which there are few; nothing where nothing was measured.
pub(crate) struct Millis(pub(crate) Option<f64>);

impl Display for Millis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_char('–'),
            Some(seconds) if seconds < 0.01 => write!(f, "{:.1} ms", seconds * 1e3),
            Some(seconds) if seconds < 1.0 => write!(f, "{:.0} ms", seconds * 1e3),
            Some(seconds) => write!(f, "{seconds:.1} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_for_people() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (600, "10 min"),
            (3599, "59 min"),
            (3700, "1 h 1 min"),
            (86_400, "1 d"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn end_is_before_or_behind_us() {
        assert_eq!(end_in_words(100, 161), "ends in 1 min 1 s");
        assert_eq!(end_in_words(100, 100), "ended 0 s ago");
        assert_eq!(end_in_words(100, 40), "ended 1 min ago");
    }

    #[test]
    fn values_are_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (seconds, text) in
            [(None, "–"), (Some(0.0021), "2.1 ms"), (Some(0.5), "500 ms"), (Some(12.34), "12.3 s")]
        {
            assert_eq!(Millis(seconds).to_string(), text);
        }
    }

    #[test]
    fn heading_says_who() {
        assert_eq!(heading("postgresql", "error"), "PostgreSQL: at fault");
        assert_eq!(heading("pglease", "warning"), "pglease: look at it");
        assert_eq!(heading("none", "ok"), "All is well");
    }
}
