use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use proptest::prelude::*;

use super::*;
use crate::wire::verifier::tests::verifier_of;

fn hash() -> EndPointHash {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    EndPointHash::of_certificate(key.cert.der()).unwrap()
}

fn verifier(password: &str) -> Verifier {
    Verifier::parse(verifier_of(password, 2, b"salt").as_bytes()).unwrap()
}

fn initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let len = i32::try_from(data.len()).unwrap().to_be_bytes();
    [mechanism.as_bytes(), b"\0", &len, data].concat()
}

/// What a client that binds to `binding` is told in the end by us who bind to `ours`.
fn exchange(
    mechanism: &str,
    binding: ChannelBinding,
    ours: Option<EndPointHash>,
    passwords: [&str; 2],
) -> Result<(), SaslError> {
    let mut client = ScramSha256::new(passwords[0].as_bytes(), binding);
    let body = initial(mechanism, client.message());
    let (chosen, data) = Offer::new(ours).choose(&body)?;
    let verifier = verifier(passwords[1]);
    let asked = chosen.ask(data.unwrap(), &verifier, "ours")?;
    let mut out = BytesMut::new();
    asked.encode(&mut out);
    client.update(&out[9..]).unwrap();
    out.clear();
    asked.verify(client.message(), &mut out)?;
    client.finish(&out[9..]).unwrap();
    Ok(())
}

#[test]
fn right_password_passes_bound_and_unbound_and_a_wrong_one_does_not() {
    let certificate = hash();
    let bound_to = |hash: &EndPointHash| ChannelBinding::tls_server_end_point(hash.as_ref().to_vec());
    let (right, wrong) = (["secret", "secret"], ["Secret", "secret"]);
    let plus = |passwords| {
        exchange(SCRAM_SHA_256_PLUS, bound_to(&certificate), Some(certificate.clone()), passwords)
    };
    assert_eq!(plus(right), Ok(()));
    assert_eq!(plus(wrong), Err(SaslError::Proof));
    for ours in [None, Some(certificate.clone())] {
        let plain =
            |passwords| exchange(SCRAM_SHA_256, ChannelBinding::unsupported(), ours.clone(), passwords);
        assert_eq!(plain(right), Ok(()));
        assert_eq!(plain(wrong), Err(SaslError::Proof));
    }
    // Where there was nothing to bind to, a client that could have may say so.
    assert_eq!(exchange(SCRAM_SHA_256, ChannelBinding::unrequested(), None, right), Ok(()));
}

#[test]
fn client_that_was_lied_to_about_channel_binding_is_refused() {
    let right = ["secret", "secret"];
    let bound_to = |hash: EndPointHash| ChannelBinding::tls_server_end_point(hash.as_ref().to_vec());
    assert_eq!(
        exchange(SCRAM_SHA_256, ChannelBinding::unrequested(), Some(hash()), right),
        Err(SaslError::Downgraded)
    );
    assert_eq!(
        exchange(SCRAM_SHA_256_PLUS, bound_to(hash()), Some(hash()), right),
        Err(SaslError::BindingMismatch)
    );
    assert_eq!(
        exchange(SCRAM_SHA_256_PLUS, bound_to(hash()), None, right),
        Err(SaslError::Mechanism),
        "it was not offered"
    );
}

