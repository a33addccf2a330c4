//! What upstream's refusal of a login says of the credential. Pure.
//!
//! `28000` and `28P01` alone do not tell: PostgreSQL says them of the password, the role, `pg_hba.conf` and
//! certificates, and a login trigger may say what it likes. What tells is how far the login had come, as the server
//! looks at these in an order that is always the same (measured on 14 and 18; the same code in all between):
//!
//! | the last thing it said | what it looks at | of the credential |
//! | --- | --- | --- |
//! | nothing | `pg_hba.conf`, the certificate that `cert` and `clientcert` want, `ident` (`28000`) | no |
//! | a request for the password, not yet its own proof | password, `VALID UNTIL`, whether there is such a role (`28P01`) | yes |
//! | its own proof (`SASLFinal`) | the name in the certificate, with `clientcert=verify-full` (`28P01`) | no: the password was right |
//! | AuthenticationOk | whether the role is there, and may log in (`28000`) | yes |
//! | anything behind that | login triggers | no |
//!
//! `28P01` in front of every request is none of PostgreSQL's: whoever says so does not know the role, as a pooler may.

use crate::wire::error::{ErrorResponse, SqlState};

/// How far a login had come when it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing was asked of us.
    Unasked,
    /// A password was asked for, and it has not shown that it accepts ours.
    Asked,
    /// It has proven that it knows the password's verifier, which it does behind our proof only.
    Proven,
    /// AuthenticationOk, and nothing behind it.
    LetIn,
    /// It has said something of the session.
    Begun,
}

/// What a login that came to nothing tells of its credential: of two words the later one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OnCredential {
    Nothing,
    /// Something speaks against it that has other explanations as well: to be looked into, and not to be replaced for.
    Doubtful,
    Accepted,
    /// One host has accepted it, and another one that is wanted does not know it yet.
    Late,
    Rejected,
}

impl Stage {
    /// What a refusal at this point tells. One of another kind comes after the credential was accepted, but for those
    /// by which a server says that it cannot serve anyone now, or that are a pooler's own.
    pub(super) fn judge(self, response: &ErrorResponse) -> OnCredential {
        let Some(code) = response.code else { return OnCredential::Nothing };
        match (code, self) {
            (SqlState::INVALID_AUTHORIZATION | SqlState::INVALID_PASSWORD, Self::Asked | Self::LetIn)
            | (SqlState::INVALID_PASSWORD, Self::Unasked) => OnCredential::Rejected,
            (SqlState::INVALID_AUTHORIZATION | SqlState::INVALID_PASSWORD, _) => OnCredential::Doubtful,
            _ if code.is_of_class(CLASSES_WITHOUT_VERDICT) => OnCredential::Nothing,
            _ => OnCredential::Accepted,
        }
    }
}

/// Connection exception, insufficient resources, operator intervention, system error, internal error. PostgreSQL
/// manual, appendix A.
const CLASSES_WITHOUT_VERDICT: &[&str] = &["08", "53", "57", "58", "XX"];

#[cfg(test)]
mod tests {
    use super::*;

    use OnCredential::{Accepted, Doubtful, Nothing, Rejected};

    #[test]
    fn point_of_the_login_decides_and_no_text() {
        let stages = [Stage::Unasked, Stage::Asked, Stage::Proven, Stage::LetIn, Stage::Begun];
        for (code, expected) in [
            ("28000", [Doubtful, Rejected, Doubtful, Rejected, Doubtful]),
            ("28P01", [Rejected, Rejected, Doubtful, Rejected, Doubtful]),
            ("3D000", [Accepted; 5]),
            ("42501", [Accepted; 5]),
            ("22023", [Accepted; 5]),
            ("P0001", [Accepted; 5]),
            ("53300", [Nothing; 5]),
            ("57P03", [Nothing; 5]),
            ("08P01", [Nothing; 5]),
            ("58P01", [Nothing; 5]),
            ("XX000", [Nothing; 5]),
            ("none", [Nothing; 5]),
        ] {
            for text in ["no", "password authentication failed", "role \"x\" is not permitted to log in"] {
                let body = format!("SFATAL\0C{code}\0M{text}\0\0");
                let response = ErrorResponse::parse(body.as_bytes());
                assert_eq!(stages.map(|stage| stage.judge(&response)), expected, "{code} {text}");
            }
        }
    }
}
