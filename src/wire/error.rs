//! ErrorResponse, both ways: what an upstream said, and what pglease says itself.

use std::fmt;

use bytes::{BufMut, BytesMut};
use pgwire::messages::{Message, response};

use super::startup::CancelKey;

/// Five characters that name an error. PostgreSQL manual, appendix A.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SqlState([u8; 5]);

impl SqlState {
    pub(crate) const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    pub(crate) const UNABLE_TO_CONNECT: Self = Self(*b"08001");
    pub(crate) const CONNECTION_FAILURE: Self = Self(*b"08006");
    pub(crate) const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    pub(crate) const INVALID_PARAMETER_VALUE: Self = Self(*b"22023");
    pub(crate) const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    pub(crate) const INVALID_PASSWORD: Self = Self(*b"28P01");
    pub(crate) const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    pub(crate) const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    pub(crate) const UNDEFINED_OBJECT: Self = Self(*b"42704");
    pub(crate) const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    pub(crate) const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    pub(crate) const CRASH_SHUTDOWN: Self = Self(*b"57P02");
    pub(crate) const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    pub(crate) const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// Whether the server sends it with FATAL to a session that is open, and then closes: somebody or a limit of the
    /// server's ended the session. PostgreSQL manual, appendix A: all of class 57 from `57P01` on, and the timeouts of
    /// transactions.
    pub(crate) fn ends_session(self) -> bool {
        self.0.starts_with(b"57P") || matches!(&self.0, b"25P03" | b"25P04")
    }

    /// Whether it begins with one of these, of two characters each.
    pub(crate) fn is_of_class(self, classes: &[&str]) -> bool {
        classes.iter().any(|class| self.0.starts_with(class.as_bytes()))
    }

    /// The code that upstream sent; `None` unless it has five characters of the manual's alphabet.
    pub(crate) fn parse(code: &[u8]) -> Option<Self> {
        let code: [u8; 5] = code.try_into().ok()?;
        code.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()).then_some(Self(code))
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| write!(f, "{}", char::from(byte)))
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An upstream's ErrorResponse, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorResponse {
    /// `None` where the server sent none, as some poolers do.
    pub(crate) code: Option<SqlState>,
    /// Field `M` for the log: printable, at most [`MAX_LOGGED`] characters.
    pub(crate) message: String,
    /// The message's body as upstream sent it, from behind its length word.
    pub(crate) body: Vec<u8>,
    /// What upstream has said since AuthenticationOk; `None` before that. Who is refused for a parameter or a database
    /// has been let in by then.
    pub(crate) since_let_in: Option<Box<SinceLetIn>>,
}

/// What an upstream has said to one that it had let in, and then refused: whole messages, as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SinceLetIn {
    pub(crate) before_key: Vec<u8>,
    /// Of BackendKeyData, which is left out: its secret is not for the client. `None` where there was none.
    pub(crate) pid: Option<i32>,
    pub(crate) after_key: Vec<u8>,
}

impl ErrorResponse {
    /// Reads the body of an ErrorResponse: fields of Byte1 type and String value, then `\0`. PostgreSQL manual,
    /// "Error and Notice Message Fields".
    ///
    /// Cannot fail: a server that says no is to be passed on even where it says it badly. What cannot be read is
    /// as if it were not there; of a field given twice the first counts. Text that is not UTF-8 is replaced in
    /// `message` only. As long as the frame that the caller let in.
    pub(crate) fn parse(body: &[u8]) -> Self {
        let field = |wanted| fields(body).find(|(name, _)| *name == wanted).map(|(_, value)| value);
        Self {
            code: field(b'C').and_then(SqlState::parse),
            message: field(b'M').map(printable).unwrap_or_default(),
            body: body.to_owned(),
            since_let_in: None,
        }
    }

    /// The same from a server that has let us in, and then said `said`.
    pub(crate) fn since_let_in(self, said: SinceLetIn) -> Self {
        Self { since_let_in: Some(Box::new(said)), ..self }
    }

