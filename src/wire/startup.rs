//! The first packets of a connection: what a client may open it with, and what both startups are made of,
//! parameters and cancel keys. PostgreSQL manual, "Message Formats".

use std::fmt;

use bytes::{BufMut, BytesMut};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::message::backend::{BACKEND_KEY_DATA, NEGOTIATE_PROTOCOL_VERSION};

/// What a connection begins with. SSLRequest and GSSENCRequest are answered with one byte, and another follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FirstPacket {
    SslRequest,
    GssencRequest,
    Cancel(CancelKey),
    Startup(StartupMessage),
}

/// Why a first packet is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FirstPacketError {
    #[error("first packet declares a length of {len} bytes")]
    Length { len: u32 },
    #[error("cancel request carries a key of {len} bytes")]
    CancelKey { len: usize },
    #[error("protocol {version} is not supported")]
    Version { version: ProtocolVersion },
    #[error("startup packet does not end where its terminator stands")]
    Layout,
}

/// Splits the first whole packet off `buf`, and says how many bytes it took; `None` asks for more bytes.
///
/// Int32 length including itself, Int32 code, body. The length is judged before the body has arrived: nobody
/// makes the caller buffer more than [`MAX_FIRST_PACKET_LEN`] bytes.
pub(crate) fn split_first_packet(buf: &[u8]) -> Result<Option<(FirstPacket, usize)>, FirstPacketError> {
    let Some((&declared, _)) = buf.split_first_chunk() else {
        return Ok(None);
    };
    let declared = u32::from_be_bytes(declared);
    let len = usize::try_from(declared)
        .ok()
        .filter(|len| (MIN_FIRST_PACKET_LEN..=MAX_FIRST_PACKET_LEN).contains(len))
        .ok_or(FirstPacketError::Length { len: declared })?;
    let Some((&code, body)) = buf.get(..len).and_then(|packet| packet.get(4..)?.split_first_chunk()) else {
        return Ok(None);
    };

    let packet = match u32::from_be_bytes(code) {
        SSL_REQUEST => FirstPacket::SslRequest,
        GSSENC_REQUEST => FirstPacket::GssencRequest,
        CANCEL_REQUEST => FirstPacket::Cancel(parse_cancel(body)?),
        version => FirstPacket::Startup(parse_startup(ProtocolVersion(version), body)?),
    };
    Ok(Some((packet, len)))
}

/// Int32 pid, then the secret.
fn parse_cancel(body: &[u8]) -> Result<CancelKey, FirstPacketError> {
    match body.split_first_chunk() {
        Some((&pid, secret)) if (1..=MAX_CANCEL_SECRET_LEN).contains(&secret.len()) => {
            Ok(CancelKey { pid: i32::from_be_bytes(pid), secret: Zeroizing::new(secret.to_vec()) })
        }
        Some((_, secret)) => Err(FirstPacketError::CancelKey { len: secret.len() }),
        None => Err(FirstPacketError::CancelKey { len: 0 }),
    }
}

/// Pairs of `\0`-terminated strings up to an empty name, which is the last byte.
fn parse_startup(version: ProtocolVersion, body: &[u8]) -> Result<StartupMessage, FirstPacketError> {
    if version.major() != 3 {
        return Err(FirstPacketError::Version { version });
    }
    let mut rest = body;
    loop {
        let (name, after) = split_string(rest).ok_or(FirstPacketError::Layout)?;
        if !name.is_empty() {
            (_, rest) = split_string(after).ok_or(FirstPacketError::Layout)?;
            continue;
        }
        // What stands behind the terminator is nobody's.
        return match body.split_last() {
            Some((_, pairs)) if after.is_empty() => {
                Ok(StartupMessage { version, parameters: StartupParameters { pairs: pairs.to_vec() } })
            }
            _ => Err(FirstPacketError::Layout),
        };
    }
}

/// The string before the first `\0`, and what follows it.
fn split_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// A client's wish for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartupMessage {
    pub(crate) version: ProtocolVersion,
    pub(crate) parameters: StartupParameters,
}

impl StartupMessage {
    /// Writes the NegotiateProtocolVersion that this message calls for: a newer minor version than
    /// [`PROTOCOL_3_2`], or protocol options at whatever version, none of which is known. Else writes nothing.
    ///
    /// Byte1 `v`, Int32 length, Int32 version that is spoken, Int32 number of options, their names.
    pub(crate) fn encode_negotiation(&self, out: &mut BytesMut) {
        let options = || self.parameters.iter().map(|(name, _)| name).filter(|name| is_protocol_option(name));
        let spoken = self.version.spoken();
        if spoken == self.version && options().next().is_none() {
            return;
        }
        let len = options().map(|name| name.len() + 1).sum::<usize>() + 12;
        out.put_u8(NEGOTIATE_PROTOCOL_VERSION);
        out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        out.put_u32(spoken.0);
        out.put_u32(u32::try_from(options().count()).unwrap_or(u32::MAX));
        for name in options() {
            out.put_slice(name);
            out.put_u8(0);
        }
    }
}

