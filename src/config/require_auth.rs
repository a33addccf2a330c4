//! libpq's `require_auth`: which methods a server may ask for.

use std::fmt;

/// The methods that a server may ask for. Where channel binding is required, nothing but SCRAM over it is answered,
/// whatever stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "any of the methods may go with any other")]
pub(crate) struct RequireAuth {
    pub(crate) scram: bool,
    /// A server that lets us in without asking, as `trust` and `cert` in `pg_hba.conf` do.
    pub(crate) none: bool,
    pub(crate) md5: bool,
    /// The password in clear.
    pub(crate) password: bool,
}

impl Default for RequireAuth {
    fn default() -> Self {
        Self { scram: true, none: true, ..Self::NOTHING }
    }
}

impl RequireAuth {
    const NOTHING: Self = Self { scram: false, none: false, md5: false, password: false };

    /// Reads a list as libpq has it: methods with commas between them, either those that may be used, or, each with a
    /// `!`, those that may not. `md5` and `password` are used where they are named, and only there: a list of what
    /// may not be used takes away from the default.
    pub(super) fn parse(text: &str) -> Result<Self, RequireAuthError> {
        let negated = text.starts_with('!');
        let mut methods = if negated { Self::default() } else { Self::NOTHING };
        let mut seen = Vec::new();
        for word in text.split(',') {
            let name = word.strip_prefix('!').unwrap_or(word);
            if word.starts_with('!') != negated {
                return Err(RequireAuthError::Mixed);
            }
            if seen.contains(&name) {
                return Err(RequireAuthError::Twice);
            }
            seen.push(name);
            match name {
                "scram-sha-256" => methods.scram = !negated,
                "none" => methods.none = !negated,
                "md5" => methods.md5 = !negated,
                "password" => methods.password = !negated,
                // Never answered, so there is nothing to take away.
                "gss" | "sspi" | "oauth" if negated => {}
                "gss" => return Err(RequireAuthError::NotDone { method: "gss" }),
                "sspi" => return Err(RequireAuthError::NotDone { method: "sspi" }),
                "oauth" => return Err(RequireAuthError::NotDone { method: "oauth" }),
                _ => return Err(RequireAuthError::Unknown),
            }
        }
        if methods == Self::NOTHING { Err(RequireAuthError::Nothing) } else { Ok(methods) }
    }
}

/// As a list of what may be used.
impl fmt::Display for RequireAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.scram, "scram-sha-256"),
            (self.none, "none"),
            (self.md5, "md5"),
            (self.password, "password"),
        ];
        let names: Vec<_> = all.into_iter().filter_map(|(is_used, name)| is_used.then_some(name)).collect();
        f.write_str(&names.join(","))
    }
}

/// What is wrong with a list, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequireAuthError {
    #[error("{method} is no method of pglease's; use scram-sha-256, none, md5 or password")]
    NotDone { method: &'static str },
    #[error("no such method; use scram-sha-256, none, md5 or password")]
    Unknown,
    #[error("has methods with and without \"!\"; write either what may be used, or what may not")]
    Mixed,
    #[error("names a method twice; remove one")]
    Twice,
    #[error("leaves no method; take one out less")]
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_says_what_may_be_used_or_what_may_not() {
        let (all, nothing) = (RequireAuth::default(), RequireAuth::NOTHING);
        for (text, expected) in [
            ("scram-sha-256,none", Ok(all)),
            ("scram-sha-256", Ok(RequireAuth { none: false, ..all })),
            ("none", Ok(RequireAuth { none: true, ..nothing })),
            ("md5", Ok(RequireAuth { md5: true, ..nothing })),
            ("password,md5", Ok(RequireAuth { md5: true, password: true, ..nothing })),
            ("!none", Ok(RequireAuth { none: false, ..all })),
            // Not named is not used, whatever else is taken away.
            ("!gss,!sspi,!oauth", Ok(all)),
            ("!md5,!password", Ok(all)),
            ("!scram-sha-256,!none", Err(RequireAuthError::Nothing)),
            ("scram-sha-256,gss", Err(RequireAuthError::NotDone { method: "gss" })),
            ("sspi", Err(RequireAuthError::NotDone { method: "sspi" })),
            ("oauth", Err(RequireAuthError::NotDone { method: "oauth" })),
            ("scram-sha-256,!none", Err(RequireAuthError::Mixed)),
            ("!none,md5", Err(RequireAuthError::Mixed)),
            ("md5,md5", Err(RequireAuthError::Twice)),
            ("!md5,!md5", Err(RequireAuthError::Twice)),
            ("scram-sha-256, none", Err(RequireAuthError::Unknown)),
            ("SCRAM-SHA-256", Err(RequireAuthError::Unknown)),
            ("scram-sha-256,", Err(RequireAuthError::Unknown)),
            ("!", Err(RequireAuthError::Unknown)),
            ("!!none", Err(RequireAuthError::Unknown)),
        ] {
            assert_eq!(RequireAuth::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn list_is_shown_as_one_that_says_the_same() {
        for text in ["scram-sha-256,none", "md5", "none,md5,password", "scram-sha-256,none,md5,password"] {
            assert_eq!(RequireAuth::parse(text).unwrap().to_string(), text);
        }
    }
}
