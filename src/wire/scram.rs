//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS as the client: which of them, bound to what, and within which bounds. One type
//! for each message that we send.
//!
//! PostgreSQL manual, "SASL Authentication"; RFC 5802, RFC 7677. The user name in it is empty, as libpq has it: the
//! server takes that of the StartupMessage.

use std::fmt;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use postgres_protocol::authentication::sasl;
use postgres_protocol::message::frontend;
use ring::{digest, hmac, pbkdf2};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::wire::binding::EndPointHash;
use crate::wire::verifier::{KEY_LEN, key};

/// What a login is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// Nothing: plain TCP, not wanted, or a certificate that has no hash.
    None,
    /// The server's certificate, if the server offers it.
    Preferred(EndPointHash),
    /// The server's certificate, or there is no login.
    Required(EndPointHash),
}

/// What `AuthenticationSASL` offers, as far as we can use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mechanisms {
    pub(crate) plain: bool,
    pub(crate) plus: bool,
}

/// Why a server is not believed, or not answered. Says nothing about the credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScramError {
    #[error(
        "server offers neither {} nor a {} that could be bound",
        sasl::SCRAM_SHA_256,
        sasl::SCRAM_SHA_256_PLUS
    )]
    NoMechanism,
    #[error("channel binding is required and the server does not offer {}", sasl::SCRAM_SHA_256_PLUS)]
    PlusNotOffered,
    #[error("server's first SCRAM message is not an answer to ours: {fault}")]
    ServerFirst { fault: &'static str },
    /// A server that is not the right one must not have us compute for long.
    #[error(
        "server asks for {asked} rounds of key derivation, which is not between 1 and {MAX_ITERATIONS}; lower \
         scram_iterations there, and have the password set anew"
    )]
    Iterations { asked: String },
    #[error("server's first SCRAM message has no salt")]
    NoSalt,
    #[error("server did not prove that it knows the credential: {fault}")]
    ServerFinal { fault: &'static str },
}

impl Mechanisms {
    /// Reads what follows the code of `AuthenticationSASL`: names as strings, an empty one behind the last.
    pub(crate) fn parse(body: &[u8]) -> Self {
        body.split(|&byte| byte == 0).take_while(|name| !name.is_empty()).fold(
            Self::default(),
            |offered, name| Self {
                plain: offered.plain || name == sasl::SCRAM_SHA_256.as_bytes(),
                plus: offered.plus || name == sasl::SCRAM_SHA_256_PLUS.as_bytes(),
            },
        )
    }
}

/// What a server keeps a password under, and says before it is proven. With another salt the same password comes to
/// other keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Salting {
    pub(crate) salt: Vec<u8>,
    /// [`MAX_ITERATIONS`] at most.
    pub(crate) iterations: NonZeroU32,
}

/// What a password comes to under one [`Salting`]: all that a login takes. Whoever has it can log in.
pub(crate) struct Keys {
    client_key: Zeroizing<[u8; KEY_LEN]>,
    server_key: Zeroizing<[u8; KEY_LEN]>,
}

impl Keys {
    /// Work for the processor: about 1 ms for the 4,096 rounds that PostgreSQL asks for by default, 30 ms for
    /// [`MAX_ITERATIONS`].
    pub(crate) fn derive(password: &SecretString, salting: &Salting) -> Self {
        let mut salted = Zeroizing::new([0; KEY_LEN]);
        let Salting { salt, iterations } = salting;
        // PostgreSQL normalizes a password where it can, and takes it as it is where it cannot.
        let password = password.expose_secret();
        let normal = stringprep::saslprep(password).ok();
        let normal = normal.map(|normal| Zeroizing::new(normal.into_owned()));
        let password = normal.as_ref().map_or(password, |normal| normal.as_str());
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, *iterations, salt, password.as_bytes(), &mut *salted);
        let of = |name: &[u8]| {
            let mut key = Zeroizing::new([0; KEY_LEN]);
            key.copy_from_slice(sign(salted.as_slice(), name).as_ref());
            key
        };
        Self { client_key: of(b"Client Key"), server_key: of(b"Server Key") }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// A login that has begun.
pub(crate) struct Exchange {
    mechanism: &'static str,
    /// What the login is bound to: the gs2 header, and the hash of the certificate.
    gs2: &'static str,
    hash: Vec<u8>,
    nonce: String,
}

impl Exchange {
    /// Picks the mechanism and the gs2 header (RFC 5802 §6): `p` where both sides bind; `y` where only we could,
    /// so that a server that did offer it finds out that its offer was taken away on the way; else `n`. `nonce` is ours:
    /// printable, without a comma, never the same twice.
    pub(crate) fn begin(offered: Mechanisms, binding: &Binding, nonce: String) -> Result<Self, ScramError> {
        let plain = sasl::SCRAM_SHA_256;
        let (mechanism, gs2, hash) = match binding {
            Binding::Preferred(hash) | Binding::Required(hash) if offered.plus => {
                (sasl::SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,", hash.as_ref().to_vec())
            }
            Binding::Required(_) => return Err(ScramError::PlusNotOffered),
            _ if !offered.plain => return Err(ScramError::NoMechanism),
            Binding::Preferred(_) => (plain, "y,,", Vec::new()),
            Binding::None => (plain, "n,,", Vec::new()),
        };
        Ok(Self { mechanism, gs2, hash, nonce })
    }

    /// Writes the whole `SASLInitialResponse`.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        // Fails only above 2 GiB.
        let _ = frontend::sasl_initial_response(self.mechanism, self.first().as_bytes(), out);
    }

