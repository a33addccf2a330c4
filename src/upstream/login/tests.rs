use std::pin::pin;
use std::sync::{LazyLock, mpsc};
use std::task::{Context, Waker};

use tokio::io::{DuplexStream, duplex};

use postgres_protocol::authentication::md5_hash;

use super::*;
use crate::upstream::fake::{FakeUpstream, bounded, credential, message, parameters};
use crate::wire::binding::EndPointHash;
use crate::wire::frame::FrameError;
use crate::wire::negotiation::NegotiationError;
use crate::wire::scram::ScramError;
use crate::wire::startup::ProtocolVersion;

const V3_0: ProtocolVersion = ProtocolVersion(0x0003_0000);
const V3_2: ProtocolVersion = ProtocolVersion(0x0003_0002);
const READY: &[u8] = b"Z\0\0\0\x05I";

fn hash() -> EndPointHash {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    EndPointHash::of_certificate(key.cert.der()).unwrap()
}

/// Terms by default, with this binding.
fn terms(binding: &Binding) -> Terms<'static> {
    static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1)));
    Terms {
        binding: binding.clone(),
        require_auth: RequireAuth::default(),
        is_verified: true,
        versions: Versions { least: V3_0, most: V3_0 },
        turns: &TURNS,
    }
}

/// The same over TLS that is verified or not, with these methods.
fn allowing(require_auth: RequireAuth, is_verified: bool) -> Terms<'static> {
    Terms { require_auth, is_verified, ..terms(&Binding::None) }
}

/// One login of ours against what `script` does; the fake's end lives until we are done.
async fn play<F>(
    binding: &Binding,
    script: impl FnOnce(FakeUpstream<DuplexStream>) -> F,
) -> Result<Greeting, LoginError>
where
    F: Future<Output = FakeUpstream<DuplexStream>>,
{
    play_on(terms(binding), script).await
}

async fn play_on<F>(
    terms: Terms<'_>,
    script: impl FnOnce(FakeUpstream<DuplexStream>) -> F,
) -> Result<Greeting, LoginError>
where
    F: Future<Output = FakeUpstream<DuplexStream>>,
{
    let (mut ours, theirs) = duplex(64 * 1024);
    let credential = credential("secret");
    let parameters = parameters();
    let login = async {
        let result = log_in(&mut ours, &credential, &parameters, &terms).await;
        drop(ours);
        result
    };
    let script = async { drop(script(FakeUpstream::new(theirs)).await) };
    bounded(async { tokio::join!(login, script).0 }).await
}

/// A server that sends `bytes` in answer to the StartupMessage, and then ends.
async fn answer(binding: &Binding, bytes: &[u8]) -> Result<Greeting, LoginError> {
    play(binding, async |mut upstream| {
        upstream.startup().await;
        upstream.send(bytes).await;
        upstream
    })
    .await
}

fn authentication(code: u32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes()[..], data].concat())
}

fn greeting() -> Vec<u8> {
    [message(b'S', b"server_version\x0018.6\0"), message(b'K', b"\0\0\x10\x01abcd"), READY.to_vec()].concat()
}

#[tokio::test]
async fn startup_carries_the_parameters_and_the_user_of_the_credential() {
    let greeting = play(&Binding::None, async |mut upstream| {
        let startup = upstream.startup().await;
        assert_eq!(&startup[..4], b"\0\x03\0\0");
        assert_eq!(&startup[4..], b"database\0wizard\0role\0app_owner\0user\0v-db-app\0\0");
        upstream.send(&authentication(0, b"")).await;
        upstream.send(&greeting()).await;
        upstream
    });
    assert_eq!(greeting.await.unwrap().key.unwrap().pid, 0x1001);
}

#[tokio::test]
async fn scram_login_succeeds_bound_and_unbound_and_without_a_password() {
    let (prefer, require) = (Binding::Preferred(hash()), Binding::Required(hash()));
    for (binding, offered) in [
        (&Binding::None, "SCRAM-SHA-256\0"),
        (&prefer, "SCRAM-SHA-256\0"),
        (&prefer, "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0"),
        (&require, "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0"),
    ] {
        let greeting = play(binding, async |mut upstream| {
            upstream.startup().await;
            upstream.scram("secret", offered, binding).await;
            upstream.send(&authentication(0, b"")).await;
            upstream.send(&greeting()).await;
            upstream
        });
        assert!(greeting.await.unwrap().key.is_some(), "{binding:?} {offered}");
    }
    assert!(answer(&prefer, &[authentication(0, b""), greeting()].concat()).await.is_ok());
}

