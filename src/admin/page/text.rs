//! Values as text of the page.

use std::fmt::{self, Display, Formatter, Write};
use std::time::{Duration, SystemTime};

use crate::admin::text::span;

/// Text of others: none of it is HTML.
pub(super) struct Text<'a>(pub(super) &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            letter => f.write_char(letter),
        })
    }
}

/// How long ago the second is, as of the first: both in Unix time.
pub(super) struct Ago(pub(super) u64, pub(super) u64);

impl Display for Ago {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(now, at) = *self;
        let (utc, ago) = (utc(at), span(now.saturating_sub(at)));
        write!(f, "<time datetime=\"{utc}\" title=\"{utc}\">{ago} ago</time>")
    }
}

/// Unix time as a date.
pub(super) fn utc(at: u64) -> impl Display {
    // What a clock may say, and not more: later than the year 9999 has no such form.
    let at = at.min(253_402_300_799);
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_html() {
        let hostile = "<script>alert('a' & \"b\")</script>";
        assert_eq!(
            Text(hostile).to_string(),
            "&lt;script&gt;alert(&#39;a&#39; &amp; &quot;b&quot;)&lt;/script&gt;"
        );
    }

    #[test]
    fn times_are_for_people() {
        assert_eq!(
            Ago(1_764_115_260, 1_764_115_200).to_string(),
            "<time datetime=\"2025-11-26T00:00:00Z\" title=\"2025-11-26T00:00:00Z\">1 min ago</time>"
        );
        assert!(utc(u64::MAX).to_string().starts_with("9999"));
    }
}
