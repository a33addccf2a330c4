//! What a server asks of who logs in, and the answers that are no exchange.

use postgres_protocol::authentication::md5_hash;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::wire::scram::Mechanisms;

/// An authentication request: Int32 code, data by the code. PostgreSQL manual, "Message Formats".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authentication<'a> {
    Ok,
    Cleartext,
    Md5 {
        salt: [u8; 4],
    },
    Sasl(Mechanisms),
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
    /// What pglease never answers, in words.
    Other(&'static str),
}

impl<'a> Authentication<'a> {
    /// Reads the body; `None` if it has no code, or not what belongs to it.
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        let (&code, data) = body.split_first_chunk()?;
        Some(match u32::from_be_bytes(code) {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => Self::Md5 { salt: data.try_into().ok()? },
            7 | 8 => Self::Other("GSSAPI"),
            9 => Self::Other("SSPI"),
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
            Self::Cleartext => "AuthenticationCleartextPassword",
            Self::Md5 { .. } => "AuthenticationMD5Password",
            Self::Sasl(_) => "AuthenticationSASL",
            Self::SaslContinue(_) => "AuthenticationSASLContinue",
            Self::SaslFinal(_) => "AuthenticationSASLFinal",
            Self::Other(method) => method,
        }
    }
}

/// Byte1 `p`, Int32 length, the answer as a string.
pub(crate) type PasswordMessage = Zeroizing<Vec<u8>>;

/// The password itself; `None` for one that no string can hold.
pub(crate) fn cleartext(password: &SecretString) -> Option<PasswordMessage> {
    password_message(password.expose_secret().as_bytes())
}

/// What proves that we know the password, to who knows as much as we do about it: `md5` and
/// `md5(md5(password, user), salt)` in hexadecimal digits.
pub(crate) fn md5(user: &str, password: &SecretString, salt: [u8; 4]) -> Option<PasswordMessage> {
    let answer = Zeroizing::new(md5_hash(user.as_bytes(), password.expose_secret().as_bytes(), salt));
    password_message(answer.as_bytes())
}

fn password_message(answer: &[u8]) -> Option<PasswordMessage> {
    let len = u32::try_from(answer.len() + 5).ok()?;
    // Its whole length at once: growing would leave copies behind.
    let mut message = Zeroizing::new(Vec::with_capacity(answer.len() + 6));
    message.push(b'p');
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(answer);
    message.push(0);
    (!answer.contains(&0)).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_by_its_code_and_nothing_shorter_is_one() {
        let sasl = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
        let offered = Mechanisms { plain: true, plus: false };
        for (body, expected) in [
            (&b"\0\0\0\0"[..], Authentication::Ok),
            (b"\0\0\0\x03", Authentication::Cleartext),
            (b"\0\0\0\x05salt", Authentication::Md5 { salt: *b"salt" }),
            (b"\0\0\0\x07", Authentication::Other("GSSAPI")),
            (sasl, Authentication::Sasl(offered)),
            (b"\0\0\0\x0br=x", Authentication::SaslContinue(b"r=x")),
            (b"\0\0\0\x0c", Authentication::SaslFinal(b"")),
            (b"\0\0\0\x63", Authentication::Other("an unknown authentication method")),
        ] {
            assert_eq!(Authentication::parse(body), Some(expected));
        }
        for cut in 0..4 {
            assert_eq!(Authentication::parse(&sasl[..cut]), None, "cut at {cut}");
        }
        for salt in [&b""[..], b"sal", b"salty"] {
            assert_eq!(Authentication::parse(&[b"\0\0\0\x05", salt].concat()), None);
        }
    }

    /// The value of the crate's own test, and of PostgreSQL's `md5` twice over.
    #[test]
    fn password_is_sent_as_a_string_in_clear_or_hashed_with_the_salt() {
        let password = SecretString::from("password");
        assert_eq!(*cleartext(&password).unwrap(), b"p\0\0\0\x0dpassword\0");
        let hashed = md5("md5_user", &password, [0x2a, 0x3d, 0x8f, 0xe0]).unwrap();
        assert_eq!(*hashed, b"p\0\0\0\x28md562af4dd09bbb41884907a838a3233294\0");
        assert_eq!(cleartext(&SecretString::from("two\0strings")), None);
    }
}