    fn first(&self) -> String {
        format!("{}n=,r={}", self.gs2, self.nonce)
    }

    /// Takes the data of `AuthenticationSASLContinue`.
    pub(crate) fn ask(self, server_first: &[u8]) -> Result<Asked, ScramError> {
        let malformed = |fault| ScramError::ServerFirst { fault };
        judge(server_first)?;
        let text = std::str::from_utf8(server_first).map_err(|_| malformed("it is no text"))?;
        let mut parts = text.split(',');
        let mut value = |name| parts.next().and_then(|part| part.strip_prefix(name));
        let (nonce, salt, iterations) = (value("r="), value("s="), value("i="));
        let nonce = nonce.ok_or(malformed("it begins with no nonce"))?;
        if !nonce.starts_with(&self.nonce) || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("its nonce does not go on from ours"));
        }
        let salt = salt.and_then(|salt| STANDARD.decode(salt).ok()).ok_or(malformed("its salt"))?;
        let iterations = iterations.filter(|count| count.bytes().all(|byte| byte.is_ascii_digit()));
        let iterations =
            iterations.and_then(|count| count.parse().ok()).ok_or(malformed("its iterations"))?;
        if parts.next().is_some() {
            return Err(malformed("there is more in it than we understand"));
        }
        let bound_to = STANDARD.encode([self.gs2.as_bytes(), &self.hash].concat());
        let without_proof = format!("c={bound_to},r={nonce}");
        let auth_message = format!("n=,r={},{text},{without_proof}", self.nonce);
        Ok(Asked { salting: Salting { salt, iterations }, without_proof, auth_message })
    }
}

/// The server has said what it wants to be proven: the password under its salt.
pub(crate) struct Asked {
    pub(crate) salting: Salting,
    without_proof: String,
    auth_message: String,
}

impl Asked {
    /// The proof, with what the password comes to under this salt.
    pub(crate) fn prove(self, keys: &Keys) -> Proof {
        let stored_key = digest::digest(&digest::SHA256, &*keys.client_key);
        let signature = sign(stored_key.as_ref(), self.auth_message.as_bytes());
        let mut proof = keys.client_key.clone();
        proof.iter_mut().zip(signature.as_ref()).for_each(|(key, signed)| *key ^= signed);
        let expected = sign(keys.server_key.as_slice(), self.auth_message.as_bytes());
        let message = format!("{},p={}", self.without_proof, STANDARD.encode(proof.as_slice()));
        Proof { message, expected }
    }
}