#[test]
fn plus_is_offered_first_and_only_where_there_is_a_hash() {
    let mut out = BytesMut::new();
    Offer::new(Some(hash())).encode(&mut out);
    assert!(out.ends_with(b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"));
    out.clear();
    Offer::new(None).encode(&mut out);
    assert!(out.ends_with(b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
}

fn malformed(detail: &str) -> SaslError {
    SaslError::malformed(detail)
}

const NOT_BOUND: &str =
    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.";
const BOUND: &str = "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes \
                     channel binding data.";

#[test]
fn first_message_is_refused_in_the_words_of_postgresql() {
    let plain = |message: &[u8]| {
        let chosen = Chosen { binding: None, is_plus: false };
        chosen.ask(message, &verifier("secret"), "ours").map(|_| ()).err()
    };
    assert_eq!(plain(b"n,,n=,r=theirs"), None);
    assert_eq!(plain(b"y,,n=user,r=theirs,x=ignored"), None);
    assert_eq!(plain(b"n,,n=,r="), None, "as in the server");
    assert_eq!(plain(b"n,,n=,r=theirs,"), None);
    for (message, error) in [
        (&b""[..], malformed("The message is empty.")),
        (b"n,,n=,r=the\0irs", malformed("Message length does not match input length.")),
        (b"x,,n=,r=theirs", malformed("Unexpected channel-binding flag \"'x'\".")),
        (b"\x01", malformed("Unexpected channel-binding flag \"0x01\".")),
        (b"\xff", malformed("Unexpected channel-binding flag \"0xff\".")),
        (b"n", malformed("Comma expected, but found character \"0x00\".")),
        (b"nn", malformed("Comma expected, but found character \"'n'\".")),
        (b"y=", malformed("Comma expected, but found character \"'='\".")),
        (b"p=tls-server-end-point,,n=,r=theirs", malformed(BOUND)),
        (b"n,a=admin,n=,r=theirs", SaslError::AuthorizationIdentity),
        (b"n,", malformed("Unexpected attribute \"0x00\" in client-first-message.")),
        (b"n,n=,r=theirs", malformed("Unexpected attribute \"'n'\" in client-first-message.")),
        (b"n,,m=x,n=,r=theirs", SaslError::Extension),
        (b"n,,", malformed("Expected attribute \"n\" but found \"0x00\".")),
        (b"n,,r=theirs", malformed("Expected attribute \"n\" but found \"'r'\".")),
        (b"n,,n", malformed("Expected character \"=\" for attribute \"n\".")),
        (b"n,,n=", malformed("Expected attribute \"r\" but found \"0x00\".")),
        (b"n,,n=,s=", malformed("Expected attribute \"r\" but found \"'s'\".")),
        (b"n,,n=,r=th irs", SaslError::NonceCharacters),
        (b"n,,n=,r=\xc3\xa4", SaslError::NonceCharacters),
        (b"n,,n=,r=theirs,x", malformed("Expected character \"=\" for attribute \"x\".")),
        (b"n,,n=,r=theirs,1=", malformed("Attribute expected, but found invalid character \"'1'\".")),
    ] {
        assert_eq!(plain(message), Some(error), "{}", message.escape_ascii());
    }

    let plus = |message: &[u8]| {
        let chosen = Chosen { binding: Some(hash()), is_plus: true };
        chosen.ask(message, &verifier("secret"), "ours").map(|_| ()).err()
    };
    assert_eq!(plus(b"p=tls-server-end-point,,n=,r=theirs"), None);
    for (message, error) in [
        (&b"n,,n=,r=theirs"[..], malformed(NOT_BOUND)),
        (b"y,,n=,r=theirs", malformed(NOT_BOUND)),
        (b"p", malformed("Expected character \"=\" for attribute \"p\".")),
        (b"p=tls-unique,,n=,r=theirs", SaslError::BindingType { name: "tls-unique".to_owned() }),
        (b"p=\xff,,n=,r=theirs", SaslError::BindingType { name: "?".to_owned() }),
        (b"p=tls-server-end-point,a=x,", SaslError::AuthorizationIdentity),
    ] {
        assert_eq!(plus(message), Some(error), "{}", message.escape_ascii());
    }
    let long = [b"p=", &[b'x'; 900][..]].concat();
    assert_eq!(plus(&long), Some(SaslError::BindingType { name: "x".repeat(30) }));
}

#[test]
fn final_message_is_refused_in_the_words_of_postgresql() {
    let after = |message: &[u8]| {
        let (verifier, chosen) = (verifier("secret"), Chosen { binding: None, is_plus: false });
        let asked = chosen.ask(b"n,,n=,r=theirs", &verifier, "ours").unwrap();
        asked.verify(message, &mut BytesMut::new()).err()
    };
    let proof = BASE64.encode([7; 32]);
    let with_proof = |text: &str| text.replace("PROOF", &proof);
    for (message, error) in [
        ("", malformed("The message is empty.")),
        ("\0", malformed("Message length does not match input length.")),
        ("r=theirsours", malformed("Expected attribute \"c\" but found \"'r'\".")),
        ("c", malformed("Expected character \"=\" for attribute \"c\".")),
        ("c=,r=theirsours,p=PROOF", SaslError::BindingAttribute),
        ("c=eSws,r=theirsours,p=PROOF", SaslError::BindingAttribute),
        ("c=biws", malformed("Expected attribute \"r\" but found \"0x00\".")),
        ("c=biws,r=theirsours", malformed("Attribute expected, but found end of string.")),
        ("c=biws,r=theirsours,x=1", malformed("Attribute expected, but found end of string.")),
        ("c=biws,r=theirsours,=", malformed("Attribute expected, but found invalid character \"'='\".")),
        ("c=biws,r=theirsours,p=", malformed("Malformed proof in client-final-message.")),
        ("c=biws,r=theirsours,p=AAAA", malformed("Malformed proof in client-final-message.")),
        ("c=biws,r=theirsours,p=*ROOF", malformed("Malformed proof in client-final-message.")),
        ("c=biws,r=theirsours,p=PROOF,x=1", malformed("Garbage found at the end of client-final-message.")),
        ("c=biws,r=ours,p=PROOF", SaslError::Nonce),
        ("c=biws,r=theirs,p=PROOF", SaslError::Nonce),
        ("c=biws,r=,p=PROOF", SaslError::Nonce),
        ("c=biws,r=theirsours,p=PROOF", SaslError::Proof),
        ("c=biws,r=theirsours,x=1,p=PROOF", SaslError::Proof),
        ("c=biws,r=theirsours,p=PROOF,", SaslError::Proof),
    ] {
        assert_eq!(after(with_proof(message).as_bytes()), Some(error), "{}", message.escape_default());
    }
}

#[test]
fn nonces_are_printable_and_new_each_time() {
    let (one, other) = (nonce().unwrap(), nonce().unwrap());
    assert_ne!(one, other);
    assert!(one.len() == 24 && one.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','));
}

/// The two messages of a client that knows the password, and what it is asked between them.
fn right_messages(verifier: &Verifier) -> (Vec<u8>, Vec<u8>) {
    let mut client = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    let first = client.message().to_vec();
    let asked = Chosen { binding: None, is_plus: false }.ask(&first, verifier, "ours").unwrap();
    client.update(asked.server_first.as_bytes()).unwrap();
    (first, client.message().to_vec())
}

#[test]
fn no_cut_of_a_message_passes() {
    let verifier = verifier("secret");
    let (first, last) = right_messages(&verifier);
    let ask = |first: &[u8]| {
        let chosen = Chosen { binding: None, is_plus: false };
        chosen.ask(first, &verifier, "ours")
    };
    for cut in 0..last.len() {
        assert!(ask(&first).unwrap().verify(&last[..cut], &mut BytesMut::new()).is_err(), "cut at {cut}");
    }
    for cut in 0..first.len() {
        // One of a nonce is a nonce as well, but not the one that the proof is for.
        let verdict = ask(&first[..cut]).and_then(|asked| asked.verify(&last, &mut BytesMut::new()));
        assert!(verdict.is_err(), "cut at {cut}");
    }
    assert_eq!(ask(&first).unwrap().verify(&last, &mut BytesMut::new()), Ok(()));
}

proptest! {
    #[test]
    fn no_other_password_passes(password in "[ -~]{0,20}", other in "[ -~]{0,20}") {
        let verdict =
            exchange(SCRAM_SHA_256, ChannelBinding::unsupported(), None, [&password, &other]);
        let expected = if password == other { Ok(()) } else { Err(SaslError::Proof) };
        prop_assert_eq!(verdict, expected);
        let same = exchange(SCRAM_SHA_256, ChannelBinding::unsupported(), None, [&other, &other]);
        prop_assert_eq!(same, Ok(()));
    }

    /// Whatever is changed in either message: nobody gets in, and nothing panics.
    #[test]
    fn no_change_of_a_message_passes(which in any::<bool>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let verifier = verifier("secret");
        let (mut first, mut last) = right_messages(&verifier);
        let message = if which { &mut first } else { &mut last };
        let at = at.index(message.len());
        prop_assume!(message[at] != byte);
        message[at] = byte;
        // Bits behind the last byte of the proof do not count.
        prop_assume!(which || at != last.len() - 2);
        let chosen = Chosen { binding: None, is_plus: false };
        let verdict = chosen.ask(&first, &verifier, "ours").and_then(|asked| asked.verify(&last, &mut BytesMut::new()));
        prop_assert!(verdict.is_err());
    }

    #[test]
    fn no_bytes_panic(
        body in prop::collection::vec(any::<u8>(), 0..80),
        text in "(SCRAM-SHA-256(-PLUS)?\0)?(.{0,4})?([npy](=tls-server-end-point)?,a?,)?([a-zA-Z]?=?[ -~\0ä]{0,8},?){0,6}",
    ) {
        let verifier = verifier("secret");
        for bytes in [&body[..], text.as_bytes()] {
            let _ = Offer::new(None).choose(bytes);
            for is_plus in [false, true] {
                let chosen = || Chosen { binding: is_plus.then(hash_once), is_plus };
                let _ = chosen().ask(bytes, &verifier, "ours");
                let first: &[u8] =
                    if is_plus { b"p=tls-server-end-point,,n=,r=x" } else { b"n,,n=,r=x" };
                let asked = chosen().ask(first, &verifier, "ours").unwrap();
                prop_assert!(asked.verify(bytes, &mut BytesMut::new()).is_err());
            }
        }
    }
}

fn hash_once() -> EndPointHash {
    static HASH: std::sync::OnceLock<EndPointHash> = std::sync::OnceLock::new();
    HASH.get_or_init(hash).clone()
}
