//! Whether the data threads still turn their loops: they are asked, and answer when they come to it. No task runs here.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time;

/// Asks them.
#[derive(Clone, Debug)]
pub(crate) struct Pinger(Vec<mpsc::Sender<oneshot::Sender<()>>>);

impl Pinger {
    /// Whether all of them do.
    pub(crate) async fn ping(&self) -> bool {
        let asked = async {
            let mut answers = Vec::with_capacity(self.0.len());
            for thread in &self.0 {
                let (reply, answer) = oneshot::channel();
                if thread.send(reply).await.is_err() {
                    return false;
                }
                answers.push(answer);
            }
            for answer in answers {
                if answer.await.is_err() {
                    return false;
                }
            }
            true
        };
        time::timeout(PING_TIMEOUT, asked).await.unwrap_or(false)
    }
}

/// The two ends of a ping of so many threads: the second has a future for each of them, which ends with the last pinger.
pub(crate) fn pings(threads: usize) -> (Pinger, Vec<impl Future<Output = ()>>) {
    let pings = |mut asked: mpsc::Receiver<oneshot::Sender<()>>| async move {
        while let Some(reply) = asked.recv().await {
            // A kubelet that has given up waits for no answer.
            let _ = reply.send(());
        }
    };
    let (pingers, asked): (Vec<_>, Vec<_>) = (0..threads).map(|_| mpsc::channel(PINGS)).unzip();
    (Pinger(pingers), asked.into_iter().map(pings).collect())
}

/// Shorter than a kubelet's `timeoutSeconds` of 1 would make the answer come too late to be one.
const PING_TIMEOUT: Duration = Duration::from_millis(900);

/// Pings that a thread has before it; further ones wait for their turn.
const PINGS: usize = 16;
