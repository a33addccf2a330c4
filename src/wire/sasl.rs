//! SASL's messages as the side that asks has them: what it sends, and how it takes a client's answers apart.
//!
//! PostgreSQL manual, "SASL Authentication" and "Message Formats". Where something is wrong the words are
//! PostgreSQL's own, so that nobody can tell the two apart by them.

use bytes::{BufMut, BytesMut};

use crate::wire::error::{ClientError, SqlState};
use crate::wire::message::HEADER_LEN;
use crate::wire::message::backend::AUTHENTICATION;
use crate::wire::message::frontend::PASSWORD_MESSAGE;

/// Why an exchange ends without a proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SaslError {
    #[error("expected SASL response, got message type {tag}")]
    NotAResponse { tag: u8 },
    /// The server says the same as of a wrong password: its reader has nothing else to say.
    #[error("message of {len} bytes where {MIN_RESPONSE_LEN} to {MAX_RESPONSE_LEN} are allowed")]
    Length { len: u32 },
    #[error("client closed the connection within a message")]
    Incomplete,
    #[error("invalid string in message")]
    Unterminated,
    #[error("insufficient data left in message")]
    TooShort,
    #[error("invalid message format")]
    TooLong,
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    #[error("malformed SCRAM message: {detail}")]
    Malformed { detail: String },
    /// The client could have bound the exchange, and was made to believe that we could not.
    #[error("SCRAM channel binding negotiation error")]
    Downgraded,
    #[error("unsupported SCRAM channel-binding type \"{name}\"")]
    BindingType { name: String },
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    #[error("client requires an unsupported SCRAM extension")]
    Extension,
    #[error("non-printable characters in SCRAM nonce")]
    NonceCharacters,
    #[error("unexpected SCRAM channel-binding attribute in client-final-message")]
    BindingAttribute,
    /// Bound to another certificate than ours: somebody stands between.
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    #[error("invalid SCRAM response: the nonce does not match")]
    Nonce,
    #[error("wrong proof")]
    Proof,
}

impl SaslError {
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed { detail: detail.into() }
    }

    /// PostgreSQL's own answer; `None` where that is the one to a wrong password.
    pub(crate) fn client_error(&self) -> Option<ClientError> {
        let protocol = |message: String| ClientError::fatal(SqlState::PROTOCOL_VIOLATION, message);
        Some(match self {
            Self::Length { .. } | Self::Incomplete | Self::Proof => return None,
            Self::Malformed { detail } => protocol("malformed SCRAM message".to_owned()).with_detail(detail),
            Self::Nonce => {
                protocol("invalid SCRAM response".to_owned()).with_detail("Nonce does not match.")
            }
            Self::Downgraded => {
                ClientError::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()).with_detail(
                    "The client supports SCRAM channel binding but thinks the server does not.  However, this \
                     server does support channel binding.",
                )
            }
            Self::BindingMismatch => ClientError::fatal(SqlState::INVALID_AUTHORIZATION, self.to_string()),
            Self::AuthorizationIdentity | Self::Extension => {
                ClientError::fatal(SqlState::FEATURE_NOT_SUPPORTED, self.to_string())
            }
            Self::NotAResponse { .. }
            | Self::Unterminated
            | Self::TooShort
            | Self::TooLong
            | Self::Mechanism
            | Self::BindingType { .. }
            | Self::NonceCharacters
            | Self::BindingAttribute => protocol(self.to_string()),
        })
    }
}

/// The body of a client's first answer, and how many bytes of `buf` its message takes; `None` asks for more bytes.
/// What the message is, and how long, is judged as soon as it is known.
///
/// `SASLInitialResponse` and `SASLResponse` alike: Byte1 `p`, Int32 length including itself, body.
pub(crate) fn split_response(buf: &[u8]) -> Result<Option<(&[u8], usize)>, SaslError> {
    let Some((&tag, rest)) = buf.split_first() else { return Ok(None) };
    if tag != PASSWORD_MESSAGE {
        return Err(SaslError::NotAResponse { tag });
    }
    let Some((&len, rest)) = rest.split_first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(len);
    if !(MIN_RESPONSE_LEN..=MAX_RESPONSE_LEN).contains(&len) {
        return Err(SaslError::Length { len });
    }
    let body_len = usize::try_from(len - MIN_RESPONSE_LEN).unwrap_or(usize::MAX);
    Ok(rest.get(..body_len).map(|body| (body, HEADER_LEN + body_len)))
}

/// Takes the name of a mechanism off the body of a `SASLInitialResponse`: String.
pub(crate) fn split_mechanism(body: &[u8]) -> Result<(&[u8], &[u8]), SaslError> {
    let end = body.iter().position(|&byte| byte == 0).ok_or(SaslError::Unterminated)?;
    let (name, rest) = body.split_at(end);
    Ok((name, rest.get(1..).unwrap_or_default()))
}

/// What follows the mechanism: Int32 length, -1 for nothing at all, and that many bytes.
pub(crate) fn initial_data(rest: &[u8]) -> Result<Option<&[u8]>, SaslError> {
    let (&len, data) = rest.split_first_chunk().ok_or(SaslError::TooShort)?;
    let len = i32::from_be_bytes(len);
    let (data, behind) = if len == -1 {
        (None, data)
    } else {
        let len = usize::try_from(len).map_err(|_| SaslError::TooShort)?;
        let (data, behind) = data.split_at_checked(len).ok_or(SaslError::TooShort)?;
        (Some(data), behind)
    };
    if behind.is_empty() { Ok(data) } else { Err(SaslError::TooLong) }
}

