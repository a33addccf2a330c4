//! Rows without an end, over TLS, from a server that has them ready to clients that throw them away unread: so the
//! proxy, which encrypts them, is what takes the time, and whether a second thread of its brings anything is seen on
//! a machine of two processors as well.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream as StdStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustls::CipherSuite;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::accounting::Spent;
use super::measure::results::Figures;
use super::programs::add;
use super::scenarios::{Tls, Way};
use super::scripted::{LET_IN, SSL_REQUEST, STARTUP};
use super::stage::Stage;

/// By so many clients for so long.
pub(crate) async fn sealed(stage: &Stage, way: Way, clients: usize, time: Duration) -> Figures {
    let upstream = serve(stage.world.folder().join("rows"));
    let listen = if way == Way::PgleaseThreads { "threads = 2\n" } else { "" };
    let pglease = stage.before_scripted(upstream, Tls::Client, listen).await;
    let connector = stage.connector_with(without_aes());
    let mut streams = Vec::new();
    for _ in 0..clients {
        streams.push(open(pglease.port(), &connector).await.expect("a session"));
    }

    let proxy = pglease.process().pid();
    let (before, begun) = (Spent::of(proxy), Instant::now());
    let mut reading = JoinSet::new();
    for stream in streams {
        reading.spawn_blocking(move || throw_away(&stream, begun + time).expect("rows"));
    }
    let bytes: usize = reading.join_all().await.into_iter().sum();
    let (spent, took) = (Spent::of(proxy).micros_since(&before), begun.elapsed());
    #[expect(clippy::cast_precision_loss, reason = "bytes are fewer than 2^52")]
    let mib = bytes as f64 / 1_048_576.0;
    let mut figures = Figures::new();
    add(&mut figures, "mib_s", Some(mib / took.as_secs_f64()));
    add(&mut figures, "cpu_us", Some(spent / mib));
    figures
}

/// What a client asks for whose processor has no instructions for AES.
fn without_aes() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    provider
}

/// A session that has asked for the rows and will decrypt none.
async fn open(port: u16, connector: &TlsConnector) -> io::Result<StdStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(SSL_REQUEST).await?;
    stream.read_u8().await?;
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
    stream.write_all(STARTUP).await?;
    stream.flush().await?;
    let mut said = Vec::new();
    while !said.ends_with(READY) {
        said.push(stream.read_u8().await?);
    }
    stream.write_all(b"Q\0\0\0\x05\0").await?;
    stream.flush().await?;
    let stream = stream.into_inner().0.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Bytes until then. The kernel copies none of them.
fn throw_away(stream: &StdStream, until: Instant) -> io::Result<usize> {
    let mut room = vec![MaybeUninit::uninit(); 1 << 20];
    let mut bytes = 0;
    while Instant::now() < until {
        bytes += SockRef::from(stream).recv_with_flags(&mut room, libc::MSG_TRUNC)?;
    }
    Ok(bytes)
}

/// A server that lets everyone in, and answers whatever is asked with rows until its client goes; its port. They lie in
/// `file`, so that the kernel copies none of them either.
fn serve(file: PathBuf) -> u16 {
    let row = [b"d\0\x01\0\0".to_vec(), vec![b'x'; (1 << 16) - 4]].concat();
    fs::write(&file, row.repeat(64)).expect("a file");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let file = file.clone();
            // Its client goes.
            thread::spawn(move || drop(rows(stream, &file)));
        }
    });
    port
}

fn rows(mut stream: StdStream, file: &Path) -> io::Result<()> {
    stream.set_nodelay(true)?;
    skip_packet(&mut stream)?;
    stream.write_all(LET_IN)?;
    let mut tag = [0];
    stream.read_exact(&mut tag)?;
    if tag != *b"Q" {
        return Ok(());
    }
    skip_packet(&mut stream)?;
    // CopyOutResponse: text, of no column.
    stream.write_all(b"H\0\0\0\x07\0\0\0")?;
    loop {
        io::copy(&mut File::open(file)?, &mut stream)?;
    }
}

/// A length and what it is of.
fn skip_packet(stream: &mut StdStream) -> io::Result<()> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u64::from(u32::from_be_bytes(len)).saturating_sub(4);
    io::copy(&mut stream.take(len), &mut io::sink()).map(drop)
}

const READY: &[u8] = b"Z\0\0\0\x05I";
