//! SCRAM with a client: three messages of its, three of ours, the last of which is not sent here.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::AuthError;
use super::file::AuthFile;
use crate::wire::sasl::{self, SaslError};
use crate::wire::scram_server::{Offer, nonce};

/// Asks for the proof that `user` knows its password. A user that there is not is asked the same. Gives
/// `AuthenticationSASLFinal`, which is sent with what comes next: AuthenticationOk, or why there is no session.
pub(super) async fn prove<C>(
    client: &mut C,
    early: &mut BytesMut,
    user: &[u8],
    offer: Offer,
    file: &AuthFile,
) -> Result<BytesMut, AuthError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let malformed = |source| AuthError::Sasl { user: user.to_vec(), source };
    let users = file.users().await;
    let mock = file.mock(user, &users);
    let known = users.verifier(user);
    let verifier = known.unwrap_or(&mock);

    let mut out = BytesMut::new();
    offer.encode(&mut out);
    say(client, &mut out).await?;
    let message = response(client, early, user).await?;
    let (chosen, data) = offer.choose(&message).map_err(malformed)?;
    let first = if let Some(data) = data {
        BytesMut::from(data)
    } else {
        sasl::encode_continue(&[], &mut out);
        say(client, &mut out).await?;
        response(client, early, user).await?
    };
    let nonce = nonce().ok_or(AuthError::Random)?;
    let asked = chosen.ask(&first, verifier, &nonce).map_err(malformed)?;

    asked.encode(&mut out);
    say(client, &mut out).await?;
    let last = response(client, early, user).await?;
    match asked.verify(&last, &mut out) {
        Ok(()) if known.is_some() => Ok(out),
        Err(SaslError::Proof) if known.is_some() => Err(AuthError::WrongPassword { user: user.to_vec() }),
        // A mock's proof is nobody's; were it found, it would help nobody.
        Ok(()) | Err(SaslError::Proof) => Err(AuthError::NoSuchUser { user: user.to_vec() }),
        Err(error) => Err(malformed(error)),
    }
}

async fn say<C: AsyncWrite + Unpin>(client: &mut C, out: &mut BytesMut) -> Result<(), AuthError> {
    client.write_all(out).await?;
    client.flush().await?;
    out.clear();
    Ok(())
}

/// The body of the next answer.
async fn response<C>(client: &mut C, early: &mut BytesMut, user: &[u8]) -> Result<BytesMut, AuthError>
where
    C: AsyncRead + Unpin,
{
    let malformed = |source| AuthError::Sasl { user: user.to_vec(), source };
    loop {
        if let Some((body, len)) = sasl::split_response(early).map_err(malformed)? {
            let header_len = len - body.len();
            let mut message = early.split_to(len);
            message.advance(header_len);
            return Ok(message);
        }
        // A declared length above the limit is an error at its last byte, so this grows to the limit at most.
        early.reserve(READ_LEN);
        if client.read_buf(early).await? == 0 {
            return Err(if early.is_empty() { AuthError::Closed } else { malformed(SaslError::Incomplete) });
        }
    }
}

/// A usual answer, in bytes.
const READ_LEN: usize = 256;
