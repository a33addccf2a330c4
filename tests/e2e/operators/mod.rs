//! What operators look at. Which PostgreSQL is behind does not matter: the tests run on one of them.

mod files;
mod reload;
mod check;
mod promtool;
mod alerts;
mod trouble;
mod cardinality;
pub(crate) mod runbook;
mod ports;
mod audit;
mod commands;
mod drain;
mod log;
mod rolling;
mod schema;
mod formats;
mod verdict;
mod calls;
mod load;
mod warm;
mod threads;

use std::net::SocketAddr;
use std::process::Output;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::time;

use crate::{BINARY, PATIENCE};

/// Runs pglease with these arguments, without any variable, to its end.
async fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().kill_on_drop(true);
    time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Where what is sent is dropped: nobody accepts, and the kernel holds no more for them. Its address, and what holds it
/// so.
async fn black_hole() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let listener = socket.listen(1).unwrap();
    // Two is what it keeps with a backlog of one.
    let mut held = Vec::new();
    while held.len() < 2 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    (address, (listener, held))
}
