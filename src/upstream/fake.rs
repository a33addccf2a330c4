//! A scripted upstream for the tests of this module: does what it is told, and panics on what it does not expect.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretString;
use socket2::SockRef;
use tempfile::{TempDir, tempdir};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::{TlsAcceptor, server};

use crate::credential::{Credential, DerivedKeys};
use crate::ids::{GenerationId, LeaseId};
use crate::wire::binding::EndPointHash;
use crate::wire::scram::{Binding, tests::Server};
use crate::wire::startup::StartupParameters;

pub(super) fn credential(password: &str) -> Credential {
    Credential {
        user: "v-db-app".to_owned(),
        password: SecretString::from(password),
        lease: Some(LeaseId::from("lease")),
        generation: GenerationId(1),
        keys: DerivedKeys::default(),
        granted: crate::credential::Granted::default(),
    }
}

/// As a client may have sent them, under a name that upstream never hears.
pub(super) fn parameters() -> StartupParameters {
    let mut parameters = StartupParameters::default();
    for (name, value) in [("user", "app"), ("database", "wizard"), ("role", "app_owner")] {
        parameters.push(name, value);
    }
    parameters
}

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &len.to_be_bytes(), body].concat()
}

/// Fails a test in which each side waits for the other.
pub(super) async fn bounded<T>(played: impl Future<Output = T>) -> T {
    time::timeout(Duration::from_mins(3), played).await.expect("both sides wait")
}

pub(super) struct FakeUpstream<S> {
    stream: S,
}

impl<S> FakeUpstream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(stream: S) -> Self {
        Self { stream }
    }

    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    pub(super) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// A message without a tag, from behind its length word.
    pub(super) async fn startup(&mut self) -> Vec<u8> {
        let len = self.stream.read_u32().await.unwrap();
        self.body(len).await
    }

    pub(super) async fn receive(&mut self) -> (u8, Vec<u8>) {
        let tag = self.stream.read_u8().await.unwrap();
        let len = self.stream.read_u32().await.unwrap();
        (tag, self.body(len).await)
    }

    async fn body(&mut self, len: u32) -> Vec<u8> {
        let mut body = vec![0; len as usize - 4];
        self.stream.read_exact(&mut body).await.unwrap();
        body
    }

    /// All that comes until the end, with or without a goodbye of TLS.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest).await {
            Ok(_) => rest,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => rest,
            Err(error) => panic!("{error}"),
        }
    }

    /// Offers mechanisms; the mechanism and the data of the answer.
    pub(super) async fn begin_scram(&mut self, offered: &str) -> (String, String) {
        self.request(10, format!("{offered}\0").as_bytes()).await;
        let (tag, body) = self.receive().await;
        assert_eq!(tag, b'p');
        let body = String::from_utf8(body).unwrap();
        let (mechanism, rest) = body.split_once('\0').unwrap();
        (mechanism.to_owned(), rest[4..].to_owned())
    }

    /// Up to the client's proof, which has to be right; the server's own signature.
    pub(super) async fn scram_up_to_proof(
        &mut self,
        password: &str,
        offered: &str,
        binding: &Binding,
    ) -> String {
        let (mechanism, client_first) = self.begin_scram(offered).await;
        let (gs2, bound_to) = match binding {
            Binding::Preferred(hash) | Binding::Required(hash) if offered.contains("PLUS") => {
                assert_eq!(mechanism, "SCRAM-SHA-256-PLUS");
                ("p=tls-server-end-point,,", hash.as_ref())
            }
            Binding::Preferred(_) | Binding::Required(_) => ("y,,", &[][..]),
            Binding::None => ("n,,", &[][..]),
        };
        let (server, server_first) = Server::first(password, &client_first, gs2);
        self.request(11, server_first.as_bytes()).await;
        let (tag, client_final) = self.receive().await;
        assert_eq!(tag, b'p');
        let client_final = String::from_utf8(client_final).unwrap();
        server.last(&client_final, &[gs2.as_bytes(), bound_to].concat()).expect("the proof is wrong")
    }

    pub(super) async fn scram(&mut self, password: &str, offered: &str, binding: &Binding) {
        let server_final = self.scram_up_to_proof(password, offered, binding).await;
        self.request(12, server_final.as_bytes()).await;
    }

    async fn request(&mut self, code: u32, data: &[u8]) {
        self.send(&message(b'R', &[&code.to_be_bytes()[..], data].concat())).await;
    }
}

impl FakeUpstream<TcpStream> {
    /// Ends with RST.
    pub(super) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A server's certificate, with what checks it.
pub(super) struct Identity {
    certificate: CertificateDer<'static>,
    pub(super) acceptor: TlsAcceptor,
    pub(super) ca_file: PathBuf,
    /// Its owner's alone.
    pub(super) key_file: PathBuf,
    _dir: TempDir,
}

impl Identity {
    pub(super) fn new(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let dir = tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        fs::write(&ca_file, certificate.pem()).unwrap();
        let key_file = dir.path().join("key.pem");
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private_key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private_key)
            .unwrap();
        // As PostgreSQL.
        config.send_tls13_tickets = 0;
        let acceptor = Arc::new(config).into();
        Self { certificate: certificate.der().clone(), acceptor, ca_file, key_file, _dir: dir }
    }

    pub(super) fn hash(&self) -> EndPointHash {
        EndPointHash::of_certificate(&self.certificate).unwrap()
    }

    pub(super) async fn accept<S>(&self, mut stream: S) -> FakeUpstream<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        expect_ssl_request(&mut stream).await;
        stream.write_all(b"S").await.unwrap();
        FakeUpstream::new(self.acceptor.accept(stream).await.unwrap())
    }
}

pub(super) async fn expect_ssl_request<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut request = [0; 8];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(request, SSL_REQUEST);
}

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