#[tokio::test]
async fn greeting_is_kept_as_it_came_in_whatever_pieces() {
    let notice = message(b'N', &[b"SWARNING\0M", &[b'x'; 9000][..], b"\0\0"].concat());
    let before = [message(b'S', b"TimeZone\0UTC\0"), notice.clone()].concat();
    let key = message(b'K', &[&[0, 0, 0, 7][..], &[9; 256][..]].concat());
    let after = [notice.as_slice(), READY, b"S\0\0"].concat();
    let whole = [notice.clone(), authentication(0, b""), before.clone(), key, after.clone()].concat();
    // All cuts near the borders of messages, and one in a hundred of the others.
    let cuts = (0..whole.len()).filter(|cut| cut % 101 == 0 || (9000..9200).contains(cut));
    for cut in cuts.chain([whole.len()]) {
        let greeting = play(&Binding::None, async |mut upstream| {
            upstream.startup().await;
            upstream.send(&whole[..cut]).await;
            task::yield_now().await;
            upstream.send(&whole[cut..]).await;
            upstream
        });
        let greeting = greeting.await.unwrap();
        assert_eq!(greeting.before_key, [notice.as_slice(), &before].concat(), "cut at {cut}");
        let key = greeting.key.unwrap();
        assert_eq!((key.pid, key.secret.len()), (7, 256));
        // What is behind ReadyForQuery may still be on its way.
        assert!(after.starts_with(&greeting.after_key), "cut at {cut}");
        assert!(greeting.after_key.len() >= after.len() - 3, "cut at {cut}");
    }
}

#[tokio::test]
async fn server_without_a_cancel_key_is_served() {
    let bytes = [authentication(0, b""), message(b'S', b"a\0b\0"), READY.to_vec()].concat();
    let greeting = answer(&Binding::None, &bytes).await.unwrap();
    assert!(greeting.key.is_none());
    assert_eq!((&greeting.before_key[..], &greeting.after_key[..]), (&message(b'S', b"a\0b\0")[..], READY));
}

#[tokio::test]
async fn refusal_is_heard_before_and_after_authentication() {
    let error = message(b'E', b"SFATAL\0C3D000\0Mno database\0\0");
    let status = message(b'S', b"a\0b\0");
    let key = message(b'K', b"\0\0\0\x01abcd");
    let notice = message(b'N', b"SWARNING\0Mno\0\0");
    let ok = || authentication(0, b"");
    let said = |before_key: &[u8], pid, after_key: &[u8]| {
        Some(Box::new(SinceLetIn { before_key: before_key.to_vec(), pid, after_key: after_key.to_vec() }))
    };
    for (before, stage, told) in [
        (vec![], Stage::Unasked, None),
        (vec![notice.clone()], Stage::Unasked, None),
        (vec![ok()], Stage::LetIn, said(b"", None, b"")),
        (vec![notice.clone(), ok()], Stage::LetIn, said(&notice, None, b"")),
        (vec![ok(), status.clone()], Stage::Begun, said(&status, None, b"")),
        (vec![ok(), key.clone()], Stage::Begun, said(b"", Some(1), b"")),
        (vec![ok(), status.clone(), key, notice.clone()], Stage::Begun, said(&status, Some(1), &notice)),
    ] {
        let bytes = [before.concat(), error.clone()].concat();
        let Err(LoginError::Refused { response, stage: seen }) = answer(&Binding::None, &bytes).await else {
            panic!("no refusal")
        };
        assert_eq!(response.code.unwrap().to_string(), "3D000");
        assert_eq!((seen, response.since_let_in), (stage, told));
    }
}

#[tokio::test]
async fn refusal_behind_the_servers_own_proof_is_not_of_the_password() {
    let error = message(b'E', b"SFATAL\0C28P01\0Mno\0\0");
    for (has_proven, expected) in [(false, Stage::Asked), (true, Stage::Proven)] {
        let outcome = play(&Binding::None, async |mut upstream| {
            upstream.startup().await;
            let server_final = upstream.scram_up_to_proof("secret", "SCRAM-SHA-256\0", &Binding::None).await;
            let mut last = error.clone();
            if has_proven {
                last = [authentication(12, server_final.as_bytes()), last].concat();
            }
            upstream.send(&last).await;
            upstream
        });
        let Err(LoginError::Refused { stage, .. }) = outcome.await else { panic!("no refusal") };
        assert_eq!(stage, expected);
    }
}

