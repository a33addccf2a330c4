//! The parts of a session that are computed, one at a time, for `benches/micro.rs`.

use bytes::BytesMut;
use secrecy::SecretString;

use crate::wire::scram::{Binding, Exchange, Keys, Mechanisms};
use crate::wire::startup::{FirstPacket, NEWEST_PROTOCOL, split_first_packet};
use crate::wire::status::Tracker;

/// What follows the bytes of a session, from its first ReadyForQuery on.
#[derive(Debug)]
pub struct Scanner(Tracker);

impl Default for Scanner {
    fn default() -> Self {
        let mut tracker = Tracker::new();
        tracker.backend(READY);
        Self(tracker)
    }
}

impl Scanner {
    /// Takes a question of the client and the server's answer to it; says whether the session is idle then.
    pub fn round_trip(&mut self, question: &[u8], answer: &[u8]) -> bool {
        self.0.frontend(question);
        self.0.backend(answer);
        self.0.is_idle()
    }
}

/// Reads a StartupMessage and writes it anew for upstream with the leased user; gives its length.
pub fn startup(packet: &[u8]) -> Option<usize> {
    let (FirstPacket::Startup(mut message), _) = split_first_packet(packet).ok()?? else { return None };
    message.parameters.set("user", b"v-kubernetes-db-app-x9Zs0aUgQm3oGcVfjPsk-1700000000");
    let mut out = BytesMut::new();
    message.parameters.encode(NEWEST_PROTOCOL, &mut out);
    Some(out.len())
}

/// The keys of a password, as they are derived once for each credential.
#[derive(Debug)]
pub struct ScramKeys(Keys);

impl ScramKeys {
    /// For the 4,096 rounds that PostgreSQL asks for.
    pub fn derive(password: &str) -> Option<Self> {
        let asked = begun()?.ask(SERVER_FIRST).ok()?;
        Some(Self(Keys::derive(&SecretString::from(password), &asked.salting)))
    }

    /// A login with keys that are there, up to the client's proof; gives its length.
    pub fn prove(&self) -> Option<usize> {
        let exchange = begun()?;
        let mut out = BytesMut::new();
        exchange.encode(&mut out);
        exchange.ask(SERVER_FIRST).ok()?.prove(&self.0).encode(&mut out);
        Some(out.len())
    }
}

fn begun() -> Option<Exchange> {
    let offered = Mechanisms::parse(b"SCRAM-SHA-256\0\0");
    Exchange::begin(offered, &Binding::None, NONCE.to_owned()).ok()
}

const READY: &[u8] = b"Z\0\0\0\x05I";

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

/// To that nonce.
const SERVER_FIRST: &[u8] = b"r=rOprNGfwEbeRWgbNEkqOWZjZTQ0ZTQ1,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_what_they_are_measured_by() {
        let mut scanner = Scanner::default();
        assert!(scanner.round_trip(b"Q\0\0\0\x06;\0", b"I\0\0\0\x04Z\0\0\0\x05I"));
        assert!(!scanner.round_trip(b"Q\0\0\0\x06;\0", b"I\0\0\0\x04"));

        let packet = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";
        assert!(startup(packet).unwrap() > packet.len());
        assert_eq!(startup(b"\0\0\0\x08\x04\xd2\x16\x2f"), None);

        assert!(ScramKeys::derive("secret").unwrap().prove().is_some());
    }
}
