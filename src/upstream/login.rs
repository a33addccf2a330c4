//! From the StartupMessage to ReadyForQuery, over whatever carries bytes.
//!
//! Two phases: until AuthenticationOk the other side is nobody in particular and gets little room; from there on
//! its greeting is kept for the client as it came.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::credential::Credential;
use crate::wire::authentication::Authentication;
use crate::wire::error::ErrorResponse;
use crate::wire::frame::{Frame, split_frame};
use crate::wire::scram::{Binding, Exchange, Proof};
use crate::wire::startup::{CancelKey, StartupParameters};

use super::error::LoginError;

/// What upstream said once it had let us in. `before_key` and `after_key` are as in [`super::LoggedIn`].
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) before_key: BytesMut,
    pub(super) key: Option<CancelKey>,
    pub(super) after_key: BytesMut,
}

/// Logs in as `credential` says, with `parameters` otherwise. The password never leaves in clear or as MD5. Not
/// cancel safe: the connection is of no use after an error or a drop.
pub(super) async fn log_in<S>(
    stream: &mut S,
    credential: &Credential,
    parameters: &StartupParameters,
    binding: &Binding,
) -> Result<Greeting, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if credential.user.contains('\0') {
        return Err(LoginError::UserName);
    }
    let mut parameters = parameters.clone();
    parameters.set("user", credential.user.as_bytes());
    let mut startup = BytesMut::new();
    parameters.encode(&mut startup);

    let mut login = Login { stream, read: BytesMut::new(), kept: BytesMut::new(), room: MAX_LOGIN_LEN };
    login.send(&startup).await?;
    login.authenticate(credential, binding).await?;
    login.greeting().await
}

struct Login<'a, S> {
    stream: &'a mut S,
    /// Bytes of upstream that no one has looked at.
    read: BytesMut,
    /// Whole messages for the client.
    kept: BytesMut,
    /// Bytes that upstream may still send.
    room: u32,
}

/// One whole message.
struct Message {
    tag: u8,
    /// All of it, as it came.
    bytes: BytesMut,
}

impl Message {
    fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// How far the proof has come.
enum Auth {
    Fresh,
    Begun(Exchange),
    Proved(Proof),
    Verified,
}

impl<S> Login<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Up to AuthenticationOk. It counts where nothing was asked of us and no binding is required, or when an
    /// exchange has run to its end: half of one would do for who wants to be taken for the server.
    async fn authenticate(&mut self, credential: &Credential, binding: &Binding) -> Result<(), LoginError> {
        let mut auth = Auth::Fresh;
        loop {
            let message = self.message(MAX_AUTHENTICATION_LEN).await?;
            let request = match message.tag {
                AUTHENTICATION => Authentication::parse(message.body())
                    .ok_or(LoginError::Malformed { name: "authentication request" })?,
                ERROR_RESPONSE => return Err(LoginError::Refused(ErrorResponse::parse(message.body()))),
                NOTICE_RESPONSE | PARAMETER_STATUS => {
                    self.kept.unsplit(message.bytes);
                    continue;
                }
                // Says which minor version and options upstream lacks: we ask for none.
                NEGOTIATE_PROTOCOL_VERSION => continue,
                tag => return Err(LoginError::Unexpected { tag }),
            };
            let mut reply = BytesMut::new();
            auth = match (request, auth) {
                (Authentication::Ok, Auth::Fresh) if matches!(binding, Binding::Required(_)) => {
                    return Err(LoginError::NotBound);
                }
                (Authentication::Ok, Auth::Fresh | Auth::Verified) => return Ok(()),
                (Authentication::Ok, Auth::Begun(_) | Auth::Proved(_)) => return Err(LoginError::NotProven),
                (Authentication::Sasl(offered), Auth::Fresh) => {
                    let exchange = Exchange::begin(offered, binding, &credential.password)?;
                    exchange.encode(&mut reply);
                    Auth::Begun(exchange)
                }
                (Authentication::SaslContinue(server_first), Auth::Begun(exchange)) => {
                    let proof = exchange.prove(server_first)?;
                    proof.encode(&mut reply);
                    Auth::Proved(proof)
                }
                (Authentication::SaslFinal(server_final), Auth::Proved(proof)) => {
                    proof.verify(server_final)?;
                    Auth::Verified
                }
                (Authentication::Other(method), _) => return Err(LoginError::Method { method }),
                (request, _) => return Err(LoginError::OutOfOrder { name: request.name() }),
            };
            self.send(&reply).await?;
        }
    }

    /// From AuthenticationOk up to ReadyForQuery at least.
    async fn greeting(mut self) -> Result<Greeting, LoginError> {
        let mut key = None;
        let mut before_key = BytesMut::new();
        loop {
            let message = self.message(MAX_LOGIN_LEN).await?;
            match message.tag {
                ERROR_RESPONSE => return Err(LoginError::Refused(ErrorResponse::parse(message.body()))),
                // Joins without a copy what was read in one go.
                NOTICE_RESPONSE | PARAMETER_STATUS => self.kept.unsplit(message.bytes),
                BACKEND_KEY_DATA if key.is_none() => {
                    key = Some(backend_key(message.body())?);
                    before_key = self.kept.split();
                }
                READY_FOR_QUERY => {
                    if key.is_none() {
                        before_key = self.kept.split();
                    }
                    self.kept.unsplit(message.bytes);
                    self.kept.unsplit(self.read);
                    return Ok(Greeting { before_key, key, after_key: self.kept });
                }
                tag => return Err(LoginError::Unexpected { tag }),
            }
        }
    }