#[tokio::test]
async fn weaker_request_is_never_answered() {
    let require = Binding::Required(hash());
    for binding in [&Binding::None, &Binding::Preferred(hash()), &require] {
        for code in [3, 5, 7, 8, 9, 99] {
            let outcome = play(binding, async |mut upstream| {
                upstream.startup().await;
                upstream.send(&authentication(code, b"salt")).await;
                assert_eq!(upstream.rest().await, b"", "nothing may follow request {code}");
                upstream
            });
            let error = outcome.await.unwrap_err();
            assert!(matches!(error, LoginError::Method { .. }), "{error}");
            assert!(error.is_untrusted());
        }
    }
    let error = answer(&require, &authentication(0, b"")).await.unwrap_err();
    assert!(matches!(error, LoginError::NotBound { asked: "nothing" }), "{error}");
    let error = answer(&require, &authentication(10, b"SCRAM-SHA-256\0\0")).await.unwrap_err();
    assert!(matches!(error, LoginError::Scram(ScramError::PlusNotOffered)), "{error}");
}

#[tokio::test]
async fn exchange_that_was_begun_ends_in_a_right_signature_or_not_at_all() {
    let hash = hash();
    for binding in [Binding::None, Binding::Preferred(hash.clone()), Binding::Required(hash)] {
        for (step, last) in [
            ("ok at once", authentication(0, b"")),
            ("again", authentication(10, b"SCRAM-SHA-256\0\0")),
            ("final at once", authentication(12, b"v=")),
        ] {
            let outcome = play(&binding, async |mut upstream| {
                upstream.startup().await;
                upstream.begin_scram("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0").await;
                upstream.send(&last).await;
                upstream
            });
            assert!(outcome.await.unwrap_err().is_untrusted(), "{binding:?} {step}");
        }
        for (step, last) in [
            ("ok without final", authentication(0, b"")),
            ("two continues", authentication(11, b"r=x,s=c2FsdA==,i=4096")),
            ("wrong signature", authentication(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")),
            ("empty signature", authentication(12, b"v=")),
            ("nothing", authentication(12, b"")),
            ("an error", authentication(12, b"e=other-error")),
        ] {
            let outcome = play(&binding, async |mut upstream| {
                upstream.startup().await;
                upstream.scram_up_to_proof("secret", "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0", &binding).await;
                upstream.send(&last).await;
                upstream
            });
            assert!(outcome.await.unwrap_err().is_untrusted(), "{binding:?} {step}");
        }
        for server_first in [&b"r=theirs,s=c2FsdA==,i=4096"[..], b"m=ext,r=x,s=c2FsdA==,i=4096", b"", b"\xff"]
        {
            let outcome = play(&binding, async |mut upstream| {
                upstream.startup().await;
                upstream.begin_scram("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0").await;
                upstream.send(&authentication(11, server_first)).await;
                assert_eq!(upstream.rest().await, b"", "no proof for a server that answers nonsense");
                upstream
            });
            assert!(outcome.await.unwrap_err().is_untrusted(), "{binding:?}");
        }
    }
}

#[tokio::test]
async fn malformed_messages_end_the_login() {
    let long_key = message(b'K', &[0; 4 + 257]);
    for bytes in [
        b"R\0\0\0\x03".to_vec(),
        authentication(5, b"sal"),
        authentication(11, &[b'x'; 2000]),
        b"R\0\0\0\x04".to_vec(),
        message(b'R', b"\0\0\0"),
        b"E\x7f\xff\xff\xff".to_vec(),
        b"HTTP/1.1 400 Bad Authentication\r\n\r\n".to_vec(),
        message(b'D', b""),
        [authentication(0, b""), authentication(0, b"")].concat(),
        [authentication(0, b""), message(b'K', b"\0\0\0\x01abc")].concat(),
        [authentication(0, b""), long_key].concat(),
        [authentication(0, b""), greeting()[..greeting().len() - READY.len()].repeat(2)].concat(),
    ] {
        let error = answer(&Binding::None, &bytes).await.unwrap_err();
        assert_eq!(error.reason(), "protocol", "{error} for {bytes:?}");
    }
    let whole = [authentication(0, b""), greeting()].concat();
    for cut in 0..whole.len() {
        let error = answer(&Binding::None, &whole[..cut]).await.unwrap_err();
        assert!(matches!(error, LoginError::Closed), "cut at {cut}: {error}");
    }
}

#[tokio::test]
async fn endless_notices_are_not_collected_for_ever() {
    let notice = message(b'N', "x".repeat(60_000).as_bytes());
    for first in [Vec::new(), authentication(0, b"")] {
        let outcome = play(&Binding::None, async |mut upstream| {
            upstream.startup().await;
            upstream.send(&first).await;
            while upstream.try_send(&notice).await.is_ok() {}
            upstream
        });
        let error = outcome.await.unwrap_err();
        assert!(matches!(error, LoginError::Frame(FrameError::TooLong { .. })), "{error}");
    }
}

#[tokio::test]
async fn user_name_cannot_smuggle_parameters() {
    let (mut ours, mut theirs) = duplex(1024);
    let mut credential = credential("secret");
    credential.user = "v\0role\0postgres".to_owned();
    let outcome = log_in(&mut ours, &credential, &parameters(), &terms(&Binding::None)).await;
    assert!(matches!(outcome, Err(LoginError::UserName)));
    drop(ours);
    assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn password_is_given_where_it_is_named_and_tls_is_verified() {
    let password = RequireAuth { password: true, ..RequireAuth::default() };
    for (is_verified, allowed, is_told) in [
        (true, password, true),
        (true, RequireAuth { none: false, scram: false, ..password }, true),
        (false, password, false),
        (true, RequireAuth { md5: true, ..RequireAuth::default() }, false),
        (true, RequireAuth::default(), false),
    ] {
        let outcome = play_on(allowing(allowed, is_verified), async |mut upstream| {
            upstream.startup().await;
            upstream.send(&authentication(3, b"")).await;
            if is_told {
                assert_eq!(upstream.receive().await, (b'p', b"secret\0".to_vec()));
                upstream.send(&[authentication(0, b""), greeting()].concat()).await;
            } else {
                assert_eq!(upstream.rest().await, b"", "the password went out");
            }
            upstream
        });
        match outcome.await {
            Ok(_) => assert!(is_told),
            Err(error) => assert!(!is_told && error.is_untrusted(), "{error}"),
        }
    }
}

#[tokio::test]
async fn md5_is_answered_where_it_is_named_over_whatever_carries_it() {
    let md5 = RequireAuth { md5: true, ..RequireAuth::default() };
    for (is_verified, allowed, is_answered) in [
        (true, md5, true),
        (false, md5, true),
        (true, RequireAuth { password: true, ..RequireAuth::default() }, false),
        (true, RequireAuth::default(), false),
    ] {
        let outcome = play_on(allowing(allowed, is_verified), async |mut upstream| {
            upstream.startup().await;
            upstream.send(&authentication(5, b"salt")).await;
            if is_answered {
                let hashed = md5_hash(b"v-db-app", b"secret", *b"salt") + "\0";
                assert_eq!(upstream.receive().await, (b'p', hashed.into_bytes()));
                upstream.send(&[authentication(0, b""), greeting()].concat()).await;
            } else {
                assert_eq!(upstream.rest().await, b"");
            }
            upstream
        });
        assert_eq!(outcome.await.is_ok(), is_answered);
    }
}

#[tokio::test]
async fn server_that_asks_for_more_after_an_answer_is_refused() {
    let all = RequireAuth { scram: true, none: true, md5: true, password: true };
    for second in
        [authentication(3, b""), authentication(5, b"salt"), authentication(10, b"SCRAM-SHA-256\0\0")]
    {
        let outcome = play_on(allowing(all, true), async |mut upstream| {
            upstream.startup().await;
            upstream.send(&authentication(5, b"salt")).await;
            upstream.receive().await;
            upstream.send(&second).await;
            assert_eq!(upstream.rest().await, b"");
            upstream
        });
        assert!(matches!(outcome.await, Err(LoginError::OutOfOrder { .. })));
    }
}

#[tokio::test]
async fn required_binding_leaves_no_other_method() {
    let all = RequireAuth { scram: true, none: true, md5: true, password: true };
    let terms = Terms { binding: Binding::Required(hash()), ..allowing(all, true) };
    for request in [authentication(0, b""), authentication(3, b""), authentication(5, b"salt")] {
        let outcome = play_on(terms.clone(), async |mut upstream| {
            upstream.startup().await;
            upstream.send(&request).await;
            assert_eq!(upstream.rest().await, b"");
            upstream
        });
        let error = outcome.await.unwrap_err();
        assert!(matches!(error, LoginError::NotBound { .. }) && error.is_untrusted(), "{error}");
    }
}

#[tokio::test]
async fn method_that_is_not_allowed_is_named_with_what_is() {
    let only = |method: &str| RequireAuth {
        scram: method == "scram",
        none: method == "none",
        md5: method == "md5",
        password: method == "password",
    };
    for (allowed, request, said) in [
        (only("scram"), authentication(0, b""), "asks for nothing, and require_auth is scram-sha-256"),
        (only("md5"), authentication(0, b""), "asks for nothing, and require_auth is md5"),
        (
            only("none"),
            authentication(10, b"SCRAM-SHA-256\0\0"),
            "asks for SCRAM-SHA-256, and require_auth is none",
        ),
        (only("none"), authentication(5, b"salt"), "asks for an MD5 password, and require_auth is none"),
        (
            only("scram"),
            authentication(3, b""),
            "asks for the password in clear, and require_auth is scram-sha-256",
        ),
        (only("scram"), authentication(7, b""), "asks for GSSAPI, and require_auth is scram-sha-256"),
        (only("scram"), authentication(9, b""), "asks for SSPI, and require_auth is scram-sha-256"),
    ] {
        let outcome = play_on(allowing(allowed, true), async |mut upstream| {
            upstream.startup().await;
            upstream.send(&request).await;
            assert_eq!(upstream.rest().await, b"");
            upstream
        });
        let error = outcome.await.unwrap_err();
        assert!(error.is_untrusted() && error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn server_that_asks_for_endless_work_gets_none() {
    let outcome = play(&Binding::None, async |mut upstream| {
        upstream.startup().await;
        let (_, client_first) = upstream.begin_scram("SCRAM-SHA-256\0").await;
        let nonce = client_first.strip_prefix("n,,n=,r=").unwrap();
        let server_first = format!("r={nonce}x,s=c2FsdA==,i=2147483647");
        upstream.send(&authentication(11, server_first.as_bytes())).await;
        assert_eq!(upstream.rest().await, b"");
        upstream
    });
    let error = outcome.await.unwrap_err();
    assert!(
        matches!(error, LoginError::Scram(ScramError::Iterations { .. })) && error.is_untrusted(),
        "{error}"
    );
}

#[tokio::test]
async fn version_is_asked_for_and_a_counter_offer_judged() {
    let counter_offer = |version: u32| message(b'v', &[&version.to_be_bytes()[..], &[0; 4]].concat());
    let play_version = async |least, most: ProtocolVersion, offers: Vec<Vec<u8>>| {
        let versions = Versions { least, most };
        let terms = Terms { versions, ..terms(&Binding::None) };
        play_on(terms.clone(), async |mut upstream| {
            assert_eq!(upstream.startup().await[..4], most.0.to_be_bytes());
            let key = message(b'K', &[&[0, 0, 0, 7][..], &[9; 32][..]].concat());
            upstream.send(&[offers.concat(), authentication(0, b""), key, READY.to_vec()].concat()).await;
            upstream
        })
        .await
    };
    for (least, offers) in [
        (V3_2, vec![]),
        (V3_0, vec![]),
        (V3_0, vec![counter_offer(V3_0.0)]),
        (V3_2, vec![counter_offer(V3_2.0)]),
    ] {
        let greeting = play_version(least, V3_2, offers).await.unwrap();
        assert_eq!(greeting.key.unwrap().secret.len(), 32);
    }
    let refused = play_version(V3_2, V3_2, vec![counter_offer(V3_0.0)]).await.unwrap_err();
    assert!(matches!(refused, LoginError::Version(NegotiationError::TooOld { .. })), "{refused}");
    assert_eq!((refused.reason(), refused.is_untrusted()), ("protocol", false));
    let twice = play_version(V3_0, V3_2, vec![counter_offer(V3_0.0); 2]).await.unwrap_err();
    assert!(matches!(twice, LoginError::Unexpected { tag: b'v' }), "{twice}");
    let unasked = play_version(V3_0, V3_0, vec![counter_offer(V3_2.0)]).await.unwrap_err();
    assert!(matches!(unasked, LoginError::Version(NegotiationError::Higher { .. })), "{unasked}");
}

#[tokio::test]
async fn turn_of_a_login_that_was_given_up_lasts_as_long_as_its_derivation() {
    let turns = Arc::new(Semaphore::new(1));
    let (end, ends) = mpsc::channel::<()>();
    {
        let mut given_up = pin!(in_turn(&turns, move || ends.recv()));
        assert!(given_up.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert_eq!(turns.available_permits(), 0);
    end.send(()).unwrap();
    bounded(in_turn(&turns, || ())).await.unwrap();
    assert_eq!(turns.available_permits(), 1);
}
