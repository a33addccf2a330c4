//! What the resolver of this machine says.

use std::io;

/// Whether it has not answered, or has got no answer itself, which is not to say that there is no such name.
///
/// libc has a code for that, of which the standard library passes on the words alone: glibc's, and musl's.
pub(super) fn is_silent(error: &io::Error) -> bool {
    let words = error.to_string();
    error.kind() == io::ErrorKind::TimedOut
        || ["Temporary failure in name resolution", "Try again"].iter().any(|silent| words.ends_with(silent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_not_taken_for_a_name_that_nobody_knows() {
        let said = |words: &str| io::Error::other(format!("failed to lookup address information: {words}"));
        for (error, expected) in [
            (io::ErrorKind::TimedOut.into(), true),
            (said("Temporary failure in name resolution"), true),
            (said("Try again"), true),
            (said("Name or service not known"), false),
            (said("Name does not resolve"), false),
            (io::ErrorKind::NotFound.into(), false),
        ] {
            assert_eq!(is_silent(&error), expected, "{error}");
        }
    }
}
