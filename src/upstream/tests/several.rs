//! Logins at several hosts, each played by a script.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::task::JoinSet;

use super::super::fake::{FakeUpstream, bounded, credential, message, parameters};
use super::super::*;
use crate::config::{Host, SslMode};

/// What a host does with each connection.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Is not there.
    Closed,
    Silent,
    /// Says this in answer to the first packet, and goes on or ends.
    Says(&'static [u8], End),
    /// Lets us in, with these ParameterStatus messages; says this to a query, and expects a goodbye.
    LetsIn(&'static [(&'static str, &'static str)], &'static str),
    /// Lets us in as a standby, and does not go when we do.
    Lingers,
    /// Refuses the login.
    Refuses(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stays,
    Fin,
    Reset,
}

const PRIMARY: Act = Act::LetsIn(&[("in_hot_standby", "off"), ("default_transaction_read_only", "off")], "");
const STANDBY: Act = Act::LetsIn(&[("in_hot_standby", "on"), ("default_transaction_read_only", "off")], "");

/// Hosts that play their acts for as long as this lives.
struct Stage {
    config: UpstreamConfig,
    /// Connections that each has had.
    connections: Vec<Arc<AtomicU32>>,
    actors: JoinSet<()>,
    /// Ports that nobody listens on, and nobody else gets.
    closed: Vec<TcpSocket>,
}

impl Stage {
    fn of(acts: &[Act]) -> Self {
        let mut config = UpstreamConfig::plain("", 0);
        config.hosts.clear();
        let mut stage = Self { config, connections: Vec::new(), actors: JoinSet::new(), closed: Vec::new() };
        for &act in acts {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            stage.config.hosts.push(Host::at("127.0.0.1", socket.local_addr().unwrap().port()));
            let connections = Arc::new(AtomicU32::new(0));
            stage.connections.push(Arc::clone(&connections));
            if matches!(act, Act::Closed) {
                stage.closed.push(socket);
                continue;
            }
            let listener = socket.listen(16).unwrap();
            stage.actors.spawn(async move {
                // All at once, as a host does.
                let mut playing = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::Relaxed);
                    playing.spawn(play(act, stream));
                }
            });
        }
        stage
    }

    fn wanting(acts: &[Act], wanted: TargetSessionAttrs) -> Self {
        let mut stage = Self::of(acts);
        stage.config.target_session_attrs = wanted;
        stage
    }

    /// Logs in with so much time; the index of the host that served.
    async fn log_in_within(&self, limit: Duration) -> Result<usize, UpstreamError> {
        let upstream = Upstream::load(&self.config).unwrap();
        let (credential, parameters) = (credential("secret"), parameters());
        let login = upstream.log_in(&credential, &parameters, Instant::now() + limit);
        let logged_in = bounded(login).await?;
        let host = logged_in.address.host();
        Ok(self.config.hosts.iter().position(|other| other == host).unwrap())
    }

    async fn log_in(&self) -> Result<usize, UpstreamError> {
        self.log_in_within(Duration::from_mins(2)).await
    }

    /// The same where a host has but so much time, which a machine that does much else may need longer than: until one
    /// serves.
    async fn served_within(&self, limit: Duration) -> usize {
        loop {
            match self.log_in_within(limit).await {
                Ok(host) => return host,
                Err(error) => assert_eq!(error.reason(), "timeout", "{error}"),
            }
        }
    }

    fn connections(&self) -> Vec<u32> {
        self.connections.iter().map(|connections| connections.load(Ordering::Relaxed)).collect()
    }
}

async fn play(act: Act, stream: TcpStream) {
    match act {
        Act::Closed => {}
        Act::Silent => drop(FakeUpstream::new(stream).rest().await),
        Act::Says(bytes, end) => {
            let mut upstream = FakeUpstream::new(stream);
            upstream.startup().await;
            upstream.send(bytes).await;
            match end {
                End::Fin => {}
                End::Stays => drop(upstream.rest().await),
                End::Reset => upstream.reset(),
            }
        }
        Act::Refuses(code) => {
            let mut upstream = FakeUpstream::new(stream);
            upstream.startup().await;
            upstream.send(&refusal(code)).await;
        }
        Act::LetsIn(parameters, answer) => drop(let_in(stream, parameters, answer).await),
        Act::Lingers => {
            let _stays = let_in(stream, &[("in_hot_standby", "on")], "").await;
            std::future::pending::<()>().await;
        }
    }
}

