//! What must hold for any input, of everything that reads what others have written. One function for each reader:
//! it panics where its invariant is broken, and gives nothing.
//!
//! `make fuzz` feeds them by coverage (`tests/fuzz`); the tests below feed them what is kept under
//! `tests/fuzz/corpus`, that with changes, and random bytes.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a broken invariant is a panic"
)]

use bytes::BytesMut;
use secrecy::SecretString;
use tokio::io::{AsyncWriteExt, duplex};

use crate::config;
use crate::injector;
use crate::net::ClientStream;
use crate::render::{Format, RenderError, Secret, Template};
use crate::session::auth;
use crate::session::startup::{self, Startup};
use crate::upstream;
use crate::vault;
use crate::wire::authentication::Authentication;
use crate::wire::binding::EndPointHash;
use crate::wire::error::{ClientError, ErrorResponse};
use crate::wire::frame::split_frame;
use crate::wire::query;
use crate::wire::sasl;
use crate::wire::scram::{Binding, Exchange, Keys, Mechanisms};
use crate::wire::scram_server::{self, Offer};
use crate::wire::startup::{FirstPacket, NEWEST_PROTOCOL, StartupParameters, split_first_packet};
use crate::wire::status::Tracker;
use crate::wire::verifier::Verifier;

/// Takes `len` bytes off the front, fewer where there are fewer.
fn take<'a>(data: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = data.split_at(len.min(data.len()));
    *data = rest;
    taken
}

fn take_byte(data: &mut &[u8]) -> u8 {
    take(data, 1).first().copied().unwrap_or_default()
}

/// `data` in pieces whose lengths its own first bytes choose.
fn pieces(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut lengths = take(&mut data, 8).iter().map(|&len| usize::from(len) + 1).cycle();
    std::iter::from_fn(move || (!data.is_empty()).then(|| take(&mut data, lengths.next().unwrap_or(1))))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(future)
}

/// First packets: a cut one asks for more or is refused as the whole is, and a session's parameters go on as they
/// were written.
pub fn first_packet(data: &[u8]) {
    let whole = split_first_packet(data);
    let cut = usize::from(data.first().copied().unwrap_or_default()) * data.len() / 256;
    match split_first_packet(&data[..cut]) {
        Ok(None) => {}
        early => assert_eq!(early, whole, "cut at {cut}"),
    }
    let Ok(Some((packet, len))) = whole else { return };
    assert!((8..=data.len()).contains(&len));
    match packet {
        // As in the server, whatever stands behind the code.
        FirstPacket::SslRequest | FirstPacket::GssencRequest => {}
        FirstPacket::Cancel(key) => {
            let mut encoded = BytesMut::new();
            key.encode_request(&mut encoded);
            assert_eq!(encoded, data[..len]);
        }
        FirstPacket::Startup(message) => parameters_come_back(&message.parameters),
    }
}

fn parameters_come_back(parameters: &StartupParameters) {
    let mut encoded = BytesMut::new();
    parameters.encode(NEWEST_PROTOCOL, &mut encoded);
    let mut again = StartupParameters::default();
    parameters.iter().for_each(|(name, value)| again.push(name, value));
    assert_eq!(*parameters, again);
    if let Ok(Some((FirstPacket::Startup(message), len))) = split_first_packet(&encoded) {
        assert_eq!((message.parameters, len), (again, encoded.len()));
    }
}

