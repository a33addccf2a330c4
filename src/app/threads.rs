//! The data threads: they run listener and sessions, so that nothing done for a lease delays a byte of the relay.

use std::future;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::current_thread;
use crate::http::{self, Pinger};
use crate::listener::{self, Listeners, Threads};
use crate::roster::Load;
use crate::session::Shared;

/// They are at work.
pub(super) struct DataThreads {
    /// Resolves when they have ended.
    pub(super) ended: oneshot::Receiver<io::Result<()>>,
    pub(super) pinger: Pinger,
    /// Of each by its name.
    pub(super) loads: Vec<(String, Load)>,
}

/// Starts so many, at least one. They end together: when all sessions have, or where one of them fails.
pub(super) fn start(count: usize, listeners: Listeners, shared: Arc<Shared>) -> io::Result<DataThreads> {
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
        run(name, runtime, &over, pings, over.clone().cancelled_owned())?;
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
