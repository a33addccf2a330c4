//! What a server asks of who logs in.

use crate::wire::scram::Mechanisms;

/// An authentication request: Int32 code, data by the code. PostgreSQL manual, "Message Formats".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authentication<'a> {
    Ok,
    Sasl(Mechanisms),
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
    /// What pglease never answers, in words.
    Other(&'static str),
}

impl<'a> Authentication<'a> {
    /// Reads the body; `None` if it has no code.
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        let (&code, data) = body.split_first_chunk()?;
        Some(match u32::from_be_bytes(code) {
            0 => Self::Ok,
            3 => Self::Other("the password in clear"),
            5 => Self::Other("an MD5 password"),
            7..=9 => Self::Other("GSSAPI or SSPI"),
            10 => Self::Sasl(Mechanisms::parse(data)),
            11 => Self::SaslContinue(data),
            12 => Self::SaslFinal(data),
            _ => Self::Other("an unknown authentication method"),
        })
    }

    /// As the manual calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "AuthenticationOk",
            Self::Sasl(_) => "AuthenticationSASL",
            Self::SaslContinue(_) => "AuthenticationSASLContinue",
            Self::SaslFinal(_) => "AuthenticationSASLFinal",
            Self::Other(method) => method,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_by_its_code_and_nothing_shorter_is_one() {
        let sasl = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
        let offered = Mechanisms { plain: true, plus: false };
        assert_eq!(Authentication::parse(sasl), Some(Authentication::Sasl(offered)));
        assert_eq!(Authentication::parse(b"\0\0\0\x0br=x"), Some(Authentication::SaslContinue(b"r=x")));
        assert_eq!(Authentication::parse(b"\0\0\0\x0c"), Some(Authentication::SaslFinal(b"")));
        for cut in 0..4 {
            assert_eq!(Authentication::parse(&sasl[..cut]), None, "cut at {cut}");
        }
    }
}
