//! Real threads and real connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::super::tests::{STARTUP, config, let_in, shared};
use super::super::{bind, serve};
use super::*;
use crate::config::ListenAddress;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs it on a thread until `over`.
fn run(runtime: Runtime, over: &CancellationToken) -> JoinHandle<()> {
    let over = over.clone();
    thread::spawn(move || runtime.block_on(over.cancelled()))
}

/// Of each thread, as soon as there are so many in all.
async fn spread(loads: &[Load], all: usize) -> Vec<usize> {
    let spread = async {
        loop {
            let spread: Vec<_> = loads.iter().map(Load::connections).collect();
            if spread.iter().sum::<usize>() == all {
                return spread;
            }
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(Duration::from_mins(2), spread).await.unwrap()
}

/// One session more, which nobody ends for its silence.
async fn begin(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(STARTUP).await.unwrap();
    client
}

/// What is served by an upstream that lets everybody in while `script` runs, by this thread and `others`; to the end.
async fn play<T>(others: Vec<Handle>, script: impl AsyncFnOnce(SocketAddr, &[Load]) -> T) {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (shared, drain, _issued) = shared(upstream.local_addr().unwrap().port());
    let localhost = ListenAddress::Socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let listeners = bind(&config(&[localhost])).unwrap();
    let address = listeners.addresses()[0];
    let threads = Threads::new(others);
    let loads = threads.loads();

    let script = async {
        let mut held = Vec::new();
        let lets_in = async {
            loop {
                held.push(let_in(&upstream).await);
            }
        };
        let played = tokio::select! {
            played = script(address, &loads) => played,
            () = lets_in => unreachable!(),
        };
        drain.cut();
        drop((played, held));
    };
    let (served, ()) = tokio::join!(serve(listeners, threads, shared), script);
    served.unwrap();
    assert_eq!(spread(&loads, 0).await, vec![0; loads.len()]);
}

#[tokio::test]
async fn sessions_are_spread_evenly_and_what_is_free_is_used_first() {
    let over = CancellationToken::new();
    let others = [runtime(), runtime(), runtime()];
    let handles = others.iter().map(|runtime| runtime.handle().clone()).collect();
    let running = others.map(|runtime| run(runtime, &over));
    play(handles, async |address, loads| {
        let mut open = Vec::new();
        for all in 1..=10 {
            let client = begin(address).await;
            // It has its session, and what it has not read resets the connection where it goes.
            client.peek(&mut [0]).await.unwrap();
            open.push(client);
            let mut spread = spread(loads, all).await;
            spread.sort_unstable();
            assert!(spread[3] - spread[0] <= 1, "{spread:?}");
        }
        open.extend([begin(address).await, begin(address).await]);
        assert_eq!(spread(loads, 12).await, [3; 4]);
        // They went to one after the other: those of the second are these.
        open = open.into_iter().enumerate().filter(|(at, _)| at % 4 != 1).map(|(_, open)| open).collect();
        assert_eq!(spread(loads, 9).await, [3, 0, 3, 3]);
        for _ in 0..3 {
            open.push(begin(address).await);
        }
        assert_eq!(spread(loads, 12).await, [3; 4]);
        open
    })
    .await;
    over.cancel();
    for thread in running {
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn thread_that_hangs_has_a_few_on_their_way_loses_none_and_holds_up_nobody() {
    let over = CancellationToken::new();
    let late = runtime();
    let (handles, mut running) = (vec![late.handle().clone()], None);
    play(handles, async |address, loads| {
        let mut open = Vec::new();
        for _ in 0..60 {
            open.push(begin(address).await);
        }
        assert_eq!(spread(loads, 60).await, [60 - MAX_ON_THE_WAY, MAX_ON_THE_WAY]);
        running = Some(run(late, &over));
        for client in &open {
            assert_eq!(client.peek(&mut [0]).await.unwrap(), 1);
        }
        open
    })
    .await;
    over.cancel();
    running.unwrap().join().unwrap();
}