/// `AuthenticationSASL`: Int32 10, names as strings in the order of preference, an empty one behind the last.
pub(crate) fn encode_mechanisms(names: &[&str], out: &mut BytesMut) {
    let mut list: Vec<u8> = names.iter().flat_map(|name| name.bytes().chain([0])).collect();
    list.push(0);
    encode(SASL, &list, out);
}

/// `AuthenticationSASLContinue`: Int32 11, data.
pub(crate) fn encode_continue(data: &[u8], out: &mut BytesMut) {
    encode(SASL_CONTINUE, data, out);
}

/// `AuthenticationSASLFinal`: Int32 12, data.
pub(crate) fn encode_final(data: &[u8], out: &mut BytesMut) {
    encode(SASL_FINAL, data, out);
}

/// Byte1 `R`, Int32 length including itself, Int32 code, data.
fn encode(code: u32, data: &[u8], out: &mut BytesMut) {
    out.put_u8(AUTHENTICATION);
    out.put_u32(u32::try_from(data.len() + 8).unwrap_or(u32::MAX));
    out.put_u32(code);
    out.put_slice(data);
}

const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;
/// The length word alone.
const MIN_RESPONSE_LEN: u32 = 4;
/// `PG_MAX_SASL_MESSAGE_LENGTH`: what PostgreSQL takes, the length word included.
const MAX_RESPONSE_LEN: u32 = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::authentication::Authentication;
    use crate::wire::scram::Mechanisms;

    fn response(body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [b"p", &len[..], body].concat()
    }

    #[test]
    fn response_is_taken_whole_and_not_a_byte_earlier() {
        let whole = response(b"n,,n=,r=x");
        for cut in 0..whole.len() {
            assert_eq!(split_response(&whole[..cut]), Ok(None), "cut at {cut}");
        }
        assert_eq!(split_response(&whole), Ok(Some((&b"n,,n=,r=x"[..], whole.len()))));
        let more = [&whole[..], b"Q"].concat();
        assert_eq!(split_response(&more), Ok(Some((&b"n,,n=,r=x"[..], whole.len()))));
        assert_eq!(split_response(&response(b"")), Ok(Some((&b""[..], 5))));
    }

    #[test]
    fn what_is_no_response_is_known_by_its_first_byte_and_what_is_too_long_by_its_fifth() {
        for tag in [b'Q', b'X', 0, 255] {
            assert_eq!(split_response(&[tag]), Err(SaslError::NotAResponse { tag }));
        }
        for len in [0, 3, 1025, 0x7fff_ffff, u32::MAX] {
            let header = [&b"p"[..], &len.to_be_bytes()].concat();
            assert_eq!(split_response(&header), Err(SaslError::Length { len }));
        }
        assert_eq!(split_response(b"p\0\0\x04\0"), Ok(None));
        assert_eq!(split_response(&response(&[b'x'; 1020])).unwrap().unwrap().0.len(), 1020);
    }

    #[test]
    fn initial_response_is_a_name_and_perhaps_data() {
        let (name, rest) = split_mechanism(b"SCRAM-SHA-256\0\0\0\0\x03abc").unwrap();
        assert_eq!((name, initial_data(rest)), (&b"SCRAM-SHA-256"[..], Ok(Some(&b"abc"[..]))));
        assert_eq!(split_mechanism(b"\0rest"), Ok((&b""[..], &b"rest"[..])));
        assert_eq!(split_mechanism(b"SCRAM"), Err(SaslError::Unterminated));
        assert_eq!(split_mechanism(b""), Err(SaslError::Unterminated));

        for (rest, expected) in [
            (&b"\xff\xff\xff\xff"[..], Ok(None)),
            (b"\0\0\0\0", Ok(Some(&b""[..]))),
            (b"\xff\xff\xff\xffx", Err(SaslError::TooLong)),
            (b"\0\0\0\x01xy", Err(SaslError::TooLong)),
            (b"\0\0\0\x02x", Err(SaslError::TooShort)),
            (b"\x7f\xff\xff\xffx", Err(SaslError::TooShort)),
            (b"\xff\xff\xff\xfex", Err(SaslError::TooShort)),
            (b"\0\0\0", Err(SaslError::TooShort)),
            (b"", Err(SaslError::TooShort)),
        ] {
            assert_eq!(initial_data(rest), expected, "{}", rest.escape_ascii());
        }
    }

    #[test]
    fn requests_are_read_by_the_other_side() {
        let mut out = BytesMut::new();
        encode_mechanisms(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"], &mut out);
        assert_eq!(&out[..], b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let both = Mechanisms { plain: true, plus: true };
        assert_eq!(Authentication::parse(&out[5..]), Some(Authentication::Sasl(both)));
        for (encode, code) in [(encode_continue as fn(&[u8], &mut BytesMut), 11), (encode_final, 12)] {
            out.clear();
            encode(b"v=x", &mut out);
            assert_eq!(out[..], [b"R\0\0\0\x0b\0\0\0", &[code][..], b"v=x"].concat());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = split_response(&bytes);
            if let Ok((_, rest)) = split_mechanism(&bytes) {
                let _ = initial_data(rest);
            }
        }
    }
}