/// The guard before the first message: a client that says anything in pieces of any size is understood or turned
/// away, and never makes more than the longest first packet be kept.
pub fn guard(data: &[u8]) {
    block_on(async {
        let (mut ours, mut theirs) = duplex(64 * 1024);
        let said = async {
            for piece in pieces(data) {
                if theirs.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let heard = async {
            let mut early = BytesMut::new();
            let outcome = startup::read(&mut ClientStream::Plain(&mut ours), &mut early, None).await;
            drop(ours);
            assert!(early.len() <= MAX_KEPT, "{} bytes kept", early.len());
            outcome
        };
        match tokio::join!(said, heard).1 {
            Ok(Startup::Session(message, _)) => parameters_come_back(&message.parameters),
            Ok(Startup::Cancel(key)) => assert!((1..=256).contains(&key.secret.len())),
            Err(error) => {
                let mut answer = BytesMut::new();
                if let Some(error) = error.client_error() {
                    error.encode(&mut answer);
                    is_one_error(&answer);
                }
            }
        }
    });
}

fn is_one_error(message: &[u8]) {
    let (frame, rest) = split_frame(message, u32::MAX).unwrap().expect("a whole message");
    assert_eq!((frame.tag, rest), (b'E', &[][..]));
}

/// Messages of both directions: however the stream is cut, the scanner sees the same frames, and the session's state
/// comes out the same.
pub fn frames(data: &[u8]) {
    let mut whole = Tracker::new();
    let mut cut = Tracker::new();
    let mut rest = data;
    while !rest.is_empty() {
        let control = take_byte(&mut rest);
        let part = take(&mut rest, usize::from(control >> 1) * 4 + 1);
        let is_frontend = control & 1 == 0;
        let feed = |tracker: &mut Tracker, bytes: &[u8]| {
            if is_frontend { tracker.frontend(bytes) } else { tracker.backend(bytes) }
        };
        feed(&mut whole, part);
        part.chunks(1 + usize::from(control) % 7).for_each(|piece| feed(&mut cut, piece));
        assert_eq!(whole, cut);
        assert!(!(whole.is_idle() && whole.is_running()), "idle and running");
    }
    split_frames(data);
}

/// Every frame lies within the bytes and the limit, and no cut of it is taken for it.
fn split_frames(mut rest: &[u8]) {
    const LIMIT: u32 = 4096;
    while let Ok(Some((frame, after))) = split_frame(rest, LIMIT) {
        let len = frame.body.len() + 5;
        assert!(len <= 4097 && len + after.len() == rest.len());
        assert!(matches!(split_frame(&rest[..len - 1], LIMIT), Ok(None)));
        rest = after;
    }
}

/// An upstream's messages in a login and behind it: an ErrorResponse with or without SQLSTATE is passed on as one
/// message and logged as one short line; rows and authentication requests are read within their bounds.
pub fn backend(data: &[u8]) {
    let response = ErrorResponse::parse(data);
    assert!(response.message.chars().count() <= 500 && !response.message.contains(['\n', '\r', '\0']));
    let mut message = BytesMut::new();
    ClientError::verbatim(&response).encode(&mut message);
    is_one_error(&message);

    if let Some(columns) = query::data_row(data) {
        assert!(columns.iter().flatten().map(|column| column.len()).sum::<usize>() <= data.len());
    }
    let _ = Authentication::parse(data);
}

/// SCRAM towards upstream: no server passes that does not hold the verifier, and none makes us spend more on a proof
/// than we allow.
pub fn scram_client(mut data: &[u8]) {
    let binding = binding(take_byte(&mut data));
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let offered = Mechanisms::parse(part());
    let ours = scram_server::nonce().expect("randomness");
    let Ok(exchange) = Exchange::begin(offered, &binding, ours.clone()) else { return };
    let mut sent = BytesMut::new();
    exchange.encode(&mut sent);
    // `%n` stands for our nonce, which no corpus can know.
    let first = String::from_utf8_lossy(part()).replace("%n", &ours);
    let Ok(asked) = exchange.ask(first.as_bytes()) else { return };
    let keys = Keys::derive(&SecretString::from("secret"), &asked.salting);
    let proof = asked.prove(&keys);
    let mut sent = BytesMut::new();
    proof.encode(&mut sent);
    assert!(split_frame(&sent, u32::MAX).unwrap().is_some_and(|(frame, _)| frame.tag == b'p'));
    assert!(proof.verify(part()).is_err(), "a server without the verifier passed");
}

fn binding(control: u8) -> Binding {
    let hash = || EndPointHash::of_certificate(CERTIFICATE).expect("a hash");
    match control % 3 {
        0 => Binding::None,
        1 => Binding::Preferred(hash()),
        _ => Binding::Required(hash()),
    }
}

/// SCRAM towards a client: none passes that does not know the password, whatever it says in whatever order.
pub fn scram_server(mut data: &[u8]) {
    let control = take_byte(&mut data);
    let _ = sasl::split_response(data);
    let hash = (control & 1 == 1).then(|| EndPointHash::of_certificate(CERTIFICATE).expect("a hash"));
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let Ok((chosen, first)) = Offer::new(hash).choose(part()) else { return };
    let first = first.unwrap_or_else(&mut part);
    let verifier = Verifier::parse(VERIFIER).expect("a verifier");
    let Ok(asked) = chosen.ask(first, &verifier, NONCE) else { return };
    let mut sent = BytesMut::new();
    asked.encode(&mut sent);
    let (continued, _) = split_frame(&sent, u32::MAX).unwrap().expect("a whole message");
    assert!(continued.tag == b'R' && continued.body.len() < first.len() + 200);
    let sent_before = sent.len();
    assert!(asked.verify(part(), &mut sent).is_err(), "a client without the password passed");
    assert_eq!(sent.len(), sent_before, "something was said before the proof held");
}

/// The file of verifiers: users, or which line is wrong and why.
pub fn auth_file(data: &[u8]) {
    auth::fuzz_file(data);
}

/// A login at an upstream that may be anybody.
pub fn login(mut data: &[u8]) {
    let control = take_byte(&mut data);
    block_on(upstream::fuzz_login(control, binding(control >> 5), data));
}

/// A connection string: understood or refused, and never shown with a secret in it.
pub fn conninfo(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    config::fuzz_upstream(text);
}

/// A configuration file: every error has its place, and none quotes a secret.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    config::fuzz_file(text);
}

/// Vault's answers: each reader takes or refuses them, and error texts are one short line.
pub fn vault_answer(data: &[u8]) {
    vault::fuzz_answer(data);
}

/// Templates: refused at a place within the text, or rendered for any credential; and every format reads it.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let password = text.rsplit('"').next().unwrap_or_default();
    let secret =
        Secret { username: "v-app", password, lease_id: "lease", lease_duration: 60, renewable: true };
    for format in [Format::Json, Format::Env, Format::Properties, Format::UsernamePassword] {
        assert_eq!(format.render(&secret, None).is_ok(), !password.contains('\0'));
    }
    match Template::parse(text, "database/creds/db-app") {
        Ok(template) => match Format::Template(template).render(&secret, None) {
            Ok(_) | Err(RenderError::ZeroByte | RenderError::TooLong { .. }) => {}
            Err(error) => assert_eq!(error.to_string(), ""),
        },
        Err(error) => {
            let line = text.split('\n').nth(error.line - 1).expect("a line of the text");
            assert!(error.column <= line.chars().count() + 1);
            assert!(error.to_string().len() < 1000, "{error}");
        }
    }
}