/// Whether a startup parameter speaks to the protocol and not to the session. Such ones are for the next hop only.
pub(crate) fn is_protocol_option(name: &[u8]) -> bool {
    name.starts_with(b"_pq_.")
}

/// Int32: major version in the upper half, minor in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProtocolVersion(pub(crate) u32);

impl ProtocolVersion {
    pub(crate) const fn major(self) -> u32 {
        self.0 >> 16
    }

    pub(crate) const fn minor(self) -> u32 {
        self.0 & 0xffff
    }

    /// What is spoken with a client that asks for this version of protocol 3: the newest that both know. 3.1 never
    /// was a version of its own, and is let pass in silence as the server does.
    pub(crate) fn spoken(self) -> Self {
        self.min(NEWEST_PROTOCOL)
    }

    /// How long a cancel secret of ours is for a client of this version, in bytes: as the server's own.
    pub(crate) fn cancel_secret_len(self) -> usize {
        if self.0 >= PROTOCOL_3_2 { CANCEL_SECRET_LEN } else { CANCEL_SECRET_LEN_3_0 }
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

/// The name-value pairs of a StartupMessage, in the order in which they were sent, as raw bytes: PostgreSQL does
/// not say in which encoding they are. Of a name given twice the last one counts, as in the server.
///
/// Takes no more memory than the message itself: a client may send thousands of pairs, and wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartupParameters {
    /// As in the message: name, `\0`, value, `\0`, and so on. No name is empty.
    pairs: Vec<u8>,
}

impl StartupParameters {
    /// The value of `name`, if it was given.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().filter(|(key, _)| *key == name.as_bytes()).last().map(|(_, value)| value)
    }

    /// Gives `name` the one value `value`, at the end.
    pub(crate) fn set(&mut self, name: &str, value: &[u8]) {
        self.retain(|key| key != name.as_bytes());
        self.push(name, value);
    }

    /// Adds a pair behind the others, whatever stands there already. Neither part contains `\0`, and `name` is not
    /// empty.
    pub(crate) fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        for part in [name.as_ref(), value.as_ref()] {
            self.pairs.extend_from_slice(part);
            self.pairs.push(0);
        }
    }

    /// Keeps the pairs whose name pleases `keep`.
    pub(crate) fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        let mut kept = Self { pairs: Vec::with_capacity(self.pairs.len()) };
        self.iter().filter(|(name, _)| keep(name)).for_each(|(name, value)| kept.push(name, value));
        *self = kept;
    }

    /// Writes the whole StartupMessage: Int32 length, Int32 version, the pairs as strings, `\0`.
    pub(crate) fn encode(&self, version: ProtocolVersion, out: &mut BytesMut) {
        out.put_u32(u32::try_from(self.pairs.len() + 9).unwrap_or(u32::MAX));
        out.put_u32(version.0);
        out.put_slice(&self.pairs);
        out.put_u8(0);
    }

    /// The pairs in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = self.pairs.as_slice();
        std::iter::from_fn(move || {
            let (name, after) = split_string(rest)?;
            let (value, after) = split_string(after)?;
            rest = after;
            Some((name, value))
        })
    }
}

/// BackendKeyData: what a CancelRequest must bring. The secret has 4 bytes in protocol 3.0, up to 256 in 3.2.
#[derive(Clone)]
pub(crate) struct CancelKey {
    pub(crate) pid: i32,
    pub(crate) secret: Zeroizing<Vec<u8>>,
}

impl CancelKey {
    /// Writes the whole BackendKeyData: Byte1 `K`, Int32 length, Int32 pid, the secret.
    pub(crate) fn encode_key_data(&self, out: &mut BytesMut) {
        out.put_u8(BACKEND_KEY_DATA);
        out.put_u32(u32::try_from(self.secret.len() + 8).unwrap_or(u32::MAX));
        out.put_i32(self.pid);
        out.put_slice(&self.secret);
    }

    /// Writes the whole CancelRequest: Int32 length, Int32 80877102, Int32 pid, the secret.
    pub(crate) fn encode_request(&self, out: &mut BytesMut) {
        out.put_u32(u32::try_from(self.secret.len() + 12).unwrap_or(u32::MAX));
        out.put_u32(CANCEL_REQUEST);
        out.put_i32(self.pid);
        out.put_slice(&self.secret);
    }
}