    /// The next whole message, its length judged before it is read.
    async fn message(&mut self, max_len: u32) -> Result<Message, LoginError> {
        loop {
            if let Some((Frame { tag, body }, _)) = split_frame(&self.read, max_len.min(self.room))? {
                let len = HEADER_LEN + body.len();
                self.room = self.room.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
                return Ok(Message { tag, bytes: self.read.split_to(len) });
            }
            self.read.reserve(READ_LEN);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(LoginError::Closed);
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        self.stream.write_all(bytes).await?;
        // TLS holds back what has not been flushed.
        Ok(self.stream.flush().await?)
    }
}

/// BackendKeyData: Int32 pid, Byte*n* secret, of 4 bytes in protocol 3.0 and at most 256 in any.
fn backend_key(body: &[u8]) -> Result<CancelKey, LoginError> {
    match body.split_first_chunk() {
        Some((&pid, secret)) if (4..=MAX_SECRET_LEN).contains(&secret.len()) => {
            Ok(CancelKey { pid: i32::from_be_bytes(pid), secret: secret.to_vec().into() })
        }
        _ => Err(LoginError::Malformed { name: "BackendKeyData" }),
    }
}

/// Tag and length word.
const HEADER_LEN: usize = 5;
/// What is read at once: a whole greeting of PostgreSQL 18 has about 700 bytes.
const READ_LEN: usize = 4096;
/// One message before AuthenticationOk, in bytes. The longest that PostgreSQL sends are errors and notices.
const MAX_AUTHENTICATION_LEN: u32 = 64 * 1024;
/// Everything up to ReadyForQuery, in bytes. A login trigger's notices may be long.
const MAX_LOGIN_LEN: u32 = 1024 * 1024;
/// The secret of BackendKeyData, in bytes.
const MAX_SECRET_LEN: usize = 256;

// PostgreSQL manual, "Message Formats".
const AUTHENTICATION: u8 = b'R';
const BACKEND_KEY_DATA: u8 = b'K';
const ERROR_RESPONSE: u8 = b'E';
const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
const NOTICE_RESPONSE: u8 = b'N';
const PARAMETER_STATUS: u8 = b'S';
const READY_FOR_QUERY: u8 = b'Z';

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::upstream::fake::{FakeUpstream, bounded, credential, message, parameters};
    use crate::wire::binding::EndPointHash;
    use crate::wire::frame::FrameError;
    use crate::wire::scram::ScramError;

    const READY: &[u8] = b"Z\0\0\0\x05I";

    fn hash() -> EndPointHash {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        EndPointHash::of_certificate(key.cert.der()).unwrap()
    }

    /// One login of ours against what `script` does; the fake's end lives until we are done.
    async fn play<F>(
        binding: &Binding,
        script: impl FnOnce(FakeUpstream<DuplexStream>) -> F,
    ) -> Result<Greeting, LoginError>
    where
        F: Future<Output = FakeUpstream<DuplexStream>>,
    {
        let (mut ours, theirs) = duplex(64 * 1024);
        let credential = credential("secret");
        let parameters = parameters();
        let login = async {
            let result = log_in(&mut ours, &credential, &parameters, binding).await;
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
        [message(b'S', b"server_version\x0018.6\0"), message(b'K', b"\0\0\x10\x01abcd"), READY.to_vec()]
            .concat()
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
                tokio::task::yield_now().await;
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
        assert_eq!(
            (&greeting.before_key[..], &greeting.after_key[..]),
            (&message(b'S', b"a\0b\0")[..], READY)
        );
    }

    #[tokio::test]
    async fn refusal_is_heard_before_and_after_authentication() {
        let error = message(b'E', b"SFATAL\0C3D000\0Mno database\0\0");
        for bytes in [
            error.clone(),
            [authentication(0, b""), error.clone()].concat(),
            [authentication(0, b""), message(b'K', b"\0\0\0\x01abcd"), error.clone()].concat(),
        ] {
            let Err(LoginError::Refused(response)) = answer(&Binding::None, &bytes).await else {
                panic!("no refusal")
            };
            assert_eq!(response.code.unwrap().to_string(), "3D000");
        }
    }

    #[tokio::test]
    async fn weaker_request_is_never_answered() {
        let require = Binding::Required(hash());
        for binding in [&Binding::None, &Binding::Preferred(hash()), &require] {
            for code in [2, 3, 5, 7, 9, 99] {
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
        assert!(matches!(error, LoginError::NotBound), "{error}");
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
                    upstream
                        .scram_up_to_proof("secret", "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0", &binding)
                        .await;
                    upstream.send(&last).await;
                    upstream
                });
                assert!(outcome.await.unwrap_err().is_untrusted(), "{binding:?} {step}");
            }
            for server_first in
                [&b"r=theirs,s=c2FsdA==,i=4096"[..], b"m=ext,r=x,s=c2FsdA==,i=4096", b"", b"\xff"]
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
        let outcome = log_in(&mut ours, &credential, &parameters(), &Binding::None).await;
        assert!(matches!(outcome, Err(LoginError::UserName)));
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    }
}
