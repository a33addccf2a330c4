//! The other side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: a client proves that it knows the password behind a
//! verifier, and gets the proof that we have the verifier. One type for each message that is awaited.
//!
//! RFC 5802, RFC 7677, RFC 5929 §4; PostgreSQL's `auth-scram.c` is the measure of what is refused, in what order and
//! in what words. The user name of the messages is ignored as there: that of the StartupMessage counts.

use base64::Engine;
use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use subtle::ConstantTimeEq;

use crate::wire::binding::EndPointHash;
use crate::wire::sasl::{self, SaslError};
use crate::wire::verifier::{self, BASE64, KEY_LEN, Verifier};

/// What a client may choose from: PLUS where our certificate has a hash, which takes TLS.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    binding: Option<EndPointHash>,
}

/// A mechanism is chosen; awaits the client's first SCRAM message.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// As offered.
    binding: Option<EndPointHash>,
    is_plus: bool,
}

/// The client has been asked; awaits its proof.
pub(crate) struct Asked<'a> {
    verifier: &'a Verifier,
    /// Of the client's first message, behind the gs2 header.
    first_bare: Vec<u8>,
    server_first: String,
    /// Both sides'.
    nonce: Vec<u8>,
    /// What the client repeats: its gs2 header and, with PLUS, the hash of our certificate.
    bound_to: Vec<u8>,
    is_plus: bool,
}

impl Offer {
    pub(crate) fn new(binding: Option<EndPointHash>) -> Self {
        Self { binding }
    }

    /// Writes the whole `AuthenticationSASL`.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let names: &[&str] =
            if self.binding.is_some() { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] };
        sasl::encode_mechanisms(names, out);
    }

    /// Takes the body of `SASLInitialResponse`. What is in it of the first SCRAM message comes back; without, an empty
    /// `AuthenticationSASLContinue` asks for it.
    pub(crate) fn choose(self, body: &[u8]) -> Result<(Chosen, Option<&[u8]>), SaslError> {
        let (name, rest) = sasl::split_mechanism(body)?;
        let is_plus = name == SCRAM_SHA_256_PLUS.as_bytes() && self.binding.is_some();
        if !is_plus && name != SCRAM_SHA_256.as_bytes() {
            return Err(SaslError::Mechanism);
        }
        Ok((Chosen { binding: self.binding, is_plus }, sasl::initial_data(rest)?))
    }
}

impl Chosen {
    /// Takes the client's first message. `nonce` is ours: printable, without a comma, never the same twice.
    pub(crate) fn ask<'a>(
        self,
        message: &[u8],
        verifier: &'a Verifier,
        nonce: &str,
    ) -> Result<Asked<'a>, SaslError> {
        let mut rest = Attributes::of(message)?;
        let flag = self.binding_flag(&mut rest)?;
        match rest.peek() {
            b',' => rest.skip(),
            b'a' => return Err(SaslError::AuthorizationIdentity),
            other => {
                let found = shown(other);
                return Err(SaslError::malformed(format!(
                    "Unexpected attribute \"{found}\" in client-first-message."
                )));
            }
        }
        let first_bare = rest.0.to_vec();
        if rest.peek() == b'm' {
            return Err(SaslError::Extension);
        }
        rest.value(b'n')?;
        let theirs = rest.value(b'r')?;
        if !theirs.iter().all(u8::is_ascii_graphic) {
            return Err(SaslError::NonceCharacters);
        }
        rest.ignore_all()?;

        let whole_nonce = [theirs, nonce.as_bytes()].concat();
        let server_first = format!(
            "r={}{nonce},s={},i={}",
            String::from_utf8_lossy(theirs),
            BASE64.encode(&verifier.salt),
            verifier.shape().iterations
        );
        let bound_to = match (&self.binding, self.is_plus) {
            (Some(hash), true) => [PLUS_HEADER, hash.as_ref()].concat(),
            _ => vec![flag, b',', b','],
        };
        Ok(Asked { verifier, first_bare, server_first, nonce: whole_nonce, bound_to, is_plus: self.is_plus })
    }

    /// Takes the gs2 header up to the place of the authzid, and gives its first letter.
    fn binding_flag(&self, rest: &mut Attributes<'_>) -> Result<u8, SaslError> {
        let flag = rest.peek();
        match flag {
            b'n' | b'y' if self.is_plus => {
                return Err(SaslError::malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding \
                     data.",
                ));
            }
            b'y' if self.binding.is_some() => return Err(SaslError::Downgraded),
            b'n' | b'y' => {
                rest.skip();
                if rest.peek() != b',' {
                    let found = shown(rest.peek());
                    return Err(SaslError::malformed(format!(
                        "Comma expected, but found character \"{found}\"."
                    )));
                }
                rest.skip();
            }
            b'p' if !self.is_plus => {
                return Err(SaslError::malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel \
                     binding data.",
                ));
            }
            b'p' => {
                let name = rest.value(b'p')?;
                if name != END_POINT {
                    return Err(SaslError::BindingType { name: shown_name(name) });
                }
            }
            other => {
                let found = shown(other);
                return Err(SaslError::malformed(format!("Unexpected channel-binding flag \"{found}\".")));
            }
        }
        Ok(flag)
    }
}

