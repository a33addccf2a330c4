//! A server that lets everyone in and gives every query the same row: what is measured with it is the proxy, with as
//! many sessions as no PostgreSQL has on a small machine. And its clients.

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What a client and its server have, encrypted or not.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Ends on drop, with all of its sessions.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    _tasks: JoinSet<()>,
}

impl Scripted {
    /// With TLS for those that ask for it where there is an acceptor.
    pub(crate) async fn start(acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                sessions.spawn(async move { drop(serve(stream, acceptor).await) });
                while sessions.try_join_next().is_some() {}
            }
        });
        Self { port, _tasks: tasks }
    }
}

/// Until the client goes.
async fn serve(mut stream: TcpStream, acceptor: Option<TlsAcceptor>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn Connection> = match acceptor {
        None => Box::new(stream),
        Some(acceptor) => {
            stream.read_exact(&mut [0; SSL_REQUEST.len()]).await?;
            stream.write_all(b"S").await?;
            Box::new(acceptor.accept(stream).await?)
        }
    };
    let mut body = Vec::new();
    read_body(&mut stream, &mut body).await?;
    stream.write_all(LET_IN).await?;
    stream.flush().await?;
    loop {
        match stream.read_u8().await? {
            b'X' => return Ok(()),
            tag => {
                read_body(&mut stream, &mut body).await?;
                if tag == b'Q' {
                    stream.write_all(ROW).await?;
                    stream.flush().await?;
                }
            }
        }
    }
}

/// A length and what it is of.
async fn read_body<S: Connection>(stream: &mut S, body: &mut Vec<u8>) -> std::io::Result<()> {
    let len = stream.read_u32().await?;
    body.resize(usize::try_from(len.saturating_sub(4)).unwrap().min(65_536), 0);
    stream.read_exact(body).await?;
    Ok(())
}

/// A session of a client that keeps nothing.
pub(crate) struct Client(Box<dyn Connection>);

impl Client {
    pub(crate) async fn open(port: u16, connector: Option<TlsConnector>) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut stream: Box<dyn Connection> = match connector {
            None => Box::new(stream),
            Some(connector) => {
                stream.write_all(SSL_REQUEST).await?;
                stream.read_u8().await?;
                let name = ServerName::try_from("localhost").unwrap();
                Box::new(connector.connect(name, stream).await?)
            }
        };
        stream.write_all(STARTUP).await?;
        stream.flush().await?;
        let mut client = Self(stream);
        client.until_ready().await?;
        Ok(client)
    }

    pub(crate) async fn query(&mut self) -> std::io::Result<()> {
        self.0.write_all(b"Q\0\0\0\x0dSELECT 1\0").await?;
        self.0.flush().await?;
        self.until_ready().await
    }

    async fn until_ready(&mut self) -> std::io::Result<()> {
        let mut body = Vec::new();
        loop {
            let tag = self.0.read_u8().await?;
            read_body(&mut self.0, &mut body).await?;
            match tag {
                b'Z' => return Ok(()),
                b'E' => return Err(std::io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
                _ => {}
            }
        }
    }
}

pub(super) const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";

/// Protocol 3.0, user and database `app`.
pub(super) const STARTUP: &[u8] = b"\0\0\0\x1f\0\x03\0\0user\0app\0database\0app\0\0";

/// AuthenticationOk, a version, a key and ReadyForQuery.
pub(super) const LET_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\x0018.0\0\
    K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";

/// Of `SELECT 1`.
const ROW: &[u8] = b"T\0\0\0\x21\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
    D\0\0\0\x0b\0\x01\0\0\0\x011C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
