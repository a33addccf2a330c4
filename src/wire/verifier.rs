//! SCRAM verifiers: what PostgreSQL keeps of a password in `pg_authid.rolpassword`, and what is shown in place of one
//! to who names a user that there is not.
//!
//! RFC 5803 in PostgreSQL's spelling: `SCRAM-SHA-256$4096:SALT$STORED_KEY:SERVER_KEY`, the three in base64.

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use ring::{digest, hmac};
use zeroize::Zeroizing;

/// Knows a password when it sees one's proof. Whoever has it can pose as the server, and can try passwords.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    pub(super) shape: Shape,
    pub(super) salt: Vec<u8>,
    /// `H(ClientKey)`.
    pub(super) stored_key: Zeroizing<[u8; KEY_LEN]>,
    pub(super) server_key: Zeroizing<[u8; KEY_LEN]>,
}

/// What the client is told of a verifier beside its salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) iterations: u32,
    pub(crate) salt_len: usize,
}

/// Why a text is no verifier. Holds nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VerifierError {
    #[error(
        "an MD5 verifier, and only SCRAM is spoken here; in psql say SET password_encryption = 'scram-sha-256', give \
         the role its password anew with \\password, and copy its rolpassword"
    )]
    Md5,
    #[error(
        "no SCRAM verifier: a password itself is not taken; give a role that password with \\password in psql, and \
         copy its rolpassword, which begins with {SCHEME}"
    )]
    Plain,
    #[error("the SCRAM verifier is damaged; copy the role's rolpassword whole")]
    Damaged,
}

impl Verifier {
    /// Reads a verifier as PostgreSQL writes it.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, VerifierError> {
        let Some(rest) = text.strip_prefix(SCHEME.as_bytes()) else {
            return Err(if is_md5(text) { VerifierError::Md5 } else { VerifierError::Plain });
        };
        parts(rest).ok_or(VerifierError::Damaged)
    }

    /// What the client is told of it beside its salt.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }
}

/// Of the four parts behind the scheme.
fn parts(rest: &[u8]) -> Option<Verifier> {
    let mut halves = rest.split(|&byte| byte == b'$');
    let (parameters, keys) = (halves.next()?, halves.next().filter(|_| halves.next().is_none())?);
    let (iterations, salt) = pair(parameters)?;
    let (stored_key, server_key) = pair(keys)?;

    let iterations = std::str::from_utf8(iterations).ok().filter(|text| !text.starts_with('+'))?;
    let iterations = iterations.parse::<u32>().ok().filter(|count| (1..=MAX_ITERATIONS).contains(count))?;
    let salt = BASE64.decode(salt).ok().filter(|salt| (1..=MAX_SALT_LEN).contains(&salt.len()))?;
    Some(Verifier {
        shape: Shape { iterations, salt_len: salt.len() },
        salt,
        stored_key: key(stored_key)?,
        server_key: key(server_key)?,
    })
}

fn pair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = text.split(|&byte| byte == b':');
    let pair = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some(pair)
}

/// 32 bytes in base64.
pub(super) fn key(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    // Room for what a text of that length may hold, less than the decoder asks for at most.
    let mut bytes = Zeroizing::new([0; KEY_LEN + 4]);
    let len = BASE64.decode_slice(text, bytes.as_mut_slice()).ok()?;
    let key = bytes.get(..len)?.try_into().ok()?;
    Some(Zeroizing::new(key))
}

/// `md5` and 32 hexadecimal digits.
fn is_md5(text: &[u8]) -> bool {
    text.strip_prefix(b"md5").is_some_and(|hash| hash.len() == 32 && hash.iter().all(u8::is_ascii_hexdigit))
}

/// No key of it, nor its salt.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Makes verifiers for users that there are not: the same salt for the same name each time, as if there were a
/// password, which nobody has.
pub(crate) struct Mock(Zeroizing<[u8; KEY_LEN]>);

impl Mock {
    /// By the secrets of all `verifiers`, so that a restart, and another process with the same ones, says the same;
    /// and nobody who knows but his own password can tell what it will say.
    pub(crate) fn of<'a>(verifiers: impl Iterator<Item = &'a Verifier>) -> Self {
        let mut all = digest::Context::new(&digest::SHA256);
        all.update(b"mock verifiers of pglease");
        for Verifier { stored_key, server_key, .. } in verifiers {
            all.update(stored_key.as_slice());
            all.update(server_key.as_slice());
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.iter_mut().zip(all.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(key)
    }

    /// One that looks like those of `shape`.
    pub(crate) fn verifier(&self, user: &[u8], shape: Shape) -> Verifier {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice());
        let derive = |what: &[u8]| {
            let mut context = hmac::Context::with_key(&key);
            context.update(what);
            context.update(user);
            context.sign()
        };
        let bytes = |tag: hmac::Tag| {
            let mut bytes = Zeroizing::new([0; KEY_LEN]);
            bytes.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
            bytes
        };
        // As long as it has to be.
        let blocks = (0..).map(|number: u8| derive(&[b's', number]));
        let salt = blocks.take(shape.salt_len.div_ceil(KEY_LEN)).flat_map(|tag| tag.as_ref().to_vec());
        Verifier {
            shape,
            salt: salt.take(shape.salt_len).collect(),
            stored_key: bytes(derive(b"t")),
            server_key: bytes(derive(b"v")),
        }
    }
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mock(..)")
    }
}