fn refusal(code: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0C{code}\0Mno {code}\0\0").as_bytes())
}

async fn let_in(stream: TcpStream, parameters: &[(&str, &str)], answer: &str) -> FakeUpstream<TcpStream> {
    let status = |(name, value): &(&str, &str)| message(b'S', format!("{name}\0{value}\0").as_bytes());
    let mut upstream = FakeUpstream::new(stream);
    upstream.startup().await;
    let parameters = parameters.iter().flat_map(status).collect();
    let key = message(b'K', b"\0\0\0\x07abcd");
    upstream.send(&[message(b'R', b"\0\0\0\0"), parameters, key, READY.to_vec()].concat()).await;
    if !answer.is_empty() {
        let (tag, _) = upstream.receive().await;
        assert_eq!(tag, b'Q');
        let len = u32::try_from(answer.len()).unwrap().to_be_bytes();
        let row = message(b'D', &[b"\0\x01", &len[..], answer.as_bytes()].concat());
        let late = message(b'S', b"TimeZone\0UTC\0");
        upstream.send(&[late, row, READY.to_vec()].concat()).await;
    }
    // Either side may be the first to go.
    let rest = upstream.rest().await;
    assert!(rest.is_empty() || rest == TERMINATE, "{rest:?}");
    upstream
}

const READY: &[u8] = b"Z\0\0\0\x05I";

#[tokio::test]
async fn next_host_is_asked_where_one_is_none_of_ours() {
    for first in [
        Act::Closed,
        Act::Says(b"", End::Fin),
        Act::Says(b"", End::Reset),
        Act::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n", End::Fin),
        Act::Says(b"\x15\x03\x01\0\x02\x02\x28", End::Stays),
        // A password in clear, which we do not give to anyone.
        Act::Says(b"R\0\0\0\x08\0\0\0\x03", End::Stays),
        Act::Refuses("57P03"),
        Act::Refuses("57P01"),
        // A replica that has not heard of the credential yet.
        Act::Refuses("28P01"),
        Act::Refuses("28000"),
    ] {
        let stage = Stage::of(&[first, PRIMARY]);
        assert_eq!(stage.log_in().await.unwrap(), 1, "{first:?}");
    }
    let stage = Stage::of(&[PRIMARY, PRIMARY]);
    assert_eq!((stage.log_in().await.unwrap(), stage.connections()), (0, vec![1, 0]));
}

#[tokio::test]
async fn silent_host_leaves_its_share_of_the_time_to_the_others() {
    let any = Stage::of(&[Act::Silent, Act::Silent, PRIMARY]);
    let hosts = [Act::Silent, PRIMARY, Act::Silent];
    let preferred = Stage::wanting(&hosts, TargetSessionAttrs::PreferStandby);
    let limit = Duration::from_secs(8);
    let served = tokio::join!(any.served_within(limit), preferred.served_within(limit));
    assert_eq!(served, (2, 1));

    let mut stage = Stage::of(&[Act::Silent, PRIMARY]);
    for (connect_timeout, limit) in [(Duration::from_secs(1), Duration::from_secs(15)), (limit * 2, limit)] {
        stage.config.connect_timeout = Some(connect_timeout);
        assert_eq!(bounded(stage.served_within(limit)).await, 1);
    }
}

#[tokio::test]
async fn goodbye_to_an_unfit_host_does_not_make_it_a_silent_one() {
    let mut stage = Stage::wanting(&[Act::Lingers], TargetSessionAttrs::Primary);
    // Less than a goodbye takes, and enough for a login but on a machine that does much else.
    stage.config.connect_timeout = Some(CLOSE_TIMEOUT.mul_f64(0.9));
    let is_unfit = async || stage.log_in().await.unwrap_err().on_credential() == OnCredential::Accepted;
    bounded(async { while !is_unfit().await {} }).await;
}

#[tokio::test]
async fn who_waits_until_the_deadline_as_well_hears_of_the_host() {
    let stage = Stage::of(&[Act::Silent]);
    let upstream = Upstream::load(&stage.config).unwrap();
    let (credential, parameters) = (credential("secret"), parameters());
    for step in 1..40 {
        let deadline = Instant::now() + Duration::from_micros(1_370 * step);
        let login = upstream.log_in(&credential, &parameters, deadline);
        let outcome = time::timeout_at(deadline, login).await;
        assert!(matches!(outcome, Ok(Err(UpstreamError::TimedOut { .. }))), "{outcome:?}");
    }
}