/// What a server may ask for, beyond the form of its first message, `r=nonce,s=salt,i=iterations`, which is looked at
/// after this.
fn judge(server_first: &[u8]) -> Result<(), ScramError> {
    let text = String::from_utf8_lossy(server_first);
    let value = |name: &str| text.split(',').find_map(|attribute| attribute.strip_prefix(name));
    if value("s=") == Some("") {
        return Err(ScramError::NoSalt);
    }
    match value("i=").map(str::parse::<u32>) {
        Some(Ok(1..=MAX_ITERATIONS)) | None => Ok(()),
        Some(_) => {
            let asked = value("i=").unwrap_or_default().chars().filter(char::is_ascii_digit);
            Err(ScramError::Iterations { asked: asked.take(20).collect() })
        }
    }
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

/// Of key derivation, the same as JDBC's driver allows: 24 times PostgreSQL's default. More of them make a password
/// harder to guess from its verifier, and Vault's have more than a hundred random bits.
const MAX_ITERATIONS: u32 = 100_000;

/// Our proof, which awaits the server's.
pub(crate) struct Proof {
    message: String,
    /// The server's signature, if it is the right one.
    expected: hmac::Tag,
}

impl Proof {
    /// Writes the whole `SASLResponse`.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        // Fails only above 2 GiB.
        let _ = frontend::sasl_response(self.message.as_bytes(), out);
    }

    /// Takes the data of `AuthenticationSASLFinal`. Only after `Ok` is the other side the one that holds the
    /// verifier of our credential.
    pub(crate) fn verify(self, server_final: &[u8]) -> Result<(), ScramError> {
        let unproven = |fault| ScramError::ServerFinal { fault };
        if server_final.starts_with(b"e=") {
            return Err(unproven("it has sent an error"));
        }
        let signature = server_final.strip_prefix(b"v=").and_then(key);
        let signature = signature.ok_or(unproven("there is no signature in its last message"))?;
        if self.expected.as_ref().ct_eq(signature.as_slice()).into() {
            Ok(())
        } else {
            Err(unproven("its signature is wrong"))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ring::{digest, hmac, pbkdf2};

    use super::*;

    /// A server of RFC 5802, as far as PostgreSQL is one.
    pub(crate) struct Server {
        salted: [u8; 32],
        auth_message: String,
    }

    impl Server {
        /// Answers the client's first message, which begins with `gs2`.
        pub(crate) fn first(password: &str, client_first: &str, gs2: &str) -> (Self, String) {
            let mut salted = [0; 32];
            let rounds = 4096.try_into().unwrap();
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, b"salt", password.as_bytes(), &mut salted);
            let bare = client_first.strip_prefix(gs2).expect("another gs2 header");
            let nonce = bare.strip_prefix("n=,r=").unwrap();
            let server_first = format!("r={nonce}servernonce,s={},i=4096", base64(b"salt"));
            (Self { salted, auth_message: format!("{bare},{server_first}") }, server_first)
        }

        /// Answers the client's final message; `None` is a wrong password or another binding.
        pub(crate) fn last(mut self, client_final: &str, bound_to: &[u8]) -> Option<String> {
            let (message, proof) = client_final.rsplit_once(",p=").unwrap();
            self.auth_message = format!("{},{message}", self.auth_message);

            let client_key = mac(&self.salted, b"Client Key");
            let stored_key = digest::digest(&digest::SHA256, &client_key);
            let signature = mac(stored_key.as_ref(), self.auth_message.as_bytes());
            let expected: Vec<_> = client_key.iter().zip(signature).map(|(key, sig)| key ^ sig).collect();

            let bound = message.starts_with(&format!("c={},r=", base64(bound_to)));
            (bound && proof == base64(&expected)).then(|| {
                let server_key = mac(&self.salted, b"Server Key");
                format!("v={}", base64(&mac(&server_key, self.auth_message.as_bytes())))
            })
        }
    }

    fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
    }

    fn base64(data: &[u8]) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let encode = |chunk: &[u8]| {
            let bits =
                chunk.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            let char_at = |i| char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]);
            (0..4).map(|i| if i <= chunk.len() { char_at(i) } else { '=' }).collect::<String>()
        };
        data.chunks(3).map(encode).collect()
    }

    const BOTH: Mechanisms = Mechanisms { plain: true, plus: true };
    const PLAIN: Mechanisms = Mechanisms { plain: true, plus: false };
    const PLUS: Mechanisms = Mechanisms { plain: false, plus: true };

    fn hash() -> EndPointHash {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        EndPointHash::of_certificate(key.cert.der()).unwrap()
    }

    fn begin(offered: Mechanisms, binding: &Binding) -> Result<Exchange, ScramError> {
        Exchange::begin(offered, binding, crate::wire::scram_server::nonce().unwrap())
    }

    /// With the keys of the password.
    fn proof(asked: Asked) -> Proof {
        let keys = Keys::derive(&SecretString::from("secret"), &asked.salting);
        asked.prove(&keys)
    }

    #[test]
    fn mechanisms_are_found_in_whatever_order_and_company() {
        let parse = |body: &[u8]| Mechanisms::parse(body);
        assert_eq!(parse(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"), BOTH);
        assert_eq!(parse(b"OAUTHBEARER\0SCRAM-SHA-256\0\0"), PLAIN);
        assert_eq!(parse(b"SCRAM-SHA-256-PLUS"), PLUS);
        for none in [b"".as_slice(), b"\0", b"\0SCRAM-SHA-256\0\0", b"SCRAM-SHA-1\0\0", b"\xff\0\0"] {
            assert_eq!(parse(none), Mechanisms::default());
        }
    }

    #[test]
    fn header_says_what_each_side_can_bind() {
        let (prefer, require) = (Binding::Preferred(hash()), Binding::Required(hash()));
        for (offered, binding, mechanism, gs2) in [
            (BOTH, &Binding::None, sasl::SCRAM_SHA_256, "n,,"),
            (PLAIN, &Binding::None, sasl::SCRAM_SHA_256, "n,,"),
            (BOTH, &prefer, sasl::SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,"),
            (PLAIN, &prefer, sasl::SCRAM_SHA_256, "y,,"),
            (BOTH, &require, sasl::SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,"),
        ] {
            let exchange = begin(offered, binding).unwrap();
            assert_eq!(exchange.mechanism, mechanism);
            assert!(&exchange.first().starts_with(&format!("{gs2}n=,r=")), "{offered:?} {binding:?}");
        }
        let refused = |offered, binding| begin(offered, binding).err().unwrap();
        assert!(matches!(refused(PLAIN, &require), ScramError::PlusNotOffered));
        assert!(matches!(refused(PLUS, &Binding::None), ScramError::NoMechanism));
        assert!(matches!(refused(Mechanisms::default(), &prefer), ScramError::NoMechanism));
    }

    #[test]
    fn both_sides_prove_themselves_bound_and_unbound() {
        let bound = Binding::Required(hash());
        for (binding, gs2) in [(&Binding::None, "n,,"), (&bound, "p=tls-server-end-point,,")] {
            let cbind = match binding {
                Binding::Required(hash) => [gs2.as_bytes(), hash.as_ref()].concat(),
                Binding::None | Binding::Preferred(_) => gs2.into(),
            };
            let exchange = begin(BOTH, binding).unwrap();
            let (server, server_first) = Server::first("secret", &exchange.first(), gs2);
            let proof = proof(exchange.ask(server_first.as_bytes()).unwrap());
            let server_final = server.last(&proof.message, &cbind).expect("our proof is right");
            proof.verify(server_final.as_bytes()).unwrap();
        }
    }

    /// What we make of a server's first message; `{}` in it stands for our nonce.
    fn ask(server_first: &str) -> Result<Asked, ScramError> {
        let exchange = begin(PLAIN, &Binding::None).unwrap();
        let server_first = server_first.replace("{}", &exchange.nonce);
        exchange.ask(server_first.as_bytes())
    }

    #[test]
    fn server_first_that_is_no_answer_is_refused_before_the_proof() {
        assert!(ask("r={}theirs,s=c2FsdA==,i=4096").is_ok());
        for server_first in [
            "r=theirs,s=c2FsdA==,i=4096",
            "r=x{},s=c2FsdA==,i=4096",
            "r={},s=c2FsdA==,i=4096,m=must-understand",
            "m=x,r={},s=c2FsdA==,i=4096",
            "r={},s=*,i=4096",
            "r={},i=4096",
            "r={},s=c2FsdA==,i=+4096",
            "r={}\u{7f},s=c2FsdA==,i=4096",
            "r={}",
            "e=other-error",
            "\u{ff}\0",
            "",
        ] {
            let refused = ask(server_first).err().unwrap();
            assert!(matches!(refused, ScramError::ServerFirst { .. }), "{server_first}: {refused}");
        }
        assert!(matches!(ask("r={},s=,i=4096").err().unwrap(), ScramError::NoSalt));
    }

    #[test]
    fn rounds_are_bounded_before_the_first() {
        assert!(ask("r={},s=c2FsdA==,i=1").is_ok() && ask("r={},s=c2FsdA==,i=100000").is_ok());
        for (rounds, asked) in [
            ("0", "0"),
            ("100001", "100001"),
            ("2147483648", "2147483648"),
            ("99999999999999999999999", "99999999999999999999"),
            ("-1", "1"),
            ("", ""),
        ] {
            let refused = ask(&format!("r={{}},s=c2FsdA==,i={rounds}")).err().unwrap();
            assert!(matches!(&refused, ScramError::Iterations { asked: told } if told == asked), "{refused}");
        }
    }

    #[test]
    fn long_nonce_is_answered_as_it_came() {
        let exchange = begin(PLAIN, &Binding::None).unwrap();
        let nonce = exchange.nonce.clone() + &"x".repeat(60_000);
        let proof = proof(exchange.ask(format!("r={nonce},s=c2FsdA==,i=1").as_bytes()).unwrap());
        assert!(proof.message.starts_with(&format!("c=biws,r={nonce},p=")));
    }

    #[test]
    fn server_final_without_the_right_signature_is_refused() {
        for server_final in
            ["v=", "", "v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "e=other-error", "v=*", "v=AAAA,x=y"]
        {
            let exchange = begin(PLAIN, &Binding::None).unwrap();
            let (_, server_first) = Server::first("secret", &exchange.first(), "n,,");
            let proof = proof(exchange.ask(server_first.as_bytes()).unwrap());
            assert!(
                matches!(proof.verify(server_final.as_bytes()), Err(ScramError::ServerFinal { .. })),
                "{server_final}"
            );
        }
    }
}
