//! The data threads: they run listener and sessions, so that nothing done for a lease delays a byte of the relay.

use std::future;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::current_thread;
use crate::http::{self, Pinger};
use crate::listener::{self, Listeners, Threads};
use crate::roster::Load;
use crate::session::Shared;
use crate::session::relay::outbox;

/// They are at work.
pub(super) struct DataThreads {
    /// Resolves when they have ended; to an error of its own where one of them has died.
    pub(super) ended: oneshot::Receiver<io::Result<()>>,
    pub(super) pinger: Pinger,
    /// Of each by its name.
    pub(super) loads: Vec<(String, Load)>,
}

/// Starts so many, at least one. They end together: when all sessions have, or where one of them fails.
pub(super) fn start(count: usize, listeners: Listeners, shared: Arc<Shared>) -> io::Result<DataThreads> {
    start_beside(count, listeners, shared, CancellationToken::cancelled_owned)
}

/// The threads beside the first go on as long as the `work` does that it is given the end for.
fn start_beside<W>(
    count: usize,
    listeners: Listeners,
    shared: Arc<Shared>,
    work: impl Fn(CancellationToken) -> W,
) -> io::Result<DataThreads>
where
    W: Future<Output = ()> + Send + 'static,
{
    let first = current_thread()?;
    let others = (1..count).map(|_| current_thread()).collect::<io::Result<Vec<_>>>()?;
    let threads = Threads::new(others.iter().map(|runtime| runtime.handle().clone()).collect());
    let names = (1..=count.max(1)).map(|number| name(number, count));
    let loads: Vec<_> = names.zip(threads.loads()).collect();
    let (pinger, pings) = http::pings(loads.len());

    let (tell_end, ended) = oneshot::channel();
    let over = CancellationToken::new();
    let serve = {
        let over = over.clone();
        async move {
            let served = tokio::select! {
                served = listener::serve(listeners, threads, shared) => served,
                () = over.cancelled() => return,
            };
            // Nobody waits for it only where the process ends anyway.
            let _ = tell_end.send(served);
        }
    };
    let mut each = loads.iter().map(|(name, _)| name).zip(pings);
    if let Some((name, pings)) = each.next() {
        run(name, first, &over, pings, serve)?;
    }
    for ((name, pings), runtime) in each.zip(others) {
        run(name, runtime, &over, pings, work(over.clone()))?;
    }
    Ok(DataThreads { ended, pinger, loads })
}

/// Runs `work` and what is spawned beside it. With its end, whatever it ends by, it is over for all.
fn run(
    name: &str,
    runtime: Runtime,
    over: &CancellationToken,
    pings: impl Future<Output = ()> + Send + 'static,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let over = over.clone().drop_guard();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _over = over;
        runtime.block_on(async {
            let mut carrier = JoinSet::new();
            carrier.spawn(outbox::carry());
            tokio::select! {
                () = work => {}
                // Over when the endpoints are, which is after the sessions.
                () = async { pings.await; future::pending().await } => {}
            }
        });
    })?;
    Ok(())
}

/// As it is shown by the system, which has room for 15 bytes.
fn name(number: usize, count: usize) -> String {
    if count > 1 { format!("data-{number}") } else { "data".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::panic::resume_unwind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::ListenAddress;
    use crate::listener::tests::{GREETING, STARTUP, config, let_in, shared};

    #[tokio::test]
    async fn thread_that_dies_ends_the_others_and_all_sessions_and_answers_no_probe() {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (shared, _drain, _issued) = shared(upstream.local_addr().unwrap().port());
        let localhost = ListenAddress::Socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listeners = listener::bind(&config(&[localhost])).unwrap();
        let address = listeners.addresses()[0];
        let kill = CancellationToken::new();
        let dies = |_| {
            let killed = kill.clone().cancelled_owned();
            async move {
                killed.await;
                resume_unwind(Box::new("a bug"));
            }
        };
        let DataThreads { ended, pinger, loads } = start_beside(2, listeners, shared, dies).unwrap();

        let mut sessions = Vec::new();
        for _ in &loads {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(STARTUP).await.unwrap();
            let far = let_in(&upstream).await;
            client.read_exact(&mut [0; GREETING.len()]).await.unwrap();
            sessions.push((client, far));
        }
        assert!(loads.iter().all(|(_, load)| load.connections() == 1));
        kill.cancel();
        assert!(ended.await.is_err(), "nobody says that all is well");
        assert!(!pinger.ping().await);
        for (mut client, mut far) in sessions {
            // The end of the stream, or a reset.
            let _ = client.read_to_end(&mut Vec::new()).await;
            let _ = far.read_to_end(&mut Vec::new()).await;
        }
    }
}