    /// Puts a key in the place of upstream's, if there was one. It cancels nothing: that session is over.
    pub(crate) fn give_key(&mut self, key_of: impl FnOnce(i32) -> Option<CancelKey>) {
        let Some(SinceLetIn { before_key, pid, .. }) = self.since_let_in.as_deref_mut() else { return };
        if let Some(key) = pid.take().and_then(key_of) {
            let mut message = BytesMut::new();
            key.encode_key_data(&mut message);
            before_key.extend_from_slice(&message);
        }
    }

    /// Field `R`: the function of PostgreSQL that said so. Not translated as the message is, and not there where a pooler
    /// said it.
    pub(crate) fn routine(&self) -> Option<&str> {
        fields(&self.body).find(|(name, _)| *name == b'R').and_then(|(_, value)| str::from_utf8(value).ok())
    }

    /// The code for people, who are told where there is none.
    pub(crate) fn code_or_none(&self) -> String {
        self.code.map_or_else(|| "no SQLSTATE".to_owned(), |code| code.to_string())
    }
}

/// The fields up to the end, or up to where they are cut.
fn fields(mut body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&name, rest) = body.split_first().filter(|(name, _)| **name != 0)?;
        let mut parts = rest.splitn(2, |&byte| byte == 0);
        let value = parts.next()?;
        body = parts.next().unwrap_or_default();
        Some((name, value))
    })
}

