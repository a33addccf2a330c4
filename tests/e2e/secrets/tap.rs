//! What goes over a wire.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A way to a server that keeps what the server says.
pub(super) struct Tap {
    pub(super) port: u16,
    /// Of each connection.
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _connections: JoinSet<()>,
}

impl Tap {
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap_port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let kept = Arc::clone(&heard);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let number = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Vec::new());
                    kept.len() - 1
                };
                let kept = Arc::clone(&kept);
                connections.spawn(forward(from_client, to_server, |_| {}));
                connections.spawn(forward(from_server, to_client, move |bytes| {
                    kept.lock().unwrap().get_mut(number).unwrap().extend_from_slice(bytes);
                }));
            }
        });
        Self { port: tap_port, heard, _connections: tasks }
    }

    /// All of it, as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap().concat()).into_owned()
    }

    /// The secret of each BackendKeyData.
    pub(super) fn cancel_secrets(&self) -> Vec<Vec<u8>> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter_map(|bytes| cancel_secret(bytes)).collect()
    }
}

fn cancel_secret(mut bytes: &[u8]) -> Option<Vec<u8>> {
    // Byte1 tag, Int32 length including itself; Int32 pid in front of the secret.
    while let Some((&[tag, l3, l2, l1, l0], rest)) = bytes.split_first_chunk() {
        let len = usize::try_from(u32::from_be_bytes([l3, l2, l1, l0])).unwrap();
        let (body, rest) = rest.split_at_checked(len - 4)?;
        if tag == b'K' {
            return Some(body.get(4..)?.to_vec());
        }
        bytes = rest;
    }
    None
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut seen: impl FnMut(&[u8]),
) {
    let mut bytes = Vec::new();
    while from.read_buf(&mut bytes).await.is_ok_and(|len| len > 0) {
        seen(&bytes);
        if to.write_all(&bytes).await.is_err() {
            break;
        }
        bytes.clear();
    }
    let _ = to.shutdown().await;
}
