//! A way to a server that a test closes and opens, while the server serves others.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time;

/// Forwards connections from a port of its own. Belongs to the runtime that it is opened on.
pub(crate) struct Gate {
    address: SocketAddr,
    target: SocketAddr,
    /// The listener and every connection; none while it is closed.
    tasks: Mutex<JoinSet<()>>,
}

impl Gate {
    /// An open one to this port of 127.0.0.1.
    pub(crate) async fn to(port: u16) -> Self {
        let address = ([127, 0, 0, 1], super::free_ports(1)).into();
        let gate = Self { address, target: ([127, 0, 0, 1], port).into(), tasks: Mutex::default() };
        gate.open().await;
        gate
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn open(&self) {
        let listener = super::listen_again(self.address).await;
        let target = self.target;
        self.tasks.lock().unwrap().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
    }

    /// Cuts every connection; new ones are refused when this returns, and not before: a child that another test is
    /// just starting has a copy of the listener until its program begins.
    pub(crate) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        tasks.shutdown().await;
        while TcpStream::connect(self.address).await.is_ok() {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
}