/// Compares the secret in constant time.
impl PartialEq for CancelKey {
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid && self.secret.ct_eq(&other.secret).into()
    }
}

impl Eq for CancelKey {}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKey").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// Length word and code.
const MIN_FIRST_PACKET_LEN: usize = 8;
/// PostgreSQL's own bound: `MAX_STARTUP_PACKET_LENGTH` behind the length word.
pub(crate) const MAX_FIRST_PACKET_LEN: usize = 10_004;
/// What protocol 3.2 allows, in bytes.
const MAX_CANCEL_SECRET_LEN: usize = 256;
/// What PostgreSQL 18 gives out in protocol 3.2, in bytes.
const CANCEL_SECRET_LEN: usize = 32;
/// Of protocol 3.0, which knows no other length, in bytes.
const CANCEL_SECRET_LEN_3_0: usize = 4;

/// StartupMessage, protocol 3.0.
pub(crate) const PROTOCOL_3_0: u32 = 0x0003_0000;
/// The same, protocol 3.2: cancel secrets may be longer than 4 bytes. PostgreSQL manual, "Protocol Versions".
pub(crate) const PROTOCOL_3_2: u32 = 0x0003_0002;
/// The newest version that is spoken towards clients, whatever upstream speaks: nothing but the cancel secret
/// depends on it, and that is our own.
pub(crate) const NEWEST_PROTOCOL: ProtocolVersion = ProtocolVersion(PROTOCOL_3_2);
/// CancelRequest.
pub(crate) const CANCEL_REQUEST: u32 = 80_877_102;
/// SSLRequest.
pub(crate) const SSL_REQUEST: u32 = 80_877_103;
/// GSSENCRequest.
pub(crate) const GSSENC_REQUEST: u32 = 80_877_104;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        out.extend(code.to_be_bytes());
        out.extend(body);
        out
    }

    fn startup(version: u32, pairs: &[(&str, &str)]) -> StartupMessage {
        let mut parameters = StartupParameters::default();
        for (name, value) in pairs {
            parameters.push(*name, *value);
        }
        StartupMessage { version: ProtocolVersion(version), parameters }
    }

    fn whole(buf: &[u8]) -> FirstPacket {
        let (packet, len) = split_first_packet(buf).unwrap().unwrap();
        assert_eq!(len, buf.len());
        packet
    }

    #[test]
    fn every_cut_of_every_packet_asks_for_more() {
        let packets = [
            packet(SSL_REQUEST, b""),
            packet(GSSENC_REQUEST, b""),
            packet(CANCEL_REQUEST, b"\0\0\0\x07abcd"),
            packet(CANCEL_REQUEST, &[9; 260]),
            packet(PROTOCOL_3_0, b"user\0alice\0database\0wizard\0\0"),
            packet(PROTOCOL_3_0, b"\0"),
        ];
        for whole in packets {
            for cut in 0..whole.len() {
                assert_eq!(split_first_packet(&whole[..cut]), Ok(None), "{whole:?} cut at {cut}");
            }
            let mut longer = whole.clone();
            longer.extend(b"Q\0\0\0");
            assert_eq!(split_first_packet(&longer).unwrap().unwrap().1, whole.len());
        }
    }

    #[test]
    fn packets_are_told_apart_by_their_code() {
        assert_eq!(whole(&packet(SSL_REQUEST, b"")), FirstPacket::SslRequest);
        assert_eq!(whole(&packet(GSSENC_REQUEST, b"")), FirstPacket::GssencRequest);
        assert_eq!(
            whole(&packet(CANCEL_REQUEST, b"\0\0\0\x07abcd")),
            FirstPacket::Cancel(CancelKey { pid: 7, secret: Zeroizing::new(b"abcd".to_vec()) })
        );
        assert_eq!(
            whole(&packet(PROTOCOL_3_0, b"user\0alice\0options\0\0\0")),
            FirstPacket::Startup(startup(PROTOCOL_3_0, &[("user", "alice"), ("options", "")]))
        );
    }

    #[test]
    fn of_a_name_given_twice_the_last_value_counts() {
        let FirstPacket::Startup(message) = whole(&packet(PROTOCOL_3_0, b"user\0a\0user\0b\0\0")) else {
            panic!("not a StartupMessage");
        };
        assert_eq!(message.parameters.get("user"), Some(&b"b"[..]));
    }

    #[test]
    fn lengths_are_judged_before_the_rest_has_come() {
        for (len, judged) in [(7, false), (8, true), (10_004, true), (10_005, false), (0x7fff_ffff, false)] {
            let verdict = split_first_packet(&u32::to_be_bytes(len));
            assert_eq!(verdict, if judged { Ok(None) } else { Err(FirstPacketError::Length { len }) });
        }
        // A TLS ClientHello and an HTTP request, as far as they are read.
        assert!(split_first_packet(b"\x16\x03\x01\x02").is_err());
        assert!(split_first_packet(b"GET ").is_err());
    }

    #[test]
    fn malformed_packets_are_named_by_what_is_wrong() {
        let error = |code, body: &[u8]| split_first_packet(&packet(code, body)).unwrap_err();

        for body in [&b""[..], b"user", b"user\0", b"user\0a", b"user\0a\0", b"\0\0", b"user\0a\0\0b\0c\0\0"]
        {
            assert_eq!(error(PROTOCOL_3_0, body), FirstPacketError::Layout, "{body:?}");
        }
        let version = |version| FirstPacketError::Version { version: ProtocolVersion(version) };
        assert_eq!(error(0x0002_0000, b"user\0"), version(0x0002_0000));
        assert_eq!(error(0x0004_0000, b"user\0a\0\0"), version(0x0004_0000));
        assert_eq!(error(CANCEL_REQUEST, b"\0\0\0\x07"), FirstPacketError::CancelKey { len: 0 });
        assert_eq!(error(CANCEL_REQUEST, b"\0\0"), FirstPacketError::CancelKey { len: 0 });
        assert_eq!(error(CANCEL_REQUEST, &[0; 261]), FirstPacketError::CancelKey { len: 257 });
    }

    #[test]
    fn newer_minor_versions_and_options_are_negotiated_down() {
        let negotiation = |version, pairs: &[(&str, &str)]| {
            let mut out = BytesMut::new();
            startup(version, pairs).encode_negotiation(&mut out);
            out.to_vec()
        };
        for version in [PROTOCOL_3_0, 0x0003_0001, PROTOCOL_3_2] {
            assert_eq!(negotiation(version, &[("user", "a")]), b"", "{version:x}");
            // The version that was asked for, and not a higher one.
            let told = negotiation(version, &[("_pq_.b", "1"), ("user", "a")]);
            let version = version.to_be_bytes();
            assert_eq!(told, [b"v\0\0\0\x13", &version[..], b"\0\0\0\x01_pq_.b\0"].concat());
        }
        for version in [0x0003_0003, 0x0003_270f, 0x0003_ffff] {
            assert_eq!(negotiation(version, &[("user", "a")]), b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0");
        }
        let options = [("_pq_.b", "1"), ("user", "a"), ("_pq_.c", ""), ("_pq_.b", "2"), ("_pq_.", "")];
        assert_eq!(
            negotiation(0x0003_270f, &options),
            b"v\0\0\0\x27\0\x03\0\x02\0\0\0\x04_pq_.b\0_pq_.c\0_pq_.b\0_pq_.\0"
        );
    }

    #[test]
    fn cancel_secret_is_as_long_as_the_version_allows() {
        let lens = [0x0003_0000, 0x0003_0001, 0x0003_0002, 0x0003_0003, 0x0003_270f]
            .map(|version| ProtocolVersion(version).cancel_secret_len());
        assert_eq!(lens, [4, 4, 32, 32, 32]);
    }

    #[test]
    fn cancel_keys_of_every_length_up_to_256_bytes_are_read_and_compared_as_a_whole() {
        for len in 1..=256 {
            let key = CancelKey { pid: -7, secret: Zeroizing::new(vec![9; len]) };
            let mut request = BytesMut::new();
            key.encode_request(&mut request);
            assert_eq!(whole(&request), FirstPacket::Cancel(key.clone()));

            let mut other = key.clone();
            other.secret[len - 1] ^= 1;
            assert_ne!(key, other);
            for secret in [&key.secret[..len - 1], &[9; 257][..=len]] {
                assert_ne!(key, CancelKey { pid: -7, secret: Zeroizing::new(secret.to_vec()) });
            }
            assert_ne!(key, CancelKey { pid: 7, ..key.clone() });
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_parsed_as_it_was(pairs in prop::collection::vec(("[^\0]{1,20}", "[^\0]{0,20}"), 0..20)) {
            let mut message = startup(PROTOCOL_3_0, &[]);
            for (name, value) in pairs {
                message.parameters.push(name, value);
            }
            let mut out = BytesMut::new();
            message.parameters.encode(message.version, &mut out);
            prop_assert_eq!(whole(&out), FirstPacket::Startup(message));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), len in 0u32..80) {
            let _ = split_first_packet(&bytes);
            let mut framed = len.to_be_bytes().to_vec();
            framed.extend(&bytes);
            let _ = split_first_packet(&framed);
        }
    }
}