#[tokio::test]
async fn all_hosts_are_named_where_none_serves() {
    let stage = Stage::of(&[Act::Closed, Act::Refuses("57P03"), Act::Closed]);
    let error = stage.log_in().await.unwrap_err();
    assert_eq!((error.reason(), error.sqlstate().unwrap().to_string()), ("refused", "57P03".to_owned()));
    for host in &stage.config.hosts {
        assert!(error.to_string().contains(&host.to_string()), "{error}");
    }
    let stage = Stage::of(&[Act::Silent, Act::Closed]);
    let error = stage.log_in_within(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(error.reason(), "timeout");
}

#[tokio::test]
async fn word_on_anything_but_server_and_credential_is_the_last() {
    let stage = Stage::of(&[Act::Refuses("28P01"), Act::Refuses("3D000"), PRIMARY]);
    let error = stage.log_in().await.unwrap_err();
    assert!(matches!(&error, UpstreamError::Refused { response, .. } if response.message == "no 3D000"));
    assert_eq!(stage.connections(), [1, 1, 0]);
    // The credential is good, all the same.
    let stage = Stage::wanting(&[PRIMARY, Act::Refuses("53300")], TargetSessionAttrs::Standby);
    let error = stage.log_in().await.unwrap_err();
    assert!(matches!(&error, UpstreamError::Refused { response, .. } if response.message == "no 53300"));
    assert_eq!(error.on_credential(), OnCredential::Accepted);
}

#[tokio::test]
async fn credential_is_rejected_where_no_host_accepts_it_and_late_where_one_does() {
    let stage = Stage::of(&[Act::Refuses("28P01"), Act::Refuses("28P01")]);
    let error = stage.log_in().await.unwrap_err();
    assert!(matches!(error, UpstreamError::CredentialRejected { .. }), "{error}");
    // One that has said nothing may be the one that knows it.
    for silent in [Act::Closed, Act::Refuses("57P03"), Act::Says(b"", End::Reset)] {
        let stage = Stage::of(&[Act::Refuses("28P01"), silent, Act::Refuses("28P01")]);
        let error = stage.log_in().await.unwrap_err();
        assert_eq!(error.on_credential(), OnCredential::Doubtful, "{error}");
        assert!(matches!(error, UpstreamError::NoHost(_)), "{error}");
    }
    let stage = Stage::of(&[Act::Closed, Act::Refuses("28000"), Act::Refuses("28P01")]);
    let error = stage.log_in().await.unwrap_err();
    assert_eq!(error.on_credential(), OnCredential::Doubtful, "{error}");
    assert!(matches!(&error, UpstreamError::Refused { response, .. } if response.message == "no 28000"));

    for hosts in [[Act::Refuses("28P01"), PRIMARY], [PRIMARY, Act::Refuses("28P01")]] {
        let stage = Stage::wanting(&hosts, TargetSessionAttrs::Standby);
        let error = stage.log_in().await.unwrap_err();
        assert_eq!(error.on_credential(), OnCredential::Late, "{error}");
        assert_eq!(error.reason(), "session_attrs");
        let stage = Stage::wanting(&hosts, TargetSessionAttrs::PreferStandby);
        assert!(matches!(hosts[stage.log_in().await.unwrap()], Act::LetsIn(..)));
    }
}

#[tokio::test]
async fn each_value_of_target_session_attrs_finds_its_server_in_whatever_order() {
    use TargetSessionAttrs::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    const READ_ONLY: Act =
        Act::LetsIn(&[("in_hot_standby", "off"), ("default_transaction_read_only", "on")], "");
    // Of a pooler that passes nothing on, and answers as either.
    const SAYS_YES: Act = Act::LetsIn(&[], "on");
    const SAYS_NO: Act = Act::LetsIn(&[], "f");

    for (wanted, hosts, expected) in [
        (Any, [STANDBY, PRIMARY], Some(0)),
        (ReadWrite, [STANDBY, PRIMARY], Some(1)),
        (ReadWrite, [READ_ONLY, SAYS_NO], Some(1)),
        (ReadOnly, [PRIMARY, STANDBY], Some(1)),
        (ReadOnly, [PRIMARY, SAYS_YES], Some(1)),
        (Primary, [STANDBY, READ_ONLY], Some(1)),
        (Primary, [SAYS_YES, SAYS_NO], Some(1)),
        (Standby, [PRIMARY, STANDBY], Some(1)),
        (Standby, [SAYS_NO, SAYS_YES], Some(1)),
        (Standby, [PRIMARY, READ_ONLY], None),
        (PreferStandby, [PRIMARY, STANDBY], Some(1)),
        (PreferStandby, [PRIMARY, Act::Closed], Some(0)),
        (PreferStandby, [Act::Closed, PRIMARY], Some(1)),
    ] {
        let stage = Stage::wanting(&hosts, wanted);
        let served = stage.log_in().await;
        if let (Err(error), None) = (&served, expected) {
            assert_eq!(error.reason(), "session_attrs");
            assert!(error.to_string().contains("server is not in hot standby mode"), "{error}");
        }
        assert_eq!(served.ok(), expected, "{wanted:?} {hosts:?}");
    }
}

#[tokio::test]
async fn what_a_server_says_beside_an_answer_is_kept_for_the_client() {
    let stage = Stage::wanting(&[Act::LetsIn(&[("a", "b")], "off")], TargetSessionAttrs::ReadWrite);
    let upstream = Upstream::load(&stage.config).unwrap();
    let (credential, parameters) = (credential("secret"), parameters());
    let login = upstream.log_in(&credential, &parameters, Instant::now() + Duration::from_mins(2));
    let logged_in = bounded(login).await.unwrap();
    assert_eq!(logged_in.before_key, message(b'S', b"a\0b\0"));
    assert_eq!(logged_in.after_key, [READY, &message(b'S', b"TimeZone\0UTC\0")].concat());
}

#[tokio::test]
async fn hosts_by_chance_all_serve() {
    let mut stage = Stage::of(&[PRIMARY, PRIMARY]);
    stage.config.load_balance_hosts = config::LoadBalanceHosts::Random;
    let mut served = [0, 0];
    while served.contains(&0) {
        served[stage.log_in().await.unwrap()] += 1;
    }
}

#[tokio::test]
async fn unix_socket_is_a_host_without_tls_whatever_sslmode_says() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(".s.PGSQL.6000")).unwrap();
    let host = Host::socket(dir.path().to_str().unwrap(), 6000);
    let config = UpstreamConfig { hosts: vec![host], ..UpstreamConfig::at("", 0) };
    assert_eq!(config.ssl_mode, SslMode::VerifyFull);
    let upstream = Upstream::load(&config).unwrap();
    let (credential, parameters) = (credential("secret"), parameters());
    let login = upstream.log_in(&credential, &parameters, Instant::now() + Duration::from_mins(2));
    let serving = async {
        let mut upstream = FakeUpstream::new(listener.accept().await.unwrap().0);
        upstream.startup().await;
        upstream.send(&[&message(b'R', b"\0\0\0\0"), READY].concat()).await;
    };
    let (logged_in, ()) = bounded(async { tokio::join!(login, serving) }).await;
    let logged_in = logged_in.unwrap();
    assert!(matches!(logged_in.stream, Stream::Unix(_)));
    assert_eq!(logged_in.address.to_string(), config.to_string());

    // Nobody is there any more.
    drop((listener, dir));
    let error = upstream.log_in(&credential, &parameters, Instant::now()).await.unwrap_err();
    assert!(["connect", "timeout"].contains(&error.reason()), "{error}");
}

#[tokio::test]
async fn failures_of_hosts_are_counted_by_host_whatever_becomes_of_the_login() {
    let stage = Stage::of(&[Act::Closed, PRIMARY]);
    let metrics = Metrics::new();
    let upstream = Upstream::load(&stage.config).unwrap().counting(&metrics);
    let (credential, parameters) = (credential("secret"), parameters());
    for _ in 0..2 {
        let deadline = Instant::now() + Duration::from_mins(2);
        bounded(upstream.log_in(&credential, &parameters, deadline)).await.unwrap();
    }
    let labels = HostFailureLabels { host: stage.config.hosts[0].to_string(), reason: "connect" };
    assert_eq!(metrics.upstream_host_failures.get_or_create(&labels).get(), 2);
}