/// Takes what PostgreSQL's own decoder takes: bits behind the last byte may be anything.
pub(super) const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
/// Of SHA-256.
pub(super) const KEY_LEN: usize = 32;
const SCHEME: &str = "SCRAM-SHA-256$";
/// PostgreSQL's own: `scram_iterations` is an `int`.
const MAX_ITERATIONS: u32 = 0x7fff_ffff;
/// PostgreSQL's have 16 bytes.
const MAX_SALT_LEN: usize = 1024;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use ring::pbkdf2;

    use super::*;

    /// What PostgreSQL would keep of this password.
    pub(crate) fn verifier_of(password: &str, iterations: u32, salt: &[u8]) -> String {
        let mut salted = [0; KEY_LEN];
        let rounds = iterations.try_into().unwrap();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let [salt, stored_key, server_key] = [
            salt,
            digest::digest(&digest::SHA256, client_key.as_ref()).as_ref(),
            hmac::sign(&salted, b"Server Key").as_ref(),
        ]
        .map(|bytes| BASE64.encode(bytes));
        format!("{SCHEME}{iterations}:{salt}${stored_key}:{server_key}")
    }

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn parse(text: &str) -> Result<Verifier, VerifierError> {
        Verifier::parse(text.as_bytes())
    }

    #[test]
    fn verifier_of_rfc_7677_is_read() {
        // Its example: password "pencil", salt W22ZaJ0SNY7soEsUEjb6gQ==, 4096 rounds.
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let text = verifier_of("pencil", 4096, &salt);
        assert_eq!(
            text,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        let verifier = parse(&text).unwrap();
        assert_eq!(verifier.shape(), Shape { iterations: 4096, salt_len: 16 });
        assert_eq!(verifier.salt, salt);
    }

    #[test]
    fn what_is_no_verifier_is_told_by_its_kind() {
        assert_eq!(parse("md5d8578edf8458ce06fbc5bb76a58c5ca4"), Err(VerifierError::Md5));
        for plain in [
            "",
            "secret",
            "md5",
            "md5d8578edf8458ce06fbc5bb76a58c5caX",
            "SCRAM-SHA-1$4096:",
            "scram-sha-256$",
        ] {
            assert_eq!(parse(plain), Err(VerifierError::Plain), "{plain}");
        }
        let good = format!("SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}");
        assert!(parse(&good).is_ok());
        for (part, other) in [
            ("4096:", ""),
            ("4096", ""),
            ("4096", "0"),
            ("4096", "-1"),
            ("4096", "+1"),
            ("4096", "2147483648"),
            ("4096", "4096 "),
            ("c2FsdA==", ""),
            ("c2FsdA==", "c2FsdA"),
            ("c2FsdA==", "*"),
            ("c2FsdA==", "c2FsdA==:"),
            ("$AA", ":AA"),
            ("=:AA", "=$AA"),
            (KEY, ""),
            (KEY, "AAAA"),
            (KEY, &"A".repeat(44)),
            (KEY, &"A".repeat(400)),
            (KEY, &format!("{KEY}:{KEY}")),
            (KEY, &format!("{KEY}\n")),
        ] {
            let damaged = good.replacen(part, other, 1);
            assert_eq!(parse(&damaged), Err(VerifierError::Damaged), "{damaged}");
        }
        for cut in SCHEME.len()..good.len() {
            assert_eq!(parse(&good[..cut]), Err(VerifierError::Damaged), "cut at {cut}");
        }
        assert_eq!(parse(&format!("{good}$")), Err(VerifierError::Damaged));
    }

    #[test]
    fn mock_says_the_same_of_a_name_each_time_and_looks_like_the_others() {
        let [one, other] =
            ["one", "other"].map(|password| parse(&verifier_of(password, 1, b"salt")).unwrap());
        let (mock, again) = (Mock::of([&one, &other].into_iter()), Mock::of([&one, &other].into_iter()));
        for salt_len in [1, 16, 33, 1024] {
            let shape = Shape { iterations: 4096, salt_len };
            let verifier = mock.verifier(b"nobody", shape);
            assert_eq!(verifier, again.verifier(b"nobody", shape));
            assert_eq!((verifier.shape(), verifier.salt.len()), (shape, salt_len));
            assert_ne!(verifier.salt, mock.verifier(b"somebody", shape).salt);
        }
        let shape = one.shape();
        assert_ne!(mock.verifier(b"nobody", shape), Mock::of([&one].into_iter()).verifier(b"nobody", shape));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let verifier = parse(&verifier_of("secret", 4096, b"salt")).unwrap();
        let mock = Mock::of([&verifier].into_iter());
        assert_eq!(
            format!("{verifier:?} {mock:?}"),
            "Verifier { shape: Shape { iterations: 4096, salt_len: 4 }, .. } Mock(..)"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(SCRAM-SHA-256\\$)?[0-9]{0,12}:?[A-Za-z0-9+/=]{0,50}\\$?[A-Za-z0-9+/=]{0,50}:?.{0,50}") {
            let _ = parse(&text);
        }
    }
}