/// Reviews: answered or not, and never a patch that does not fit or is made twice.
pub fn admission(data: &[u8]) {
    injector::fuzz_review(data);
}

/// The longest first packet, and one read.
const MAX_KEPT: usize = 10_004 + 4096;

/// Of a password that nobody has.
const VERIFIER: &[u8] =
    b"SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2E=$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
      AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Of our side.
const NONCE: &str = "c2VydmVyLW5vbmNl";

/// Of 127.0.0.1, ECDSA with SHA-256.
const CERTIFICATE: &[u8] = include_bytes!("../tests/fuzz/certificate.der");

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    type Target = (&'static str, fn(&[u8]));

    const TARGETS: &[Target] = &[
        ("first_packet", first_packet),
        ("guard", guard),
        ("frames", frames),
        ("backend", backend),
        ("scram_client", scram_client),
        ("scram_server", scram_server),
        ("auth_file", auth_file),
        ("login", login),
        ("conninfo", conninfo),
        ("settings", settings),
        ("vault_answer", vault_answer),
        ("template", template),
        ("admission", admission),
    ];

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn every_target_holds_on_its_corpus_and_on_every_cut_of_it() {
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name} has no corpus");
            for input in corpus {
                target(&input);
                let step = input.len() / 256 + 1;
                (0..input.len()).step_by(step).for_each(|cut| target(&input[..cut]));
            }
        }
    }

    #[test]
    fn every_target_is_fuzzed() {
        for (name, _) in TARGETS {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/targets/{name}.rs"));
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            assert!(text.contains(&format!("pglease::fuzz::{name}(")), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_target_holds_on_random_bytes(input in prop::collection::vec(any::<u8>(), 0..512)) {
            for (_, target) in TARGETS {
                target(&input);
            }
        }

        #[test]
        fn every_target_holds_on_its_corpus_with_bytes_changed(
            pick in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            for (name, target) in TARGETS {
                let corpus = corpus(name);
                let mut input = pick.get(&corpus).clone();
                if !input.is_empty() {
                    for (at, byte) in &changes {
                        let at = at.index(input.len());
                        input[at] = *byte;
                    }
                }
                target(&input);
            }
        }
    }
}