impl Asked<'_> {
    /// Writes the whole `AuthenticationSASLContinue`.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        sasl::encode_continue(self.server_first.as_bytes(), out);
    }

    /// Takes the client's final message, and writes the whole `AuthenticationSASLFinal` if it holds the proof.
    ///
    /// What is compared with a secret is compared in constant time, and all is done for a verifier that nobody can
    /// meet as for any other.
    pub(crate) fn verify(self, message: &[u8], out: &mut BytesMut) -> Result<(), SaslError> {
        let mut rest = Attributes::of(message)?;
        let bound_to = rest.value(b'c')?;
        if !bool::from(BASE64.encode(&self.bound_to).as_bytes().ct_eq(bound_to)) {
            return Err(if self.is_plus { SaslError::BindingMismatch } else { SaslError::BindingAttribute });
        }
        let nonce = rest.value(b'r')?;
        let (without_proof, proof) = loop {
            // Without the comma in front.
            let before = message.len().saturating_sub(rest.0.len() + 1);
            let (name, value) = rest.any()?;
            if name == b'p' {
                break (message.get(..before).unwrap_or_default(), value);
            }
        };
        let proof = verifier::key(proof)
            .ok_or_else(|| SaslError::malformed("Malformed proof in client-final-message."))?;
        if !rest.0.is_empty() {
            return Err(SaslError::malformed("Garbage found at the end of client-final-message."));
        }
        if nonce != self.nonce {
            return Err(SaslError::Nonce);
        }

        let auth_message =
            [&self.first_bare[..], b",", self.server_first.as_bytes(), b",", without_proof].concat();
        let signature = sign(&self.verifier.stored_key, &auth_message);
        let mut client_key = proof;
        client_key.iter_mut().zip(signature.as_ref()).for_each(|(key, signed)| *key ^= signed);
        let stored_key = digest::digest(&digest::SHA256, client_key.as_slice());
        if !bool::from(stored_key.as_ref().ct_eq(self.verifier.stored_key.as_slice())) {
            return Err(SaslError::Proof);
        }
        let ours = sign(&self.verifier.server_key, &auth_message);
        sasl::encode_final(format!("v={}", BASE64.encode(ours)).as_bytes(), out);
        Ok(())
    }
}

fn sign(key: &[u8; KEY_LEN], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

/// A nonce of ours. `None` where the system has no randomness.
pub(crate) fn nonce() -> Option<String> {
    let mut bytes = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(BASE64.encode(bytes))
}

/// What is left of a SCRAM message: `a=value` with commas between, without a `\0`.
struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    fn of(message: &'a [u8]) -> Result<Self, SaslError> {
        if message.is_empty() {
            return Err(SaslError::malformed("The message is empty."));
        }
        if message.contains(&0) {
            return Err(SaslError::malformed("Message length does not match input length."));
        }
        Ok(Self(message))
    }

    /// The next byte; 0 at the end.
    fn peek(&self) -> u8 {
        self.0.first().copied().unwrap_or_default()
    }

    fn skip(&mut self) {
        self.0 = self.0.get(1..).unwrap_or_default();
    }

    /// The value of the attribute `name`, which has to be the next.
    fn value(&mut self, name: u8) -> Result<&'a [u8], SaslError> {
        if self.peek() != name {
            let (name, found) = (char::from(name), shown(self.peek()));
            return Err(SaslError::malformed(format!(
                "Expected attribute \"{name}\" but found \"{found}\"."
            )));
        }
        self.skip();
        self.rest_of(name)
    }

    /// Name and value of the next attribute.
    fn any(&mut self) -> Result<(u8, &'a [u8]), SaslError> {
        let name = self.peek();
        if name == 0 {
            return Err(SaslError::malformed("Attribute expected, but found end of string."));
        }
        if !name.is_ascii_alphabetic() {
            let found = shown(name);
            return Err(SaslError::malformed(format!(
                "Attribute expected, but found invalid character \"{found}\"."
            )));
        }
        self.skip();
        Ok((name, self.rest_of(name)?))
    }

    /// Extensions that may be ignored.
    fn ignore_all(&mut self) -> Result<(), SaslError> {
        while !self.0.is_empty() {
            self.any()?;
        }
        Ok(())
    }

    fn rest_of(&mut self, name: u8) -> Result<&'a [u8], SaslError> {
        if self.peek() != b'=' {
            let name = char::from(name);
            return Err(SaslError::malformed(format!("Expected character \"=\" for attribute \"{name}\".")));
        }
        self.skip();
        let mut parts = self.0.splitn(2, |&byte| byte == b',');
        let value = parts.next().unwrap_or_default();
        self.0 = parts.next().unwrap_or_default();
        Ok(value)
    }
}

/// A byte of the client's, fit to be shown.
fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// A name of the client's, fit to be shown.
fn shown_name(name: &[u8]) -> String {
    let shown = name.iter().take(MAX_NAME_SHOWN);
    shown.map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect()
}

/// The one kind of channel binding there is here (RFC 5929 §4).
const END_POINT: &[u8] = b"tls-server-end-point";
/// The gs2 header in front of a certificate's hash.
const PLUS_HEADER: &[u8] = b"p=tls-server-end-point,,";
/// In bytes; PostgreSQL's are as long.
const NONCE_LEN: usize = 18;
const MAX_NAME_SHOWN: usize = 30;

#[cfg(test)]
mod tests;