/// One line of text. A server's own line breaks would let it forge lines of the log.
fn printable(text: &[u8]) -> String {
    // No character has more than four bytes.
    let text = text.get(..MAX_LOGGED * 4).unwrap_or(text);
    let text = String::from_utf8_lossy(text);
    text.chars().take(MAX_LOGGED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Characters of an upstream's message that go into the log.
const MAX_LOGGED: usize = 500;

/// What a client is told at the end of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientError {
    /// Words of our own: fields S and V (FATAL), C, M, and D and H where there is more to say.
    Own { code: SqlState, message: String, detail: Option<String>, hint: Option<String> },
    /// Upstream's words, unchanged.
    Verbatim(ErrorResponse),
}

impl ClientError {
    pub(crate) fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self::Own { code, message: message.into(), detail: None, hint: None }
    }

    /// Upstream's words, unchanged.
    pub(crate) fn verbatim(response: &ErrorResponse) -> Self {
        Self::Verbatim(response.clone())
    }

    /// Adds field D.
    pub(crate) fn with_detail(mut self, text: impl Into<String>) -> Self {
        if let Self::Own { detail, .. } = &mut self {
            *detail = Some(text.into());
        }
        self
    }

    /// Adds field H.
    pub(crate) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Own { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Whether upstream has let the client in before it refused the session, so that AuthenticationOk comes first.
    pub(crate) fn is_of_one_let_in(&self) -> bool {
        matches!(self, Self::Verbatim(response) if response.since_let_in.is_some())
    }

    /// The whole ErrorResponse, behind what upstream has said before it.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Verbatim(response) => {
                if let Some(SinceLetIn { before_key, after_key, .. }) = response.since_let_in.as_deref() {
                    out.put_slice(before_key);
                    out.put_slice(after_key);
                }
                out.put_u8(response::MESSAGE_TYPE_BYTE_ERROR_RESPONSE);
                out.put_u32(u32::try_from(response.body.len() + 4).unwrap_or(u32::MAX));
                out.put_slice(&response.body);
            }
            Self::Own { code, message, detail, hint } => {
                let mut fields = vec![
                    (b'S', "FATAL".to_owned()),
                    (b'V', "FATAL".to_owned()),
                    (b'C', code.to_string()),
                    (b'M', message.clone()),
                ];
                fields.extend(detail.clone().map(|detail| (b'D', detail)));
                fields.extend(hint.clone().map(|hint| (b'H', hint)));
                // Fails only above 2 GiB.
                let _ = response::ErrorResponse::new(fields).encode(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::split_frame;

    const BODY: &[u8] = b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"x\" does not exist\0Fpostinit.c\0\0";

    fn encoded(error: &ClientError) -> BytesMut {
        let mut out = BytesMut::new();
        error.encode(&mut out);
        out
    }

    #[test]
    fn upstream_refusal_is_read_and_passed_on_byte_for_byte() {
        let response = ErrorResponse::parse(BODY);
        assert_eq!(response.code, Some(SqlState::INVALID_CATALOG_NAME));
        assert_eq!(response.message, "database \"x\" does not exist");

        let out = encoded(&ClientError::verbatim(&response));
        let (frame, rest) = split_frame(&out, 1024).unwrap().unwrap();
        assert_eq!((frame.tag, frame.body, rest), (b'E', BODY, &[][..]));
    }

    #[test]
    fn refusal_of_one_let_in_comes_behind_what_was_said_with_a_key_in_the_place_of_upstreams() {
        let key = |pid| Some(CancelKey { pid, secret: b"ours".to_vec().into() });
        let said = |pid| SinceLetIn { before_key: b"before".to_vec(), pid, after_key: b"after".to_vec() };
        for (pid, expected) in
            [(None, &b"beforeafter"[..]), (Some(7), b"beforeK\0\0\0\x0c\0\0\0\x07oursafter")]
        {
            let mut response = ErrorResponse::parse(BODY).since_let_in(said(pid));
            response.give_key(key);
            response.give_key(key);
            let error = ClientError::verbatim(&response);
            assert!(error.is_of_one_let_in());
            let out = encoded(&error);
            assert_eq!(&out[..expected.len()], expected);
            assert_eq!(split_frame(&out[expected.len()..], 1024).unwrap().unwrap().0.body, BODY);
        }
        let mut response = ErrorResponse::parse(BODY);
        response.give_key(key);
        assert!(!ClientError::verbatim(&response).is_of_one_let_in());
    }

    #[test]
    fn own_error_is_read_back_as_it_was_meant() {
        let error = ClientError::fatal(SqlState::ADMIN_SHUTDOWN, "lease ends")
            .with_detail("of v-db-app")
            .with_hint("reconnect");
        let out = encoded(&error);
        let (frame, _) = split_frame(&out, 1024).unwrap().unwrap();

        let response = ErrorResponse::parse(frame.body);
        assert_eq!(response.code, Some(SqlState::ADMIN_SHUTDOWN));
        assert_eq!(response.message, "lease ends");
        let names: Vec<_> = fields(frame.body).map(|(name, _)| name).collect();
        assert_eq!(names, b"SVCMDH");
    }

    #[test]
    fn every_cut_of_a_body_is_read_as_far_as_it_goes() {
        for cut in 0..BODY.len() {
            let response = ErrorResponse::parse(&BODY[..cut]);
            assert!("database \"x\" does not exist".starts_with(&response.message), "cut at {cut}");
            assert!(response.code.is_none_or(|code| code == SqlState::INVALID_CATALOG_NAME));
            assert_eq!(response.body, &BODY[..cut]);
        }
    }

    #[test]
    fn hostile_bodies_are_harmless() {
        let none = |body: &[u8]| ErrorResponse::parse(body).code;
        assert_eq!(none(b""), None);
        assert_eq!(none(b"\0C28P01\0\0"), None, "behind the end");
        assert_eq!(none(b"C\0\0"), None);
        assert_eq!(none(b"C28P0\0C28P01\0\0"), None, "the first counts");
        assert_eq!(none(b"C28p01\0\0"), None);
        assert_eq!(none(b"Mno code\0\0"), None);

        let forged = ErrorResponse::parse(b"Ma\r\n{\"level\":\"ERROR\"}\x1b[2J\xff\0\0");
        assert_eq!(forged.message, "a  {\"level\":\"ERROR\"} [2J\u{fffd}");

        let long = [b"M".as_slice(), "é".repeat(10_000).as_bytes()].concat();
        assert_eq!(ErrorResponse::parse(&long).message, "é".repeat(MAX_LOGGED));
    }
}
